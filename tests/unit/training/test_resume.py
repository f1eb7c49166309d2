import json
import math
import os
import random
import signal

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import nn, optim
from torch.utils.data import DataLoader

from candy_monai.data.datasets.files import DatasetFromMemory
from candy_monai.data.datasets.joint import JointTransform
from candy_monai.data.sampling import SeededSampler
from candy_monai.experiment.events import RunInterrupted
from candy_monai.experiment.state import TrainerState, load_state
from candy_monai.nn.schedules import PolyLRScheduler
from candy_monai.observers.base import Observer
from candy_monai.training.loaders import Loaders
from candy_monai.training.resume import unsaved_parts
from candy_monai.training.signals import Interrupted
from candy_monai.training.toolbox import TrainerToolbox
from tests.crashes import QUIET, Crash, assert_same_run, crashing
from tests.toys import SmallTrainer, Squares, small_trainer


def test_a_run_in_half_precision_begun_without_fused_steps_goes_on_with_them(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr("candy_monai.training.segmentation._takes_fused_steps", lambda _: False)
        halted = crashing(small_trainer(tmp_path), step=3)
        with pytest.raises(Crash):
            halted.train(2, amp="fp16", save_every=1, **QUIET)
    resumed = small_trainer(tmp_path)
    resumed.resume(halted.experiment_folder())
    (group,) = load_state(halted.experiment_folder()).trainer.optimizer["param_groups"]
    assert group["fused"] is True


class WithDropout(SmallTrainer):
    """Draws random numbers in every step."""

    def build_network(self, example_shape):
        return nn.Sequential(super().build_network(example_shape), nn.Dropout(0.2))


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
    resumed.resume(halted.experiment_folder().name)
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
    resumed.resume(halted.experiment_folder().name)
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_with_torch_s_own_sampler_the_batches_before_are_replayed(tmp_path, num_workers):
    whole = _augmented(tmp_path / "whole", num_workers=num_workers, sampler=False)
    whole.train(2, **QUIET)
    halted = crashing(_augmented(tmp_path / "halted", num_workers=num_workers, sampler=False), step=5)
    with pytest.raises(Crash):
        halted.train(2, save_every=1, **QUIET)
    resumed = _augmented(tmp_path / "halted", num_workers=num_workers, sampler=False)
    resumed.resume(halted.experiment_folder().name)
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
    progress = load_state(halted.experiment_folder()).progress
    assert (progress.epoch, progress.batch) == (1, done if phase == "training" else 2)
    resumed = small_trainer(tmp_path / "halted", cls=WithDropout)
    resumed.resume(halted.experiment_folder().name)
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())


def test_no_epoch_is_trained_or_recorded_twice(tmp_path):
    halted = crashing(small_trainer(tmp_path), step=5)
    with pytest.raises(Crash):
        halted.train(4, **QUIET)
    resumed = small_trainer(tmp_path)
    resumed.resume(halted.experiment_folder().name, 4)
    rows = (resumed.experiment_folder() / "metrics.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["epoch", "1", "2", "3", "4"]


def test_a_finished_run_has_nothing_left_to_train(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(2, **QUIET)
    before = (trainer.experiment_folder() / "state.pt").read_bytes()
    again = small_trainer(tmp_path)
    again.resume(trainer.experiment_folder().name)
    assert len(again.metrics()["val score"]) == 2
    assert (trainer.experiment_folder() / "state.pt").read_bytes() == before


class _Poly(SmallTrainer):
    def build_scheduler(self, optimizer, num_epochs):
        return PolyLRScheduler(optimizer, self.options.learning_rate, num_epochs * len(self._dataloader), exponent=1.0)


def _rates(trainer):
    return trainer.metrics()["learning rate"]


def test_a_longer_unfinished_run_keeps_its_schedule_or_stretches_it(tmp_path):
    for name, rates in {"keep": [1, 2 / 3, 1 / 3, 0, 0, 0], "stretch": [1, 2 / 3, 4 / 6, 3 / 6, 2 / 6, 1 / 6]}.items():
        halted = crashing(small_trainer(tmp_path, cls=_Poly), step=5)
        with pytest.raises(Crash):
            halted.train(3, **QUIET)
        resumed = small_trainer(tmp_path, cls=_Poly)
        resumed.resume(halted.experiment_folder().name, 6, schedule=name)
        assert _rates(resumed) == pytest.approx([0.02 * rate for rate in rates])
        settings = json.loads((resumed.experiment_folder() / "experiment.json").read_text())["settings"]
        assert settings["num_epochs"] == 6


def test_an_extended_finished_run_stays_at_its_end_or_begins_a_new_schedule(tmp_path):
    for name, added in {"keep": [0, 0], "restart": [0.02, 0.01]}.items():
        trainer = small_trainer(tmp_path, cls=_Poly)
        trainer.train(2, **QUIET)
        longer = small_trainer(tmp_path, cls=_Poly)
        longer.resume(trainer.experiment_folder().name, 4, schedule=name)
        assert _rates(longer) == pytest.approx([0.02, 0.01, *added])
        assert (longer.experiment_folder() / "checkpoint_4.pth").exists()


def test_a_lengthened_run_that_crashes_again_goes_on_as_it_was_lengthened(tmp_path):
    halted = crashing(small_trainer(tmp_path, cls=_Poly), step=3)
    with pytest.raises(Crash):
        halted.train(2, **QUIET)
    again = crashing(small_trainer(tmp_path, cls=_Poly), step=1)
    with pytest.raises(Crash):
        again.resume(halted.experiment_folder().name, 4, schedule="stretch")
    last = small_trainer(tmp_path, cls=_Poly)
    last.resume(halted.experiment_folder().name)
    assert _rates(last) == pytest.approx([0.02, 0.015, 0.01, 0.005])


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
    again = small_trainer(tmp_path / "crashed", cls=Counting)
    again.resume(crashed.experiment_folder().name)
    assert_same_run(whole.experiment_folder(), again.experiment_folder())
    assert again.seen == 6


def test_patience_and_the_best_score_are_taken_up_where_they_were(tmp_path):
    class Scripted(SmallTrainer):
        scores = (0.5, 0.4, 0.3, 0.2, 0.1)

        def validate_case(self, image, label, toolbox):
            return self.scores[self._current().progress.epoch], {}, torch.zeros_like(image)

    halted = crashing(small_trainer(tmp_path, cls=Scripted), step=7)
    with pytest.raises(Crash):
        halted.train(9, **{**QUIET, "early_stop_tolerance": 3})
    resumed = small_trainer(tmp_path, cls=Scripted)
    resumed.resume(halted.experiment_folder().name)
    assert resumed.metrics()["val score"] == [0.5, 0.4, 0.3, 0.2]
    assert load_state(resumed.experiment_folder()).progress.best_epoch == 1
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
    resumed.resume(halted.experiment_folder().name)
    assert load_state(resumed.experiment_folder()).trainer.scaler["scale"] > 1
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())


class DrawingTransform:
    """Makes images brighter by a generator that is handed in."""

    def __init__(self, generator):
        self.generator = generator

    def __call__(self, image, label):
        draw = getattr(self.generator, "random", None) or self.generator.random_sample
        return image + 0.1 * float(draw()), label


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
    drawing_trainer(tmp_path / "crashed").resume(crashed.experiment_folder().name)
    assert_same_run(whole.experiment_folder(), crashed.experiment_folder())


def unsaved(attributes, *, network=None, extra=None):
    network = network or nn.Linear(1, 1)
    optimizer = optim.SGD(network.parameters())
    toolbox = TrainerToolbox(network, optimizer, optim.lr_scheduler.ConstantLR(optimizer), nn.MSELoss())
    state = TrainerState(optimizer=optimizer.state_dict(), extra=extra or {})
    return unsaved_parts(attributes, toolbox, Loaders(DataLoader([0]), None), state)


def test_what_has_a_state_and_is_not_saved_is_named():
    teacher, critic = nn.Linear(2, 1), nn.Linear(2, 1)
    parts = {
        "teacher": teacher,
        "optimizers": {"critic": [optim.Adam(critic.parameters())]},
        "schedule": optim.lr_scheduler.ConstantLR(optim.SGD(critic.parameters())),
        "loss": nn.MSELoss(),  # nothing to save
        "names": ["a", "b"],
        "kind": nn.Linear,
    }
    assert unsaved(parts) == [
        "self.teacher (Linear)",
        "self.optimizers['critic'][0] (Adam)",
        "self.schedule (ConstantLR)",
    ]


def test_what_the_trainer_adds_counts_as_saved_however_it_is_kept():
    teacher, critic = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = optim.SGD(critic.parameters(), momentum=0.9)
    copied = {name: value.clone() for name, value in critic.state_dict().items()}
    extra = {"weights": list(teacher.parameters()), "critic": copied, "optimizer": optimizer.state_dict()}
    assert not unsaved({"a": teacher, "b": critic, "c": optimizer}, extra=extra)


def test_a_part_of_what_is_saved_anyway_is_not_named():
    network = nn.Sequential(nn.Linear(2, 1))
    assert not unsaved({"head": network[0]}, network=network)


def test_a_list_that_holds_itself_ends():
    endless = []
    endless.append(endless)
    assert unsaved({"a": endless, "b": torch.zeros(1)}) == []
