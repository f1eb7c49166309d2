"""The five pictures of a case in the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError
from candy_monai.plotting.canvas import drawing
from candy_monai.plotting.canvas.arrays import ImageLike
from candy_monai.plotting.case.layout import GAP
from candy_monai.plotting.case.pictures import CasePictures, dice_by_class

PREVIEW_NAMES = tuple(f"{what} (preview).png" for what in ("input", "label", "prediction", "expected", "actual"))
"""The files that ``save_preview_files`` writes, in its order."""


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
    """Write the image, the label and the prediction of a case as five PNG files, and return their paths.

    ``input`` is the image, one row for each of its first four channels; ``label`` and ``prediction`` are label ids;
    ``expected`` and ``actual`` draw them over the first channel. A volume is shown in three planes, the same slices in
    all files, and as a surface. The slices are chosen by the label, or by the prediction if the label is empty. Without
    an affine or an orientation RAS axes are assumed, and no directions are shown.

    Args:
        folder: The folder of the files; existing ones are replaced.
        image: ``(C, *spatial)``, any range of values.
        label: ``(1, *spatial)`` label ids.
        prediction: The same.
        quality: The maximum number of voxels for a surface, in millions.
        num_classes: The number with background; higher ids get no Dice. ``None`` treats every positive id as a class.
        spacing_mm: Of the three axes of a volume; by default from the image's affine.
        orientation: Axis codes of a volume such as ``"RAS"``; by default from the image's affine.
        class_names: Names of the ids in the legend.
        title: The title above each picture.
        rgb: Whether three channels are colours.
    """
    if not quality > 0:
        raise BadInputError(f"quality is {quality}: expected millions of voxels, more than 0")
    case = CasePictures(
        image,
        [label, prediction],
        spacing_mm=spacing_mm,
        orientation=orientation,
        max_volume=max(1, round(quality * 1e6)),
        class_names=class_names,
        rgb=rgb,
    )
    dice = dice_by_class(case.ids[0], case.ids[1], num_classes=num_classes)
    heading = f"{title}: " if title else ""
    rows = drawing.stacked([case.panel(channel=channel) for channel in range(case.num_rows)], gap=GAP)
    pictures = [case.page(rows, f"{heading}input")]
    surfaces = [case.surface(layer) for layer in (0, 1)]
    kinds = (("label", False, 0), ("prediction", False, 1), ("expected", True, 0), ("actual", True, 1))
    for what, over_image, layer in kinds:
        reference = 0 if what == "actual" else None
        panel = case.panel(image=over_image, layer=layer, surface=surfaces[layer], reference=reference)
        pictures.append(case.page(panel, heading + what, layer=layer, dice=dice if what == "actual" else None))
    names = zip(pictures, PREVIEW_NAMES, strict=True)
    return tuple(drawing.save_png(picture, Path(folder) / name) for picture, name in names)
