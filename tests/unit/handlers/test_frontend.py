from __future__ import annotations

import time

import pytest

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.frontends.base import Frontend
from candy_monai.handlers import ExperimentFolderHandler, FrontendHandler
from tests.engines import Raises, host_script, only_run, same, trained_alone, weights_of

TOLD: list[tuple[str, object]] = []


class Telling(Frontend):
    def on_experiment_created(self, experiment_id, trainer, model, note, num_params, num_macs, num_epochs, tolerance):
        TOLD.append(("created", (experiment_id, trainer, model, num_epochs)))

    def on_experiment_updated(self, experiment_id, epoch, metrics, early_stop_tolerance):
        TOLD.append(("updated", (epoch, metrics["val score"][-1])))

    def on_experiment_completed(self, experiment_id):
        TOLD.append(("completed", experiment_id))

    def on_experiment_interrupted(self, experiment_id, error):
        TOLD.append(("interrupted", str(error)))


class Other(Telling):
    pass


class Slow(Frontend):
    def on_experiment_completed(self, experiment_id):
        time.sleep(4)
        TOLD.append(("slowly", experiment_id))


@pytest.fixture(autouse=True)
def _nothing_told():
    TOLD.clear()


def test_a_dashboard_is_told_how_the_run_goes(tmp_path):
    script = host_script(FrontendHandler(Telling), ExperimentFolderHandler(tmp_path))
    script.trainer.run()
    run_id = only_run(tmp_path).name
    assert TOLD[0] == ("created", (run_id, "SupervisedTrainer", "Sequential", 3))
    assert TOLD[-1] == ("completed", run_id)
    updates = [what for kind, what in TOLD if kind == "updated"]
    assert updates[-1] == (3, script.evaluator.state.metrics["val_mean_dice"])


def test_it_needs_no_folder_and_may_be_several():
    script = host_script(FrontendHandler(Telling), FrontendHandler(Other))
    script.trainer.run()
    assert [kind for kind, _ in TOLD].count("completed") == 2
    assert same(weights_of(script.network), trained_alone())


def test_it_is_told_of_an_error():
    script = host_script(FrontendHandler(Telling), Raises(RuntimeError("told to")))
    with pytest.raises(RuntimeError):
        script.trainer.run()
    assert TOLD[-1] == ("interrupted", "told to")


def test_one_that_hangs_holds_up_nothing():
    host_script(FrontendHandler(Slow)).trainer.run()
    assert not TOLD


def test_an_unknown_name_and_a_missing_secret_are_said_at_once():
    with pytest.raises(BadInputError, match="FrontendHandler 'notions' is unknown"):
        FrontendHandler("notions")
    with pytest.raises(SettingsError, match="notion_"):
        FrontendHandler("notion")
