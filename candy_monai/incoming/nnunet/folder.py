"""The folder of a trained nnU-Net: the places of its files, and their content, read without executing code."""

from __future__ import annotations

import copy
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError, ExperimentError, did_you_mean, reason_in_short
from candy_monai.incoming.weights import NUMPY_NUMBERS, check_archive, problem_of_weights
from candy_monai.text import read_json

PLANS, DATASET = "plans.json", "dataset.json"
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
"""Configurations of nnU-Net's planners that use a single network; others of the same kind are supported as well."""

_CHECKPOINTS = {
    "best": ("checkpoint_final.pth", "checkpoint_best.pth"),
    "latest": ("checkpoint_latest.pth", "checkpoint_final.pth"),
}
_V1 = "plans.pkl"
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True, kw_only=True)
class NNUNetFolder:
    """The folder of one trained configuration, and those of its selected folds."""

    path: Path  # the folder ``TRAINER__PLANS__CONFIGURATION``
    folds: tuple[Path, ...]

    def checkpoints(self, name: str = "best") -> tuple[Path, ...]:
        """Return the weight file of each fold that has one; for names see `NNUNetPredictor`."""
        for wanted in _CHECKPOINTS.get(name, (name,)):
            files = tuple(fold / wanted for fold in self.folds if (fold / wanted).is_file())
            if files:
                return files
        there = sorted({file.name for fold in self.folds for file in fold.glob("*.pth")})
        found = f"found {', '.join(there)}" if there else "found no .pth file"
        expected = " or ".join(_CHECKPOINTS.get(name, (name,)))
        raise ExperimentError(f"{self.path}: no fold has {expected} ({found} in {_names(self.folds)})")

    def json(self, name: str) -> dict[str, Any]:
        """Read one of the folder's JSON files, which must contain an object; raise if it is missing or damaged."""
        path = self.path / name
        try:
            content = read_json(path)
        except (OSError, RecursionError, ValueError) as error:
            raise ExperimentError(f"{path}: not readable as JSON ({reason_in_short(error)})") from error
        if not isinstance(content, dict):
            raise ExperimentError(f"{path}: found a {type(content).__name__}, expected an object as nnU-Net writes it")
        return content


@dataclass(frozen=True, kw_only=True, eq=False)
class NNUNetCheckpoint:
    """The parts of one of nnU-Net's checkpoints that prediction needs."""

    path: Path
    weights: Mapping[str, Tensor]
    trainer: str  # the class's name
    configuration: str  # its name in the plans
    mirror_axes: tuple[int, ...]  # in the order of the network


def is_nnunet_folder(path: PathLike) -> bool:
    """Return whether a folder is one of nnU-Net: a configuration, a fold or a dataset with trained models; also v1."""
    path = Path(path)
    return bool(_models_at(path)) or any((place / _V1).is_file() for place in (path, path.parent))


def find_nnunet_folder(path: PathLike) -> NNUNetFolder:
    """Return the trained configuration in a folder, with its folds.

    The folder is that of a configuration; of one of its folds, which alone is then used; or of a dataset, if it
    contains only one configuration.
    """
    path = Path(path)
    models = _models_at(path)
    if not models:
        if any((place / _V1).is_file() for place in (path, path.parent)):
            raise ExperimentError(
                f"{path}: a model of nnU-Net v1 ({_V1}), whose files are pickles that run code when they are read; "
                "expected one of nnU-Net v2 (plans.json and fold_*/checkpoint_final.pth): train it again with v2"
            )
        raise ExperimentError(
            f"{path}: not a trained nnU-Net model; expected a folder such as nnUNetTrainer__nnUNetPlans__3d_fullres "
            f"with {PLANS}, {DATASET} and fold_0/checkpoint_final.pth"
        )
    if len(models) > 1:
        raise ExperimentError(
            f"{path}: {len(models)} trained configurations of nnU-Net ({', '.join(model.name for model in models)}); "
            "name one of them, or several one after the other to average them"
        )
    model = models[0]
    if model == path.parent:
        return NNUNetFolder(path=model, folds=(path,))
    numbered = sorted(
        (fold for fold in model.glob("fold_*") if fold.name[len("fold_") :].isdecimal()),
        key=lambda fold: int(fold.name[len("fold_") :]),
    )
    folds = tuple(numbered) or tuple(fold for fold in (model / "fold_all",) if fold.is_dir())
    if not folds:
        raise ExperimentError(f"{model}: has no folder of a fold; expected fold_0 to fold_4, or fold_all")
    return NNUNetFolder(path=model, folds=folds)


def resolved_configuration(plans: Mapping[str, Any], name: str, where: PathLike) -> dict[str, Any]:
    """Return a configuration of the plans, with the entries that it inherits from others."""
    all_of_them = plans.get("configurations")
    known: Mapping[str, Any] = all_of_them if isinstance(all_of_them, dict) else {}
    chain: list[str] = []
    while True:
        if not isinstance(known.get(name), dict):
            raise ExperimentError(
                f"{where}: found no configuration {name!r}, expected one of {', '.join(map(repr, known))}."
                f"{did_you_mean(name, known)}"
            )
        if name in chain:
            raise ExperimentError(f"{where}: configuration {name!r} inherits from itself; repair the file")
        chain.append(name)
        if (parent := known[name].get("inherits_from")) is None:
            break
        name = str(parent)
    merged: dict[str, Any] = {}
    for each in reversed(chain):
        merged.update(known[each])
    return copy.deepcopy(merged)


def read_checkpoint(path: Path) -> NNUNetCheckpoint:
    """Read one of nnU-Net's checkpoints onto the CPU; nothing in it is executed.

    Tensors stay in the file until they are used. Besides tensors and plain values, nnU-Net's files contain NumPy's
    numbers; only their constructors are allowed.
    """
    if not path.is_file():
        raise ExperimentError(f"{path}: no such checkpoint")
    if not zipfile.is_zipfile(path):
        raise ExperimentError(
            f"{path}: not a checkpoint of nnU-Net that can be read: it is not an archive that torch.save has written; "
            "it may be truncated or misnamed: copy it again"
        )
    try:
        check_archive(path)
        with torch.serialization.safe_globals(list(NUMPY_NUMBERS)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except BadInputError:
        raise
    except Exception as error:
        raise ExperimentError(
            f"{path}: not a checkpoint of nnU-Net that can be read: {_reason(error)}; expected only tensors, numbers "
            "and strings, since nothing else is read from the file"
        ) from error
    given: Mapping[str, Any] = content if isinstance(content, dict) else {}
    weights, arguments = given.get("network_weights"), given.get("init_args")
    axes = given.get("inference_allowed_mirroring_axes")
    is_right = {
        "network_weights": isinstance(weights, dict)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()),
        "init_args": isinstance(arguments, dict) and isinstance(arguments.get("configuration"), str),
        "inference_allowed_mirroring_axes": axes is None
        or (isinstance(axes, Sequence) and all(isinstance(axis, int) and 0 <= axis <= 2 for axis in axes)),
    }
    for name, right in is_right.items():
        if not right:
            found = repr(given[name])[:60] if name in given else f"entries {', '.join(map(str, given))[:200] or 'none'}"
            raise ExperimentError(f"{path}: not a checkpoint of nnU-Net: {name} is missing or damaged, found {found}")
    assert isinstance(weights, dict)
    for name, value in weights.items():
        if (problem := problem_of_weights(value)) is not None:
            raise ExperimentError(
                f"{path}: {name[:80]} {problem}, expected finite real numbers as of a trained network"
            )
    assert isinstance(arguments, dict)
    return NNUNetCheckpoint(
        path=path,
        weights={_without_wrappers(name): value for name, value in weights.items()},
        trainer=str(given.get("trainer_name")),
        configuration=arguments["configuration"],
        mirror_axes=tuple(axes or ()),
    )


def _models_at(path: Path) -> list[Path]:
    """Return the folders of trained configurations that a path refers to."""
    if (path / PLANS).is_file() and any(path.glob("fold_*")):
        return [path]
    if path.name.startswith("fold_") and (path.parent / PLANS).is_file():
        return [path.parent]
    return sorted(below for below in path.glob("*__*__*") if (below / PLANS).is_file())


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _reason(error: Exception) -> str:
    """Return what is wrong; for a refusal by PyTorch, only the name that was requested."""
    asked = re.search(r"GLOBAL (\S+)", str(error))
    return f"it asks for {asked[1]}" if asked else reason_in_short(error)


def _without_wrappers(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
