"""The trainer of CMUNeXt."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn, optim
from typing_extensions import override

from candy_monai.aliases import Params, Shape
from candy_monai.data.planning.plan import Plan
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.nn.padding import Pad2d
from candy_monai.nn.schedules import PolyLRScheduler
from candy_monai.training.options import SegmentationOptions
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai_bundles.cmunext.network import DIVISOR, Normalization, Variant, build_cmunext

MOMENTUM = 0.9


class CMUNeXtTrainer(SegmentationTrainer):
    """Trains a CMUNeXt on pictures, by SGD with momentum and a polynomial decay.

    Attributes:
        variant: ``"s"`` is small, ``"l"`` large, None the paper's base.
        normalization: ``"batch"`` or ``"group"``; None for batch normalisation where the loader's batches are larger
            than one, and group normalisation where they are not, or where it cannot be known.
    """

    variant: Variant = None
    normalization: Normalization | None = None
    options = SegmentationOptions(
        learning_rate=1e-2,
        weight_decay=1e-4,
        memory_factor=1.5,  # what the base variant keeps for its backward pass alone is 1.3 times a plan's estimate
    )

    @override
    @classmethod
    def check_plan(cls, plan: Plan) -> None:
        super().check_plan(plan)
        if plan.network_dims != 2:
            raise BadInputError(f"{plan.dataset_name}: holds volumes, and {_ONLY_PICTURES}")
        if network := [name for name in ("filters", "kernel_sizes", "strides") if name in plan.chosen]:
            raise SettingsError(f"CMUNeXt's layout is that of its variant: leave out {', '.join(network)}")
        if "deep_supervision" in plan.chosen and plan.deep_supervision:
            raise SettingsError(_NO_DEEP_SUPERVISION)

    @override
    def use_plan(self, plan: Plan) -> None:
        """Follow a plan but for what it chose for a U-Net: the layout, AdamW's rates, deep supervision."""
        rates = {name: getattr(self.options, name) for name in ("learning_rate", "weight_decay")}
        own = {**rates, "deep_supervision": False}
        changes: dict[str, Any] = {name: value for name, value in own.items() if name not in plan.chosen}
        super().use_plan(dataclasses.replace(plan, **changes))

    @override
    def build_padding_module(self) -> nn.Module | None:
        return Pad2d(DIVISOR)

    @override
    def network_arguments(self, example_shape: Shape) -> dict[str, Any]:
        return {
            "in_channels": example_shape[0],
            "out_channels": self.num_classes,
            "variant": self.variant,
            "normalization": self.normalization or self._normalization_for_batches(),
        }

    @override
    def build_network(self, example_shape: Shape) -> nn.Module:
        return build_cmunext(**self.network_arguments(example_shape))

    @override
    def build_optimizer(self, params: Params) -> optim.Optimizer:
        return optim.SGD(
            params, lr=self.options.learning_rate, momentum=MOMENTUM, weight_decay=self.options.weight_decay
        )

    @override
    def build_scheduler(self, optimizer: optim.Optimizer, num_epochs: int) -> optim.lr_scheduler.LRScheduler:
        first = optimizer.param_groups[0]
        return PolyLRScheduler(optimizer, float(first.get("initial_lr", first["lr"])), self._num_steps(num_epochs))

    @override
    def check_sample(self, image: Tensor, label: Tensor) -> None:
        super().check_sample(image, label)
        if image.ndim != 3:
            raise BadInputError(
                f"the first training image has the shape {tuple(image.shape)}: that is {image.ndim - 1} spatial axes, "
                f"and {_ONLY_PICTURES}"
            )
        if self.options.deep_supervision:
            raise SettingsError(_NO_DEEP_SUPERVISION)

    def _normalization_for_batches(self) -> Normalization:
        loader = self._dataloader
        batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        return "batch" if isinstance(batch_size, int) and batch_size > 1 else "group"


_ONLY_PICTURES = (
    "CMUNeXt is a network for pictures (C, H, W): train on slices (--configuration 2d), or train a U-Net (UNetTrainer "
    "with num_dims = 3; --bundle unet)"
)
_NO_DEEP_SUPERVISION = "CMUNeXt has no outputs at lower resolutions: leave out deep_supervision"
