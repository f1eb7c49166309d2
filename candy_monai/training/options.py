"""What the methods of a segmentation trainer go by, in one record."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from candy_monai.data.pipelines.description import PIPELINES, OwnTransforms
from candy_monai.errors import SettingsError

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Region

_INHERITED: Any = None
"""What an option is that a class or a trainer does not say: it stays as the base class, or the class, has it."""


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """What the methods of a `SegmentationTrainer` go by.

    What is left out stays as it is: in a class as the base class has it, of a trainer as its class has it.

    Attributes:
        score: What a validation score is: the negative loss, which is the default, or the mean Dice of the foreground
            classes.
        learning_rate: Of the first step, for `build_optimizer`; the schedule starts from the optimizer's own. 1e-3
            unless it is said.
        weight_decay: Of the optimizer; 1e-2 unless it is said.
        include_background: Whether the soft Dice counts the background class and a Dice is reported for it, as by
            default.
        deep_supervision: Whether the network's outputs at lower resolutions take part in the loss; by default not.
        regions: Overlapping regions, an output channel and a sigmoid each; then ``num_classes`` is their number and the
            background has no channel. Empty, as by default, where classes exclude each other.
        preprocessing: Steps of your own before the last one of the plan's preprocessing, or before the one that an
            entry names by ``_before_``, in MONAI's config language. A list that loads the files itself, by
            ``LoadImaged``, replaces the plan's. For runs with a plan, as the next two.
        augmentation: Transforms of your own for training patches: a list that cuts the patch by
            ``candy_monai.transforms.RandWarpd`` replaces the plan's augmentation, any other follows it.
        postprocessing: Steps of your own on predicted label maps, at ``pred``, after the plan's postprocessing. A list
            that undoes preprocessing itself, by ``Invertd``, replaces the plan's.
        memory_factor: Memory of a training step, as a multiple of a U-Net's, by which plans choose patch and batch; 1
            unless it is said.
        follows_filters: Whether the network is as wide as its plan's ``filters``. If not, as by default, a budget tries
            no others, and volumes are trained on slice by slice only where that is asked for.

    Raises:
        SettingsError: If ``score`` is none of the two, or a rate, decay or factor is no number of at least 0.
    """

    score: Literal["negative loss", "dice"] = _INHERITED
    learning_rate: float = _INHERITED
    weight_decay: float = _INHERITED
    include_background: bool = _INHERITED
    deep_supervision: bool = _INHERITED
    regions: Sequence[Region] = _INHERITED
    preprocessing: Sequence[Mapping[str, Any]] = _INHERITED
    augmentation: Sequence[Mapping[str, Any]] = _INHERITED
    postprocessing: Sequence[Mapping[str, Any]] = _INHERITED
    memory_factor: float = _INHERITED
    follows_filters: bool = _INHERITED

    def __post_init__(self) -> None:
        if self.score not in (_INHERITED, "negative loss", "dice"):
            raise SettingsError(f"score must be 'negative loss' or 'dice', got {self.score!r}")
        for name in ("learning_rate", "weight_decay", "memory_factor"):
            value: Any = getattr(self, name)
            is_flag = isinstance(value, bool)
            is_number = isinstance(value, Real) and not is_flag and 0 <= float(value) < math.inf
            if value is not _INHERITED and not is_number:
                raise SettingsError(f"{name} must be a number of at least 0, got {value!r}")

    @property
    def own_transforms(self) -> OwnTransforms:
        """The user's own steps of the three pipelines."""
        return OwnTransforms(**{name: getattr(self, name) for name in PIPELINES})


DEFAULTS = SegmentationOptions(
    score="negative loss",
    learning_rate=1e-3,
    weight_decay=1e-2,
    include_background=True,
    deep_supervision=False,
    regions=(),
    preprocessing=(),
    augmentation=(),
    postprocessing=(),
    memory_factor=1.0,
    follows_filters=False,
)

NAMES = tuple(field.name for field in dataclasses.fields(SegmentationOptions))
"""The names of all options, which were attributes of a trainer in earlier versions."""

_NOTHING = SegmentationOptions()

_CHANGES = "_options_that_are_said"
"""The attribute of a class and of a trainer that holds what was said on it alone."""


class Options:
    """The attribute ``options`` of a trainer and of its class: what is set changes only what it says."""

    def __get__(self, trainer: object | None, owner: type) -> SegmentationOptions:
        options = DEFAULTS
        for base in reversed(owner.__mro__):  # as attributes are inherited, one by one
            options = _changed(options, _said_on(base))
        return options if trainer is None else _changed(options, _said_on(trainer))

    def __set__(self, trainer: object, changes: SegmentationOptions) -> None:
        _check(changes, where=type(trainer).__name__)
        vars(trainer)[_CHANGES] = _changed(_said_on(trainer), changes)

    def set_on_class(self, cls: type, changes: SegmentationOptions) -> None:
        """Set options of a class, for its subclasses and for trainers that say nothing else."""
        _check(changes, where=cls.__name__)
        type.__setattr__(cls, _CHANGES, _changed(_said_on(cls), changes))


def take_up(cls: Any, name: str, member: object) -> None:
    """Set by a member of a class what the body of the class, or of one beside the trainers, gave by its name.

    Such a value hides the member that takes it.
    """
    given = inspect.getattr_static(cls, name)
    if not isinstance(given, type(member)):
        type.__setattr__(cls, name, member)
        setattr(cls, name, given)


def _said_on(owner: object) -> SegmentationOptions:
    """Return what was said on a class or a trainer itself."""
    said: SegmentationOptions = vars(owner).get(_CHANGES, _NOTHING)
    return said


def _changed(options: SegmentationOptions, changes: SegmentationOptions) -> SegmentationOptions:
    """Return options with what others say in place of theirs."""
    said = {name: value for name, value in vars(changes).items() if value is not _INHERITED}
    return dataclasses.replace(options, **said) if said else options


def _check(changes: object, *, where: str) -> None:
    """Raise if what is set as options is none.

    Raises:
        SettingsError: If it is no `SegmentationOptions`; ``where`` says what sets it.
    """
    if not isinstance(changes, SegmentationOptions):
        raise SettingsError(
            f"{where}.options must be SegmentationOptions(...), got {changes!r}: call an attribute of your own "
            "something else, for example my_options"
        )
