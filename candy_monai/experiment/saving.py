"""Save in the background: copy all tensors at one moment, and write the copy on a thread."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, UntypedStorage, nn

from candy_monai.threads import SteadyThread

T = TypeVar("T")

_IMMUTABLE = (type(None), bool, int, float, str, bytes)


class Writer:
    """Runs work on a thread and raises its errors in the thread that waits for it.

    After a failure every `wait` and `start` raises its error.
    """

    def __init__(self) -> None:
        self._thread: SteadyThread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the write in progress, then start the next one.

        Raises:
            BaseException: What earlier work raised.
        """
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        # Not a daemon: a process that ends waits for it.
        self._thread = SteadyThread(target=run, name="candy-writer")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            BaseException: What the work raised.
        """
        self.join()
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """Wait until nothing is being written, whether it failed or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


class Snapshots:
    """Copies nested containers of tensors and plain values to the CPU, into memory that is reused.

    Tensors that share memory share it in the copy and keep their strides, so that the copy is written in the same way
    as the original. A GPU is synchronized once, rather than once per tensor.
    """

    def __init__(self) -> None:
        self._buffers: list[UntypedStorage] = []

    def of(self, content: T) -> T:
        """Return a copy of dictionaries, lists, tuples, tensors and plain values; the previous copy becomes invalid."""
        copying = _Copying(self._buffers)
        result: T = copying.copied(content)
        copying.wait()
        self._buffers = copying.buffers
        return result


class _Copying:
    """A copy being made."""

    def __init__(self, free: list[UntypedStorage]) -> None:
        self.buffers: list[UntypedStorage] = []
        self._free: defaultdict[tuple[int, bool], list[UntypedStorage]] = defaultdict(list)
        for buffer in free:
            self._free[buffer.nbytes(), torch.cuda.is_available() and buffer.is_pinned()].append(buffer)
        self._storages: dict[int, UntypedStorage] = {}
        self._tensors: dict[int, Tensor] = {}
        self._devices: set[torch.device] = set()

    def copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self._tensors:
                self._tensors[id(value)] = self._copied_tensor(value)
            return self._tensors[id(value)]
        if isinstance(value, dict):
            result = copy.copy(value)  # an OrderedDict has more to it than its items
            result.update((name, self.copied(member)) for name, member in value.items())
            return result
        if isinstance(value, Mapping):
            return {name: self.copied(member) for name, member in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self.copied, value))
        return value if type(value) in _IMMUTABLE else copy.deepcopy(value)

    def wait(self) -> None:
        for device in self._devices:
            torch.cuda.current_stream(device).synchronize()

    def _copied_tensor(self, tensor: Tensor) -> Tensor:
        is_ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not is_ordinary or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            return tensor.detach().to("cpu", copy=True)
        storage = self._copied_storage(tensor.untyped_storage())
        result = torch.empty(0, dtype=tensor.dtype)
        return result.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def _copied_storage(self, storage: UntypedStorage) -> UntypedStorage:
        where = storage._cdata
        if where not in self._storages:
            size, is_cuda = storage.nbytes(), storage.device.type == "cuda"
            free = self._free[size, is_cuda and size > 0]
            buffer = free.pop() if free else torch.empty(size, dtype=torch.uint8, pin_memory=is_cuda).untyped_storage()
            buffer.copy_(storage, non_blocking=is_cuda)
            if is_cuda:
                self._devices.add(storage.device)
            self.buffers.append(buffer)
            self._storages[where] = buffer
        return self._storages[where]
