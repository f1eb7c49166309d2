"""``experiment.json``: the description of a run, from which its network and its data can be built again."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, Literal, Self

from candy_monai.aliases import PathLike, Shape
from candy_monai.errors import ExperimentError
from candy_monai.files import atomic_write_text
from candy_monai.text import read_json

DESCRIPTION = "experiment.json"
FORMAT = 2
READABLE_FORMATS = (1, 2)
"""Format 1 differs in ``state.pt`` only, which cannot be continued from."""

PLAN: Literal["plan"] = "plan"
CUSTOM: Literal["custom"] = "custom"
InfererDescription = Literal["plan", "custom"] | dict[str, object] | None
"""The plan's inferer, one whose arguments are no plain data, one in MONAI's configuration language; None for whole
images."""

SLURM_JOB = "slurm_job"
"""The entry of ``experiment.json`` with the SLURM job that started a run, by which the job finds it again."""

PREVIOUS = "previous"
"""The entry with the first stage of a cascade: its ``folder``, and the digest of its ``weights``."""

_ABOUT_THE_RUN = ("format", "id", "settings", "environment", "score_range", "budget", SLURM_JOB)
_PLACES = ("folder", "store")
_TRANSFORMS, _LABELS = "transforms", "labels"
_LONGEST = 80
_LARGEST_SIZE = 1 << 20  # of a network's example along an axis


def _is(*kinds: type, read: Callable[[Any], object] | None = None) -> dict[str, object]:
    """Return of an entry the types that it may have in JSON, None apart, and what makes a value of it."""
    return {"kinds": kinds, "read": read}


def _texts(entries: Sequence[object]) -> tuple[object, ...]:
    if not all(isinstance(entry, str) for entry in entries):
        raise ValueError("expected strings")
    return tuple(entries)


def _shape(sizes: Sequence[object]) -> Shape | None:
    if not all(isinstance(size, int) and 0 < size <= _LARGEST_SIZE for size in sizes):
        raise ValueError(f"expected whole numbers of 1 to {_LARGEST_SIZE}")
    return tuple(sizes) or None  # type: ignore[arg-type]  # whole numbers, as was seen


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Entries of ``experiment.json`` by name; unknown entries are kept."""

    more: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Check the entries' types and return the record.

        Raises:
            ExperimentError: If an entry is of another type than expected.
        """
        known, more = {}, dict(content)
        for entry in dataclasses.fields(cls):
            if not entry.metadata or (value := more.pop(entry.name, None)) is None:
                continue
            kinds = entry.metadata["kinds"]
            if not isinstance(value, kinds) or (isinstance(value, bool) and kinds == (int,)):
                expected = " or ".join(kind.__name__ for kind in kinds)
                raise ExperimentError(f"{entry.name} is {_short(value)}, expected {expected}")
            read = entry.metadata["read"]
            try:
                known[entry.name] = value if read is None else read(value)
            except ExperimentError as error:  # of the record in it
                raise ExperimentError(f"{entry.name}.{error}") from None
            except (TypeError, ValueError) as error:
                raise ExperimentError(f"{entry.name} is {_short(value)}: {error}") from error
        return cls(**known, more=more)

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `from_dict` reads; None for missing ones."""
        entries = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self) if entry.metadata}
        written = {name: v.to_dict() if isinstance(v, _Record) else v for name, v in entries.items()}
        return {**written, **self.more}


@dataclass(frozen=True, kw_only=True)
class NetworkRecord(_Record):
    """The description of a run's network, to build it again.

    Attributes:
        example_shape: The shape ``(C, *spatial)`` that it was built for.
        arguments: The return value of the trainer's ``network_arguments``.
        slice_axis: The axis across the slices that a 2-D network is applied to; None for any other network.
    """

    example_shape: Shape | None = field(default=None, metadata=_is(list, tuple, read=_shape))
    arguments: dict[str, Any] | None = field(default=None, metadata=_is(dict))
    slice_axis: int | None = field(default=None, metadata=_is(int))


@dataclass(frozen=True, kw_only=True)
class DatasetRecord(_Record):
    """The dataset of a planned run, and the cases of both sides.

    Attributes:
        name: The dataset's name.
        folder: The path of the dataset.
        store: The path of the preprocessed cases.
        digest: The digest of the dataset's content.
        channel_names: The channels of an image.
        labels: Ids by the name of the class or region.
        file_ending: The file name ending of images and label maps.
        training: Ids of the training cases.
        validation: Ids of the validation cases.
        num_scored: Number of validation cases that are scored at the end; None for all.
        store_precision: The data type of the stored images; None for ``float32``.
    """

    name: str | None = field(default=None, metadata=_is(str))
    folder: str | None = field(default=None, metadata=_is(str))
    store: str | None = field(default=None, metadata=_is(str))
    digest: str | None = field(default=None, metadata=_is(str))
    channel_names: tuple[str, ...] | None = field(default=None, metadata=_is(list, tuple, read=_texts))
    labels: Mapping[str, Any] | None = field(default=None, metadata=_is(dict))
    file_ending: str | None = field(default=None, metadata=_is(str))
    training: tuple[str, ...] | None = field(default=None, metadata=_is(list, tuple, read=_texts))
    validation: tuple[str, ...] | None = field(default=None, metadata=_is(list, tuple, read=_texts))
    num_scored: int | None = field(default=None, metadata=_is(int))
    store_precision: str | None = field(default=None, metadata=_is(str))


def _objects(entries: Sequence[object]) -> tuple[object, ...]:
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError("expected objects")
    return tuple(entries)


@dataclass(frozen=True, kw_only=True)
class BudgetRecord(_Record):
    """The use of a time budget.

    Attributes:
        budget_s: The budget in seconds.
        usable_s: The part of it that was left for training and for validation during training.
        amp: The precision that was asked for or measured to be fastest; None for float32.
        candidates: The candidates, the chosen one first: ``configuration``, ``patch_shape``, ``batch_size``,
            ``filters`` (None if the plan does not set the width of the network), ``step_s``, ``num_steps`` that fit
            into the time, whether the step ``is_measured`` or predicted, whether it ``is_chosen``, and the ``verdict``.
    """

    budget_s: float | None = field(default=None, metadata=_is(int, float))
    usable_s: float | None = field(default=None, metadata=_is(int, float))
    amp: str | None = field(default=None, metadata=_is(str))
    candidates: tuple[Mapping[str, Any], ...] | None = field(default=None, metadata=_is(list, tuple, read=_objects))


def _in_present_words(inferer: Any) -> Any:
    """Return the description of an inferer in the present format, whichever version wrote it."""
    if not (isinstance(inferer, dict) and inferer.get("kind") == "windows"):
        return inferer
    renamed = {"window_shape": "roi_size", "batch_size": "sw_batch_size", "overlap": "overlap"}
    given = {new: inferer.get(earlier) for earlier, new in renamed.items()}
    defaults = {"sw_batch_size": None, "overlap": 0.5}
    return {
        "_target_": "candy_monai.WindowInferer",
        **{name: value for name, value in given.items() if name not in defaults or value != defaults[name]},
    }


def _regions(entries: Sequence[object]) -> Sequence[object]:
    if not all(isinstance(entry, Mapping) and isinstance(entry.get("paints"), int) for entry in entries):
        raise ValueError("expected objects with a label id under 'paints'")
    return entries


@dataclass(frozen=True, kw_only=True)
class ExperimentDescription(_Record):
    """The content of ``experiment.json``.

    Attributes:
        format: The format version of the experiment folder.
        id: The id of the run, which is the name of its folder.
        trainer: The trainer's class name.
        host: The library whose loop trains; None for a trainer of candy_monai.
        bundle: The bundle that builds the network again; None for the user's own trainer.
        padding: The padding module, described by ``padding_to_dict``.
        score_range: The smallest and the largest validation score; None if unknown.
        processes: Number of training processes.
        data: The number of samples and the cases of the loaders, the names of their transforms, and their labels.
        parts: Descriptions of network, optimizer, schedule, criterion and data; None in runs of earlier versions.
        network: How to build the network again.
        num_classes: Number of classes, including the background, 1 for a single logit; None if unknown.
        regions: The overlapping regions that are predicted, each with the id that it ``paints``.
        inferer: The inferer for whole cases.
        plan: The plan, written by `Plan.to_dict`; None without one.
        pipelines: Preprocessing, augmentation and postprocessing; None without a plan and in runs of earlier versions.
        dataset: The dataset of a planned run; None for a run that was started from Python.
        budget: The use of a budget; None without one.
        settings: What ``train`` was told.
        environment: Versions of the packages that the run depends on.
        more: Further entries from the trainer.
    """

    format: int = field(default=FORMAT, metadata=_is(object))
    id: str | None = field(default=None, metadata=_is(str))
    trainer: str | None = field(default=None, metadata=_is(str))
    host: str | None = field(default=None, metadata=_is(str))
    bundle: str | None = field(default=None, metadata=_is(str))
    padding: Mapping[str, object] | None = field(default=None, metadata=_is(dict))
    score_range: Sequence[float | None] | None = field(default=None, metadata=_is(list, tuple))
    processes: object = field(default=None, metadata=_is(object))
    data: object = field(default=None, metadata=_is(object))
    parts: object = field(default=None, metadata=_is(object))
    network: NetworkRecord = field(default=NetworkRecord(), metadata=_is(dict, read=NetworkRecord.from_dict))
    num_classes: int | None = field(default=None, metadata=_is(int))
    regions: Sequence[Mapping[str, Any]] | None = field(default=None, metadata=_is(list, tuple, read=_regions))
    inferer: InfererDescription = field(default=None, metadata=_is(str, dict, read=_in_present_words))
    plan: dict[str, Any] | None = field(default=None, metadata=_is(dict))
    pipelines: object = field(default=None, metadata=_is(object))
    dataset: DatasetRecord | None = field(default=None, metadata=_is(dict, read=DatasetRecord.from_dict))
    budget: BudgetRecord | None = field(default=None, metadata=_is(dict, read=BudgetRecord.from_dict))
    settings: Mapping[str, Any] | None = field(default=None, metadata=_is(dict))
    environment: object = field(default=None, metadata=_is(object))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Check the format and the entries' types and return the record.

        Raises:
            ExperimentError: If the format is not known, or an entry is of another type than expected.
        """
        if (found := content.get("format")) not in READABLE_FORMATS:
            raise ExperimentError(f"format {found!r}, this version reads formats {READABLE_FORMATS}")
        if content.get("plan") is not None:  # null would stand for whole images, a missing entry does not
            content = {"inferer": PLAN, **content}
        return super().from_dict(content)

    def setting(self, name: str) -> Any:
        """Return an argument of ``train``; None if it is unknown."""
        return (self.settings or {}).get(name)

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the plan's classes or regions, including the background; empty if unknown."""
        names = (self.plan or {}).get("class_names")
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    def differences(self, present: ExperimentDescription) -> list[str]:
        """List the differences from a new description, each as ``name: saved -> present``.

        Entries about the run itself and the paths of the data are not compared; the data are compared by their digest.
        """
        before, now = self._what_was_trained(), present._what_was_trained()
        for name in ("parts", "pipelines"):
            if before[name] is None:  # written down by later versions only
                now[name] = None
        if self.inferer == CUSTOM:  # which one it was, earlier versions did not write down
            now["inferer"] = CUSTOM
        return differences(before, now)

    def refuse_differences(self, present: ExperimentDescription, folder: Path, *, how: str) -> None:
        """Raise if the description of a new run differs from this one.

        The folder, and ``how`` to continue the run nevertheless, are for the message.

        Raises:
            ExperimentError: With all differences.
        """
        if found := self.differences(present):
            lines = "".join(f"\n  - {line}" for line in found)
            raise ExperimentError(
                f"{folder}: the training to continue differs from the saved one (saved -> present):{lines}\nmake both "
                f"the same, or continue anyway with {how}"
            )

    def _what_was_trained(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.to_dict().items() if name not in _ABOUT_THE_RUN}
        if self.plan is not None:
            kept["plan"] = {"resampling": "extent", **self.plan}  # earlier versions knew no other
        if self.dataset is not None:
            kept["dataset"] = {name: value for name, value in kept["dataset"].items() if name not in _PLACES}
        if isinstance(previous := kept.get(PREVIOUS), Mapping):
            kept[PREVIOUS] = {name: value for name, value in previous.items() if name not in _PLACES}
        if isinstance(self.data, Mapping):
            kept["data"] = {side: _compared(loader) for side, loader in self.data.items()}
        return kept

    def labels_of_data(self) -> dict[str, int]:
        """Return the ids of the classes by the names of the dataset that a script trained on; empty if unknown.

        They are unknown if their number is not that of the classes: the script may have merged some.
        """
        labels = self._of_loader("training", _LABELS)
        if not isinstance(labels, Mapping) or not all(isinstance(value, int) for value in labels.values()):
            return {}
        return dict(labels) if len(labels) == max(2, self.num_classes or 0) else {}

    def unknown_transforms(self) -> tuple[str, ...]:
        """Return the transforms of the validation images in a run without a plan, which prediction does not apply."""
        names = self._of_loader("validation", _TRANSFORMS) if self.plan is None else None
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    def _of_loader(self, side: str, name: str) -> object:
        loader = self.data.get(side) if isinstance(self.data, Mapping) else None
        return loader.get(name) if isinstance(loader, Mapping) else None


def _compared(loader: object) -> object:
    """Return what is compared of a loader: all but its labels and transforms, which earlier versions did not write."""
    if not isinstance(loader, Mapping):
        return loader
    return {name: value for name, value in loader.items() if name not in (_LABELS, _TRANSFORMS)}


def describe_trainer(trainer: str, entries: Mapping[str, object]) -> ExperimentDescription:
    """Return the description of a new run.

    Raises:
        ExperimentError: If an entry of the user's own has the name of another and is of another type.
    """
    try:
        return ExperimentDescription.from_dict(as_json({"format": FORMAT, "trainer": trainer, **entries}))
    except ExperimentError as error:
        raise ExperimentError(
            f"{DESCRIPTION} with the entries that {trainer} adds: {error}; rename your own entry"
        ) from None


def example_shape(folder: PathLike, description: ExperimentDescription) -> Shape:
    """Return the shape ``(C, *spatial)`` that a run's network was built for.

    Raises:
        ExperimentError: If it is unknown.
    """
    if description.network.example_shape is None:
        raise ExperimentError(f"{folder}: {DESCRIPTION} does not say the shape the network was built for")
    return description.network.example_shape


def read_description(folder: PathLike) -> ExperimentDescription:
    """Read ``experiment.json``.

    Raises:
        ExperimentError: If the folder is not an experiment (the message lists the runs in it), or if the file is
            damaged or has a newer format.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        from candy_monai.experiment.runs import what_is_below

        found = f"it has no {DESCRIPTION}" if Path(folder).is_dir() else "there is no such folder"
        raise ExperimentError(f"{folder}: not an experiment folder ({found}){what_is_below(folder)}")
    try:
        content = read_json(path)
    except (OSError, RecursionError, ValueError) as error:
        raise ExperimentError(f"{path}: not readable as JSON ({error})") from error
    try:
        return ExperimentDescription.from_dict(content if isinstance(content, dict) else {"format": type(content)})
    except ExperimentError as error:
        raise ExperimentError(f"{path}: {error}") from None


def write_description(folder: Path, description: ExperimentDescription) -> None:
    """Write ``experiment.json``, including the versions of the packages that the run depends on."""
    described = dataclasses.replace(description, environment=_environment())
    atomic_write_text(folder / DESCRIPTION, json.dumps(as_json(described.to_dict()), indent=2) + "\n")


def installed_versions(*packages: str) -> dict[str, str | None]:
    """Return the versions of Python and of packages; None for those that are not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _environment() -> dict[str, str | None]:
    """Return the versions that a run depends on, and the commit of the working folder if it is a git checkout."""
    versions = installed_versions("candy-monai", "torch", "monai", "numpy", "nibabel")
    try:
        command = ["git", "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
    except (OSError, subprocess.SubprocessError):
        return {**versions, "git_commit": None}
    return {**versions, "git_commit": answer.stdout.strip()}


def differences(saved: Mapping[str, object], present: Mapping[str, object], *, where: str = "") -> list[str]:
    """List the entries of two nested mappings that differ, each as ``name: saved -> present``.

    Tuples are compared as lists, since JSON has only lists; ``where`` is the name of the mappings themselves.
    """
    found = []
    for name in dict.fromkeys([*saved, *present]):
        before, now = as_json(saved.get(name)), as_json(present.get(name))
        path = f"{where}.{name}" if where else name
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, where=path)
        elif before != now:
            found.append(f"{path}: {_short(before)} -> {_short(now)}")
    return found


def as_json(value: object) -> Any:
    """Return a value in types of JSON; numbers of NumPy and tensors, arrays, sets and paths are converted.

    Other objects are given by their ``repr``, without the memory address.
    """
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(as_json, value), key=repr)
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if hasattr(value, "tolist"):  # of NumPy and PyTorch, which need not be imported for it
        return as_json(value.tolist())
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
