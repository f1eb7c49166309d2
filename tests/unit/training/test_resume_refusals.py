import json
import os
import shutil
import signal

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import ExperimentError, SettingsError
from candy_monai.experiment.state import load_state
from candy_monai.inference.inferers import WindowInferer
from candy_monai.training.options import SegmentationOptions
from tests.crashes import QUIET, Crash, crashing
from tests.toys import SmallTrainer, Squares, small_trainer


def test_a_second_ctrl_c_does_not_wait_and_leaves_a_run_that_can_go_on(tmp_path):
    class Impatient(SmallTrainer):
        def backward(self, images, labels, toolbox):
            if self._current().progress.epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().backward(images, labels, toolbox)

    trainer = small_trainer(tmp_path, cls=Impatient)
    with pytest.raises(KeyboardInterrupt, match="second Ctrl-C"):
        trainer.train(3, **QUIET)
    assert load_state(trainer.experiment_folder()).progress.epoch == 1


@pytest.mark.parametrize(
    ("finished", "arguments", "words"),
    [
        (False, {"num_epochs": 6}, r"unfinished run, schedule='keep' or 'stretch' \(--schedule keep\|stretch\)"),
        (True, {"num_epochs": 6}, r"finished run, schedule='keep' or 'restart' \(--schedule keep\|restart\)"),
        (True, {"num_epochs": 6, "schedule": "stretch"}, "got 'stretch'"),
        (False, {"num_epochs": 2}, r"num_epochs \(--epochs\) must not be smaller, got 2"),
        (False, {"schedule": "keep"}, r"\(--schedule\) needs a num_epochs \(--epochs\) other than"),
    ],
)
def test_what_becomes_of_the_schedule_must_be_said_and_fit(tmp_path, finished, arguments, words):
    trainer = small_trainer(tmp_path) if finished else crashing(small_trainer(tmp_path), step=3)
    if finished:
        trainer.train(3, **QUIET)
    else:
        with pytest.raises(Crash):
            trainer.train(3, **QUIET)
    with pytest.raises(SettingsError, match=words):
        small_trainer(tmp_path).resume(trainer.experiment_folder().name, **arguments)


@pytest.mark.parametrize(
    ("inferer", "before"),
    [
        (
            WindowInferer((8, 8), 4, 0.25),
            {"kind": "windows", "window_shape": [8, 8], "overlap": 0.25, "batch_size": 4},
        ),
        (WindowInferer((8, 8)), {"kind": "windows", "window_shape": [8, 8], "overlap": 0.5, "batch_size": None}),
        (SimpleInferer(), "custom"),
    ],
    ids=["windows", "windows by default", "custom"],
)
def test_a_run_whose_inferer_was_described_in_earlier_words_goes_on(tmp_path, inferer, before):
    trainer = small_trainer(tmp_path)
    trainer.inferer = inferer
    trainer.train(1, save_preview=False)
    folder = trainer.experiment_folder()
    description = json.loads((folder / "experiment.json").read_text())
    (folder / "experiment.json").write_text(json.dumps({**description, "inferer": before}))
    again = small_trainer(tmp_path)
    again.inferer = inferer
    again.resume(folder, 2, schedule="keep")
    assert len(again.metrics()["val score"]) == 2


def test_another_dataset_or_network_is_refused_with_the_difference_and_can_be_forced(tmp_path):
    halted = crashing(small_trainer(tmp_path), step=3)
    with pytest.raises(Crash):
        halted.train(3, **QUIET)
    more = small_trainer(tmp_path, Squares(6))
    with pytest.raises(ExperimentError, match=r"data\.training\.samples: 4 -> 6"):
        more.resume(halted.experiment_folder().name)
    more = small_trainer(tmp_path, Squares(6))
    more.resume(halted.experiment_folder().name, force=True)
    assert len(more.metrics()["val score"]) == 3


class Smoother(SmallTrainer):
    """Has weights of the same shapes, and computes something else by them."""

    def build_network(self, example_shape):
        first, _, second = super().build_network(example_shape)
        return nn.Sequential(first, nn.SiLU(), second)


class Sgd(SmallTrainer):
    """Steps in another way."""

    def build_optimizer(self, params):
        return torch.optim.SGD(params, lr=self.options.learning_rate)


class Faster(SmallTrainer):
    """Learns at another rate."""

    options = SegmentationOptions(learning_rate=0.5)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Smoother, r"parts\.network: .*layers"),
        (Sgd, r"parts\.optimizer\.kind: 'AdamW' -> 'SGD'"),
        (Faster, r"parts\.optimizer\.lr: \[0\.02\] -> \[0\.5\]"),
    ],
)
def test_another_network_of_the_same_shapes_or_another_optimizer_is_refused(tmp_path, other, words):
    halted = crashing(small_trainer(tmp_path), step=3)
    with pytest.raises(Crash):
        halted.train(3, **QUIET)
    same_name = type("SmallTrainer", (other,), {})
    with pytest.raises(ExperimentError, match=words):
        small_trainer(tmp_path, cls=same_name).resume(halted.experiment_folder().name)


def test_files_of_the_same_names_with_other_content_are_refused(tmp_path):
    def trainer():
        return small_trainer(tmp_path / "out", NNUNetDataset(phantom), cls=ThreeClasses)

    phantom = write_phantom_dataset(tmp_path / "data", num_cases=2, num_dims=2, shape=(16, 16))
    halted = crashing(trainer(), step=2)
    with pytest.raises(Crash):
        halted.train(2, **QUIET)
    shutil.rmtree(phantom)
    write_phantom_dataset(phantom, num_cases=2, num_dims=2, shape=(16, 16), seed=1)
    with pytest.raises(ExperimentError, match=r"parts\.training data: "):
        trainer().resume(halted.experiment_folder().name)


def test_a_run_of_a_version_that_did_not_describe_its_parts_goes_on(tmp_path):
    halted = crashing(small_trainer(tmp_path), step=3)
    with pytest.raises(Crash):
        halted.train(2, **QUIET)
    path = halted.experiment_folder() / "experiment.json"
    description = json.loads(path.read_text())
    del description["parts"]
    path.write_text(json.dumps(description))
    small_trainer(tmp_path).resume(halted.experiment_folder().name)


def test_a_run_can_be_taken_up_after_a_trainer_has_failed_to(tmp_path):
    class Failing(SmallTrainer):
        fails = True

        def get_extra_state(self):
            return {"n": 1}

        def set_extra_state(self, state):
            if self.fails:
                raise KeyError("m")

    crashed = crashing(small_trainer(tmp_path, cls=Failing), step=3)
    with pytest.raises(Crash):
        crashed.train(3, **QUIET)
    again = small_trainer(tmp_path, cls=Failing)
    with pytest.raises(KeyError, match="m") as failure:
        again.resume(crashed.experiment_folder().name)
    assert failure.tb is not None  # a notebook keeps it, and the run's objects with it
    again.fails = False
    again.resume(crashed.experiment_folder().name)
    assert again.metrics()["epoch duration"][2] > 0


def test_weights_that_do_not_fit_the_network_are_refused_even_by_force(tmp_path):
    class Wider(SmallTrainer):
        def build_network(self, example_shape):
            return nn.Conv2d(1, 1, 5, padding=2)

    Wider.__name__ = "SmallTrainer"
    halted = crashing(small_trainer(tmp_path), step=3)
    with pytest.raises(Crash):
        halted.train(3, **QUIET)
    wider = small_trainer(tmp_path, cls=Wider)
    with pytest.raises(ExperimentError, match="does not fit this trainer"):
        wider.resume(halted.experiment_folder().name, force=True)


def _broken(folder, *path, value):
    """Write a state in which one value, found by names, is another or gone."""
    inner = state = load_state(folder).to_dict()
    for name in path[:-1]:
        inner = inner[name]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    torch.save(state, folder / "state.pt")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("settings",), None),
        (("settings", "exec"), "print()"),
        (("settings", "num_epochs"), "many"),
        (("progress",), None),
        (("progress", "epoch"), "../../1"),
        (("history",), [1, 2]),
        (("checkpoints",), {"/tmp/checkpoint_best.pth": {}}),
        (("checkpoints",), {"checkpoint_best.pth": {"epoch": 1}}),
        (("weights",), {"raw": 3}),
        (("optimizer",), {"state": 1}),
        (("processes",), []),
        (("processes", 0, "generators"), {"exec": 1}),
    ],
)
def test_a_state_that_makes_no_sense_is_refused_by_the_folder_s_name(tmp_path, path, value):
    halted = crashing(small_trainer(tmp_path), step=3)
    with pytest.raises(Crash):
        halted.train(3, **QUIET)
    folder = halted.experiment_folder()
    _broken(folder, *path, value=value)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExperimentError, match=folder.name):
        small_trainer(tmp_path).resume(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_still_being_trained_is_refused(tmp_path):
    class Nosy(SmallTrainer):
        def validate_case(self, *arguments):
            other = small_trainer(tmp_path, cls=SmallTrainer)
            with pytest.raises(ExperimentError, match="being trained at this moment"):
                other.resume(self.experiment_folder(), force=True)
            raise Crash

    with pytest.raises(Crash):
        small_trainer(tmp_path, cls=Nosy).train(2, **QUIET)


def test_to_go_on_with_a_run_that_does_not_exist_is_a_clear_error(tmp_path):
    with pytest.raises(ExperimentError, match="not an experiment folder"):
        small_trainer(tmp_path).resume("20260101-00-ffff")


class ThreeClasses(SmallTrainer):
    """For phantoms."""

    num_classes = 3
