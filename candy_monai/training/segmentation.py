"""The trainer for segmentation, which needs only a network."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn, optim
from typing_extensions import override

from candy_monai.aliases import Metrics, Params, Scalar, Shape
from candy_monai.columns import LOSS
from candy_monai.data.pipelines.description import PIPELINES, describe_pipelines
from candy_monai.data.planning.normalization import denormalize
from candy_monai.data.samples.batches import Batch
from candy_monai.errors import WARNING, BadInputError, SettingsError
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.inference.inferer_descriptions import describe_inferer
from candy_monai.inference.inferers import MainOutput, build_inferer, run_inferer
from candy_monai.label_ids import highest_id
from candy_monai.metrics.overlap import dice_per_class, dice_per_region, labels_from_logits, look_like_probabilities
from candy_monai.network import evaluating
from candy_monai.nn.activations import ends_in_activation, takes_logits
from candy_monai.nn.deep_supervision import DeepSupervisionLoss, main_output
from candy_monai.nn.losses import DiceBCELossWithLogits, DiceCELossWithLogits, apply_loss
from candy_monai.nn.regions import RegionLoss, paint_regions
from candy_monai.nn.schedules import AbsoluteLinearLR, RelativeLinearLR
from candy_monai.training.earlier import EarlierOptions
from candy_monai.training.loaders import length
from candy_monai.training.options import NAMES, Options, SegmentationOptions, take_up
from candy_monai.training.returns import case_score_returned, failure_located
from candy_monai.training.toolbox import Equipment, TrainerToolbox
from candy_monai.training.trainer import Trainer

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Plan
    from candy_monai.plotting.case.views import CaseView

_COLOURS = 3
_WHITE = 255


class SegmentationTrainer(Trainer, EarlierOptions):
    """Trains a segmentation network: Dice with cross-entropy, AdamW, a linear decay that ends with the run, previews.

    Implement ``build_network``; change the rest by attribute, or override the method that uses it.

    Attributes:
        num_classes: Number of classes, including the background; 1 for a binary task with a single logit and a sigmoid.
            Override it.
        options: Further options, as `SegmentationOptions`: score, loss, rates, your own transforms. Override or set it
            with those that you change: ``options = SegmentationOptions(score="dice")``.
        ignore_index: Label id that is ignored in the loss and in the metrics. Override it if labels have one.
        inferer: The MONAI inferer with which whole images are run; None to run them at once. Override it if images are
            too large for that.
        max_grad_norm: Maximum norm of the gradients, 12 by default; None for no clipping. Override it or set it.
        plan: The plan with which the data were prepared, stored in ``experiment.json``; None without one. Set by
            `use_plan`, not overridden.
    """

    num_classes: int = 1
    options: SegmentationOptions = Options()  # type: ignore[assignment]  # a descriptor of it
    ignore_index: int | None = None
    max_grad_norm: float | None = 12.0
    inferer: Inferer | None = None
    plan: Plan | None = None
    _score_range: ScoreRange | None = None

    def __init_subclass__(cls, **arguments: object) -> None:
        take_up(cls, "options", vars(SegmentationTrainer)["options"])
        for name in NAMES:
            take_up(cls, name, vars(EarlierOptions)[name])
        super().__init_subclass__(**arguments)

    @property
    def score_range(self) -> ScoreRange | None:
        """The smallest and the largest score: 0 and 1 for a Dice, at most 0 for a negative loss; set it for others.

        None (unknown) if a subclass overrides ``validate_case`` or ``score_case`` without setting it.
        """
        if self._score_range is not None or self._has_own_scores():
            return self._score_range
        return (0.0, 1.0) if self.options.score == "dice" else (None, 0.0)

    @score_range.setter
    def score_range(self, value: ScoreRange | None) -> None:
        self._score_range = value

    @classmethod
    def check_plan(cls, plan: Plan) -> None:
        """Check that this trainer can follow a plan; by default it follows any.

        Override it for a network that does not support every plan.

        Raises:
            BadInputError: If a subclass's network cannot be built for it.
        """

    def use_plan(self, plan: Plan) -> None:
        """Follow a plan: its classes, loss, learning rate and inference; score by Dice.

        Override it to use further entries of the plan, as the trainers of bundles do for the network.

        Raises:
            BadInputError: If this trainer cannot follow the plan.
        """
        self.check_plan(plan)
        self.plan = plan
        self.num_classes = plan.num_classes
        self.ignore_index, self.slice_axis = plan.ignore_label, plan.slice_axis
        self._num_previous = plan.num_previous
        self.options = SegmentationOptions(
            score="dice",
            regions=plan.regions,
            deep_supervision=plan.deep_supervision,
            learning_rate=plan.learning_rate,
            weight_decay=plan.weight_decay,
        )
        self.inferer = build_inferer(plan)

    @override
    def build_optimizer(self, params: Params) -> optim.Optimizer:
        entries: list[Any] = list(params)
        # One pass over the weights instead of a dozen. On CUDA it also reads half precision's verdict on the gradients
        # where they are, instead of making each step wait for it.
        fused = True if all(_takes_fused_steps(entry) for entry in entries) else None
        rate, decay = self.options.learning_rate, self.options.weight_decay
        return optim.AdamW(entries, lr=rate, weight_decay=decay, fused=fused)

    @override
    def build_scheduler(self, optimizer: optim.Optimizer, num_epochs: int) -> optim.lr_scheduler.LRScheduler:
        num_steps = self._num_steps(num_epochs)
        rates = {float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups}
        if len(rates) > 1:
            return RelativeLinearLR(optimizer, num_steps)
        rate = rates.pop()
        return AbsoluteLinearLR(optimizer, -rate / num_steps, rate, min_lr=min(1e-6, rate))

    @override
    def build_criterion(self) -> nn.Module:
        criterion: nn.Module
        if self.options.regions:
            sigmoids = DiceBCELossWithLogits(self.num_classes, ignore_index=self.ignore_index)
            criterion = RegionLoss(
                sigmoids, [region.ids for region in self.options.regions], ignore_index=self.ignore_index
            )
        elif self.num_classes == 1:
            criterion = DiceBCELossWithLogits(1, ignore_index=self.ignore_index)
        else:
            criterion = DiceCELossWithLogits(
                self.num_classes, include_background=self.options.include_background, ignore_index=self.ignore_index
            )
        return DeepSupervisionLoss(criterion) if self.options.deep_supervision else criterion

    @override
    def backward(self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox) -> tuple[Scalar, Metrics]:
        outputs = toolbox.model(images)
        if not self.options.deep_supervision:
            outputs = main_output(outputs, num_dims=images.ndim - 2)
            if not self._has_own_scores() and _is_ours(self.build_criterion):
                self._check_channels(outputs)
        loss, metrics = apply_loss(toolbox.criterion, outputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), metrics

    @override
    def validate_case(self, image: Tensor, label: Tensor, toolbox: TrainerToolbox) -> tuple[float, Metrics, Tensor]:
        logits = self.infer(image.unsqueeze(0), toolbox)
        score, metrics = case_score_returned(self, self.score_case(logits, label.unsqueeze(0), toolbox))
        return score, metrics, logits.squeeze(0)

    def score_case(self, logits: Tensor, label: Tensor, toolbox: TrainerToolbox) -> tuple[float, Metrics]:
        """Score the logits of one whole case. Override it for another score or other metrics of the same inference.

        Args:
            logits: ``(1, classes, *spatial)``.
            label: ``(1, 1, *spatial)``.
            toolbox: Holds the criterion.

        Returns:
            The score, and the loss, its parts and the Dice of each class; all NaN if every voxel is ignored.
        """
        self._warn_of_probabilities(logits, toolbox)
        loss, metrics = apply_loss(toolbox.criterion, logits, label)
        by_class, mean_dice = self._dice(self._predicted_ids(logits), label)
        score = float(mean_dice) if self.options.score == "dice" else -float(loss)
        found = {LOSS: loss, **metrics, "dice": mean_dice, **by_class}
        if self.ignore_index is None or not bool((label == self.ignore_index).all()):
            return score, found
        if self._run is not None:
            self._run.reporter.log_once(
                f"{WARNING}every voxel of {self._run.validations.case_id or 'a validation case'} has the ignored label "
                f"id {self.ignore_index}: it has no score, and is left out of all means"
            )
        return math.nan, dict.fromkeys(found, math.nan)

    def _warn_of_probabilities(self, logits: Tensor, toolbox: TrainerToolbox) -> None:
        """Log a warning in the first epoch if the network ends in a sigmoid or softmax."""
        run, has_sigmoids = self._run, self.num_classes == 1 or bool(self.options.regions)
        if run is None or run.experiment is None or len(run.experiment.history) or not _is_ours(self.infer):
            return
        if not (has_sigmoids or takes_logits(toolbox.criterion)) or not look_like_probabilities(logits):
            return
        # Logits, too, can be between 0 and 1, above all those of a network that is hardly trained.
        example = torch.zeros(1, *run.equipment.example_shape, device=logits.device, dtype=run.equipment.image_type)
        if ends_in_activation(toolbox.ema if toolbox.ema else toolbox.model, example):
            run.reporter.log_once(
                f"{WARNING}the network of {type(self).__name__}.build_network returned only values between 0 and 1, as "
                "after a sigmoid or softmax, but loss and Dice are computed from logits"
                f"{', which count as foreground above 0' if has_sigmoids else ''}: remove the activation at its end"
            )

    def _predicted_ids(self, logits: Tensor) -> Tensor:
        """Convert logits ``(B, C, *spatial)`` to label ids ``(B, 1, *spatial)``; regions are painted in their order."""
        self._check_channels(logits)
        if self.options.regions:
            return paint_regions(logits, [region.paints for region in self.options.regions])
        return labels_from_logits(logits, num_classes=self.num_classes)

    def _check_channels(self, logits: Tensor) -> None:
        if logits.shape[1] != self.num_classes:
            name = type(self).__name__
            raise BadInputError(
                f"the network of {name}.build_network returned {tuple(logits.shape)}, expected {self.num_classes} "
                f"channels on axis 1, since {name}.num_classes is {self.num_classes}: make the two the same"
            )

    def _dice(self, prediction: Tensor, label: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the Dice of the only case by the name that it is recorded under, and the mean over the foreground."""
        if self.options.regions:
            ids = [region.ids for region in self.options.regions]
            scores = dice_per_region(prediction, label, ids, ignore_index=self.ignore_index)[0]
            names = [f"dice {region.name}" for region in self.options.regions]
            return dict(zip(names, scores, strict=True)), scores.nanmean()
        scores = dice_per_class(
            prediction, label, max(self.num_classes, 2), include_background=True, ignore_index=self.ignore_index
        )[0]
        first = 0 if self.options.include_background and self.num_classes > 1 else 1
        return {self._dice_column(index): scores[index] for index in range(first, len(scores))}, scores[1:].nanmean()

    def _dice_column(self, index: int) -> str:
        """Return the name that the Dice of a class is recorded under."""
        numbered = f"dice {index}"
        run = None if self._run is None else self._run.experiment
        if run is not None and f"val {numbered}" in run.history:  # of a run that an earlier version began
            return numbered
        return f"dice {(self._names_by_id() or {}).get(index, index)}"

    @override
    def infer(self, images: Tensor, toolbox: TrainerToolbox) -> Tensor:
        network = MainOutput(toolbox.ema if toolbox.ema else toolbox.model)
        logits: Tensor = network(images) if self.inferer is None else run_inferer(self.inferer, images, network)
        return logits

    @override
    def save_preview(self, image: Tensor, label: Tensor, output: Tensor, *, quality: float = 0.75) -> None:
        from candy_monai.plotting.case.previews import save_preview_files

        save_preview_files(
            self.experiment_folder(),
            self._as_shown(image),
            label,
            self._predicted_ids(output[None])[0],
            quality=quality,
            num_classes=self._highest_id() + 1,
            **self._grid_of_plan(),
            class_names=self._names_by_id(),
            title=self._preview_title or None,
        )

    @override
    def _case_view(self, image: Tensor, label: Tensor, output: Tensor) -> CaseView | None:
        from candy_monai.plotting.case.views import case_view

        ids = self._predicted_ids(output[None])[0]
        return case_view(self._as_shown(image), label, ids, **self._grid_of_plan())

    def _as_shown(self, image: Tensor) -> Tensor:
        plan = self.plan
        if plan is None or plan.spacing_mm is not None or len(image) != _COLOURS:
            return image
        # Since channels are normalised separately, all of a colour picture would be equally bright.
        return denormalize(image, plan.normalization).clamp(0.0, 255.0)

    def _grid_of_plan(self) -> dict[str, Any]:
        """Return spacing and orientation of the plan's images; None for what is unknown."""
        spacing_mm, orientation = (None, None) if self.plan is None else (self.plan.spacing_mm, self.plan.orientation)
        return {"spacing_mm": spacing_mm, "orientation": "".join(orientation) if orientation else None}

    @override
    def check_sample(self, image: Tensor, label: Tensor) -> None:
        known = getattr(self._dataloader.dataset, "num_classes", None)
        if isinstance(known, int) and known > max(self.num_classes, 2) and not self.options.regions:
            raise BadInputError(self._class_advice(f"the dataset has {known} classes", known))
        self._check_batch(Batch(image[None], label[None], ("the first training label",)))

    @override
    def _check_one(self, image: Tensor, label: Tensor) -> None:
        unused = [name for name in PIPELINES if self.plan is None and getattr(self.options, name)]
        if unused:
            raise SettingsError(
                f"{type(self).__name__}.options has {' and '.join(unused)}, which only a run with a plan applies "
                "(candy-monai train, or train_dataset): in a run with your own loaders, give the dataset "
                "transform=JointTransform(...)"
            )
        super()._check_one(image, label)

    @override
    def _check_first_case(self, case: Batch, image: Tensor) -> None:
        found, expected = case.images.shape[1], len(image)
        if found != expected and case.images.ndim == image.ndim + 1 and _is_ours(self.validate_case, self.infer):
            where = case.case_ids[0] if case.case_ids else "the first validation case"
            raise BadInputError(
                f"{where} has {found} channels and the first training image {expected}: one network takes both, so "
                "bring them to the same channels"
            )
        self._check_batch(case if case.case_ids else case._replace(case_ids=("the first validation label",)))

    @override
    def _try_case(self, case: Batch, equipment: Equipment) -> None:
        is_run_at_once = getattr(self.infer, "__func__", None) is SegmentationTrainer.infer and self.inferer is None
        if not is_run_at_once or not _is_ours(self.validate_case):
            return
        toolbox, data = equipment.toolbox, self._current_run().data
        images, labels = equipment.on_device(case.images, case.labels)
        states = data.captured()
        located = failure_located(self, "infer", images, labels, case.case_ids, equipment.padding)
        with torch.no_grad(), evaluating(toolbox.model), located:
            self.infer(images, toolbox)
        states.restore(data.own)

    @override
    def _check_batch(self, batch: Batch) -> None:
        images, labels, case_ids = batch
        self._check_shapes(images, labels, case_ids)
        if labels.device.type != "cpu" or not labels.numel():
            return  # to look at labels on a GPU would make the step wait for it
        where = ", ".join(case_ids) or "a label of a batch"
        try:
            highest = highest_id(labels, what=where, ignore_index=self.ignore_index)
        except BadInputError:
            if len(case_ids) == len(labels):
                for label, case_id in zip(labels, case_ids, strict=True):  # to name the one at fault
                    highest_id(label, what=case_id, ignore_index=self.ignore_index)
            raise
        if highest > self._highest_id():
            raise BadInputError(self._class_advice(f"{where} holds the label id {highest}", highest + 1))

    def _check_shapes(self, images: Tensor, labels: Tensor, case_ids: tuple[str, ...]) -> None:
        """Check shapes that the library's methods need: ids on the image's grid; masks, if a subclass scores them."""
        own_scores = self._has_own_scores()
        if own_scores and not _is_ours(self.backward):
            return
        where = ", ".join(case_ids) or "a batch"
        if images.ndim not in (4, 5):
            raise BadInputError(
                f"{where}: the images have the shape {tuple(images.shape)}, expected (B, C, *spatial) of 2 or 3 "
                "dimensions: give them an axis for the channel, image[None] in the dataset, or by EnsureChannelFirstd"
            )
        has_own_loss, has_no_channel = not _is_ours(self.build_criterion), labels.ndim == images.ndim - 1
        if own_scores and has_own_loss and has_no_channel and self.num_classes > 1:
            return  # losses over classes take ids so
        if labels.ndim != images.ndim or (labels.shape[1] != 1 and not own_scores):
            raise BadInputError(self._shape_advice(labels, where))
        if labels.shape[2:] != images.shape[2:] and not own_scores and _is_ours(self.infer):
            raise BadInputError(
                f"{where}: the images have the shape {tuple(images.shape)} and the labels {tuple(labels.shape)}, "
                "expected the same size: resample labels to the grid of their image, with nearest neighbours, or "
                "override infer if the network returns logits of the labels' size"
            )

    def _has_own_scores(self) -> bool:
        """Return whether a subclass scores cases itself; the library's own methods accept ids and no masks."""
        return not _is_ours(self.score_case, self.validate_case)

    def _shape_advice(self, labels: Tensor, where: str) -> str:
        found = f"{where}: the labels have the shape {tuple(labels.shape)}"
        if labels.ndim in (4, 5) and labels.shape[1] == max(self.num_classes, 2):
            advice = "one-hot labels become ids by labels.argmax(1, keepdim=True)"
        elif labels.ndim in (4, 5):
            advice = (
                "give one channel of label ids; for overlapping regions, set the attribute regions instead of giving "
                "one mask for each"
            )
        else:
            advice = "give the labels an axis for the channel: label[None] in the dataset"
        return f"{found}, expected (B, 1, *spatial) of label ids: {advice}"

    def _highest_id(self) -> int:
        if self.options.regions:
            return max(label_id for region in self.options.regions for label_id in (*region.ids, region.paints))
        return max(self.num_classes, 2) - 1

    def _names_by_id(self) -> dict[int, str] | None:
        if self.options.regions:
            return {region.paints: region.name for region in self.options.regions}
        return None if self.plan is None else dict(enumerate(self.plan.class_names))

    def _num_steps(self, num_epochs: int) -> int:
        """Return the optimizer steps of a run, which is how long a schedule is that ends with it."""
        steps_an_epoch = length(self._dataloader)
        if steps_an_epoch is None:
            raise BadInputError(
                "the training loader has no length, which the default schedule needs: override build_scheduler"
            )
        return num_epochs * steps_an_epoch

    def _class_advice(self, found: str, num_classes: int) -> str:
        if num_classes == _WHITE + 1:  # a mask as painting programs save it
            advice = (
                f": BinarizedDataset(dataset, positive_ids=[{_WHITE}]) makes a mask of 0 and {_WHITE} one of 0 and 1"
            )
        else:
            advice = (
                f": set num_classes = {num_classes} (background included), or wrap the dataset in BinarizedDataset for "
                "a binary task"
            )
        return f"{found}, but {type(self).__name__}.num_classes is {self.num_classes}{advice}"

    @override
    def describe(self, example_shape: Shape) -> dict[str, object]:
        return {
            **super().describe(example_shape),
            "num_classes": self.num_classes,
            "regions": [asdict(region) for region in self.options.regions],
            "inferer": describe_inferer(self.inferer, self.plan),
            "plan": None if self.plan is None else self.plan.to_dict(),
            "pipelines": None if self.plan is None else describe_pipelines(self.plan, own=self.options.own_transforms),
        }


def own_criterion(trainer: type[SegmentationTrainer]) -> str | None:
    """Return the name of a trainer that builds a loss of its own; None for one that has the library's."""
    return None if _is_ours(trainer.build_criterion) else trainer.__name__


def _is_ours(*methods: object) -> bool:
    """Return whether methods are the library's own, and none of a subclass's."""
    return all(str(getattr(method, "__module__", "")).startswith("candy_monai") for method in methods)


def _takes_fused_steps(parameter: object) -> bool:
    return isinstance(parameter, Tensor) and parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()
