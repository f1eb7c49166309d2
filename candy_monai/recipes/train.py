"""Train on a dataset folder in one call, as ``candy-monai train`` does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from candy_monai.aliases import PathLike
from candy_monai.config import load_secrets
from candy_monai.data.pipelines.building import check_own_transforms, read_own_transforms
from candy_monai.data.pipelines.description import PIPELINES, OwnTransforms
from candy_monai.data.planning.files import read_plan
from candy_monai.data.planning.plan import parsed_overrides
from candy_monai.device import find_device
from candy_monai.errors import SettingsError
from candy_monai.files import check_writable
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.choice import choose_frontend
from candy_monai.incoming.weights import read_weights
from candy_monai.network import check_precision
from candy_monai.processes import Processes
from candy_monai.recipes.budget import SHORTEST_KEPT_S, precisions_at_hand
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.planned_run import PlannedRun
from candy_monai.recipes.prepare import prepare_dataset
from candy_monai.recipes.trainers import check_trainer_args, chosen_trainer
from candy_monai.seeding import draw_seed
from candy_monai.training.segmentation import SegmentationTrainer


def train_dataset(
    dataset: PathLike,
    options: TrainOptions | None = None,
    *,
    elapsed_s: float = 0.0,
    on_progress: Callable[[str], None] = print,
    **keywords: Any,
) -> Path:
    """Prepare a dataset, train on one fold of it, and score the best weights on the other cases.

    The whole dataset is checked, a plan is made for it, and its cases are preprocessed into the store. The best weights
    are scored on whole cases from their files, in their own geometry: ``validation.json`` in the experiment folder.

    Args:
        dataset: The dataset's folder, nnU-Net format: images of any of the formats that it names, each ``(*spatial)``
            with a label on the same grid. It is never written to.
        options: The options of the run; None for the defaults.
        elapsed_s: Seconds of the budget that are already used, for example by the start of the program.
        on_progress: Called with a line of text for each stage.
        **keywords: Fields of `TrainOptions`, such as ``budget_s=600`` (seconds) or ``num_epochs=100``, in place of
            those of ``options``.

    Returns:
        The experiment folder, ``<out>/<trainer's class>/<experiment id>``.

    Raises:
        BadInputError: If the dataset or an option cannot work; nothing was trained. A `DatasetError` lists every
            problem of the dataset, a `SettingsError` is about an option.
        RunFailedError: If it failed after its start, such as at a full disk.
        NonFiniteLossError: If the loss became NaN or infinite.
    """
    started = time.monotonic() - elapsed_s
    options = TrainOptions.of(options, keywords)
    if options.previous is not None and options.fold == "all":
        raise SettingsError(
            "the second stage of a cascade needs validation cases, which a fold of the first stage left out, too: give "
            "--fold with a number instead of all"
        )
    parts = Parts.of(options)
    processes = Processes.from_environment()
    device = processes.device_of(find_device(options.device))
    if options.sync_batchnorm:
        processes.check_sync_batchnorm(device)
    say = on_progress if processes.is_main else _in_silence
    check_precision(options.amp, device)
    if options.amp not in ("auto", "off") and device.type == "cpu" and options.amp not in precisions_at_hand(device):
        say(f"Warning: this processor emulates {options.amp}, which takes many times as long as float32 (--amp off)")
    if options.budget_s is not None and options.budget_s < SHORTEST_KEPT_S:
        say("Note: a run with a budget below one minute may end a few seconds late: scoring loads its weights again")
    with processes.connected(device):
        with processes.main_process_first():
            prepared = prepare_dataset(
                dataset, options, own=parts.own, trainer=parts.trainer, device=device, on_progress=say
            )
        run = PlannedRun(
            prepared=prepared,
            options=options,
            trainer_class=parts.trainer,
            own=parts.own,
            frontend=parts.frontend,
            seed=processes.broadcast(draw_seed() if options.seed is None else options.seed),
            device=device,
            processes=processes,
        )
        if (budget_s := options.budget_s) is not None:
            say("Measuring how fast this machine trains the plan")
            run = run.fitted_to(lambda: budget_s - (time.monotonic() - started), say)
        return run.train()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The trainer, transforms and dashboard that options name, imported and checked before any data are read.

    Attributes:
        trainer: The trainer's class.
        own: The user's own transforms.
        frontend: The dashboard to report to; None for none.
    """

    trainer: type[SegmentationTrainer]
    own: OwnTransforms
    frontend: type[Frontend] | None

    @classmethod
    def of(cls, options: TrainOptions) -> Self:
        """Import and check what options name.

        Raises:
            BadInputError: If any of it is missing or invalid, or the folder of the experiments cannot be written to.
        """
        parsed_overrides(options.overrides or {})
        if options.plan is not None:
            read_plan(options.plan)
        if options.init_from is not None:
            read_weights(options.init_from)
        frontend = ready_frontend(options)
        check_writable(options.out)
        trainer = chosen_trainer(options)
        check_trainer_args(trainer, options.trainer_args or {})
        return cls(trainer=trainer, own=_own_transforms(trainer, options), frontend=frontend)


def _own_transforms(trainer: type[SegmentationTrainer], options: TrainOptions) -> OwnTransforms:
    """Return the trainer's own transforms; pipelines in the file of ``options.transforms`` replace the trainer's."""
    from_file = None
    if options.transforms is not None:
        from_file = read_own_transforms(options.transforms, trust=options.trust)
    own = dataclasses.replace(trainer.options.own_transforms, trust=options.trust)
    check_own_transforms(own, f"{trainer.__name__}.")
    return dataclasses.replace(own, **{name: lists for name in PIPELINES if (lists := getattr(from_file, name, ()))})


def ready_frontend(options: TrainOptions) -> type[Frontend] | None:
    """Return the dashboard to report to, after a check that its secrets are set.

    Raises:
        BadInputError: If a name is unknown, or a secret is missing.
    """
    frontend = choose_frontend(options.frontends)
    if frontend is not None:
        frontend(load_secrets())
    return frontend


def _in_silence(_message: str) -> None:
    """Report nothing: only the first process reports progress."""
