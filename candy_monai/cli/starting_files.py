"""The files that ``new-trainer`` and ``new-bundle`` start from: fills in names, and never writes over anything."""

from __future__ import annotations

import ast
import keyword
import re
import sys
import unicodedata
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path
from string import Template

from candy_monai.errors import BadInputError


def render(template: str, **names: str) -> str:
    """Return a file of ``templates/`` with names in place of ``$name`` and the others."""
    text = files("candy_monai.cli").joinpath("templates", f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(names)


def write_new(path: Path, text: str) -> None:
    """Write a text file that must not exist yet; missing folders are made.

    Raises:
        BadInputError: If there is something of this name already, or nothing can be written there.
    """
    from candy_monai.files import check_writable  # which imports PyTorch

    check_writable(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError as error:
        raise BadInputError(
            f"{path} already exists and is not overwritten: give another path with --out, or remove it"
        ) from error
    except OSError as error:
        raise BadInputError(f"{path}: cannot be written: {error.strerror}; give another path with --out") from error


def check_trainer_file(path: Path) -> None:
    """Check that a path can be that of a trainer's file: a Python file that hides no other module.

    Raises:
        BadInputError: If it cannot.
    """
    # The file names itself in its docstring and commands, without quotes, and only a .py file can be executed.
    if not re.fullmatch(r"[\w.-]+\.py", path.name):
        raise BadInputError(
            f"{str(path)!r} cannot be a trainer's file: expected a name such as 'my_trainer.py', of letters, digits "
            "and '_-.', that ends in .py; give another one with --out"
        )
    if _is_module(path.stem):
        raise BadInputError(
            f"{str(path)!r} cannot be a trainer's file: programs started in its folder would import it instead of the "
            f"installed module {path.stem!r}; give another one with --out"
        )


def check_class_name(name: str) -> None:
    """Check that a name can be that of a class, in Python's usual form.

    Raises:
        BadInputError: If it cannot; the message suggests one that can.
    """
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or keyword.iskeyword(name):
        words = [word for word in re.split(r"[^A-Za-z0-9]+", _in_ascii(name)) if word]
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
    if not re.fullmatch(r"[a-z](?:[a-z0-9_]*[a-z0-9])?", name) or keyword.iskeyword(name):
        usual = re.sub(r"[^a-z0-9]+", "_", snake_case(_in_ascii(name))).strip("_").lstrip("0123456789_")
        hint = f" Did you mean {usual!r}?" if usual and not keyword.iskeyword(usual) else ""
        raise BadInputError(
            f"{name!r} is not a valid name for a bundle: expected a module name such as 'my_network', of lower-case "
            f"letters, digits and inner underscores.{hint}"
        )
    if name in bundles:
        raise BadInputError(
            f"a bundle {name!r} is already installed: choose another name. Installed: {', '.join(bundles)}"
        )
    if _is_module(name) or _is_distribution(name):
        raise BadInputError(
            f"{name!r} cannot be a bundle's name: another package, or its module, has this name; choose another"
        )
    class_name = camel_case(name)
    if f"{class_name}Trainer" in _imported_by(render("bundle.py", name=name, class_name=class_name)):
        raise BadInputError(
            f"{name!r} cannot be a bundle's name: the file to write imports a {class_name}Trainer; choose another"
        )


def _is_module(name: str) -> bool:
    """Return whether Python or an installed package has a module of this name, wherever the command is run."""
    ours = ("candy_monai", "candy_monai_bundles")  # also where they are only on the path
    return name in sys.stdlib_module_names or name in ours or name in packages_distributions()


def _is_distribution(name: str) -> bool:
    """Return whether a package of this name is installed, which pip would remove in favour of the new one."""
    installed = (each for names in packages_distributions().values() for each in names)
    return name.replace("_", "-") in {re.sub(r"[-_.]+", "-", each).lower() for each in installed}


def _in_ascii(name: str) -> str:
    """Return a name with plain letters in place of those with accents."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))


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
