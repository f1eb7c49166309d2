"""Make rows of ``experience.json``: train every configuration of some datasets, and score unseen cases.

    python benchmarks/experience.py Dataset027_ACDC --budgets 180,600 --seeds 0,1,2 --cpu-time --append

A fifth of the patients are held out, always the same ones; ``candy-monai train --fold all`` is run on the others with
each configuration, budget and seed. Each run prints a row as one line of JSON, and with ``--append`` adds it
immediately to the table of the package (or to ``--table FILE``), so that nothing is lost if the next run fails. Rows
that exist are not made again. With ``--cpu-time`` budgets count the CPU time of the process (``cpu_clock.py``), so that
results do not depend on other work on the machine.

``CANDY_MONAI_DATA`` names the folder of the datasets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cpu_clock import CPU_SECONDS
from plain_loops import DATA, score, split

import candy_monai.data.planning.experience as experience
from candy_monai import NNUNetDataset
from candy_monai.data.workers import usable_cores
from candy_monai.experiment.state import load_state

TABLE = Path(experience.__file__).with_name(experience.TABLE)
SPLIT_SEED = 0


def row_of(dataset: Path, scratch: Path, tested: list[str], arguments: argparse.Namespace, **run: object) -> dict:
    """Train, predict the unseen cases and return the row."""
    out, predictions = scratch / "experiments", scratch / "predictions"
    clock = [str(Path(__file__).with_name("cpu_clock.py"))] if arguments.cpu_time else ["-m", "candy_monai"]
    options = ["--configuration", run["configuration"], "--budget", f"{run['budget_s']}s", "--seed", str(run["seed"])]
    options += ["--fold", "all", "--out", str(out), "--store", str(scratch / "store"), "--device", "cpu"]
    for item in arguments.set:
        options += ["--set", item]
    subprocess.run([sys.executable, *clock, "train", str(dataset), *options], check=True, stdout=sys.stderr)
    (folder,) = (path.parent for path in out.glob("*/*/experiment.json"))
    command = ["predict", str(folder), str(dataset / "imagesTs"), str(predictions)]
    subprocess.run([sys.executable, "-m", "candy_monai", *command], check=True, stdout=sys.stderr)
    described = json.loads((folder / "experiment.json").read_text())
    plan = described["plan"]
    classes = NNUNetDataset(dataset).description.num_classes
    return {
        "dataset": short_name(dataset.name),
        "configuration": run["configuration"],
        "anisotropy": round(experience.anisotropy(plan["spacing_mm"]), 2),
        "median_shape": plan["median_shape"],
        "num_cases": len(described["dataset"]["training"]),
        "num_classes": classes,
        "cpu_s": round(cpu_seconds(float(run["budget_s"]), arguments)),
        "num_steps": load_state(folder).progress.step,
        "dice": round(score(predictions, dataset / "labelsTs", tested, classes), 4),
        "num_unseen": len(tested),
        "num_seeds": 1,
    }


def cpu_seconds(budget_s: float, arguments: argparse.Namespace) -> float:
    return budget_s * (CPU_SECONDS if arguments.cpu_time else usable_cores())


def short_name(dataset: str) -> str:
    return re.sub(r"^Dataset\d+_", "", dataset)


def read_rows(table: Path) -> list[dict]:
    return json.loads(table.read_text("utf-8"))["rows"] if table.exists() else []


def append(table: Path, row: dict) -> None:
    """Add a row to a table, which has one row per line, so that versions can be compared line by line."""
    content = json.loads(table.read_text("utf-8")) if table.exists() else {"about": [], "rows": []}
    content["rows"].append(row)
    about = json.dumps(content["about"], indent=4).replace("\n]", "\n  ]")
    rows = ",\n".join(f"    {json.dumps(entry)}" for entry in content["rows"])
    table.write_text(f'{{\n  "about": {about},\n  "rows": [\n{rows}\n  ]\n}}\n', "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="names of dataset folders with volumes")
    parser.add_argument("--configurations", default="2d,3d", metavar="2d[,3d]")
    parser.add_argument("--budgets", default="180,600", metavar="SECONDS[,SECONDS...]")
    parser.add_argument("--seeds", default="0,1,2", metavar="N[,N...]")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time instead of wall-clock time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an entry of the plan")
    parser.add_argument("--append", action="store_true", help="add the rows to the table")
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    for name in arguments.datasets:
        with tempfile.TemporaryDirectory() as folder:
            dataset = Path(folder) / name
            tested = split(DATA / name, dataset, SPLIT_SEED)
            runs = itertools.product(
                *(getattr(arguments, of).split(",") for of in ("seeds", "budgets", "configurations"))
            )
            done = [
                (row["dataset"], row["configuration"], row["cpu_s"], row.get("seed"))
                for row in read_rows(arguments.table)
            ]
            for seed, budget_s, configuration in runs:
                known = (short_name(name), configuration, round(cpu_seconds(float(budget_s), arguments)), int(seed))
                if arguments.append and known in done:
                    continue
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    run = {"configuration": configuration, "budget_s": budget_s, "seed": seed}
                    row = {**row_of(dataset, Path(scratch), tested, arguments, **run), "seed": int(seed)}
                print(json.dumps(row), flush=True)
                if arguments.append:
                    append(arguments.table, row)


if __name__ == "__main__":
    main()
