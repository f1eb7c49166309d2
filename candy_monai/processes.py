"""The processes that train one run together, as started by ``torchrun`` or ``srun``, and their communication."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from candy_monai.errors import CandyError, SettingsError
from candy_monai.launched import name_as_torchrun

T = TypeVar("T")

_BYTES_AT_ONCE = 32 << 20
_PATIENCE = timedelta(days=7)
"""The time-out for work that one process does alone, such as preprocessing; PyTorch's is half an hour."""


class Processes:
    """The processes of this run, of which this is one. A run of one process communicates with none.

    Args:
        rank: The number of this process.
        world_size: The number of processes.
        local_rank: The number of this process among those of its machine, which determines its GPU.
    """

    def __init__(self, *, rank: int = 0, world_size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._control: distributed.ProcessGroup | None = None

    @classmethod
    def from_environment(cls) -> Processes:
        """Read the variables of ``torchrun`` or ``srun``; one process if there are none.

        Raises:
            SettingsError: If the variables contradict each other.
        """
        name_as_torchrun()
        try:
            rank, world_size, local = (
                int(os.environ.get(name, default))
                for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
            )
        except ValueError as error:
            raise SettingsError(f"torchrun sets RANK, WORLD_SIZE and LOCAL_RANK to numbers: {error}") from None
        if not 0 <= rank < world_size:
            raise SettingsError(f"RANK is {rank} and WORLD_SIZE {world_size}: start the processes with torchrun")
        return cls(rank=rank, world_size=world_size, local_rank=local)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def device_of(self, device: torch.device) -> torch.device:
        """Return the device of this process: the GPU of its number if only ``cuda`` was requested.

        A process that sees a single GPU, such as a task of ``srun --gpus-per-task=1``, uses that one.
        """
        if self.world_size > 1 and str(device) == "cuda":
            return torch.device("cuda", 0 if torch.cuda.device_count() == 1 else self.local_rank)
        return device

    def check_sync_batchnorm(self, device: torch.device) -> None:
        """Check that these processes can compute the statistics of batch normalisation together.

        Args:
            device: The device of this process.

        Raises:
            SettingsError: If there are several, and not on GPUs.
        """
        if self.world_size > 1 and device.type != "cuda":
            raise SettingsError(
                f"sync_batchnorm: PyTorch's SyncBatchNorm computes on GPUs, and {self.world_size} processes train on "
                f"{device} here: leave it out, or choose a network with instance or group normalisation"
            )

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Connect the processes within a block; do nothing for one process, or if they are connected already.

        Args:
            device: The device of this process: GPUs are connected by NCCL, all others by Gloo.
        """
        if self.world_size == 1:
            yield
            return
        ours = not distributed.is_initialized()
        if ours:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self._control = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        try:
            yield
        finally:
            if ours:
                distributed.destroy_process_group()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run a block in the first process, and then in the others, which can use its results.

        Raises:
            CandyError: In the others, if the first one failed.
        """
        if self.is_main:
            try:
                yield
            except BaseException:
                self.broadcast(False)
                raise
            self.broadcast(True)
        else:
            if not self.broadcast(True):
                raise CandyError("the first process could not start; see its message")
            yield

    def broadcast(self, value: T) -> T:
        """Return the value of the first process."""
        if self.world_size == 1:
            return value
        values: list[Any] = [value]
        distributed.broadcast_object_list(values, src=0, group=self._control)
        return values[0]  # type: ignore[no-any-return]

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes, ordered by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self._control)
        return values

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, ordered by rank, in the first process; nothing in the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        distributed.gather_object(value, values, dst=0, group=self._control)
        return values or []

    def all_reduce_any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is set in any process. Does not synchronise with a GPU."""
        if self.world_size == 1:
            return list(flags)
        return [count > 0 for count in self._counts(flags)]

    def all_reduce_mean(self, tensors: Sequence[Tensor], flags: Sequence[bool] = ()) -> tuple[list[Tensor], list[int]]:
        """Return the means of tensors over all processes, and in how many processes each flag is set.

        Flags are sent with the last tensors, or separately if these are on a GPU, to avoid a synchronisation.

        Args:
            tensors: Tensors of the same shapes in each process.
            flags: The same number in each process.
        """
        if self.world_size == 1:
            return list(tensors), [int(flag) for flag in flags]
        means: dict[int, Tensor] = {}
        counts: list[int] | None = None
        parts = list(_parts(tensors))
        for number, part in enumerate(parts, start=1):
            flat = [tensor.reshape(-1) for tensor in part]
            sizes = [tensor.numel() for tensor in flat]
            has_flags = number == len(parts) and part[0].device.type == "cpu"
            if has_flags:
                flat.append(torch.tensor(flags, dtype=part[0].dtype))
            together = torch.cat(flat)
            distributed.all_reduce(together)
            if has_flags:
                counts = [round(count) for count in together[sum(sizes) :].real.tolist()]
            pieces = torch.split_with_sizes(together[: sum(sizes)].div_(self.world_size), sizes)
            means.update((id(tensor), mean.view(tensor.shape)) for tensor, mean in zip(part, pieces, strict=True))
        return [means[id(tensor)] for tensor in tensors], self._counts(flags) if counts is None else counts

    def _counts(self, flags: Sequence[bool]) -> list[int]:
        counts = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(counts, group=self._control)
        return counts.tolist()

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process, in place."""
        if self.world_size == 1:
            return
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def _parts(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Divide tensors into lists of some megabytes, each of one device and type."""
    kinds: defaultdict[object, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        kinds[tensor.device, tensor.dtype].append(tensor)
    for kind in kinds.values():
        part: list[Tensor] = []
        for tensor in kind:
            part.append(tensor)
            if sum(member.nbytes for member in part) >= _BYTES_AT_ONCE:
                yield part
                part = []
        if part:
            yield part
