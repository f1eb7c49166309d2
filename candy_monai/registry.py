"""Finds bundles: architectures with their trainer and predictor, ours and third parties', by entry point.

A bundle is an installed package's entry point in the group ``candy_monai.bundles`` that names a `Bundle`. Nothing is
imported by a name that stands in a stored file but through this list of what is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

from torch import nn

from candy_monai.errors import BadInputError, did_you_mean

GROUP = "candy_monai.bundles"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """One architecture, ready to train and to predict with.

    Attributes:
        name: Its entry point's name.
        build_network: Builds the network from what the trainer's ``network_arguments`` returned.
        trainer: The trainer's class, a `SegmentationTrainer`.
        predictor: The predictor's class.
    """

    name: str
    build_network: Callable[..., nn.Module]
    trainer: type[object]
    predictor: type[object]


def bundle_names() -> list[str]:
    """Return the names of all installed bundles, sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def find_bundle(name: str) -> Bundle:
    """Import the bundle of this name.

    Raises:
        BadInputError: If no such bundle is installed, or what is installed under this name is none.
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
