"""``candy-monai inspect``: what is in a dataset, what is wrong with it, and what would be planned for it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import BAD_INPUT, DONE
from candy_monai.cli.options import (
    add_dataset,
    add_device,
    add_jobs,
    add_set,
    new_command,
    parse_overrides,
    resolve_device,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from candy_monai.cli.options import Subparsers
    from candy_monai.data.inspection.fingerprint import Fingerprint
    from candy_monai.data.planning.explanation import Choice
    from candy_monai.data.planning.plan import Plan


_PLACES_PER_CLASS = 32


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "inspect",
        run,
        summary="check a dataset and show what would be planned for it",
        text="Read every case of a dataset, report what is wrong or unusual, and show its fingerprint and the "
        "suggested plan. Writes nothing without --out. Exits with 2 when a problem would stop training.",
        example="candy-monai inspect Dataset004_Hippocampus --explain\n"
        "candy-monai inspect Dataset004_Hippocampus --out hippocampus\n"
        "candy-monai inspect Dataset004_Hippocampus --json > inspection.json",
    )
    add_dataset(parser)
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument(
        "--explain", action="store_true", help="say of every choice of the plan why it is so and how to change it"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write inspection.png (class frequencies, spacings, shapes, cases) and inspection.json to this folder",
    )
    add_set(parser)
    add_jobs(parser)
    add_device(parser, why="what to plan for")


@dataclass(frozen=True, kw_only=True)
class _Found:
    fingerprint: Fingerprint
    plan: Plan
    choices: tuple[Choice, ...]


@dataclass(frozen=True, kw_only=True)
class _Report:
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    found: _Found | None

    def as_json(self) -> str:
        found = self.found
        content = {
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "fingerprint": None if found is None else json.loads(found.fingerprint.to_json()),
            "plan": None if found is None else found.plan.to_dict(),
            "explanation": None if found is None else [vars(choice) for choice in found.choices],
        }
        return json.dumps(content, allow_nan=False)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    overrides = parse_overrides(args.overrides)

    from candy_monai.data.inspection.checks import visit_dataset
    from candy_monai.recipes.inspection import INSPECTION, refuse_inside, save_inspection

    if args.out is not None:
        refuse_inside(args.out, args.dataset)
    checked = visit_dataset(args.dataset, num_workers=args.jobs, places_per_class=_PLACES_PER_CLASS)
    problems, found = checked.report.problems, None
    if checked.fingerprint is not None:
        found = _found(checked.fingerprint, overrides, resolve_device(args.device))
    elif not problems:
        problems = ("imagesTr: no case; training needs at least one image with its label",)
    report = _Report(problems=problems, warnings=checked.report.warnings, found=found)
    if args.json:
        print(report.as_json())
    else:
        _show(args.dataset, report, explain=args.explain)
    if args.out is not None:
        from candy_monai.files import atomic_write_text, check_writable

        check_writable(args.out)
        args.out.mkdir(parents=True, exist_ok=True)
        atomic_write_text(args.out / INSPECTION, report.as_json())
        if found is not None:
            save_inspection(checked.dataset, found.fingerprint, args.out)
        if not args.json:
            print(f"Written to {args.out}")
    return BAD_INPUT if problems else DONE


def _found(fingerprint: Fingerprint, overrides: Mapping[str, str], device: str) -> _Found:
    from candy_monai.data.planning.explanation import explain
    from candy_monai.data.planning.plan import plan
    from candy_monai.recipes.prepare import device_memory

    made = plan(fingerprint, memory_bytes=device_memory(device), overrides=overrides)
    return _Found(fingerprint=fingerprint, plan=made, choices=explain(made, fingerprint))


def _show(dataset: Path, report: _Report, *, explain: bool) -> None:
    from rich.console import Console

    from candy_monai.cli.tables import explanation_text, fingerprint_table, plan_table

    if report.found is not None:
        console = Console()
        console.print(fingerprint_table(report.found.fingerprint))
        console.print(explanation_text(report.found.choices) if explain else plan_table(report.found.plan))
    for kind, texts in (("warning", report.warnings), ("problem", report.problems)):
        for text in texts:
            print(f"{kind}: {text}", file=sys.stderr)
    if report.problems:
        print(f"{dataset}: {len(report.problems)} to mend before training", file=sys.stderr)
    else:
        print("Nothing stands in the way of training.")
