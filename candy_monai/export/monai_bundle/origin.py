"""The origin of a model for a bundle: its training, by candy_monai or nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from candy_monai.data.datasets.nnunet_description import read_dataset_description
from candy_monai.data.images.pictures import TIFFS
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.description import PLAN
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.summary import read_summary
from candy_monai.incoming.nnunet import NNUNetPredictor
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.predictor import Predictor
from candy_monai.nn.ema import ExponentialMovingAverage

OUR_AVERAGE = ExponentialMovingAverage.__name__
_OF_NNUNET = Path("validation", "summary.json")

_WINDOWS = ("candy_monai.WindowInferer", "monai.inferers.SlidingWindowInferer")
_WINDOW_ARGUMENTS = {"_target_", "roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of a model."""

    name: str  # the name of the experiment, or of nnU-Net's configuration
    trainer: str
    inferer: Any  # the inferer of validation: ``plan``, or windows in MONAI's configuration language
    file_ending: str | None  # the suffix of the dataset's images; None if unknown
    amp: str | None = None  # the precision of prediction, as a setting of `Trainer.train`
    multiples: Sequence[int] | None = None  # to which the network's input is padded with zeros; None if it is not
    average: str | None = None  # the kind of the moving average of the weights in training; None without one
    optimizer: Mapping[str, Any] = field(default_factory=dict)  # its ``kind`` and arguments; empty if unknown
    schedule: str | None = None  # the kind of its learning-rate schedule, apart from a warm-up; None if unknown
    training: Sequence[str] = ()
    validation: Sequence[str] = ()
    dataset: Path | None = None  # its folder; None if unknown
    scores: Mapping[str, Path]  # files with the validation scores, by the name of the network
    of_nnunet: bool = False


def origin_of(predictor: NetworkPredictor) -> Origin:
    """Return the origin of a model; raise if it cannot be exported as a bundle, with what to do instead."""
    if isinstance(predictor, NNUNetPredictor):
        found = _of_nnunet(predictor)
    elif isinstance(predictor, Predictor):
        found = _of_experiment(predictor)
    else:
        raise ExperimentError(
            f"{predictor.folder}: already a MONAI Bundle: copy its folder; it can be exported to onnx, pt2 and "
            "torchscript"
        )
    plan = predictor.plan
    if plan is not None and plan.num_dims == 3 and found.file_ending in TIFFS:
        raise ExperimentError(
            f"{predictor.folder}: trained on volumes in {found.file_ending} files, which MONAI does not read: convert "
            "the dataset to .nii.gz and train on that, or export to onnx"
        )
    return found


def _of_experiment(predictor: Predictor) -> Origin:
    description, plan, folder = predictor.description, predictor.plan, predictor.folder
    if plan is None or description.pipelines is None:
        raise ExperimentError(
            f"{folder}: trained by {description.trainer} without a plan, so the preprocessing of its images is "
            "unknown: train with candy-monai train, or write a bundle around its weights yourself"
        )
    inferer = description.inferer
    given = inferer if isinstance(inferer, dict) else {}
    is_windows = given.get("_target_") in _WINDOWS and set(given) <= _WINDOW_ARGUMENTS
    if inferer != PLAN and not (is_windows and _is_of_slices(given["roi_size"], plan.slice_axis)):
        named = given.get("_target_", inferer)
        raise ExperimentError(
            f"{folder}: validated with the inferer {named}; a bundle supports only that of the plan and sliding "
            "windows: export to onnx"
        )
    padding = description.padding
    if padding is not None and (padding.get("mode"), padding.get("value")) != ("constant", 0.0):
        raise ExperimentError(
            f"{folder}: {description.trainer} pads images by {_in_words(padding)}; a bundle pads with zeros, to "
            "multiples, only: export to onnx, pt2 or torchscript"
        )
    dataset, amp = description.dataset, description.setting("amp")
    parts = description.parts if isinstance(description.parts, Mapping) else {}
    optimizer = parts.get("optimizer")
    return Origin(
        name=str(description.id),
        trainer=str(description.trainer),
        inferer=inferer,
        file_ending=None if dataset is None else dataset.file_ending,
        amp=None if amp is None else str(amp),
        multiples=None if padding is None else cast("list[int]", padding["min_factor"]),
        average=str(parts.get("ema") or OUR_AVERAGE) if description.setting("ema") else None,
        optimizer=optimizer if isinstance(optimizer, Mapping) else {},
        schedule=None if parts.get("scheduler") is None else str(parts["scheduler"]),
        training=() if dataset is None else tuple(dataset.training or ()),
        validation=() if dataset is None else tuple(dataset.validation or ()),
        dataset=None if dataset is None or dataset.folder is None else Path(dataset.folder),
        scores={folder.name: folder / VALIDATION_SCORES},
    )


def _in_words(padding: Mapping[str, object]) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in padding.items() if name != "kind")
    return f"{padding['kind']}({arguments})" if arguments else "a module of its own"


def _is_of_slices(roi_size: object, slice_axis: int | None) -> bool:
    """Return whether a window is one of single slices, if the network sees slices."""
    return slice_axis is None or (isinstance(roi_size, list) and roi_size[slice_axis] == 1)


def _of_nnunet(predictor: NNUNetPredictor) -> Origin:
    folds = [path.parent for path in predictor.checkpoints]
    model = folds[0].parent
    described = read_dataset_description(model)
    scores = {fold.name: fold / _OF_NNUNET for fold in folds}
    validated = _cases_in(scores[folds[0].name]) if len(folds) == 1 else ()
    return Origin(
        name=model.name,
        trainer=predictor.trainer,
        inferer={"_target_": "candy_monai.WindowInferer", "roi_size": list(predictor.plan.patch_shape)},
        file_ending=described.file_ending,
        training=("",) * (described.num_training or 0),  # the folder does not contain their names
        validation=validated,
        scores=scores,
        of_nnunet=True,
    )


def _cases_in(file: Path) -> tuple[str, ...]:
    """Return the cases in a file of nnU-Net's scores; empty if it cannot be read, since it is not required."""
    try:
        return tuple(case.case_id for case in read_summary(file).cases)
    except BadInputError:
        return ()
