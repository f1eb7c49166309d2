"""From cases to label maps, one after the other: what all predictors share. Knows no experiment and no network.

While one case is in the network the next one is read and the last one written. A case that fails does not stop the
others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from monai.data import MetaTensor

from candy_monai.aliases import PathLike, Shape
from candy_monai.allocation import freed_memory_kept, give_back_freed_memory
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.images.reading import read_geometry
from candy_monai.data.pipelines.description import IMAGE, PREDICTION, OwnTransforms, largest_components
from candy_monai.data.pipelines.preprocessing import PreprocessedCase, as_label_map, build_postprocessing
from candy_monai.errors import BadInputError, CandyError, SettingsError
from candy_monai.inference.channels import RunChannels
from candy_monai.inference.found import GIVEN_SHAPE, InputCase
from candy_monai.inference.inputs import Input, Inputs, input_case, input_cases
from candy_monai.inference.memory import MemoryEstimate, fits_on_disk_only
from candy_monai.inference.writing import Prediction, Writer, check_target, left_over, written_suffix

if TYPE_CHECKING:
    from candy_monai.data.pipelines.building import Pipeline

READ_AHEAD_VOXELS = 1 << 25
"""A case of more voxels than this is read when it is its turn: two such cases at once would take too much memory."""

ESTIMATED_VOXELS = 1 << 20
"""Where no case has more voxels and no memory is given, nobody is told what they take."""


class PredictionListener:
    """Told how prediction goes; by default it does nothing. Called in the thread that predicts."""

    def on_started(self, num_cases: int, largest: str | None, needed: MemoryEstimate | None) -> None:
        """Prediction is about to start; the largest case and what it takes, where file headers tell."""

    def on_windows(self, case_id: str, done: int, total: int) -> None:
        """So many of a case's windows were run."""

    def on_case(self, done: int, total: int, case_id: str, error: Exception | None) -> None:
        """A case ended, well or with an error."""

    def on_left_over(self, file: Path, reason: str) -> None:
        """A file of an earlier prediction stays in the folder for the results, and does not belong to this one."""


class PredictionError(CandyError):
    """Some cases could not be predicted; the others were.

    Args:
        failures: What went wrong, by case.
        written: The files of the other cases.
    """

    def __init__(self, failures: dict[str, Exception], written: Sequence[Path]) -> None:
        self.failures = dict(failures)
        self.written = tuple(written)
        lines = "".join(f"\n  - {case_id}: {_reason(error)}" for case_id, error in failures.items())
        count = len(failures) + len(written)
        others = "the others are done" if written else "none is done"
        super().__init__(f"{len(failures)} of {count} cases could not be predicted; {others}:{lines}")


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCase:
    """A case that was read and preprocessed.

    Attributes:
        case_id: The case.
        image: The image as loaded, without its voxels: affine and what else is known of its file.
        shape: Its spatial shape.
        cases: The preprocessed case; one for each of an ensemble's members where they preprocess differently.
    """

    case_id: str
    image: dict[str, object]
    shape: Shape
    cases: tuple[PreprocessedCase, ...]


class CasePredictor(ABC):
    """Predicts cases of any kind; subclasses say how one preprocessed case is predicted.

    Args:
        largest_component: Keep only the largest connected part of each class.
        memory: Bytes that a case may take above what the process holds before; None for as many as it needs. The C
            library then gives freed memory back at once, in this process and from now on.
        channels: The number of each of the run's channels in the names of files (``_0000``), and in images that hold
            more channels; None for 0, 1, 2 and so on. Empty where such numbers belong to the names of the cases.

    Raises:
        SettingsError: If ``memory`` is no number of bytes, or ``channels`` are no numbers.
    """

    def __init__(
        self, *, largest_component: bool = False, memory: int | None = None, channels: Sequence[int] | None = None
    ) -> None:
        self.largest_component = largest_component
        self._channel_numbers = None if channels is None else _checked_numbers(channels)
        self.memory = memory
        if memory is not None:
            if not isinstance(memory, int) or isinstance(memory, bool) or memory <= 0:
                raise SettingsError(f"memory {memory!r}: expected a number of bytes above 0, or None")
            give_back_freed_memory()  # an estimate holds for what is used, not for what the process keeps
        self.listener = PredictionListener()

    @property
    @abstractmethod
    def num_channels(self) -> int:
        """Channels that the network expects."""

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The names of these channels; empty texts where they are unknown."""
        return ("",) * self.num_channels

    @property
    def channels(self) -> RunChannels:
        """The channels that the network expects, and where they are to be found.

        Raises:
            SettingsError: If other than one number was chosen for each channel.
        """
        return RunChannels(names=self.channel_names, numbers=self._channel_numbers)

    @property
    @abstractmethod
    def num_dims(self) -> int | None:
        """Spatial axes that the network expects; None if unknown."""

    @abstractmethod
    def prepare(self, case_id: str, image: MetaTensor) -> PreparedCase:
        """Preprocess an image ``(C, *spatial)`` with its geometry."""

    @abstractmethod
    def run(self, case: PreparedCase, *, probabilities: bool = False) -> Prediction:
        """Predict a preprocessed case."""

    @abstractmethod
    def estimate(self, geometry: Geometry) -> MemoryEstimate | None:
        """Work out what a case on this grid takes; None where the network does not tell."""

    @abstractmethod
    def estimate_prepared(self, case: PreparedCase) -> MemoryEstimate | None:
        """Work out the same once the case is prepared."""

    def goes_to_disk(self, case: PreparedCase, *, probabilities: bool = False) -> bool:
        """Return whether a case's unfinished scores must be kept on disk.

        Args:
            case: The case.
            probabilities: Whether probabilities are asked for.

        Raises:
            BadInputError: If even then it takes more memory than allowed.
        """
        return self.memory is not None and self._keeps_to_memory(self.estimate_prepared(case), probabilities)

    def predict(self, image: Input) -> MetaTensor:
        """Predict the label map of one image.

        Args:
            image: A file; the files of one case, a channel each; a tensor ``(C, *spatial)``, with its affine when it is
                a ``MetaTensor``; a nibabel image; an array with its spacing, ``(array, spacing_mm)``; or a list of
                these, a channel each, which are brought onto the grid of the first.

        Returns:
            Label ids ``(1, *spatial)`` on the image's own grid, with its affine.

        Raises:
            BadInputError: If the image cannot be read, or its channels are not those of the run or lie elsewhere.
        """
        return self.predict_image(image).labels

    def predict_image(self, image: Input, *, probabilities: bool = False) -> Prediction:
        """Predict one image as `predict` does, and return the probability of each class, too, when asked.

        Args:
            image: As for `predict`.
            probabilities: Whether to return them; all classes are held at the image's full size then.

        Raises:
            BadInputError: As for `predict`.
        """
        case = input_case(image, channels=self.channels, num_dims=self.num_dims)
        return self._predicted(case, probabilities)

    def stream(self, source: Inputs, *, probabilities: bool = False) -> Iterator[Prediction]:
        """Predict cases one after the other and hold one of them at a time.

        Args:
            source: One image of any kind, a folder, a dataset, a list of images, or a generator, which is asked for an
                image when it is its turn. Files of a list are grouped by case as those of a folder. Items of datasets
                of MONAI's or PyTorch's may be dictionaries with an ``image``, or pairs of image and label.
            probabilities: As for `predict_image`.

        Yields:
            The predictions, in the order of the cases.

        Raises:
            BadInputError: At a case that cannot be read.
        """
        cases = input_cases(source, channels=self.channels, num_dims=self.num_dims)
        for _, outcome in self._outcomes(cases, probabilities):
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    def predict_to_files(
        self,
        source: Inputs,
        target: PathLike,
        *,
        probabilities: bool = False,
        listener: PredictionListener | None = None,
    ) -> list[Path]:
        """Predict cases and write each label map in its image's geometry and format.

        Args:
            source: As for `stream`; usually a folder.
            target: The folder for the label maps, ``{case}{suffix}``; made when missing.
            probabilities: Also write ``{case}_probabilities.nii.gz``, one channel a class.
            listener: Told how it goes.

        Returns:
            The label maps written.

        Raises:
            BadInputError: If there is nothing to predict, or the only case cannot be read; nothing was written then.
            PredictionError: If some of several cases could not be predicted; the others are written. What an earlier
                prediction has left of these stays, and the listener is told.
        """
        self.listener = listener or PredictionListener()
        cases = list(input_cases(source, channels=self.channels, num_dims=self.num_dims))
        if not cases:
            raise BadInputError("nothing to predict: the dataset is empty")
        paths = {case.case_id: Path(target) / f"{case.case_id}{written_suffix(case)}" for case in cases}
        check_target(cases, list(paths.values()), Path(target), source, probabilities=probabilities)
        self.listener.on_started(len(cases), *self._largest(cases, probabilities))
        failures: dict[str, Exception] = {}
        with Writer(failures) as writer:
            for done, (case, outcome) in enumerate(self._outcomes(cases, probabilities), start=1):
                if isinstance(outcome, Exception):
                    failures[case.case_id] = outcome
                else:
                    writer.write(outcome, case, paths[case.case_id])
                    del outcome
                    if self.memory is not None:
                        writer.wait()
                self.listener.on_case(done, len(cases), case.case_id, failures.get(case.case_id))
        for file, reason in left_over(paths, failures, probabilities=probabilities):
            self.listener.on_left_over(file, reason)
        written = [path for case_id, path in paths.items() if case_id not in failures]
        if len(cases) == 1 and failures:
            raise next(iter(failures.values()))
        if failures:
            raise PredictionError(failures, written)
        return written

    def _outcomes(
        self, cases: Iterable[InputCase], probabilities: bool
    ) -> Iterator[tuple[InputCase, Prediction | Exception]]:
        """Yield each case's prediction or why there is none, and read the next case meanwhile."""
        with freed_memory_kept(), ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            coming: Future[PreparedCase] | None = None
            for case, following in _with_the_next(cases):
                future = coming or reader.submit(self._read, case, probabilities)
                coming = None
                try:
                    prepared = future.result()
                    if following is not None and self._may_read_ahead(following):
                        coming = reader.submit(self._read, following, probabilities)
                    outcome: Prediction | Exception = self._finished(
                        self.run(prepared, probabilities=probabilities), prepared
                    )
                except Exception as error:  # one bad case must not cost the others
                    outcome = error
                yield case, outcome
                prepared = outcome = None  # type: ignore[assignment]  # not to be held while the next one is predicted

    def _read(self, case: InputCase, probabilities: bool) -> PreparedCase:
        if self.memory is not None and case.files and case.problem is None:
            self._keeps_to_memory(self.estimate(read_geometry(case.files[0])), probabilities)
        return self.prepare(case.case_id, case.load(self.channels, num_dims=self.num_dims))

    def _predicted(self, case: InputCase, probabilities: bool) -> Prediction:
        prepared = self._read(case, probabilities)
        return self._finished(self.run(prepared, probabilities=probabilities), prepared)

    def _keeps_to_memory(self, needed: MemoryEstimate | None, probabilities: bool) -> bool:
        """Return whether what a case needs must go to disk in part; raises if even then it is too much."""
        if needed is None or self.memory is None:
            return False
        return fits_on_disk_only(needed.with_probabilities() if probabilities else needed, self.memory)

    @property
    def own_postprocessing(self) -> OwnTransforms:
        """The steps that follow the plan's postprocessing, on the label map."""
        return OwnTransforms()

    @cached_property
    def _cleaning(self) -> Pipeline | None:
        own = self.own_postprocessing
        steps = [*map(dict, own.postprocessing), *([largest_components()] if self.largest_component else [])]
        return build_postprocessing(steps, trust=own.trust) if steps else None

    def _cleaned(self, prediction: Prediction, case: PreparedCase) -> Prediction:
        if self._cleaning is None:
            return prediction
        labels = prediction.labels
        made = self._cleaning({PREDICTION: labels, IMAGE: case.cases[0].image})[PREDICTION]
        ids = as_label_map(made, tuple(labels.shape[1:])).to(labels.dtype)
        return replace(prediction, labels=MetaTensor(ids, meta=labels.meta))

    def _finished(self, prediction: Prediction, case: PreparedCase) -> Prediction:
        prediction = self._cleaned(prediction, case)
        given = prediction.labels.meta.get(GIVEN_SHAPE)
        if given is None:
            return prediction
        many = prediction.probabilities
        return replace(
            prediction,
            labels=_reshaped(prediction.labels, given),
            probabilities=None if many is None else _reshaped(many, given),
        )

    def _may_read_ahead(self, case: InputCase) -> bool:
        if self.memory is not None:
            return False
        if not case.files:
            return True
        try:
            num_voxels = _num_voxels(read_geometry(case.files[0]))
        except CandyError:
            return True
        return self.num_channels * num_voxels <= READ_AHEAD_VOXELS

    def _largest(self, cases: Sequence[InputCase], probabilities: bool) -> tuple[str | None, MemoryEstimate | None]:
        """Return the case of the most voxels, by the files' headers, and what it takes; nothing for small ones."""
        largest: tuple[str, Geometry] | None = None
        for case in cases:
            try:
                geometry = read_geometry(case.files[0]) if case.files else None
            except CandyError:  # it is reported when it is its turn
                continue
            if geometry is not None and (largest is None or _num_voxels(geometry) > _num_voxels(largest[1])):
                largest = case.case_id, geometry
        if largest is None or (self.memory is None and _num_voxels(largest[1]) < ESTIMATED_VOXELS):
            return None, None  # to work it out takes a second, which such a folder may be done in
        needed = self.estimate(largest[1])
        return largest[0], needed.with_probabilities() if needed is not None and probabilities else needed


def _with_the_next(cases: Iterable[InputCase]) -> Iterator[tuple[InputCase, InputCase | None]]:
    coming = iter(cases)
    case = next(coming, None)
    while case is not None:
        following = next(coming, None)
        yield case, following
        case = following


def _reshaped(image: MetaTensor, spatial_shape: Shape) -> MetaTensor:
    """Give a part of a prediction the axes that its image had."""
    meta = {key: value for key, value in image.meta.items() if key != GIVEN_SHAPE}
    return MetaTensor(image.as_tensor().reshape(len(image), *spatial_shape), meta=meta)


def _num_voxels(geometry: Geometry) -> int:
    return math.prod(geometry.spatial_shape)


def _checked_numbers(channels: Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(channels)
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise SettingsError(f"channels {channels!r}: expected whole numbers, such as (1, 2)")
    return numbers


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, CandyError) else f"{type(error).__name__}: {text}"
