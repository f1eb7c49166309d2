"""Write a complete MONAI Bundle of trained experiments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.names import image_suffix
from candy_monai.errors import BadInputError, DatasetError
from candy_monai.experiment.checkpoints import save_tensors
from candy_monai.export.definitions import TARGET
from candy_monai.export.monai_bundle.configs import (
    evaluation_config,
    inference_config,
    multi_gpu_config,
    training_config,
)
from candy_monai.export.monai_bundle.metadata import bundle_metadata
from candy_monai.export.monai_bundle.network import BundleNetwork, describe_network, ensemble_of
from candy_monai.export.monai_bundle.nnunet import describe_nnunet
from candy_monai.export.monai_bundle.origin import Origin, origin_of
from candy_monai.export.monai_bundle.parity import measure_parity
from candy_monai.export.monai_bundle.readme import write_readme
from candy_monai.export.monai_bundle.source import BundleSource
from candy_monai.export.monai_bundle.steps import scripts_in
from candy_monai.files import check_writable, folder_apart
from candy_monai.incoming.nnunet import NNUNetPredictor
from candy_monai.incoming.opening import load_predictor
from candy_monai.inference.cases import CasePredictor
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.inputs import input_cases
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.predictor import Predictor
from candy_monai.registry import SCRIPTS

if TYPE_CHECKING:
    from candy_monai.data.pipelines.description import Entry
    from candy_monai.inference.inputs import Inputs

_EQUAL = 0.999
"""Minimum fraction of the foreground voxels of each case that MONAI's inferer must label as the experiment's does."""

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
    images: Inputs | None = None,
    postprocessing: Sequence[Entry] = (),
    thresholds: Sequence[float] = (),
    overwrite: bool = False,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a MONAI Bundle, which runs where MONAI is installed and candy_monai is not; return its folder.

    Its configurations are derived from the experiment's own pipelines. If these need classes that MONAI lacks, their
    modules are copied to ``scripts/``. The bundle is run once on the images given, or on validation cases if the
    experiment's dataset is available, and its ``docs/README.md`` states how its label maps compare with those of the
    experiment. If MONAI's own inferer labels these images as the experiment's does, it is used; otherwise the latter is
    copied.

    Args:
        experiments: The experiment folder; several become one bundle that averages their probabilities. Or the folder
            of a trained nnU-Net, whose folds become one network.
        out: The bundle's folder, empty or, to be replaced, a bundle. MONAI Label treats a bundle as one for
            segmentation if this word is in the folder's name.
        portable: Use only MONAI's own classes: its nearest equivalents replace ours.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the experiment.
        images: The images for the comparison; None for cases that the experiment was validated on.
        postprocessing: Steps on the label map, at ``pred``, after those of the experiment.
        thresholds: The probability that each region must exceed; empty for 0.5.
        overwrite: Replace the bundle at ``out``.
        on_progress: Called with the result of the comparison.
    """
    out = Path(out)
    _check_place(out, overwrite=overwrite)
    check_writable(out)
    if not experiments:
        raise BadInputError("a bundle needs at least one experiment")
    if len(experiments) > 1 and portable:
        raise BadInputError(
            "--portable takes one experiment: MONAI has no network that averages others; export without --portable, "
            "or one experiment"
        )
    predictors = [_opened(experiment, checkpoint) for experiment in experiments]
    whole: CasePredictor = predictors[0]
    if len(predictors) > 1 or postprocessing or thresholds:
        whole = EnsemblePredictor(predictors, postprocessing=postprocessing, thresholds=thresholds)
    source = replace(
        _source(predictors, portable=portable), chosen_steps=tuple(postprocessing), thresholds=tuple(thresholds)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    cases = _validation_files(source.origin) if images is None else _given_files(images, source)
    sources = [source]
    if not portable and source.may_run_by_monai:
        sources = [replace(source, by_monai=True), *sources] if cases else sources
    with folder_apart(out, beside=out.parent, prefix=f".{out.name}.") as folder:
        for number, source in enumerate(sources):
            written = folder / str(number)
            scripts = _write_files(written, source)
            parity = measure_parity(written, whole, cases)
            if source.by_monai and parity.least is not None and parity.least >= _EQUAL:
                break
        places = [predictor.folder for predictor in predictors]
        write_readme(written / "docs", source, places, parity, scripts=scripts, checkpoint=checkpoint)
        on_progress(parity.summary)
        if out.exists():
            shutil.move(out, folder / "replaced")
        shutil.move(written, out)
    return out


def _check_place(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    is_bundle = (out / "configs" / "metadata.json").is_file()
    if overwrite and not is_bundle:
        raise BadInputError(f"{out}: not a MONAI Bundle, and only a MONAI Bundle is replaced: give another folder")
    if not overwrite:
        instead = ", or replace the bundle that it holds with --overwrite (overwrite=True)" if is_bundle else ""
        raise BadInputError(
            f"{out}: is not empty, and a bundle is written into a folder of its own: give a new one{instead}"
        )


def _opened(folder: PathLike, checkpoint: str) -> NetworkPredictor:
    opened = load_predictor(folder, checkpoint=checkpoint)
    assert isinstance(opened, NetworkPredictor)
    return opened


def _source(predictors: Sequence[NetworkPredictor], *, portable: bool) -> BundleSource:
    origins = [origin_of(predictor) for predictor in predictors]
    if len(predictors) > 1 and (theirs := [each for each in origins if each.of_nnunet]):
        raise BadInputError(
            f"{theirs[0].name}: an nnU-Net model cannot be combined with others: a bundle averages either the folds "
            "of one nnU-Net model or several experiments; export each separately"
        )
    networks = [_network(predictor) for predictor in predictors]
    if portable and networks[0].scripts:
        raise BadInputError(
            f"{predictors[0].folder}: --portable uses only MONAI's own classes, and MONAI does not have the network "
            f"{networks[0].entry[TARGET].rpartition('.')[2]}: export without --portable"
        )
    first, *others = (
        BundleSource(predictor=predictor, origin=origin, network=networks[0], portable=portable)
        for predictor, origin in zip(predictors, origins, strict=True)
    )
    for other in others:
        for what in ("preprocessing", "postprocessing", "inferer"):
            mine, its = (
                getattr(each, what)("") if what == "postprocessing" else getattr(each, what)()
                for each in (first, other)
            )
            if mine != its:
                raise BadInputError(
                    f"{other.predictor.folder}: its {what} differs from that of {first.predictor.folder}, but all "
                    "networks of a bundle share it: export each separately, or experiments with the same plan, as "
                    "candy-monai crossval trains them"
                )
    return replace(first, network=ensemble_of(networks, sigmoid=first.is_sigmoid)) if others else first


def _network(predictor: NetworkPredictor) -> BundleNetwork:
    if isinstance(predictor, NNUNetPredictor):
        return describe_nnunet(predictor)
    assert isinstance(predictor, Predictor)  # `origin_of` refuses others
    return describe_network(predictor)


def _write_files(folder: Path, source: BundleSource) -> list[str]:
    """Write everything but the README, and return the names of the modules in ``scripts``."""
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True)
    validation = source.origin.validation if source.network.num_members == 1 else ()
    configs = {
        "inference": inference_config(source),
        "train": training_config(source, validation),
        "evaluate": evaluation_config(source),
        "multi_gpu_train": multi_gpu_config(),
    }
    scripts = scripts_in(configs, source.network.scripts)
    configs["metadata"] = bundle_metadata(source, uses_scripts=bool(scripts))
    for name, config in configs.items():
        _write_json(folder / "configs" / f"{name}.json", config)
    (folder / "configs" / "logging.conf").write_text(_LOGGING, encoding="utf-8")
    if scripts:
        (folder / SCRIPTS).mkdir()
        (folder / SCRIPTS / "__init__.py").write_text('"""Parts that MONAI does not provide."""\n', encoding="utf-8")
    for module, text in scripts.items():
        (folder / SCRIPTS / f"{module}.py").write_text(text, encoding="utf-8")
    save_tensors(folder / "models" / "model.pt", source.network.weights)
    license_text = files("candy_monai.export.monai_bundle").joinpath("LICENSE.txt").read_text(encoding="utf-8")
    (folder / "LICENSE").write_text(license_text, encoding="utf-8")
    return list(scripts)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _validation_files(origin: Origin) -> dict[str, Sequence[Path]]:
    """Return the image files of the cases that a model was validated on, if its dataset is available."""
    if origin.dataset is None or not origin.dataset.is_dir():
        return {}
    try:
        found = {case.case_id: case.images for case in NNUNetDataset(origin.dataset).cases}
    except (DatasetError, OSError):  # the training data no longer exist
        return {}
    return {case_id: found[case_id] for case_id in origin.validation if case_id in found}


def _given_files(images: Inputs, source: BundleSource) -> dict[str, Sequence[Path]]:
    """Return the files of each of the images for the comparison, which must have the format of the bundle."""
    predictor = source.predictor
    found: dict[str, Sequence[Path]] = {}
    for case in input_cases(images, channels=predictor.channels, num_dims=predictor.num_dims):
        found[case.case_id] = case.files
        for file in case.files:
            if image_suffix(file) != source.file_ending:
                raise BadInputError(
                    f"{file}: the bundle reads {source.file_ending} files, on which the model was trained: give such "
                    "files with --images"
                )
    return found
