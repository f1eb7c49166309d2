"""Draw text and legends, and combine pictures, in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from candy_monai.aliases import PathLike
from candy_monai.files import atomic_path
from candy_monai.plotting.canvas.arrays import Pixels
from candy_monai.plotting.canvas.colors import RGB

INK: RGB = (38, 38, 38)
FAINT: RGB = (120, 120, 120)
PAPER: RGB = (255, 255, 255)

_LEGEND_SIZE, _LEGEND_ROWS = 17, 3
_SHEET_GAP = 12


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font that is always available: matplotlib's DejaVu Sans, else Pillow's own."""
    found = find_spec("matplotlib")
    if found is not None and found.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if path.exists():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def blank(height: int, width: int, brightness: int = 255) -> Pixels:
    """Return a uniformly grey picture: white by default, black for 0."""
    return np.full((height, width, 3), brightness, dtype=np.uint8)


def text_width(text: str, size: int, *, bold: bool = False) -> int:
    """Return the width of a line of text in pixels."""
    return int(np.ceil(_font(size, bold).getlength(text)))


def shortened(text: str, width: int, size: int, *, bold: bool = False) -> str:
    """Return a text on one line, truncated with an ellipsis if it is wider than ``width`` pixels."""
    text = " ".join(text.split())[:400]
    if text_width(text, size, bold=bold) <= width:
        return text
    while text and text_width(text + "…", size, bold=bold) > width:
        text = text[:-1]
    return text + "…"


def line_of_text(
    text: str, width: int, size: int, *, color: RGB = INK, bold: bool = False, centre: bool = False
) -> Pixels:
    """Draw one line of text on white in the given font size, shortened to ``width`` pixels."""
    picture = Image.new("RGB", (width, round(size * 1.5)), PAPER)
    text = shortened(text, width, size, bold=bold)
    left = (width - text_width(text, size, bold=bold)) // 2 if centre else 0
    place = (left, picture.height // 2)
    ImageDraw.Draw(picture).text(place, text, fill=color, font=_font(size, bold), anchor="lm")
    return np.asarray(picture)


def write_on(
    pixels: Pixels, text: str, place: tuple[int, int], size: int, *, anchor: str, color: RGB = PAPER
) -> Pixels:
    """Return a picture with a word at a column and row, positioned by Pillow's two-letter ``anchor``.

    A light word has a dark outline, so that it is legible on any background.
    """
    picture = Image.fromarray(pixels)
    rim = 2 if sum(color) > 384 else 0
    ImageDraw.Draw(picture).text(
        place, text, fill=color, font=_font(size), anchor=anchor, stroke_width=rim, stroke_fill=(0, 0, 0)
    )
    return np.asarray(picture)


def legend(entries: Sequence[tuple[str, RGB | None]], width: int) -> Pixels:
    """Draw a legend of texts, each with its colour if it has one, in as few rows of the given width as possible.

    Entries beyond the third row are replaced by their number.
    """
    size, gap, box, height = _LEGEND_SIZE, _LEGEND_SIZE, round(_LEGEND_SIZE * 0.85), round(_LEGEND_SIZE * 1.65)
    picture = Image.new("RGB", (width, height * _LEGEND_ROWS), PAPER)
    pen = ImageDraw.Draw(picture)
    room_for_rest = text_width("+ 9999 more", size) + gap
    left = row = 0
    for number, (text, color) in enumerate(entries):
        swatch = 0 if color is None else box + size // 3
        text = shortened(text, max(width - swatch, size), size)
        needed = swatch + text_width(text, size)
        last = row == _LEGEND_ROWS - 1
        full = left > 0 and left + needed > width - (room_for_rest if last and number < len(entries) - 1 else 0)
        if full and not last:
            row, left = row + 1, 0
        elif full:
            text, color, swatch = f"+ {len(entries) - number} more", None, 0
        middle = row * height + height // 2
        if color is not None:
            edge = FAINT if color == PAPER else color
            pen.rectangle((left, middle - box // 2, left + box, middle - box // 2 + box), fill=color, outline=edge)
        pen.text((left + swatch, middle), text, fill=INK, font=_font(size), anchor="lm")
        if full and last:
            break
        left += needed + gap
    return np.asarray(picture)[: height * (row + 1)]


def stacked(pictures: Sequence[Pixels], *, gap: int, margin: int = 0) -> Pixels:
    """Stack one or more pictures vertically on white, left-aligned, with a gap between and a margin around them."""
    height = sum(len(picture) + gap for picture in pictures) - gap
    canvas = blank(height + 2 * margin, max(picture.shape[1] for picture in pictures) + 2 * margin)
    top = margin
    for picture in pictures:
        paste(canvas, picture, top, margin)
        top += len(picture) + gap
    return canvas


def paste(canvas: Pixels, picture: Pixels, top: int, left: int) -> None:
    """Paste a picture into a canvas, in place."""
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def contact_sheet(pictures: Sequence[Pixels], captions: Sequence[str], *, columns: int) -> Pixels:
    """Arrange one or more pictures of any size in a table on white, each centred in its cell above its caption."""
    across, gap = min(columns, len(pictures)), _SHEET_GAP
    wide, high = max(picture.shape[1] for picture in pictures), max(len(picture) for picture in pictures)
    size = min(22, max(12, wide // 24))
    below = round(size * 1.5)
    sheet = blank(-(-len(pictures) // across) * (high + below + gap) + gap, across * (wide + gap) + gap)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        top, left = gap + number // across * (high + below + gap), gap + number % across * (wide + gap)
        paste(sheet, picture, top + (high - len(picture)) // 2, left + (wide - picture.shape[1]) // 2)
        paste(sheet, line_of_text(caption, wide, size, centre=True), top + high, left)
    return sheet


def save_png(pixels: Pixels, path: PathLike) -> Path:
    """Write a picture as PNG atomically and return the path; its folder is created if missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, durable=False) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG", compress_level=1)
    return path
