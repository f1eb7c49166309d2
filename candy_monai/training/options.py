"""What the methods of a segmentation trainer go by, in one record, and its entries by their earlier names."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

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
        SettingsError: If ``score`` is none of the two.
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

    def updated(self, changes: object, *, where: str) -> Self:
        """Return these options with those that ``changes`` says.

        Args:
            changes: Options.
            where: What sets them, for messages.

        Raises:
            SettingsError: If it is no `SegmentationOptions`.
        """
        if not isinstance(changes, SegmentationOptions):
            raise SettingsError(
                f"{where}.options must be SegmentationOptions(...), got {changes!r}: call an attribute of your own "
                "something else, for example my_options"
            )
        return dataclasses.replace(self, **{k: v for k, v in vars(changes).items() if v is not _INHERITED})

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

_SLOT, _CHANGES = "_options_of_segmentation", "_options_of_this_class"


class Options:
    """The attribute ``options`` of a trainer and of its class: what is set changes only what it says."""

    def __get__(self, trainer: object | None, owner: type) -> SegmentationOptions:
        options: SegmentationOptions = getattr(owner if trainer is None else trainer, _SLOT)
        return options

    def __set__(self, trainer: object, changes: SegmentationOptions) -> None:
        present = self.__get__(trainer, type(trainer))
        vars(trainer)[_SLOT] = present.updated(changes, where=f"a {type(trainer).__name__}")


def inherit_options(cls: type) -> None:
    """Merge what a trainer's class says into what its bases say, also by the earlier names, of which it warns.

    Raises:
        SettingsError: If ``options`` is something else, or an earlier name is a property, which nothing would read.
    """
    changes = SegmentationOptions()
    if "options" in vars(cls):
        changes = changes.updated(vars(cls)["options"], where=cls.__name__)
        delattr(cls, "options")  # that of the base class stands for both
    for name in NAMES:
        value = inspect.getattr_static(cls, name)
        if isinstance(value, EarlierOption):
            continue
        if callable(value) or hasattr(value, "__get__"):
            raise SettingsError(f"{cls.__name__}.{name} is {value!r}, which nothing reads: {_advice(name)}")
        _warn(f"{cls.__name__}.{name}", name, stacklevel=5)
        changes = changes.updated(_of_earlier_name(name, value), where=cls.__name__)
        setattr(cls, name, EarlierOption(name))  # it may be of a class beside the trainers
    setattr(cls, _CHANGES, changes)
    options = DEFAULTS
    for base in reversed(cls.__mro__):  # as attributes are inherited, one by one
        options = options.updated(vars(base).get(_CHANGES, SegmentationOptions()), where=base.__name__)
    setattr(cls, _SLOT, options)


class EarlierOption:
    """An option under its earlier name, as an attribute of trainers; it warns.

    Args:
        name: The option's name.
    """

    __deprecated__ = "it is an entry of options now"

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, trainer: Any, owner: Any) -> Any:
        _warn(f"{owner.__name__}.{self._name}", self._name, stacklevel=3)
        return getattr((owner if trainer is None else trainer).options, self._name)

    def __set__(self, trainer: Any, value: object) -> None:
        _warn(f"{type(trainer).__name__}.{self._name}", self._name, stacklevel=4)  # past the trainer's __setattr__
        trainer.options = _of_earlier_name(self._name, value)


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


def _of_earlier_name(name: str, value: Any) -> SegmentationOptions:
    if name == "augmentation" and value is None:
        value = ()  # the plan's alone
    return SegmentationOptions(**{name: value})


def _advice(name: str) -> str:
    return f"it is options.{name} now, set by options = SegmentationOptions({name}=...)"


def _warn(what: str, name: str, *, stacklevel: int) -> None:
    text = f"{what} will be removed in the next release: {_advice(name)}"
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)
