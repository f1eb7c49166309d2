"""A run without a trainer: parts made by hand, and steps that a test takes itself."""

import json
import signal
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader

from candy_monai.attachment import Surroundings, attach, attachment_of
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.description import describe_trainer
from candy_monai.experiment.events import EpochFinished, RunFinished, RunInterrupted, RunStarted
from candy_monai.experiment.settings import TrainSettings
from candy_monai.observers.base import Observer
from candy_monai.training.gradients import ScaledBackward
from candy_monai.training.loaders import Loaders
from candy_monai.training.resume import SavedRun
from candy_monai.training.run import Callbacks, TrainingRun
from candy_monai.training.signals import Interrupted
from candy_monai.training.toolbox import Equipment, TrainerToolbox
from tests.toys import Squares, loaders

CPU = torch.device("cpu")
CALLBACKS = Callbacks(
    name="a trainer", build_scheduler=lambda optimizer, _num_epochs: optim.lr_scheduler.ConstantLR(optimizer, 1.0)
)


class _Watching(Observer):
    def __init__(self):
        self.events = []

    def receive(self, event):
        self.events.append(event)


def _equipment():
    network = nn.Conv2d(1, 1, 3, padding=1)
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    attach(network, surroundings := Surroundings(num_dims=2))
    return Equipment(
        toolbox=TrainerToolbox(
            model=network,
            optimizer=optimizer,
            scheduler=optim.lr_scheduler.ConstantLR(optimizer, 1.0),
            criterion=nn.BCEWithLogitsLoss(),
        ),
        example_shape=(1, 16, 16),
        device=CPU,
        padding=None,
        surroundings=surroundings,
        scaled_backward=ScaledBackward(torch.amp.grad_scaler.GradScaler("cpu", enabled=False)),
        image_type=torch.float32,
        surrounded=(weakref.ref(network),),
    )


def _run(settings=None, *, callbacks=CALLBACKS, **arguments):
    settings = {"num_epochs": 2, "ema": False, "save_preview": False, "seed": 3, **(settings or {})}
    training, validation = loaders()
    return TrainingRun(TrainSettings(**settings), Loaders(training, validation), callbacks, device=CPU, **arguments)


def _resumed(saved, callbacks=CALLBACKS):
    return TrainingRun(saved.settings, Loaders(*loaders()), callbacks, device=CPU)


def _epoch(run, *, stop_after=None):
    toolbox = run.toolbox
    run.begin_epoch()
    for images, labels in run.batches():
        toolbox.optimizer.zero_grad()
        loss = toolbox.criterion(toolbox.model(images), labels.float())
        loss.backward()
        run.record("combined loss", loss.detach())
        run.current().progress.batch += 1
        if run.current().progress.batch == stop_after:
            run.stop.ask(signal.SIGTERM.name)
        agreed = run.agree(1, usable=True)
        toolbox.optimizer.step()
        run.current().progress.step += 1
        run.finish_step(agreed)
    run.finish_training()
    run.finish_epoch(0.5 if run.validation_is_due() else None)


def _trained(folder, run, *, stop_after=None, saved=None, **arguments):
    with run.lasting():
        run.equip(_equipment())
        run.begin(describe_trainer("a trainer", {"site": "north"}), parent=folder, saved=saved, **arguments)
        while not run.is_complete:
            _epoch(run, stop_after=stop_after)
        run.conclude()
    return run


def test_a_run_leaves_its_folder_and_tells_those_who_watch_in_order(tmp_path):
    watching = _Watching()
    run = _trained(tmp_path, _run(), observers=lambda: [watching])
    folder = run.current().folder
    assert json.loads((folder / "experiment.json").read_text())["site"] == "north"
    assert (folder / "checkpoint_best.pth").is_file()
    kinds = [type(event) for event in watching.events if isinstance(event, RunStarted | EpochFinished | RunFinished)]
    assert kinds == [RunStarted, EpochFinished, EpochFinished, RunFinished]


def test_it_gives_the_network_back_and_keeps_no_part_of_the_toolbox(tmp_path):
    run, seen = _run(), []
    with run.lasting():
        run.equip(_equipment())
        seen.append(run.toolbox.model)
        assert attachment_of(seen[0]) is not None
    assert run.is_over
    assert attachment_of(seen[0]) is None
    with pytest.raises(ExperimentError, match="not being trained at this moment"):
        _ = run.toolbox


def test_what_is_logged_before_there_is_a_folder_is_written_when_there_is(tmp_path):
    run = _run(messages=[("before the run", False)])
    run.reporter.log("while its parts are built")
    log = (_trained(tmp_path, run).current().folder / "logs.txt").read_text()
    assert log.count("before the run") == log.count("while its parts are built") == 1


def test_a_run_that_is_asked_to_stop_is_saved_and_goes_on_to_the_same_weights(tmp_path):
    whole = _trained(tmp_path / "whole", _run())
    watching = _Watching()
    halted = _run()
    with pytest.raises(Interrupted):
        _trained(tmp_path / "halted", halted, stop_after=1, observers=lambda: [watching])
    assert isinstance(watching.events[-1], RunInterrupted)
    saved = SavedRun.load(halted.current().folder)
    resumed = _trained(tmp_path, _resumed(saved), saved=saved)
    names = ("checkpoint_latest.pth", "checkpoint_best.pth")
    for name in names:
        first, second = (torch.load(run.current().folder / name, weights_only=True) for run in (whole, resumed))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_else_is_saved_comes_back_to_who_gave_it(tmp_path):
    halted, taken = _run(callbacks=replace(CALLBACKS, get_extra_state=lambda: {"step": 7})), []
    with pytest.raises(Interrupted):
        _trained(tmp_path, halted, stop_after=1)
    saved = SavedRun.load(halted.current().folder)
    callbacks = replace(CALLBACKS, get_extra_state=lambda: {"step": 7}, set_extra_state=taken.append)
    _trained(tmp_path, _resumed(saved, callbacks), saved=saved)
    assert taken == [{"step": 7}]


def test_the_same_message_is_said_once(tmp_path):
    run = _run()
    for _ in range(2):
        run.reporter.log_once("once")
    assert (_trained(tmp_path, run).current().folder / "logs.txt").read_text().count("once") == 1


def test_a_rehearsal_records_nothing():
    _run(rehearses=True).record("loss", 1.0)
    with pytest.raises(ExperimentError, match="no experiment yet"):
        _run().record("loss", 1.0)


def test_an_empty_loader_is_refused_before_anything_is_made():
    empty = Loaders(DataLoader(Squares(1), batch_size=2, drop_last=True))
    with pytest.raises(BadInputError, match="yields no batch"):
        TrainingRun(TrainSettings(num_epochs=1), empty, CALLBACKS, device=CPU)
