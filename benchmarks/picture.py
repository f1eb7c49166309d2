"""Draw the figure of the README: unseen cases of a real dataset with their predictions; print one JSON line.

    python benchmarks/picture.py --budget 4m

A fifth of the patients are held out, ``candy-monai train --fold all --budget`` is run on the others, and the held-out
cases are predicted from the command line. The figure shows the middle case of each third when they are sorted by Dice:
a bad, a typical and a good one. The Sunnybrook Cardiac Data are in the public domain (CC0 1.0), so that images of them
may be published. ``CANDY_MONAI_DATA`` names the folder of the datasets.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from plain_loops import DATA, split

import candy_monai
from candy_monai.plotting.canvas.drawing import contact_sheet
from candy_monai.plotting.case.panels import case_panel

PICTURE = Path(__file__).parents[1] / "docs" / "result.png"
COLOURS = 128
"""So many keep the file small."""


def draw(dataset: candy_monai.NNUNetDataset, predictions: Path, count: int, path: Path) -> float:
    """Write the figure of some cases, and return the mean Dice of all."""
    names = {case.case_id: f"{case.case_id}{dataset.description.file_ending}" for case in dataset.cases}
    evaluator = candy_monai.Evaluator("dice", num_classes=dataset.description.num_classes)
    result = evaluator.evaluate(predictions, dataset.folder / "labelsTs")
    ranked = [case.case_id for case in sorted(result, key=lambda case: case.metrics["dice"])]
    chosen = [ranked[(2 * part + 1) * len(ranked) // (2 * count)] for part in range(count)]
    index = {case.case_id: number for number, case in enumerate(dataset.cases)}
    panels = []
    for case_id in chosen:
        image, label = dataset.load(index[case_id])
        panels.append(case_panel(image, label, candy_monai.load_image(predictions / names[case_id], is_label=True)))
    sheet = Image.fromarray(contact_sheet(panels, chosen, columns=1))
    sheet.quantize(COLOURS).save(path, optimize=True)
    return float(result.mean_metrics["dice"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", default="Dataset123_SunnybrookPNG", help="the name of a dataset folder")
    parser.add_argument("--budget", default="10m", help="in minutes")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time instead of wall-clock time")
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    clock = [str(Path(__file__).with_name("cpu_clock.py"))] if arguments.cpu_time else ["-m", "candy_monai"]
    with tempfile.TemporaryDirectory() as folder:
        dataset, out, predictions = (Path(folder) / name for name in (arguments.dataset, "experiments", "predictions"))
        tested = split(DATA / arguments.dataset, dataset, 0)
        options = ["--budget", arguments.budget, "--fold", "all", "--seed", "0", "--out", str(out), "--device", "cpu"]
        subprocess.run([sys.executable, *clock, "train", str(dataset), *options], check=True, stdout=sys.stderr)
        (experiment,) = (path.parent for path in out.glob("*/*/experiment.json"))
        places = [str(experiment), str(dataset / "imagesTs"), str(predictions)]
        subprocess.run([sys.executable, "-m", "candy_monai", "predict", *places], check=True, stdout=sys.stderr)
        unseen = candy_monai.NNUNetDataset(dataset, split="Ts")
        dice = draw(unseen, predictions, arguments.cases, arguments.out)
        line = {"benchmark": "picture", "dataset": arguments.dataset, "budget": arguments.budget}
        line |= {"cpu_time": arguments.cpu_time, "num_trained": len(candy_monai.NNUNetDataset(dataset))}
        print(json.dumps({**line, "num_tested": len(tested), "ours": round(dice, 4)}))


if __name__ == "__main__":
    main()
