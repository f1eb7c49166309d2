from __future__ import annotations

import os
from pathlib import Path

import pytest

from candy_monai.text import UnreadableTextError, as_word, decode_text, read_json, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_of_any_editor_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{\r\n"name": "M\u00fcller"}\r\n'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"name": "M\u00fcller"}


def test_a_name_that_json_gives_twice_is_an_error(tmp_path):
    (tmp_path / "a.json").write_text('{"labels": {"a": 1, "b": 2, "a": 3}}')
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_the_mark_says_the_order_of_bytes(mark):
    assert decode_text(mark + "a".encode("utf-16-le" if mark == b"\xff\xfe" else "utf-16-be")) == "a"


def test_another_encoding_is_an_error_that_names_the_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\nM\xfcller\n")
    with pytest.raises(UnreadableTextError, match="line 2 is not UTF-8 text"):
        read_text(tmp_path / "a.txt")


def test_json_that_is_nested_without_end_is_an_error_that_says_so(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deep"):
        read_json(tmp_path / "a.json")


def test_a_path_that_begins_with_a_dash_is_no_option_in_a_command():
    words = [as_word(path) for path in (Path("./-out/run"), Path("out/-run"), "/-out")]
    assert words == [os.path.join(".", "-out", "run"), os.path.join("out", "-run"), "/-out"]
