"""Read weights saved by others without executing code in the file, and fit them to a network by name and shape."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.serialization import safe_globals

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError, ExperimentError, reason_in_short
from candy_monai.experiment.checkpoints import BEST, EXTRA_STATE
from candy_monai.experiment.description import DESCRIPTION
from candy_monai.experiment.runs import what_is_below
from candy_monai.experiment.state import weight_file
from candy_monai.nn.previous_stage import WithPreviousStage
from candy_monai.nn.slicewise import Slicewise
from candy_monai.optional import require

WRAPPERS = ("network_weights", "state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Keys under which libraries store a network's state_dict next to those of an optimizer and others."""

_MOST_PREFIXES = 4
_DEEPEST = 4  # nested wrappers around a state_dict; one may contain itself
_MOST_LISTED = 8
_MODELS = ("models/model.pt", "models/model.pth")
_NNUNET = ("fold_0", "fold_all")
_NNUNET_FILES = ("checkpoint_final.pth", "checkpoint_best.pth")
_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_LARGEST_EXPANSION = 4  # of an unpacked archive: tensors are stored uncompressed
_NUMBERS = (np.bool_, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64)
_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS: tuple[Any, ...] = (
    *((_SCALAR, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(number)) for number in _NUMBERS),
)
"""Callables in a pickle of NumPy's numbers, which nnU-Net and others store with the weights: each builds a number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignWeights:
    """Tensors by name, from a file that may be written by others."""

    file: Path
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """The result of loading weights into a network: the names of tensors."""

    file: Path
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]  # of the loaded, with input channels repeated or averaged, as ``name: shape -> shape``
    mismatched: tuple[str, ...]  # as ``name: shape in the file -> the network's``; initialised randomly
    missing: tuple[str, ...]  # in the file; initialised randomly
    skipped: tuple[str, ...]  # not in the network

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.mismatched) + len(self.missing)
        parts = [f"{len(self.loaded)} of the network's {total} tensors loaded"]
        if self.adapted:
            parts.append(f"of which {len(self.adapted)} fitted to the number of channels")
        parts += [
            f"{len(names)} {what}"
            for names, what in (
                (self.mismatched, "of other shapes randomly initialised"),
                (self.missing, "missing in the file randomly initialised"),
                (self.skipped, "of the file not used"),
            )
            if names
        ]
        return f"Starting from {self.file}: {', '.join(parts)}"

    def details(self) -> str:
        """Return the names of all tensors that were not loaded unchanged, one list per line; empty without any."""
        lists = {
            "fitted to the number of channels": self.adapted,
            "of other shapes (file -> network)": self.mismatched,
            "missing in the file": self.missing,
            "in the file but not used": self.skipped,
        }
        return "\n".join(f"Starting weights, {what}: {', '.join(names)}" for what, names in lists.items() if names)


def read_weights(source: PathLike) -> ForeignWeights:
    """Read the weights of an experiment, a file, a MONAI Bundle or an nnU-Net model folder onto the CPU.

    Nothing in a file is executed: anything but tensors and plain values is refused. Of an experiment these are its best
    weights, of a bundle its ``models/model.pt``, of an nnU-Net folder those of its first fold; a file, written by
    ``torch.save`` or safetensors, holds a state_dict or a dictionary that contains one.
    """
    file = weights_file_of(source)
    if file.suffix.casefold() == ".safetensors":
        content: object = _read_safetensors(file)
    else:
        content = read_checkpoint(file)
    return ForeignWeights(file=file, tensors=_state_dict_in(content, file))


def weights_file_of(source: PathLike) -> Path:
    """Return the file of weights that a path refers to; raise if it refers to none."""
    path = Path(source)
    if path.is_file():
        return path
    if not path.exists():
        raise BadInputError(f"{path}: there is no such file or folder; expected {_EXPECTED}")
    if (path / DESCRIPTION).is_file():
        file = path / BEST if (path / BEST).is_file() else weight_file(path, BEST)
        if not file.is_file():
            raise ExperimentError(f"{path}: has no weights yet ({BEST}); name a weight file in it")
        return file
    candidates = [path / name for name in _MODELS]
    candidates += [path / fold / name for fold in _NNUNET for name in _NNUNET_FILES]
    found = next((file for file in candidates if file.is_file()), None)
    if found is not None:
        return found
    if (path / "models" / "model.ts").is_file():
        raise BadInputError(
            f"{path}: holds its weights as a TorchScript program only (models/model.ts), which is not read: expected "
            "models/model.pt, a state_dict"
        )
    raise BadInputError(f"{path}: holds no weights; expected {_EXPECTED}{what_is_below(path)}")


_EXPECTED = (
    f"an experiment's folder, a file of weights ({', '.join(_SUFFIXES)}), the folder of a MONAI Bundle with "
    "models/model.pt, or that of an nnU-Net model"
)


def read_checkpoint(file: Path) -> Any:
    """Read a file written by ``torch.save`` onto the CPU: only tensors, plain values and NumPy's numbers.

    Nothing else in it is executed: it is refused, as are a damaged file and one that would expand when unpacked.
    """
    try:
        if zipfile.is_zipfile(file):
            check_archive(file)
        with safe_globals(list(NUMPY_NUMBERS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's version, if it is refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except BadInputError:
        raise
    except Exception as error:  # unpickling unknown bytes may raise anything
        told = str(error).rpartition("WeightsUnpickler error:")[2] or str(error)  # the advice before it does not help
        if (named := re.search(r"GLOBAL (\S+)", told)) is not None:
            raise BadInputError(
                f"{file}: contains the Python object {named[1]}, expected only tensors; nothing in it was executed. "
                "Save only the network's state_dict: torch.save(network.state_dict(), file)"
            ) from None
        reason = reason_in_short(error)
        if isinstance(error, pickle.UnpicklingError):
            reason = reason_in_short(type(error)(told.strip()))
        if not zipfile.is_zipfile(file) and not _is_pickle(file):  # the reader fails on these in many ways
            reason = f"it begins with {_beginning(file)}, as neither an archive nor a pickle does"
        raise BadInputError(
            f"{file}: not a readable file of weights ({reason}); expected what "
            "torch.save(network.state_dict(), file) writes"
        ) from None


def _beginning(file: Path) -> str:
    with file.open("rb") as opened:
        return repr(opened.read(12))


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(1) == pickle.PROTO  # in every protocol that torch.save has used


def check_archive(file: Path) -> None:
    """Check that an archive holds no program, does not expand and is unchanged, which ``torch.load`` does not do."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("constants.pkl") or "/code/" in entry.filename for entry in entries):
            raise BadInputError(
                f"{file}: is a TorchScript program, which is not run; expected a state_dict, as a bundle has it in "
                "models/model.pt"
            )
        unpacked, packed = sum(entry.file_size for entry in entries), file.stat().st_size
        if unpacked > _LARGEST_EXPANSION * packed + (1 << 20):
            raise BadInputError(
                f"{file}: would unpack from {packed:,} to {unpacked:,} bytes, which no file of weights does; it was "
                "not read"
            )
        if (damaged := archive.testzip()) is not None:
            raise BadInputError(
                f"{file}: damaged, its part {damaged!r} has another checksum than when it was written: copy it again"
            )


def _read_safetensors(file: Path) -> object:
    package = require("safetensors.torch", extra="safetensors", purpose="read .safetensors files")
    try:
        return package.load_file(file)
    except Exception as error:
        raise BadInputError(f"{file}: not a readable file of weights ({reason_in_short(error)})") from None


def _state_dict_in(content: object, file: Path) -> dict[str, Tensor]:
    """Return the tensors of a state_dict, or of the one in a dictionary."""
    for found in _candidates(content):
        tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
        if tensors:
            weights = {name: value for name, value in tensors.items() if not name.endswith(EXTRA_STATE)}
            for name, value in weights.items():
                if (problem := problem_of_weights(value)) is not None:
                    raise BadInputError(
                        f"{file}: {name[:80]} {problem}, expected finite real numbers as of a trained network"
                    )
            return weights
    kind = (
        f"a dictionary of {_listed(list(map(str, content)))}"
        if isinstance(content, Mapping)
        else type(content).__name__
    )
    raise BadInputError(
        f"{file}: holds no weights, found {kind}; expected tensors by name, at the top or under one of "
        f"{', '.join(WRAPPERS)}"
    )


def problem_of_weights(value: Tensor) -> str | None:
    """Return why a tensor cannot be a weight of a trained network; None if it can."""
    if value.is_nested or value.is_quantized or value.layout is not torch.strided or value.is_meta:
        return "is not a dense tensor with values"
    if value.is_complex():
        return "holds complex numbers"
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        return "holds NaN or infinite numbers"
    return None


def _candidates(content: object, *, depth: int = 0) -> Iterator[Mapping[Any, Any]]:
    if not isinstance(content, Mapping):
        return
    for key in WRAPPERS if depth < _DEEPEST else ():
        if isinstance(content.get(key), Mapping):
            yield from _candidates(content[key], depth=depth + 1)
    yield content


def load_into(network: nn.Module, weights: ForeignWeights, *, num_channels: int) -> WeightsReport:
    """Load weights into a network where name and shape fit, unless none does; the rest of the network is unchanged.

    Prefixes that wrappers add to all names, such as ``module.``, are removed. If images have another number of
    channels, the weights of the layers that read them are repeated, or averaged, so that an image of equal channels
    leads to the same activations. For a 2-D network that is applied to slices, the network inside is loaded.
    """
    target = network.network if isinstance(network, Slicewise | WithPreviousStage) else network
    state = {name: value for name, value in target.state_dict().items() if isinstance(value, Tensor)}
    source = _without_prefixes(weights.tensors, state)
    inputs = _reading_images(target, num_channels)
    taken: dict[str, Tensor] = {}
    adapted, mismatched = [], []
    for name in [name for name in state if name in source]:
        theirs, ours = source[name], state[name]
        shapes = f"{name}: {_shape(theirs)} -> {_shape(ours)}"
        if is_lazy(ours) or theirs.shape == ours.shape:
            taken[name] = theirs
        elif name in inputs and _differs_in_channels_only(theirs, ours):
            taken[name] = with_channels(theirs, ours.shape[1])
            adapted.append(shapes)
        else:
            mismatched.append(shapes)
    if not any(name in taken for name, _ in target.named_parameters(remove_duplicate=False)):
        raise BadInputError(
            f"{weights.file}: nothing in it fits this {type(target).__name__}. Names in the file begin with: "
            f"{_beginnings(source)}. The network's begin with: {_beginnings(state)}. Start from weights of the same "
            "architecture (--bundle), or leave out init_from (--init-from)"
        )
    with torch.no_grad():
        for name, value in taken.items():
            state[name].copy_(value)
    return WeightsReport(
        file=weights.file,
        loaded=tuple(taken),
        adapted=tuple(adapted),
        mismatched=tuple(mismatched),
        missing=tuple(name for name in state if name not in source),
        skipped=tuple(name for name in source if name not in state),
    )


def load_whole(network: nn.Module, weights: ForeignWeights) -> None:
    """Load weights completely into the network that they belong to; raise if any name or shape differs."""
    source = _without_prefixes(weights.tensors, network.state_dict())
    try:
        network.load_state_dict(source)
    except RuntimeError as error:
        first = [line.strip() for line in str(error).splitlines()[1:3]] or [str(error)]
        raise BadInputError(
            f"{weights.file}: does not fit the network {type(network).__name__}: {' '.join(first)[:300]}"
        ) from error


def with_channels(weight: Tensor, num_channels: int) -> Tensor:
    """Return weights ``(out, in, *kernel)`` for another number of image channels: repeated, or else averaged.

    An image whose channels are all equal leads to the same activations before and after.
    """
    before = weight.shape[1]
    if num_channels < before:
        return weight.sum(1, keepdim=True).div(num_channels).repeat_interleave(num_channels, dim=1)
    origin = [channel % before for channel in range(num_channels)]
    copies = Counter(origin)
    share = torch.tensor([1 / copies[channel] for channel in origin], dtype=weight.dtype)
    return weight[:, origin] * share.reshape(-1, *[1] * (weight.ndim - 2))


def _reading_images(network: nn.Module, num_channels: int) -> set[str]:
    """Return the names of the weights of convolutions with as many input channels as an image has."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{name}.weight" if name else "weight"
        for name, layer in network.named_modules(remove_duplicate=False)
        if isinstance(layer, kinds) and layer.in_channels == num_channels and layer.groups == 1
    }


def _differs_in_channels_only(theirs: Tensor, ours: Tensor) -> bool:
    same_kernel = theirs.ndim == ours.ndim and theirs.shape[2:] == ours.shape[2:]
    return same_kernel and theirs.shape[0] == ours.shape[0] and theirs.shape[1] > 0


def _without_prefixes(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the leading parts that all their names share, if more of them fit without."""
    best = found = dict(tensors)
    for _ in range(_MOST_PREFIXES):
        parts = {name.partition(".")[0] for name in found}
        if len(parts) != 1 or not all("." in name for name in found):
            break
        found = {name.partition(".")[2]: value for name, value in found.items()}
        if len(found.keys() & state.keys()) > len(best.keys() & state.keys()):
            best = found
    return best


def _beginnings(names: Mapping[str, Tensor]) -> str:
    return _listed([f"{name} {_shape(value)}" for name, value in names.items()])


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(name[:80] for name in names[:_MOST_LISTED]) + more if names else "(none)"


def _shape(tensor: Tensor) -> str:
    return "?" if is_lazy(tensor) else "x".join(map(str, tensor.shape)) or "scalar"
