"""Charts of a dataset's fingerprint: the frequency of classes, and the distribution of spacings and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np

from candy_monai.data.values import ids_of_label
from candy_monai.plotting.canvas.colors import class_color
from candy_monai.plotting.canvas.figures import INK, new_figure, prepare_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from candy_monai.data.inspection.fingerprint import CaseFingerprint, Fingerprint

_WIDTH = 11.6
_MOST_CLASSES = 30
_LONGEST_NAME = 28
_DOTS = "#0072b2"
_WIDE_SPREAD = 8.0
_NOTE: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 7.5, "color": INK}


def fingerprint_figure(fingerprint: Fingerprint) -> Figure:
    """Draw class frequencies, and beside them the spacings and the shapes of the cases along each axis.

    Axes are those of the patient if the files define them. At most the thirty most frequent classes are drawn.
    """
    rows = _class_rows(fingerprint)
    height = max(3.4, 0.9 + 0.24 * len(rows))
    figure = new_figure(_WIDTH, height)
    bottom, top = 0.5 / height, 0.45 / height
    tall = 1 - bottom - top
    num_voxels = sum(sum(case.class_voxels.values()) for case in fingerprint.cases)
    _draw_classes(figure.add_axes((0.2, bottom, 0.3, tall)), rows, num_voxels, len(fingerprint.cases))
    names, spacings, shapes = _along_axes(fingerprint)
    spread = min(tall, 2.6 / height)
    boxes = [(0.565, 1 - top - spread, 0.185, spread), (0.805, 1 - top - spread, 0.185, spread)]
    if fingerprint.is_picture:
        _draw_spread(figure.add_axes(boxes[0]), "shape in pixels", names, shapes)
        return figure
    _draw_spread(figure.add_axes(boxes[0]), "spacing in mm", names, spacings)
    _draw_spread(figure.add_axes(boxes[1]), "shape in voxels", names, shapes)
    return figure


def _class_rows(fingerprint: Fingerprint) -> list[tuple[str, int, int, int]]:
    """Return for each label its name, an id for its colour, its voxels, and the number of cases with it."""
    rows = []
    labels = dict(fingerprint.labels)
    if fingerprint.ignore_label is not None:
        labels["ignore"] = fingerprint.ignore_label
    for name, ids in labels.items():
        wanted = ids_of_label(ids)
        counts = [sum(case.class_voxels.get(index, 0) for index in wanted) for case in fingerprint.cases]
        rows.append((name, wanted[0], sum(counts), sum(count > 0 for count in counts)))
    if len(rows) > _MOST_CLASSES:
        rows = sorted(rows, key=lambda row: -row[2])[:_MOST_CLASSES]
    return rows


def _draw_classes(axes: Axes, rows: Sequence[tuple[str, int, int, int]], num_voxels: int, num_cases: int) -> None:
    each = f"the {_MOST_CLASSES} largest classes" if len(rows) == _MOST_CLASSES else "each class"
    prepare_axes(axes, f"voxels of {each}, and cases")
    shares = [voxels / num_voxels for *_, voxels, _ in rows]
    smallest = min((share for share in shares if share), default=1.0)
    floor = 10 ** np.floor(np.log10(smallest) - 0.3)
    places = np.arange(len(rows))[::-1]
    colors = [tuple(part / 255 for part in class_color(index)) if index else "#bbbbbb" for _, index, *_ in rows]
    axes.barh(places, [max(share, floor) - floor for share in shares], left=floor, height=0.7, color=colors)
    axes.set_xscale("log")
    axes.set_xlim(floor, 1.0)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    names = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name, *_ in rows]
    axes.set_yticks(places, names, color=INK, parse_math=False)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:.0%}" if value >= 0.01 else f"{100 * value:.2g}%")
    for place, (*_, cases) in zip(places, rows, strict=True):
        axes.annotate(f"{cases}/{num_cases}", (1.0, float(place)), (-3, 0), va="center", **_NOTE)


def _along_axes(fingerprint: Fingerprint) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Return the names of the axes, and the cases' spacings and shapes in their order."""
    in_space = all(case.orientation is not None for case in fingerprint.cases)
    names = ["left-right", "back-front", "down-up"] if in_space else ["rows", "columns", "slices"]
    orders = [_patient_order(case) if in_space else range(len(case.shape)) for case in fingerprint.cases]
    pairs = list(zip(fingerprint.cases, orders, strict=True))
    spacings = np.array([[case.spacing_mm[axis] for axis in order] for case, order in pairs])
    shapes = np.array([[case.shape[axis] for axis in order] for case, order in pairs], dtype=float)
    return names[: shapes.shape[1]], spacings, shapes


def _patient_order(case: CaseFingerprint) -> list[int]:
    assert case.orientation is not None
    order = np.argsort(nibabel.orientations.axcodes2ornt(case.orientation)[:, 0])
    return [int(axis) for axis in order]


def _draw_spread(axes: Axes, title: str, names: Sequence[str], values: NDArray[np.float64]) -> None:
    """Draw a column of dots for each axis, one dot per case, and a line at the median."""
    from matplotlib.ticker import NullFormatter

    prepare_axes(axes, title)
    shift = np.random.default_rng(0).uniform(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
    for column in range(len(names)):
        axes.plot(column + shift, values[:, column], "o", color=_DOTS, markersize=3, alpha=0.5, markeredgewidth=0)
        median = float(np.median(values[:, column]))
        axes.plot([column - 0.3, column + 0.3], [median, median], color=INK, linewidth=1.2)
        axes.annotate(f"{median:.4g}", (column + 0.3, median), (0, 3), **_NOTE)
    if values.min() > 0 and values.max() / values.min() > _WIDE_SPREAD:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, float(values.max()) * 1.12)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), list(names))
    axes.grid(visible=False, axis="x")
