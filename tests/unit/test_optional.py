from __future__ import annotations

import json

import pytest

from candy_monai.errors import MissingExtraError
from candy_monai.optional import require


def test_an_installed_module_is_returned():
    assert require("json", extra="all", purpose="read JSON") is json


def test_a_missing_module_is_an_error_that_says_which_extra_brings_it():
    expected = r'no_such_package is needed to read \.xyz files and is not installed: pip install "candy-monai\[xyz\]"'
    with pytest.raises(MissingExtraError, match=expected):
        require("no_such_package.reader", extra="xyz", purpose="read .xyz files")


def test_a_package_that_fails_to_import_what_it_needs_counts_as_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError) as caught:
        require("half_installed", extra="all", purpose="test")
    assert "no_such_package" in str(caught.value.__cause__)
