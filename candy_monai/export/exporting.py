"""Export experiments: choose the target, write its files to a temporary folder, move them once they are verified."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.description import DESCRIPTION
from candy_monai.export.networks import load_network
from candy_monai.export.targets import TARGETS, Target, find_target
from candy_monai.export.usage import usage_file
from candy_monai.files import check_writable, folder_apart
from candy_monai.inference.inputs import is_path
from candy_monai.inference.predictor import PREVIOUS_STAGE
from candy_monai.recipes.predict import experiment_folders
from candy_monai.recipes.selection import selection_in

SUFFIXES = frozenset(target.suffix for target in TARGETS.values() if target.suffix)
MODEL = "model"
"""The name of the files if ``out`` is a folder."""


def export_experiments(
    experiments: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    to: str,
    portable: bool = False,
    checkpoint: str = "best",
    images: PathLike | None = None,
    trainer: str | None = None,
    trust: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[str], None] = print,
) -> Path:
    """Write trained experiments in a format that runs where candy_monai is not installed.

    Except for ``monai-bundle``, only the network is written, in one file, with a JSON file that describes how to use it
    (spacing, orientation, normalisation, window, classes) and how it compares with the experiment on real cases.
    Nothing is written if they differ by more than ``parity.TOLERANCE``.

    Args:
        experiments: The folder of an experiment or several, or of a trained nnU-Net; the folder of a cross-validation
            stands for those of its folds, or for what `select` chose in it, with its postprocessing. Several become an
            ensemble, which only ``monai-bundle`` supports.
        out: The folder to write to, or the file if it has the suffix of the target.
        to: One of ``monai-bundle``, ``onnx``, ``pt2``, ``torchscript`` and ``slicer``.
        portable: With ``monai-bundle``, use only MONAI's own transforms.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the experiment.
        images: An image or a folder of images for the comparison; None for cases that the experiment was validated on.
        trainer: ``FILE:Class``, your own trainer that the experiment belongs to; None for bundles.
        trust: Build any callable that the experiment's pipelines name, instead of known transforms only.
        overwrite: Replace existing files.
        on_progress: Called with a line of text for each stage.

    Returns:
        The file with the network, or the bundle's folder.

    Raises:
        BadInputError: If the experiment cannot be exported to this target, with the reason; or ``out`` already exists.
        MissingExtraError: If a required package is not installed.
    """
    target = find_target(to)
    given = [experiments] if is_path(experiments) else list(experiments)
    if portable and to != "monai-bundle":
        raise SettingsError(f"--portable applies to monai-bundle only, not to {to}: leave it out")
    selection = selection_in(given)
    folders = experiment_folders(given, checkpoint=checkpoint, on_progress=on_progress)
    _refuse_cascades(folders)
    if to == "monai-bundle":
        _refuse_options_of_networks(trainer=trainer, trust=trust)
    elif len(folders) > 1:
        raise BadInputError(
            f"{to} holds one network, and {len(folders)} experiments were given ({', '.join(map(str, folders))}): "
            "export each separately, or all of them with --to monai-bundle"
        )
    elif selection is not None and (selection.postprocessing or selection.thresholds):
        raise BadInputError(
            f"{selection.folder}: {to} holds only the network, not the postprocessing that was chosen with it: export "
            f"with --to monai-bundle, or export only {folders[0]}"
        )
    module, _, function = target.writer.partition(":")
    write = getattr(import_module(module), function)
    if to == "monai-bundle":
        chosen: dict[str, Any] = {"portable": portable, "checkpoint": checkpoint, "images": images}
        if selection is not None:
            if checkpoint == "best":
                selection.check_weights()
            chosen |= {"postprocessing": selection.postprocessing, "thresholds": selection.thresholds}
        chosen["overwrite"] = overwrite
        write(folders, Path(out), **chosen, on_progress=on_progress)
        return Path(out)
    file = _file_of(Path(out), target)
    _check_absent([file, usage_file(file)], overwrite=overwrite)
    check_writable(file.parent)
    on_progress(f"Reading {folders[0]}")
    network = load_network(folders[0], checkpoint=checkpoint, images=images, trainer=trainer, trust=trust)
    with _written_apart(file, overwrite=overwrite) as apart:
        write(network, apart, on_progress=on_progress)
    return file


def _refuse_cascades(folders: Iterable[Path]) -> None:
    for folder in folders:
        if (stage := folder / PREVIOUS_STAGE / DESCRIPTION).is_file():
            raise BadInputError(
                f"{folder}: the second stage of a cascade, which no target can hold together with the first one: "
                f"export the first stage alone, {stage.parent}, or an experiment of another configuration"
            )


def _file_of(out: Path, target: Target) -> Path:
    """Return the file of the network: ``out`` itself if it has the target's suffix, else one in the folder ``out``."""
    if word := next((word for word in target.not_in_path if word in str(out.absolute())), None):
        raise BadInputError(
            f"{out}: the program that reads it treats models with {word!r} in their path differently: choose another "
            "name"
        )
    if out.suffix == target.suffix and not out.is_dir():
        return out
    if out.suffix in SUFFIXES and not out.is_dir():
        raise SettingsError(f"{out}: expected a folder, or a file that ends in {target.suffix}")
    return out / f"{MODEL}{target.suffix}"


def _check_absent(files: Iterable[Path], *, overwrite: bool) -> None:
    if there := [file for file in files if file.exists()]:
        if overwrite and not any(file.is_dir() for file in there):
            return
        raise BadInputError(
            f"{there[0]}: already exists and is not overwritten: give another path, or replace it with --overwrite "
            "(overwrite=True)"
        )


@contextmanager
def _written_apart(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a file in a temporary folder, whose files are moved beside ``target`` after the block, the largest last."""
    folder = target.parent
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    with folder_apart(target, beside=nearest, prefix=".export-") as apart:
        yield apart / target.name
        written = sorted(apart.iterdir(), key=lambda file: file.stat().st_size)
        _check_absent([folder / file.name for file in written], overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        for file in written:
            file.replace(folder / file.name)


def _refuse_options_of_networks(**given: object) -> None:
    if name := next((name for name, value in given.items() if value), None):
        raise SettingsError(f"--{name} does not apply to monai-bundle: leave it out")
