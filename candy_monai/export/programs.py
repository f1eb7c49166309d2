"""Export a network as a program of PyTorch, with variable sizes as far as the network allows it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from candy_monai.errors import BadInputError
from candy_monai.export.networks import ExportedNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """An exported program."""

    program: ExportedProgram
    example: Tensor  # the example input for it, ``(B, C, *size)``
    is_dynamic: tuple[bool, ...]  # for each axis of the input, whether its size may change


def build_program(network: ExportedNetwork, *, on_progress: Callable[[str], None]) -> Program:
    """Export a network with as many variable sizes as it allows.

    Any batch size and any multiples of the network's divisor are tried first, then the sizes that PyTorch determines
    itself, then any batch of a fixed size, then one image of a fixed size.

    Raises:
        BadInputError: If it cannot be exported at all.
    """
    size = network.sizes[0]
    example = torch.zeros(2, network.predictor.num_channels, *size)
    failure: Exception | None = None
    for images, dims in _attempts(network, example):
        try:
            with quiet(), torch.no_grad():
                program = torch.export.export(network.network, (images,), dynamic_shapes=(dims,))
        except Exception as error:  # there are many kinds, and the next attempt requires less
            failure = failure or error
            continue
        is_dynamic = _dynamic_axes(program)
        if not all(is_dynamic[2 + axis] for axis, extent in enumerate(size) if extent > 1):
            reason = "" if failure is None else f": {first_line(failure)}"
            on_progress(f"The network takes images of {' x '.join(map(str, size))} only{reason}")
        return Program(program=program, example=images, is_dynamic=is_dynamic)
    assert failure is not None
    name = type(network.network).__name__
    raise BadInputError(
        f"{network.predictor.folder}: PyTorch cannot export the network {name} ({first_line(failure)}); monai-bundle "
        "and torchscript do not need torch.export"
    ) from failure


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of exporters, which a user cannot act on, within a block."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def write_apart(file: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write a file from memory: if the disk is full, PyTorch's own writer ends the process without a message."""
    buffer = io.BytesIO()
    save(buffer)
    file.write_bytes(buffer.getbuffer())


def _attempts(network: ExportedNetwork, example: Tensor) -> Iterator[tuple[Tensor, dict[int, Any]]]:
    """Yield examples with their variable sizes, those with the most first."""
    batch = {0: Dim("batch")}
    free = [axis for axis, is_free in enumerate(network.free_axes) if is_free]
    multiples: dict[int, Any] = {}
    for axis in free:
        by, count = network.divisor[axis], Dim(f"n{axis}")
        multiples[2 + axis] = by * count if by > 1 else count
    yield example, batch | multiples
    yield example, dict.fromkeys([0, *(2 + axis for axis in free)], Dim.AUTO)
    yield example, batch
    yield example[:1], {}


def _dynamic_axes(program: ExportedProgram) -> tuple[bool, ...]:
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    return tuple(not isinstance(extent, int) for extent in node.meta["val"].shape)


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message, since those of compilers have hundreds."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
