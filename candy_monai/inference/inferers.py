"""Inference on a whole image: at once, in blended windows, or with an inferer of MONAI.

In ``experiment.json`` an inferer is None for whole images, ``"plan"`` for that of a plan, a dictionary in MONAI's
configuration language, or ``"custom"`` if its arguments are not plain data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import TYPE_CHECKING, Any, Self, TypeGuard

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SaliencyInferer, SlidingWindowInferer
from monai.utils import BlendMode, PytorchPadMode, ensure_tuple, fall_back_tuple, issequenceiterable
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.planning.topology import rounded_up
from candy_monai.data.values import plain_tensor
from candy_monai.errors import SettingsError
from candy_monai.inference.buffers import BufferFactory, ScoreFunction, Tile, blended_tiles, buffer_in_memory
from candy_monai.inference.tiles import WindowGrid, check_overlap
from candy_monai.network import plain_network
from candy_monai.nn.deep_supervision import main_output
from candy_monai.transforms.painting import label_ids

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Plan
    from candy_monai.nn.deep_supervision import NetworkOutput

WHOLE_IMAGE_LIMIT = 2.0
"""Images of at most this many patches' voxels are run at once: cheaper than windows, and close to training."""

_BATCH_ON_GPU = 4
_FOR_MONAI = frozenset({"condition", "device", "buffer_steps", "buffer_dim"})
"""Keyword arguments of a call that MONAI's inferer consumes."""


class WindowInferer(SlidingWindowInferer):
    """Runs images in overlapping windows as MONAI's ``SlidingWindowInferer`` does, with little memory.

    It takes the same arguments and gives the same results, but by default uses Gaussian weights and an overlap of one
    half. It holds the scores of about one window's thickness across the image: a part that no further window covers is
    passed on. `labels` computes label maps from these parts without holding all scores.

    MONAI's ``sliding_window_inference`` is called for the other cases: networks with several outputs or outputs of
    another size, outputs that require gradients, a condition, coordinates for the network, buffers, a progress bar, and
    images of other types than float32 or with other than two or three spatial axes.

    Args:
        roi_size: The window: one number per spatial axis, or one for all. A non-positive entry is replaced by the
            image's size. Images smaller than the window are padded.
        sw_batch_size: Windows per call of the network; None for 4 on a GPU and 1 on a CPU, where more are not faster.
        overlap: Share of a window that its neighbour also covers, 0 to below 1; one number, or one for each axis.
        mode: How windows are blended, ``"gaussian"`` or ``"constant"``.
        sigma_scale: Width of the Gaussian as a share of the window; one number, or one for each axis.
        padding_mode: How images smaller than the window are padded.
        cval: The value of new voxels where ``padding_mode`` is ``"constant"``.
        sw_device: The device of the network; by default the image's device.
        device: The device of the result; by default the image's device.
        progress: Whether to show a progress bar.
        cache_roi_weight_map: Whether to pass a precomputed weight map to MONAI's function.
        cpu_thresh: Images of more voxels than this are assembled on the CPU, if ``device`` is not given.
        buffer_steps: MONAI's buffers: windows along ``buffer_dim`` that are summed up before they move to ``device``.
        buffer_dim: The spatial axis of these buffers.
        with_coord: Whether to also pass the coordinates of the windows to the network.
        new_buffer: Allocates the buffer for incomplete scores; by default in memory.

    Raises:
        SettingsError: If an argument is out of range.

    Example:
        >>> inferer = WindowInferer((96, 96, 96), overlap=0.5)
        >>> logits = inferer(images, network)  # doctest: +SKIP
        >>> labels = inferer.labels(images, network)  # doctest: +SKIP
    """

    _sums_rounded_to: torch.dtype | None = None

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int | None = None,
        overlap: Sequence[float] | float = 0.5,
        mode: BlendMode | str = BlendMode.GAUSSIAN,
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: PytorchPadMode | str = PytorchPadMode.CONSTANT,
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: int | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
        *,
        new_buffer: BufferFactory | None = None,
    ) -> None:
        check_overlap(overlap)
        if sw_batch_size is not None and sw_batch_size < 1:
            raise SettingsError(f"the number of windows run at once must be at least 1, got {sw_batch_size}")
        widths = ensure_tuple(sigma_scale)
        if not all(0 < width < math.inf for width in widths) or not math.isfinite(cval):  # logits would be NaN
            raise SettingsError(f"expected sigma_scale above 0 and a finite cval, got {sigma_scale} and {cval}")
        super().__init__(
            roi_size,
            sw_batch_size,
            overlap,
            _monai_name(BlendMode, mode, "mode"),
            sigma_scale,
            _monai_name(PytorchPadMode, padding_mode, "padding_mode"),
            cval,
            sw_device,
            device,
            progress,
            cache_roi_weight_map,
            cpu_thresh,
            buffer_steps,
            buffer_dim,
            with_coord,
        )
        self.new_buffer = new_buffer or buffer_in_memory

    @override
    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the blended scores of a batch.

        Args:
            inputs: ``(B, C, *spatial)``.
            network: Maps windows to a tensor, tuple or dictionary of tensors.
            args: Passed on to the network.
            kwargs: Passed on to the network, except those that MONAI's inferer takes: ``condition``, ``device``,
                ``buffer_steps`` and ``buffer_dim``.

        Returns:
            The output of the network for whole images; a single tensor is ``(B, K, *spatial)`` with the type and the
            metadata of ``inputs``.
        """
        if self._blends_itself(inputs, kwargs):
            gradients = torch.is_grad_enabled()

            def one_map(windows: Tensor) -> Tensor:
                with torch.set_grad_enabled(gradients):
                    output = network(windows, *args, **kwargs)
                if not _is_map_of(windows, output) or output.requires_grad:
                    raise _OtherOutputError
                return plain_tensor(output)

            with suppress(_OtherOutputError):
                return self._assembled(inputs, one_map, Tile.scores)
        plain = copy.copy(self)
        plain.sw_batch_size = self._batch_size(inputs.device)
        return SlidingWindowInferer.__call__(plain, inputs, network, *args, **kwargs)

    def labels(self, inputs: Tensor, network: Callable[..., NetworkOutput], *args: Any, **kwargs: Any) -> Tensor:
        """Return label ids, computed part by part: the scores of all classes are never held for the whole image.

        Args:
            inputs: ``(B, C, *spatial)``.
            network: Maps windows to logits of the windows' size; the first of several outputs is used.
            args: Passed on to the network.
            kwargs: Passed on to the network.

        Returns:
            ``(B, 1, *spatial)``: the best class, or for one logit whether it is positive; uint8, or int16 for more than
            256 classes; with the metadata of ``inputs``.
        """
        if self.with_coord or _FOR_MONAI.intersection(kwargs):
            scores = main_output(self(inputs, network, *args, **kwargs), num_dims=inputs.ndim - 2)
            return _with_metadata_of(inputs, torch.stack([label_ids(case)[None] for case in plain_tensor(scores)]))
        return self._assembled(
            inputs, lambda windows: network(windows, *args, **kwargs), lambda tile: label_ids(tile.sums)[None]
        )

    def tiles(
        self, image: Tensor, network: Callable[[Tensor], NetworkOutput], *, in_layers: bool = False
    ) -> Iterator[Tile]:
        """Yield the parts of one image's scores as they are completed, for processing by the caller.

        A part is valid only until the next one is requested: copy data that you keep.

        Args:
            image: ``(C, *spatial)``.
            network: Maps windows to scores of the windows' size.
            in_layers: Whether to yield parts layer by layer along `slowest_axis`, instead of in the order that needs
                the least memory. A part is then valid until its layer is complete.
        """
        runs_on, kept_on = self._runs_on(image.device), self._kept_on(image)

        def scores(windows: Tensor) -> Tensor:
            return main_output(network(windows.to(runs_on)), num_dims=windows.ndim - 2).to(kept_on)

        return blended_tiles(
            image,
            scores,
            self.grid(image.shape[1:]),
            batch_size=self._batch_size(image.device),
            new_buffer=self.new_buffer,
            in_layers=in_layers,
            rounded_to=self._sums_rounded_to,
        )

    def grid(self, size: Sequence[int]) -> WindowGrid:
        """Return the windows over an image of this spatial size.

        Raises:
            SettingsError: If the number of axes of the window is another.
        """
        fits = not issequenceiterable(self.roi_size) or len(self.roi_size) == len(size)
        return WindowGrid(
            size=tuple(size),
            window=fall_back_tuple(self.roi_size, size) if fits else tuple(self.roi_size),
            overlap=self.overlap,
            mode=self.mode,
            sigma_scale=self.sigma_scale,
            padding_mode=self.padding_mode,
            cval=self.cval,
        )

    def num_windows(self, size: Sequence[int]) -> int:
        """Return the number of windows for an image of this spatial size."""
        return len(self.grid(size))

    def slowest_axis(self, size: Sequence[int]) -> int:
        """Return the spatial axis along which the layers of `tiles` follow each other, for an image of a size."""
        return self.grid(size).axes[0]

    def input_shape(self, size: Sequence[int], device: torch.device) -> Shape:
        """Return the shape of the network's input without channels, ``(B, *spatial)``, for an image of a size."""
        grid = self.grid(size)
        return (min(self._batch_size(device), len(grid)), *grid.window)

    def with_buffer(self, new_buffer: BufferFactory) -> Self:
        """Return a copy of the inferer with another buffer for incomplete scores."""
        other = copy.copy(self)
        other.new_buffer = new_buffer
        return other

    def _blends_itself(self, inputs: Tensor, options: Mapping[str, object]) -> bool:
        """Return whether a call does not need MONAI's function."""
        is_plain = not (self.with_coord or self.progress or self.buffer_steps or _FOR_MONAI.intersection(options))
        return is_plain and inputs.dtype == torch.float32 and inputs.ndim in (4, 5)

    def _batch_size(self, device: torch.device) -> int:
        return self.sw_batch_size or (1 if self._runs_on(device).type == "cpu" else _BATCH_ON_GPU)

    def _runs_on(self, device: torch.device) -> torch.device:
        return torch.device(self.sw_device or device)

    def _kept_on(self, image: Tensor) -> torch.device:
        if self.device is None and self.cpu_thresh is not None and image[0].numel() > self.cpu_thresh:
            return torch.device("cpu")
        return torch.device(self.device or image.device)

    def _assembled(
        self, inputs: Tensor, network: Callable[[Tensor], NetworkOutput], part: Callable[[Tile], Tensor]
    ) -> Tensor:
        """Assemble the results ``(channels, *box)`` for each tile into those of a whole batch."""
        result: Tensor | None = None
        for number, image in enumerate(plain_tensor(inputs)):
            for tile in self.tiles(image, network):
                values = part(tile)
                if result is None:
                    result = values.new_empty((len(inputs), len(values), *inputs.shape[2:]))
                place: tuple[int | slice, ...] = (number, slice(None), *tile.place)
                result[place] = values
        if result is None:
            raise ValueError(f"there is no image in a batch of shape {tuple(inputs.shape)}")
        return _with_metadata_of(inputs, result)


class WholeOrWindowsInferer(WindowInferer):
    """Runs small images at once, padded with zeros to a multiple of ``divisor`` like training patches.

    Large images are run in blended windows of ``roi_size``.
    """

    def __init__(self, roi_size: Sequence[int], *, divisor: Sequence[int]) -> None:
        super().__init__(roi_size)
        self.divisor = tuple(divisor)

    @override
    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.runs_whole(inputs.shape[2:]):
            return super().__call__(inputs, network, *args, **kwargs)
        whole = self._whole(plain_tensor(inputs), lambda images: network(images, *args, **kwargs))
        return _with_metadata_of(inputs, whole)

    @override
    def tiles(
        self, image: Tensor, network: Callable[[Tensor], NetworkOutput], *, in_layers: bool = False
    ) -> Iterator[Tile]:
        if not self.runs_whole(image.shape[1:]):
            yield from super().tiles(image, network, in_layers=in_layers)
            return
        with torch.no_grad():
            scores = self._whole(image[None], network)[0]
        yield Tile.whole(scores)

    def runs_whole(self, size: Sequence[int]) -> bool:
        """Return whether an image of this spatial size is run at once."""
        padded = rounded_up(tuple(size), self.divisor)
        # An image of one divisor has a single voxel at the bottom, for which instance normalisation is impossible.
        return padded != self.divisor and math.prod(padded) <= WHOLE_IMAGE_LIMIT * math.prod(self.roi_size)

    @override
    def num_windows(self, size: Sequence[int]) -> int:
        return 1 if self.runs_whole(size) else super().num_windows(size)

    @override
    def input_shape(self, size: Sequence[int], device: torch.device) -> Shape:
        if not self.runs_whole(size):
            return super().input_shape(size, device)
        return (1, *rounded_up(tuple(size), self.divisor))

    def _whole(self, images: Tensor, network: Callable[[Tensor], NetworkOutput]) -> Tensor:
        """Return the float32 scores of images ``(B, C, *spatial)`` that are run at once."""
        size = images.shape[2:]
        sides = zip(size, rounded_up(tuple(size), self.divisor), strict=True)
        at_the_end = [width for extent, padded in reversed(list(sides)) for width in (0, padded - extent)]
        scores = main_output(network(F.pad(images, at_the_end)), num_dims=len(size)).float()
        return scores[(slice(None), slice(None), *map(slice, size))]


class SlicesInferer(WindowInferer):
    """Runs a 2-D network on the slices of volumes, a few at once.

    Slices are padded with zeros to a multiple of ``divisor`` and run whole; slices of more than twice the voxels of
    ``roi_size`` are run in blended windows. ``roi_size`` and ``divisor`` are 1 along the axis across the slices.
    """

    def __init__(self, roi_size: Sequence[int], *, divisor: Sequence[int], sw_batch_size: int | None = None) -> None:
        super().__init__(roi_size, sw_batch_size)
        self.divisor = tuple(divisor)

    @override
    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._windows(inputs.shape[2:])(inputs, network, *args, **kwargs)

    @override
    def tiles(
        self, image: Tensor, network: Callable[[Tensor], NetworkOutput], *, in_layers: bool = False
    ) -> Iterator[Tile]:
        yield from self._windows(image.shape[1:]).tiles(image, network, in_layers=in_layers)

    @override
    def grid(self, size: Sequence[int]) -> WindowGrid:
        return self._windows(size).grid(size)

    @override
    def num_windows(self, size: Sequence[int]) -> int:
        return self._windows(size).num_windows(size)

    @override
    def input_shape(self, size: Sequence[int], device: torch.device) -> Shape:
        return self._windows(size).input_shape(size, device)

    def _windows(self, size: Sequence[int]) -> WindowInferer:
        """Return the window inferer for a volume of this size."""
        window = tuple(
            1 if roi == 1 else -(-extent // by) * by
            for extent, by, roi in zip(size, self.divisor, self.roi_size, strict=True)
        )
        if window == self.divisor or math.prod(window) > WHOLE_IMAGE_LIMIT * math.prod(self.roi_size):
            window = tuple(self.roi_size)
        blending = {"overlap": self.overlap, "mode": self.mode, "sigma_scale": self.sigma_scale}
        windows = WindowInferer(window, self.sw_batch_size, **blending, padding_mode=self.padding_mode, cval=self.cval)
        windows.device, windows.sw_device, windows.new_buffer = self.device, self.sw_device, self.new_buffer
        return windows


def build_inferer(plan: Plan) -> WholeOrWindowsInferer | SlicesInferer:
    """Return the inferer used by both validation and prediction of a planned run."""
    if plan.slice_axis is None:
        return WholeOrWindowsInferer(plan.patch_shape, divisor=plan.divisor)
    return SlicesInferer(plan.patch_shape, divisor=plan.divisor, sw_batch_size=plan.batch_size)


class MainOutput(nn.Module):
    """A network, or a moving average of it, that returns only its logits at full resolution.

    Its layers have the same names as in the network itself, for ``SaliencyInferer``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    @override
    def forward(self, windows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return main_output(self.model(windows, *args, **kwargs), num_dims=windows.ndim - 2)

    @override
    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        yield from plain_network(self.model).named_modules(*args, **kwargs)


def run_inferer(inferer: Inferer, images: Tensor, network: Callable[..., Tensor]) -> Tensor:
    """Return the scores of any inferer of MONAI for images ``(B, C, *spatial)``, on their device.

    For ``SaliencyInferer`` the network must be a `MainOutput`. Of several outputs the full-resolution one is used.
    """
    if isinstance(inferer, SaliencyInferer):
        with torch.inference_mode(False), torch.enable_grad():
            result = inferer(images.detach().clone().requires_grad_(), network)
        result = result.detach()
    else:
        result = inferer(images, network)
    return plain_tensor(main_output(result, num_dims=images.ndim - 2)).to(images.device)


def mirrored(network: ScoreFunction, axes: Sequence[int]) -> ScoreFunction:
    """Return a network that averages its scores over all flips along spatial axes: ``2 ** n`` calls."""
    flips = [[axis + 2 for axis in chosen] for count in range(1, len(axes) + 1) for chosen in combinations(axes, count)]
    if not flips:
        return network

    def averaged(windows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        total = network(windows, *args, **kwargs).clone()  # a network may return its input, or always the same tensor
        for dims in flips:
            total += network(windows.flip(dims), *args, **kwargs).flip(dims)
        return total.div_(len(flips) + 1)

    return averaged


class _OtherOutputError(Exception):
    """Raised within a network's call if its output is not one map of the windows' size."""


def _is_map_of(windows: Tensor, output: object) -> TypeGuard[Tensor]:
    return isinstance(output, Tensor) and len(output) == len(windows) and output.shape[2:] == windows.shape[2:]


def _monai_name(kind: type[BlendMode] | type[PytorchPadMode], value: str, name: str) -> str:
    """Return the plain text of a constant of MONAI."""
    names = [str(member.value) for member in kind]
    text = str(getattr(value, "value", value))
    if text not in names:
        raise SettingsError(f"{name} must be one of {', '.join(names)}, got {value!r}")
    return text


def _with_metadata_of(inputs: Tensor, result: Tensor) -> Tensor:
    """Return a result that MONAI's transforms can decollate and invert like the inputs, and independently of them."""
    if not isinstance(inputs, MetaTensor):
        return result
    placed = MetaTensor(result)
    placed.copy_meta_from(inputs)
    placed.applied_operations = copy.deepcopy(inputs.applied_operations)  # inverting takes them from the list
    whole: Tensor = placed
    return whole
