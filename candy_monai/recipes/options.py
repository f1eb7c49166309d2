"""The options of a planned run, declared once for Python, the command line, and the files of folds.

Imports nothing heavy: the command line's ``--help`` is made from these declarations.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from candy_monai.errors import SettingsError
from candy_monai.experiment.durations import seconds_of
from candy_monai.experiment.settings import (
    FLAG,
    SAVE_EVERY,
    SEED,
    TEXT,
    Declared,
    SettingKind,
    number,
    one_of,
    setting,
    whole_number,
)
from candy_monai.frontends import FRONTENDS

if TYPE_CHECKING:
    from candy_monai.aliases import PathLike
    from candy_monai.attachment import Precision
    from candy_monai.data.samples.store import StoredPrecision
    from candy_monai.frontends.base import Frontend
    from candy_monai.training.segmentation import SegmentationTrainer


OF_A_MACHINE = ("out", "store", "device", "jobs", "frontends", "plan", "splits", "note")
"""Options that may differ between runs that are compared with each other; of a plan, only its path may differ."""


def parsed_pairs(items: Iterable[str], *, flag: str = "--set", example: str = "batch_size=4") -> dict[str, str]:
    """Return the entries of ``KEY=VALUE`` texts, without checking the keys.

    Raises:
        SettingsError: If one has no key or no ``=``, or a key comes with two different values.
    """
    pairs: dict[str, str] = {}
    for item in items:
        key, separator, value = (part.strip() for part in item.partition("="))
        if not separator or not key:
            raise SettingsError(f"{flag} {item!r}: expected KEY=VALUE, for example {flag} {example}")
        if pairs.setdefault(key, value) != value:
            raise SettingsError(f"{flag} {key} is given twice: {pairs[key]!r} and {value!r}")
    return pairs


def parsed_literals(
    items: Iterable[str], *, flag: str = "--network-args", example: str = "init_filters=16"
) -> dict[str, Any]:
    """Return the entries of ``KEY=VALUE`` texts, with each value parsed as a Python literal if possible, else as text.

    Raises:
        SettingsError: As `parsed_pairs`.
    """
    return {key: _literal(text) for key, text in parsed_pairs(items, flag=flag, example=example).items()}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


MONAI_BUNDLE = "monai"
"""The bundle that trains a network of MONAI given by its name."""

PATH = SettingKind("a path", lambda value: isinstance(value, str | os.PathLike), Path)
DURATION = number("of seconds above 0", lambda value: value > 0, seconds_of)
FOLD = SettingKind(
    "a number from 0, or 'all'",
    lambda value: value == "all" or whole_number(0).accepts(value),
    lambda text: int(text) if text.isascii() and text.isdigit() else text,
)
CLASS = SettingKind("FILE:Class, or a class", lambda value: isinstance(value, str | type))
NAMES = SettingKind("a sequence of names or classes", lambda value: isinstance(value, tuple | list))
PAIRS = SettingKind("a mapping of names to values", lambda value: isinstance(value, Mapping))


def option(
    usage: str,
    kind: SettingKind,
    text: str,
    *,
    default: Any = None,
    collected: Callable[[list[str]], Any] | None = None,
    resumes: bool = False,
) -> Any:
    """Declare an option.

    Args:
        usage: The option of the command line, and the placeholder for its value.
        kind: The kind of value that it accepts.
        text: Its description, for the help of the command line and for Python.
        default: Its default.
        collected: Combines the texts of an option that may be repeated into one value.
        resumes: Whether it can be changed when a run is resumed.
    """
    flag, _, metavar = usage.partition(" ")
    return setting(kind, default, flag=flag, metavar=metavar, help=text, collected=collected, resumes=resumes)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Declared):
    """Options of a planned run, for `train_dataset`, `resume_training`, `cross_validate` and the command line."""

    bundle: str = option(
        "--bundle NAME",
        TEXT,
        "the architecture: unet, dynunet, attention_unet, segresnet, mednext, swin_unetr, unetr, unetpp, vnet, "
        "cmunext, or one provided by another package (default: unet)",
        default="unet",
    )
    network: str | None = option(
        "--network NAME",
        TEXT,
        "any network of monai.networks.nets, given by its class name, such as SegResNet, instead of a bundle",
    )
    network_args: Mapping[str, Any] | None = option(
        "--network-args KEY=VALUE",
        PAIRS,
        "an argument of the network: of the class given by --network, such as init_filters=16, or an option of the "
        "bundle, such as size=L; may be repeated",
        collected=parsed_literals,
    )
    fold: int | Literal["all"] = option(
        "--fold N|all", FOLD, "the fold to validate on; 'all' trains on every case (default: 0)", default=0
    )
    num_epochs: int | None = option(
        "--epochs N", whole_number(1), "number of epochs (default: that of the plan)", resumes=True
    )
    budget_s: float | None = option(
        "--budget TIME", DURATION, "time limit for each run, including its preparation: 90s, 10m, 1h30m"
    )
    save_every: int | str | None = option(
        "--save-every STEPS|TIME",
        SAVE_EVERY,
        "also save within epochs: after this number of steps, or at this interval, such as 10m or 90s (default: only "
        "at the end of each epoch)",
    )
    seed: int | None = option("--seed N", SEED, "random seed of the run (default: drawn and recorded)")
    overrides: Mapping[str, str] | None = option(
        "--set KEY=VALUE",
        PAIRS,
        "fix an entry of the plan, for example patch_shape=64,64,32; may be repeated",
        collected=parsed_pairs,
    )
    configuration: Literal["auto", "2d", "3d", "3d_lowres", "3d_cascade"] = option(
        "--configuration 2d|3d|3d_lowres|3d_cascade|auto",
        one_of("auto", "2d", "3d", "3d_lowres", "3d_cascade"),
        "2d: a 2-D network on the slices of volumes; 3d: a 3-D network; 3d_lowres: one at a lower resolution, for "
        "volumes far larger than a patch; 3d_cascade: one that also sees the label map predicted by 3d_lowres, see "
        "--previous (default: auto, which chooses 2d if slices are thick and the machine is small, else 3d)",
        default="auto",
    )
    previous: PathLike | None = option(
        "--previous DIR",
        PATH,
        "the first stage of the configuration 3d_cascade: the folder of a finished cross-validation of the "
        "configuration 3d_lowres with the same folds",
        resumes=True,
    )
    plan: PathLike | None = option(
        "--plan FILE",
        PATH,
        "use an existing plan, even if the dataset has changed: the folder of an experiment, or a file that contains "
        "a plan",
    )
    device: str = option(
        "--device NAME",
        TEXT,
        "device: cpu, cuda, cuda:1, mps (default: auto, the best available)",
        default="auto",
        resumes=True,
    )
    out: PathLike = option("--out DIR", PATH, "folder of the experiments (default: experiments)", default="experiments")
    store: PathLike | None = option(
        "--store DIR", PATH, "folder of preprocessed cases (default: .store in the folder of --out)", resumes=True
    )
    store_precision: StoredPrecision = option(
        "--store-precision float32|float16",
        one_of("float32", "float16"),
        "data type of the preprocessed images; float16 needs half the disk space (default: float32)",
        default="float32",
    )
    splits: PathLike | None = option(
        "--splits FILE", PATH, "a splits_final.json (default: that of the dataset, otherwise 5 folds)"
    )
    num_folds: int | None = option(
        "--num-folds N", whole_number(2), "number of folds (default: 5, or one per case if there are fewer cases)"
    )
    groups: str | None = option(
        "--groups REGEX|FILE.csv",
        TEXT,
        "keep the cases of a group on the same side of a fold; the group is what the expression matches in the case "
        "id, or is given by a CSV file of case ids and groups",
    )
    stratify: str | None = option(
        "--stratify REGEX|FILE.csv",
        TEXT,
        "distribute the kinds of cases evenly over the folds; kinds are given as for --groups",
    )
    trainer: str | type[SegmentationTrainer] | None = option(
        "--trainer FILE:Class", CLASS, "your own subclass of SegmentationTrainer; the file is executed", resumes=True
    )
    trainer_args: Mapping[str, Any] | None = option(
        "--trainer-args KEY=VALUE",
        PAIRS,
        "an attribute of the trainer, such as max_grad_norm=1, or one of your own trainer; may be repeated",
        collected=lambda items: parsed_literals(items, flag="--trainer-args", example="max_grad_norm=1"),
    )
    transforms: PathLike | None = option(
        "--transforms FILE",
        PATH,
        "a JSON or YAML file of MONAI transforms: a list for training patches, or lists under preprocessing, "
        "augmentation and postprocessing; they extend those of the plan, or replace them if they load files "
        "(LoadImaged), cut the patch (RandWarpd) or invert preprocessing (Invertd) themselves",
    )
    trust: bool = option(
        "--trust",
        FLAG,
        "also build transforms that are neither MONAI's nor candy_monai's: they may run any code, so use this only if "
        "you trust the author of the list",
        default=False,
        resumes=True,
    )
    frontends: Sequence[str | type[Frontend]] = option(
        "--frontend NAME",
        NAMES,
        f"a dashboard to report to: {', '.join(FRONTENDS)}, or FILE:Class for one of your own; may be repeated",
        default=(),
        collected=tuple,
        resumes=True,
    )
    init_from: PathLike | None = option(
        "--init-from WEIGHTS",
        PATH,
        "start from existing weights: the folder of an experiment (whose network topology is adopted), a weight file "
        "(.pth, .pt, .safetensors), or the folder of a MONAI Bundle or an nnU-Net model; the log says which weights "
        "were loaded",
    )
    freeze: Sequence[str] = option(
        "--freeze PATTERN",
        NAMES,
        "name pattern of parameters that are not trained, such as 'input_block.*'; may be repeated",
        default=(),
        collected=tuple,
    )
    warm_up: int | None = option(
        "--warm-up STEPS",
        whole_number(0),
        "number of steps over which the learning rate rises (default: with --init-from a twentieth of the run, at "
        "most 250; otherwise 0)",
    )
    amp: Literal["auto", "bf16", "fp16", "off"] = option(
        "--amp auto|bf16|fp16|off",
        one_of("auto", "bf16", "fp16", "off"),
        "the precision to train in; off is float32 (default: auto, which is half precision on a GPU, and with a budget "
        "the fastest of those measured)",
        default="auto",
    )
    sync_batchnorm: bool = option(
        "--sync-batchnorm",
        FLAG,
        "under torchrun on GPUs: compute the statistics of batch normalisation over the batches of all processes",
        default=False,
    )
    shard_optimizer: bool = option(
        "--shard-optimizer",
        FLAG,
        "under torchrun: divide the optimizer's state among the processes, to save memory",
        default=False,
    )
    no_references: bool = option(
        "--no-references",
        FLAG,
        "forecast the best score only from the scores of this run, without earlier runs on the same dataset",
        default=False,
        resumes=True,
    )
    no_report: bool = option("--no-report", FLAG, "do not write report.html, the report page of the run", default=False)
    note: str = option("--note TEXT", TEXT, "a note that is stored with the run", default="")
    jobs: int | None = option(
        "--jobs N",
        whole_number(1),
        "number of cases processed at the same time (default: one per processor, fewer if memory is short)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_epochs is not None and self.budget_s is not None:
            raise SettingsError("give a number of epochs or a budget, not both: each decides how long to train")
        if self.previous is not None and self.configuration not in ("auto", "3d_cascade"):
            raise SettingsError(
                f"--previous is the first stage of a cascade, and --configuration is {self.configuration}: give "
                "--configuration 3d_cascade, or leave out --previous"
            )
        if self.previous is not None and self.init_from is not None:
            raise SettingsError("give --previous or --init-from, not both: a cascade starts from new weights")
        if self.freeze and self.init_from is None and self.trainer is None:
            raise SettingsError(
                f"freeze {', '.join(map(repr, self.freeze))} without init_from: these parameters would keep their "
                "random values; give weights to start from (--init-from), or leave out --freeze"
            )
        if self.network is not None and (self.bundle not in ("unet", MONAI_BUNDLE) or self.trainer is not None):
            other = f"--bundle {self.bundle}" if self.trainer is None else "--trainer"
            raise SettingsError(f"give --network {self.network} or {other}, not both: each names the network")
        fixed = [name for name in ("num_epochs", "iterations_per_epoch") if name in (self.overrides or ())]
        if self.num_epochs is not None and "num_epochs" in fixed:
            raise SettingsError("give --epochs or --set num_epochs=..., not both")
        if self.budget_s is not None and fixed:
            raise SettingsError(
                f"a budget decides {' and '.join(fixed)}: leave out the budget, or --set {fixed[0]}=..."
            )

    @classmethod
    def of(cls, options: Self | None, keywords: Mapping[str, Any], *, resumes: bool = False) -> Self:
        """Return options with some of them replaced.

        Args:
            options: The options; None for the defaults.
            keywords: The options to replace, by name.
            resumes: Whether they are for resuming a run.

        Raises:
            SettingsError: If a name is not that of an option, a value is out of range, or options contradict each
                other.
        """
        cls.check_names(keywords, source="options")
        for field in dataclasses.fields(cls):
            if resumes and field.name in keywords and not field.metadata["resumes"]:
                raise SettingsError(f"{field.name} is fixed for a run, and cannot be changed when it is resumed")
        return dataclasses.replace(options or cls(), **keywords)

    @property
    def fixed_precisions(self) -> Sequence[Precision] | None:
        """The one precision that was asked for; None where it is measured, or follows from the device."""
        if self.amp == "auto":
            return None
        return (None if self.amp == "off" else self.amp,)

    def to_json(self) -> str:
        """Return the options that differ from their defaults, as JSON for `from_json`.

        Raises:
            SettingsError: If one of them is a class, which only exists in this process.
        """
        chosen = {name: value for name, value in vars(self).items() if value != getattr(type(self), name)}
        return json.dumps(chosen, default=_path_as_text, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the options of a text that `to_json` returned.

        Raises:
            SettingsError: If the text is not valid.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"options: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise SettingsError(f"options: found {type(values).__name__}, expected an object of options by name")
        return cls.of(None, values)


def _path_as_text(value: object) -> str:
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise SettingsError(f"{value!r} is known to this process only: write it to a file and give FILE:Class")


# One text serves the command line's help and Python's.
TrainOptions.__doc__ = f"{TrainOptions.__doc__}\n\nAttributes:\n" + "".join(
    f"    {field.name}: As ``{field.metadata['flag']}``: {field.metadata['help']}.\n"
    for field in dataclasses.fields(TrainOptions)
)
