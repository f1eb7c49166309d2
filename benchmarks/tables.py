"""Write the tables of results into the README and the documentation: the last step of ``make benchmarks``.

    python benchmarks/tables.py

A table is between ``<!-- benchmarks: NAME -->`` and ``<!-- end of benchmarks -->``, and is built only from the files in
``results``; rows without a result are left out. The machines and versions of the results are given below it. The text
below the README's figure is written in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGES = (HERE.parent / "README.md", HERE.parent / "docs" / "costs.md")
PLACE = re.compile(r"(<!-- benchmarks: (\w+) -->\n).*?(<!-- end of benchmarks -->)", re.DOTALL)

Result = dict[str, Any]
Line = dict[str, Any]


def read_results(folder: Path = RESULTS) -> list[Result]:
    """Read every result, sorted by name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def with_tables(text: str, results: Sequence[Result]) -> str:
    """Return the text of a page with its tables updated from the results.

    Raises:
        KeyError: If the page names an unknown table.
    """
    return PLACE.sub(lambda place: place[1] + TABLES[place[2]](results) + place[3], text)


def dice(results: Sequence[Result]) -> str:
    """Return the Dice on unseen cases, of ours and of the plain loops, by dataset and time."""
    used = [result for result in results if result["job"].startswith("plain_loops-")]
    lines = [line for result in used for line in result["lines"]]
    lines.sort(key=lambda line: (line["dataset"], line["budget_s"]))
    rows = [
        [
            line["dataset"].partition("_")[2],
            str(line["num_tested"]),
            f"{line['budget_s'] / 60:g}",
            *(f"{line[way]:.3f}" if way in line else "" for way in ("ours", "plain_2d", "plain_3d")),
        ]
        for line in lines
    ]
    return _table(
        ["dataset", "unseen cases", "CPU minutes", "candy_monai", "plain 2-D loop", "plain 3-D loop"], rows, used
    )


def picture(results: Sequence[Result]) -> str:
    """Return the scores of all predictions of which the README's figure shows some."""
    texts = []
    for result in (result for result in results if result["job"] == "picture"):
        (line,) = result["lines"]
        minutes = f"{line['budget'].removesuffix('m')} minutes"
        time = f"the CPU time of {minutes} of two cores" if line["cpu_time"] else minutes
        texts.append(
            f"Mean Dice on all {line['num_tested']} slices of the held-out patients: {line['ours']:.3f}, after "
            f"training on {line['num_trained']} slices of other patients for {time}. "
            f"Measured on {_origins([result])}.\n"
        )
    return "".join(texts)


def costs(results: Sequence[Result]) -> str:
    """Return the costs of the components, compared with those of others or with the bare work."""
    rows, used = [], []
    for result in results:
        if (row := COSTS.get(result["job"])) is not None:
            what, measured = row
            rows.append([f"{what} (`benchmarks/{result['job']}.py`)", measured(result["lines"])])
            used.append(result)
    return _table(["what", "measured"], rows, used)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], used: Sequence[Result]) -> str:
    """Return the headings, the rows and the origin of the measurements; an empty text without rows."""
    if not (lines := [f"| {' | '.join(row)} |" for row in rows]):
        return ""
    head = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return "\n".join([*head, *lines, "", f"Measured on {_origins(used)}.", ""])


def _origins(used: Sequence[Result]) -> str:
    """Return the machines, versions and dates of the results as text, each once."""
    months: dict[str, list[str]] = {}
    for result in used:
        machine, versions = result["machine"], result["versions"]
        names = ("candy-monai", "torch", "monai", "python")
        text = f"{machine['cores']} cores of {machine['processor']}, {machine['system']}, " + ", ".join(
            f"{name} {versions[name]}" for name in names
        )
        if (result.get("load_before") or 0) > 1:
            text += ", with other work on the machine"
        months.setdefault(text, []).append(result["date"][:7])
    return "; ".join(f"{text}, {_span(sorted(set(dates)))}" for text, dates in months.items())


def _span(months: Sequence[str]) -> str:
    return months[0] if len(months) == 1 else f"{months[0]} to {months[-1]}"


def _step(lines: Sequence[Line]) -> str:
    shares = (f"{line['besides_network_share']:.1%} ({line['dataset'].partition('_')[2]})" for line in lines)
    return f"{', '.join(shares)} of its CPU time"


def _saving(lines: Sequence[Line]) -> str:
    (line,) = lines
    saved, plain = line["other_epoch"], line["plain_safe"]
    return (
        f"holds training up for {saved['held_up_s']:.2f} s, on disk after {saved['whole_s']:.2f} s; "
        f"`torch.save` of the same, flushed and renamed, {plain['whole_s']:.2f} s"
    )


def _trainer(lines: Sequence[Line]) -> str:
    (line,) = lines
    return f"{line['trainer_epoch_s']:.2f} s an epoch, the bare loop {line['bare_epoch_s']:.2f} s"


def _predict(lines: Sequence[Line]) -> str:
    (line,) = lines
    return (
        f"{line['predict_s']:.1f} s for {line['cases']} cases; the bare forward passes {line['bare_s']:.1f} s, "
        f"importing PyTorch and MONAI {line['import_s']:.1f} s"
    )


def _windows(lines: Sequence[Line]) -> str:
    (line,) = lines
    return (
        f"{line['ours_s']:.0f} s and {line['ours_mb']:.0f} MB; MONAI {line['monai_s']:.0f} s and "
        f"{line['monai_mb']:.0f} MB; the bare forward passes {line['bare_s']:.0f} s"
    )


def _augmentation(lines: Sequence[Line]) -> str:
    (line,) = lines
    return "; ".join(
        f"{line[f'candy_monai_{how}']} a second {words}"
        + (f", {line[f'times_{how}']} times as many as nnU-Net's loader" if f"times_{how}" in line else "")
        for how, words in (("one_process", "in one process"), ("2_workers", "with two workers"))
    )


def _preprocess(lines: Sequence[Line]) -> str:
    names = {"hippocampus": "200 hippocampus cases", "anisotropic": "four volumes of 512 x 512 x 60"}
    return "; ".join(
        f"{names[line['job']]} {line['candy_monai_s']:.1f} s"
        + (f", {line['times_as_fast']} times as fast as nnU-Net" if "times_as_fast" in line else "")
        for line in lines
    )


COSTS: dict[str, tuple[str, Callable[[Sequence[Line]], str]]] = {
    "augmentation": ("augmented training patches", _augmentation),
    "predict_folder": ("`candy-monai predict --mirror`", _predict),
    "preprocess": ("`candy-monai preprocess`", _preprocess),
    "saving": ("saving an epoch of 30 million parameters, AdamW and moving average", _saving),
    "sliding_window": ("a volume of 256^3 in windows of 96^3, 8 classes", _windows),
    "step": ("a training step, all but the network's forward and backward pass", _step),
    "trainer_overhead": ("`Trainer` over a bare PyTorch loop", _trainer),
}
"""By job: what it measures, and its lines in words."""

TABLES = {"dice": dice, "costs": costs, "picture": picture}


def main() -> None:
    results = read_results()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := with_tables(text, results)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"{page.name}: written")


if __name__ == "__main__":
    main()
