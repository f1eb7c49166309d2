"""The base class of the ready-made trainers, also for your own: a network by name, with settings that suit it.

A plan is made for a U-Net. A trainer of this class adapts it to its network: learning rate, the divisors of sizes, deep
supervision. Values that the user has chosen are kept, or refused if the network does not support them.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn, optim
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.topology import filters_of, rounded_up
from candy_monai.errors import BadInputError, SettingsError, did_you_mean
from candy_monai.inference.inferers import WindowInferer
from candy_monai.nn.padding import Pad2d, Pad3d
from candy_monai.nn.schedules import CosineLR, WarmUpLR
from candy_monai.training.options import SegmentationOptions
from candy_monai.training.segmentation import SegmentationTrainer

__all__ = ["BundleTrainer"]

_PART_TO_WARM_UP, _MOST_STEPS_TO_WARM_UP = 20, 100  # a twentieth of the run, but at most this number of steps


class BundleTrainer(SegmentationTrainer):
    """Trains a network with a fixed layout on pictures or volumes; a subclass defines the settings for its network.

    Attributes:
        network_options: Names of the attributes that choose the network, such as ``size``, which ``--network-args`` and
            `with_network` may set.
        num_dims: 2 for pictures ``(C, H, W)``, 3 for volumes ``(C, D, H, W)``; set by a plan.
        size: The size of the network, one of `sizes`; None if it has none.
        network_name: The name of the network in messages.
        network_builder: Builds the network from `network_arguments`.
        sizes: Arguments of the network for the builder, by the name of the size.
        memory_factors: The option ``memory_factor`` of each size.
        divisor: The number that the length of every axis must be a multiple of.
        supervises_deeply: Whether the network has outputs at lower resolutions to supervise.
        fixed_entries: Entries of a plan that the network does not follow, so that setting them is an error.
        only_dims: The number of axes of a network for only pictures or only volumes; None for a network for both.
        warms_up: Whether the learning rate has a warm-up and a cosine decay, instead of a linear decay.
        has_fixed_size: Whether the network accepts images of only one size, that of a patch, see ``image_size``.
        normalizes_each_case: Whether each channel of each case is normalised separately, also at the lowest level,
            which must therefore have more than one voxel.
        normalizes_batches: Whether each channel is normalised over a batch, which must therefore have more than one
            voxel at the lowest level.
        image_size: This size, one number per axis; None for that of the first training image.
    """

    network_options: ClassVar[tuple[str, ...]] = ("size",)
    num_dims: int = 2
    size: str | None = None
    network_name: ClassVar[str]
    network_builder: ClassVar[Callable[..., nn.Module]]
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    memory_factors: ClassVar[Mapping[str | None, float]] = {}
    divisor: ClassVar[int] = 1
    supervises_deeply: ClassVar[bool] = False
    fixed_entries: ClassVar[tuple[str, ...]] = ("filters", "kernel_sizes", "strides")
    only_dims: ClassVar[int | None] = None
    warms_up: ClassVar[bool] = False
    has_fixed_size: ClassVar[bool] = False
    normalizes_each_case: ClassVar[bool] = False
    normalizes_batches: ClassVar[bool] = False
    image_size: Sequence[int] | None = None

    @override
    def __init_subclass__(cls, **arguments: object) -> None:
        said = vars(cls).get("options")  # before the base class converts it
        has_its_own = "memory_factor" in vars(cls) or getattr(said, "memory_factor", None) is not None
        super().__init_subclass__(**arguments)
        if "size" in vars(cls) and cls.size in cls.memory_factors and not has_its_own:
            cls.options = SegmentationOptions(memory_factor=cls.memory_factors[cls.size])

    @classmethod
    def with_network(cls, options: Mapping[str, object]) -> type[Self]:
        """Return this class with the attributes that choose its network set.

        Args:
            options: Any of `network_options`, by name.

        Raises:
            SettingsError: If there is no such attribute, or a subclass refuses its value.
        """
        for name in options:
            if name not in cls.network_options:
                known = ", ".join(cls.network_options) or "none"
                raise SettingsError(
                    f"--network-args {name}: the network of {cls.__name__} has no such argument."
                    f"{did_you_mean(name, cls.network_options)} Known: {known}"
                )
        chosen: type[Self] = cls
        if options:
            kept = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
            said = {**kept, **options}
            chosen = types.new_class(cls.__name__, (cls,), exec_body=lambda body: body.update(said))
        chosen.check_network()
        return chosen

    @classmethod
    def check_network(cls) -> None:
        """Check the attributes that choose the network; override it if there are others than a size.

        Raises:
            SettingsError: If there is no such network.
        """
        cls.check_size()

    @classmethod
    def check_size(cls, size: object = None) -> None:
        """Check that there is a network of this size.

        Args:
            size: Its name; None for the class's own.

        Raises:
            SettingsError: If there is none; the message lists the existing ones.
        """
        size = cls.size if size is None else size
        if size is not None and size not in cls.sizes:
            known = ", ".join(cls.sizes)
            there = f"Sizes: {known}" if known else "It has one size only: leave it out"
            raise SettingsError(f"{cls.network_name} has no size {size!r}.{did_you_mean(str(size), cls.sizes)} {there}")

    @classmethod
    def divisors(cls, plan: Plan) -> Shape:
        """Return the numbers that each axis of the network's own input must be a multiple of with a plan."""
        return (cls.divisor,) * plan.network_dims

    @override
    @classmethod
    def check_plan(cls, plan: Plan) -> None:
        super().check_plan(plan)
        if cls.only_dims is not None and cls.only_dims != plan.network_dims:
            kind = "volumes" if cls.only_dims == 3 else "pictures or slices"
            other = "--configuration 2d" if cls.only_dims == 2 else "--configuration 3d"
            raise BadInputError(
                f"{plan.dataset_name}: {cls.network_name} is a {cls.only_dims}-D network for {kind}, but the plan has "
                f"a {plan.network_dims}-D network: use {other} if these are volumes, or another bundle (--bundle unet "
                "supports both)"
            )
        if layout := [name for name in cls.fixed_entries if name in plan.chosen]:
            sizes = f" by its size ({', '.join(cls.sizes)})" if cls.sizes else ""
            raise SettingsError(f"the layout of {cls.network_name} is fixed{sizes}: leave out {', '.join(layout)}")
        if "deep_supervision" in plan.chosen and plan.deep_supervision and not cls.supervises_deeply:
            raise SettingsError(_no_deep_supervision(cls.network_name))

    @classmethod
    def adapt_plan(cls, plan: Plan) -> Plan:
        """Return the plan adapted to this trainer's network: rates, deep supervision, and the divisors of its input.

        An adapted plan is not changed again; entries that affect how cases are preprocessed are never changed.

        Raises:
            BadInputError: If what the user chose does not fit the network.
        """
        cls.check_plan(plan)
        own = {
            "learning_rate": cls.options.learning_rate,
            "weight_decay": cls.options.weight_decay,
            "deep_supervision": plan.deep_supervision and cls.supervises_deeply,
        }
        changes: dict[str, Any] = {name: value for name, value in own.items() if name not in plan.chosen}
        return dataclasses.replace(plan, **changes, **cls.layout_for(plan))

    @classmethod
    def layout_for(cls, plan: Plan) -> dict[str, Any]:
        """Return the entries of a plan that determine the divisors of the network, and a patch that fits them.

        A patch that the user did not choose is rounded to the nearest multiple on each axis, the lower of two; one that
        would leave a single voxel at the lowest level, which cannot be normalised, is enlarged. One that the user chose
        is kept, and padded if it is not a multiple.

        Raises:
            SettingsError: If the user chose a patch that leaves a single voxel where this cannot be normalised.
        """
        divisors = list(cls.divisors(plan))
        if plan.slice_axis is not None:
            divisors.insert(plan.slice_axis, 1)
        is_fixed = "patch_shape" in plan.chosen
        is_one_alone = cls.normalizes_each_case or (cls.normalizes_batches and plan.batch_size == 1)
        if is_fixed and is_one_alone and rounded_up(plan.patch_shape, tuple(divisors)) == tuple(divisors):
            or_more = ", a batch_size of 2" * cls.normalizes_batches
            raise SettingsError(
                f"patch_shape {'x'.join(map(str, plan.patch_shape))} is too small: {cls.network_name} downsamples each "
                f"axis by {max(divisors)}, which leaves a single voxel that cannot be normalised; expected more than "
                f"{max(divisors)} along at least one axis{or_more}, or leave patch_shape to the plan"
            )
        fits = all(size % divisor == 0 for size, divisor in zip(plan.patch_shape, divisors, strict=True))
        if tuple(divisors) == plan.divisor or (is_fixed and not fits):
            return {}
        halvings = [divisor.bit_length() - 1 for divisor in divisors]
        levels = max(2, max(halvings) + 1)
        strides = tuple(tuple(2 if 0 < level <= count else 1 for count in halvings) for level in range(levels))
        patch = [
            max(1, math.ceil(size / divisor - 0.5)) * divisor
            for size, divisor in zip(plan.patch_shape, divisors, strict=True)
        ]
        if patch == divisors:
            axis = max(range(len(patch)), key=lambda axis: (divisors[axis] > 1, plan.median_shape[axis]))
            patch[axis] *= 2
        return {
            "strides": strides,
            "kernel_sizes": tuple(
                tuple(1 if axis == plan.slice_axis else 3 for axis in range(plan.num_dims)) for _ in strides
            ),
            "filters": filters_of(levels, base=plan.filters[0], limit=max(plan.filters)),
            "patch_shape": plan.patch_shape if is_fixed else tuple(patch),
        }

    @override
    def use_plan(self, plan: Plan) -> None:
        plan = type(self).adapt_plan(plan)
        super().use_plan(plan)
        self.num_dims = plan.network_dims
        if self.has_fixed_size:
            axes = [axis for axis in range(plan.num_dims) if axis != plan.slice_axis]
            size = tuple(plan.patch_shape[axis] for axis in axes)
            self.image_size = rounded_up(size, type(self).divisors(plan))
            self.inferer = WindowInferer(plan.patch_shape, None if plan.slice_axis is None else plan.batch_size)

    @override
    def build_padding_module(self) -> nn.Module | None:
        factors = self._padding_factors()
        return Pad2d(factors) if self.num_dims == 2 else Pad3d(factors)

    @override
    def network_arguments(self, example_shape: Shape) -> dict[str, Any]:
        channels, *size = example_shape
        arguments: dict[str, Any] = {
            "num_dims": self.num_dims,
            "in_channels": channels,
            "out_channels": self.num_classes,
        }
        arguments |= {name: getattr(self, name) for name in self.network_options}
        if self.supervises_deeply:
            arguments["deep_supervision"] = self.options.deep_supervision
        if self.has_fixed_size:
            arguments["image_size"] = list(size)
        return arguments

    @override
    def build_network(self, example_shape: Shape) -> nn.Module:
        network: nn.Module = type(self).network_builder(**self.network_arguments(example_shape))
        return network

    @override
    def build_scheduler(self, optimizer: optim.Optimizer, num_epochs: int) -> optim.lr_scheduler.LRScheduler:
        if not self.warms_up:
            return super().build_scheduler(optimizer, num_epochs)
        num_steps = self._num_steps(num_epochs)
        return WarmUpLR(CosineLR(optimizer, num_steps), min(num_steps // _PART_TO_WARM_UP, _MOST_STEPS_TO_WARM_UP) + 1)

    @override
    def check_sample(self, image: Tensor, label: Tensor) -> None:
        super().check_sample(image, label)
        self.check_size(self.size)
        if self.num_dims not in (2, 3):
            raise BadInputError(f"num_dims must be 2 or 3, got {self.num_dims}")
        if self.only_dims not in (None, self.num_dims):
            raise BadInputError(f"{self.network_name} is {self.only_dims}-D only: set num_dims = {self.only_dims}")
        if image.ndim != self.num_dims + 1:
            raise BadInputError(
                f"the first training image has the shape {tuple(image.shape)}: that is {image.ndim - 1} spatial axes, "
                f"but num_dims is {self.num_dims}: set trainer.num_dims = {image.ndim - 1}"
            )
        if self.options.deep_supervision and not self.supervises_deeply:
            raise SettingsError(_no_deep_supervision(self.network_name))
        if self.has_fixed_size and self.image_size is None:
            self.image_size = rounded_up(tuple(image.shape[1:]), self._padding_factors())
        if self.has_fixed_size and self.inferer is None:
            self.inferer = WindowInferer(self.image_size or ())

    def _padding_factors(self) -> Shape:
        """Return the numbers to whose multiples the length of each axis is padded."""
        if self.image_size is not None:
            return tuple(self.image_size)  # a network of fixed size accepts this size only, no other multiple
        return (self.divisor,) * self.num_dims if self.plan is None else type(self).divisors(self.plan)


def _no_deep_supervision(network: str) -> str:
    return f"{network} has no outputs at lower resolutions: leave out deep_supervision"
