"""Measure how much of the foreground a bundle labels in the same way as the experiment, on real cases.

The bundle is run as by its users: with MONAI's command line, in a separate process.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from candy_monai.data.images.formats import DETACHED
from candy_monai.data.images.names import image_suffix, stem_of
from candy_monai.data.images.reading import load_image
from candy_monai.data.images.writing import save_image
from candy_monai.errors import RunFailedError
from candy_monai.files import folder_apart
from candy_monai.inference.cases import CasePredictor

NUM_CASES = 10
_NEEDED = ("fire", "ignite")
_LAST_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The comparison of a bundle with its experiment.

    By case the fraction of equal ids among the voxels that either labelled; None if neither labelled any.
    """

    shares: Mapping[str, float | None]
    reason: str = ""  # why nothing was compared; empty if something was

    @property
    def mean(self) -> float | None:
        """The mean over cases with foreground; None without any."""
        known = [share for share in self.shares.values() if share is not None]
        return sum(known) / len(known) if known else None

    @property
    def least(self) -> float | None:
        """The minimum over cases with foreground; None without any."""
        return min((share for share in self.shares.values() if share is not None), default=None)

    @property
    def summary(self) -> str:
        """The result in one line."""
        if self.mean is None or self.least is None:
            return f"Label maps were not compared: {self.reason or 'neither of them has foreground'}"
        count = sum(share is not None for share in self.shares.values())
        return (
            f"{count} cases: {self.mean:.3%} of the foreground voxels have equal labels, at least {self.least:.3%} in "
            "each case"
        )


def measure_parity(bundle: Path, predictor: CasePredictor, cases: Mapping[str, Sequence[Path]]) -> Parity:
    """Predict the first cases with a bundle and with its experiment, and compare the label maps."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        return Parity(shares={}, reason=f"{' and '.join(missing)} not installed: pip install candy_monai[bundle]")
    if not cases:
        return Parity(shares={}, reason="the experiment's dataset was not found")
    chosen = dict(list(cases.items())[:NUM_CASES])
    place = tempfile.gettempdir()
    with folder_apart(place, beside=place, prefix="candy_bundle_") as folder:
        images, by_bundle, by_experiment = (folder / name for name in ("imagesTs", "bundle", "experiment"))
        images.mkdir()
        for case, files in chosen.items():
            for channel, file in enumerate(files):
                _copy_image(file, images / f"{case}_{channel:04d}{image_suffix(file)}")
        run_inference(bundle, folder, by_bundle)
        shares = {}
        for path in predictor.predict_to_files(images, by_experiment):
            if not (by_bundle / path.name).is_file():
                found = ", ".join(sorted(file.name for file in by_bundle.glob("*"))) or "nothing"
                raise RunFailedError(f"{bundle}: the bundle wrote no {path.name}, found {found}")
            shares[stem_of(path)] = equal_foreground(path, by_bundle / path.name)
    return Parity(shares=shares)


def _copy_image(file: Path, to: Path) -> None:
    """Copy an image; a header with a separate data file, whose name it contains, becomes one file of the same name."""
    if (whole := DETACHED.get(to.suffix)) is None:
        shutil.copyfile(file, to)
        return
    save_image(load_image(file), to.with_suffix(whole))
    to.with_suffix(whole).rename(to)


def run_inference(bundle: Path, dataset: Path, output: Path) -> None:
    """Run ``configs/inference.json`` with MONAI's command line, in the bundle's folder."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    options = ["--dataset_dir", str(dataset), "--output_dir", str(output)]
    # On the device of the experiment's prediction, and without leaving compiled modules in the bundle.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run([*command, *options], cwd=bundle, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = "\n".join(ran.stderr.strip().splitlines()[-_LAST_LINES:])
        raise RunFailedError(f"{bundle}: the bundle was written, but does not run:\n{last}")


def equal_foreground(one: Path, other: Path) -> float | None:
    """Return the fraction of equal ids among the voxels that either label map has; None if both are empty."""
    first, second = (load_image(path, is_label=True).as_tensor() for path in (one, other))
    if first.shape != second.shape:
        raise RunFailedError(f"{other}: has the shape {tuple(second.shape)}, expected {tuple(first.shape)}")
    either = (first > 0) | (second > 0)
    return float((first == second)[either].double().mean()) if bool(either.any()) else None
