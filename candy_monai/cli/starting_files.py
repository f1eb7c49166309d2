"""The files that ``new-trainer`` and ``new-bundle`` start from: fills in names, and never writes over anything."""

from __future__ import annotations

import ast
import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path
from string import Template

from candy_monai.errors import BadInputError


def render(template: str, **names: str) -> str:
    """Return a template with its names filled in.

    Args:
        template: A file of ``templates/``, without ``.txt``.
        **names: What to put in place of ``$name`` and the others.
    """
    text = files("candy_monai.cli").joinpath("templates", f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(names)


def write_new(path: Path, text: str) -> None:
    """Write a text file that must not exist yet; missing folders are made.

    Raises:
        BadInputError: If there is something of this name already, or nothing can be written there.
    """
    from candy_monai.files import check_writable  # which imports PyTorch

    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError as error:
        raise BadInputError(
            f"{path} already exists and is not overwritten: give another path with --out, or remove it"
        ) from error


def check_class_name(name: str) -> None:
    """Check that a name can be that of a class, in Python's usual form.

    Raises:
        BadInputError: If it cannot; the message suggests one that can.
    """
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or keyword.iskeyword(name):
        words = [word for word in re.split(r"[^A-Za-z0-9]+", name) if word]
        usual = "".join(word[0].upper() + word[1:] for word in words).lstrip("0123456789")
        hint = f" Did you mean {usual!r}?" if usual and not keyword.iskeyword(usual) else ""
        raise BadInputError(
            f"{name!r} is not a valid name for a trainer: expected a class name such as 'MyTrainer', of letters and "
            f"digits.{hint}"
        )
    if name in _imported_by(render("trainer.py", name=name, file="")):
        raise BadInputError(
            f"{name!r} cannot be the trainer's name: the file to write imports something of this name; choose another"
        )


def check_module_name(name: str, *, bundles: list[str]) -> None:
    """Check that a name can be that of a module, and of a bundle that is not installed.

    Raises:
        BadInputError: If it cannot; the message suggests one that can.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        usual = re.sub(r"[^a-z0-9]+", "_", snake_case(name)).strip("_").lstrip("0123456789_")
        hint = f" Did you mean {usual!r}?" if usual and not keyword.iskeyword(usual) else ""
        raise BadInputError(
            f"{name!r} is not a valid name for a bundle: expected a module name such as 'my_network', of lower-case "
            f"letters, digits and underscores.{hint}"
        )
    if name in bundles:
        raise BadInputError(
            f"a bundle {name!r} is already installed: choose another name. Installed: {', '.join(bundles)}"
        )
    if name in sys.stdlib_module_names or name in ("candy_monai", "candy_monai_bundles", "monai", "torch"):
        raise BadInputError(
            f"{name!r} cannot be a bundle's name: another package has a module of this name; choose another"
        )


def _imported_by(source: str) -> set[str]:
    """Return the names that a Python file imports from modules."""
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports for alias in node.names}


def snake_case(name: str) -> str:
    """Return ``my_trainer`` for ``MyTrainer``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def camel_case(name: str) -> str:
    """Return ``MyNetwork`` for ``my_network``."""
    return "".join(word.capitalize() for word in name.split("_"))
