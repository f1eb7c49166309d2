"""Read and store settings and secrets safely, independent of their meaning.

Settings are ordinary YAML files, merged key by key. Secrets come from environment variables or from one file that only
its owner can read; their values are never part of a message or a ``repr``.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import yaml
from typing_extensions import override

from candy_monai.errors import SettingsError
from candy_monai.text import decode_text

if TYPE_CHECKING:
    from candy_monai.aliases import PathLike

Setting: TypeAlias = "str | int | float | bool | list[Setting] | dict[str, Setting] | None"
"""A value in a settings file."""

Secret: TypeAlias = str | int | float | bool
"""A value in a secrets file; always text if from the environment."""

SETTINGS_FILE = "settings.yml"
SECRETS_FILE = "secrets.yml"
MAX_BYTES = 1 << 20
"""The size limit of files, far above that of any settings written by hand."""

_HOME_UNKNOWN = "the home folder is unknown: set CANDY_MONAI_CONFIG to the configuration folder"
_ENVIRONMENT_PREFIX = "CANDY_MONAI_"
_NOT_SECRETS = frozenset({"config", "data"})  # CANDY_MONAI_CONFIG and CANDY_MONAI_DATA name folders
_SECRET_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))


def config_folder() -> Path:
    """Return the folder of the user's settings and secrets, which may not exist.

    It is ``$CANDY_MONAI_CONFIG``, else the platform's default: on Linux ``$XDG_CONFIG_HOME/candy_monai``, else
    ``~/.config/candy_monai``. According to the XDG specification, a relative ``$XDG_CONFIG_HOME`` is ignored.

    Raises:
        SettingsError: If none is set and the home folder is unknown.
    """
    from platformdirs import user_config_path  # not needed by `candy-monai --help`

    try:
        if own := os.environ.get("CANDY_MONAI_CONFIG"):
            return Path(own).expanduser()
        folder = user_config_path("candy_monai", appauthor=False)
    except RuntimeError as error:
        raise SettingsError(_HOME_UNKNOWN) from error
    if not folder.is_absolute():
        raise SettingsError(_HOME_UNKNOWN)
    return folder


def load_settings(path: PathLike | None = None) -> dict[str, Setting]:
    """Read the settings files and merge them key by key; later files take precedence.

    The order: ``settings.yml`` in the user's config folder, ``settings.yml`` in the working folder, then ``path``. The
    first two are optional.

    Args:
        path: A further settings file, which must exist.

    Returns:
        The merged settings, in the order in which their names first appear.

    Raises:
        SettingsError: If a file is missing, unreadable, too large or not a YAML mapping of names to plain values.
    """
    settings: dict[str, Setting] = {}
    for file in settings_files(path):
        settings |= parsed_yaml(file, _read(file))
    return settings


def settings_files(path: PathLike | None = None) -> list[Path]:
    """Return the settings files that `load_settings` reads, in order; missing optional files are omitted."""
    own = [file for file in (config_folder() / SETTINGS_FILE, Path(SETTINGS_FILE)) if file.exists()]
    return own if path is None else [*own, Path(path)]


class Secrets(Mapping[str, Secret]):
    """Secrets by name. Its ``repr`` shows only the names.

    Names are case-insensitive, and ``-`` is equivalent to ``_``.

    Args:
        values: The secrets.
    """

    def __init__(self, values: Mapping[str, Secret]) -> None:
        self._values = {_normalised(name): value for name, value in values.items()}

    @override
    def __getitem__(self, name: str) -> Secret:
        return self._values[_normalised(name)]

    @override
    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _normalised(name) in self._values

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    @override
    def __len__(self) -> int:
        return len(self._values)

    @override
    def __repr__(self) -> str:
        return f"Secrets({', '.join(f'{name}=***' for name in self._values)})"


def load_secrets(path: PathLike | None = None) -> Secrets:
    """Read the user's secrets; environment variables take precedence over the file.

    The variable of a secret is ``CANDY_MONAI_`` and its name in capitals. An empty variable counts as unset.

    Args:
        path: The secrets file; by default ``secrets.yml`` in the user's config folder, which is optional.

    Raises:
        SettingsError: If the file can be read by others, is damaged, or was given and is missing.
    """
    file = secrets_file() if path is None else Path(path)
    stored: dict[str, Secret] = {}
    if path is not None or file.exists():
        stored = _stored_secrets(file)
    return Secrets({**stored, **_environment_secrets()})


def secrets_file() -> Path:
    """Return the path of the user's secrets file, which may not exist."""
    return config_folder() / SECRETS_FILE


def save_secret(name: str, value: Secret) -> Path:
    """Store a secret in the user's config folder, in a file that only its owner can read (mode 600).

    The other secrets in the file are kept, comments are not. The file is replaced atomically.

    Args:
        name: Letters, digits and ``_``; case-insensitive.
        value: The secret, not empty.

    Returns:
        The path of the file.

    Raises:
        SettingsError: If the name or the value is invalid, or the existing file is damaged or readable by others.
    """
    key = _normalised(name)
    if not _SECRET_NAME.fullmatch(key) or key in _NOT_SECRETS:
        raise SettingsError(
            f"{name!r} is not a valid name of a secret: use letters, digits and '_'; the names config and data are "
            "reserved"
        )
    if value == "":
        raise SettingsError(f"the secret {name!r} is empty")
    file = secrets_file().resolve()  # a symbolic link is kept
    stored = _stored_secrets(file) if file.exists() else {}
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _replace_privately(file, yaml.dump({**stored, key: value}, Dumper=_Dumper))
    return file


def environment_variable(secret: str) -> str:
    """Return the name of the environment variable for a secret."""
    return _ENVIRONMENT_PREFIX + _normalised(secret).upper()


def is_in_environment(secret: str) -> bool:
    """Return whether the environment sets a secret, which then takes precedence over the file."""
    return _normalised(secret) in _environment_secrets()


def _normalised(name: str) -> str:
    return name.replace("-", "_").lower()


def _environment_secrets() -> dict[str, Secret]:
    found = {
        variable.removeprefix(_ENVIRONMENT_PREFIX).lower(): value
        for variable, value in os.environ.items()
        if variable.startswith(_ENVIRONMENT_PREFIX) and value
    }
    return {name: value for name, value in found.items() if name and name not in _NOT_SECRETS}


def _stored_secrets(file: Path) -> dict[str, Secret]:
    secrets: dict[str, Secret] = {}
    for name, value in parsed_yaml(file, _read(file, private=True), quote=False).items():
        if isinstance(value, list | dict) or value is None:
            raise SettingsError(f"{file}: the secret {name!r} must be text or a number; write it in quotes")
        secrets[_normalised(name)] = value
    return secrets


def _read(file: Path, *, private: bool = False) -> str:
    if not file.is_file():
        what = "is not a file" if file.exists() else "does not exist"
        raise SettingsError(f"{file} {what}: expected a YAML file of 'name: value' lines")
    try:
        with file.open("rb") as stream:
            if private and os.name == "posix" and stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
                raise SettingsError(f"{file} can be read by other users; run: chmod 600 '{file}'")
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise SettingsError(f"{file} is larger than {MAX_BYTES >> 10} KiB: this is not a settings file")
    try:
        return decode_text(content)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SettingsError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from None


class _Loader(yaml.SafeLoader):
    """Loads only YAML's plain types, and numbers such as ``1e-3``, which YAML 1.1 takes for text."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads; quotes text that it would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def parsed_yaml(file: Path, text: str, *, quote: bool = True) -> dict[str, Setting]:
    """Parse the YAML or JSON text of a file, which must be a mapping of plain values.

    Unless ``quote``, errors contain only names of the content.

    Raises:
        SettingsError: If it is not, with the line; repeated names and aliases are refused.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise SettingsError(f"{file}, line {_line(node)}: expected 'name: value' lines")
        _check(file, node, seen=set())
        mapping: dict[str, Setting] = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        problem = (getattr(error, "problem", None) if quote else None) or "expected 'name: value' lines"
        raise SettingsError(f"{where}: not valid YAML: {problem}") from None
    except RecursionError:
        raise SettingsError(f"{file}: nested too deeply") from None
    except ValueError as error:  # a value that looks like a number but is not, such as 1:99:99 or a date
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"{file}: a value cannot be read; write it in quotes") from None
    return mapping


def _check(file: Path, node: yaml.Node, *, seen: set[int]) -> None:
    """Refuse what plain settings do not need: aliases (they can expand exponentially), other types, bad names."""
    where = f"{file}, line {_line(node)}"
    if id(node) in seen:
        raise SettingsError(f"{where}: anchors and aliases ('&', '*') are not supported; write the value out")
    seen.add(id(node))
    if node.tag not in _PLAIN_TAGS:
        raise SettingsError(f"{where}: values are text, numbers, true, false or null; write anything else in quotes")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(file, item, seen=seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise SettingsError(f"{file}, line {_line(key)}: a name must be text; write it in quotes")
            if key.value in names:
                raise SettingsError(f"{file}, line {_line(key)}: {key.value!r} is set twice")
            names.add(key.value)
            _check(file, value, seen=seen)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _replace_privately(file: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")  # created with mode 600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(file)
    finally:
        Path(temporary).unlink(missing_ok=True)
