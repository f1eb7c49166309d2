import copy
import inspect
import re

import pytest

from candy_monai.errors import ExperimentError
from candy_monai.training.hooks import Hooks
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.training.sliding import SlidingSegmentationTrainer, SlidingTrainer
from candy_monai.training.trainer import Trainer
from tests.toys import small_trainer

MEMBERS = [name for name in dir(SegmentationTrainer) if not name.startswith("_")]


def test_a_trainer_for_segmentation_has_few_public_names():
    assert len(MEMBERS) < 40


@pytest.mark.parametrize("cls", [Trainer, SegmentationTrainer, SlidingTrainer, SlidingSegmentationTrainer])
def test_every_public_method_says_when_to_override_it_or_that_it_is_called(cls):
    methods = {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}
    silent = [name for name, method in methods.items() if callable(method) and "verrid" not in inspect.getdoc(method)]
    assert not silent


def test_every_public_attribute_says_when_to_override_it_or_who_sets_it():
    docs = "\n".join(inspect.getdoc(cls) for cls in (SegmentationTrainer, Hooks))
    said = dict(re.findall(r"^    (\w+): ((?:.*\n?)(?:        .*\n?)*)", docs, re.MULTILINE))
    attributes = [name for name in MEMBERS if not callable(getattr(SegmentationTrainer, name))]
    assert {"options", "num_classes", "score_range"} <= set(attributes)
    assert [name for name in attributes if "verrid" not in said.get(name, "")] == []


def test_a_deep_copy_of_a_trained_trainer_has_no_run_and_can_be_trained(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1, save_preview=False, save_report=False)
    copied = copy.deepcopy(trainer)
    with pytest.raises(ExperimentError, match="no experiment yet"):
        copied.experiment_folder()
    copied.train(1, save_preview=False, save_report=False)
    assert copied.experiment_folder() != trainer.experiment_folder()
