"""The options that the handlers of one trainer have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from monai.engines import Evaluator

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError, did_you_mean
from candy_monai.experiment.events import Preview
from candy_monai.experiment.settings import FLAG, TEXT
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.frontends.delivery import Dashboards
from candy_monai.handlers.engines import check_is_evaluator, metric_names
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.training.description import check_score_range


@dataclass(frozen=True, kw_only=True)
class ScoreSource:
    """Defines which number of which evaluator is the score of an epoch.

    Raises:
        SettingsError: If a value is invalid.
        BadInputError: If the evaluator is not one.
    """

    validator: Evaluator | None = None  # the evaluator; None for the one that the trainer's handlers run
    key_metric_name: str | None = None  # its metric; None for its key metric
    key_metric_negative_sign: bool | None = None  # None to follow the evaluator's ``metric_cmp_fn``
    score_range: ScoreRange | None = None  # the smallest and the largest possible score; None if it is not known

    def __post_init__(self) -> None:
        if self.validator is not None:
            check_is_evaluator(self.validator)
        if self.key_metric_name is not None:
            TEXT.check("key_metric_name", self.key_metric_name)
        if self.key_metric_negative_sign is not None:
            FLAG.check("key_metric_negative_sign", self.key_metric_negative_sign)
        check_score_range(self.score_range)

    def merged(self, other: ScoreSource) -> ScoreSource:
        """Return a combination of both; raise if they contradict each other."""
        together = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                raise BadInputError(
                    f"two handlers of the trainer were given a different {name}: {mine!r} and {theirs!r}"
                )
            together[name] = theirs if mine is None else mine
        return ScoreSource(**together)

    def found(self, validators: list[Evaluator]) -> FoundScore | None:
        """Return the evaluator and its metric, None if there is none; raise if it is not clear which."""
        validator = self.validator
        if validator is None:
            if len(validators) > 1:
                raise BadInputError(
                    f"the trainer runs {len(validators)} evaluators: give the one that computes the score of an "
                    "epoch, validator=...; the metrics of the others are recorded, too"
                )
            if not validators:
                return None
            (validator,) = validators
        key, known = validator.state.key_metric_name, metric_names(validator)
        name = key if self.key_metric_name is None else self.key_metric_name
        if name is None:
            return None
        if name not in known and (hint := did_you_mean(name, known)):  # other handlers may add metrics
            raise BadInputError(f"key_metric_name is {name!r}, which the evaluator does not measure.{hint}")
        negative = self.key_metric_negative_sign
        if negative is None:
            negative = name == key and bool(validator.metric_cmp_fn(0.0, 1.0))
        return FoundScore(validator=validator, name=name, negative=negative)


@dataclass(frozen=True, kw_only=True)
class FoundScore:
    """A metric of an evaluator."""

    validator: Evaluator
    name: str  # of the metric
    negative: bool  # whether lower values are better: the score is then the negative metric


@dataclass(kw_only=True)
class RunOptions:
    """The combined options of a trainer's handlers."""

    records: bool = False  # whether any handler needs the progress of the run
    save_dir: PathLike | None = None  # None for no experiment folder
    save_dict: Mapping[str, Any] = field(default_factory=dict)  # further objects to save
    resume: PathLike | None = None  # also ``"latest"``
    force: bool = False  # continue a run that was composed differently
    note: str = ""
    num_checkpoints: int = 5
    output_transform: Callable[[Any], Any] | None = None  # of ``engine.state.output`` to its numbers
    console: bool = False
    score: ScoreSource = field(default_factory=ScoreSource)
    ema: ExponentialMovingAverage | None = None  # the average that is evaluated
    stop: tuple[float, float] | None = None  # confidence and margin of early stopping; None to disable it
    preview: Callable[[Any], Preview | None] | None = None  # the cases of the last validation, given the folder
    dashboards: list[Dashboards] = field(default_factory=list)
