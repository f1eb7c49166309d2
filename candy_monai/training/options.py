"""The options of a segmentation trainer, in one record."""

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
"""The value of an option that is not set: it is inherited from the base class, or from the trainer's class."""


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """The options of a `SegmentationTrainer`.

    Options that are not given are inherited: in a class from its base class, in a trainer from its class.

    Attributes:
        score: The validation score: the negative loss (default), or the mean Dice of the foreground classes.
        learning_rate: The initial learning rate for `build_optimizer`; the schedule starts from that of the optimizer.
            Default 1e-3.
        weight_decay: The weight decay of the optimizer. Default 1e-2.
        include_background: Whether the soft Dice includes the background class and its Dice is reported. Default True.
        deep_supervision: Whether the outputs of the network at lower resolutions are part of the loss. Default False.
        regions: Overlapping regions, each with an output channel and a sigmoid; ``num_classes`` is then their number,
            and the background has no channel. Empty (default) if classes are mutually exclusive.
        preprocessing: Your own steps before the last one of the plan's preprocessing, or before the one that an entry
            names by ``_before_``, in MONAI's configuration language. A list that loads the files itself, by
            ``LoadImaged``, replaces the plan's. Like the next two options, only for runs with a plan.
        augmentation: Your own transforms for training patches: a list that cuts the patch by
            ``candy_monai.transforms.RandWarpd`` replaces the plan's augmentation, any other list is applied after it.
        postprocessing: Your own steps on predicted label maps, at ``pred``, after the plan's postprocessing. A list
            that inverts preprocessing itself, by ``Invertd``, replaces the plan's.
        memory_factor: Memory of a training step relative to that of a U-Net, used by plans to choose patch and batch.
            Default 1.
        follows_filters: Whether the plan's ``filters`` set the width of the network. If not (default), a budget does
            not vary the width, and volumes are trained on slice by slice only on request.

    Raises:
        SettingsError: If ``score`` is neither of the two, or a rate, decay or factor is not a number of at least 0.
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
"""The attribute of a class and of a trainer that holds the options set on it."""


class Options:
    """The attribute ``options`` of a trainer and of its class: setting it changes only the given options."""

    def __get__(self, trainer: object | None, owner: type) -> SegmentationOptions:
        options = DEFAULTS
        for base in reversed(owner.__mro__):  # as attributes are inherited, one by one
            options = _changed(options, _said_on(base))
        return options if trainer is None else _changed(options, _said_on(trainer))

    def __set__(self, trainer: object, changes: SegmentationOptions) -> None:
        _check(changes, where=type(trainer).__name__)
        vars(trainer)[_CHANGES] = _changed(_said_on(trainer), changes)

    def set_on_class(self, cls: type, changes: SegmentationOptions) -> None:
        """Set options of a class, for its subclasses and its trainers."""
        _check(changes, where=cls.__name__)
        type.__setattr__(cls, _CHANGES, _changed(_said_on(cls), changes))


def take_up(cls: Any, name: str, member: object) -> None:
    """Pass the value that a class body, or a base that is not a trainer, assigned to a member's name to the member.

    Such a value would otherwise hide the member.
    """
    given = inspect.getattr_static(cls, name)
    if not isinstance(given, type(member)):
        type.__setattr__(cls, name, member)
        setattr(cls, name, given)


def _said_on(owner: object) -> SegmentationOptions:
    """Return the options set on a class or a trainer itself."""
    said: SegmentationOptions = vars(owner).get(_CHANGES, _NOTHING)
    return said


def _changed(options: SegmentationOptions, changes: SegmentationOptions) -> SegmentationOptions:
    """Return options with the changes that are set applied."""
    said = {name: value for name, value in vars(changes).items() if value is not _INHERITED}
    return dataclasses.replace(options, **said) if said else options


def _check(changes: object, *, where: str) -> None:
    """Raise SettingsError if the value that ``where`` sets as options is no `SegmentationOptions`."""
    if not isinstance(changes, SegmentationOptions):
        raise SettingsError(
            f"{where}.options must be SegmentationOptions(...), got {changes!r}: call an attribute of your own "
            "something else, for example my_options"
        )
