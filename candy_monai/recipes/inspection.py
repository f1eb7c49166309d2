"""Draw a dataset in one picture: charts of its fingerprint above a sheet of some of its cases. Never writes into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.errors import CandyError
from candy_monai.recipes.prepare import evenly_spaced, refuse_inside

if TYPE_CHECKING:
    from candy_monai.data.inspection.fingerprint import Fingerprint

PICTURE, INSPECTION = "inspection.png", "inspection.json"
_MOST_CASES = 12
_TILE = 220
_WIDTH = 1392


def save_inspection(dataset: NNUNetDataset, fingerprint: Fingerprint, folder: PathLike) -> Path:
    """Draw a dataset into ``inspection.png``.

    Cases are loaded one at a time.

    Raises:
        SettingsError: If the folder lies inside the dataset.
    """
    from candy_monai.plotting.canvas import drawing
    from candy_monai.plotting.canvas.figures import pixels_of
    from candy_monai.plotting.case.panels import case_tile
    from candy_monai.plotting.charts.fingerprints import fingerprint_figure

    refuse_inside(folder, dataset.folder)
    tiles, captions = [], []
    for case_id in evenly_spaced(dataset.case_ids, _MOST_CASES):
        try:
            image, label = dataset.subset([case_id]).load(0)
            tiles.append(case_tile(image, label, size=_TILE))
        except CandyError:
            continue  # the check names what is wrong with it
        captions.append(case_id)
    count = len(fingerprint.cases)
    title = f"{fingerprint.dataset_name}: {count} {'case' if count == 1 else 'cases'}"
    heading = drawing.line_of_text(title, _WIDTH, 22, bold=True)
    parts = [heading, pixels_of(fingerprint_figure(fingerprint))]
    if tiles:
        parts.append(drawing.contact_sheet(tiles, captions, columns=6))
    return drawing.save_png(drawing.stacked(parts, gap=6, margin=10), Path(folder) / PICTURE)
