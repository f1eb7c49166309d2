"""The base class of predictors: predict cases one after the other, and write the predictions.

While the network processes a case, the next one is read and the previous one is written. If a case fails, the others
are still predicted.
"""

from __future__ import annotations

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor

from candy_monai.aliases import PathLike, Shape
from candy_monai.allocation import freed_memory_kept, give_back_freed_memory
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.pipelines.description import IMAGE, PREDICTION, OwnTransforms, largest_components
from candy_monai.data.pipelines.preprocessing import build_postprocessing, label_map_by
from candy_monai.data.workers import shares
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.inference.buffers import MemoryEstimate, fits_on_disk_only
from candy_monai.inference.channels import RunChannels
from candy_monai.inference.dicom_seg import Segment, check_series, read_segments
from candy_monai.inference.inputs import GIVEN_SHAPE, Input, InputCase, Inputs, input_case, input_cases
from candy_monai.inference.manifest import Manifest
from candy_monai.inference.outputs import left_over, prediction_error, target_paths, write_prediction
from candy_monai.inference.prediction import Prediction, PredictionListener, PreparedCase
from candy_monai.label_ids import highest_id
from candy_monai.transforms.painting import id_type

if TYPE_CHECKING:
    from candy_monai.data.pipelines.building import Pipeline
    from candy_monai.processes import Processes

READ_AHEAD_VOXELS = 1 << 25
"""Cases with more voxels than this are not read ahead: two such cases at once would take too much memory."""

ESTIMATED_VOXELS = 1 << 20
"""Without ``memory``, the listener gets a memory estimate only if the largest case has at least this many voxels."""


class CasePredictor(ABC):
    """Base class of predictors; a subclass defines how a preprocessed case is predicted. For arguments see `Predictor`.

    Attributes:
        thresholds: The probability that each region, or a single foreground class, must exceed; empty for 0.5.
    """

    thresholds: tuple[float, ...] = ()

    def __init__(
        self, *, largest_component: bool = False, memory: int | None = None, channels: Sequence[int] | None = None
    ) -> None:
        self.largest_component = largest_component
        self._channel_numbers = None if channels is None else tuple(channels)
        self.memory = memory
        if memory is not None:
            if not isinstance(memory, int) or isinstance(memory, bool) or memory <= 0:
                raise SettingsError(f"memory {memory!r}: expected a number of bytes above 0, or None")
            give_back_freed_memory()  # an estimate is of used memory, without what the process has cached

    @property
    @abstractmethod
    def num_channels(self) -> int:
        """The number of channels that the network expects."""

    @property
    @abstractmethod
    def channel_names(self) -> tuple[str, ...]:
        """The names of these channels; empty strings if unknown."""

    @property
    def channels(self) -> RunChannels:
        """The channels that the network expects, and their numbers in file names.

        Raises:
            SettingsError: If the number of chosen channels is not that of the network.
        """
        return RunChannels(names=self.channel_names, numbers=self._channel_numbers)

    @property
    @abstractmethod
    def num_dims(self) -> int | None:
        """The number of spatial axes that the network expects; None if unknown."""

    @property
    @abstractmethod
    def own_postprocessing(self) -> OwnTransforms:
        """The user's transforms on the label map, applied after the plan's postprocessing."""

    @property
    @abstractmethod
    def classes(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        """The name of each foreground class or region, and its ids in a label map."""

    @abstractmethod
    def describe_models(self) -> list[dict[str, object]]:
        """Return a description of the models and their settings as plain values: a mapping for each experiment."""

    @abstractmethod
    def prepare(self, case_id: str, image: MetaTensor) -> PreparedCase:
        """Preprocess the image ``(C, *spatial)`` of a case, with its affine."""

    @abstractmethod
    def run(
        self, case: PreparedCase, *, probabilities: bool = False, listener: PredictionListener | None = None
    ) -> Prediction:
        """Predict a preprocessed case, with class probabilities if requested; call the listener after each window."""

    @abstractmethod
    def estimate(self, geometry: Geometry) -> MemoryEstimate | None:
        """Estimate the memory for a case on this grid, in bytes; None if it cannot be estimated."""

    @abstractmethod
    def estimate_prepared(self, case: PreparedCase) -> MemoryEstimate | None:
        """Estimate the memory for a preprocessed case, in bytes; None if it cannot be estimated."""

    def predict(self, image: Input) -> MetaTensor:
        """Predict the label map of one image.

        Args:
            image: A file; the files of one case, one per channel; a tensor ``(C, *spatial)``, with its affine if it is
                a ``MetaTensor``; a nibabel image; an array with its spacing, ``(array, spacing_mm)``; or a list of
                these, one per channel, which are resampled to the grid of the first.

        Returns:
            Label ids ``(1, *spatial)`` on the image's own grid, with its affine.

        Raises:
            BadInputError: If the image cannot be read, or its channels or their geometry do not match the run's.
        """
        return self.predict_image(image).labels

    def predict_image(self, image: Input, *, probabilities: bool = False) -> Prediction:
        """Predict one image as `predict` does, and also return the probability of each class if requested.

        Args:
            image: As for `predict`.
            probabilities: Whether to return them; all classes are then held in memory at the image's full size.

        Raises:
            BadInputError: As for `predict`.
        """
        case = input_case(image, channels=self.channels, num_dims=self.num_dims)
        return self._predicted(self._read(case, probabilities), probabilities)

    def stream(self, source: Inputs, *, probabilities: bool = False) -> Iterator[Prediction]:
        """Predict cases one after the other, while the next one is read.

        Args:
            source: One image of any kind, a folder, a dataset, a list of images, or a generator, which is always
                advanced by one image ahead of the one that is predicted. Files of a list are grouped by case as those
                of a folder. Items of MONAI or PyTorch datasets may be dictionaries with an ``image``, or pairs of image
                and label.
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
        statistics: bool = False,
        dicom_seg: bool = False,
        segments: PathLike | Mapping[str, Any] | None = None,
        resume: bool = False,
        processes: Processes | None = None,
        listener: PredictionListener | None = None,
    ) -> list[Path]:
        """Predict cases and write each label map in its image's geometry and format, together with ``manifest.json``.

        The manifest records the model, the files, the settings and the time of each label map, and the volume of each
        class. Cases of earlier predictions in the same folder are kept in it.

        Args:
            source: As for `stream`; usually a folder.
            target: The folder for the label maps, ``{case}{suffix}``; created if missing.
            probabilities: Also write ``{case}_probabilities.nii.gz``, one channel per class.
            statistics: Also write ``statistics.csv``: the voxels and millilitres of each class in each case.
            dicom_seg: Also write ``{case}_seg.dcm``, a DICOM SEG with a segment for each class or region that
                references the images of the series; every case must be a DICOM series.
            segments: Codes and colours of the segments, as a JSON file or its contents; see `read_segments`.
            resume: Skip the cases whose files, by the manifest, were made by the same versions, models and settings
                from images of the same content; cases of tensors are always predicted. By default all cases are
                predicted.
            processes: The processes that call this together, from ``Processes.from_environment()``
                (``candy_monai.processes``): each predicts its share, and cases of a killed process are taken over by
                others. They use the manifest as with ``resume``. None for this process alone.
            listener: Informed of the progress.

        Returns:
            The label maps of all cases that did not fail.

        Raises:
            BadInputError: If there is nothing to predict, the only case cannot be read, a DICOM SEG is requested for a
                case that is not a DICOM series, or the folder has a ``manifest.json`` of another kind; nothing was
                written in these cases.
            PredictionError: If some of several cases could not be predicted; the others are written. Earlier
                predictions of the failed cases are kept and reported to the listener.
        """
        listener = listener or PredictionListener()
        cases = list(input_cases(source, channels=self.channels, num_dims=self.num_dims))
        if not cases:
            raise BadInputError("nothing to predict: the dataset is empty")
        described = self._segments(cases, segments) if dicom_seg else None
        paths = target_paths(cases, Path(target), source, probabilities=probabilities)
        manifest = Manifest(
            Path(target),
            models=self.describe_models(),
            settings={
                "largest_component": self.largest_component,
                "memory": self.memory,
                "channels": self._channel_numbers,
                "probabilities": probabilities,
                "dicom_seg": dicom_seg,
                "postprocessing": list(self.own_postprocessing.postprocessing),
                "thresholds": list(self.thresholds),
            },
            classes=self.classes,
            statistics=statistics,
        )
        listener.on_started(len(cases), *self._largest(cases, probabilities))
        failures: dict[str, Exception] = {}
        write = partial(write_prediction, failures=failures, manifest=manifest, segments=described)
        told = _Told(listener, failures, len(cases))
        try:
            for number, share in enumerate(shares(cases, processes, Path(target))):
                made = manifest.made_already(share) if resume or share is not cases else set()
                told.keep(len(made), by_earlier_command=number == 0)
                left = [case for case in share if case.case_id not in made]
                self._write_all(left, paths, write, told, probabilities=probabilities)
                if share is not cases:
                    manifest.finish()  # before another process checks whether this share is complete
        except BaseException:  # interrupted: cases written so far belong in the manifest, too
            with suppress(Exception):
                manifest.finish()
            raise
        for case_id, error in failures.items():
            manifest.add_failure(case_id, error)
        manifest.finish()
        for file, reason in left_over(paths, failures, probabilities=probabilities, dicom_seg=dicom_seg):
            listener.on_left_over(file, reason)
        if len(cases) == 1 and failures:
            raise next(iter(failures.values()))
        written = [path for case_id, path in paths.items() if case_id not in failures]
        if failures:
            raise prediction_error(failures, written)
        return written

    def _write_all(
        self,
        cases: Sequence[InputCase],
        paths: Mapping[str, Path],
        write: Callable[..., None],
        told: _Told,
        *,
        probabilities: bool,
    ) -> None:
        """Predict all cases, writing each while the next one is predicted; record errors in the failures."""
        began = time.perf_counter()
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            before: list[tuple[InputCase, Future[None]]] = []  # at most one unwritten prediction is held
            for case, outcome in self._outcomes(cases, probabilities, told.listener):
                seconds, began = time.perf_counter() - began, time.perf_counter()
                told.end_all(before)
                if isinstance(outcome, Exception):
                    told.failures[case.case_id] = outcome
                    told.end(case)
                    continue
                if outcome.quality is not None:
                    told.listener.on_quality(case.case_id, outcome.quality)
                before.append((case, writer.submit(write, outcome, case, paths[case.case_id], seconds=seconds)))
                del outcome
                if self.memory is not None:
                    told.end_all(before)
            told.end_all(before)

    def _segments(self, cases: Sequence[InputCase], codes: PathLike | Mapping[str, Any] | None) -> tuple[Segment, ...]:
        """Return the segments of a DICOM SEG for each case, after checking that all can be written."""
        segments = read_segments(dict(self.classes), codes)
        if not segments:
            raise BadInputError("a DICOM SEG needs the names of the classes, but the model does not have them")
        for case in cases:
            if case.problem is None:  # reported when the case is processed
                check_series(next(iter(case.files), None), case.case_id)
        return segments

    def _outcomes(
        self, cases: Iterable[InputCase], probabilities: bool, listener: PredictionListener | None = None
    ) -> Iterator[tuple[InputCase, Prediction | Exception]]:
        """Yield each case with its prediction, or with the error that prevented it; read the next case meanwhile."""
        with freed_memory_kept(), ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            coming: Future[PreparedCase] | None = None
            for case, following in itertools.pairwise(itertools.chain(cases, [None])):
                assert case is not None
                future = coming or reader.submit(self._read, case, probabilities)
                coming = None
                try:
                    prepared = future.result()
                    if following is not None and self._may_read_ahead(following):
                        coming = reader.submit(self._read, following, probabilities)
                    outcome: Prediction | Exception = self._predicted(prepared, probabilities, listener)
                except Exception as error:  # one bad case must not stop the others
                    outcome = error
                yield case, outcome
                prepared = outcome = None  # type: ignore[assignment]  # freed before the next one is predicted

    def _warn_of_files(self) -> None:
        """Warn, once, of information that scan files lack for this predictor; images in memory may have it."""

    def _read(self, case: InputCase, probabilities: bool) -> PreparedCase:
        if case.files:
            self._warn_of_files()
        geometry = case.geometry() if self.memory is not None else None
        if geometry is not None:
            self._needs_disk(self.estimate(geometry), probabilities)  # may raise, before decoding
        return self.prepare(case.case_id, case.load(self.channels, num_dims=self.num_dims))

    def _predicted(
        self, case: PreparedCase, probabilities: bool, listener: PredictionListener | None = None
    ) -> Prediction:
        return self._finished(self.run(case, probabilities=probabilities, listener=listener), case)

    def _finished(self, prediction: Prediction, case: PreparedCase) -> Prediction:
        """Return the prediction of `run` after the remaining postprocessing, with the axes of the case's image."""
        labels, scores = prediction.labels, prediction.probabilities
        if self._extra_postprocessing is not None:
            data = {PREDICTION: labels, IMAGE: case.cases[0].image}
            made = label_map_by(self._extra_postprocessing, data, tuple(labels.shape[1:]))
            highest = highest_id(made, what="the label map that postprocessing made")
            holds_all = highest <= torch.iinfo(labels.dtype).max
            labels = MetaTensor(made.to(labels.dtype if holds_all else id_type(1, (highest,))), meta=labels.meta)
        if (given := labels.meta.get(GIVEN_SHAPE)) is not None:
            labels, scores = _reshaped(labels, given), None if scores is None else _reshaped(scores, given)
        return replace(prediction, labels=labels, probabilities=scores)

    @cached_property
    def _extra_postprocessing(self) -> Pipeline | None:
        own = self.own_postprocessing
        steps = [*map(dict, own.postprocessing), *([largest_components()] if self.largest_component else [])]
        return build_postprocessing(steps, trust=own.trust) if steps else None

    def _goes_to_disk(self, case: PreparedCase, *, probabilities: bool = False) -> bool:
        """Return whether a case's incomplete scores must be kept on disk; raise if even that takes too much memory."""
        return self.memory is not None and self._needs_disk(self.estimate_prepared(case), probabilities)

    def _needs_disk(self, needed: MemoryEstimate | None, probabilities: bool) -> bool:
        if needed is None or self.memory is None:
            return False
        return fits_on_disk_only(needed.with_probabilities() if probabilities else needed, self.memory)

    def _may_read_ahead(self, case: InputCase) -> bool:
        if self.memory is not None:
            return False
        geometry = case.geometry()
        return geometry is None or self.num_channels * math.prod(geometry.spatial_shape) <= READ_AHEAD_VOXELS

    def _largest(self, cases: Sequence[InputCase], probabilities: bool) -> tuple[str | None, MemoryEstimate | None]:
        """Return the case with the most voxels, by the headers, and its memory; None for unknown or small cases."""
        known = [(case.case_id, geometry) for case in cases if (geometry := case.geometry()) is not None]
        if not known:
            return None, None
        case_id, geometry = max(known, key=lambda entry: math.prod(entry[1].spatial_shape))
        if self.memory is None and math.prod(geometry.spatial_shape) < ESTIMATED_VOXELS:
            return None, None  # the estimate takes a second, which may be longer than the prediction
        needed = self.estimate(geometry)
        return case_id, needed.with_probabilities() if needed is not None and probabilities else needed


class _Told:
    """Reports the cases of a prediction to a listener, out of ``total``; ``failures`` has the errors by case."""

    def __init__(self, listener: PredictionListener, failures: dict[str, Exception], total: int) -> None:
        self.listener, self.failures = listener, failures
        self._total, self._done = total, 0

    def keep(self, count: int, *, by_earlier_command: bool) -> None:
        """Count cases that are not predicted again."""
        self._done += count
        if count and by_earlier_command:
            self.listener.on_kept(count, self._total)

    def end_all(self, cases: list[tuple[InputCase, Future[None]]]) -> None:
        """Wait until these cases are written, report them, and clear the list."""
        while cases:
            case, writing = cases.pop(0)
            writing.result()  # raises errors other than failures of the case, such as interrupts
            self.end(case)

    def end(self, case: InputCase) -> None:
        """Report a case that is written or has failed."""
        self._done += 1
        self.listener.on_case(self._done, self._total, case.case_id, self.failures.get(case.case_id))


def _reshaped(image: MetaTensor, spatial_shape: Shape) -> MetaTensor:
    meta = {key: value for key, value in image.meta.items() if key != GIVEN_SHAPE}
    return MetaTensor(image.as_tensor().reshape(len(image), *spatial_shape), meta=meta)
