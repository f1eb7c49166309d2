"""Build pipelines from plain data, which may be untrusted: only known transforms are ever called."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monai.transforms
import torch
import yaml
from monai.transforms import Compose, InvertibleTransform, Lambdad, MapTransform, Randomizable, Transform
from monai.transforms.traits import LazyTrait
from typing_extensions import override

import candy_monai.transforms
from candy_monai.aliases import PathLike
from candy_monai.data.pipelines.description import BEFORE, IMAGE, LABEL, PIPELINES, Entry, OwnTransforms
from candy_monai.errors import BadInputError, CandyError, SettingsError, did_you_mean
from candy_monai.text import read_text

# MONAI's LoadImage warns of this unused reader whenever pydicom is installed, by a warning and a log message.
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)

_PACKAGES = {"monai.transforms": monai.transforms, "candy_monai.transforms": candy_monai.transforms}
FUNCTIONS: dict[str, Callable[..., object]] = {
    f"torch.{function.__name__}": function for function in (torch.ne, torch.eq, torch.gt, torch.ge, torch.lt, torch.le)
}
"""Functions that are allowed as arguments of transforms."""
# These write files, call functions by names given as text, or wait for a given time.
_REFUSED = (
    "SaveImage",
    "SaveClassification",
    "WriteFileMapping",
    "TorchIO",
    "RandTorchIO",
    "TorchVision",
    "CuCIM",
    "RandCuCIM",
    "SimulateDelay",
)
_MOVING = (
    "monai.transforms.spatial",
    "monai.transforms.croppad",
    "monai.transforms.smooth_field",
    "candy_monai.transforms.resampling",
    "candy_monai.transforms.warping",
)
# These are in modules of transforms that move voxels, but move none.
_STILL = (
    "BoundingRectd",
    "RandSimulateLowResolutiond",
    "RandSmoothFieldAdjustContrastd",
    "RandSmoothFieldAdjustIntensityd",
)
_MOST_VALUES = 100_000
MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Exceptions of transforms whose arguments do not fit their input."""
_LOADING = {
    "keys",
    "allow_missing_keys",
    "ensure_channel_first",
    "image_only",
    "is_label",
    "num_channels",
    "reader",
    "reverse_indexing",
    "simple_keys",
}
_READERS = (
    "NibabelReader",
    "PILReader",
    "ITKReader",
    "NrrdReader",
    "NumpyReader",
    "PydicomReader",
    "candy_monai.CheckedReader",
)


class Pipeline(Compose):
    """MONAI's ``Compose`` with the plain data from which it was built, which it prints."""

    def __init__(
        self, transforms: Sequence[Callable[[Any], Any]], entries: Sequence[Entry], name: str = "pipeline"
    ) -> None:
        super().__init__(list(transforms))
        self.entries = tuple(entries)
        self.name = name
        self._is_plain = all(
            isinstance(step, MapTransform) and not (isinstance(step, LazyTrait) and step.lazy) for step in transforms
        )

    @override
    def __call__(self, input_: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if self._is_plain and not args and not kwargs:
                # Compose does more only for lazy and array transforms, and takes a third of the time of a small patch.
                for index, step in enumerate(self.transforms):
                    if not isinstance(input_, Mapping):  # several samples
                        return super().__call__(input_, start=index)
                    try:
                        input_ = step(input_)
                    except Exception as error:
                        error.add_note(f"{self.name}[{index}], {_as_call(self.entries[index])}")
                        raise
                return input_
            return super().__call__(input_, *args, **kwargs)
        except RuntimeError as error:  # MONAI's, which names only the transform that failed
            cause: BaseException = error
            while cause.__cause__ is not None and not isinstance(cause, CandyError):  # ours names the file
                cause = cause.__cause__
            if cause is error:
                raise
            raise cause from None

    @contextmanager
    def applied_to(self, what: str) -> Iterator[None]:
        """Raise BadInputError, with the step, if the pipeline does not fit its input within this block."""
        try:
            yield
        except (CandyError, torch.OutOfMemoryError):
            raise
        except MISFITS as error:
            reason = " ".join(str(error.args[0] if error.args else error).split())
            step = "; ".join(getattr(error, "__notes__", ())) or self.name
            raise BadInputError(f"{step}: cannot be applied to {what} ({type(error).__name__}: {reason})") from error

    def __repr__(self) -> str:
        return "\n".join(f"{index}: {_as_call(entry)}" for index, entry in enumerate(self.entries))


def build_pipeline(
    entries: Sequence[Entry],
    *,
    name: str,
    transforms: Mapping[str, Sequence[Callable[[Any], Any]]] | None = None,
    instead: Mapping[str, Callable[..., Any]] | None = None,
    trust: bool = False,
) -> Pipeline:
    """Build a pipeline from its description.

    Args:
        entries: A list in MONAI's config language: ``{"_target_": "monai.transforms.RandFlipd", "keys": "image"}``.
            ``monai.transforms.`` may be omitted.
        name: The name of the list in messages.
        transforms: Lists of transforms to which an entry may refer: ``"@preprocessing"`` for the one of that name.
        instead: Replacements of targets, by name.
        trust: Build everything that MONAI's ``ConfigParser`` can, which may run any installed code.

    Raises:
        SettingsError: With the position of the entry that is not a transform of MONAI or of this library, names an
            unknown function, contains an expression or a reference, or has wrong arguments.
    """
    if not isinstance(entries, list | tuple):
        raise SettingsError(f"{name}: found {type(entries).__name__}, expected a list of transforms")
    build = _Builder(transforms or {}, instead or {}, trust=trust)
    try:
        steps = [build.step(entry, f"{name}[{index}]") for index, entry in enumerate(entries)]
    except RecursionError as error:  # a YAML anchor may contain itself
        raise SettingsError(f"{name}: the entries are nested too deep, or contain themselves") from error
    return Pipeline(steps, entries, name)


def read_own_transforms(path: PathLike, *, trust: bool = False) -> OwnTransforms:
    """Read a user's own transforms from a JSON or YAML file, and check that they can be built.

    Args:
        path: A list in MONAI's config language, for the augmentation; or a mapping with such lists for any of
            ``preprocessing``, ``augmentation`` and ``postprocessing``, as in MONAI's bundles.
        trust: Build any callable in the file, instead of known transforms only.

    Raises:
        SettingsError: If the file cannot be read or has neither, or as `check_own_transforms` does.
    """
    found = read_json_or_yaml(path)
    lists = {"augmentation": found} if isinstance(found, list) else found
    if not isinstance(lists, dict) or not any(lists.values()):
        raise SettingsError(
            f"{path}: expected a list of transforms, each like "
            '{"_target_": "monai.transforms.RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0}, '
            f"or such lists by name: {', '.join(PIPELINES)}"
        )
    for name in lists:
        if name not in PIPELINES:
            raise SettingsError(
                f"{path}: {name!r} is not a pipeline; expected any of "
                f"{', '.join(PIPELINES)}.{did_you_mean(str(name), PIPELINES)}"
            )
    own = OwnTransforms(trust=trust, **{name: entries or () for name, entries in lists.items()})
    check_own_transforms(own, f"{path}: ")
    return own


def read_json_or_yaml(path: PathLike) -> Any:
    """Read a JSON or YAML file, which may be untrusted.

    Raises:
        SettingsError: If it cannot be read, or has too many values, as YAML anchors can create.
    """
    path = Path(path)
    try:
        text = read_text(path)
        found = json.loads(text) if path.suffix.casefold() == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); name a JSON or YAML file") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path}: is not JSON or YAML ({reason})") from error
    waiting, count = [found], 0
    while waiting and count <= _MOST_VALUES:
        value = waiting.pop()
        count += 1
        if isinstance(value, Mapping | list):
            waiting += value.values() if isinstance(value, Mapping) else value
    if count > _MOST_VALUES:
        raise SettingsError(f"{path}: holds more than {_MOST_VALUES:,} values, or a YAML anchor that contains itself")
    return found


def read_saved_transforms(pipelines: object, where: PathLike, *, trust: bool = False) -> OwnTransforms:
    """Return the transforms that restore the pipelines of an ``experiment.json``, checked that they can be built.

    Raises:
        SettingsError: If they are damaged, or as `check_own_transforms` does.
    """
    own = OwnTransforms.from_saved(pipelines, where=where, trust=trust)
    check_own_transforms(own, f"{where}: ")
    return own


def check_own_transforms(own: OwnTransforms, where: str = "") -> None:
    """Refuse lists of a user's own transforms that cannot be built, or that do not fit their pipeline.

    Raises:
        SettingsError: With the position of the entry. Preprocessing must not be random, nor need the label, which is
            not available in prediction; its spatial transforms must be invertible, so that results can be restored.
            Neither it nor augmentation may move the image but not the label, unless the lists are trusted.
    """
    for name in PIPELINES:
        entries = getattr(own, name)
        if not isinstance(entries, list | tuple):
            raise SettingsError(f"{where}{name}: found {type(entries).__name__}, expected a list of transforms")
        plain = [
            {key: value for key, value in entry.items() if key != BEFORE} if name == "preprocessing" else dict(entry)
            for entry in (_checked_entry(entry, f"{where}{name}[{index}]") for index, entry in enumerate(entries))
        ]
        # Its references are known once there is a plan, for which it is built again.
        pipeline = build_pipeline(plain, name=f"{where}{name}", transforms={"preprocessing": ()}, trust=own.trust)
        for index, step in enumerate(pipeline.transforms):
            _check_place(step, plain[index], name, f"{where}{name}[{index}]", trust=own.trust)
        if not own.trust and name != "postprocessing":
            _check_in_step(pipeline.transforms, f"{where}{name}")


def keeps_track(step: object) -> bool:
    """Return whether a spatial transform records how to undo it."""
    return isinstance(step, InvertibleTransform) and not isinstance(step, Lambdad)  # whose inverse does nothing


def moves_voxels(target: object) -> bool:
    """Return whether a target is a transform that moves voxels; False if it is unknown."""
    try:
        kind = transform_class(target, "")
    except SettingsError:
        return False
    return _moves(kind)


def _checked_entry(entry: object, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping) or "_target_" not in entry:
        raise SettingsError(f'{where}: found {entry!r}, expected a transform: {{"_target_": "RandFlipd", ...}}')
    return entry


def _check_place(step: object, entry: Mapping[str, Any], pipeline: str, where: str, *, trust: bool) -> None:
    kind = type(step).__name__
    if not trust and not isinstance(step, MapTransform | Compose):
        raise SettingsError(f"{where}: {kind} is an array transform; use its dictionary version, {kind}d, with keys")
    if pipeline == "augmentation":
        return
    if isinstance(step, Randomizable) and not (isinstance(step, Compose) and not step.transforms):
        raise SettingsError(f"{where}: {kind} is random, but {pipeline} must be deterministic")
    if pipeline != "preprocessing":
        return
    if (_moves(type(step)) and not keeps_track(step)) or kind == "FromMetaTensord":
        raise SettingsError(
            f"{where}: {kind} cannot be inverted, so predictions could not be restored to the grid of the image"
        )
    needing = [key for key, value in entry.items() if key != "keys" and value == LABEL]
    if needing:
        raise SettingsError(f"{where}: {kind} needs the label ({needing[0]}), which is not available in prediction")


def _check_in_step(steps: Sequence[object], where: str) -> None:
    """Refuse steps that move the image but not the label, or the reverse."""
    moving = [(index, part) for index, step in enumerate(steps) for part in _parts(step) if _moves(type(part))]
    for index, part in moving:
        moved = {IMAGE, LABEL} & set(part.keys)
        left = {IMAGE, LABEL} - moved
        same = any(left == {IMAGE, LABEL} & set(other.keys) for _, other in moving if type(other) is type(part))
        if len(moved) == 1 and (isinstance(part, Randomizable) or not same):
            kind, is_at, stays = type(part).__name__, *moved, *left
            raise SettingsError(
                f'{where}[{index}]: {kind} moves the {is_at} but not the {stays}; give it the keys ["{IMAGE}", '
                f'"{LABEL}"], or pass --trust if that is intended'
            )


def _parts(step: object) -> list[Any]:
    """Return the dictionary transforms in a step, including those nested in ``Compose``, ``OneOf`` and the like."""
    if isinstance(step, Compose):
        return [part for each in step.transforms for part in _parts(each)]
    return [step] if isinstance(step, MapTransform) else []


def _moves(kind: type[object]) -> bool:
    """Return whether a class moves voxels, according to its module and those of its base classes."""
    return kind.__name__ not in _STILL and any(base.__module__.startswith(_MOVING) for base in kind.__mro__)


class _Builder:
    def __init__(
        self,
        transforms: Mapping[str, Sequence[Callable[[Any], Any]]],
        instead: Mapping[str, Callable[..., Any]],
        *,
        trust: bool,
    ) -> None:
        self._transforms = transforms
        self._instead = instead
        self._trust = trust

    def step(self, entry: object, where: str) -> Callable[[Any], Any]:
        """Build an entry of a list, which must be a transform."""
        entry = _checked_entry(entry, where)
        if self._trust and str(entry["_target_"]).rpartition(".")[2] not in self._instead:
            return self._trusted(entry, where)
        built: Callable[[Any], Any] = self._component(entry, where)
        if not callable(built) or isinstance(built, functools.partial):
            raise SettingsError(f"{where}: {entry['_target_']} is not a transform")
        return built

    def _trusted(self, entry: Mapping[str, Any], where: str) -> Callable[[Any], Any]:
        from monai.bundle import ConfigParser

        known = {name: list(transforms) for name, transforms in self._transforms.items()}
        try:
            built: Callable[[Any], Any] = ConfigParser({**known, "step": dict(entry)}).get_parsed_content("step")
        except Exception as error:
            raise SettingsError(f"{where}: cannot be built: {' '.join(str(error).split())}") from error
        if not callable(built):
            raise SettingsError(f"{where}: {entry['_target_']} is not a transform: found {type(built).__name__}")
        return built

    def _value(self, value: object, where: str) -> Any:
        if isinstance(value, Mapping):
            if "_target_" in value:
                return self._component(value, where)
            return {key: self._value(part, f"{where}.{key}") for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(part, f"{where}[{index}]") for index, part in enumerate(value)]
        if isinstance(value, str):
            if value[:1] == "@" and value[1:] in self._transforms:
                return list(self._transforms[value[1:]])
            if set(value) & set("$@%"):
                raise SettingsError(
                    f"{where}: {value!r} holds an expression or a reference, which is allowed only in a trusted file; "
                    "write the value itself, or pass --trust if you wrote the file"
                )
        return value

    def _component(self, entry: Mapping[str, Any], where: str) -> Any:
        target = entry["_target_"]
        mode = entry.get("_mode_", "default")
        unnamed = next((key for key in entry if not isinstance(key, str)), None)  # YAML keys may be of any type
        if unnamed is not None:
            raise SettingsError(f"{where}: found {unnamed!r}, expected the name of an argument")
        arguments = {key: self._value(value, f"{where}.{key}") for key, value in entry.items() if key[:1] != "_"}
        unknown = sorted(key for key in entry if key[:1] == "_" and key not in ("_target_", "_mode_", "_desc_"))
        if unknown:
            raise SettingsError(f"{where}: unknown key {unknown[0]}; expected _target_, _mode_ or _desc_")
        if isinstance(target, str) and target in FUNCTIONS and mode == "callable":
            return functools.partial(FUNCTIONS[target], **arguments)
        kind = transform_class(target, where)
        if mode != "default":
            raise SettingsError(f"{where}: _mode_ {mode!r} is not supported for a transform; leave it out")
        _check_arguments(kind, arguments, where)
        replacement: Callable[..., Any] = self._instead.get(kind.__name__, kind)
        try:
            inspect.signature(kind).bind(**arguments)
            return replacement(**arguments)
        except Exception as error:  # each constructor has its own errors
            reason = " ".join(str(error).split())
            raise SettingsError(f"{where}: {kind.__name__} cannot be built with these arguments: {reason}") from error


def transform_class(target: object, where: str) -> type[Transform]:
    """Return the class of a target, if it may be built without trust.

    Raises:
        SettingsError: If it is not a transform of MONAI or this library, or may write files or call others by name.
    """
    if not isinstance(target, str):
        raise SettingsError(f"{where}: _target_ is {target!r}, expected the name of a transform")
    package, _, name = target.rpartition(".")
    module = _PACKAGES.get(package or "monai.transforms")
    kind = getattr(module, name, None) if module is not None else None
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        raise SettingsError(
            f"{where}: {target} is not a transform of MONAI or candy_monai, nor one of the functions "
            f"{', '.join(FUNCTIONS)}.{_suggestion(target)} Pass --trust to use others, if you wrote the file"
        )
    if kind.__name__.startswith(_REFUSED):
        raise SettingsError(
            f"{where}: {kind.__name__} may write files, call functions by name, or wait: pass --trust to use it"
        )
    return kind


def _suggestion(target: str) -> str:
    """Return `` Did you mean ...?`` with a transform of MONAI by its name, or one of ours with its package."""
    known = {name: name for name in dir(monai.transforms) if name[:1].isupper()}
    known |= {name: f"candy_monai.transforms.{name}" for name in candy_monai.transforms.__all__}
    close = difflib.get_close_matches(target.rpartition(".")[2], known, n=1)
    return f" Did you mean {known[close[0]]!r}?" if close else ""


def _check_arguments(kind: type[Transform], arguments: Mapping[str, object], where: str) -> None:
    """Refuse text as a callable argument, and readers that MONAI would import by such a text."""
    name, called = kind.__name__, []
    for place, parameter in inspect.signature(kind).parameters.items():
        if "Callable" in str(parameter.annotation) and "str" not in str(parameter.annotation):
            value = arguments.get(place)
            each = [(f"{place}[{index}]", part) for index, part in enumerate(value)] if isinstance(value, list) else []
            called += [(at, part) for at, part in each or [(place, value)] if isinstance(part, str)]
    steps = arguments.get("transforms")
    called += [(f"transforms[{index}]", step) for index, step in enumerate(steps if isinstance(steps, list) else [])]
    for place, value in called:
        if value is not None and not callable(value):
            raise SettingsError(f"{where}.{place}: found {value!r}, which cannot be called; expected a transform")
    if not name.startswith("LoadImage"):
        return
    foreign = sorted(set(arguments) - _LOADING)
    if foreign:
        raise SettingsError(
            f"{where}: {name} does not accept {foreign[0]} here; allowed are {', '.join(sorted(_LOADING))}"
        )
    reader = arguments.get("reader")
    if reader is not None and reader not in _READERS:
        raise SettingsError(f"{where}: unknown reader {reader!r}; expected one of {', '.join(_READERS)}")


def _as_call(entry: Mapping[str, Any]) -> str:
    """Return an entry as a function call in Python."""
    arguments = (
        f"{key}={_as_call(value) if isinstance(value, Mapping) and '_target_' in value else repr(value)}"
        for key, value in entry.items()
        if key[:1] != "_"
    )
    return f"{entry['_target_'].removeprefix('monai.transforms.')}({', '.join(arguments)})"
