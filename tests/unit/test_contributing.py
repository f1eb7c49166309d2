"""CONTRIBUTING.md names files, names and commands that exist, each in the file that it names beside it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "candy_monai"
FOLDERS = (ROOT, PACKAGE, ROOT / "bundles" / "candy_monai_bundles")
PAGE = re.sub(r"(?m)^    .*$", "", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))  # without its commands
TOKENS = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
PATH = re.compile(r"[\w./]+(/|\.(py|pyi|md|toml|txt|cfg))")
NAME = re.compile(r"([A-Za-z_]\w*)(\.[A-Za-z_]\w*)*")
OF_OTHERS = {"DistributedDataParallel", "pyplot", "lint-imports", "PYENV_VERSION=3.13.0:3.11.7"}
IN_RUNS = {"experiment.json", "metrics.csv", "state.pt", "val"}


@cache
def names_in(path):
    """Return what a module defines: functions, classes, variables, attributes and arguments, members as Class.name."""
    found = set()

    def walk(node, owner):
        for child in ast.iter_child_nodes(node):
            inner = owner
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found.update({child.name, f"{owner}.{child.name}"})
                inner = child.name if isinstance(child, ast.ClassDef) else owner
            elif isinstance(child, ast.Name | ast.Attribute) and isinstance(child.ctx, ast.Store):
                name = child.id if isinstance(child, ast.Name) else child.attr
                found.update({name, f"{owner}.{name}"})
            elif isinstance(child, ast.arg):
                found.add(child.arg)
            walk(child, inner)

    walk(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


@cache
def all_names():
    modules = [path for folder in (PACKAGE, ROOT / "bundles", ROOT / "tests") for path in folder.rglob("*.py")]
    places = {part for path in modules for part in path.relative_to(ROOT).with_suffix("").parts}
    marks = re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return set().union(places, marks, *map(names_in, modules))


def found_at(path):
    return next((folder / path for folder in FOLDERS if (folder / path).exists()), None)


def exists(token):
    """Return whether a file, a name or a command exists."""
    if token.startswith("--"):
        return any(token in path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    if token.startswith("."):
        return True  # what `make` makes
    command, _, argument = token.partition(" ")
    if command == "make":
        return not argument or re.search(rf"^{argument}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
    if command == "candy-monai":
        return (PACKAGE / "cli" / f"{argument}.py").is_file()
    if PATH.fullmatch(token):
        return found_at(token) is not None
    if token in OF_OTHERS | IN_RUNS or token.endswith("_*"):
        return True
    name = re.match(NAME, token)[0]
    if name.startswith("candy_monai."):
        return f'[project.entry-points."{name}"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = all_names()
    return name in known or (name[0].islower() and set(name.removesuffix(".NAME").split(".")) <= known)


@pytest.mark.parametrize("token", TOKENS)
def test_what_the_page_names_exists(token):
    assert exists(token)


@pytest.mark.parametrize(("name", "path"), re.findall(r"`([A-Za-z_][\w.]*)` \(`([^`]+\.py)`", PAGE))
def test_a_name_is_in_the_file_beside_it(name, path):
    assert name in names_in(found_at(path))


@pytest.mark.parametrize(
    "token", ["data/planning/none.py", "NoSuchClass", "Plan.no_such_entry", "make nothing", "candy-monai nothing"]
)
def test_what_does_not_exist_is_noticed(token):
    assert not exists(token)
