"""``candy-monai inspect``: what is in a dataset, what is wrong with it, and what would be planned for it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from candy_monai.cli.errors import BAD_INPUT, DONE
from candy_monai.cli.options import add_dataset, add_device, add_set, new_command, parse_overrides, resolve_device
from candy_monai.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from candy_monai.cli.options import Subparsers
    from candy_monai.data.inspection import Fingerprint
    from candy_monai.data.planning import Plan


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "inspect",
        run,
        summary="check a dataset and show what would be planned for it",
        text="Read every case of a dataset, report what is wrong or unusual, and show its fingerprint and the "
        "suggested plan. Writes nothing. Exits with 2 when a problem would stop training.",
        example="candy-monai inspect Dataset004_Hippocampus\n"
        "candy-monai inspect Dataset004_Hippocampus --json > inspection.json",
    )
    add_dataset(parser)
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    add_set(parser)
    add_device(parser, why="what to plan for")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    overrides = parse_overrides(args.overrides)

    from candy_monai.data.nnunet_checks import check_dataset

    report = check_dataset(args.dataset)
    problems, found = report.problems, None
    if not problems:
        try:
            found = _found(args.dataset, overrides, resolve_device(args.device))
        except DatasetError as error:
            problems = error.problems
    if args.json:
        print(_as_json(problems, report.warnings, found))
    else:
        _show(args.dataset, problems, report.warnings, found)
    return BAD_INPUT if problems else DONE


def _found(dataset: Path, overrides: Mapping[str, str], device: str) -> tuple[Fingerprint, Plan]:
    from candy_monai.data.inspection import inspect
    from candy_monai.data.planning import plan
    from candy_monai.recipes.prepare import device_memory

    fingerprint = inspect(dataset)
    return fingerprint, plan(fingerprint, memory_bytes=device_memory(device), overrides=overrides)


def _as_json(problems: Sequence[str], warnings: Sequence[str], found: tuple[Fingerprint, Plan] | None) -> str:
    fingerprint, plan = found or (None, None)
    content = {
        "problems": list(problems),
        "warnings": list(warnings),
        "fingerprint": None if fingerprint is None else json.loads(fingerprint.to_json()),
        "plan": None if plan is None else plan.to_dict(),
    }
    return json.dumps(content, indent=1, allow_nan=False)


def _show(
    dataset: Path, problems: Sequence[str], warnings: Sequence[str], found: tuple[Fingerprint, Plan] | None
) -> None:
    from rich.console import Console

    from candy_monai.cli.tables import fingerprint_table, plan_table

    if found is not None:
        Console().print(fingerprint_table(found[0]), plan_table(found[1]))
    for kind, texts in (("warning", warnings), ("problem", problems)):
        for text in texts:
            print(f"{kind}: {text}", file=sys.stderr)
    if problems:
        print(f"{dataset}: {len(problems)} to mend before training", file=sys.stderr)
    else:
        print("Nothing stands in the way of training.")
