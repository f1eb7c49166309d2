"""Members of trainers from earlier versions: they work for one release, warn, and are not listed by ``dir``."""

from __future__ import annotations

import inspect
import sys
import warnings
from abc import ABCMeta
from collections.abc import Iterable
from typing import Any, Self

from typing_extensions import deprecated, override

from candy_monai.aliases import PathLike
from candy_monai.errors import ExperimentError, SettingsError
from candy_monai.registry import bundle_name
from candy_monai.training.options import SegmentationOptions

_PASSED_OVER = ("candy_monai", "candy_monai_bundles", "abc")
"""Packages whose frames are not the user's; ``abc`` is in the stack when a class is created."""


class TrainerType(ABCMeta):
    """The metaclass of trainers, whose ``dir`` leaves out deprecated members.

    Setting a class attribute calls ``set_on_class`` of the member of this name, if it has one, as the options have.
    """

    @override
    def __setattr__(cls, name: str, value: object) -> None:
        member = inspect.getattr_static(cls, name, None)
        if hasattr(member, "set_on_class"):
            member.set_on_class(cls, value)
        else:
            super().__setattr__(name, value)

    @override
    def __dir__(cls) -> Iterable[str]:
        return [name for name in super().__dir__() if not is_deprecated(cls, name)]


def is_deprecated(cls: type, name: str) -> bool:
    """Return whether a class has a deprecated member of this name."""
    return hasattr(inspect.getattr_static(cls, name, None), "__deprecated__")


def _warn_user(text: str) -> None:
    """Warn at the nearest frame outside of this package; Python shows such warnings only for the user's script."""
    frame, stacklevel = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)


class _BundleName:
    __deprecated__ = "a trainer's bundle is in experiment.json"

    def __get__(self, trainer: object, owner: type) -> str | None:
        _warn_user(f"{owner.__name__}.bundle: {self.__deprecated__}")
        return next(filter(None, map(bundle_name, owner.__mro__)), None)


class EarlierMembers:
    """Members that every trainer had in earlier versions."""

    _recovered: PathLike | None = None
    bundle: Any = _BundleName()

    @deprecated("experiment_id() is the name of the experiment folder: experiment_folder().name")
    def experiment_id(self) -> str:
        """Return the id of the current or last run."""
        trainer: Any = self
        name: str = trainer.experiment_folder().name
        return name

    @deprecated("recover_from and continue_training are one method now: resume(experiment)")
    def recover_from(self, experiment_id: PathLike) -> Self:
        """Choose the run that `continue_training` continues."""
        trainer: Any = self
        trainer._saved_run(experiment_id)  # raises here if it is not usable
        self._recovered = experiment_id
        return self

    @deprecated("recover_from and continue_training are one method now: resume(experiment)")
    def continue_training(self, num_epochs: int | None = None, **keywords: Any) -> None:
        """Continue the run that `recover_from` chose."""
        trainer: Any = self
        if self._recovered is None:
            raise ExperimentError("choose the run to continue first: recover_from(experiment_id)")
        experiment, self._recovered = self._recovered, None
        trainer.resume(experiment, num_epochs, **keywords)


class EarlierOption:
    """An option as an attribute of trainers with the same name; it warns."""

    __deprecated__ = "it is an entry of options now"

    _name: str

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, trainer: Any, owner: Any) -> Any:
        self._warn(owner)
        return getattr((owner if trainer is None else trainer).options, self._name)

    def __set__(self, trainer: Any, value: object) -> None:
        self._warn(type(trainer))
        trainer.options = self._options(value, where=type(trainer).__name__)

    def set_on_class(self, cls: Any, value: object) -> None:
        """Set the option of a class."""
        self._warn(cls)
        cls.options = self._options(value, where=cls.__name__)

    def _warn(self, cls: type) -> None:
        _warn_user(f"{cls.__name__}.{self._name} will be removed in the next release: {self._advice()}")

    def _options(self, value: Any, *, where: str) -> SegmentationOptions:
        if callable(value) or hasattr(value, "__get__"):
            raise SettingsError(f"{where}.{self._name} is {value!r}, which is no longer used: {self._advice()}")
        if self._name == "augmentation" and value is None:
            value = ()  # only that of the plan
        return SegmentationOptions(**{self._name: value})

    def _advice(self) -> str:
        return f"it is options.{self._name} now, set by options = SegmentationOptions({self._name}=...)"


class EarlierOptions:
    """The options as attributes of trainers, as in earlier versions."""

    score: Any = EarlierOption()
    learning_rate: Any = EarlierOption()
    weight_decay: Any = EarlierOption()
    include_background: Any = EarlierOption()
    deep_supervision: Any = EarlierOption()
    regions: Any = EarlierOption()
    preprocessing: Any = EarlierOption()
    augmentation: Any = EarlierOption()
    postprocessing: Any = EarlierOption()
    memory_factor: Any = EarlierOption()
    follows_filters: Any = EarlierOption()
