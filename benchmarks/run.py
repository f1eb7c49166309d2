"""Run the benchmarks and store their results with the machine and the versions: ``make benchmarks``.

    make benchmarks                                 every job that has no result yet
    make benchmarks ONLY='plain_loops-*-180,step'   those whose names match
    make benchmarks ONLY=saving AGAIN=1             also those that have a result
    make benchmarks QUICK=1                         a short form of each, to check that they work
    python benchmarks/run.py --list                 the names, and which have a result

A job is a benchmark with its arguments. Its JSON lines are written to ``results/JOB.json`` when it is complete, so that
after an interruption the same command continues with the remaining jobs. Results of the short form are not
measurements: they are written to ``results/quick``, which is not under version control. After the jobs, ``tables.py``
updates the tables of the README and of the documentation.

Use an idle machine: most benchmarks measure time. ``CANDY_MONAI_DATA`` names the folder of the datasets. Benchmarks
that write their own tables (``experience.py``, ``zoo.py --write``) and ``walks.py`` are not among the jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DATA = Path(os.environ.get("CANDY_MONAI_DATA", HERE.parents[1] / "shared" / "data"))
PACKAGES = ("torch", "monai", "numpy")
BUDGETS_S = (180, 600)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A benchmark with its arguments.

    Attributes:
        name: The name of the job, and of its result.
        script: The file in this folder.
        arguments: The arguments of the full form.
        quick: The arguments of the short form; None if there is none.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None


def jobs() -> Iterator[Job]:
    """Yield every job, the short ones first."""
    for name, quick in (
        ("saving", "--turns 1"),
        ("trainer_overhead", "--epochs 1 --turns 1"),
        ("watching", "--epochs 3"),
        ("frontends", "--epochs 2 --turns 1 --cases 4"),
        ("augmentation", "--batches 2 --turns 1"),
        ("preprocess", "--job anisotropic --turns 1"),
        ("sliding_window", "--size 96 --many 9 --turns 1"),
        ("predict_folder", "--turns 1 --cases 2"),
        ("step", "--steps 8 Dataset134_MSDLungPatches2D"),
        ("forecast", None),
        ("pruners", "--orders 1"),
        ("kills", "--every 100 --epochs 2"),
        ("dice_estimates", "--budget 20 Dataset134_MSDLungPatches2D"),
        ("hippocampus", None),
    ):
        yield Job(name=name, script=f"{name}.py", quick=None if quick is None else tuple(quick.split()))
    smallest = "Dataset134_MSDLungPatches2D"
    quick_picture = ("--budget", "15s", "--cases", "1", "--out", str(RESULTS / "quick" / "picture.png"), smallest)
    yield Job(name="picture", script="picture.py", arguments=("--budget", "4m"), quick=quick_picture)
    for budget_s in BUDGETS_S:
        for dataset in sorted(path.name for path in DATA.glob("Dataset*") if _has_two_cases(path)):
            shortened = (dataset, budget_s) == (smallest, BUDGETS_S[0])
            yield Job(
                name=f"plain_loops-{dataset}-{budget_s}",
                script="plain_loops.py",
                arguments=(dataset, "--budgets", str(budget_s), "--cpu-time"),
                quick=(dataset, "--budgets", "15", "--cpu-time") if shortened else None,
            )


def _has_two_cases(dataset: Path) -> bool:
    return sum(1 for _ in (dataset / "labelsTr").glob("[!.]*")) > 1


def machine() -> dict[str, Any]:
    """Return the properties of the machine: processor, cores that may be used, memory, system."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = (line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        model = next(names, model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"processor": model, "cores": cores, "system": platform.system()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python, of this source tree (an installation may be older) and of its dependencies."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {"python": platform.python_version(), "candy-monai": project["version"]}
    return own | {name: version(name) for name in PACKAGES}


def run(job: Job, *, quick: bool) -> dict[str, Any]:
    """Run a job and return its result: the lines that it printed, with the machine and the versions.

    Raises:
        subprocess.CalledProcessError: If it failed.
        ValueError: If it printed no line of JSON.
    """
    arguments = job.arguments if not quick else job.quick or ()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    started = time.time()
    command = [sys.executable, str(HERE / job.script), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError(f"{job.script} printed no line of JSON")
    return {
        "job": job.name,
        "arguments": list(arguments),
        "date": time.strftime("%Y-%m-%d", time.gmtime(started)),
        "seconds": round(time.time() - started),
        "load_before": load,
        "machine": machine(),
        "versions": versions(),
        "lines": lines,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="NAME[,NAME...]", help="names of jobs; * and ? are wildcards")
    parser.add_argument("--quick", action="store_true", help="the short form of each job that has one")
    parser.add_argument("--again", action="store_true", help="also run those that have a result")
    parser.add_argument("--list", action="store_true", help="only print the names")
    arguments = parser.parse_args()
    if not any(DATA.glob("Dataset*")):
        parser.error(f"{DATA} holds no datasets: name their folder by CANDY_MONAI_DATA")
    patterns = [pattern.strip() for pattern in arguments.only.split(",")]
    chosen = [job for job in jobs() if any(fnmatchcase(job.name, pattern) for pattern in patterns)]
    if not chosen:
        parser.error(f"no job is named {arguments.only}; --list prints the names")
    folder = RESULTS / "quick" if arguments.quick else RESULTS
    failed = []
    for job in chosen:
        file = folder / f"{job.name}.json"
        if arguments.list:
            print(job.name + (" (done)" if file.exists() else ""))
        elif (arguments.again or not file.exists()) and not (arguments.quick and job.quick is None):
            print(f"{job.name}: begun", flush=True)
            try:
                result = run(job, quick=arguments.quick)
            except (subprocess.CalledProcessError, ValueError) as error:
                failed.append(job.name)
                print(f"{job.name}: failed ({error})", flush=True)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(f"{job.name}: {file}, {result['seconds']} s", flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}. The same command tries them again.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
