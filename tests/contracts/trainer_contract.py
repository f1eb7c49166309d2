"""What every Trainer keeps, ours and the bundles': inherit, and say how to make one."""

from __future__ import annotations

import json
import math

import pytest
import torch

from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.state import load_state


class TrainerContract:
    """Override `make_trainer`; the trainer should learn something within three short epochs."""

    def make_trainer(self, folder):
        raise NotImplementedError

    def _trained(self, folder, num_epochs=3, **settings):
        trainer = self.make_trainer(folder)
        trainer.train(num_epochs, **{"seed": 1, "save_preview": False, "early_stop_tolerance": None, **settings})
        return trainer

    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory, _few_threads, curves):
        """Return a trainer after three epochs, which the tests only read."""
        return self._trained(tmp_path_factory.mktemp("contract"))

    def test_it_leaves_the_files_of_an_experiment(self, trained):
        folder = trained.experiment_folder()
        assert folder.parent.name == type(trained).__name__
        names = {path.name for path in folder.iterdir()}
        assert {"experiment.json", "logs.txt", "metrics.csv", "state.pt", "progress.png"} <= names
        assert {"checkpoint_best.pth", "checkpoint_latest.pth", "checkpoint_3.pth", "val score.png"} <= names
        assert not [name for name in names if name.startswith(".")]

    def test_its_weights_change_and_its_loss_stays_finite(self, trained):
        metrics = trained.metrics()
        assert all(map(math.isfinite, metrics["combined loss"]))
        assert len(set(metrics["combined loss"])) == 3

    def test_the_metrics_file_holds_what_was_recorded(self, trained):
        loaded, recorded = load_metrics(trained.experiment_folder() / "metrics.csv"), trained.metrics()
        assert list(loaded) == list(recorded)
        assert loaded["val score"] == recorded["val score"]

    def test_checkpoints_are_plain_weights_of_the_user_s_network(self, trained):
        folder = trained.experiment_folder()
        shape = json.loads((folder / "experiment.json").read_text())["network"]["example_shape"]
        for name in ("checkpoint_best.pth", "checkpoint_latest.pth", "checkpoint_3.pth"):
            network = trained.build_network(tuple(shape))
            network.load_state_dict(torch.load(folder / name, weights_only=True))

    def test_the_best_checkpoint_reproduces_the_recorded_best_score_exactly(self, trained, tmp_path):
        folder = trained.experiment_folder()
        best = load_state(folder).checkpoints["checkpoint_best.pth"]
        weights = torch.load(folder / "checkpoint_best.pth", weights_only=True)
        again = self.make_trainer(tmp_path)
        build = again.build_network

        def build_with_weights(example_shape):
            network = build(example_shape)
            network.load_state_dict(weights)
            return network

        again.build_network = build_with_weights
        again.train_epoch = lambda toolbox: None
        again.train(1, ema=False, save_preview=False)
        assert again.metrics()["val score"] == [best.score]

    def test_a_seed_makes_two_runs_alike_to_the_bit(self, trained, tmp_path):
        first, second = (
            torch.load(trainer.experiment_folder() / "checkpoint_latest.pth", weights_only=True)
            for trainer in (trained, self._trained(tmp_path))
        )
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_it_trains_without_an_average_and_without_validation(self, tmp_path):
        trainer = self.make_trainer(tmp_path)
        trainer._validation_dataloader = None
        trainer.train(2, ema=False, seed=0)
        state = load_state(trainer.experiment_folder())
        assert state.checkpoints["checkpoint_best.pth"].epoch == 2
        assert "val score" not in trainer.metrics()

    def test_it_trains_in_mixed_precision(self, tmp_path):
        assert all(map(math.isfinite, self._trained(tmp_path, 1, amp="bf16").metrics()["val score"]))
