import csv
import json
import math
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import nn
from torch.utils.data import DataLoader

from candy_monai.data.datasets import DatasetFromMemory
from candy_monai.data.nnunet import NNUNetDataset
from candy_monai.data.phantom import write_phantom_dataset
from candy_monai.data.sampling import SeededSampler
from candy_monai.data.transforms import JointTransform
from candy_monai.errors import ExperimentError, SettingsError
from candy_monai.experiment.events import RunInterrupted
from candy_monai.experiment.state import load_state
from candy_monai.inference.inferers import WindowInferer
from candy_monai.nn.schedules import PolyLRScheduler
from candy_monai.observers.base import Observer
from candy_monai.training.interruption import Interrupted
from tests.toys import SmallTrainer, Squares, small_trainer

pytestmark = pytest.mark.usefixtures("no_pictures")

QUIET = {"early_stop_tolerance": None, "save_preview": False, "seed": 5}


class Crash(Exception):
    pass


class WithDropout(SmallTrainer):
    """Draws random numbers in every step."""

    def build_network(self, example_shape):
        return nn.Sequential(super().build_network(example_shape), nn.Dropout(0.2))


def crashing(trainer, *, step=None, case=None):
    """Let a trainer raise before a step, or in a validation, both counted over all epochs from 1."""
    counts = {"step": 0, "case": 0}
    train_batch, validate_case = trainer.train_batch, trainer.validate_case

    def train(batch, toolbox):
        counts["step"] += 1
        if counts["step"] == step:
            raise Crash
        return train_batch(batch, toolbox)

    def validate(*arguments):
        counts["case"] += 1
        if counts["case"] == case:
            raise Crash
        return validate_case(*arguments)

    trainer.train_batch, trainer.validate_case = train, validate
    return trainer


def assert_same_run(first, second):
    """Compare every file of weights, the state and the metrics of two folders, but for what the clock decides."""
    names = [sorted(path.name for path in folder.glob("checkpoint*")) for folder in (first, second)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert_same(comparable(load_state(first)), comparable(load_state(second)))
    assert _rows(first) == _rows(second)


def _rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    duration = rows[0].index("epoch duration")
    return [row[:duration] + row[duration + 1 :] for row in rows]


def comparable(state):
    for row in state["history"]["rows"]:
        row.pop("epoch duration")
    state["progress"].pop("total_s")
    state["settings"].pop("save_every")
    return state


def assert_same(first, second, where="state"):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for name in first:
            assert_same(first[name], second[name], f"{where}.{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    else:
        assert first == second or (first != first and second != second), where


@pytest.mark.parametrize(
    ("crash", "save_every", "ema"),
    [
        ({"step": 1}, None, True),
        ({"step": 2}, 1, False),
        ({"step": 3}, 1, True),
        ({"step": 6}, None, False),
        ({"case": 2}, 1, True),
        ({"case": 7}, None, True),
        ({"case": 7}, 1, False),
    ],
)
def test_a_run_that_crashed_and_went_on_is_the_uninterrupted_run_to_the_bit(tmp_path, crash, save_every, ema):
    whole = small_trainer(tmp_path / "whole", cls=WithDropout)
    whole.train(4, ema=ema, **QUIET)
    halted = crashing(small_trainer(tmp_path / "halted", cls=WithDropout), **crash)
    with pytest.raises(Crash):
        halted.train(4, ema=ema, save_every=save_every, **QUIET)
    resumed = small_trainer(tmp_path / "halted", cls=WithDropout)
    resumed.recover_from(halted.experiment_id()).continue_training()
    assert resumed.experiment_folder() == halted.experiment_folder()
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())


def _augmented(folder, *, num_workers, sampler=True):
    transform = JointTransform(
        Compose([RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image", prob=1.0)])
    )
    squares = Squares(6)
    data = DatasetFromMemory(*zip(*squares.samples, strict=True), transform=transform)
    order = {"sampler": SeededSampler(data, seed=3)} if sampler else {"shuffle": True}
    training = DataLoader(data, batch_size=2, num_workers=num_workers, **order)
    return WithDropout(folder, training, DataLoader(Squares(2)), console=False)


@pytest.mark.parametrize(("first_workers", "then_workers"), [(0, 0), (0, 2), (2, 0)])
def test_under_our_sampler_the_number_of_workers_changes_nothing(tmp_path, first_workers, then_workers):
    whole = _augmented(tmp_path / "whole", num_workers=0)
    whole.train(2, **QUIET)
    halted = crashing(_augmented(tmp_path / "halted", num_workers=first_workers), step=5)
    with pytest.raises(Crash):
        halted.train(2, save_every=1, **QUIET)
    resumed = _augmented(tmp_path / "halted", num_workers=then_workers)
    resumed.recover_from(halted.experiment_id()).continue_training()
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_with_torch_s_own_sampler_the_batches_before_are_replayed(tmp_path, num_workers):
    whole = _augmented(tmp_path / "whole", num_workers=num_workers, sampler=False)
    whole.train(2, **QUIET)
    halted = crashing(_augmented(tmp_path / "halted", num_workers=num_workers, sampler=False), step=5)
    with pytest.raises(Crash):
        halted.train(2, save_every=1, **QUIET)
    resumed = _augmented(tmp_path / "halted", num_workers=num_workers, sampler=False)
    resumed.recover_from(halted.experiment_id()).continue_training()
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())


class _Asking(Observer):
    """Sends this process a signal at a given event."""

    def __init__(self, number, phase, done):
        self.number, self.phase, self.done, self.events = number, phase, done, []

    def on_step_finished(self, event):
        if (event.phase, event.done, event.epoch) == (self.phase, self.done, 2):
            os.kill(os.getpid(), self.number)

    def on_run_interrupted(self, event):
        self.events.append(event)


@pytest.mark.parametrize(
    ("number", "phase", "done"),
    [
        (signal.SIGTERM, "training", 1),
        (signal.SIGINT, "training", 2),
        (signal.SIGTERM, "validation", 2),
        (signal.SIGINT, "validation", 4),
    ],
)
def test_a_signal_finishes_the_step_saves_tells_the_observers_and_the_run_can_go_on(tmp_path, number, phase, done):
    whole = small_trainer(tmp_path / "whole", cls=WithDropout)
    whole.train(3, **QUIET)
    asking = _Asking(number, phase, done)
    halted = small_trainer(tmp_path / "halted", cls=WithDropout, observers=(asking,))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=signal.Signals(number).name):
        halted.train(3, **QUIET)
    assert signal.getsignal(number) == before
    assert [type(event) for event in asking.events] == [RunInterrupted]
    progress = load_state(halted.experiment_folder())["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, done if phase == "training" else 2)
    resumed = small_trainer(tmp_path / "halted", cls=WithDropout)
    resumed.recover_from(halted.experiment_id()).continue_training()
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())


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
    assert load_state(trainer.experiment_folder())["progress"]["epoch"] == 1


def test_no_epoch_is_trained_or_recorded_twice(tmp_path):
    halted = crashing(small_trainer(tmp_path), step=5)
    with pytest.raises(Crash):
        halted.train(4, **QUIET)
    resumed = small_trainer(tmp_path)
    resumed.recover_from(halted.experiment_id()).continue_training(4)
    rows = (resumed.experiment_folder() / "metrics.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["epoch", "1", "2", "3", "4"]


def test_a_finished_run_has_nothing_left_to_train(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(2, **QUIET)
    before = (trainer.experiment_folder() / "state.pt").read_bytes()
    again = small_trainer(tmp_path)
    again.recover_from(trainer.experiment_id()).continue_training()
    assert len(again.metrics()["val score"]) == 2
    assert (trainer.experiment_folder() / "state.pt").read_bytes() == before


class _Poly(SmallTrainer):
    def build_scheduler(self, optimizer, num_epochs):
        return PolyLRScheduler(optimizer, self.learning_rate, num_epochs * len(self._dataloader), exponent=1.0)


def _rates(trainer):
    return trainer.metrics()["learning rate"]


def test_a_longer_unfinished_run_keeps_its_schedule_or_stretches_it(tmp_path):
    for name, rates in {"keep": [1, 2 / 3, 1 / 3, 0, 0, 0], "stretch": [1, 2 / 3, 4 / 6, 3 / 6, 2 / 6, 1 / 6]}.items():
        halted = crashing(small_trainer(tmp_path, cls=_Poly), step=5)
        with pytest.raises(Crash):
            halted.train(3, **QUIET)
        resumed = small_trainer(tmp_path, cls=_Poly)
        resumed.recover_from(halted.experiment_id()).continue_training(6, schedule=name)
        assert _rates(resumed) == pytest.approx([0.02 * rate for rate in rates])
        settings = json.loads((resumed.experiment_folder() / "experiment.json").read_text())["settings"]
        assert settings["num_epochs"] == 6


def test_an_extended_finished_run_stays_at_its_end_or_begins_a_new_schedule(tmp_path):
    for name, added in {"keep": [0, 0], "restart": [0.02, 0.01]}.items():
        trainer = small_trainer(tmp_path, cls=_Poly)
        trainer.train(2, **QUIET)
        longer = small_trainer(tmp_path, cls=_Poly)
        longer.recover_from(trainer.experiment_id()).continue_training(4, schedule=name)
        assert _rates(longer) == pytest.approx([0.02, 0.01, *added])
        assert (longer.experiment_folder() / "checkpoint_4.pth").exists()


def test_a_lengthened_run_that_crashes_again_goes_on_as_it_was_lengthened(tmp_path):
    halted = crashing(small_trainer(tmp_path, cls=_Poly), step=3)
    with pytest.raises(Crash):
        halted.train(2, **QUIET)
    again = crashing(small_trainer(tmp_path, cls=_Poly), step=1)
    with pytest.raises(Crash):
        again.recover_from(halted.experiment_id()).continue_training(4, schedule="stretch")
    last = small_trainer(tmp_path, cls=_Poly)
    last.recover_from(halted.experiment_id()).continue_training()
    assert _rates(last) == pytest.approx([0.02, 0.015, 0.01, 0.005])


@pytest.mark.parametrize(
    ("finished", "arguments", "words"),
    [
        (False, {"num_epochs": 6}, "unfinished run, schedule='keep' or 'stretch'"),
        (True, {"num_epochs": 6}, "finished run, schedule='keep' or 'restart'"),
        (True, {"num_epochs": 6, "schedule": "stretch"}, "got 'stretch'"),
        (False, {"num_epochs": 2}, "can be continued to more, not 2"),
        (False, {"schedule": "keep"}, "another number of epochs"),
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
        small_trainer(tmp_path).recover_from(trainer.experiment_id()).continue_training(**arguments)


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
    again.recover_from(folder).continue_training(2, schedule="keep")
    assert len(again.metrics()["val score"]) == 2


def test_another_dataset_or_network_is_refused_with_the_difference_and_can_be_forced(tmp_path):
    halted = crashing(small_trainer(tmp_path), step=3)
    with pytest.raises(Crash):
        halted.train(3, **QUIET)
    more = small_trainer(tmp_path, Squares(6)).recover_from(halted.experiment_id())
    with pytest.raises(ExperimentError, match=r"data\.training\.samples: 4 -> 6"):
        more.continue_training()
    more = small_trainer(tmp_path, Squares(6)).recover_from(halted.experiment_id())
    more.continue_training(force=True)
    assert len(more.metrics()["val score"]) == 3


class Smoother(SmallTrainer):
    """Has weights of the same shapes, and computes something else by them."""

    def build_network(self, example_shape):
        first, _, second = super().build_network(example_shape)
        return nn.Sequential(first, nn.SiLU(), second)


class Sgd(SmallTrainer):
    """Steps in another way."""

    def build_optimizer(self, params):
        return torch.optim.SGD(params, lr=self.learning_rate)


class Faster(SmallTrainer):
    """Learns at another rate."""

    learning_rate = 0.5


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
        small_trainer(tmp_path, cls=same_name).recover_from(halted.experiment_id()).continue_training()


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
        trainer().recover_from(halted.experiment_id()).continue_training()


def test_a_run_of_a_version_that_did_not_describe_its_parts_goes_on(tmp_path):
    halted = crashing(small_trainer(tmp_path), step=3)
    with pytest.raises(Crash):
        halted.train(2, **QUIET)
    path = halted.experiment_folder() / "experiment.json"
    description = json.loads(path.read_text())
    del description["parts"]
    path.write_text(json.dumps(description))
    small_trainer(tmp_path).recover_from(halted.experiment_id()).continue_training()


def test_what_a_trainer_adds_to_the_state_is_handed_back(tmp_path):
    class Counting(SmallTrainer):
        weight, seen = 1.0, 0

        def backward(self, images, labels, toolbox):
            self.seen += 1
            self.weight *= 0.9
            return super().backward(images * self.weight, labels, toolbox)

        def get_extra_state(self):
            return {"weight": torch.tensor(self.weight, dtype=torch.float64), "seen": self.seen}

        def set_extra_state(self, state):
            self.weight, self.seen = float(state["weight"]), state["seen"]

    whole = small_trainer(tmp_path / "whole", cls=Counting)
    whole.train(3, save_every=1, **QUIET)
    crashed = crashing(small_trainer(tmp_path / "crashed", cls=Counting), step=4)
    with pytest.raises(Crash):
        crashed.train(3, save_every=1, **QUIET)
    again = small_trainer(tmp_path / "crashed", cls=Counting).recover_from(crashed.experiment_id())
    again.continue_training()
    assert_same_run(whole.experiment_folder(), again.experiment_folder())
    assert again.seen == 6


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
        again.recover_from(crashed.experiment_id()).continue_training()
    assert failure.tb is not None  # a notebook keeps it, and the run's objects with it
    again.fails = False
    again.recover_from(crashed.experiment_id()).continue_training()
    assert again.metrics()["epoch duration"][2] > 0


def test_weights_that_do_not_fit_the_network_are_refused_even_by_force(tmp_path):
    class Wider(SmallTrainer):
        def build_network(self, example_shape):
            return nn.Conv2d(1, 1, 5, padding=2)

    Wider.__name__ = "SmallTrainer"
    halted = crashing(small_trainer(tmp_path), step=3)
    with pytest.raises(Crash):
        halted.train(3, **QUIET)
    wider = small_trainer(tmp_path, cls=Wider).recover_from(halted.experiment_id())
    with pytest.raises(ExperimentError, match="does not fit this trainer"):
        wider.continue_training(force=True)


def _broken(folder, *path, value):
    """Write a state in which one value, found by names, is another or gone."""
    state = load_state(folder)
    inner = state
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
        small_trainer(tmp_path).recover_from(folder).continue_training()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_still_being_trained_is_refused(tmp_path):
    class Nosy(SmallTrainer):
        def validate_case(self, *arguments):
            other = small_trainer(tmp_path, cls=SmallTrainer)
            with pytest.raises(ExperimentError, match="being trained at this moment"):
                other.recover_from(self.experiment_folder()).continue_training(force=True)
            raise Crash

    with pytest.raises(Crash):
        small_trainer(tmp_path, cls=Nosy).train(2, **QUIET)


def test_to_go_on_without_saying_with_what_is_a_clear_error(tmp_path):
    with pytest.raises(ExperimentError, match="recover_from"):
        small_trainer(tmp_path).continue_training()
    with pytest.raises(ExperimentError, match="not an experiment folder"):
        small_trainer(tmp_path).recover_from("20260101-00-ffff")


def test_patience_and_the_best_score_are_taken_up_where_they_were(tmp_path):
    class Scripted(SmallTrainer):
        scores = (0.5, 0.4, 0.3, 0.2, 0.1)

        def validate_case(self, image, label, toolbox):
            return self.scores[self._current().progress.epoch], {}, torch.zeros_like(image)

    halted = crashing(small_trainer(tmp_path, cls=Scripted), step=7)
    with pytest.raises(Crash):
        halted.train(9, **{**QUIET, "early_stop_tolerance": 3})
    resumed = small_trainer(tmp_path, cls=Scripted)
    resumed.recover_from(halted.experiment_id()).continue_training()
    assert resumed.metrics()["val score"] == [0.5, 0.4, 0.3, 0.2]
    assert load_state(resumed.experiment_folder())["progress"]["best_epoch"] == 1
    assert math.isfinite(resumed.metrics()["combined loss"][-1])


def test_a_run_in_half_precision_with_accumulated_batches_goes_on_to_the_bit(tmp_path):
    settings = {"amp": "fp16", "accumulate": 2, **QUIET}
    whole = small_trainer(tmp_path / "whole", Squares(6), cls=WithDropout)
    whole.train(3, **settings)
    assert all(map(math.isfinite, whole.metrics()["combined loss"]))
    halted = crashing(small_trainer(tmp_path / "halted", Squares(6), cls=WithDropout), step=6)
    with pytest.raises(Crash):
        halted.train(3, save_every=1, **settings)
    resumed = small_trainer(tmp_path / "halted", Squares(6), cls=WithDropout)
    resumed.recover_from(halted.experiment_id()).continue_training()
    assert load_state(resumed.experiment_folder())["scaler"]["scale"] > 1
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())


class DrawingTransform:
    """Makes images brighter by a generator that is handed in."""

    def __init__(self, generator):
        self.generator = generator

    def __call__(self, image, label):
        draw = getattr(self.generator, "random", None) or self.generator.random_sample
        return image + 0.1 * float(draw()), label


class ThreeClasses(SmallTrainer):
    """For phantoms."""

    num_classes = 3


class WithItsOwnGenerators(SmallTrainer):
    """Draws from generators that nobody else knows."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.rng = np.random.default_rng(0)
        self.others = {"python": random.Random(0), "torch": [torch.Generator().manual_seed(0)]}

    def backward(self, images, labels, toolbox):
        (generator,) = self.others["torch"]
        noise = self.rng.standard_normal() + self.others["python"].gauss(0, 1) + torch.randn((), generator=generator)
        return super().backward(images + 0.1 * float(noise), labels, toolbox)


def drawing_trainer(folder):
    """Return a trainer whose loader, dataset and itself hold generators, none of them the global ones."""
    squares = Squares(count=6)
    data = DatasetFromMemory(
        [image for image, _ in squares.samples],
        [label for _, label in squares.samples],
        transform=DrawingTransform(np.random.RandomState(0)),
    )
    loader = DataLoader(data, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0))
    return WithItsOwnGenerators(folder, loader, DataLoader(data), console=False)


@pytest.mark.parametrize("crash", [{"step": 5}, {"case": 9}], ids=["in a step", "in a validation"])
@pytest.mark.parametrize("save_every", [None, 1])
def test_generators_of_the_user_s_own_go_on_where_they_were(tmp_path, crash, save_every):
    whole = drawing_trainer(tmp_path / "whole")
    whole.train(3, save_every=save_every, **QUIET)
    crashed = crashing(drawing_trainer(tmp_path / "crashed"), **crash)
    with pytest.raises(Crash):
        crashed.train(3, save_every=save_every, **QUIET)
    drawing_trainer(tmp_path / "crashed").recover_from(crashed.experiment_id()).continue_training()
    assert_same_run(whole.experiment_folder(), crashed.experiment_folder())
