"""The base class of predictors with one network: from an image to label ids in the image's own geometry."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SaliencyInferer, SliceInferer, SlidingWindowInferer
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.attachment import Surroundings, attach
from candy_monai.data.images.alignment import HAS_NO_GRID
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.pipelines.preprocessing import PreprocessedCase, Preprocessor
from candy_monai.data.values import plain_tensor
from candy_monai.device import HasDevice
from candy_monai.errors import SettingsError
from candy_monai.inference.buffers import (
    MemoryEstimate,
    NetworkMemory,
    ScoreFunction,
    Tile,
    buffer_on_disk,
    estimate_memory,
    network_memory,
    noticing_nan,
)
from candy_monai.inference.cases import CasePredictor
from candy_monai.inference.expected_overlap import ExpectedOverlap
from candy_monai.inference.inferer_descriptions import describe_windows
from candy_monai.inference.inferers import MainOutput, WindowInferer, mirrored, run_inferer
from candy_monai.inference.prediction import Prediction, PredictionListener, PreparedCase, build_prediction
from candy_monai.inference.quality import QualityModel, judge
from candy_monai.network import choose_precision, plain_network
from candy_monai.nn.deep_supervision import main_output

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Plan


class NetworkPredictor(CasePredictor, HasDevice):
    """Predicts with one network, from any source, between a preprocessor and an inferer.

    A subclass creates them, and passes the network to `_run_with`.

    Args:
        folder: The origin of the model.
        preprocessor: Converts images to inputs of the network, and results back.
        inferer: The inference on whole images; None for all at once.
        example_shape: ``(C, *spatial)`` of an image that the network accepts.
        channel_names: The names of the channels; empty for unknown ones.
        num_classes: The number of classes with background, 1 for one logit; None if unknown.
        plan: The plan of the preprocessing; None without one.
        device: The device for prediction. This and the other options are those of `Predictor`.

    Attributes:
        model: The network.
        quality: The model that judges the quality of predictions; None for no judgement.
    """

    model: nn.Module
    quality: QualityModel | None = None

    def __init__(
        self,
        folder: PathLike,
        *,
        preprocessor: Preprocessor,
        inferer: Inferer | None,
        example_shape: Shape,
        channel_names: Sequence[str] = (),
        num_classes: int | None = None,
        plan: Plan | None = None,
        device: Device = "cpu",
        mirror: bool | Sequence[int] = False,
        largest_component: bool = False,
        memory: int | None = None,
        channels: Sequence[int] | None = None,
        trust: bool = False,
    ) -> None:
        CasePredictor.__init__(self, largest_component=largest_component, memory=memory, channels=channels)
        HasDevice.__init__(self, device)
        self._folder = Path(folder)
        self.plan, self.num_classes, self.preprocessor = plan, num_classes, preprocessor
        self._example_shape, self._channel_names = example_shape, tuple(channel_names)
        _ = self.channels  # report a wrong choice before the weights are read
        self._inferer = inferer
        self._trust = trust
        self._mirror_axes = self._chosen_axes(mirror)
        self._known_memory: dict[Shape, NetworkMemory | None] = {}

    def _run_with(self, network: nn.Module, *, padding: nn.Module | None = None, amp: str | None = None) -> None:
        """Move a network with its weights to the device in evaluation mode, and set the context of its calls.

        Args:
            network: The network.
            padding: Pads images to sizes that it accepts; None if it accepts any.
            amp: ``"bf16"``, ``"fp16"``, ``"auto"``, or None for the precision of the weights.
        """
        precision = choose_precision(amp, self.device())
        if precision == "fp16" and self.device().type == "cpu":
            precision = None  # CPUs are slow in half precision
        surroundings = Surroundings(padding=padding, amp=precision, num_dims=len(self._example_shape) - 1)
        self._attachment = attach(network, surroundings)
        self.model = network.to(self.device()).eval()

    @override
    def prepare(self, case_id: str, image: MetaTensor) -> PreparedCase:
        spacing_mm = None if self.plan is None else self.plan.spacing_mm
        if spacing_mm is not None and image.meta.get(HAS_NO_GRID):
            warnings.warn(
                f"{case_id}: the tensor has no affine, so that a spacing of 1 mm is assumed along each axis, and the "
                f"image is resampled to {' x '.join(f'{length:.4g}' for length in spacing_mm)} mm; give (array, "
                "spacing_mm), a MetaTensor with its affine, or a file",
                stacklevel=2,
            )
        meta = {"affine": image.affine, **image.meta}
        cases = (self._preprocessed(case_id, image),)
        return PreparedCase(case_id=case_id, image=meta, shape=tuple(image.shape[1:]), cases=cases)

    def _preprocessed(self, case_id: str, image: MetaTensor) -> PreprocessedCase:
        return self.preprocessor.apply(image)

    def _limit_first_stage(self, memory: int | None) -> None:
        """Set the memory for the first stage of a cascade, which runs in `prepare`; other predictors have none."""

    @override
    def run(
        self,
        case: PreparedCase,
        *,
        probabilities: bool = False,
        listener: PredictionListener | None = None,
        on_disk: bool | None = None,
    ) -> Prediction:
        """Predict a preprocessed case.

        Args:
            case: From `prepare`.
            probabilities: Whether class probabilities are returned, too.
            listener: Informed of each window.
            on_disk: Whether to keep incomplete logits in temporary files, not memory; None to decide by ``memory``.
        """
        if on_disk is None:
            on_disk = self._goes_to_disk(case, probabilities=probabilities)
        tiles, overlap = self.tiles(case, on_disk=on_disk, listener=listener), ExpectedOverlap(self.paints)
        prediction = build_prediction(
            case,
            tiles if self.quality is None else overlap.watched(tiles),
            self.preprocessor,
            axis=self.slowest_axis(case.cases[0].image.shape[1:]),
            with_probabilities=probabilities,
            device=self.device(),
        )
        if self.quality is None:
            return prediction
        quality = judge(overlap, prediction.labels, [self.quality], [case.cases[0].image])
        return dataclasses.replace(prediction, quality=quality)

    def tiles(
        self, case: PreparedCase, *, on_disk: bool = False, listener: PredictionListener | None = None
    ) -> Iterator[Tile]:
        """Run the network on a preprocessed case and yield tiles of its logits as they are completed.

        Args:
            case: From `prepare`.
            on_disk: Whether to keep incomplete logits in temporary files instead of memory.
            listener: Informed of each window.
        """
        yield from noticing_nan(self._tiles(case, on_disk=on_disk, listener=listener), case.case_id)

    def _tiles(self, case: PreparedCase, *, on_disk: bool, listener: PredictionListener | None) -> Iterator[Tile]:
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

    def logits(self, image: Tensor) -> Tensor:
        """Run the network on one preprocessed image ``(C, *spatial)`` and return its logits ``(classes, *spatial)``."""
        images, inferer = self._on_device(image)[None], self._inferer
        with torch.inference_mode(), self._attachment.interruptible():
            if inferer is None:
                return self._network(images)[0]
            if isinstance(inferer, SaliencyInferer):  # it uses a network's layers, for each mirror image
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
        """Return the spatial axis of a preprocessed image of a size along which its logits are completed."""
        return 0 if self._window_inferer is None else self._window_inferer.slowest_axis(size)

    def describe_windows(self) -> dict[str, object] | None:
        """Return the arguments of the inferer's windows as plain values; None if images are not run in windows."""
        is_of_windows = self._window_inferer is not None or type(self._inferer) is SlidingWindowInferer
        return describe_windows(self._inferer) if is_of_windows else None

    @property
    @override
    def own_postprocessing(self) -> OwnTransforms:
        return OwnTransforms(postprocessing=self.preprocessor.own_postprocessing or (), trust=self._trust)

    @property
    @override
    def classes(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        if self.plan is not None and self.plan.regions:
            return [(region.name, region.ids) for region in self.plan.regions]
        if self.paints:
            return [(str(label_id), (label_id,)) for label_id in sorted(set(self.paints))]
        names = self.plan.class_names if self.plan is not None else ()
        count = max(self.num_classes or 0, 2)
        return [(names[i] if i < len(names) else str(i), (i,)) for i in range(1, count)]

    @override
    def describe_models(self) -> list[dict[str, object]]:
        return [
            {
                "folder": str(self._folder),
                "device": str(self.device()),
                "precision": self._attachment.surroundings.amp or "fp32",
                "mirror_axes": self._mirror_axes,
                # That of another kind is described by the experiment.
                "inferer": None if self._window_inferer is None else self.describe_windows(),
                "postprocessing": self.preprocessor.pipelines["postprocessing"],
            }
        ]

    @property
    def paints(self) -> tuple[int, ...]:
        """The id of each channel if classes are overlapping regions, else empty."""
        return self.preprocessor.paints

    @property
    def folder(self) -> Path:
        """The origin of the model, such as the experiment folder."""
        return self._folder

    @property
    @override
    def num_channels(self) -> int:
        """The number of channels of an image, without that of the first stage of a cascade."""
        return self._num_inputs - (self.plan is not None and self.plan.num_previous > 0)

    @property
    def _num_inputs(self) -> int:
        """The number of channels of a preprocessed image."""
        return self._example_shape[0]

    @property
    @override
    def channel_names(self) -> tuple[str, ...]:
        names = self._channel_names
        return names if len(names) == self.num_channels else ("",) * self.num_channels

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
        """The inferer if it can yield tiles of the scores as they are completed, else None."""
        inferer = self._inferer
        return inferer if isinstance(inferer, WindowInferer) and not inferer.with_coord else None

    def _on_device(self, image: Tensor) -> Tensor:
        image = plain_tensor(image).float()
        if self.device().type == "cuda" and image.device.type == "cpu":
            image = image.pin_memory()
        return image.to(self.device(), non_blocking=True)

    def _chosen_axes(self, mirror: bool | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(mirror, bool):
            axes, num_dims = tuple(mirror), self.num_dims
            if len(set(axes)) < len(axes) or not all(0 <= axis < (num_dims or 3) for axis in axes):
                raise SettingsError(f"mirror {axes}: expected distinct axes from 0 to {(num_dims or 3) - 1}")
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
            known[input_shape] = network_memory(plain_network(self.model), (batch_size, self._num_inputs, *size))
        if (once := known[input_shape]) is None:
            return None
        needed = estimate_memory(
            file_shape=file_shape,
            shape=shape,
            num_channels=self._num_inputs,
            network=once,
            grid=None if inferer.num_windows(shape) == 1 else inferer.grid(shape),
            is_resampled=is_resampled,
            is_mirrored=bool(self._mirror_axes),
            in_parts=self.preprocessor.paints_in_parts,
        )
        on_host = self.device().type == "cpu"
        return needed if on_host else dataclasses.replace(needed, network=0, output=0, buffer=0)
