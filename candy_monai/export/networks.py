"""The network of an experiment with real images for comparison, from which all formats but a bundle are written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.transforms import ResizeWithPadOrCrop
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.attachment import attachment_of, detach
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.planning.topology import rounded_up
from candy_monai.data.values import plain_tensor
from candy_monai.errors import BadInputError, ExperimentError, reason_in_short
from candy_monai.experiment.description import example_shape
from candy_monai.export.definitions import define, exported_as, noted_arguments
from candy_monai.inference.inputs import InputCase, input_cases
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.predictor import Predictor
from candy_monai.network import plain_network
from candy_monai.nn.deep_supervision import main_output
from candy_monai.nn.slicewise import Slicewise, sides_of_slices
from candy_monai.recipes.predict import load_experiments

if TYPE_CHECKING:
    from candy_monai.inference.inputs import Inputs

NUM_CASES = 2


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A part of a real case, as input of the network."""

    case_id: str
    image: Tensor  # ``(B, C, *size)`` after preprocessing


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedNetwork:
    """A network to export, in evaluation mode and float32, without padding and coarser outputs of deep supervision.

    If it was trained on the slices of volumes, its axes are those of slices.
    """

    predictor: NetworkPredictor  # on the CPU
    network: nn.Module  # ``(B, C, *size)`` to logits ``(B, K, *size)``
    definition: dict[str, Any] | None  # in MONAI's configuration language; None if it cannot be written in it
    weights: Path | None  # the file of its weights; None for an external model
    slice_axis: int | None  # of a preprocessed volume, across the slices that it sees
    divisor: Shape  # the number that each axis of an image must be a multiple of
    padding: nn.Module | None = None  # pads images to these multiples in prediction; None if nothing does
    window: Shape  # the size that it was trained on, including padding
    roi_size: Shape | None = None  # of the windows of prediction, before padding; an axis <= 0 is as long as the image
    is_fixed: bool = False  # whether it takes images of this size only
    cases: Sequence[InputCase]

    @property
    def free_axes(self) -> tuple[bool, ...]:
        """For each spatial axis, whether images of another size along it can be tried."""
        return tuple(extent > 1 and not self.is_fixed for extent in self.window)

    @property
    def inference_window(self) -> Shape | None:
        """The windows in which images can be predicted without padding: `roi_size`, rounded up to multiples."""
        if self.roi_size is None:
            return None
        return rounded_up(self.roi_size, self.divisor)  # an axis that is not positive stays so

    @property
    def sizes(self) -> tuple[Shape, Shape]:
        """Two sizes of images for comparison: about the window, and another one along each axis that is free.

        Unless the size is fixed, both are at least twice the divisor: a single voxel at the lowest level has no
        standard deviation, by which instance normalisation divides, and an exporter treats a size of 1 as constant.
        """
        if self.is_fixed:
            return self.window, self.window
        first, second = [], []
        for extent, by in zip(self.window, self.divisor, strict=True):
            size = extent if extent == 1 else max(-(-extent // by), 2) * by
            step = 0 if extent == 1 else by if by > 1 else max(size // 4, 1)
            first.append(size)
            second.append(size - step if size - step >= 2 * by else size + step)
        return tuple(first), tuple(second)

    def sizes_within(self, is_dynamic: Sequence[bool]) -> tuple[Shape, Shape]:
        """Return the two sizes, equal along the spatial axes with a fixed size."""
        first, second = self.sizes
        pairs = zip(first, second, is_dynamic, strict=True)
        return first, tuple(other if may_change else extent for extent, other, may_change in pairs)

    def logits(self, images: Tensor) -> Tensor:
        """Return the network's logits for ``(B, C, *size)``."""
        with torch.no_grad():
            scores: Tensor = self.network(images)
        return scores

    @property
    def plain_network(self) -> nn.Module:
        """The network with all of its outputs."""
        return self.network.network if isinstance(self.network, MainLogits) else self.network

    def samples(self, sizes: Sequence[Shape]) -> Iterator[Sample]:
        """Yield the centre of every case in these sizes, the second and later ones as a batch of two images."""
        for case in self.cases:
            image = self._preprocessed(case)
            for number, size in enumerate(sizes):
                parts = image if number else image[:1]
                cut = torch.stack([plain_tensor(ResizeWithPadOrCrop(size)(part)) for part in parts])
                yield Sample(case_id=case.case_id, image=cut)

    def _preprocessed(self, case: InputCase) -> Tensor:
        """Return two images of a case ``(2, C, *spatial)``: neighbouring slices, or the case and its mirror image."""
        predictor = self.predictor
        read = case.load(predictor.channels, num_dims=predictor.num_dims)
        image = plain_tensor(predictor.prepare(case.case_id, read).cases[0].image).float()
        if self.slice_axis is None:
            return torch.stack([image, image.flip(1)])
        slices = image.movedim(1 + self.slice_axis, 0)
        middle = len(slices) // 2
        return slices[[middle, max(middle - 1, 0)]]


class MainLogits(nn.Module):
    """A network that returns only its logits at full resolution, in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @override
    def forward(self, image: Tensor) -> Tensor:
        return main_output(self.network(image), num_dims=image.ndim - 2).float()


def load_network(
    experiment: Path,
    *,
    checkpoint: str = "best",
    images: Inputs | None = None,
    trainer: str | None = None,
    trust: bool = False,
) -> ExportedNetwork:
    """Return the network of an experiment; for arguments see `export_experiments`."""
    chosen: dict[str, Any] = {"checkpoint": checkpoint, "trainer": trainer, "trust": trust, "on_progress": _silent}
    predictor = load_experiments([experiment], **chosen)
    with noted_arguments() as noted:
        other = load_experiments([experiment], **chosen)  # its network is detached below
    if not isinstance(predictor, NetworkPredictor) or not isinstance(other, NetworkPredictor):
        raise BadInputError(f"{experiment}: predicts with several networks, but this target holds only one")
    attachment = attachment_of(other.model)
    padding = None if attachment is None else attachment.surroundings.padding
    window = _window(predictor)
    divisor: Shape = getattr(padding, "min_factor", (1,) * len(window))
    if predictor.plan is not None:  # whose network may be a trainer's own, which pads to other sizes
        divisor = tuple(map(math.lcm, divisor, predictor.plan.divisor))
    window = rounded_up(window, divisor)
    detach(other.model)
    network = plain_network(other.model)
    axis: int | None = None
    if isinstance(network, Slicewise):
        axis, network = network.axis, network.network
    found = ExportedNetwork(
        predictor=predictor,
        network=network,
        definition=_definition(network, noted.get(network)),
        weights=predictor.weights_file if isinstance(predictor, Predictor) else None,
        slice_axis=axis,
        divisor=sides_of_slices(divisor, axis),
        padding=padding,
        roi_size=_roi_size(predictor, axis),
        window=sides_of_slices(window, axis),
        cases=list(itertools.islice(_real_cases(predictor, images), NUM_CASES)),
    )
    found.network.float().eval()
    found = _with_known_sizes(found)
    return replace(found, network=_with_one_output(found))


def _definition(network: nn.Module, arguments: dict[str, Any] | None) -> dict[str, Any] | None:
    try:
        return None if arguments is None else define(exported_as(type(network)), arguments)
    except TypeError:
        return None


def _window(predictor: NetworkPredictor) -> Shape:
    """Return the image size that the network was trained on."""
    if predictor.plan is not None:
        return predictor.plan.patch_shape
    if isinstance(predictor, Predictor):
        return example_shape(predictor.folder, predictor.description)[1:]
    size = (predictor.describe_windows() or {}).get("roi_size")
    if not isinstance(size, list | tuple):
        raise BadInputError(f"{predictor.folder}: does not say the size of the images that its network was trained on")
    return tuple(size)


def _roi_size(predictor: NetworkPredictor, axis: int | None) -> Shape | None:
    described = predictor.describe_windows()
    if described is None:
        return None
    return sides_of_slices(ensure_tuple_rep(described["roi_size"], predictor.num_dims or 0), axis)


def _real_cases(predictor: NetworkPredictor, images: Inputs | None) -> Iterator[InputCase]:
    if images is not None:
        return input_cases(images, channels=predictor.channels, num_dims=predictor.num_dims)
    dataset = predictor.description.dataset if isinstance(predictor, Predictor) else None
    folder = None if dataset is None else dataset.folder
    if dataset is None or folder is None or not Path(folder).is_dir():
        where = "its description names no dataset" if folder is None else f"its dataset is no longer at {folder}"
        raise ExperimentError(
            f"{predictor.folder}: the exported network is compared on real cases, but {where}: give an image or a "
            "folder of images with --images (images=...)"
        )
    ids = dataset.validation or dataset.training or ()
    there = NNUNetDataset(folder)
    known = [case_id for case_id in ids if case_id in there.case_ids]
    if not known:
        raise ExperimentError(
            f"{folder}: has none of the cases that {predictor.folder} was validated on; name others with --images"
        )
    return input_cases(there.subset(known[:: max(len(known) // NUM_CASES, 1)]), channels=predictor.channels)


def _with_known_sizes(found: ExportedNetwork) -> ExportedNetwork:
    """Return the network with ``is_fixed`` set if it runs at the size of its window, but not at those for comparison.

    Raises:
        BadInputError: If it does not run at any of them.
    """
    try:
        for size in found.sizes:
            _run_on(found, size)
    except Exception as error:  # from any user's network
        try:
            _run_on(found, found.window)
        except Exception:
            shape = (1, found.predictor.num_channels, *found.sizes[0])
            raise BadInputError(
                f"{found.predictor.folder}: the network {type(found.network).__name__} cannot be run on an image of "
                f"shape {shape} by itself ({reason_in_short(error)})"
            ) from error
        return replace(found, is_fixed=True)
    return found


def _run_on(found: ExportedNetwork, size: Shape) -> Any:
    with torch.no_grad():
        return found.network(torch.zeros(1, found.predictor.num_channels, *size))


def _with_one_output(found: ExportedNetwork) -> nn.Module:
    """Return the network, or one that returns only its main output if it has several."""
    output = _run_on(found, found.sizes[0])
    is_one = isinstance(output, Tensor) and output.ndim == 2 + len(found.window) and output.dtype == torch.float32
    return found.network if is_one else MainLogits(found.network).eval()


def _silent(_: str) -> None:
    """Print nothing."""
