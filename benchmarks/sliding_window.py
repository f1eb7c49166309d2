"""Measure the time and memory of inference with blended windows; print one JSON line.

A volume of noise is run through a light network in windows of 96^3 that overlap by half: by the bare forward passes of
the same windows, by MONAI's ``sliding_window_inference`` with its argmax, by `WindowInferer.labels`, and, if
``--nnunet`` names a Python with nnU-Net, by nnU-Net's predictor. They run alternately, and times are the best of
several turns. Peaks are those of anonymous memory above the start, each measured in a separate process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet

WINDOW = (96, 96, 96)
FEATURES = (8, 8, 16, 32, 64, 8)


def network(num_classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return BasicUNet(3, 1, num_classes, features=FEATURES).eval()


def bare(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    from candy_monai.inference.tiles import WindowGrid

    for place in WindowGrid(tuple(images.shape[2:]), WINDOW, 0.5).slices:
        scores = model(images[(slice(None), slice(None), *place)])
    return scores


def monai(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    scores = sliding_window_inference(images, WINDOW, 1, model, overlap=0.5, mode="gaussian")
    return scores.argmax(1, keepdim=True).to(torch.uint8)


def ours(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    from candy_monai.inference.inferers import WindowInferer

    return WindowInferer(WINDOW, overlap=0.5).labels(images, model)


def ours_on_disk(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    from candy_monai.inference.buffers import buffer_on_disk
    from candy_monai.inference.inferers import WindowInferer

    return WindowInferer(WINDOW, overlap=0.5, new_buffer=buffer_on_disk).labels(images, model)


def nnunet(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    class Plans:
        patch_size = WINDOW

    class Labels:
        num_segmentation_heads = model.final_conv.out_channels

    predictor = nnUNetPredictor(use_gaussian=True, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network, predictor.configuration_manager, predictor.label_manager = model, Plans(), Labels()
    predictor.allowed_mirroring_axes = None
    return predictor.predict_sliding_window_return_logits(images[0]).argmax(0).to(torch.uint8)


WAYS: dict[str, Callable[[torch.Tensor, torch.nn.Module], torch.Tensor]] = {
    "bare": bare,
    "monai": monai,
    "ours": ours,
    "ours_on_disk": ours_on_disk,
    "nnunet": nnunet,
}


def anonymous_mb() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


def peak_mb(work: Callable[[], object]) -> float:
    """Return the highest anonymous memory above the start while a function runs."""
    start = peak = anonymous_mb()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return peak - start


def one(way: str, size: int, num_classes: int) -> None:
    """Measure time and peak of one method in this process, and print them."""
    images, model = torch.randn(1, 1, size, size, size), network(num_classes)
    with torch.inference_mode():
        model(images[..., :96, :96, :96])
        started = time.perf_counter()
        peak = peak_mb(lambda: WAYS[way](images, model))
    print(json.dumps({"s": round(time.perf_counter() - started, 2), "mb": round(peak)}))


def by_turns(size: int, num_classes: int, turns: int) -> dict[str, tuple[float, float]]:
    """Return the best wall-clock and CPU seconds of each method, run alternately; all label maps must agree."""
    images, model = torch.randn(1, 1, size, size, size), network(num_classes)
    best: dict[str, tuple[float, float]] = {}
    labels: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for _ in range(turns):
            for way in ("bare", "ours", "monai"):
                started, processor = time.perf_counter(), time.process_time()
                labels[way] = WAYS[way](images, model)
                spent = time.perf_counter() - started, time.process_time() - processor
                best[way] = tuple(map(min, best.get(way, spent), spent))
                print(f"{way}: {spent[0]:.1f} s, {spent[1]:.1f} s of processors", file=sys.stderr, flush=True)
        labels["ours_on_disk"] = WAYS["ours_on_disk"](images, model)  # last: it returns memory to the system
        for way in ("monai", "ours_on_disk"):
            differing = int((labels[way] != labels["ours"]).sum())
            assert differing <= 1e-6 * images.numel(), f"{way}: {differing} voxels differ"
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="side of the volume")
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--many", type=int, default=100, help="classes of the second measurement of memory")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--nnunet", metavar="PYTHON", help="a Python with nnU-Net, MONAI and PyTorch")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one, arguments.size, arguments.classes)

    def alone(way: str, num_classes: int, python: str = sys.executable) -> dict[str, float]:
        command = [python, __file__, "--one", way, "--size", str(arguments.size), "--classes", str(num_classes)]
        measured: dict[str, float] = json.loads(subprocess.check_output(command).splitlines()[-1])
        return measured

    best = by_turns(arguments.size, arguments.classes, arguments.turns)
    result: dict[str, object] = {"benchmark": "sliding_window", "size": arguments.size, "classes": arguments.classes}
    result |= {f"{way}_s": round(seconds, 2) for way, (seconds, _) in best.items()}
    result |= {f"{way}_processor_s": round(seconds, 2) for way, (_, seconds) in best.items()}
    result["ours_over_bare"] = round(best["ours"][0] / best["bare"][0], 3)
    result |= {f"{way}_mb": alone(way, arguments.classes)["mb"] for way in ("bare", "monai", "ours")}
    result["ours_on_disk"] = alone("ours_on_disk", arguments.classes)
    result |= {f"{way}_{arguments.many}_classes": alone(way, arguments.many) for way in ("ours", "ours_on_disk")}
    if arguments.nnunet:
        result["nnunet"] = min(
            (alone("nnunet", arguments.classes, arguments.nnunet) for _ in range(arguments.turns)),
            key=lambda measured: measured["s"],
        )
    print(json.dumps(result))
    return None


if __name__ == "__main__":
    main()
