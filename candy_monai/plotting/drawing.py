"""Text, legends and the putting together of pictures, in pixels. Knows no images of patients and writes no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from candy_monai.errors import BadInputError
from candy_monai.plotting.colors import RGB
from candy_monai.plotting.display import ImageLike, Pixels, as_array, to_pixels

INK: RGB = (38, 38, 38)
FAINT: RGB = (120, 120, 120)
PAPER: RGB = (255, 255, 255)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """One class in a legend.

    Args:
        text: What stands beside the colour.
        color: The colour; ``None`` for a remark.
    """

    text: str
    color: RGB | None = None


@cache
def font(size: int, *, bold: bool = False) -> _Font:
    """Return a font that every installation has: matplotlib's DejaVu Sans, else Pillow's own.

    Args:
        size: Height of a line in pixels, about.
        bold: Whether to use the bold face.
    """
    found = find_spec("matplotlib")
    if found is not None and found.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if path.exists():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def blank(height: int, width: int, color: RGB = PAPER) -> Pixels:
    """Return a picture of one colour.

    Args:
        height: In pixels.
        width: In pixels.
        color: Red, green, blue.
    """
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    for channel, value in enumerate(color):
        canvas[..., channel] = value
    return canvas


def text_width(text: str, size: int, *, bold: bool = False) -> int:
    """Return how many pixels a line of text takes.

    Args:
        text: One line.
        size: Of the font.
        bold: Whether the bold face is used.
    """
    return int(np.ceil(font(size, bold=bold).getlength(text)))


def shortened(text: str, width: int, size: int, *, bold: bool = False) -> str:
    """Return the text, its end replaced by an ellipsis if it does not fit.

    Args:
        text: Anything; line breaks and tabs become spaces.
        width: In pixels.
        size: Of the font.
        bold: Whether the bold face is used.
    """
    text = " ".join(text.split())[:400]
    if text_width(text, size, bold=bold) <= width:
        return text
    while text and text_width(text + "…", size, bold=bold) > width:
        text = text[:-1]
    return text + "…"


def line_of_text(
    text: str, width: int, size: int, *, color: RGB = INK, bold: bool = False, centre: bool = False
) -> Pixels:
    """Draw one line of text on white.

    Args:
        text: What to write; shortened if it does not fit.
        width: Of the picture.
        size: Of the font.
        color: Of the letters.
        bold: Whether to use the bold face.
        centre: Whether to write in the middle rather than at the left.
    """
    picture = Image.new("RGB", (width, round(size * 1.5)), PAPER)
    text = shortened(text, width, size, bold=bold)
    left = (width - text_width(text, size, bold=bold)) // 2 if centre else 0
    place = (left, picture.height // 2)
    ImageDraw.Draw(picture).text(place, text, fill=color, font=font(size, bold=bold), anchor="lm")
    return np.asarray(picture)


def write_on(
    pixels: Pixels, text: str, place: tuple[int, int], size: int, *, anchor: str, color: RGB = PAPER
) -> Pixels:
    """Write a word onto a picture, with a dark rim if it is light, so that it can be read on anything.

    Args:
        pixels: ``(H, W, 3)``; not changed.
        text: The word.
        place: Column and row of the anchor.
        size: Of the font.
        anchor: Pillow's two letters: where the anchor is in the text.
        color: Of the letters.
    """
    picture = Image.fromarray(pixels)
    rim = 2 if sum(color) > 384 else 0
    ImageDraw.Draw(picture).text(
        place, text, fill=color, font=font(size), anchor=anchor, stroke_width=rim, stroke_fill=(0, 0, 0)
    )
    return np.asarray(picture)


def legend(entries: Sequence[LegendEntry], width: int, size: int, *, max_rows: int = 3) -> Pixels:
    """Draw a legend in as few rows as it needs.

    Args:
        entries: What it says, in order. Those beyond the last row are counted at its end.
        width: Of the picture.
        size: Of the font.
        max_rows: Most rows.
    """
    gap, box, height = size, round(size * 0.85), round(size * 1.65)
    rows: list[list[tuple[int, LegendEntry]]] = [[]]
    left = 0
    room_for_rest = text_width("+ 9999 more", size) + gap
    for number, entry in enumerate(entries):
        swatch = box + size // 3 if entry.color is not None else 0
        entry = LegendEntry(text=shortened(entry.text, max(width - swatch, size), size), color=entry.color)
        wide = swatch + text_width(entry.text, size)
        last = len(rows) == max_rows
        if left + wide > width - (room_for_rest if last and number < len(entries) - 1 else 0) and rows[-1]:
            if last:
                rows[-1].append((left, LegendEntry(text=f"+ {len(entries) - number} more")))
                break
            rows.append([])
            left = 0
        rows[-1].append((left, entry))
        left += wide + gap
    picture = Image.new("RGB", (width, height * len(rows)), PAPER)
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(rows):
        middle = row * height + height // 2
        for start, entry in line:
            if entry.color is not None:
                top = middle - box // 2
                pen.rectangle((start, top, start + box, top + box), fill=entry.color)
                start += box + size // 3
            pen.text((start, middle), entry.text, fill=INK, font=font(size), anchor="lm")
    return np.asarray(picture)


def stacked(pictures: Sequence[Pixels], *, gap: int = 0, color: RGB = PAPER) -> Pixels:
    """Put pictures below each other, aligned at the left.

    Args:
        pictures: At least one.
        gap: Pixels between two.
        color: Of the gaps and of what is beside narrower pictures.
    """
    canvas = blank(
        sum(len(picture) for picture in pictures) + gap * (len(pictures) - 1),
        max(picture.shape[1] for picture in pictures),
        color,
    )
    top = 0
    for picture in pictures:
        canvas[top : top + len(picture), : picture.shape[1]] = picture
        top += len(picture) + gap
    return canvas


def framed(picture: Pixels, margin: int) -> Pixels:
    """Return a picture with a white margin.

    Args:
        picture: ``(H, W, 3)``.
        margin: In pixels.
    """
    return np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


def contact_sheet(
    images: Sequence[ImageLike],
    *,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    gap: int = 12,
) -> Pixels:
    """Put pictures into a table.

    Args:
        images: ``(H, W, 3)`` each, 8 bit or 0..1; sizes may differ, each is centred in its cell.
        captions: One for each picture, written below it.
        columns: How many side by side; by default about a square.
        gap: Pixels around each cell.

    Returns:
        ``(H, W, 3)`` 8 bit, on white.

    Raises:
        BadInputError: If there is no picture, one has another shape, or the captions are not as many.
    """
    pictures = [_checked(image) for image in images]
    if not pictures:
        raise BadInputError("a contact sheet needs at least one picture")
    if captions is not None and len(captions) != len(pictures):
        raise BadInputError(f"{len(pictures)} pictures have {len(captions)} captions: expected one each")
    if columns is not None and columns < 1:
        raise BadInputError(f"columns is {columns}: expected at least 1")
    across = min(columns or int(np.ceil(np.sqrt(len(pictures)))), len(pictures))
    rows = -(-len(pictures) // across)
    wide, high = max(picture.shape[1] for picture in pictures), max(len(picture) for picture in pictures)
    size = min(22, max(12, wide // 24))
    below = round(size * 1.5) if captions is not None else 0
    sheet = blank(rows * (high + below + gap) + gap, across * (wide + gap) + gap)
    for number, picture in enumerate(pictures):
        top, left = gap + number // across * (high + below + gap), gap + number % across * (wide + gap)
        y, x = top + (high - len(picture)) // 2, left + (wide - picture.shape[1]) // 2
        sheet[y : y + len(picture), x : x + picture.shape[1]] = picture
        if captions is not None:
            sheet[top + high : top + high + below, left : left + wide] = line_of_text(
                captions[number], wide, size, centre=True
            )
    return sheet


def _checked(image: ImageLike) -> Pixels:
    array = as_array(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise BadInputError(f"a picture has shape {array.shape}: expected (H, W, 3)")
    return array.astype(np.uint8) if np.issubdtype(array.dtype, np.integer) else to_pixels(array.astype(np.float32))
