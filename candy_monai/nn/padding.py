"""Padding to multiples of a network's factor, and its inversion, for `Pad2d`, `Pad3d` and custom modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.errors import SettingsError
from candy_monai.label_ids import holding

_LARGEST_FACTOR = 1 << 16  # in a description
_MODES = ("constant", "reflect", "replicate", "circular")


class _PadToMultiple(nn.Module):
    """Pad the last ``num_dims`` axes to multiples of their factors."""

    num_dims: int

    def __init__(self, min_factor: int | tuple[int, ...], *, value: float = 0.0, mode: str = "constant") -> None:
        super().__init__()
        factors = (min_factor,) * self.num_dims if isinstance(min_factor, int) else tuple(min_factor)
        if len(factors) != self.num_dims or any(factor < 1 for factor in factors):
            raise SettingsError(
                f"min_factor must be a positive integer, or {self.num_dims} of them, one per axis; got {min_factor}"
            )
        if mode not in _MODES:
            raise SettingsError(f"mode must be one of {', '.join(_MODES)}; got {mode!r}")
        if mode != "constant" and value != 0.0:
            raise SettingsError(f"value={value} has no effect with mode={mode!r}, which copies voxels; leave it out")
        self.min_factor = factors
        self.value = value
        self.mode = mode

    def widths(self, size: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return the number of voxels added before and after on each axis; an odd one is added at the end.

        Raises:
            ValueError: If ``size`` has another number of axes.
        """
        if len(size) != self.num_dims:
            raise ValueError(f"expected a spatial size of {self.num_dims} axes, got {tuple(size)}")
        totals = [-length % factor for length, factor in zip(size, self.min_factor, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` padded; the same tensor if its size already fits.

        Args:
            x: ``(B, C, *spatial)`` or ``(C, *spatial)``, of any number type.

        Raises:
            ValueError: If ``x`` has another number of axes.
        """
        return self.pad(x, fill=self.value)

    def pad(self, x: Tensor, *, fill: float) -> Tensor:
        """Pad like ``forward``, but with ``fill`` in new voxels if the mode is constant."""
        widths = self.widths(self._spatial(x))
        if not any(before or after for before, after in widths):
            return x
        if self.mode == "constant":
            return F.pad(x, [width for axis in reversed(widths) for width in axis], value=fill)
        # Not F.pad: it does not support integers, or reflection of axes shorter than the padding.
        for axis, (before, after) in enumerate(widths, start=x.ndim - self.num_dims):
            if before or after:
                x = x.index_select(axis, _sources(x.shape[axis], before, after, self.mode, x.device))
        return x

    def restore(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Remove the padding.

        Args:
            x: The result for a padded tensor: the padded spatial size, any number of channels.
            size: The spatial size before padding.

        Returns:
            A view of ``x`` with spatial size ``size``.

        Raises:
            ValueError: If ``x`` does not have the size that ``size`` pads to.
        """
        widths = self.widths(size)
        padded = tuple(length + sum(width) for length, width in zip(size, widths, strict=True))
        if self._spatial(x) != padded:
            raise ValueError(
                f"size {tuple(size)} is padded to {padded}, but the tensor to restore has shape {tuple(x.shape)}"
            )
        return _crop(x, [before for before, _ in widths], size)

    def _spatial(self, x: Tensor) -> Shape:
        if x.ndim not in (self.num_dims + 1, self.num_dims + 2):
            raise ValueError(
                f"{type(self).__name__} expects (B, C, *spatial) or (C, *spatial) with {self.num_dims} spatial axes, "
                f"got shape {tuple(x.shape)}"
            )
        return tuple(x.shape[-self.num_dims :])

    @override
    def extra_repr(self) -> str:
        return f"min_factor={self.min_factor}, value={self.value}, mode={self.mode!r}"


class Pad2d(_PadToMultiple):
    """Pad the last two axes to multiples of a factor, split evenly, the odd voxel at the end.

    Args:
        min_factor: The factor of the new size of each axis; one number, or one per axis.
        value: The value of new voxels with ``mode="constant"``.
        mode: ``"constant"``, ``"reflect"``, ``"replicate"`` or ``"circular"``. Axes too short for one reflection are
            reflected repeatedly.

    Raises:
        SettingsError: If an argument is out of range, or a value is given for a mode that copies voxels.

    Example:
        >>> pad = Pad2d(32)
        >>> padded = pad(torch.zeros(1, 3, 50, 64))
        >>> tuple(padded.shape)
        (1, 3, 64, 64)
        >>> tuple(pad.restore(padded, (50, 64)).shape)
        (1, 3, 50, 64)
    """

    num_dims = 2


class Pad3d(_PadToMultiple):
    """Pad the last three axes to multiples of a factor; arguments and errors are those of `Pad2d`."""

    num_dims = 3


def padding_to_dict(padding: nn.Module | None) -> dict[str, object] | None:
    """Describe a padding module in plain values; ``{"kind": "custom"}`` for a custom module, None for none."""
    if padding is None:
        return None
    if type(padding) not in (Pad2d, Pad3d) or not isinstance(padding, _PadToMultiple):
        return {"kind": "custom"}
    factors = list(padding.min_factor)
    return {"kind": type(padding).__name__, "min_factor": factors, "value": padding.value, "mode": padding.mode}


def padding_from_dict(description: Mapping[str, object] | None) -> nn.Module | None:
    """Build a padding module from the result of `padding_to_dict`.

    Raises:
        SettingsError: If it was a custom module, or the description is invalid.
    """
    if description is None:
        return None
    cls = {"Pad2d": Pad2d, "Pad3d": Pad3d}.get(str(description.get("kind")))
    factors, value = description.get("min_factor"), description.get("value")
    refusal = f"this padding cannot be built from its description: {dict(description)}"
    if cls is None or not isinstance(factors, list) or not isinstance(value, int | float):
        raise SettingsError(refusal)
    if not all(isinstance(factor, int) and factor <= _LARGEST_FACTOR for factor in factors):
        raise SettingsError(refusal)
    try:
        return cls(tuple(factors), value=float(value), mode=str(description.get("mode")))
    except SettingsError as error:
        raise SettingsError(f"{refusal}: {error}") from error


def restore_like(padding: nn.Module, x: Tensor, size: Sequence[int]) -> Tensor:
    """Undo the effect of a padding module, built-in or custom, on the spatial axes.

    The ``restore(x, size)`` method of a module is used if it has one. Otherwise the offsets are found by padding a
    volume with numbered voxels; this transfers values from the device, so call it once per case and not at every step.

    Args:
        padding: Maps ``(B, C, *spatial)`` to the same with longer axes, with unchanged voxels.
        x: The result for a padded tensor, ``(B, C, *spatial)`` or ``(C, *spatial)``.
        size: The spatial size before padding.

    Raises:
        ValueError: If the offsets cannot be found, or ``x`` does not have the padded size.
    """
    restore: Callable[[Tensor, Sequence[int]], Tensor] | None = getattr(padding, "restore", None)
    if callable(restore):
        return restore(x, size)
    sources = _probe(padding, size, x.device)
    if tuple(x.shape[-len(size) :]) != tuple(sources.shape):
        raise ValueError(
            f"{type(padding).__name__} pads size {tuple(size)} to {tuple(sources.shape)}, but the tensor to restore "
            f"has shape {tuple(x.shape)}"
        )
    starts = [_offset(padding, sources, axis, size) for axis in range(len(size))]
    return _crop(x, starts, size)


def pad_labels(padding: nn.Module, labels: Tensor, fill: int) -> Tensor:
    """Pad label ids in the same way as the image.

    Where the module fills a voxel with a constant, the label is ``fill``. Where it copies one (reflected, replicated),
    the label is copied from the same place: labelling a mirrored organ as background would be wrong.

    Args:
        padding: The module that pads the image, built-in or custom.
        labels: ``(B, C, *spatial)`` ids or masks, of any number type; built-in modules also take ``(C, *spatial)``.
        fill: The id of voxels outside the image: the background, or the ignore value if there is one.

    Raises:
        ValueError: If the module changes values, so that its effect cannot be applied to labels.
    """
    labels = holding(labels, fill)
    if isinstance(padding, _PadToMultiple):
        return padding.pad(labels, fill=fill)
    sources = _probe(padding, labels.shape[2:], labels.device)
    padded = labels.flatten(2)[..., sources.clamp(min=0).flatten()].reshape(*labels.shape[:2], *sources.shape)
    return padded.masked_fill(sources < 0, fill)


def _sources(length: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """Return, for every voxel of a padded axis, the index of its source voxel; computed on the device."""
    places = torch.arange(-before, length + after, device=device)
    if mode == "circular":
        return places % length
    if mode == "replicate" or length == 1:
        return places.clamp(0, length - 1)
    period = 2 * (length - 1)
    places = places % period
    return torch.minimum(places, period - places)


def _crop(x: Tensor, starts: Sequence[int], size: Sequence[int]) -> Tensor:
    for axis, (start, length) in enumerate(zip(starts, size, strict=True), start=x.ndim - len(size)):
        x = x.narrow(axis, start, length)
    return x


@torch.no_grad()
def _probe(padding: nn.Module, size: Sequence[int], device: torch.device) -> Tensor:
    """Pass numbered voxels through a module: return for each voxel of the output the number of its source, or -1.

    The numbers are halves (0.5, 1.5, ...), which differ from any usual constant, in double precision.
    """
    count = torch.Size(size).numel()
    numbered = torch.arange(count, dtype=torch.float64, device=device).add_(0.5).reshape(1, 1, *size)
    out = padding(numbered)
    if out.shape[:2] != (1, 1) or out.ndim != numbered.ndim:
        raise ValueError(
            f"{type(padding).__name__} turned shape {tuple(numbered.shape)} into {tuple(out.shape)}: a padding module "
            "must keep the batch and channel axes"
        )
    out = out[0, 0]
    known = (out.frac() == 0.5) & (out > 0) & (out < count)
    return torch.where(known, out - 0.5, -1.0).long()


def _offset(padding: nn.Module, sources: Tensor, axis: int, size: Sequence[int]) -> int:
    """Return where the original voxels start on one axis of the result of `_probe`."""
    length, stride = size[axis], torch.Size(size[axis + 1 :]).numel()
    lines = torch.where(sources < 0, -1, sources // stride % length).movedim(axis, -1).flatten(0, -2)
    fullest = lines[(lines >= 0).sum(1).argmax()].tolist()  # certainly one that crosses the original voxels
    run = list(range(length))
    total = len(fullest) - length
    starts = [start for start in range(total + 1) if fullest[start : start + length] == run]
    if len(starts) == 1:
        return starts[0]
    if total // 2 in starts:  # an axis of one replicated voxel: all positions are equal
        return total // 2
    raise ValueError(
        f"cannot tell where {type(padding).__name__} put the original voxels of axis {axis} of size {tuple(size)}: it "
        "must pad without altering them; or give it a method restore(x, size) that undoes it"
    )
