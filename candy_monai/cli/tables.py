"""Fingerprints and plans as tables on the screen. Decides what is worth showing, computes nothing new."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from candy_monai.data.inspection.fingerprint import Fingerprint
    from candy_monai.data.planning.explanation import Choice
    from candy_monai.data.planning.plan import Plan


_MOST_LABELS = 40


def fingerprint_table(fingerprint: Fingerprint) -> Table:
    """Lay out what was found in a dataset."""
    cases = fingerprint.cases
    without = sum(case.foreground_shape is None for case in cases)
    orientations = sorted({"".join(case.orientation) for case in cases if case.orientation})
    rows = [
        ("cases", f"{len(cases)}{f', {without} of them without foreground' if without else ''}"),
        ("shape", _spread([case.shape for case in cases])),
        ("spacing", "none (pictures)" if fingerprint.is_picture else f"{_spread([c.spacing_mm for c in cases])} mm"),
    ]
    if orientations:
        rows.append(("orientation", ", ".join(orientations)))
    for channel in fingerprint.channels:
        whole = channel.whole
        rows.append(
            (
                f"channel {channel.name}",
                f"mean {whole.mean:.4g}, standard deviation {whole.std:.4g}, {whole.min:.4g} to {whole.max:.4g}",
            )
        )
    rows += _label_rows(fingerprint)
    if fingerprint.ignore_label is not None:
        rows.append(("ignored", f"id {fingerprint.ignore_label}"))
    return _table(f"Dataset {fingerprint.dataset_name}", rows)


def _label_rows(fingerprint: Fingerprint) -> list[tuple[str, str]]:
    """Return for each label how large it is and where; of very many, for the first ones."""
    from candy_monai.data.values import ids_of_label

    cases, rows = fingerprint.cases, []
    total = sum(sum(case.class_voxels.values()) for case in cases)
    for name, ids in list(fingerprint.labels.items())[:_MOST_LABELS]:
        wanted = ids_of_label(ids)
        voxels = [sum(case.class_voxels.get(label_id, 0) for label_id in wanted) for case in cases]
        share = f"{100 * sum(voxels) / total:.2g} % of the voxels"
        number = sum(count > 0 for count in voxels)
        rows.append((f"label {name}", f"id {_listed(sorted(wanted))}, {share}, in {number} of {len(cases)} cases"))
    if len(fingerprint.labels) > _MOST_LABELS:
        rows.append(("", f"and {len(fingerprint.labels) - _MOST_LABELS} more labels: --json lists them all"))
    return rows


def plan_table(plan: Plan) -> Table:
    """Lay out the entries of a plan that say most about a training."""
    from candy_monai.data.values import join_names

    normalization = ", ".join(
        f"{name}: {entry.scheme}" for name, entry in zip(plan.channel_names, plan.normalization, strict=True)
    )
    rows = [
        ("configuration", plan.configuration + _slices(plan)),
        ("orientation", "as stored" if plan.orientation is None else "".join(plan.orientation)),
        ("spacing_mm", "as stored" if plan.spacing_mm is None else _sizes(plan.spacing_mm)),
        ("median_shape", _sizes(plan.median_shape)),
        ("normalization", normalization),
        ("num_classes", f"{plan.num_classes} ({join_names(plan.class_names, limit=12)})"),
        ("patch_shape", _sizes(plan.patch_shape)),
        ("batch_size", str(plan.batch_size)),
        ("filters", _listed(plan.filters)),
        ("learning_rate", f"{plan.learning_rate:g}"),
        ("num_epochs", f"{plan.num_epochs} of {plan.iterations_per_epoch} steps"),
    ]
    return _table("Plan", rows)


def _slices(plan: Plan) -> str:
    return "" if plan.slice_axis is None else f", slices across axis {plan.slice_axis}"


def explanation_text(choices: Sequence[Choice]) -> Text:
    """Lay out a plan's choices, each with its reason and how to override it."""
    from rich.text import Text

    text = Text()
    for choice in choices:
        text.append(f"{choice.name}: {choice.value}\n", style="bold")
        text.append(f"  {choice.reason}\n")
        text.append(f"  To change it: {choice.remedy}\n", style="dim")
    return text


def _table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))  # Text: brackets in a dataset's names are no markup
    return table


def _spread(values: Sequence[Sequence[float]]) -> str:
    columns = list(zip(*values, strict=True))
    middle = _sizes([median(column) for column in columns])
    if all(len(set(column)) == 1 for column in columns):
        return middle
    lowest, highest = _sizes([min(column) for column in columns]), _sizes([max(column) for column in columns])
    return f"median {middle}, from {lowest} to {highest}"


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" if value % 1 else f"{value:.0f}" for value in values)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
