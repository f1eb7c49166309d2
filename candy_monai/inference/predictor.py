"""The predictor of a trained experiment: from an image to label ids in the image's own geometry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SaliencyInferer, SliceInferer
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.attachment import Surroundings, attach
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.pipelines.building import read_saved_transforms
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.pipelines.preprocessing import Preprocessor
from candy_monai.data.planning.files import plan_of
from candy_monai.data.values import plain_tensor
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
    network_memory,
)
from candy_monai.inference.cases import CasePredictor
from candy_monai.inference.inferer_descriptions import describe_windows, inferer_from_description
from candy_monai.inference.inferers import (
    MainOutput,
    WindowInferer,
    mirrored,
    run_inferer,
)
from candy_monai.inference.outputs import (
    NoPreprocessing,
    Prediction,
    PredictionListener,
    PreparedCase,
    build_prediction,
)
from candy_monai.network import choose_precision, plain_network
from candy_monai.nn.deep_supervision import main_output
from candy_monai.nn.padding import padding_from_dict
from candy_monai.nn.slicewise import Slicewise, build_for_slices, padding_of_slices
from candy_monai.registry import find_bundle
from candy_monai.transforms.painting import LabelPainter

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Plan

CHECKPOINTS = {"best": BEST, "latest": LATEST}


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
        description: The contents of ``experiment.json``.
        plan: The plan that the data were prepared by; None without one.
        num_classes: Classes, background included, 1 for one logit; None if the trainer did not say.
        model: The network with the chosen weights.

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
        self.plan: Plan | None = None if plan is None else plan_of(plan, self._folder / DESCRIPTION)
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
        arguments = self.network_arguments()
        try:
            return find_bundle(bundle).build_network(**arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each network has its own for arguments that do not fit
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ExperimentError(
                f"{self._folder / DESCRIPTION}: bundle {bundle!r} cannot build a network of network.arguments ({first})"
            ) from error

    def build_padding_module(self) -> nn.Module | None:
        """Build the padding module that the trainer used, from ``experiment.json``."""
        try:
            return padding_from_dict(self.description.padding)
        except SettingsError as error:
            raise ExperimentError(
                f"{self._folder / DESCRIPTION}: {error}; where the padding module was the trainer's own, pass "
                "Predictor(..., padding=...) or override build_padding_module"
            ) from error

    def network_arguments(self) -> dict[str, Any]:
        """Return what the trainer's ``network_arguments`` returned, from ``experiment.json``."""
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
        """Run the network on a preprocessed case and yield tiles of its logits as they become final."""
        image, inferer = case.cases[0].image, self._window_inferer
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
        return 0 if self._window_inferer is None else self._window_inferer.slowest_axis(size)

    def _plain_painter(self, shape: Shape) -> LabelPainter:
        return LabelPainter(shape, shape, paints=self.paints, are_probabilities=True)

    plain_painter = earlier_name("plain_painter", _plain_painter)

    def describe_windows(self) -> dict[str, object] | None:
        """Return the window inferer's arguments as plain values; None where images are not predicted tile by tile."""
        return None if self._window_inferer is None else describe_windows(self._window_inferer)

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
    def _window_inferer(self) -> WindowInferer | None:
        """The inferer if it can yield tiles of the scores as they become final, else None."""
        inferer = self._inferer
        return inferer if isinstance(inferer, WindowInferer) and not inferer.with_coord else None

    def _on_device(self, image: Tensor) -> Tensor:
        image = plain_tensor(image).float()
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
        if (inferer := self._window_inferer) is None:
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
    predictor: type[object] = Predictor
    if (bundle := read_description(experiment).bundle) is not None:
        try:
            predictor = find_bundle(bundle).predictor or Predictor
        except BadInputError as error:
            raise ExperimentError(f"{Path(experiment) / DESCRIPTION}: {error}") from error
    if not issubclass(predictor, Predictor):
        raise ExperimentError(f"the predictor of bundle {bundle!r} is not a Predictor")
    return predictor(experiment, network=network, checkpoint=checkpoint, device=device, **options)
