import math

import pytest
import torch
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from torch import nn

from candy_monai.inference.predictor import Predictor
from candy_monai.metrics.overlap import mean_dice
from candy_monai.training.options import SegmentationOptions
from candy_monai.training.sliding import SlidingSegmentationTrainer
from tests.contracts.trainer_contract import TrainerContract
from tests.plans import small_plan
from tests.toys import SmallTrainer, Squares, small_trainer


class Small(SlidingSegmentationTrainer, SmallTrainer):
    sliding_window_shape = (8, 8)


class TestTheContract(TrainerContract):
    def make_trainer(self, folder):
        return small_trainer(folder, cls=Small)


@pytest.mark.slow
class TestTheContractWithVolumesAndClasses(TrainerContract):
    def make_trainer(self, folder):
        trainer = small_trainer(folder, Squares(2, size=(16, 12, 13), num_classes=3), cls=Small)
        trainer.num_classes, trainer.sliding_window_shape = 3, (8, 8, 8)
        return trainer


def test_the_default_window_is_a_square_of_128():
    assert SlidingSegmentationTrainer.sliding_window_shape == (128, 128)


def test_the_score_is_that_of_the_whole_image_and_not_a_mean_over_windows(tmp_path):
    trainer = small_trainer(tmp_path, Squares(1, size=(20, 20)), cls=Small)
    trainer.options = SegmentationOptions(score="dice")
    trainer.train(3, ema=False)
    folder = trainer.experiment_folder()
    image, label = Squares(1, size=(20, 20))[0]
    predictor = Predictor(folder, network=trainer.build_network((1, 8, 8)), checkpoint="latest")
    dice = mean_dice((predictor.logits(image) > 0).long(), label, 2)
    assert trainer.metrics()["val score"][-1] == pytest.approx(float(dice), abs=1e-6)


def test_numbers_that_a_subclass_measures_in_windows_are_recorded_beside_those_of_the_whole(tmp_path):
    class Measuring(Small):
        def validate_case_windowed(self, images, labels, toolbox, metadata):
            score, _, logits = super().validate_case_windowed(images, labels, toolbox, metadata)
            assert math.isnan(score)
            return score, {"brightness": images.mean()}, logits

    trainer = small_trainer(tmp_path, cls=Measuring)
    trainer.train(1)
    assert {"val brightness", "val dice", "val combined loss"} <= trainer.metrics().keys()


def test_networks_with_several_outputs_train_and_are_put_together(tmp_path):
    class TwoOutputs(Small):
        options = SegmentationOptions(deep_supervision=True)

        def build_network(self, example_shape):
            base = super().build_network(example_shape)

            class Wrapped(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.base = base

                def forward(self, images):
                    full = self.base(images)
                    return [full, nn.functional.avg_pool2d(full, 2)]

            return Wrapped()

    trainer = small_trainer(tmp_path, cls=TwoOutputs)
    trainer.train(1)
    assert math.isfinite(trainer.metrics()["val score"][0])


def test_whole_images_are_scored_as_an_inferer_runs_them_where_there_is_one(tmp_path):
    trainer = small_trainer(tmp_path, Squares(2, size=(20, 20)), cls=Small)
    trainer.inferer = SlidingWindowInferer((12, 12), overlap=0.25)
    outputs = []
    validate_case = trainer.validate_case

    def looking(image, label, toolbox):
        result = validate_case(image, label, toolbox)
        outputs.append((image, result[2]))
        return result

    trainer.validate_case = looking
    trainer.train(1, save_preview=False)
    predictor = Predictor(trainer.experiment_folder(), network=trainer.build_network((1, 8, 8)))
    for image, logits in outputs:
        expected = sliding_window_inference(image[None], (12, 12), 1, predictor.model, overlap=0.25)[0]
        assert torch.equal(logits, expected)
        assert torch.equal(predictor.logits(image), logits)


def test_small_plan_s_patch_is_the_window(tmp_path):
    trainer = small_trainer(tmp_path, cls=Small)
    plan = small_plan()
    trainer.use_plan(plan)
    assert trainer.get_window_shape() == plan.patch_shape
    assert trainer.inferer is None


def test_voxels_beyond_a_small_image_are_ignored_where_there_is_an_ignore_label(tmp_path):
    trainer = small_trainer(tmp_path, Squares(1, size=(6, 6)), cls=Small)
    trainer.ignore_index = 255
    labels = []
    trainer.backward_windowed = lambda images, ids, toolbox, metadata: (
        labels.append(ids) or SlidingSegmentationTrainer.backward_windowed(trainer, images, ids, toolbox, metadata)
    )
    trainer.train(1)
    assert (labels[0] == 255).sum() == 8 * 8 - 6 * 6
    assert torch.isfinite(torch.tensor(trainer.metrics()["combined loss"])).all()
