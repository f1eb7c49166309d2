"""What the name of an image file says: its format's suffix, the case, and the channel. Opens no file."""

from __future__ import annotations

import re
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


def split_channel(stem: str) -> tuple[str, int | None]:
    """Divide a name without suffix into case and channel; only the last ``_dddd`` is a channel.

    Args:
        stem: For example ``scan_0000_0001``, which is channel 1 of case ``scan_0000``.

    Returns:
        The case and its channel; the whole name and ``None`` where it ends in no channel.
    """
    match = _CHANNEL.fullmatch(stem)
    return (stem, None) if match is None else (match["case"], int(match["channel"]))
