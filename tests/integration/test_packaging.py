"""What is packaged and what the Dockerfile takes is there, and the release is told in the changelog."""

import re
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
