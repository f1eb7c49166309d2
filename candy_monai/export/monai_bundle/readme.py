"""The ``docs/README.md`` of a bundle: its purpose, its scores, and how to run it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from candy_monai.errors import ExperimentError
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.history import load_metrics
from candy_monai.export.monai_bundle.metadata import classes_by_id
from candy_monai.export.monai_bundle.origin import OUR_AVERAGE
from candy_monai.export.monai_bundle.parity import Parity
from candy_monai.export.monai_bundle.source import BundleSource

_PICTURES = {"actual (preview).png": "prediction.png", "expected (preview).png": "reference.png"}
_ELSE = {"progress.png": "progress.png"}
"""The pictures for a run that saved no previews."""

_COMMANDS = """\
python -m monai.bundle run --config_file configs/inference.json --dataset_dir DATASET --output_dir PREDICTIONS
python -m monai.bundle run --config_file configs/train.json --dataset_dir DATASET
python -m monai.bundle run --config_file "['configs/train.json','configs/evaluate.json']" --dataset_dir DATASET
torchrun --nproc_per_node 2 -m monai.bundle run \\
    --config_file "['configs/train.json','configs/multi_gpu_train.json']" --dataset_dir DATASET"""


def write_readme(
    folder: Path,
    source: BundleSource,
    experiments: Sequence[Path],
    parity: Parity,
    *,
    scripts: Sequence[str],
    checkpoint: str = "best",
) -> None:
    """Write ``README.md`` and its pictures."""
    plan, origin = source.plan, source.origin
    classes = classes_by_id(source)
    channels = ", ".join(f"{index} {name}".strip() for index, name in enumerate(plan.channel_names))
    spacing = "as it is" if plan.spacing_mm is None else " x ".join(f"{size:g}" for size in plan.spacing_mm) + " mm"
    patch = " x ".join(map(str, plan.patch_shape))
    network = source.network.entry
    members = network.get("networks", [network])
    scores = origin.scores if len(experiments) == 1 else {each.name: each / VALIDATION_SCORES for each in experiments}
    lines = [
        f"# {plan.dataset_name}: segmentation",
        "",
        f"Exported by candy_monai from {', '.join(folder.name for folder in experiments)}"
        f" ({'nnU-Net, ' if origin.of_nnunet else ''}{origin.trainer}).",
        "",
        "## Input and output",
        "",
        f"- Channels: {channels}.",
        f"- Label ids: {', '.join(f'{label_id} {name}' for label_id, name in classes.items())}.",
        f"- Spacing for the network: {spacing}; window {patch}"
        + (f", slice by slice across axis {plan.slice_axis}." if plan.slice_axis is not None else "."),
        f"- Network: {members[0]['_target_']}" + (f", {len(members)} of them." if len(members) > 1 else "."),
        "",
        "## Scores",
        "",
        *(
            [f"The bundle holds the weights `{checkpoint}`. These are the scores of the experiment's best weights:", ""]
            if checkpoint != "best"
            else []
        ),
        *_scores(scores, experiments, classes, by="nnU-Net" if origin.of_nnunet else "candy_monai"),
        *_pictures(experiments[0], folder),
        "## Commands",
        "",
        "In this folder, with MONAI, `fire` and `pytorch-ignite` installed. `DATASET` is a folder in nnU-Net's format:",
        f"`imagesTs/CASE_0000{source.file_ending}` is predicted, to `PREDICTIONS/CASE` with the same geometry;",
        "`imagesTr` and `labelsTr` are trained on.",
        "",
        "```shell",
        _COMMANDS,
        "```",
        "",
        "Training starts from scratch and writes its best weights to `models/model.pt`. Patches, augmentation, loss,",
        f"optimizer and its learning rate are those of the {'plan' if origin.of_nnunet else 'experiment'}.",
        *_how_trained(source),
        *([f"Differences, which lead to other scores: {'; '.join(others)}."] if (others := _others(source)) else []),
        "It holds out the validation cases of the experiment (`validation_cases`) if they exist, else every fifth.",
        "Evaluation scores the held-out cases on the grid of their files, by MONAI's Dice: a class that a case does",
        "not have is left out of its mean.",
        "",
        "## How it compares with candy_monai",
        "",
        *_compared(parity, source, scripts=scripts),
        "",
        "## Licence",
        "",
        "The code is under the Apache License 2.0 (`LICENSE`). The weights were learned from the dataset, whose",
        "licence and terms of use may bind them.",
        "",
        "Not a medical device.",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _scores(files: Mapping[str, Path], experiments: Sequence[Path], classes: dict[int, str], *, by: str) -> list[str]:
    """Return a table of each network's scores on its own validation cases."""
    rows, several = [], len(files) > 1
    for run, file in files.items():
        found = _validation(file)
        if found is None:
            continue
        count = len(found.get("metric_per_case", []))
        means = {_class_of(number, classes): values for number, values in found["mean"].items()}
        rows.append(("all classes", found["foreground_mean"], count, run))
        rows += [(name, values, count, run) for name, values in means.items()]
    if not rows:
        return [*_best_of_training(experiments), ""]
    head = ["Each network by itself, on the cases that it was not trained on.", ""] if several else []
    return [
        *head,
        "| class | Dice | IoU | cases |" + (" experiment |" if several else ""),
        "|---|---|---|---|" + ("---|" if several else ""),
        *(
            f"| {name} | {values['Dice']:.4f} | {values['IoU']:.4f} | {count} |" + (f" {run} |" if several else "")
            for name, values, count, run in rows
        ),
        "",
        f"In the geometry of the files, on validation cases, by {by}: a class that neither the reference nor the",
        "prediction has is left out.",
        "",
    ]


def _class_of(number: str, classes: dict[int, str]) -> str:
    """Return the name of a class; for a region of nnU-Net, which is a list of ids, the list."""
    return classes.get(int(number), number) if number.isdecimal() else number


def _validation(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(name in found for name in ("mean", "foreground_mean")):
            return dict(found)
    except (OSError, ValueError, TypeError) as error:
        raise ExperimentError(f"{path}: cannot be read ({error}); remove it, or take it from a copy") from error
    return None


def _best_of_training(experiments: Sequence[Path]) -> list[str]:
    found = []
    for experiment in experiments:
        path = experiment / "metrics.csv"
        column = load_metrics(path).get("val score", []) if path.is_file() else []
        if scores := [score for score in column if not math.isnan(score)]:
            found.append(f"- {experiment.name}: {max(scores):.4f}, the best validation score during training.")
    return found or ["The experiment holds no scores."]


def _pictures(experiment: Path, folder: Path) -> list[str]:
    previews = {name: to for name, to in _PICTURES.items() if (experiment / name).is_file()}
    pictures = previews or {name: to for name, to in _ELSE.items() if (experiment / name).is_file()}
    for name, to in pictures.items():
        shutil.copyfile(experiment / name, folder / to)
    if not pictures:
        return []
    text = "The worst validated case: prediction and reference." if previews else "The course of training."
    return [text, "", *(f"![{Path(to).stem}]({to})" for to in pictures.values()), ""]


def _how_trained(source: BundleSource) -> list[str]:
    """Return sentences about what is saved, if it differs from the network that is trained."""
    said = []
    if source.network.supervision is not None:
        said.append("Outputs at lower resolutions are supervised and left out of the weights that are saved.")
    if source.origin.average is not None:
        said.append("A moving average of the weights, with a decay of 0.999, is what is validated and saved.")
    return said


def _others(source: BundleSource) -> list[str]:
    """Return the differences of ``train.json`` from the experiment's training."""
    origin, kind = source.origin, source.origin.optimizer.get("kind", "AdamW")
    supervision = source.network.supervision
    differs = {
        f"this average instead of a {origin.average}": origin.average not in (None, OUR_AVERAGE),
        "AdamW instead of nnU-Net's SGD": origin.of_nnunet,
        "no deep supervision": supervision is None and (source.plan.deep_supervision or origin.of_nnunet),
        "lower resolutions supervised at the full one": supervision is not None and supervision.is_stacked,
        f"AdamW with its defaults instead of the experiment's {kind}": not source.keeps_optimizer,
        f"float32 on a CPU instead of {source.amp_dtype}, in which it computes on a GPU": source.amp_dtype is not None,
    }
    return [name for name, is_so in differs.items() if is_so]


def _compared(parity: Parity, source: BundleSource, *, scripts: Sequence[str]) -> list[str]:
    what = []
    if source.portable:
        what = ["MONAI's own classes stand in for those of candy_monai that the experiment was trained with."]
    elif scripts:
        what = [f"`scripts/` holds what MONAI does not provide: {', '.join(scripts)}. It does not need candy_monai."]
    if source.by_monai:
        what.append("Inference uses only MONAI's own classes.")
    if source.spacing is not None:
        spacing = " x ".join(f"{size:g}" for size in source.spacing)
        what.append(
            f"A case of another spacing than {spacing} mm, which no training case had, is resampled by MONAI's "
            "`Spacingd`, with a warning: its label map is not quite that of candy_monai."
        )
    if parity.mean is None or parity.least is None:
        reason = parity.reason or "neither of them has foreground in the cases that were compared"
        return [*what, f"Label maps were not compared ({reason})."]
    count = sum(share is not None for share in parity.shares.values())
    return [
        *what,
        f"On {count} validation case{'s' * (count > 1)} {100 * parity.mean:.2f} % of the foreground voxels have the id",
        f"that candy_monai's own prediction gives them (at least {100 * parity.least:.2f} % in each case);",
        "foreground is what either of the two predicts.",
    ]
