"""Text from and for other programs: files with or without a byte order mark, in UTF-8 or UTF-16; words of commands."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from candy_monai.aliases import PathLike

# UTF-32's mark begins with UTF-16's, so the longer ones are tried first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class UnreadableTextError(ValueError):
    """A file has another encoding than its byte order mark or UTF-8; the message contains the position."""


def decode_text(content: bytes) -> str:
    """Return the text of a file, decoded according to its byte order mark, or as UTF-8 if it has none.

    Raises:
        UnicodeDecodeError: If it is in another encoding.
    """
    return content.decode(next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8"))


def read_text(path: PathLike) -> str:
    """Read a text file, decoded by `decode_text`.

    Raises:
        OSError: If it cannot be read.
        UnreadableTextError: If it is in another encoding.
    """
    content = Path(path).read_bytes()
    try:
        return decode_text(content)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UnreadableTextError(f"line {line} is not UTF-8 text; save the file as UTF-8") from error


def read_json(path: PathLike) -> Any:
    """Read a JSON file, decoded by `decode_text`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON, has another encoding, or repeats a name in one object, for which Python's own
            reader would take the last value.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_named_once)
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deep") from error


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"{twice!r} occurs more than once; keep only one")
    return found


def as_word(path: PathLike) -> str:
    """Return a path as a word of a command: one that begins with a dash, like an option, gets ``./`` before it."""
    word = os.fspath(path)
    return os.path.join(os.curdir, word) if word.startswith("-") else word
