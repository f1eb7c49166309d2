"""Seed, capture and restore all random generators. Draws no random numbers itself."""

from __future__ import annotations

import os
import random
import secrets
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from candy_monai.own_generators import OwnGenerators

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC_WORKSPACE = ":4096:8"
_before: _Switches | None = None  # as found by the first call with determinism


def draw_seed() -> int:
    """Return a 32-bit seed from the operating system's entropy, without using any generator."""
    return secrets.randbits(32)


def set_seed(seed: int, *, deterministic: bool = False) -> None:
    """Seed Python's, NumPy's and PyTorch's generators (CPU and every CUDA device) and ``PYTHONHASHSEED``.

    A seed alone does not disable fast kernels, since deterministic ones are slower.

    Args:
        seed: 0 to 2**32 - 1, the range that NumPy accepts.
        deterministic: Also use only deterministic algorithms in PyTorch, and no cuDNN autotuning. Operations without a
            deterministic form then warn. False undoes only what an earlier call with True changed.

    Raises:
        ValueError: If ``seed`` is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0 .. 2**32 - 1, got {seed}")
    os.environ["PYTHONHASHSEED"] = str(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds every CUDA device too, lazily where CUDA is not initialised yet
    if deterministic:
        _become_deterministic()
    else:
        _undo_determinism()


@dataclass(frozen=True, kw_only=True)
class _Switches:
    """PyTorch's settings for determinism."""

    workspace: str | None
    benchmark: bool
    cudnn: bool
    algorithms: bool
    warn_only: bool

    @classmethod
    def current(cls) -> _Switches:
        return cls(
            workspace=os.environ.get(_WORKSPACE),
            benchmark=torch.backends.cudnn.benchmark,
            cudnn=torch.backends.cudnn.deterministic,
            algorithms=torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )


def _become_deterministic() -> None:
    global _before
    _before = _before or _Switches.current()
    os.environ.setdefault(_WORKSPACE, _DETERMINISTIC_WORKSPACE)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def _undo_determinism() -> None:
    """Restore each setting that still has the value set here; later changes by others are kept."""
    global _before
    if _before is None:
        return
    before, now = _before, _Switches.current()
    _before = None
    if before.workspace is None and now.workspace == _DETERMINISTIC_WORKSPACE:
        del os.environ[_WORKSPACE]
    if not now.benchmark:
        torch.backends.cudnn.benchmark = before.benchmark
    if now.cudnn:
        torch.backends.cudnn.deterministic = before.cudnn
    if now.algorithms and now.warn_only:
        torch.use_deterministic_algorithms(before.algorithms, warn_only=before.warn_only)


@dataclass(frozen=True, kw_only=True)
class GeneratorStates:
    """The states of random generators at one moment, as plain values and tensors.

    Attributes:
        python: Python's ``random`` state: version, keys as a tensor, and the cached Gaussian.
        numpy: NumPy's legacy global state: name, keys as a tensor, position, and the cached Gaussian.
        torch: PyTorch's CPU generator.
        cuda: One tensor for each CUDA device, empty without CUDA.
        own: The user's own generators, by their places.
    """

    python: list[Any]
    numpy: list[Any]
    torch: Tensor
    cuda: list[Tensor]
    own: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def capture(cls, own: OwnGenerators | None = None) -> GeneratorStates:
        """Read the states of every global generator, and of the user's own."""
        version, internal, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        stored = torch.from_numpy(np.asarray(keys).astype(np.int64))
        return cls(
            python=[version, torch.tensor(internal, device="cpu"), gauss],
            numpy=[name, stored, int(position), int(has_gauss), float(cached)],
            torch=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            own={} if own is None else own.states(),
        )

    def restore(self, own: OwnGenerators | None = None) -> None:
        """Restore every generator to this state; CUDA states are skipped if the devices differ."""
        version, internal, gauss = self.python
        random.setstate((version, tuple(map(int, internal)), gauss))  # earlier runs have a list
        name, keys, position, has_gauss, cached = self.numpy
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.set_rng_state(self.torch)
        if self.cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(self.cuda):
            torch.cuda.set_rng_state_all(self.cuda)
        if own is not None:
            own.restore(self.own)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors that load with ``weights_only=True``."""
        return {"python": self.python, "numpy": self.numpy, "torch": self.torch, "cuda": self.cuda, "own": self.own}
