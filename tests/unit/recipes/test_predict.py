import json
import re
import shutil
from datetime import datetime

import pytest
import torch

from candy_monai.errors import BadInputError, ExperimentError, SettingsError
from candy_monai.experiment.checkpoints import load_tensors, save_tensors
from candy_monai.experiment.folder import STATE
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.predictor import Predictor
from candy_monai.recipes.predict import load_experiments
from tests.toys import Squares, small_trainer

TRAINER = "from tests.toys import SmallTrainer\n\n\nclass Mine(SmallTrainer):\n    pass\n"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    trainer = small_trainer(tmp_path_factory.mktemp("run"), Squares(2, size=(14, 16)))
    trainer.train(1, save_preview=False)
    return trainer.experiment_folder()


@pytest.fixture
def own_trainer(tmp_path):
    (tmp_path / "mine.py").write_text(TRAINER)
    return f"{tmp_path / 'mine.py'}:Mine"


def test_a_trainer_of_the_user_s_own_builds_the_network(experiment, own_trainer):
    predictor = load_experiments([experiment], trainer=own_trainer, largest_component=True, memory=10**9)
    assert isinstance(predictor, Predictor)
    assert (predictor.largest_component, predictor.memory) == (True, 10**9)
    assert predictor.predict(torch.randn(1, 9, 11)).shape == (1, 9, 11)


def test_several_experiments_are_an_ensemble(experiment, own_trainer):
    said = []
    predictor = load_experiments(
        [experiment, experiment], trainer=own_trainer, largest_component=True, on_progress=said.append
    )
    assert any("is given 2 times, and counts as often" in line for line in said)
    assert isinstance(predictor, EnsemblePredictor)
    assert len(predictor.members) == 2
    assert predictor.largest_component
    assert not any(member.largest_component for member in predictor.members)


def test_without_its_trainer_an_experiment_of_no_bundle_is_refused_with_the_option(experiment):
    with pytest.raises(ExperimentError, match=r"trained by SmallTrainer.*--trainer FILE:SmallTrainer .*network="):
        load_experiments([experiment])


def _crossval(folder, experiment, *, finished=(0, 1), unfinished=(), empty=()):
    """Make the folder of a cross-validation whose folds are copies of an experiment."""
    for number in (*finished, *unfinished):
        run = folder / f"fold_{number}" / "SmallTrainer" / experiment.name
        shutil.copytree(experiment, run)
        if number in unfinished:
            state = load_tensors(run / STATE)
            save_tensors(run / STATE, {**state, "is_complete": False})
    for number in empty:
        (folder / f"fold_{number}").mkdir()
    return folder


def test_the_folder_of_a_cross_validation_is_the_ensemble_of_its_folds(experiment, own_trainer, tmp_path):
    said = []
    folder = _crossval(tmp_path / "crossval-a", experiment)
    predictor = load_experiments([folder], trainer=own_trainer, on_progress=said.append)
    assert isinstance(predictor, EnsemblePredictor)
    assert [member.folder.parents[1].name for member in predictor.members] == ["fold_0", "fold_1"]
    assert said == [f"{folder}: predicting with folds 0, 1 of 2 together"]


def test_folds_that_are_not_finished_are_left_out_and_named(experiment, own_trainer, tmp_path):
    said = []
    folder = _crossval(tmp_path / "crossval-a", experiment, unfinished=(2,), empty=(3,))
    (folder / "crossval.json").write_text(json.dumps({"folds": [{"fold": number} for number in range(5)]}))
    predictor = load_experiments([folder], trainer=own_trainer, on_progress=said.append)
    assert len(predictor.members) == 2
    assert "fold 2 is not finished, and is left out" in said[0]
    assert [text.split(": ", 1)[1] for text in said[1:]] == [
        "fold 3 has no run, and is left out",
        "fold 4 has no run, and is left out",
        "predicting with folds 0, 1 of 5 together",
    ]


def test_where_no_fold_is_finished_all_predict_with_their_best_so_far(experiment, own_trainer, tmp_path):
    said = []
    folder = _crossval(tmp_path / "crossval-a", experiment, finished=(), unfinished=(0, 1))
    predictor = load_experiments([folder], trainer=own_trainer, on_progress=said.append)
    assert len(predictor.members) == 2
    assert all(text.startswith("Predicting with the best weights so far of a run that is not fin") for text in said[:2])


def test_an_interrupted_run_predicts_with_its_best_weights_so_far_and_says_so(experiment, own_trainer, tmp_path):
    said = []
    run = _crossval(tmp_path, experiment, finished=(), unfinished=(0,)) / "fold_0" / "SmallTrainer" / experiment.name
    assert load_experiments([run], trainer=own_trainer, on_progress=said.append).predict(torch.randn(1, 9, 11)).any
    (text,) = said
    assert re.search(r"the best weights so far .*not finished, 1 of 1 epochs, best score \S+ at epoch 1$", text)
    load_experiments([experiment], trainer=own_trainer, on_progress=said.append)
    assert len(said) == 1


def test_a_folder_of_runs_is_refused_with_what_is_below_and_how_to_call(experiment, own_trainer):
    folder = experiment.parents[1]
    today = f"{datetime.now():%Y-%m-%d}"
    with pytest.raises(
        BadInputError, match=rf"below it is a run:\n  - {experiment}: {today}.*best score .*\n"
    ) as error:
        load_experiments([folder], trainer=own_trainer)
    assert str(error.value).endswith(f"Give one: candy-monai predict {experiment} INPUT OUTPUT")


def test_a_folder_without_runs_and_one_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(
        ExperimentError, match=r"\(it has no experiment.json\), nor that of a MONAI Bundle .* \(it has no plans.json\)$"
    ):
        load_experiments([tmp_path])
    with pytest.raises(ExperimentError, match="there is no such folder"):
        load_experiments([tmp_path / "missing"])
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(ExperimentError, match="it is a file; did you mean its folder"):
        load_experiments([tmp_path / "experiment.json"])


def test_chosen_channels_reach_the_predictors(experiment, own_trainer):
    for folders in ([experiment], [experiment, experiment]):
        predictor = load_experiments(folders, trainer=own_trainer, channels=(2,))
        image = torch.zeros(3, 9, 11)
        image[2] = torch.randn(9, 11)
        assert torch.equal(
            predictor.predict(image).as_tensor(),
            load_experiments(folders, trainer=own_trainer).predict(image[2:]).as_tensor(),
        )
    with pytest.raises(SettingsError, match="channels 1,2: expected a number for each of the run's 1 channel"):
        load_experiments([experiment], trainer=own_trainer, channels=(1, 2))
