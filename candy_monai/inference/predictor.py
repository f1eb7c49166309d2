"""From images to label maps in their own geometry, with a trained experiment, one case after the other.

While one case is in the network the next one is read and the last one written. A case that fails does not stop the
others.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SaliencyInferer, SliceInferer
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.allocation import freed_memory_kept, give_back_freed_memory
from candy_monai.attachment import Surroundings, attach
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.pipelines.building import read_saved_transforms
from candy_monai.data.pipelines.description import IMAGE, PREDICTION, OwnTransforms, largest_components
from candy_monai.data.pipelines.preprocessing import Preprocessor, as_label_map, build_postprocessing
from candy_monai.data.planning.plan import Plan
from candy_monai.data.values import without_metadata
from candy_monai.deprecation import earlier_name
from candy_monai.device import HasDevice
from candy_monai.errors import BadInputError, ExperimentError, SettingsError
from candy_monai.experiment.checkpoints import BEST, LATEST, load_weights
from candy_monai.experiment.description import DESCRIPTION, example_shape, read_description
from candy_monai.experiment.state import weight_file
from candy_monai.inference.buffers import (
    MemoryEstimate,
    NetworkMemory,
    ScoreFunction,
    Tile,
    buffer_on_disk,
    estimate_memory,
    fits_on_disk_only,
    network_memory,
)
from candy_monai.inference.inferers import (
    MainOutput,
    WindowInferer,
    describe_windows,
    inferer_from_description,
    mirrored,
    run_inferer,
)
from candy_monai.inference.inputs import GIVEN_SHAPE, Input, InputCase, Inputs, RunChannels, input_case, input_cases
from candy_monai.inference.outputs import (
    NoPreprocessing,
    Prediction,
    PredictionError,
    PredictionListener,
    PreparedCase,
    build_prediction,
    left_over,
    target_paths,
    write_prediction,
)
from candy_monai.network import choose_precision, plain_network
from candy_monai.nn.deep_supervision import main_output
from candy_monai.nn.padding import padding_from_dict
from candy_monai.nn.slicewise import Slicewise, build_for_slices, padding_of_slices
from candy_monai.registry import find_bundle
from candy_monai.transforms.painting import LabelPainter

if TYPE_CHECKING:
    from candy_monai.data.pipelines.building import Pipeline

CHECKPOINTS = {"best": BEST, "latest": LATEST}

READ_AHEAD_VOXELS = 1 << 25
"""A case of more voxels than this is read when it is its turn: two such cases at once would take too much memory."""

ESTIMATED_VOXELS = 1 << 20
"""Where no case has more voxels and no memory is given, nobody is told what they take."""


class CasePredictor(ABC):
    """Predicts cases of any kind; subclasses say how one preprocessed case is. For arguments see `Predictor`."""

    def __init__(
        self, *, largest_component: bool = False, memory: int | None = None, channels: Sequence[int] | None = None
    ) -> None:
        self.largest_component = largest_component
        self._channel_numbers = None if channels is None else tuple(channels)
        self.memory = memory
        if memory is not None:
            if not isinstance(memory, int) or isinstance(memory, bool) or memory <= 0:
                raise SettingsError(f"memory {memory!r}: expected a number of bytes above 0, or None")
            give_back_freed_memory()  # an estimate holds for what is used, not for what the process keeps

    @property
    @abstractmethod
    def num_channels(self) -> int:
        """Channels that the network expects."""

    @property
    @abstractmethod
    def channel_names(self) -> tuple[str, ...]:
        """The names of these channels; empty texts where they are unknown."""

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

    @property
    @abstractmethod
    def own_postprocessing(self) -> OwnTransforms:
        """The steps that follow the plan's postprocessing, on the label map."""

    @abstractmethod
    def prepare(self, case_id: str, image: MetaTensor) -> PreparedCase:
        """Preprocess an image ``(C, *spatial)`` with its geometry."""

    @abstractmethod
    def run(
        self, case: PreparedCase, *, probabilities: bool = False, listener: PredictionListener | None = None
    ) -> Prediction:
        """Predict a preprocessed case, and if asked every class's probability; the listener is told of the windows."""

    @abstractmethod
    def estimate(self, geometry: Geometry) -> MemoryEstimate | None:
        """Compute what a case on this grid takes; None where the network does not tell."""

    @abstractmethod
    def estimate_prepared(self, case: PreparedCase) -> MemoryEstimate | None:
        """Compute the same once the case is prepared."""

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
        return self._predicted(self._read(case, probabilities), probabilities)

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
        listener = listener or PredictionListener()
        cases = list(input_cases(source, channels=self.channels, num_dims=self.num_dims))
        if not cases:
            raise BadInputError("nothing to predict: the dataset is empty")
        paths = target_paths(cases, Path(target), source, probabilities=probabilities)
        listener.on_started(len(cases), *self._largest(cases, probabilities))
        failures: dict[str, Exception] = {}
        writing: list[Future[None]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            for done, (case, outcome) in enumerate(self._outcomes(cases, probabilities, listener), start=1):
                if isinstance(outcome, Exception):
                    failures[case.case_id] = outcome
                else:
                    wait(writing)  # one prediction at most is held that is not written
                    writing = [writer.submit(write_prediction, outcome, case, paths[case.case_id], failures)]
                    del outcome
                    if self.memory is not None:
                        wait(writing)
                listener.on_case(done, len(cases), case.case_id, failures.get(case.case_id))
        for file, reason in left_over(paths, failures, probabilities=probabilities):
            listener.on_left_over(file, reason)
        if len(cases) == 1 and failures:
            raise next(iter(failures.values()))
        written = [path for case_id, path in paths.items() if case_id not in failures]
        if failures:
            raise PredictionError(failures, written)
        return written

    def _outcomes(
        self, cases: Iterable[InputCase], probabilities: bool, listener: PredictionListener | None = None
    ) -> Iterator[tuple[InputCase, Prediction | Exception]]:
        """Yield each case's prediction or why there is none, and read the next case meanwhile."""
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
                except Exception as error:  # one bad case must not cost the others
                    outcome = error
                yield case, outcome
                prepared = outcome = None  # type: ignore[assignment]  # not to be held while the next one is predicted

    def _read(self, case: InputCase, probabilities: bool) -> PreparedCase:
        geometry = case.geometry() if self.memory is not None else None
        if geometry is not None:
            self._exceeds_memory(self.estimate(geometry), probabilities)  # raises before anything is decoded
        return self.prepare(case.case_id, case.load(self.channels, num_dims=self.num_dims))

    def _predicted(
        self, case: PreparedCase, probabilities: bool, listener: PredictionListener | None = None
    ) -> Prediction:
        """Return the prediction of a case after all postprocessing, with the axes that its image was given with."""
        prediction = self.run(case, probabilities=probabilities, listener=listener)
        labels, scores = prediction.labels, prediction.probabilities
        if self._cleaning is not None:
            made = self._cleaning({PREDICTION: labels, IMAGE: case.cases[0].image})[PREDICTION]
            labels = MetaTensor(as_label_map(made, tuple(labels.shape[1:])).to(labels.dtype), meta=labels.meta)
        if (given := labels.meta.get(GIVEN_SHAPE)) is not None:
            labels, scores = _reshaped(labels, given), None if scores is None else _reshaped(scores, given)
        return Prediction(case_id=prediction.case_id, labels=labels, probabilities=scores)

    @cached_property
    def _cleaning(self) -> Pipeline | None:
        own = self.own_postprocessing
        steps = [*map(dict, own.postprocessing), *([largest_components()] if self.largest_component else [])]
        return build_postprocessing(steps, trust=own.trust) if steps else None

    def _goes_to_disk(self, case: PreparedCase, *, probabilities: bool = False) -> bool:
        """Return whether a case's unfinished scores must be kept on disk; raise if even that takes too much memory."""
        return self.memory is not None and self._exceeds_memory(self.estimate_prepared(case), probabilities)

    goes_to_disk = earlier_name("goes_to_disk", _goes_to_disk)

    def _exceeds_memory(self, needed: MemoryEstimate | None, probabilities: bool) -> bool:
        if needed is None or self.memory is None:
            return False
        return fits_on_disk_only(needed.with_probabilities() if probabilities else needed, self.memory)

    def _may_read_ahead(self, case: InputCase) -> bool:
        if self.memory is not None:
            return False
        geometry = case.geometry()
        return geometry is None or self.num_channels * math.prod(geometry.spatial_shape) <= READ_AHEAD_VOXELS

    def _largest(self, cases: Sequence[InputCase], probabilities: bool) -> tuple[str | None, MemoryEstimate | None]:
        """Return the case of the most voxels, by the files' headers, and what it takes; nothing for small ones."""
        known = [(case.case_id, geometry) for case in cases if (geometry := case.geometry()) is not None]
        if not known:
            return None, None
        case_id, geometry = max(known, key=lambda entry: math.prod(entry[1].spatial_shape))
        if self.memory is None and math.prod(geometry.spatial_shape) < ESTIMATED_VOXELS:
            return None, None  # to work it out takes a second, which such a folder may be done in
        needed = self.estimate(geometry)
        return case_id, needed.with_probabilities() if needed is not None and probabilities else needed


def _reshaped(image: MetaTensor, spatial_shape: Shape) -> MetaTensor:
    meta = {key: value for key, value in image.meta.items() if key != GIVEN_SHAPE}
    return MetaTensor(image.as_tensor().reshape(len(image), *spatial_shape), meta=meta)


class Predictor(CasePredictor, HasDevice):
    """Predicts with a trained experiment, by the same preprocessing and inference as its validation.

    Everything comes from the folder. Only the network of a trainer of your own must be given, as ``network`` or by
    overriding ``build_network``: its class is never imported by a name that stands in a file.

    Args:
        experiment: The experiment folder.
        network: The network to load the weights into, for trainers that belong to no bundle.
        padding: The padding module, for trainers that padded with one of their own.
        inferer: How whole images are run through the network, any of MONAI's; None for the one that validation used.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the folder.
        device: Where to predict.
        mirror: Average over the mirror images along the plan's ``mirror_axes``, or along the axes given.
        largest_component: Keep only the largest connected part of each class.
        memory: Bytes that a case may take above what the process holds before; None for as many as it needs. What does
            not fit is kept in temporary files, and a case for which that is not enough is refused.
        channels: Which channels of the files or images are the run's, in its order: ``(1, 2)`` takes files that end in
            ``_0001`` and ``_0002``. None for 0, 1, 2 and so on; anything else that is found is refused. Empty where
            numbers at the ends of names belong to the names of the cases.
        trust: Build any callable that the experiment's pipelines name, instead of known transforms only.

    Attributes:
        description: What ``experiment.json`` says.
        plan: The plan that the data were prepared by; None without one.
        num_classes: Classes, background included, 1 for one logit; None if the trainer did not say.
        model: The network with the experiment's weights.

    Raises:
        ExperimentError: If the folder is no experiment, or weights and network do not fit.
        SettingsError: If ``mirror`` names no axes of the image, or there is no plan to name them; or if ``memory`` is
            no number of bytes, or ``channels`` are not as many as the run's.
    """

    def __init__(
        self,
        experiment: PathLike,
        *,
        network: nn.Module | None = None,
        padding: nn.Module | None = None,
        inferer: Inferer | None = None,
        checkpoint: str = "best",
        device: Device = "cpu",
        mirror: bool | Sequence[int] = False,
        largest_component: bool = False,
        memory: int | None = None,
        channels: Sequence[int] | None = None,
        trust: bool = False,
    ) -> None:
        CasePredictor.__init__(self, largest_component=largest_component, memory=memory, channels=channels)
        HasDevice.__init__(self, device)
        self._folder = Path(experiment)
        self.description = read_description(self._folder)
        plan, self.num_classes = self.description.plan, self.description.num_classes
        self.plan = None if plan is None else Plan.from_dict(plan)
        _ = self.channels  # a wrong choice is better said before the weights are read
        self._inferer = self._find_inferer() if inferer is None else inferer
        own = read_saved_transforms(self.description.pipelines, self._folder / DESCRIPTION, trust=trust)
        paints = [region["paints"] for region in self.description.regions or ()]
        self.preprocessor = NoPreprocessing(paints) if self.plan is None else Preprocessor(self.plan, own=own)
        self._trust = trust
        self._mirror_axes = self._chosen_axes(mirror)
        self._padding = padding
        self._known_memory: dict[Shape, NetworkMemory | None] = {}
        self.model = self._load(network, weight_file(self._folder, CHECKPOINTS.get(checkpoint, checkpoint)))

    def build_network(self, example_shape: Shape) -> nn.Module:
        """Build the network that the weights belong to; by default the bundle does.

        Args:
            example_shape: ``(C, *spatial)`` of the example that the trainer built its network for.
        """
        bundle = self.description.bundle
        if bundle is None:
            raise ExperimentError(
                f"{self._folder}: trained by {self.description.trainer}, which belongs to no bundle: pass "
                "Predictor(..., network=...) or override build_network"
            )
        return find_bundle(bundle).build_network(**self.network_arguments())

    def build_padding_module(self) -> nn.Module | None:
        """Build what the trainer padded with, from ``experiment.json``."""
        try:
            return padding_from_dict(self.description.padding)
        except SettingsError as error:
            raise ExperimentError(
                f"{self._folder}: trained with a padding module of its own: pass Predictor(..., padding=...) "
                "or override build_padding_module"
            ) from error

    def network_arguments(self) -> dict[str, Any]:
        """Return what the trainer's ``network_arguments`` said, from ``experiment.json``."""
        arguments = self.description.network.arguments
        if arguments is None:
            raise ExperimentError(f"{self._folder}: experiment.json holds no arguments to build the network from")
        return arguments

    @override
    def prepare(self, case_id: str, image: MetaTensor) -> PreparedCase:
        meta = {"affine": image.affine, **image.meta}
        cases = (self.preprocessor.apply(image),)
        return PreparedCase(case_id=case_id, image=meta, shape=tuple(image.shape[1:]), cases=cases)

    @override
    def run(
        self, case: PreparedCase, *, probabilities: bool = False, listener: PredictionListener | None = None
    ) -> Prediction:
        on_disk = self._goes_to_disk(case, probabilities=probabilities)
        return self._run_within(case, on_disk=on_disk, probabilities=probabilities, listener=listener)

    def _run_within(
        self,
        case: PreparedCase,
        *,
        on_disk: bool,
        probabilities: bool = False,
        listener: PredictionListener | None = None,
    ) -> Prediction:
        """Predict a preprocessed case, with unfinished logits in temporary files or in memory."""
        return build_prediction(
            case,
            self._tiles(case, on_disk=on_disk, listener=listener),
            self.preprocessor,
            axis=self.slowest_axis(case.cases[0].image.shape[1:]),
            with_probabilities=probabilities,
            device=self.device(),
        )

    run_within = earlier_name("run_within", _run_within)

    def _tiles(
        self, case: PreparedCase, *, on_disk: bool = False, listener: PredictionListener | None = None
    ) -> Iterator[Tile]:
        """Run the network on a preprocessed case and yield parts of its logits as they become final."""
        image, inferer = case.cases[0].image, self._windows
        if inferer is None:
            yield Tile.whole(self.logits(image).float())
            return
        if on_disk:
            inferer = inferer.with_buffer(buffer_on_disk)
        total, done = inferer.num_windows(image.shape[1:]), 0

        def counted(windows: Tensor) -> Tensor:
            nonlocal done
            scores = self._network(windows)
            done += len(windows)
            if listener is not None:
                listener.on_windows(case.case_id, done, total)
            return scores

        yield from inferer.tiles(self._on_device(image), counted, in_layers=case.cases[0].is_resampled)

    bricks = earlier_name("bricks", _tiles)

    def logits(self, image: Tensor) -> Tensor:
        """Run the network on one preprocessed image ``(C, *spatial)`` and return its logits ``(classes, *spatial)``."""
        images, inferer = self._on_device(image)[None], self._inferer
        with torch.inference_mode(), self._attachment.interruptible():
            if inferer is None:
                return self._network(images)[0]
            if isinstance(inferer, SaliencyInferer):  # it looks into a network's layers, and each mirror image's
                network = MainOutput(self.model)
                return mirrored(lambda given: run_inferer(inferer, given, network), self._mirror_axes)(images)[0]
            return run_inferer(inferer, images, self._network)[0]

    @override
    def estimate(self, geometry: Geometry) -> MemoryEstimate | None:
        if len(geometry.spatial_shape) != self.num_dims:
            return None
        shape = self.preprocessor.shape_on_grid(geometry)
        is_resampled = sorted(geometry.spatial_shape) != sorted(shape)
        return self._estimate_shapes(geometry.spatial_shape, shape, is_resampled=is_resampled)

    @override
    def estimate_prepared(self, case: PreparedCase) -> MemoryEstimate | None:
        first = case.cases[0]
        return self._estimate_shapes(case.shape, tuple(first.image.shape[1:]), is_resampled=first.is_resampled)

    def slowest_axis(self, size: Sequence[int]) -> int:
        """Return the axis of a preprocessed image along which its logits become final."""
        return 0 if self._windows is None else self._windows.slowest_axis(size)

    def _plain_painter(self, shape: Shape) -> LabelPainter:
        return LabelPainter(shape, shape, paints=self.paints, are_probabilities=True)

    plain_painter = earlier_name("plain_painter", _plain_painter)

    def describe_windows(self) -> dict[str, object] | None:
        """Return how images are cut into windows, in plain values; None where they are not, or do not come in parts."""
        return None if self._windows is None else describe_windows(self._windows)

    @property
    @override
    def own_postprocessing(self) -> OwnTransforms:
        return OwnTransforms(postprocessing=self.preprocessor.own_postprocessing or (), trust=self._trust)

    @property
    def paints(self) -> tuple[int, ...]:
        """The id that each channel paints where classes are overlapping regions; empty where they are not."""
        return self.preprocessor.paints

    @property
    def folder(self) -> Path:
        """The experiment folder."""
        return self._folder

    @property
    @override
    def num_channels(self) -> int:
        return self._example_shape[0]

    @property
    @override
    def channel_names(self) -> tuple[str, ...]:
        dataset = self.description.dataset
        names = None if dataset is None else dataset.channel_names
        if self.plan is not None:
            names = self.plan.channel_names
        return tuple(names) if names and len(names) == self.num_channels else ("",) * self.num_channels

    @property
    @override
    def num_dims(self) -> int | None:
        return 3 if isinstance(self._inferer, SliceInferer) else len(self._example_shape) - 1

    @cached_property
    def _network(self) -> ScoreFunction:
        def network(windows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            with torch.inference_mode(), self._attachment.interruptible():
                return main_output(self.model(windows, *args, **kwargs), num_dims=windows.ndim - 2)

        return mirrored(network, self._mirror_axes)

    @property
    def _windows(self) -> WindowInferer | None:
        """The inferer, where it hands on parts of an image's scores as they become final."""
        inferer = self._inferer
        return inferer if isinstance(inferer, WindowInferer) and not inferer.with_coord else None

    def _on_device(self, image: Tensor) -> Tensor:
        image = without_metadata(image).float()
        if self.device().type == "cuda":
            image = image.pin_memory()
        return image.to(self.device(), non_blocking=True)

    def _chosen_axes(self, mirror: bool | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(mirror, bool):
            axes, num_dims = tuple(mirror), self.num_dims
            if len(set(axes)) < len(axes) or not all(0 <= axis < (num_dims or 3) for axis in axes):
                raise SettingsError(f"mirror {axes}: expected different axes of 0 to {(num_dims or 3) - 1}")
            return axes
        if mirror and self.plan is None:
            raise SettingsError(f"{self._folder}: trained without a plan that names the axes: give mirror=(0, 1, ...)")
        return self.plan.mirror_axes if mirror and self.plan is not None else ()

    def _estimate_shapes(self, file_shape: Shape, shape: Shape, *, is_resampled: bool) -> MemoryEstimate | None:
        if (inferer := self._windows) is None:
            return None
        input_shape, known = inferer.input_shape(shape, self.device()), self._known_memory
        if input_shape not in known:
            batch_size, *size = input_shape
            known[input_shape] = network_memory(plain_network(self.model), (batch_size, self.num_channels, *size))
        if (once := known[input_shape]) is None:
            return None
        needed = estimate_memory(
            file_shape=file_shape,
            shape=shape,
            num_channels=self.num_channels,
            network=once,
            grid=None if inferer.num_windows(shape) == 1 else inferer.grid(shape),
            is_resampled=is_resampled,
            is_mirrored=bool(self._mirror_axes),
            in_parts=self.preprocessor.paints_in_parts,
        )
        on_host = self.device().type == "cpu"
        return needed if on_host else dataclasses.replace(needed, network=0, output=0, buffer=0)

    def _load(self, network: nn.Module | None, weights_file: Path) -> nn.Module:
        axis = self.description.network.slice_axis
        if network is None:
            network = build_for_slices(self.build_network, self._example_shape, axis)
        elif axis is not None and not isinstance(plain_network(network), Slicewise):
            network = Slicewise(network, axis)
        weights = load_weights(weights_file)
        try:
            plain_network(network).load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
            name = type(network).__name__
            raise ExperimentError(f"{weights_file}: does not fit the network {name}: {first[:200]}") from error
        padding = self._padding if self._padding is not None else self.build_padding_module()
        padding = padding_of_slices(padding, axis)
        amp = choose_precision(self.description.setting("amp"), self.device())
        if amp == "fp16" and self.device().type == "cpu":
            amp = None  # CPUs are slow in half precision
        surroundings = Surroundings(padding=padding, amp=amp, num_dims=len(self._example_shape) - 1)
        self._attachment = attach(network, surroundings)
        return network.to(self.device()).eval()

    def _find_inferer(self) -> Inferer | None:
        try:
            return inferer_from_description(self.description.inferer, self.plan)
        except SettingsError as error:
            raise ExperimentError(
                f"{self._folder}: validated with an inferer of its own: pass it as Predictor(..., inferer=...)"
            ) from error

    @property
    def _example_shape(self) -> Shape:
        return example_shape(self._folder, self.description)


def load_predictor(
    experiment: PathLike,
    *,
    network: nn.Module | None = None,
    checkpoint: str = "best",
    device: Device = "cpu",
    **options: Any,
) -> Predictor:
    """Return the predictor of an experiment: its bundle's where it belongs to one, else a plain `Predictor`.

    Args:
        experiment: The experiment folder.
        network: The network to load the weights into, for trainers that belong to no bundle.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the folder.
        device: Where to predict.
        options: Further keywords of `Predictor`, such as ``mirror`` and ``memory``.

    Raises:
        ExperimentError: If the folder is no experiment, or its network cannot be built again.
    """
    bundle = read_description(experiment).bundle
    predictor = find_bundle(bundle).predictor if bundle is not None else Predictor
    if not issubclass(predictor, Predictor):
        raise ExperimentError(f"the predictor of bundle {bundle!r} is not a Predictor")
    return predictor(experiment, network=network, checkpoint=checkpoint, device=device, **options)
