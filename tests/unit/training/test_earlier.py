from __future__ import annotations

import pytest

from candy_monai.errors import ExperimentError
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai_bundles.unet import UNetTrainer
from tests.toys import SmallTrainer, small_trainer

EARLIER = ("bundle", "continue_training", "experiment_id", "learning_rate", "recover_from", "score")


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_names_are_there_and_are_not_listed(name):
    assert hasattr(SegmentationTrainer, name)
    assert name not in dir(SegmentationTrainer)


def test_a_run_is_gone_on_with_as_in_earlier_versions(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1, save_preview=False)
    with pytest.warns(DeprecationWarning, match="experiment_folder"):
        experiment_id = trainer.experiment_id()
    assert experiment_id == trainer.experiment_folder().name
    again = small_trainer(tmp_path)
    with pytest.warns(DeprecationWarning, match="resume"):
        again.recover_from(experiment_id).continue_training(2, schedule="restart")
    assert len(again.metrics()["val score"]) == 2
    with pytest.raises(ExperimentError, match="recover_from"), pytest.warns(DeprecationWarning, match="resume"):
        again.continue_training()
    with pytest.raises(ExperimentError, match="not an experiment"), pytest.warns(DeprecationWarning, match="resume"):
        again.recover_from("20260101-00-ffff")


def test_a_trainers_bundle_is_still_told():
    with pytest.warns(DeprecationWarning, match=r"UNetTrainer\.bundle"):
        assert UNetTrainer.bundle == "unet"
    with pytest.warns(DeprecationWarning, match="bundle"):
        assert SmallTrainer.bundle is None
