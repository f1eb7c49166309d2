"""Parse names of image files: the format's suffix, the case, and the channel."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from candy_monai.aliases import PathLike

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})", re.ASCII | re.DOTALL)


def image_suffix(path: PathLike) -> str:
    """Return a file's full suffix in lower case: ``.nii.gz`` for ``a.b.NII.GZ``."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def stem_of(path: PathLike) -> str:
    """Return a file's name without its image suffix: ``a.b`` for ``a.b.nii.gz``."""
    name = Path(path).name
    return name[: len(name) - len(image_suffix(name))]


def composed(name: str) -> str:
    """Return a name with accents and umlauts in one form (Unicode's NFC), for comparisons.

    macOS decomposes them in the names of files (``u`` and a diaeresis), keyboards and most other systems do not, so
    that two names that look the same differ.
    """
    return unicodedata.normalize("NFC", name)


def existing_path(path: Path) -> Path:
    """Return the existing file of this name, in any form of its accents; the path itself if there is none."""
    if path.exists() or path.name.isascii() or not path.parent.is_dir():
        return path
    return next((file for file in path.parent.iterdir() if composed(file.name) == composed(path.name)), path)


def split_channel(stem: str) -> tuple[str, int | None]:
    """Return the case and channel of a name without suffix; the whole name and ``None`` if it has no channel.

    Only the last ``_dddd`` is a channel: ``scan_0000_0001`` is channel 1 of case ``scan_0000``.
    """
    match = _CHANNEL.fullmatch(stem)
    return (stem, None) if match is None else (match["case"], int(match["channel"]))
