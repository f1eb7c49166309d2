import csv
import json
import math
import os
import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from candy_monai.errors import ExperimentError, NonFiniteLossError, SettingsError
from candy_monai.experiment.state import load_state
from candy_monai.nn.padding import Pad2d
from candy_monai.training.options import SegmentationOptions
from tests.contracts.trainer_contract import TrainerContract
from tests.toys import ScriptedTrainer, SmallTrainer, Squares, log_of, scripted_trainer, small_trainer


class TestSmallTrainer(TrainerContract):
    def make_trainer(self, folder):
        return small_trainer(folder)


@pytest.mark.slow
class TestSmallTrainerOnThreeClassesOfVolumes(TrainerContract):
    def make_trainer(self, folder):
        trainer = small_trainer(folder, Squares(2, size=(14, 16, 12), channels=2, num_classes=3))
        trainer.num_classes = 3
        return trainer


class TestSmallTrainerWithPadding(TrainerContract):
    def make_trainer(self, folder):
        class Padded(SmallTrainer):
            def build_padding_module(self):
                return Pad2d(8)

        return small_trainer(folder, Squares(size=(13, 18)), cls=Padded)


def test_the_experiment_s_id_is_its_hour_and_four_characters(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1)
    assert re.fullmatch(r"\d{8}-\d{2}-[0-9a-f]{4}", trainer.experiment_folder().name)
    assert trainer.experiment_folder() == tmp_path / "SmallTrainer" / trainer.experiment_folder().name


def test_asking_for_the_experiment_before_there_is_one_is_a_clear_error(tmp_path):
    with pytest.raises(ExperimentError, match="call train"):
        small_trainer(tmp_path).experiment_folder()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_checkpoints": 5}, {2, 4, 6, 8, 10}),
        ({"num_checkpoints": 3}, {3, 7, 10}),
        ({"num_checkpoints": 0}, set()),
        ({"num_checkpoints": 99}, set(range(1, 11))),
    ],
)
def test_exactly_the_evenly_spaced_checkpoints_asked_for_are_left(tmp_path, settings, expected):
    trainer = scripted_trainer(tmp_path, (0.0,))
    trainer.train(10, early_stop_tolerance=None, **settings)
    names = [path.name for path in trainer.experiment_folder().glob("checkpoint_*.pth")]
    assert {int(found[1]) for name in names if (found := re.fullmatch(r"checkpoint_(\d+)\.pth", name))} == expected


@pytest.mark.parametrize("tolerance", [1, 3, 5])
def test_it_stops_after_exactly_the_tolerated_epochs_without_a_better_score(tmp_path, tolerance):
    trainer = scripted_trainer(tmp_path, (0.1, 0.2, 0.3, 0.3))
    trainer.train(50, early_stop_tolerance=tolerance)
    assert len(trainer.metrics()["val score"]) == 3 + tolerance
    message = f"Early stopping triggered because the validation score has not improved for {tolerance} epochs"
    assert message in log_of(trainer)


def test_without_a_tolerance_it_runs_to_the_end(tmp_path):
    trainer = scripted_trainer(tmp_path, (0.3, 0.1))
    trainer.train(12, early_stop_tolerance=None)
    assert len(trainer.metrics()["val score"]) == 12


def test_a_nan_score_is_recorded_as_empty_and_never_becomes_the_best(tmp_path):
    trainer = scripted_trainer(tmp_path, (math.nan, 0.2, math.nan))
    trainer.train(3)
    state = load_state(trainer.experiment_folder())
    assert (state.progress.best_score, state.progress.best_epoch) == (0.2, 2)
    rows = list(csv.DictReader((trainer.experiment_folder() / "metrics.csv").open()))
    assert [row["val score"] for row in rows] == ["", "0.2", ""]


def test_a_drawn_seed_is_recorded_and_repeats_the_run(tmp_path):
    first, second = small_trainer(tmp_path / "1"), small_trainer(tmp_path / "2")
    first.train(2)
    seed = json.loads((first.experiment_folder() / "experiment.json").read_text())["settings"]["seed"]
    second.train(2, seed=seed)
    assert first.metrics()["combined loss"] == second.metrics()["combined loss"]


def test_a_seed_sets_every_generator_and_not_the_kernels(tmp_path):
    drawn = []

    class Drawing(ScriptedTrainer):
        def build_criterion(self):
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item(), os.environ["PYTHONHASHSEED"]))
            return super().build_criterion()

    for index in range(2):
        small_trainer(tmp_path / str(index), cls=Drawing).train(1, seed=42)
    assert drawn[0] == drawn[1]
    assert drawn[0][3] == "42"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_plain_loss_of_monai_s_is_accepted(tmp_path):
    from monai.losses import DiceLoss

    class Plain(SmallTrainer):
        def build_criterion(self):
            return DiceLoss(sigmoid=True)

    trainer = small_trainer(tmp_path, cls=Plain)
    trainer.train(1)
    assert math.isfinite(trainer.metrics()["val score"][0])


def test_a_bad_setting_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SettingsError, match="early_stop_tolerance"):
        small_trainer(tmp_path).train(1, early_stop_tolerance=0)
    assert list(tmp_path.iterdir()) == []


class _Exploding(SmallTrainer):
    at = 2

    def backward(self, images, labels, toolbox):
        loss, metrics = super().backward(images, labels, toolbox)
        self.at -= 1
        return (loss * math.nan if self.at == 0 else loss), metrics


def test_a_loss_that_is_not_finite_stops_the_run_with_epoch_and_step(tmp_path):
    trainer = small_trainer(tmp_path, cls=_Exploding)
    trainer.at = 3
    with pytest.raises(NonFiniteLossError, match="epoch 2 at step 1"):
        trainer.train(5)
    assert load_state(trainer.experiment_folder()).progress.epoch == 1


def test_a_step_whose_loss_is_not_finite_can_be_left_out(tmp_path):
    trainer = small_trainer(tmp_path, cls=_Exploding)
    trainer.train(2, non_finite="skip")
    assert load_state(trainer.experiment_folder()).progress.step == 3
    assert "Skipped steps: 1; the first one: the loss became nan in epoch 1 at step 2" in log_of(trainer)
    assert all(map(math.isfinite, trainer.metrics()["combined loss"]))


def test_settings_of_the_file_are_used_and_keywords_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yml").write_text("note: from the file\nnum_checkpoints: 1\nseed: 42\nsave_preview: false\n")
    trainer = scripted_trainer(tmp_path, (0.1,))
    trainer.train_with_settings(2, note="from the call")
    settings = json.loads((trainer.experiment_folder() / "experiment.json").read_text())["settings"]
    assert (settings["note"], settings["num_checkpoints"], settings["seed"]) == ("from the call", 1, 42)
    assert settings["num_epochs"] == 2


def test_an_unknown_setting_is_an_error_with_a_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yml").write_text("num_checkpoint: 3\n")
    with pytest.raises(SettingsError, match="'num_checkpoints'"):
        small_trainer(tmp_path).train_with_settings(1)


def test_the_gradient_s_norm_is_clipped_before_the_step(tmp_path):
    norms = []

    class Clipped(SmallTrainer):
        max_grad_norm = 1e-3

        def build_optimizer(self, params):
            params = list(params)
            optimizer = torch.optim.SGD(params, lr=0.1)
            optimizer.register_step_pre_hook(
                lambda *_: norms.append(float(nn.utils.get_total_norm([p.grad for p in params])))
            )
            return optimizer

    small_trainer(tmp_path, cls=Clipped).train(1)
    assert norms
    assert max(norms) <= 1e-3 * 1.001


def test_the_schedule_steps_once_a_batch_and_ends_with_the_run(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(4)
    assert trainer.metrics()["learning rate"] == pytest.approx([0.02, 0.015, 0.01, 0.005])


def test_the_state_for_recovery_loads_as_plain_values_and_holds_the_average(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(2)
    state = load_state(trainer.experiment_folder())
    assert state.trainer.ema is not None
    assert {"generators", "epoch_generators"} <= state.trainer.processes[0].keys()
    assert state.progress.step == 4


def test_one_trainer_can_run_twice_and_makes_two_experiments(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1)
    first = trainer.experiment_folder().name
    trainer.train(1)
    assert trainer.experiment_folder().name != first
    assert len(list((tmp_path / "SmallTrainer").iterdir())) == 2


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"options": SegmentationOptions(score="dice")}, (0.0, 1.0)),
        ({}, (None, 0.0)),
        ({"validate_case": lambda self, image, label, toolbox: (66.0, {}, label)}, None),
        ({"score_case": lambda self, logits, label, toolbox: (66.0, {})}, None),
        ({"score_range": (0, 100)}, (0, 100)),
    ],
)
def test_a_trainer_knows_the_range_of_its_own_scores_and_takes_another_from_the_user(tmp_path, attributes, expected):
    assert small_trainer(tmp_path, cls=type("Own", (SmallTrainer,), attributes)).score_range == expected


@pytest.mark.parametrize("wrong", [(1, 0), (0, "much"), 1.0, (0, 1, 2)])
def test_what_is_no_range_of_scores_is_refused_before_anything_is_written(tmp_path, wrong):
    trainer = small_trainer(tmp_path)
    trainer.score_range = wrong
    with pytest.raises(SettingsError, match="score_range must be"):
        trainer.train(1)
    assert not list(tmp_path.rglob("experiment.json"))
