"""The configuration of a MONAI Bundle as plain data: references are resolved, and Python in it is not run.

MONAI's ``ConfigParser`` calls whatever a file names. Here, ``@`` references are resolved to plain values, and only
``$`` expressions that consist of literals, references and operators on these are computed.
"""

from __future__ import annotations

import ast
import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from candy_monai.aliases import PathLike
from candy_monai.data.pipelines.building import read_json_or_yaml
from candy_monai.errors import BadInputError, did_you_mean

CONFIGS = "configs"
SUFFIXES = (".json", ".yaml", ".yml")

_MOST_BYTES = 5_000_000
_DEEPEST = 50
_MOST_RESOLVED = 100_000  # values, those behind references each time that they are named
_LONGEST_RESULT = 100_000
_REFERENCE = re.compile(r"@([A-Za-z_]\w*(?:(?:#|::)\w+)*)")
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_TYPES = {
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("float32", "float16", "bfloat16", "float64", "uint8", "int16", "int32", "int64", "long", "float")
    },
    **{
        f"{package}.{name}": getattr(np, name)
        for package in ("np", "numpy")
        for name in ("float32", "float16", "float64", "uint8", "int16", "int32", "int64")
    },
}


class BundleConfig:
    """The ``inference.json`` of a bundle, and its metadata.

    If it is trusted, the Python in it is run, with MONAI's ``ConfigParser``, where plain data are not sufficient.
    """

    def __init__(self, folder: PathLike, *, trust: bool = False) -> None:
        self.folder, self.trust = Path(folder), trust
        found, described = (
            next((path for suffix in SUFFIXES if (path := self.folder / CONFIGS / f"{name}{suffix}").is_file()), None)
            for name in ("inference", "metadata")
        )
        if found is None:
            raise BadInputError(f"{self.folder}: not a MONAI Bundle, it has no {CONFIGS}/inference.json (or .yaml)")
        self.file = found
        self.content = _read(found)  # unresolved
        self.metadata = {} if described is None else _read(described)
        self._parser: Any = None
        self._num_resolved = 0

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def value(self, name: str) -> Any:
        """Return an entry, or a nested one such as ``evaluator#amp``, with all references in it resolved."""
        return self.resolved(self._at(name, where=name), name)

    def resolved(
        self, value: Any, where: str, *, keep: Sequence[str] = (), skip: Sequence[str] = (), depth: int = 0
    ) -> Any:
        """Return plain data with all references in them resolved and simple expressions computed.

        Args:
            value: The data.
            where: Their place, for messages.
            keep: References that are not resolved.
            skip: Names of classes whose arguments are ignored: for their entries only the target is returned.
            depth: Number of enclosing references and containers.
        """

        def part(value: Any, where: str) -> Any:
            return self.resolved(value, where, keep=keep, skip=skip, depth=depth + 1)

        self._num_resolved += 1
        if depth > _DEEPEST or self._num_resolved > _MOST_RESOLVED:
            raise self._refused(where, "refers to itself, is nested too deep, or multiplies by references")
        if isinstance(value, Mapping):
            target = value.get("_target_")
            if isinstance(target, str) and class_name(target) in skip:
                return {"_target_": target}
            return {key: part(each, f"{where}#{key}") for key, each in value.items()}
        if isinstance(value, list):
            return [part(each, f"{where}#{index}") for index, each in enumerate(value)]
        if not isinstance(value, str) or value in keep:
            return value
        if value[:1] == "$":
            return self._computed(value, where, depth)
        if (reference := _REFERENCE.fullmatch(value)) is not None:
            return part(self._at(reference[1], where=where), reference[1])
        if value[:1] == "%":
            name = value[1:].lstrip("#")
            if re.fullmatch(r"\w+(?:(?:#|::)\w+)*", name) is None:
                raise self._refused(where, f"{value!r} refers to another file, which is not read")
            return part(self._at(name, where=where), name)
        return value

    def built(self, name: str) -> Any:
        """Return the object that MONAI builds from an entry; only for a trusted bundle, whose Python this runs."""
        assert self.trust
        with self.importable():
            return self.parser().get_parsed_content(name)

    def parser(self) -> Any:
        """Return MONAI's parser of the configuration; only for a trusted bundle."""
        assert self.trust
        if self._parser is None:
            from monai.bundle import ConfigParser

            with self.importable():
                self._parser = ConfigParser()
                self._parser.read_config(self.content)
                self._parser["bundle_root"] = str(self.folder)
                self._parser.parse()
        return self._parser

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Make the modules of a bundle importable during a block; only for a trusted one."""
        assert self.trust
        sys.path.insert(0, str(self.folder.resolve()))
        try:
            yield
        finally:
            sys.path.remove(str(self.folder.resolve()))

    def _at(self, name: str, *, where: str) -> Any:
        found: Any = {"bundle_root": str(self.folder)} | self.content
        for part in re.split("#|::", name):
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, Mapping) and part in found:
                found = found[part]
            else:
                raise self._refused(where, f"@{name} is not in the file.{did_you_mean(name, map(str, self.content))}")
        return found

    def _computed(self, expression: str, where: str, depth: int) -> Any:
        """Return the value of an expression of literals, references and operators."""
        names: dict[str, str] = {}

        def named(match: re.Match[str]) -> str:
            name = f"reference_{len(names)}"
            names[name] = match[1]
            return name

        try:
            tree = ast.parse(_REFERENCE.sub(named, expression[1:].strip()), mode="eval")
            return _evaluated(
                tree.body, lambda name: self.resolved(f"@{names[name]}", where, depth=depth + 1), depth=depth
            )
        except BadInputError:  # of a reference
            if not self.trust:
                raise
        except (_NotPlainError, SyntaxError, RecursionError, ArithmeticError, TypeError, ValueError, MemoryError):
            pass
        if self.trust:
            with self.importable():
                parser = self.parser()
                parser["_of_candy_monai"] = expression
                parser.parse()
                return parser.get_parsed_content("_of_candy_monai")
        raise self._refused(where, f"{expression!r} is a Python expression")

    def _refused(self, where: str, what: str) -> BadInputError:
        return BadInputError(
            f"{self.file}: {where}: {what}; expected plain values. If you trust whoever wrote the bundle, let it run "
            "its Python: --trust (in Python trust=True)"
        )


class _NotPlainError(Exception):
    """Raised if an expression contains more than literals, references and operators."""


def _evaluated(node: ast.AST, reference: Callable[[str], Any], *, depth: int) -> Any:
    if depth > _DEEPEST:
        raise _NotPlainError

    def of(part: ast.AST) -> Any:
        return _evaluated(part, reference, depth=depth + 1)

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id.startswith("reference_"):
        return reference(node.id)
    if isinstance(node, ast.Attribute) and ast.unparse(node) in _TYPES:
        return _TYPES[ast.unparse(node)]
    if isinstance(node, ast.List | ast.Tuple):
        return [of(part) for part in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        value = of(node.operand)
        return -value if isinstance(node.op, ast.USub) else not value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = of(node.left), of(node.right)
        is_number = all(isinstance(side, int | float) for side in (left, right))
        is_sum = isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, str | list)
        if is_number or (is_sum and len(left) + len(right) < _LONGEST_RESULT):
            return _OPERATORS[type(node.op)](left, right)
    raise _NotPlainError


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON or YAML file, an object."""
    if path.stat().st_size > _MOST_BYTES:
        raise BadInputError(f"{path}: is too large for a configuration ({path.stat().st_size:,} bytes)")
    found = read_json_or_yaml(path)
    if not isinstance(found, dict):
        raise BadInputError(f"{path}: found {type(found).__name__}, expected an object with entries by name")
    return found


def class_name(target: str) -> str:
    """Return the name of the class that a ``_target_`` builds; ``SaveImaged.set_options`` builds one as well."""
    return target.removesuffix(".set_options").rpartition(".")[2]
