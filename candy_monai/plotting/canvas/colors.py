"""The colour of each class id.

An id has the same colour in every picture of this library, independently of the other ids. The first colours are those
of Okabe and Ito, the next ones are chosen greedily to be far from all before them, for normal vision and for red-green
colour blindness.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from candy_monai.errors import BadInputError

RGB = tuple[int, int, int]

# Okabe and Ito (https://jfly.uni-koeln.de/color/) without black, which is the background; in an order with strong
# contrast first, as most tasks have one to three classes.
_FIRST: tuple[RGB, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)
_CHOSEN = 256
_GREATEST_ID = 2**22
_SCRAMBLER = 10_368_889

# OKLab (B. Ottosson, 2020): a perceptually nearly uniform colour space.
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Linear-RGB simulation of full deuteranopia and protanopia (Machado, Oliveira and Fernandes, 2009).
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
_PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)


def class_color(class_id: int) -> RGB:
    """Return the colour of a class as red, green, blue in 0..255.

    Distinct ids up to ±4 million have distinct colours, also negative ones, such as an ignore value of -1. The
    background, id 0, is black here and transparent in every overlay.
    """
    class_id = int(class_id)
    if class_id == 0:
        return (0, 0, 0)
    if 0 < class_id <= _CHOSEN:
        red, green, blue = (int(value) for value in _chosen()[class_id - 1])
        return red, green, blue
    if abs(class_id) > _GREATEST_ID:
        raise BadInputError(f"label id {class_id} has no colour: expected an id between ±{_GREATEST_ID}")
    return _remaining(2 * class_id if class_id > 0 else -2 * class_id - 1)


def colorize(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the colour of every element of an array of label ids, ``(*ids.shape, 3)``; background is black."""
    if ids.size == 0:
        return np.zeros((*ids.shape, 3), dtype=np.uint8)
    table = np.concatenate([np.zeros((1, 3), dtype=np.uint8), _chosen()])
    where: NDArray[np.integer] = ids
    if ids.min() < 0 or ids.max() > _CHOSEN:
        present, inverse = np.unique(ids, return_inverse=True)
        table = np.array([class_color(class_id) for class_id in present.tolist()], dtype=np.uint8)
        where = inverse.reshape(ids.shape)
    painted: NDArray[np.uint8] = table[where]
    return painted


@cache
def _chosen() -> NDArray[np.uint8]:
    """Return the colours of ids 1 to 256: each is the candidate farthest from all chosen before it."""
    candidates = np.concatenate([np.array(_FIRST), _candidates()])
    views = _views(candidates)
    distance = np.full(len(candidates), np.inf)
    order: list[int] = []
    for position in range(_CHOSEN):
        pick = position if position < len(_FIRST) else int(distance.argmax())
        order.append(pick)
        apart = np.linalg.norm(views - views[:, pick : pick + 1], axis=2)
        distance = np.minimum(distance, 0.5 * apart[0] + 0.5 * np.minimum(apart[1], apart[2]))
        distance[pick] = -1.0
    return candidates[order].astype(np.uint8)


def _candidates() -> NDArray[np.int64]:
    """Return colours with contrast to a grey picture: neither dark, nor white, nor grey."""
    steps = np.linspace(0, 255, 18).round().astype(np.int64)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, *ab = _views(grid)[0].T
    vivid = np.hypot(*ab) > 0.07
    taken = (grid[:, None] == np.array(_FIRST)[None]).all(axis=2).any(axis=1)
    chosen: NDArray[np.int64] = grid[vivid & (lightness > 0.45) & (lightness < 0.95) & ~taken]
    return chosen


def _views(colors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return OKLab coordinates for normal, deuteranopic and protanopic vision: shape ``(3, n, 3)``."""
    values = colors / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.stack([linear, linear @ _DEUTERANOPIA.T, linear @ _PROTANOPIA.T]).clip(0.0, 1.0)
    lab: NDArray[np.float64] = np.cbrt(seen @ _TO_LMS.T) @ _TO_LAB.T
    return lab


@cache
def _remaining(index: int) -> RGB:
    """Return the ``index``-th of the permuted colours that no id up to 256 has, all of them distinct."""
    weights = np.array([65536, 256, 1])
    taken = np.sort(np.append(_chosen().astype(np.int64) @ weights, 0))
    free = 2**24 - len(taken)
    # A multiplier coprime to the count permutes the free colours, so that neighbours are far apart.
    code = index * _SCRAMBLER % free
    for used in taken:
        if used > code:
            break
        code += 1
    return code >> 16, code >> 8 & 255, code & 255
