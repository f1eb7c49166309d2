"""Generate the reference of the library and of its command line, and the pages of the tutorials.

They are generated before every build from the public names, the docstrings and the declared options, so that a new name
needs no entry here.
"""

import argparse
import ast
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from importlib import import_module
from inspect import getattr_static
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules
from textwrap import indent

import candy_monai
import candy_monai_bundles
from candy_monai.cli.main import _parser

TITLES = {
    "recipes": "Whole tasks: train, resume, cross-validate",
    "training": "Trainers",
    "inference": "Prediction",
    "incoming": "Models from elsewhere",
    "export": "Export",
    "evaluation": "Evaluation",
    "data": "Data",
    "transforms": "Transforms",
    "nn": "Losses, schedules, averaging, padding",
    "metrics": "Metrics",
    "forecasting": "Forecast",
    "plotting": "Pictures",
    "observers": "Observers and events",
    "frontends": "Dashboards",
    "handlers": "Handlers for MONAI's engines",
    "lightning": "Callbacks for Lightning",
    "optuna": "A pruner for Optuna",
    "demo": "A synthetic dataset",
}
OTHERS = "ground"
TOGETHER = {"experiment": "observers"}
"""Parts of the library whose public names are on another part's page."""
_OPTION = r"(?<![\w-])(--[a-z-]+)"


def write_reference(folder: Path) -> None:
    """Write one page for each part of the library and one for the bundles, and the list of them."""
    parts = defaultdict(list)
    for name, module in candy_monai._MODULE_OF.items():
        part = module.partition(".")[0]
        parts[TOGETHER.get(part, part) if "." in module else OTHERS].append(name)
    own = {name: import_module(f"candy_monai.{name}") for name in ("transforms", "handlers", "lightning", "optuna")}
    for part, module in own.items():
        parts[part] = [name for name in module.__all__ if callable(getattr(module, name))]
    titles = {**TITLES, **{part: part.capitalize() for part in parts if part not in TITLES}, OTHERS: "Errors and more"}
    package = defaultdict(lambda: "candy_monai", {part: module.__name__ for part, module in own.items()})
    pages = {part: _page(title, package[part], parts[part]) for part, title in titles.items() if part in parts}
    bundles = [module.name for module in iter_modules(candy_monai_bundles.__path__) if not module.ispkg]
    pages["bundles"] = "# Ready-made networks\n\n" + "\n".join(map(_bundle, bundles))
    pages = {"command_line": _command_line()} | pages
    entries = "\n".join(pages)
    intro = "Every command and every public name, as the code declares them."
    pages["index"] = f"# Reference\n\n{intro}\n\n```{{toctree}}\n{entries}\n```\n"
    _replace(folder, {f"{name}.md": text for name, text in pages.items()})


def write_tutorials(source: Path, folder: Path) -> None:
    """Copy the notebooks into the folder of the documentation."""
    notebooks = {path.name: path.read_text(encoding="utf-8") for path in sorted(source.glob("*.ipynb"))}
    entries = "\n".join(name.removesuffix(".ipynb") for name in notebooks)
    index = f"# Tutorials\n\nNotebooks with their outputs.\n\n```{{toctree}}\n{entries}\n```\n"
    _replace(folder, {"index.md": index, **notebooks})


def _page(title: str, package: str, names: Iterable[str]) -> str:
    return f"# {title}\n\n" + "\n".join(_entry(package, name) for name in sorted(names, key=str.lower))


def _command_line() -> str:
    parser, commands = _parser()
    intro = "Every command takes `--help` and `--debug`, which shows the traceback of an error."
    parts = [_command(f"{parser.prog} {name}", command) for name, command in commands.items()]
    return f"# The command line\n\n{parser.description} {intro}\n\n" + "\n".join(parts)


def _command(name: str, parser: argparse.ArgumentParser, level: str = "##") -> str:
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    told_above = {"--help", "--debug"}
    actions = [
        action
        for action in parser._actions
        if action not in inner and action.help != argparse.SUPPRESS and not told_above & set(action.option_strings)
    ]
    text = [f"{level} {name}", re.sub(_OPTION, r"`\1`", str(parser.description))]
    if actions:
        text.append(f"```{{eval-rst}}\n.. program:: {name}\n\n{''.join(map(_argument, actions))}```")
    if parser.epilog:
        text.append(f"```text\n{parser.epilog}\n```")
    below = [_command(f"{name} {word}", each, f"{level}#") for action in inner for word, each in action.choices.items()]
    return "\n\n".join([*text, *below]) + "\n"


def _argument(action: argparse.Action) -> str:
    metavar = action.metavar or ("|".join(map(str, action.choices or ())) or action.dest.upper())
    value = "" if action.nargs == 0 else f" {metavar}"
    names = ", ".join(f"{option}{value}" for option in action.option_strings) or str(metavar)
    text = re.sub(_OPTION, r"``\1``", re.sub(r"([\\*_`|])", r"\\\1", str(action.help) % vars(action)))
    return f".. option:: {names}\n\n   {text}\n\n"


def _bundle(name: str) -> str:
    package = f"candy_monai_bundles.{name}"
    module = import_module(package)
    intro = (module.__doc__ or name).strip()
    public = [name for name in module.__all__ if callable(getattr(module, name))]
    return f"## {name}\n\n{intro}\n\n" + "\n".join(_entry(package, name) for name in public)


def _entry(package: str, name: str) -> str:
    value = getattr(import_module(package), name)
    if isinstance(value, type) and value.__module__.startswith("candy_monai"):
        ends = ", ".join(sorted(_documented_elsewhere(value)))
        options = f":members:\n:inherited-members: {ends}\n:show-inheritance:"
        if deprecated := ", ".join(_deprecated_members(value)):
            options += f"\n:exclude-members: {deprecated}"
        return _directive("autoclass", f"{package}.{name}", options)
    if callable(value) and not isinstance(value, type) and hasattr(value, "__code__"):
        return _directive("autofunction", f"{package}.{name}", "")
    value, comment = _assignment(name)
    return _directive("py:data", name, f":module: {package}\n:value: {value}\n\n{comment}")


def _deprecated_members(cls: type) -> list[str]:
    """Name the members that exist only for compatibility with earlier versions."""
    names = {name for base in cls.__mro__ for name in vars(base)}
    return sorted(name for name in names if hasattr(getattr_static(cls, name), "__deprecated__"))


def _documented_elsewhere(cls: type) -> set[str]:
    """Name the bases whose members are not listed again: other libraries', and those with an entry of their own."""
    public = [getattr(candy_monai, name) for name in candy_monai.__all__]
    names = {base.__name__ for base in cls.__mro__ if not base.__module__.startswith("candy_monai")}
    return names.union(*({base.__name__ for base in other.__mro__} for other in cls.__mro__[1:] if other in public))


def _directive(kind: str, target: str, rest: str) -> str:
    return f"```{{eval-rst}}\n.. {kind}:: {target}\n{indent(rest, '   ')}\n```\n"


def _assignment(name: str) -> tuple[str, str]:
    """Return the value of a name and the string below it, which serves as the docstring of a constant."""
    module = import_module(f"candy_monai.{candy_monai._MODULE_OF[name]}")
    body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
    for statement, after in pairwise(body):
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == [name]:
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            return ast.unparse(statement.value), str(after.value.value) if is_text else ""
    raise LookupError(f"{module.__name__} sets no {name}")


def _replace(folder: Path, texts: dict[str, str]) -> None:
    """Make the folder hold only these files; unchanged files are not rewritten, so that builds are fast."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in texts:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
