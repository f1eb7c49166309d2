from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

import candy_monai

PACKAGE = Path(candy_monai.__file__).parent
HEAVY = ("torch", "monai", "numpy", "matplotlib", "scipy", "rich", "yaml")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def stub_names() -> dict[str, str]:
    """Return what the stub re-exports: name to module below the package."""
    names = {}
    for statement in ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom):
            assert statement.module is not None
            for alias in statement.names:
                assert alias.asname == alias.name, f"{alias.name} is not re-exported to type checkers"
                names[alias.name] = statement.module.removeprefix("candy_monai.")
    return names


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, candy_monai; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]"


def test_importing_the_package_takes_less_than_a_fifth_of_a_second():
    code = "import time; t = time.perf_counter(); import candy_monai; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.2


def test_the_public_names_are_those_that_type_checkers_see():
    assert stub_names() == candy_monai._MODULE_OF


def test_all_lists_every_public_name_once():
    assert sorted(candy_monai.__all__) == sorted(candy_monai._MODULE_OF)
    assert len(set(candy_monai.__all__)) == len(candy_monai.__all__)
    assert not [name for name in candy_monai.__all__ if name.startswith("_")]


def test_dir_lists_every_public_name_before_its_first_use():
    listed = python("import candy_monai; print(*dir(candy_monai))").split()
    assert set(candy_monai.__all__) <= set(listed)


@pytest.mark.parametrize("name", candy_monai.__all__)
def test_every_public_name_is_what_its_module_holds(name):
    module = import_module(f"candy_monai.{candy_monai._MODULE_OF[name]}")
    assert getattr(candy_monai, name) is getattr(module, name)


@pytest.mark.parametrize("name", candy_monai.__all__)
def test_the_map_names_the_module_that_defines_a_class_or_function(name):
    public = getattr(candy_monai, name)
    if isinstance(public, type) or callable(public):
        where = getattr(public, "__module__", "")
        assert not where.startswith("candy_monai.") or where == f"candy_monai.{candy_monai._MODULE_OF[name]}"


def test_a_star_import_brings_only_the_public_names():
    code = "from candy_monai import *; print(*[name for name in dir() if not name.startswith('__')])"
    assert sorted(python(code).split()) == sorted(candy_monai.__all__)


def test_no_public_name_equals_a_top_level_submodule():
    submodules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert "errors" in submodules
    assert not submodules & set(candy_monai.__all__)


def test_an_unknown_name_is_an_attribute_error_with_a_suggestion():
    with pytest.raises(AttributeError, match=r"has no attribute 'Trianer'. Did you mean 'Trainer'\?"):
        _ = candy_monai.Trianer
    assert not hasattr(candy_monai, "nothing_like_it")


def test_importing_an_unknown_name_is_an_import_error():
    with pytest.raises(ImportError):
        exec("from candy_monai import Trianer", {})


def test_a_submodule_can_be_imported_from_the_package():
    assert python("from candy_monai import errors; print(errors.__name__)") == "candy_monai.errors"


def test_the_version_is_the_installed_one():
    assert candy_monai.__version__ == version("candy-monai")


def test_type_checkers_can_follow_an_editable_installation():
    found = distribution("candy-monai")
    paths = [found.locate_file(file) for file in found.files or () if file.name.endswith(".pth")]
    if not paths:
        pytest.skip("candy-monai is not installed in editable mode")
    lines = [line for path in paths for line in Path(str(path)).read_text(encoding="utf-8").splitlines() if line]
    assert lines
    assert all(Path(line).is_dir() for line in lines)  # an "import" line runs a finder, which type checkers do not
