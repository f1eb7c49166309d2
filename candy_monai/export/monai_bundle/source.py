"""The content of a bundle's configurations: an experiment's steps, loss and inferer in MONAI's terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from monai.utils import ensure_tuple_rep

from candy_monai.aliases import Shape
from candy_monai.data.pipelines.description import IMAGE, LABEL, Entry, postprocessing, preprocessing, resampling
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.topology import rounded_up
from candy_monai.errors import ExperimentError
from candy_monai.experiment.description import PLAN
from candy_monai.export.monai_bundle.network import BundleNetwork
from candy_monai.export.monai_bundle.origin import Origin
from candy_monai.export.monai_bundle.steps import for_bundle, like_resampling, monai, region_masks, scripts_in
from candy_monai.inference.inferer_descriptions import inferer_from_description
from candy_monai.inference.inferers import WHOLE_IMAGE_LIMIT
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.nn.schedules import CosineLR, PolyLRScheduler
from candy_monai.nn.slicewise import sides_of_slices, sides_of_volume
from candy_monai.registry import SCRIPTS

Config = dict[str, Any]

_AMP_TYPES = {"bf16": "bfloat16", "fp16": "float16"}
_BATCH_OF_WINDOWS = 4
_OPTIMIZER_OPTIONS = {"AdamW": {"betas", "eps"}, "SGD": {"momentum"}}
MAX_GRAD_NORM = 12.0
"""The norm to which gradients are clipped by trainers of this package, by default, and by nnU-Net's."""


@dataclass(frozen=True, kw_only=True)
class BundleSource:
    """The source of a bundle's configurations.

    Where MONAI's inferer runs whole images, its ``Spacingd`` also replaces a resampling that none of the cases needs.
    """

    predictor: NetworkPredictor  # the trained model's predictor; for an ensemble the first one's
    origin: Origin
    network: BundleNetwork
    portable: bool  # whether only MONAI's own classes are used
    by_monai: bool = False  # whether MONAI's inferer runs whole images
    chosen_steps: tuple[Entry, ...] = ()  # steps on the label map after the experiment's postprocessing
    thresholds: tuple[float, ...] = ()  # the probability that each region must exceed; empty for 0.5

    @property
    def may_run_by_monai(self) -> bool:
        """Whether inference needs only MONAI's classes if an inferer of MONAI runs whole images."""
        trial = replace(self, by_monai=True)
        steps = [*trial.preprocessing(), *trial.postprocessing("")]
        return self.plan.slice_axis is None and not scripts_in([*steps, self.network.entry], self.network.scripts)

    @property
    def names_monai_alone(self) -> bool:
        """Whether inference uses only MONAI's own classes."""
        return self.portable or self.by_monai

    @property
    def spacing(self) -> list[float] | None:
        """The spacing to which MONAI's ``Spacingd`` would resample, although no case of the experiment needed it."""
        plan = self.plan
        is_unneeded = self.names_monai_alone and plan.resampling == "none" and plan.pixdim is not None
        return list(plan.pixdim) if is_unneeded and plan.pixdim is not None else None

    @property
    def amp_dtype(self) -> str | None:
        """The type of torch in which the experiment predicts; None for float32."""
        return _AMP_TYPES.get(str(self.origin.amp))

    @property
    def plan(self) -> Plan:
        """The experiment's plan."""
        assert self.predictor.plan is not None  # models without a plan are refused
        return self.predictor.plan

    @property
    def file_ending(self) -> str:
        """The suffix of the dataset's images."""
        return self.origin.file_ending or (".png" if self.plan.spacing_mm is None else ".nii.gz")

    @property
    def regions(self) -> list[list[int]]:
        """The ids of each overlapping region; empty if classes are mutually exclusive."""
        return [list(region.ids) for region in self.plan.regions]

    @property
    def is_sigmoid(self) -> bool:
        """Whether each channel of the network's output is decided separately."""
        return bool(self.plan.regions) or self.plan.num_classes == 1

    def preprocessing(self) -> list[Entry]:
        """Return the steps from files to the network's input."""
        entries = self.predictor.preprocessor.pipelines["preprocessing"]
        if self.plan.resampling == "none":
            entries = [self._resampling_of_others(entry) for entry in entries]
        steps = for_bundle(entries, self.plan, portable=self.portable)
        if self.pads_whole_images:
            # Padded as by the experiment's own inferers: volumes at the end, slices on both sides.
            method = "end" if self.plan.slice_axis is None else "symmetric"
            divisor = {"k": list(map(math.lcm, self.plan.divisor, self.multiples)), "method": method}
            steps.append(monai("DivisiblePadd", keys=[IMAGE, LABEL], **divisor, allow_missing_keys=True))
        return steps

    def _resampling_of_others(self, entry: Entry) -> Entry:
        """Return an entry; the plan's ``Spacingd`` is replaced by the resampling that prediction uses instead."""
        if entry not in preprocessing(self.plan) or entry["_target_"] != "monai.transforms.Spacingd":
            return entry
        ours = resampling(replace(self.plan, resampling="extent"))
        return like_resampling(ours) if self.names_monai_alone else ours

    @property
    def pads_whole_images(self) -> bool:
        """Whether MONAI's inferer runs every image at once, as the experiment's does for images of the usual size."""
        plan = self.plan
        if not self.names_monai_alone or self.origin.inferer != PLAN:
            return False
        size = [1 if axis == plan.slice_axis else extent for axis, extent in enumerate(plan.median_shape)]
        padded = rounded_up(tuple(size), plan.divisor)
        return padded != plan.divisor and math.prod(padded) <= WHOLE_IMAGE_LIMIT * math.prod(plan.patch_shape)

    @property
    def multiples(self) -> Shape:
        """The numbers to whose multiples the network's input is padded, one for each axis of an image."""
        plan, known = self.plan, self.origin.multiples
        if known is None:
            return (1,) * plan.num_dims
        return sides_of_volume(known, plan.slice_axis if len(known) < plan.num_dims else None)

    def postprocessing(self, preprocessing: str) -> list[Entry]:
        """Return the steps from logits to label ids on the file's grid."""
        entries: Sequence[Entry] = self.predictor.preprocessor.pipelines["postprocessing"]
        own = self.predictor.preprocessor.own_postprocessing
        if self.portable and own is not None:
            entries = [*postprocessing(replace(self.plan, resampling="stock")), *own]
        if self.thresholds:
            entries = [step | {"thresholds": list(self.thresholds)} if _paints(step) else step for step in entries]
        steps = for_bundle([*entries, *self.chosen_steps], self.plan, portable=self.portable)
        undo = {"transform": preprocessing}
        return [step | undo if step["_target_"].endswith(".Invertd") else step for step in steps]

    def augmentation(self) -> list[Entry]:
        """Return the random steps of training, which cut a patch and augment it."""
        plan = self.plan
        steps = for_bundle(self.predictor.preprocessor.pipelines["augmentation"], plan, portable=self.portable)
        if not self.portable and any(step.get("center_key") for step in steps):
            center = {
                "_target_": f"{SCRIPTS}.patches.RandCenterd",
                "keys": LABEL,
                "foreground_share": plan.foreground_share,
                "ignore_label": plan.ignore_label,
            }
            steps = [center, *steps]
        if plan.slice_axis is not None:
            steps.append(monai("SqueezeDimd", keys=[IMAGE, LABEL], dim=1 + plan.slice_axis))
        return [*steps, *(region_masks(LABEL, self.regions) if self.loss_takes_masks else [])]

    @property
    def loss_takes_masks(self) -> bool:
        """Whether the loss takes a mask for each region instead of ids."""
        return bool(self.regions) and self.plan.ignore_label is None

    def loss(self) -> Entry:
        """Return the criterion, with deep supervision that of all outputs; raise if MONAI alone has none."""
        if self.network.supervision is None:
            return self._loss_of_one()
        halves = [0.5**level for level in range(self.network.supervision.num_outputs)]
        weights = [half / sum(halves) for half in halves]
        return {"_target_": "monai.losses.DeepSupervisionLoss", "loss": self._loss_of_one(), "weights": weights}

    def _loss_of_one(self) -> Entry:
        plan = self.plan
        if plan.ignore_label is not None and not self.portable:
            return {
                "_target_": f"{SCRIPTS}.losses.DiceEntropyLoss",
                "num_classes": plan.num_classes,
                "ignore_label": plan.ignore_label,
                "regions": self.regions or None,
            }
        kind = {"sigmoid": True} if self.is_sigmoid else {"softmax": True, "to_onehot_y": True}
        if plan.ignore_label is not None and self.regions:
            raise ExperimentError(
                f"{self.predictor.folder}: learned overlapping regions beside an ignore label, for which MONAI has no "
                "loss: export without --portable"
            )
        if plan.ignore_label is not None:  # MONAI's combined losses have no ignore index
            return {"_target_": "monai.losses.DiceLoss", **kind, "ignore_index": plan.ignore_label}
        if self.regions:  # MONAI's DiceCELoss treats masks of several channels as exclusive classes
            return {"_target_": "monai.losses.DiceFocalLoss", **kind, "gamma": 0.0}
        return {"_target_": "monai.losses.DiceCELoss", **kind}

    @property
    def keeps_optimizer(self) -> bool:
        """Whether the experiment's optimizer is an AdamW or SGD with the same options for all parameters."""
        built = self.origin.optimizer
        names = _OPTIMIZER_OPTIONS.get(str(built.get("kind", "AdamW")))
        if names is None:
            return False
        return all(value == built[name][0] for name in names & built.keys() for value in built[name])

    def optimizer(self) -> Entry:
        """Return the optimizer; AdamW with its defaults if the experiment's cannot be used."""
        built, plan = self.origin.optimizer if self.keeps_optimizer else {}, self.plan
        kind = str(built.get("kind", "AdamW"))
        options = {name: built[name][0] for name in sorted(_OPTIMIZER_OPTIONS[kind] & built.keys())}
        if options.get("momentum"):
            options["nesterov"] = True
        common = {"params": "$@network.parameters()", "lr": plan.learning_rate, "weight_decay": plan.weight_decay}
        return {"_target_": f"torch.optim.{kind}", **common, **options}

    def schedule(self, *, num_steps: str) -> Entry:
        """Return the learning-rate schedule, which steps once per batch; ``num_steps`` is a reference."""
        if self.origin.schedule == CosineLR.__name__:  # used by trainers of this package with a warm-up
            return {
                "_target_": "monai.optimizers.WarmupCosineSchedule",
                "optimizer": "@optimizer",
                "warmup_steps": f"$min({num_steps} // 20, 100)",
                "t_total": num_steps,
            }
        return {
            "_target_": "torch.optim.lr_scheduler.PolynomialLR",
            "optimizer": "@optimizer",
            "total_iters": num_steps,
            "power": 0.9 if self.origin.schedule == PolyLRScheduler.__name__ else 1.0,
        }

    def inferer(self) -> Entry:
        """Return the inferer for whole images."""
        plan: Plan = self.plan
        described: Any = self.origin.inferer
        of_experiment: Any = inferer_from_description(described, plan)
        common: Config = {
            "sw_batch_size": _BATCH_OF_WINDOWS,
            "overlap": of_experiment.overlap,
            "mode": str(of_experiment.mode),
        }
        divisor = None if isinstance(described, dict) else plan.divisor
        if isinstance(described, dict):
            common |= {name: value for name, value in described.items() if name != "_target_"}
        window = ensure_tuple_rep(common.pop("roi_size", plan.patch_shape), plan.num_dims)
        if self.origin.of_nnunet and not self.portable:
            return self._inferer_of_nnunet(window)
        fits = all(size is None or rounded_up(size, self.multiples) == size for size in (window, divisor))
        if self.names_monai_alone:  # whose inferers pad only images smaller than the window
            window = rounded_up(window, self.multiples)
        if self.pads_whole_images:
            window = (-1,) * plan.num_dims

        def along_axes(sides: Shape) -> list[int]:
            return list(sides_of_slices(sides, plan.slice_axis))

        common["roi_size"] = along_axes(window)
        if plan.slice_axis is not None:
            common["spatial_dim"] = plan.slice_axis
        name = "SlidingWindowInferer" if plan.slice_axis is None else "SliceInferer"
        if self.names_monai_alone:
            return {"_target_": f"monai.inferers.{name}", **common}
        name = "WholeOrWindowsInferer" if plan.slice_axis is None else "SlicesInferer"
        own = {"divisor": None if divisor is None else along_axes(divisor), "amp_dtype": self.amp_dtype}
        if not fits:
            own["multiples"] = along_axes(self.multiples)
        return {"_target_": f"{SCRIPTS}.inferers.{name}", **common, **own}

    def _inferer_of_nnunet(self, window: Shape) -> Entry:
        return {
            "_target_": f"{SCRIPTS}.nnunet.NNUNetInferer",
            "roi_size": list(sides_of_slices(window, self.plan.slice_axis)),
            "spatial_dim": self.plan.slice_axis,
            "rounds_sums": self.network.num_members == 1,
        }

    def num_epochs(self) -> int:
        """Return the number of epochs that amounts to as many steps as the experiment took."""
        plan = self.plan
        steps_a_pass = max(1, len(self.origin.training) // plan.batch_size)
        return max(1, math.ceil(plan.num_epochs * plan.iterations_per_epoch / steps_a_pass))

    def image_files(self, stem: str) -> str:
        """Return an expression for the files of a case; ``stem`` is one for folder, case and underscore."""
        if len(self.plan.channel_names) == 1:
            return f"{stem} + '0000{self.file_ending}'"
        return f"sorted(glob.glob(glob.escape({stem}) + '[0-9][0-9][0-9][0-9]{self.file_ending}'))"


def _paints(step: Entry) -> bool:
    return str(step["_target_"]).endswith(".PaintLabelsd")
