"""``candy-monai predict``: predict label maps with one or several trained experiments."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import DONE, PROGRAM, tell_next
from candy_monai.cli.feedback import Feedback, add_feedback
from candy_monai.cli.options import Subparsers, add_checkpoint, add_options, as_argument, new_command
from candy_monai.errors import SettingsError
from candy_monai.text import as_word

if TYPE_CHECKING:
    from candy_monai.experiment.description import ExperimentDescription
    from candy_monai.recipes.options import TrainOptions

_MEMORY = re.compile(r"(?P<number>[0-9.]+) ?(?P<unit>[KMGT])B?", re.ASCII)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "predict",
        run,
        summary="predict with a trained experiment",
        text="Predict the label maps of an image, of a DICOM series (its folder) or of a folder of these. Each label "
        "map has the shape and the position in space of its image. manifest.json next to them records how they "
        "were made, the volume of each class and, for planned runs, an estimate of their quality; warnings name "
        "doubtful cases. Several experiments are combined by the mean of their probabilities; the folder of a "
        "cross-validation stands for its folds. Images must have the channels of the run, as files that end in "
        "_0000, _0001 and so on or in one file; anything else is refused, and --channels selects the channels. A "
        "case that cannot be predicted is named and does not stop the others; the exit code is then 1. Processes "
        "started by torchrun share the cases.",
        example="candy-monai predict experiments/UNetTrainer/20251101-14-a3f2 imagesTs predictions\n"
        "candy-monai predict experiments/crossval-Dataset004_Hippocampus imagesTs predictions --probabilities\n"
        "candy-monai predict RUN patient_0001.nii.gz predictions --channels 1,2\n"
        "candy-monai predict runs/fold0 runs/fold1 runs/fold2 imagesTs predictions --mirror --memory 4G\n"
        "candy-monai predict RUN imagesTs predictions --continue\n"
        "torchrun --nproc-per-node 2 -m candy_monai predict RUN imagesTs predictions\n"
        "candy-monai predict spleen_ct_segmentation imagesTs predictions --statistics\n"
        "candy-monai predict RUN series predictions --to-dicom-seg",
    )
    parser.add_argument(
        "experiments",
        metavar="EXPERIMENT",
        nargs="+",
        type=Path,
        help="the folder of an experiment, of a cross-validation, of a MONAI Bundle or of a trained nnU-Net v2 "
        "(TRAINER__PLANS__CONFIGURATION); several are combined",
    )
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=Path,
        help="an image (any of its channels' files), a DICOM series (its folder or one of its files), or a folder of "
        "these",
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the folder for the label maps")
    add_options(parser, "device")
    add_checkpoint(parser)
    parser.add_argument(
        "--channels",
        type=as_argument(parse_channels),
        metavar="N,N",
        help="the channels to use, in the order of the run: 1,2 selects files that end in _0001 and _0002, or these "
        "channels of a file that holds more; none: such numbers are part of the case names (default: 0,1,... and "
        "no others are allowed)",
    )
    parser.add_argument(
        "--memory",
        type=as_argument(parse_memory),
        metavar="SIZE",
        help="memory limit for a case, in addition to the network and the libraries: 1G, 500M; scores that do not fit "
        "are kept in temporary files (default: no limit)",
    )
    parser.add_argument(
        "--mirror",
        action="store_true",
        help="average over mirrored images along the mirror axes of the plan: better, but slower",
    )
    parser.add_argument(
        "--largest-component", action="store_true", help="keep only the largest connected component of each class"
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write CASE_probabilities.nii.gz, with one channel per class; the label map is the class with the "
        "highest one",
    )
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="also write statistics.csv: the voxels and millilitres of each class in each case",
    )
    parser.add_argument(
        "--continue",
        dest="resume",
        action="store_true",
        help="skip cases that, according to manifest.json, were predicted by the same model and settings from the "
        "same images (default: predict all; several processes always skip them)",
    )
    parser.add_argument(
        "--to-dicom-seg",
        action="store_true",
        help="also write CASE_seg.dcm, a DICOM SEG that references the images of the series; INPUT must be DICOM",
    )
    parser.add_argument(
        "--segments",
        type=Path,
        metavar="FILE",
        help='a JSON file with codes and colours of the segments of --to-dicom-seg by class name: {"liver": {"type": '
        '["10200004", "SCT", "Liver"], "color": [221, 130, 101]}}',
    )
    add_options(
        parser,
        "trainer",
        help="your own trainer that trained the experiment, if it was not that of a bundle; the file is executed",
    )
    add_options(
        parser,
        "trust",
        help="also build unknown transforms of an experiment, and run the Python code of a MONAI Bundle: they may run "
        "any code, so use this only if you trust the author",
    )
    add_feedback(parser)


def command_for(run: Path, options: TrainOptions, *, dataset: Path | None) -> list[str]:
    """Return the words of the command that predicts with a run, on the test cases of its dataset if it has any."""
    images = None if dataset is None else dataset / "imagesTs"
    source = "IMAGES" if images is None or not images.is_dir() or not any(images.iterdir()) else as_word(images)
    trainer = ["--trainer", str(options.trainer)] if options.trainer is not None else []
    return [PROGRAM, "predict", as_word(run), source, "predictions", *trainer, *(["--trust"] if options.trust else [])]


def as_recorded(
    description: ExperimentDescription, options: TrainOptions, dataset: Path | None
) -> tuple[TrainOptions, Path | None]:
    """Return options and dataset for the next command, with what was not given and a run knows of itself.

    The file of a trainer is not recorded, and a run that was finished needs none.
    """
    if options.trainer is None and description.bundle is None:
        options = dataclasses.replace(options, trainer=f"FILE.py:{description.trainer}")
    if dataset is None and description.dataset is not None and description.dataset.folder is not None:
        dataset = Path(description.dataset.folder)
    return options, dataset


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.cli.progress import prediction_progress
    from candy_monai.device import find_device
    from candy_monai.processes import Processes
    from candy_monai.recipes.predict import load_experiments

    processes = Processes.from_environment()
    feedback: Feedback = args.feedback if processes.is_main else Feedback(is_quiet=True)
    if args.segments is not None and not args.to_dicom_seg:
        raise SettingsError("--segments describes the segments of a DICOM SEG; give --to-dicom-seg, too")
    predictor = load_experiments(
        args.experiments,
        trainer=args.trainer,
        checkpoint=args.checkpoint,
        device=str(processes.device_of(find_device(args.device))),
        mirror=args.mirror,
        largest_component=args.largest_component,
        memory=args.memory,
        channels=args.channels,
        trust=args.trust,
        on_progress=feedback.say,
    )
    with prediction_progress(feedback) as progress:
        written = predictor.predict_to_files(
            args.input,
            args.output,
            probabilities=args.probabilities,
            statistics=args.statistics,
            dicom_seg=args.to_dicom_seg,
            segments=args.segments,
            resume=args.resume,
            processes=processes,
            listener=progress,
        )
    if not processes.is_main:
        return DONE
    then = _evaluation_of(args.output, args.input)
    if feedback.lines is not None:
        return feedback.done("Predictions", args.output, then=then)
    print(f"{len(written)} label {'map' if len(written) == 1 else 'maps'} in {args.output}")
    tell_next(() if feedback.is_quiet else then)
    return DONE


def _evaluation_of(predictions: Path, images: Path) -> list[str]:
    """Return the words of the command that scores predictions, where the images' references lie beside them."""
    references = images.parent / images.name.replace("images", "labels")
    if references == images or not references.is_dir() or not any(references.iterdir()):
        return []
    return [PROGRAM, "evaluate", as_word(predictions), as_word(references)]


def parse_channels(text: str) -> tuple[int, ...]:
    """Parse channel numbers such as ``1,2``, or ``none``.

    Raises:
        SettingsError: If it is neither.
    """
    if text.strip().lower() == "none":
        return ()
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise SettingsError(f"expected channel numbers such as 1,2, or none, got {text!r}")
    return tuple(map(int, numbers))


def parse_memory(text: str) -> int:
    """Return the bytes of a size such as ``500M`` or ``1.5G``: K, M, G or T, with or without a B, are powers of 1000.

    Raises:
        SettingsError: If it is invalid, or 0.
    """
    match = _MEMORY.fullmatch(text.strip().upper())
    amount = float(match["number"]) if match and match["number"].count(".") <= 1 and match["number"] != "." else 0.0
    if match is None or not 0 < amount < math.inf:
        raise SettingsError(f"expected a size of memory such as 500M, 1G or 1.5G, got {text!r}")
    return int(amount * 1000 ** (" KMGT".index(match["unit"])))
