"""What the methods of a segmentation trainer go by, in one record, and its entries by their earlier names."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from candy_monai.data.pipelines.description import PIPELINES, OwnTransforms
from candy_monai.errors import SettingsError

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Region

_INHERITED: Any = None


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
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < math.inf
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

_CHANGES = "_options_that_are_said"
"""The attribute of classes and trainers that holds, by name, the options that they change."""


class Options:
    """The attribute ``options`` of a trainer and of its class: what is set changes only what it says."""

    def __get__(self, trainer: object | None, owner: type) -> SegmentationOptions:
        said = dict(vars(DEFAULTS))
        for base in reversed(owner.__mro__):  # as attributes are inherited, one by one
            said.update(vars(base).get(_CHANGES, {}))
        if trainer is not None:
            said.update(vars(trainer).get(_CHANGES, {}))
        return SegmentationOptions(**said)

    def __set__(self, trainer: object, changes: SegmentationOptions) -> None:
        said = _said(changes, where=type(trainer).__name__)
        vars(trainer)[_CHANGES] = {**vars(trainer).get(_CHANGES, {}), **said}

    def set_on_class(self, cls: type, changes: object) -> None:
        """Set options of a class, for its subclasses and for trainers that say nothing else."""
        said = _said(changes, where=cls.__name__)
        type.__setattr__(cls, _CHANGES, {**vars(cls).get(_CHANGES, {}), **said})


class EarlierOption:
    """An option under its earlier name, as an attribute of trainers; it warns.

    Args:
        name: The option's name.
    """

    __deprecated__ = "it is an entry of options now"

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, trainer: Any, owner: Any) -> Any:
        self._warn(owner, stacklevel=3)
        return getattr((owner if trainer is None else trainer).options, self._name)

    def __set__(self, trainer: Any, value: object) -> None:
        self._warn(type(trainer), stacklevel=4)  # past the trainer's __setattr__
        trainer.options = self._options(value, where=type(trainer).__name__)

    def set_on_class(self, cls: Any, value: object) -> None:
        """Set the option of a class."""
        self._warn(cls, stacklevel=4)
        cls.options = self._options(value, where=cls.__name__)

    def _warn(self, cls: type, *, stacklevel: int) -> None:
        text = f"{cls.__name__}.{self._name} will be removed in the next release: {_advice(self._name)}"
        warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)

    def _options(self, value: Any, *, where: str) -> SegmentationOptions:
        if callable(value) or hasattr(value, "__get__"):
            raise SettingsError(f"{where}.{self._name} is {value!r}, which nothing reads: {_advice(self._name)}")
        if self._name == "augmentation" and value is None:
            value = ()  # the plan's alone
        return SegmentationOptions(**{self._name: value})


def inherit_options(cls: Any) -> None:
    """Take up what the body of a trainer's class says, also by the earlier names, of which it warns.

    Raises:
        SettingsError: If ``options`` is something else, or an earlier name is a property, which nothing would read.
    """
    for name in ("options", *NAMES):
        value = inspect.getattr_static(cls, name)
        if isinstance(value, Options | EarlierOption):
            continue
        # What was given in the class, or in one beside the trainers, hides the member that takes it.
        type.__setattr__(cls, name, Options() if name == "options" else EarlierOption(name))
        setattr(cls, name, value)


class EarlierOptions:
    """The options as attributes, as trainers of earlier versions had them."""

    score: Any = EarlierOption("score")
    learning_rate: Any = EarlierOption("learning_rate")
    weight_decay: Any = EarlierOption("weight_decay")
    include_background: Any = EarlierOption("include_background")
    deep_supervision: Any = EarlierOption("deep_supervision")
    regions: Any = EarlierOption("regions")
    preprocessing: Any = EarlierOption("preprocessing")
    augmentation: Any = EarlierOption("augmentation")
    postprocessing: Any = EarlierOption("postprocessing")
    memory_factor: Any = EarlierOption("memory_factor")
    follows_filters: Any = EarlierOption("follows_filters")


def _said(changes: object, *, where: str) -> dict[str, Any]:
    """Return by name the options that ``changes`` says.

    Raises:
        SettingsError: If it is no `SegmentationOptions`; ``where`` says what sets it.
    """
    if not isinstance(changes, SegmentationOptions):
        raise SettingsError(
            f"{where}.options must be SegmentationOptions(...), got {changes!r}: call an attribute of your own "
            "something else, for example my_options"
        )
    return {name: value for name, value in vars(changes).items() if value is not _INHERITED}


def _advice(name: str) -> str:
    return f"it is options.{name} now, set by options = SegmentationOptions({name}=...)"
