"""Write a complete MONAI Bundle of trained experiments."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.pictures import TIFFS
from candy_monai.errors import BadInputError, DatasetError, ExperimentError
from candy_monai.experiment.description import PLAN
from candy_monai.export.monai_bundle.configs import (
    evaluation_config,
    inference_config,
    multi_gpu_config,
    training_config,
)
from candy_monai.export.monai_bundle.metadata import bundle_metadata
from candy_monai.export.monai_bundle.network import describe_network, ensemble_of
from candy_monai.export.monai_bundle.parity import measure_parity
from candy_monai.export.monai_bundle.readme import write_readme
from candy_monai.export.monai_bundle.source import BundleSource
from candy_monai.export.monai_bundle.steps import SCRIPTS, script, scripts_in
from candy_monai.files import check_writable
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.predictor import Predictor, experiment_predictor

_EQUAL = 0.999
"""The share of the foreground voxels of each case that MONAI's inferer must label as the experiment's does."""

_WINDOWS = ("candy_monai.WindowInferer", "monai.inferers.SlidingWindowInferer")
_WINDOW_ARGUMENTS = {"_target_", "roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval"}

_LOGGING = """\
[loggers]
keys=root

[handlers]
keys=consoleHandler

[formatters]
keys=fullFormatter

[logger_root]
level=INFO
handlers=consoleHandler

[handler_consoleHandler]
class=StreamHandler
level=INFO
formatter=fullFormatter
args=(sys.stdout,)

[formatter_fullFormatter]
format=%(asctime)s - %(name)s - %(levelname)s - %(message)s
"""


def export_monai_bundle(
    experiments: Sequence[PathLike],
    out: PathLike,
    *,
    portable: bool = False,
    checkpoint: str = "best",
    overwrite: bool = False,
) -> Path:
    """Write a MONAI Bundle, which runs where MONAI is installed and candy_monai is not.

    Its configurations are made of the experiment's own pipelines. Where these need classes that MONAI lacks, their
    modules are copied to ``scripts/``. The bundle is run once on validation cases, if the experiment's dataset is at
    hand, and its ``docs/README.md`` says how its label maps compare with those of the experiment. On these it is tried,
    too, whether MONAI's own inferer labels as the experiment does; else that is copied.

    Args:
        experiments: The experiment folder; several become one bundle that averages their probabilities.
        out: The bundle's folder, made when missing, which must be empty or, to be replaced, a bundle. MONAI Label takes
            a bundle for one of segmentation if the word is in the folder's name.
        portable: Name MONAI's own classes alone: its nearest equivalents stand in for ours.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the experiment.
        overwrite: Replace the bundle that is at ``out``.

    Returns:
        The bundle's folder.

    Raises:
        BadInputError: If ``out`` is not empty; an experiment cannot be exported, with what to do instead; or the
            experiments do not fit together.
        RunFailedError: If the bundle was written and does not run.
    """
    out = Path(out)
    _check_place(out, overwrite=overwrite)
    check_writable(out)
    if not experiments:
        raise BadInputError("a bundle needs at least one experiment")
    if len(experiments) > 1 and portable:
        raise BadInputError(
            "--portable and several experiments: MONAI has no network that averages others, which the bundle would "
            "have to bring; export without --portable, or one experiment"
        )
    predictors = [_exportable(experiment_predictor(experiment, checkpoint=checkpoint)) for experiment in experiments]
    whole = EnsemblePredictor(predictors) if len(predictors) > 1 else predictors[0]
    source = _source(predictors, portable=portable)
    out.parent.mkdir(parents=True, exist_ok=True)
    cases = _validation_files(predictors)
    sources = [source]
    if not portable and source.may_run_by_monai:
        sources = [replace(source, by_monai=True), *sources] if cases else sources
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        for number, source in enumerate(sources):
            written = Path(folder) / str(number)
            scripts = _write_files(written, source, num_members=len(predictors))
            parity = measure_parity(written, whole, cases)
            if source.by_monai and parity.least is not None and parity.least >= _EQUAL:
                break
        places = [predictor.folder for predictor in predictors]
        write_readme(written / "docs", source, places, parity, scripts=scripts, checkpoint=checkpoint)
        if out.exists():
            shutil.move(out, Path(folder) / "replaced")
        shutil.move(written, out)
    return out


def _check_place(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    is_bundle = (out / "configs" / "metadata.json").is_file()
    if overwrite and not is_bundle:
        raise BadInputError(f"{out}: holds no MONAI Bundle, which alone is replaced by one: name another folder")
    if not overwrite:
        instead = ", or replace the bundle that it holds with --overwrite (overwrite=True)" if is_bundle else ""
        raise BadInputError(
            f"{out}: is not empty, and a bundle is written into a folder of its own: name a new one{instead}"
        )


def _exportable(predictor: Predictor) -> Predictor:
    """Return the predictor of an experiment that a bundle can be made of; refuse others by name."""
    description, plan, folder = predictor.description, predictor.plan, predictor.folder
    if plan is None or description.pipelines is None:
        raise ExperimentError(
            f"{folder}: trained by {description.trainer} without a plan, so that nobody knows how its images were "
            "prepared: train with candy-monai train, or write a bundle around its weights yourself"
        )
    inferer = description.inferer
    given = inferer if isinstance(inferer, dict) else {}
    is_windows = given.get("_target_") in _WINDOWS and set(given) <= _WINDOW_ARGUMENTS
    if inferer != PLAN and not (is_windows and plan.slice_axis is None):
        named = given.get("_target_", inferer)
        raise ExperimentError(
            f"{folder}: validated with the inferer {named}; a bundle can be made of the plan's and of sliding windows: "
            "export to onnx"
        )
    ending = None if description.dataset is None else description.dataset.file_ending
    if plan.num_dims == 3 and ending in TIFFS:
        raise ExperimentError(
            f"{folder}: trained on volumes in {ending} files, which MONAI does not read: convert the dataset to "
            ".nii.gz and train on that, or export to onnx"
        )
    return predictor


def _source(predictors: Sequence[Predictor], *, portable: bool) -> BundleSource:
    first = predictors[0]
    networks = [describe_network(predictor) for predictor in predictors]
    description = first.description.dataset
    num_trained = len(description.training or ()) if description is not None else 0
    source = BundleSource(predictor=first, network=networks[0], portable=portable, num_trained=num_trained)
    if len(predictors) == 1:
        return source
    for predictor in predictors[1:]:
        other = BundleSource(predictor=predictor, network=networks[0], portable=portable, num_trained=num_trained)
        for what in ("preprocessing", "postprocessing", "inferer"):
            mine, theirs = (
                getattr(each, what)("") if what == "postprocessing" else getattr(each, what)()
                for each in (source, other)
            )
            if mine != theirs:
                raise BadInputError(
                    f"{predictor.folder}: its {what} is another than that of {first.folder}, and a bundle has one for "
                    "all its networks: export each by itself, or experiments of one plan, as candy-monai crossval makes"
                )
    network = ensemble_of(networks, sigmoid=source.is_sigmoid)
    return BundleSource(predictor=first, network=network, portable=portable, num_trained=num_trained)


def _write_files(folder: Path, source: BundleSource, *, num_members: int) -> list[str]:
    """Write everything but the README, and return the modules in ``scripts``."""
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True)
    dataset = source.predictor.description.dataset
    validation = () if dataset is None or num_members > 1 else dataset.validation or ()
    configs = {
        "inference": inference_config(source),
        "train": training_config(source, validation),
        "evaluate": evaluation_config(source),
        "multi_gpu_train": multi_gpu_config(),
    }
    scripts = sorted(scripts_in(configs))
    configs["metadata"] = bundle_metadata(source, uses_scripts=bool(scripts), num_members=num_members)
    for name, config in configs.items():
        _write_json(folder / "configs" / f"{name}.json", config)
    (folder / "configs" / "logging.conf").write_text(_LOGGING, encoding="utf-8")
    if scripts:
        (folder / SCRIPTS).mkdir()
        (folder / SCRIPTS / "__init__.py").write_text('"""What MONAI has no equal of."""\n', encoding="utf-8")
    for module in scripts:
        (folder / SCRIPTS / f"{module}.py").write_text(script(module), encoding="utf-8")
    torch.save(source.network.weights, folder / "models" / "model.pt")
    license_text = files("candy_monai.export.monai_bundle").joinpath("LICENSE.txt").read_text(encoding="utf-8")
    (folder / "LICENSE").write_text(license_text, encoding="utf-8")
    return scripts


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _validation_files(predictors: Sequence[Predictor]) -> dict[str, Sequence[Path]]:
    """Return the image files of the cases that the first experiment was validated on, where its dataset is at hand."""
    dataset = predictors[0].description.dataset
    if dataset is None or dataset.folder is None or not Path(dataset.folder).is_dir():
        return {}
    try:
        found = {case.case_id: case.images for case in NNUNetDataset(dataset.folder).cases}
    except (DatasetError, OSError):  # what it was trained on is there no more
        return {}
    return {case_id: found[case_id] for case_id in dataset.validation or () if case_id in found}
