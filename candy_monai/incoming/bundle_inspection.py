"""List what a MONAI Bundle names, and check whether it opens without running its Python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.data.pipelines.building import FUNCTIONS, transform_class
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.description import as_json
from candy_monai.incoming.bundle_config import BundleConfig
from candy_monai.incoming.bundle_preprocessing import LEFT_OUT, known_target
from candy_monai.incoming.monai_bundle import BundlePredictor, network_name
from candy_monai.incoming.nnunet import NNUNET_NETWORKS
from candy_monai.incoming.weights import weights_file_of
from candy_monai.registry import carried_network

_USED = ("network_def", "preprocessing", "pre_transforms", "inferer", "postprocessing", "post_transforms")
_LONGEST = 100
_MOST_LISTED = 40


@dataclass(frozen=True, kw_only=True)
class BundleInspection:
    """The content of a bundle.

    Attributes:
        folder: The bundle.
        metadata: The content of its ``metadata.json``.
        weights: Its file of weights; None without a readable one.
        targets: The class at each place of the configuration, for the parts that prediction uses.
        unused: The same for all other parts, which are never built here.
        expressions: Python expressions by their places. None of them is run without trust.
        problem: Why it does not open without trust; None if it does.
    """

    folder: Path
    metadata: Mapping[str, Any]
    weights: Path | None
    targets: Mapping[str, str]
    unused: Mapping[str, str]
    expressions: Mapping[str, str]
    problem: str | None

    def to_json(self) -> str:
        """Return all of it as a JSON object."""
        return json.dumps(as_json(vars(self)))

    def __str__(self) -> str:
        said = [str(self.metadata[key]) for key in ("name", "version", "task") if self.metadata.get(key)]
        lines = [f"MONAI Bundle {self.folder}" + (f": {', '.join(said)}" if said else "")]
        lines.append(f"  weights: {self.weights or 'none that can be read'}")
        lines += _listed("used for prediction", self.targets)
        lines += _listed("also named, but not used for prediction", self.unused)
        lines += _listed("Python code, run only with --trust", self.expressions)
        lines.append(
            "It can be used for prediction without running its Python code."
            if self.problem is None
            else f"It cannot be used for prediction as it is: {self.problem}"
        )
        return "\n".join(lines)


_KNOWN = ("monai.inferers.", "scripts.inferers.", "scripts.ensemble.", "scripts.nnunet.", NNUNET_NETWORKS)


def inspect_bundle(path: PathLike) -> BundleInspection:
    """Return what a bundle names, without running it or building anything unknown.

    Args:
        path: The bundle's folder.

    Raises:
        BadInputError: If it is not a bundle, or its configuration cannot be read.
    """
    config = BundleConfig(path)
    places = dict(_places(config.content))
    targets = {place: text for place, (kind, text) in places.items() if kind == "_target_"}
    used = {place: _marked(text) for place, text in targets.items() if place.split("#")[0] in _USED}
    try:
        weights: Path | None = weights_file_of(path)
    except BadInputError:
        weights = None
    problem = None
    try:
        BundlePredictor(path)
    except BadInputError as error:
        problem = str(error)
    return BundleInspection(
        folder=config.folder,
        metadata=config.metadata,
        weights=weights,
        targets=used,
        unused={place: text for place, text in targets.items() if place not in used},
        expressions={place: text for place, (kind, text) in places.items() if kind == "$"},
        problem=problem,
    )


def _places(value: object, place: str = "") -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the targets and the expressions in a configuration with their places."""
    if isinstance(value, Mapping):
        if isinstance(value.get("_target_"), str):
            yield place, ("_target_", value["_target_"])
        for key, part in value.items():
            if key != "_target_":
                yield from _places(part, f"{place}#{key}" if place else str(key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _places(part, f"{place}#{index}")
    elif isinstance(value, str) and value[:1] == "$":
        yield place, ("$", value)


def _marked(target: str) -> str:
    if network_name(target) is not None or target.startswith(_KNOWN) or carried_network(target) is not None:
        return target
    name = target.rpartition(".")[2]
    if name in LEFT_OUT:
        return f"{target} (done by candy_monai's own reading and writing)"
    if target in FUNCTIONS:
        return target
    if name == target and name.endswith("Inferer"):
        return target
    try:
        transform_class(known_target(target), "")
    except SettingsError:
        return f"{target} (not known: built only if the bundle is trusted)"
    return target


def _listed(title: str, entries: Mapping[str, str]) -> list[str]:
    if not entries:
        return []
    shown = [
        f"    {place}: {' '.join(text.split())[:_LONGEST]}" for place, text in list(entries.items())[:_MOST_LISTED]
    ]
    more = [f"    and {len(entries) - _MOST_LISTED} more"] if len(entries) > _MOST_LISTED else []
    return [f"  {title}:", *shown, *more]
