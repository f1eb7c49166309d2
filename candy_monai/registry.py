"""Find bundles (architectures with their trainer and predictor) by entry point, and classes in the user's own files.

A bundle is an entry point of an installed package in the group ``candy_monai.bundles`` that refers to a `Bundle`. Names
in stored files are imported only if they are in this list of installed bundles.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from candy_monai.errors import BadInputError, did_you_mean

GROUP = "candy_monai.bundles"
SCRIPTS = "scripts"
"""The folder of a MONAI Bundle's own modules."""
_NAME = "_bundle"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An architecture with its trainer and predictor.

    Attributes:
        name: The name of its entry point, which is also stored in the trainer's class.
        build_network: Builds the network from the result of the trainer's ``network_arguments``.
        trainer: The trainer's class, a `SegmentationTrainer`.
        predictor: The predictor's class, a `Predictor`; None for `Predictor` itself.
        networks: Classes of networks that MONAI lacks, for inclusion in MONAI Bundles. Each is in a module that imports
            only PyTorch, MONAI, NumPy and SciPy, and is built from plain values.
    """

    name: str
    build_network: Callable[..., nn.Module]
    trainer: type[object]
    predictor: type[object] | None = None
    networks: tuple[type[nn.Module], ...] = ()

    def __post_init__(self) -> None:
        if bundle_name(self.trainer) is None:
            setattr(self.trainer, _NAME, self.name)  # trainers are in a higher layer


def bundle_name(trainer: type) -> str | None:
    """Return the name of the bundle whose trainer is this class; None for other classes, including its subclasses."""
    name = vars(trainer).get(_NAME, vars(trainer).get("bundle"))
    return name if isinstance(name, str) else None


@runtime_checkable
class ChoosesNetwork(Protocol):
    """A trainer's class whose network has options, and which adapts plans to it, as those of bundles do.

    Attributes:
        network_options: Names of the attributes that determine the network, such as ``size``.
    """

    network_options: tuple[str, ...]

    def with_network(self, options: Mapping[str, object]) -> Any:
        """Return the class with these attributes set; raise SettingsError if there is no such network."""

    def adapt_plan(self, plan: Any) -> Any:
        """Return the plan adapted to the network; raise BadInputError if the network cannot follow it."""


def choice_of_network(trainer: object) -> ChoosesNetwork | None:
    """Return a trainer's class if its network has options; None for one that builds its network itself."""
    return trainer if isinstance(trainer, ChoosesNetwork) else None


def bundle_of_network(trainer: type) -> str | None:
    """Return the bundle that builds the network of a trainer's class; None if the class or a base builds its own."""
    decides = (cls for cls in trainer.__mro__ if bundle_name(cls) or "build_network" in vars(cls))
    return bundle_name(next(decides, trainer))


def bundle_names() -> list[str]:
    """Return the names of all installed bundles, sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def find_bundle(name: str) -> Bundle:
    """Import the bundle of this name.

    Raises:
        BadInputError: If no such bundle is installed, or the entry point of this name is not a bundle.
    """
    names = bundle_names()
    if name not in names:
        known = ", ".join(names) or "none"
        raise BadInputError(f"no bundle {name!r} is installed.{did_you_mean(name, names)} Installed: {known}")
    (entry, *_) = (entry for entry in entry_points(group=GROUP) if entry.name == name)
    bundle = entry.load()
    if not isinstance(bundle, Bundle):
        raise BadInputError(f"the entry point {name!r} of {GROUP} names a {type(bundle).__name__}, expected a Bundle")
    return bundle


def name_in_scripts(network: type[nn.Module]) -> str:
    """Return the name of a network's class in a MONAI Bundle that contains its module."""
    return f"{SCRIPTS}.{network.__module__.rpartition('.')[2]}.{network.__name__}"


def carried_network(name: object) -> type[nn.Module] | None:
    """Return the class of an installed bundle that has this name in a MONAI Bundle; None if there is none."""
    if not str(name).startswith(f"{SCRIPTS}."):
        return None
    known = (network for bundle in bundle_names() for network in find_bundle(bundle).networks)
    return next((network for network in known if name_in_scripts(network) == name), None)


def class_from_file(where: str, *, option: str) -> object:
    """Execute a Python file of the user and return the object of a given name, ``FILE:Class``.

    As for a script, modules in the file's folder can be imported. ``option`` has this value, for messages.

    Raises:
        BadInputError: If there is no such file, or it defines no such name.
    """
    file, _, name = where.rpartition(":")
    path = Path(file)
    if not file or not path.is_file():
        raise BadInputError(f"{option} {where}: expected FILE:Class, but {file or where!r} is not a file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BadInputError(f"{option} {where}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    if (beside := str(path.resolve().parent)) not in sys.path:
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        error.add_note(f"Raised when {path} was executed ({option} {where})")
        raise
    if not hasattr(module, name):
        raise BadInputError(f"{option} {where}: {path} does not define {name!r}")
    found: object = getattr(module, name)
    return found
