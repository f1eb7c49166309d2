import pytest
import torch

from candy_monai.errors import ExperimentError
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
    predictor = load_experiments([experiment, experiment], trainer=own_trainer, largest_component=True)
    assert isinstance(predictor, EnsemblePredictor)
    assert len(predictor.members) == 2
    assert predictor.largest_component
    assert not any(member.largest_component for member in predictor.members)


def test_without_its_trainer_an_experiment_of_no_bundle_is_refused(experiment):
    with pytest.raises(ExperimentError, match="network="):
        load_experiments([experiment])
