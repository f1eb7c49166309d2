"""How a whole image is run through a network: at once, in blended windows, or whichever fits. Loads nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.values import without_metadata
from candy_monai.errors import SettingsError
from candy_monai.inference.blending import Brick, Network, RoomFactory, blended_bricks, room_in_memory
from candy_monai.inference.cells import CellLayout
from candy_monai.inference.windows import WindowGrid, check_window
from candy_monai.nn.deep_supervision import main_output
from candy_monai.transforms.painting import label_ids

if TYPE_CHECKING:
    from candy_monai.data.planning import Plan
    from candy_monai.nn.deep_supervision import NetworkOutput

WHOLE_IMAGE_LIMIT = 2.0
"""An image of up to so many patches' voxels is run at once: cheaper than windows, and nearly what was trained on."""

_BATCH_ON_GPU = 4


class WindowInferer(Inferer):
    """Runs images in overlapping windows that are blended with MONAI's Gaussian weights, in little memory.

    An `Inferer` like MONAI's ``SlidingWindowInferer``, with the same windows and the same results. It holds the scores
    of about one window's thickness across the image: whatever no further window covers is handed on. Label maps are
    made from these parts without ever holding all scores.

    Args:
        window_shape: The window, one number a spatial axis. Images smaller than it are padded with zeros.
        overlap: Share of a window that its neighbour covers too, 0 to below 1.
        batch_size: Windows in one call of the network; None for 4 on a GPU and 1 on a CPU, which gains nothing by more.
        new_room: Makes room for unfinished scores; by default in the memory of the image's device.

    Raises:
        SettingsError: If an argument is out of range.

    Example:
        >>> inferer = WindowInferer((96, 96, 96), overlap=0.5)
        >>> logits = inferer(images, network)  # doctest: +SKIP
        >>> labels = inferer.labels(images, network)  # doctest: +SKIP
    """

    def __init__(
        self,
        window_shape: Sequence[int],
        *,
        overlap: float = 0.5,
        batch_size: int | None = None,
        new_room: RoomFactory | None = None,
    ) -> None:
        self.window_shape = tuple(window_shape)
        self.overlap = overlap
        self.batch_size = batch_size
        self.new_room = new_room or room_in_memory
        check_window(self.window_shape, overlap=overlap, batch_size=1 if batch_size is None else batch_size)

    @override
    def __call__(
        self, inputs: Tensor, network: Callable[..., NetworkOutput], *args: object, **kwargs: object
    ) -> Tensor:
        """Return the blended scores of a batch.

        Args:
            inputs: ``(B, C, *spatial)``.
            network: Windows to scores of the windows' size; the first of several outputs counts.
            args: Passed on to the network.
            kwargs: Passed on to the network.

        Returns:
            ``(B, K, *spatial)`` float32 with the metadata of ``inputs``.
        """
        return self._assembled(inputs, lambda windows: network(windows, *args, **kwargs), Brick.scores)

    def labels(self, inputs: Tensor, network: Callable[..., NetworkOutput]) -> Tensor:
        """Return label ids, made part by part: the scores of all classes are never held for the whole image.

        Args:
            inputs: ``(B, C, *spatial)``.
            network: Windows to logits of the windows' size.

        Returns:
            ``(B, 1, *spatial)``: the best class, or for one logit whether it is positive; uint8, or int16 for more than
            256 classes; with the metadata of ``inputs``.
        """
        return self._assembled(inputs, network, lambda brick: label_ids(brick.sums)[None])

    def bricks(
        self, image: Tensor, network: Callable[[Tensor], NetworkOutput], *, in_layers: bool = False
    ) -> Iterator[Brick]:
        """Yield the parts of one image's scores as they become final, for a consumer of your own.

        What a part holds is valid until the next one is asked for: copy what you keep.

        Args:
            image: ``(C, *spatial)``.
            network: Windows to scores of the windows' size.
            in_layers: Whether they are wanted layer by layer along `slowest_axis`, instead of as few as possible being
                held at a time. Then a part is valid until its layer is complete.
        """
        return blended_bricks(
            image,
            _main(network),
            self.grid(image.shape[1:]),
            batch_size=self._batch_size(image.device),
            new_room=self.new_room,
            in_layers=in_layers,
        )

    def grid(self, size: Sequence[int]) -> WindowGrid:
        """Return the windows over an image of this spatial size."""
        return WindowGrid(size=tuple(size), window=self.window_shape, overlap=self.overlap)

    def num_windows(self, size: Sequence[int]) -> int:
        """Return how many windows an image of this spatial size is run in."""
        return len(self.grid(size))

    def slowest_axis(self, size: Sequence[int]) -> int:
        """Return the spatial axis along which the layers of `bricks` follow each other."""
        return CellLayout(self.grid(size)).axes[0]

    def input_shape(self, size: Sequence[int], device: torch.device) -> Shape:
        """Return what the network is given at a time, without channels: ``(B, *spatial)``."""
        return (min(self._batch_size(device), self.num_windows(size)), *self.window_shape)

    def with_room(self, new_room: RoomFactory) -> Self:
        """Return the same inferer with room for unfinished scores somewhere else."""
        other = copy.copy(self)
        other.new_room = new_room
        return other

    def _batch_size(self, device: torch.device) -> int:
        return self.batch_size or (1 if device.type == "cpu" else _BATCH_ON_GPU)

    def _assembled(
        self, inputs: Tensor, network: Callable[[Tensor], NetworkOutput], part: Callable[[Brick], Tensor]
    ) -> Tensor:
        """Put together what is made of each brick, ``(channels, *box)``, for a whole batch."""
        result: Tensor | None = None
        for number, image in enumerate(without_metadata(inputs)):
            for brick in self.bricks(image, network):
                values = part(brick)
                if result is None:
                    result = values.new_empty((len(inputs), len(values), *inputs.shape[2:]))
                place: tuple[int | slice, ...] = (number, slice(None), *brick.place)
                result[place] = values
        if result is None:
            raise ValueError(f"there is no image in a batch of shape {tuple(inputs.shape)}")
        return _with_metadata_of(inputs, result) if isinstance(inputs, MetaTensor) else result


class WholeOrWindowsInferer(WindowInferer):
    """Runs small images at once and large ones in blended windows.

    An image that is run at once is padded with zeros to a multiple of ``divisor``, as training patches are.

    Args:
        window_shape: The window, one number a spatial axis.
        divisor: What each axis must be a multiple of.
        overlap: Share of a window that its neighbour covers too, 0 to below 1.
        batch_size: Windows in one call of the network; see `WindowInferer`.
        new_room: Makes room for unfinished scores.
    """

    def __init__(
        self,
        window_shape: Sequence[int],
        *,
        divisor: Sequence[int],
        overlap: float = 0.5,
        batch_size: int | None = None,
        new_room: RoomFactory | None = None,
    ) -> None:
        super().__init__(window_shape, overlap=overlap, batch_size=batch_size, new_room=new_room)
        self.divisor = tuple(divisor)

    @override
    def bricks(
        self, image: Tensor, network: Callable[[Tensor], NetworkOutput], *, in_layers: bool = False
    ) -> Iterator[Brick]:
        if not self.runs_whole(image.shape[1:]):
            yield from super().bricks(image, network, in_layers=in_layers)
            return
        size = image.shape[1:]
        sides = zip(size, self._padded(size), strict=True)
        at_the_end = [width for extent, padded in reversed(list(sides)) for width in (0, padded - extent)]
        with torch.no_grad():
            scores = _main(network)(F.pad(image[None], at_the_end))[0].float()
        for axis, extent in enumerate(size, start=1):
            scores = scores.narrow(axis, 0, extent)
        yield Brick(place=tuple(slice(0, extent) for extent in size), sums=scores)

    def runs_whole(self, size: Sequence[int]) -> bool:
        """Tell whether an image of this spatial size is run at once."""
        padded = self._padded(size)
        # Of an image of one divisor a single voxel is left at the bottom, which no instance norm can do with.
        return padded != self.divisor and math.prod(padded) <= WHOLE_IMAGE_LIMIT * math.prod(self.window_shape)

    @override
    def num_windows(self, size: Sequence[int]) -> int:
        return 1 if self.runs_whole(size) else super().num_windows(size)

    @override
    def input_shape(self, size: Sequence[int], device: torch.device) -> Shape:
        return (1, *self._padded(size)) if self.runs_whole(size) else super().input_shape(size, device)

    def _padded(self, size: Sequence[int]) -> Shape:
        return tuple(-(-extent // by) * by for extent, by in zip(size, self.divisor, strict=True))


def build_inferer(plan: Plan) -> WholeOrWindowsInferer:
    """Return the inferer that validation and prediction of a planned run share."""
    return WholeOrWindowsInferer(plan.patch_shape, divisor=plan.divisor)


def inferer_to_dict(inferer: WindowInferer) -> dict[str, object]:
    """Describe an inferer in plain values, for ``experiment.json``."""
    return {
        "kind": "windows",
        "window_shape": list(inferer.window_shape),
        "overlap": inferer.overlap,
        "batch_size": inferer.batch_size,
    }


def inferer_from_dict(description: Mapping[str, object]) -> WindowInferer:
    """Build what `inferer_to_dict` described.

    Raises:
        SettingsError: If the description is none of ours.
    """
    shape, overlap = description.get("window_shape"), description.get("overlap")
    batch_size = description.get("batch_size")
    if not (isinstance(shape, list) and isinstance(overlap, int | float) and isinstance(batch_size, int | None)):
        raise SettingsError(f"this inferer cannot be built from its description: {dict(description)}")
    return WindowInferer([int(side) for side in shape], overlap=float(overlap), batch_size=batch_size)


def _with_metadata_of(inputs: MetaTensor, result: Tensor) -> Tensor:
    """Return a result that MONAI's transforms can decollate and invert as they can the inputs, and independently."""
    placed = MetaTensor(result)
    placed.copy_meta_from(inputs)
    placed.applied_operations = copy.deepcopy(inputs.applied_operations)  # inverting takes them from the list
    whole: Tensor = placed
    return whole


def _main(network: Callable[[Tensor], NetworkOutput]) -> Network:
    """Make a network return its logits at full resolution, whatever else it returns."""

    def scores(windows: Tensor) -> Tensor:
        output = network(windows)
        return output if isinstance(output, Tensor) else main_output(output, num_dims=windows.ndim - 2)

    return scores
