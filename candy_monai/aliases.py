"""Type aliases for signatures. Owns no behaviour.

Axis conventions, everywhere in this library:

* ``B`` batch, ``C`` channel, then the spatial axes in the order of the file's affine. ``D, H, W`` are only names for
  the first, second and third spatial axis of a volume; a 2-D picture is ``(C, H, W)``: row, then column.
* Images are ``(B, C, *spatial)`` float32, label ids ``(B, 1, *spatial)`` integer; a single case drops ``B``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch.optim.optimizer import ParamsT

PathLike = str | os.PathLike[str]
"""A path, as text or as a path object."""

Device = torch.device | str
"""A PyTorch device or its name."""

Params = ParamsT
"""The argument of an optimizer: parameters, named parameters or parameter groups."""

Shape = tuple[int, ...]
"""A shape of any number of dimensions."""

Shape2d = tuple[int, int]
"""A spatial shape of two axes."""

Shape3d = tuple[int, int, int]
"""A spatial shape of three axes."""

Scalar = float | torch.Tensor
"""A number: a Python float or a zero-dimensional tensor, which is returned without a synchronisation."""

Metrics = Mapping[str, Scalar]
"""Numbers by name, of one step or one case."""
