"""What is packaged and what the Dockerfile takes is there, and the release is told in the changelog."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PACKAGED["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
def test_what_the_source_distribution_includes_exists(path):
    assert any(ROOT.glob(path.lstrip("/")))


def test_the_image_copies_what_exists_and_what_dockerignore_lets_through():
    copied = " ".join(re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)).split()
    let_through = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(copied) == sorted(let_through)
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_installs_extras_that_there_are():
    (extras,) = re.findall(r'"\.\[(.+)\]"', DOCKERFILE)
    assert set(extras.split(",")) <= PACKAGED["project"]["optional-dependencies"].keys()


def test_the_changelog_begins_with_what_is_unreleased_and_then_tells_of_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", PACKAGED["project"]["version"]]


def test_the_classifiers_name_the_pythons_that_the_package_is_tested_with():
    project = PACKAGED["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert project["requires-python"] == f">={named[0]}"
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(f"PYTHON={version}" in contributing for version in named)


def test_what_the_source_distribution_must_hold_is_included():
    included = PACKAGED["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"/docs", "/tests", "/tutorials", "/constraints.txt", "/benchmarks/results"} <= set(included)


@pytest.mark.parametrize("versions", ["pinned", "lowest", "newest", "weekly"])
def test_the_makefile_tests_other_pythons_with_each_choice_of_versions(versions):
    command = ["make", "--dry-run", "test-python", "PYTHON=3.13", f"VERSIONS={versions}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "venv --quiet --clear --python 3.13" in said
    assert ("monai-weekly" in said) == (versions == "weekly")
    assert ("--constraint constraints.txt --editable" in said) == (versions == "pinned")
    assert "pytest --numprocesses 2 tests/golden" in said


def test_the_makefile_refuses_versions_that_it_does_not_know():
    command = ["make", "--dry-run", "test-python", "VERSIONS=oldest"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode
    assert "VERSIONS must be pinned, lowest, newest or weekly, got oldest" in said.stderr
