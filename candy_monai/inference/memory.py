"""What predicting a case takes in memory, worked out before it starts. Measures nothing and predicts nothing."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.errors import BadInputError
from candy_monai.inference.cells import CellLayout
from candy_monai.inference.windows import WindowGrid
from candy_monai.network import meta_copy

_FLOAT = 4
_CHANNEL_BLOCK = 16
_DECODING = 3.0  # copies of an image while it is decoded and turned into float32
_PREPROCESSING = 2.5  # copies while it is normalised and its mask is made
_RESAMPLING = 2.0  # copies of the image on the plan's grid while it is made
_WRITING = 3  # copies of probabilities while they are written
_UNSEEN = 1.05  # of a call: what libraries hold beside the tensors
_PAINTED_AT_ONCE, _PAINTING = 2**22, 6  # voxels of the planes that `LabelPainter` works on, and copies of them


@dataclass(frozen=True, kw_only=True)
class NetworkMemory:
    """One call of a network.

    Attributes:
        num_bytes: The most that is held at a time, outputs included and weights not.
        num_channels: Channels of its output.
        output_bytes: What that takes.
    """

    num_bytes: int
    num_channels: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What predicting one case takes above what the process held before, in bytes.

    Attributes:
        preparing: While the case is read and preprocessed.
        image: The preprocessed case.
        network: One call of the network.
        output: The part of that which it returns.
        cells: Unfinished scores.
        labels: The label map and what is made of it.
        all_scores: All classes at full size, where they are held: for probabilities.
        on_demand: What ``all_scores`` would be if probabilities were asked for.
    """

    preparing: int
    image: int
    network: int
    cells: int
    labels: int
    output: int = 0
    all_scores: int = 0
    on_demand: int = 0

    @property
    def total(self) -> int:
        """The most that is held at a time."""
        return max(self.preparing, self._predicting + self.cells)

    @property
    def without_cells(self) -> int:
        """The same with the unfinished scores on disk."""
        return max(self.preparing, self._predicting)

    @property
    def _predicting(self) -> int:
        return self.image + self.network + self.labels + self.all_scores

    def with_probabilities(self) -> MemoryEstimate:
        """Return what it takes to predict probabilities, too."""
        return replace(self, all_scores=self.on_demand)

    def with_members(self, count: int) -> MemoryEstimate:
        """Return what an ensemble takes whose members go through the image side by side."""
        return replace(self, cells=count * self.cells, network=self.network + (count - 1) * self.output)

    def or_more(self, other: MemoryEstimate) -> MemoryEstimate:
        """Return the larger of each of two cases' numbers."""
        mine, its = asdict(self), asdict(other)
        return MemoryEstimate(**{name: max(mine[name], its[name]) for name in mine})


def network_memory(network: nn.Module, input_shape: Sequence[int]) -> NetworkMemory | None:
    """Work out what one call takes, on PyTorch's meta device: without making the call.

    Args:
        network: Images ``(B, C, *spatial)`` to scores.
        input_shape: ``(B, C, *spatial)``.

    Returns:
        None for a network that cannot run on the meta device.
    """
    try:
        copied = meta_copy(network)
        with torch.no_grad(), _LiveBytes() as live:
            output = copied(torch.empty(*input_shape, device="meta"))
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        scores = tensors[0]
        return NetworkMemory(num_bytes=live.most, num_channels=scores.shape[1], output_bytes=scores.nbytes)
    except Exception:  # any network may do what meta tensors cannot
        return None


def estimate(
    *,
    file_shape: Shape,
    shape: Shape,
    num_channels: int,
    network: NetworkMemory,
    grid: WindowGrid | None,
    is_resampled: bool,
    is_mirrored: bool = False,
) -> MemoryEstimate:
    """Work out what predicting one case takes.

    Args:
        file_shape: The file's spatial shape.
        shape: The preprocessed case's.
        num_channels: The image's channels.
        network: One call, for as many windows as are run at once.
        grid: The windows; None where the image is run whole.
        is_resampled: Whether scores are brought to the file's grid by resampling.
        is_mirrored: Whether the scores of mirror images are averaged.
    """
    raw, image = (num_channels * math.prod(size) * _FLOAT for size in (file_shape, shape))
    cells = 0
    if grid is not None:
        cells = network.num_channels * CellLayout(grid, in_layers=is_resampled).num_voxels * _FLOAT
    whole, restored = (network.num_channels * math.prod(size) * _FLOAT for size in (shape, file_shape))
    painting = _PAINTING * _FLOAT * min(_PAINTED_AT_ONCE, math.prod(file_shape))
    id_bytes = 1 if network.num_channels <= 256 else 2
    return MemoryEstimate(
        preparing=int(max(_DECODING * raw, _PREPROCESSING * raw + (_RESAMPLING * image if is_resampled else 0))),
        image=image,
        network=int(_UNSEEN * network.num_bytes) + (2 * network.output_bytes if is_mirrored else 0),
        output=network.output_bytes,
        cells=cells,
        labels=2 * id_bytes * math.prod(file_shape) + (painting if is_resampled else 0),
        on_demand=max(2 * whole, whole + restored, _WRITING * restored) + restored,
    )


def fits_on_disk_only(needed: MemoryEstimate, memory: int) -> bool:
    """Tell whether the unfinished scores of a case must go to disk to keep to a memory.

    Args:
        needed: What the case takes.
        memory: Bytes that may be used.

    Raises:
        BadInputError: If even then it does not fit.
    """
    if needed.total <= memory:
        return False
    if needed.without_cells > memory:
        raise BadInputError(
            f"needs about {in_units(needed.without_cells)} even with unfinished scores on disk, and "
            f"{in_units(memory)} may be used: allow more memory"
        )
    return True


def in_units(num_bytes: float) -> str:
    """Write a number of bytes for people: ``0.5 GB``, ``12 MB``, ``3 kB``."""
    if num_bytes >= 1e8:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._users: dict[int, int] = {}
        self._seen: set[int] = set()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._watch(tensor)
        most = self._now
        if func is torch.ops.aten.convolution.default:
            most += _convolution_bytes(args[0], made[0])
        self.most = max(self.most, most)
        return result

    def _watch(self, tensor: Tensor) -> None:
        if id(tensor) in self._seen:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(id(tensor))
        if not self._users.get(key):
            self._now += size
        self._users[key] = self._users.get(key, 0) + 1
        weakref.finalize(tensor, self._forget, id(tensor), key, size)

    def _forget(self, identity: int, key: int, size: int) -> None:
        self._seen.discard(identity)
        self._users[key] -= 1
        if not self._users[key]:
            self._now -= size


def _convolution_bytes(image: Tensor, result: Tensor) -> int:
    """Return what oneDNN adds: copies of both sides with channels in blocks, the image's until the result is made."""
    before, after = (
        tensor[:, 0].numel() * -(-tensor.shape[1] // _CHANNEL_BLOCK) * _CHANNEL_BLOCK * _FLOAT
        for tensor in (image, result)
    )
    return max(before + after - result.nbytes, after)
