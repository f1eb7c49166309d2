"""Export experiments: choose the target, write its files apart, and move them to their place once they are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.export.targets import find_target
from candy_monai.recipes.predict import experiment_folders

MODEL = "model"
"""What the files are called where ``out`` names a folder."""


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

    But for ``monai-bundle``, what is written is the network alone, in one file, and beside it a JSON file with what it
    takes to use it (spacing, orientation, normalisation, window, classes) and with how it compares with the experiment
    on real cases. Nothing is written if they differ by more than ``parity.TOLERANCE``.

    Args:
        experiments: An experiment's folder or several; the folder of a cross-validation stands for those of its folds.
            Several become an ensemble, which only ``monai-bundle`` can be.
        out: The folder to write to, or the file if its name ends as the target's.
        to: One of ``monai-bundle``, ``onnx``, ``pt2``, ``torchscript`` and ``slicer``.
        portable: With ``monai-bundle``, name MONAI's own transforms alone.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the experiment.
        images: An image or a folder of images to compare on; None for cases that the experiment was validated on.
        trainer: ``FILE:Class``, the trainer of your own that the experiment belongs to; None for bundles.
        trust: Build any callable that the experiment's pipelines name, instead of known transforms only.
        overwrite: Replace what is there.
        on_progress: Told what is done.

    Returns:
        The file with the network, or the bundle's folder.

    Raises:
        BadInputError: If the experiment cannot be exported to this target, which says why; or there is something at
            ``out`` already.
        MissingExtraError: If a package is needed that is not installed.
    """
    target = find_target(to)
    given = [experiments] if isinstance(experiments, str | Path) else list(experiments)
    if portable and to != "monai-bundle":
        raise SettingsError(f"--portable belongs to monai-bundle, and has no meaning for {to}: leave it out")
    folders = experiment_folders(given, checkpoint=checkpoint, on_progress=on_progress)
    if len(folders) > 1 and not target.takes_several:
        raise BadInputError(
            f"{to} holds one network, and {len(folders)} experiments were given ({', '.join(map(str, folders))}): "
            "export each by itself, or all of them with --to monai-bundle"
        )
    write = getattr(import_module(target.module), target.function)
    if to == "monai-bundle":
        _refuse_options_of_networks(checkpoint=checkpoint != "best", images=images, trainer=trainer, trust=trust)
        write(folders, Path(out), portable=portable)
        return Path(out)
    raise NotImplementedError(to)


def _refuse_options_of_networks(**given: object) -> None:
    if name := next((name for name, value in given.items() if value), None):
        raise SettingsError(f"--{name} has no meaning for monai-bundle: leave it out")
