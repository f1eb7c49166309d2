import math
from collections.abc import Sequence

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from candy_monai.errors import SettingsError
from candy_monai.optuna import HORIZON, ForecastPruner

optuna.logging.set_verbosity(optuna.logging.WARNING)
EPOCHS = 30


def saturating(level: float, *, epochs: int = EPOCHS) -> list[float]:
    # With noise as of real runs: curves without any are fitted by slower means.
    return [level * (1 - math.exp(-epoch / 3)) + 0.01 * math.sin(7 * epoch**2) for epoch in range(1, epochs + 1)]


def study_with(*curves: Sequence[float], direction: str = "maximize", first_step: int = 1, every: int = 1):
    study = optuna.create_study(direction=direction)
    for curve in curves:
        best = max(curve) if direction == "maximize" else min(curve)
        values = {every * (first_step + index): value for index, value in enumerate(curve)}
        study.add_trial(create_trial(value=best, intermediate_values=values))
    return study


def pruned_after(study, pruner, curve: Sequence[float], *, first_step: int = 1, every: int = 1, **attributes) -> int:
    """Return after how many values a trial that reports this curve is pruned; all of them if it is not."""
    study.pruner = pruner
    trial = study.ask()
    for name, value in attributes.items():
        trial.set_user_attr({"horizon": HORIZON}.get(name, name), value)
    for index, value in enumerate(curve):
        trial.report(value, every * (first_step + index))
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return index + 1
    return len(curve)


def test_a_trial_that_will_not_beat_the_best_is_pruned_and_one_that_will_is_not():
    assert pruned_after(study_with(saturating(0.8)), ForecastPruner(), saturating(0.4)) < EPOCHS / 2
    assert pruned_after(study_with(saturating(0.4)), ForecastPruner(), saturating(0.8)) == EPOCHS


def late(level: float, seed: int) -> list[float]:
    generator = np.random.default_rng(seed)
    rises = [0.05 + (level - 0.05) * min(max(epoch / EPOCHS - 0.5, 0) / 0.3, 1) for epoch in range(1, EPOCHS + 1)]
    return [value + 0.004 * generator.standard_normal() for value in rises]


def test_completed_trials_that_took_off_late_keep_one_that_looks_like_them():
    pruner = ForecastPruner(0.7, score_range=(0, 1))
    early, latest = [saturating(0.7)] * 4, [late(0.7, seed) for seed in range(4)]
    assert pruned_after(study_with(*early), pruner, late(0.8, 9)) < EPOCHS
    assert pruned_after(study_with(*latest), pruner, late(0.8, 9)) == EPOCHS


def test_completed_trials_that_have_reported_too_little_tell_nothing():
    few = [[0.5, math.nan, 0.6], [0.4]]
    usual = pruned_after(study_with(saturating(0.8)), ForecastPruner(), saturating(0.4))
    assert pruned_after(study_with(saturating(0.8), *few), ForecastPruner(horizon=EPOCHS), saturating(0.4)) == usual


def test_a_loss_to_be_minimized_is_pruned_as_its_negative_would_be():
    def loss(level: float) -> list[float]:
        return [1 - value for value in saturating(level)]

    at = pruned_after(study_with(loss(0.8), direction="minimize"), ForecastPruner(score_range=(0, None)), loss(0.4))
    negative = [[-value for value in loss(level)] for level in (0.8, 0.4)]
    assert at < EPOCHS / 2
    assert at == pruned_after(study_with(negative[0]), ForecastPruner(score_range=(None, 0)), negative[1])
    assert pruned_after(study_with(loss(0.4), direction="minimize"), ForecastPruner(), loss(0.8)) == EPOCHS


@pytest.mark.parametrize(("first_step", "every"), [(0, 1), (1, 100), (0, 100)])
def test_how_steps_are_counted_makes_no_difference(first_step, every):
    usual = pruned_after(study_with(saturating(0.8)), ForecastPruner(), saturating(0.4))
    study = study_with(saturating(0.8), first_step=first_step, every=every)
    assert pruned_after(study, ForecastPruner(), saturating(0.4), first_step=first_step, every=every) == usual


def test_a_surer_forecast_is_asked_for_by_a_higher_confidence():
    curve = [value + 0.02 * math.sin(7 * index) for index, value in enumerate(saturating(0.66))]
    ends = [
        pruned_after(study_with(saturating(0.72)), ForecastPruner(confidence), curve) for confidence in (0.6, 0.8, 0.95)
    ]
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]


def test_no_trial_is_pruned_before_the_start_up_and_the_warm_up_are_over():
    hopeless, good = saturating(0.4), saturating(0.8)
    assert pruned_after(study_with(), ForecastPruner(), hopeless) == EPOCHS
    assert pruned_after(study_with(good), ForecastPruner(n_startup_trials=2), hopeless) == EPOCHS
    assert pruned_after(study_with(good, good), ForecastPruner(n_startup_trials=2), hopeless) < EPOCHS
    assert pruned_after(study_with(good), ForecastPruner(n_warmup_steps=20), hopeless) == 20


def test_it_decides_once_an_interval():
    usual = pruned_after(study_with(saturating(0.8)), ForecastPruner(), saturating(0.4))
    by_interval = ForecastPruner(n_warmup_steps=1, interval_steps=20)
    later = pruned_after(study_with(saturating(0.8)), by_interval, saturating(0.4))
    assert usual < 21 == later


def test_the_horizon_is_the_trials_own_before_that_of_the_longest_trial():
    best, half = saturating(0.8), saturating(0.4, epochs=EPOCHS // 2)
    # With as many epochs as have been reported there is nothing left to forecast.
    with pytest.warns(UserWarning, match=r"beyond the horizon of ForecastPruner, 1, .* in the unit of the reported"):
        assert pruned_after(study_with(best), ForecastPruner(horizon=1), half) == EPOCHS // 2
    with pytest.warns(UserWarning, match="beyond the horizon"):
        assert pruned_after(study_with(best), ForecastPruner(), half, horizon=1) == EPOCHS // 2
    assert pruned_after(study_with(best), ForecastPruner(horizon=EPOCHS), half, horizon=1) < EPOCHS // 2


def test_a_trial_of_nan_is_pruned_and_a_flat_one_goes_on():
    assert pruned_after(study_with(saturating(0.8)), ForecastPruner(), [math.nan] * 10) == 1
    assert pruned_after(study_with(saturating(0.8)), ForecastPruner(), [0.0] * 10) == 10


def test_the_best_is_that_of_the_reported_values_where_the_trials_value_is_of_another_kind():
    study = optuna.create_study(direction="maximize")
    values = dict(enumerate(saturating(0.8), start=1))
    study.add_trial(create_trial(value=0.1, intermediate_values=values))  # scored by something else in the end
    assert pruned_after(study, ForecastPruner(), saturating(0.4)) < EPOCHS / 2


def test_it_prunes_in_a_study_that_optuna_runs():
    study = optuna.create_study(
        direction="maximize", pruner=ForecastPruner(), sampler=optuna.samplers.RandomSampler(seed=0)
    )

    def objective(trial: optuna.Trial) -> float:
        curve = saturating(trial.suggest_float("level", 0.1, 0.9))
        for epoch, value in enumerate(curve, start=1):
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return max(curve)

    study.optimize(objective, n_trials=12)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.PRUNED) > 3
    levels = [trial.params["level"] for trial in study.trials]
    assert study.best_trial.params["level"] == max(levels)


@pytest.mark.parametrize(
    "arguments",
    [
        {"confidence": 0.5},
        {"confidence": 0.99},
        {"horizon": 0},
        {"n_startup_trials": -1},
        {"n_warmup_steps": 1.5},
        {"n_startup_trials": None},
        {"score_range": (1, 0)},
        {"interval_steps": 0},
    ],
)
def test_a_number_out_of_range_is_refused(arguments):
    with pytest.raises(SettingsError, match=next(iter(arguments))):
        ForecastPruner(**arguments)
