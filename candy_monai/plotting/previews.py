"""The five pictures of a case that a run leaves in its folder. Owns their names and what each of them shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError
from candy_monai.plotting import drawing
from candy_monai.plotting.cases import CasePictures, spatial_axes
from candy_monai.plotting.display import ImageLike, Pixels, save_png
from candy_monai.plotting.scores import Dice

PREVIEW_NAMES = tuple(f"{what} (preview).png" for what in ("input", "label", "prediction", "expected", "actual"))
"""The files that ``save_preview_files`` writes, in its order."""

_MARGIN = 12
_GAP = 10
_TITLE_SIZE = 20
_REFERENCE, _PREDICTION = 0, 1


def save_preview_files(
    folder: PathLike,
    image: ImageLike,
    label: ImageLike,
    prediction: ImageLike,
    *,
    quality: float = 0.75,
    num_classes: int | None = None,
    spacing_mm: Sequence[float] | None = None,
    orientation: str | None = None,
    class_names: Mapping[int, str] | None = None,
    title: str | None = None,
    rgb: bool | None = None,
) -> tuple[Path, ...]:
    """Write what a case looks like, what was expected and what came out, as five PNG files.

    ``input`` is the image, one row for each of its first four channels; ``label`` and ``prediction`` are label ids;
    ``expected`` and ``actual`` draw them over the first channel. A volume is shown in three planes, the same slices in
    all files, and as a surface. The label chooses the slices; the prediction does if the label is empty. Without an
    affine or an orientation the axes are taken for RAS, and no directions are written.

    Args:
        folder: Where the files go; existing ones are replaced.
        image: ``(C, *spatial)``, any range of values.
        label: ``(1, *spatial)`` label ids.
        prediction: ``(1, *spatial)`` label ids.
        quality: Most voxels of a surface, in millions.
        num_classes: Background included; ids from here on get no Dice. ``None`` takes every positive id for a class.
        spacing_mm: Of the three axes of a volume; by default the image's affine tells.
        orientation: Axis codes of a volume such as ``"RAS"``; by default the image's affine tells.
        class_names: What the legend calls the ids.
        title: Written above each picture.
        rgb: Whether three channels are colours; by default those of 2-D images are looked at.

    Returns:
        The paths of the five files.

    Raises:
        BadInputError: If shapes do not fit each other or the quality is not positive.
    """
    if not quality > 0:
        raise BadInputError(f"quality is {quality}: expected millions of voxels, more than 0")
    case = CasePictures(
        image,
        [label, prediction],
        num_spatial=spatial_axes(label),
        spacing_mm=spacing_mm,
        orientation=orientation,
        max_volume=max(1, round(quality * 1e6)),
        class_names=class_names,
        rgb=rgb,
    )
    dice = Dice.between(case.ids[_REFERENCE], case.ids[_PREDICTION], num_classes=num_classes)
    pictures = [_finished(case, _rows_of_image(case), "input", title, [], None)]
    square = case.layout().surface
    surfaces = [None if square is None else case.surface(layer, square.width) for layer in (_REFERENCE, _PREDICTION)]
    for what, over_image, layer in (
        ("label", False, _REFERENCE),
        ("prediction", False, _PREDICTION),
        ("expected", True, _REFERENCE),
        ("actual", True, _PREDICTION),
    ):
        panel = case.panel(image=over_image, layer=layer, surface=surfaces[layer])
        pictures.append(_finished(case, panel, what, title, [layer], dice if what == "actual" else None))
    return tuple(save_png(picture, Path(folder) / name) for picture, name in zip(pictures, PREVIEW_NAMES, strict=True))


def _rows_of_image(case: CasePictures) -> Pixels:
    rows = [case.panel(image=True, channel=channel) for channel in range(case.num_rows)]
    return drawing.stacked(rows, gap=_GAP)


def _finished(
    case: CasePictures, panel: Pixels, what: str, title: str | None, layers: Sequence[int], dice: Dice | None
) -> Pixels:
    """Put a title above and a legend below."""
    width = panel.shape[1]
    heading = what if not title else f"{title}: {what}"
    parts = [drawing.line_of_text(heading, width, _TITLE_SIZE, bold=True), panel]
    legend = case.legend(layers, width, dice=dice) if layers else None
    if legend is not None:
        parts.append(legend)
    return drawing.framed(drawing.stacked(parts, gap=_GAP // 2), _MARGIN)
