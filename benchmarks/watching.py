"""Measure the cost of the report page, the previews and a dashboard in a run of 1,000 epochs; print one JSON line.

The smallest network is trained on one tiny case, seeded and without a forecast: first without page, previews and
dashboard, then with more and more of them. ``cpu_ms`` is the CPU time of an epoch in all threads, and ``own_ms`` that
of the training thread, for which a run waits; both depend little on other work on the machine. ``grown_mb`` is the
growth of the program's memory over the second half of the run, ``figures`` the number of matplotlib figures that were
left at its end, and ``page_mb`` the size of its page.

    python benchmarks/watching.py --epochs 1000 --turns 1
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from frontends import Memory, Pictures
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from candy_monai.frontends.choice import find_frontend
from candy_monai.training.segmentation import SegmentationTrainer

KINDS = {
    "nothing": {"save_report": False, "save_preview": False},
    "page": {"save_report": True, "save_preview": False},
    "page and previews": {"save_report": True, "save_preview": True},
    "page, previews and TensorBoard": {"save_report": True, "save_preview": True, "frontend": "tensorboard"},
}


class Smallest(SegmentationTrainer):
    """One convolution."""

    @override
    def build_network(self, example_shape: tuple[int, ...]) -> nn.Module:
        return nn.Conv2d(example_shape[0], 1, 3, padding=1)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The costs of one run."""

    cpu_ms: float
    own_ms: float
    grown_mb: float
    figures: int
    page_mb: float


def cost(folder: Path, num_epochs: int, *, frontend: str | None = None, **settings: bool) -> Cost:
    """Return the costs of a run."""
    data, memory = Pictures(1), Memory()
    trainer = Smallest(folder, DataLoader(data), DataLoader(data), console=False, observers=[memory])
    if frontend is not None:
        trainer.set_frontend(find_frontend(frontend))
    own, everything = time.thread_time(), time.process_time()
    trainer.train(num_epochs, seed=1, early_stop_tolerance=None, val_score_prediction=False, **settings)
    own, everything = time.thread_time() - own, time.process_time() - everything
    page = trainer.experiment_folder() / "report.html"
    return Cost(
        cpu_ms=round(1000 * everything / num_epochs, 2),
        own_ms=round(1000 * own / num_epochs, 2),
        grown_mb=round(memory.grown_mb, 1),
        figures=_num_figures(),
        page_mb=round(page.stat().st_size / 1e6, 3) if page.is_file() else 0.0,
    )


def _num_figures() -> int:
    from matplotlib.figure import Figure

    gc.collect()
    return sum(isinstance(one, Figure) for one in gc.get_objects())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=1)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    found: dict[str, list[Cost]] = {name: [] for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for settings in KINDS.values():
            cost(Path(folder), 2, **settings)  # imports and caches
        for _ in range(args.turns):
            for name, settings in KINDS.items():
                found[name].append(cost(Path(folder), args.epochs, **settings))
    report = {
        name: {key: statistics.median(asdict(one)[key] for one in costs) for key in asdict(costs[0])}
        for name, costs in found.items()
    }
    print(json.dumps({"benchmark": "watching", "epochs": args.epochs, **report}))


if __name__ == "__main__":
    main()
