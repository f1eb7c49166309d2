"""Measure the cost of ``candy-monai predict`` in addition to the network; print one JSON line.

Predicts the last 60 cases of Dataset004_Hippocampus with mirroring along all axes, from the command line, with initial
weights. Compares with the bare forward passes of the same preprocessed images and their mirror images, and with the
import of PyTorch and MONAI. All run alternately; each time is the best of several runs. ``CANDY_MONAI_DATA`` names the
folder of the datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
NAME = "Dataset004_Hippocampus"

TRAIN = """
import sys
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.rules import plan
from candy_monai_bundles.unet import UNetTrainer
import torch
trainer = UNetTrainer(sys.argv[2], *[torch.utils.data.DataLoader([(torch.randn(1, 32, 32, 32),
    torch.zeros(1, 32, 32, 32, dtype=torch.int64))])] * 2, console=False)
trainer.use_plan(plan(inspect(sys.argv[1])))
trainer.train(1, save_preview=False, num_checkpoints=0)
"""

BARE = """
import json, sys, time
from itertools import combinations
from pathlib import Path
import torch
from candy_monai.inference.inputs import find_inputs
from candy_monai.incoming.opening import load_predictor
predictor = load_predictor(sys.argv[1])
cases = [predictor.prepare(c.case_id, c.load(predictor.channels)).cases[0].image
         for c in find_inputs(sys.argv[2], channels=predictor.channels)]
flips = [list(chosen) for count in range(4) for chosen in combinations((2, 3, 4), count)]
divisor = predictor.plan.divisor
def padded(image):
    widths = [w for size, by in list(zip(image.shape[1:], divisor))[::-1] for w in (0, -size % by)]
    return torch.nn.functional.pad(image, widths)[None]
with torch.inference_mode():
    predictor.model(padded(cases[0]))
    started = time.perf_counter()
    for image in cases:
        for dims in flips:
            predictor.model(padded(image).flip(dims) if dims else padded(image))
print(json.dumps(time.perf_counter() - started))
"""


def seconds(*command: str | Path) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=sys.stderr)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cases", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        images, out = Path(scratch) / "images", Path(scratch) / "experiments"
        images.mkdir()
        for file in sorted((DATA / NAME / "imagesTr").glob("*.nii.gz"))[-arguments.cases :]:
            (images / file.name).symlink_to(file)
        seconds("-c", TRAIN, DATA / NAME, out)
        (experiment,) = (path.parent for path in out.glob("*/*/experiment.json"))
        best: dict[str, float] = {}
        for _ in range(arguments.turns):
            bare = subprocess.check_output([sys.executable, "-c", BARE, str(experiment), str(images)])
            predict = ("-m", "candy_monai", "predict", experiment, images, Path(scratch) / "predictions", "--mirror")
            for what, spent in (
                ("bare_s", float(json.loads(bare.splitlines()[-1]))),
                ("import_s", seconds("-c", "import torch, monai")),
                ("predict_s", seconds(*predict)),
            ):
                best[what] = min(best.get(what, spent), spent)
    bound = 1.1 * best["bare_s"] + best["import_s"] + 2
    result = {"benchmark": "predict_folder", "cases": arguments.cases, **best, "bound_s": bound}
    print(json.dumps({key: round(value, 2) if isinstance(value, float) else value for key, value in result.items()}))


if __name__ == "__main__":
    main()
