from __future__ import annotations

import pytest
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.runs import summarize
from candy_monai.handlers import ExperimentFolderHandler, ForecastStopHandler
from tests.engines import CPU, host_script, only_run, same, weights_of


class Told(Metric):
    """The scores that it is told to return, one an epoch."""

    def __init__(self, scores):
        self._scores = scores
        self._epoch = -1
        super().__init__(lambda output: output)

    def reset(self):
        pass

    def update(self, output):
        pass

    def compute(self):
        self._epoch += 1
        return self._scores[self._epoch]


def scripted(scores, *ours, max_epochs=60):
    """Return the script with an evaluator of these scores."""

    def validation(network, evaluator):
        told = SupervisedEvaluator(
            device=CPU,
            val_data_loader=evaluator.data_loader,
            epoch_length=1,
            network=network,
            key_val_metric={"told": Told(scores)},
        )
        return ValidationHandler(1, told)

    return host_script(*ours, validation, validates=False, max_epochs=max_epochs)


FLAT = [0.8 - 0.7 * 0.5**epoch for epoch in range(60)]
RISING = [0.01 * epoch for epoch in range(30)]


def test_a_run_without_prospects_ends_early(tmp_path):
    script = scripted(FLAT, ForecastStopHandler(score_range=(0, 1)), ExperimentFolderHandler(tmp_path))
    script.trainer.run()
    assert 6 <= script.trainer.state.epoch < 40
    folder = only_run(tmp_path)
    assert "Early stopping triggered because the forecast is" in (folder / "logs.txt").read_text()
    assert summarize(folder).is_finished


def test_it_needs_no_folder_and_changes_no_weight(tmp_path):
    script = scripted(FLAT, ForecastStopHandler())
    script.trainer.run()
    alone = scripted(FLAT, max_epochs=script.trainer.state.epoch)
    alone.trainer.run()
    assert script.trainer.state.epoch < 60
    assert same(weights_of(script.network), weights_of(alone.network))


@pytest.mark.slow
def test_a_run_that_gets_better_goes_on():
    script = scripted(RISING, ForecastStopHandler(), max_epochs=30)
    script.trainer.run()
    assert script.trainer.state.epoch == 30


@pytest.mark.slow
def test_the_events_of_a_completed_run_are_fired_when_it_ends_early():
    script = scripted(FLAT, ForecastStopHandler())
    fired = []
    script.trainer.add_event_handler(Events.COMPLETED, lambda: fired.append("completed"))
    script.trainer.run()
    assert fired == ["completed"]


def test_two_handlers_that_contradict_each_other_are_refused(tmp_path):
    script = scripted(
        FLAT, ForecastStopHandler(score_range=(0, 1)), ExperimentFolderHandler(tmp_path, score_range=(0, 2))
    )
    with pytest.raises(BadInputError, match="a different score_range"):
        script.trainer.run()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"confidence": 0.99}, "^confidence must be a number above 0.5 and at most 0.95, got 0.99"),
        ({"margin": -1.0}, "^margin must be a number of at least 0, got -1.0"),
        ({"score_range": (1, 0)}, "^score_range must be"),
        ({"key_metric_name": 3}, "^key_metric_name must be text, got 3"),
        ({"key_metric_negative_sign": "yes"}, "^key_metric_negative_sign must be true or false, got 'yes'"),
    ],
)
def test_values_out_of_range_are_refused_at_once_by_the_name_that_was_written(values, said):
    with pytest.raises(SettingsError, match=said):
        ForecastStopHandler(**values)


@pytest.mark.parametrize("validator", [3, SupervisedEvaluator])
def test_what_is_no_evaluator_is_refused_at_once(validator):
    with pytest.raises(BadInputError, match=f"^validator must be one of MONAI's .* got {type(validator).__name__}"):
        ForecastStopHandler(validator=validator)
