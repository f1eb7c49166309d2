"""Training on a GPU beside training on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from candy_monai.data.samples.batches import unpack
from candy_monai.experiment.settings import TrainSettings
from candy_monai.observers.base import Observer
from candy_monai.training.rehearsal import Rehearsal
from candy_monai_bundles.unet import UNetTrainer
from tests.crashes import QUIET, Crash, crashing
from tests.plans import unet_plan
from tests.toys import SmallTrainer, Squares, loaders, log_of, small_trainer

BY_PROCESSES = Path(__file__).parents[1] / "integration" / "trained_by_processes.py"
AS_NEAR = {None: 1e-3, "bf16": 5e-2, "fp16": 1e-2}


def in_order(data=None):
    """Return loaders whose batches are the same in each run."""
    data = Squares() if data is None else data
    return DataLoader(data, batch_size=2), DataLoader(data, batch_size=1)


def trained(folder, device, *, cls=SmallTrainer, epochs=2, **settings):
    """Train on the same batches from the same weights, and return the trainer."""
    torch.manual_seed(0)
    start = cls(folder / "start", *in_order(), console=False)
    weights = start.build_network((1, 16, 16)).state_dict()

    class FromTheSame(cls):
        def build_network(self, example_shape):
            network = super().build_network(example_shape)
            network.load_state_dict(weights)
            return network

    trainer = FromTheSame(folder / str(device), *in_order(), console=False, device=device)
    trainer.train(epochs, seed=0, save_preview=False, save_report=False, early_stop_tolerance=None, **settings)
    return trainer


def last_weights(folder):
    return torch.load(folder / "checkpoint_latest.pth", weights_only=True, map_location="cpu")


def losses(trainer):
    return torch.tensor(trainer.metrics()["combined loss"])


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_training_follows_that_of_a_cpu_in_single_precision(device, amp, tmp_path):
    on_cpu = trained(tmp_path / "single", "cpu")
    other = trained(tmp_path / "other", device, amp=amp)
    torch.testing.assert_close(losses(other), losses(on_cpu), rtol=AS_NEAR[amp], atol=AS_NEAR[amp])


class WaitingRefused(Observer):
    """Has PyTorch fail at whatever waits for the GPU, from the second step of an epoch to its last."""

    def __init__(self, last):
        self.last = last
        self.num_watched = 0

    def on_step_finished(self, event):
        if event.phase == "training":
            watched = 2 <= event.done < self.last
            self.num_watched += watched
            torch.cuda.set_sync_debug_mode("error" if watched else "default")


@pytest.mark.cuda
@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_no_step_waits_for_the_gpu(amp, tmp_path):
    training = DataLoader(Squares(16), batch_size=2, pin_memory=True)
    observer = WaitingRefused(last=len(training))
    trainer = SmallTrainer(tmp_path, training, None, console=False, device="cuda", observers=[observer])
    try:
        trainer.train(1, amp=amp, save_preview=False, save_report=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert observer.num_watched == 6


@pytest.mark.cuda
def test_a_step_that_waits_for_the_gpu_is_noticed(tmp_path):
    class Peeking(SmallTrainer):
        def backward(self, images, labels, toolbox):
            loss, metrics = super().backward(images, labels, toolbox)
            return float(loss), metrics

    training = DataLoader(Squares(16), batch_size=2, pin_memory=True)
    trainer = Peeking(
        tmp_path, training, None, console=False, device="cuda", observers=[WaitingRefused(last=len(training))]
    )
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            trainer.train(1, save_preview=False, save_report=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_pinned_batches_are_copied_without_waiting(tmp_path):
    trainer = small_trainer(tmp_path, device="cuda")
    (first, *_) = DataLoader(Squares(), batch_size=2, pin_memory=True)
    batch = unpack(first)
    assert batch.images.is_pinned()
    assert batch.labels.is_pinned()
    with Rehearsal(trainer).begun(TrainSettings(num_epochs=1, seed=0), batch.images[0]):
        torch.cuda.set_sync_debug_mode("error")
        try:
            images, labels = trainer._prepared(batch.images, batch.labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(images.cpu(), batch.images)
    assert torch.equal(labels.cpu(), batch.labels)


@pytest.mark.cuda
def test_a_compiled_network_trains_as_it_does_by_itself(tmp_path):
    plain, compiled = (trained(tmp_path / str(flag), "cuda", compile_model=flag) for flag in (False, True))
    assert "could not be compiled" not in log_of(compiled)
    torch.testing.assert_close(losses(compiled), losses(plain), rtol=1e-3, atol=1e-3)


def test_channels_that_are_last_in_memory_change_nothing_but_the_time(device, tmp_path):
    class Looking(SmallTrainer):
        def backward(self, images, labels, toolbox):
            assert toolbox.model[0].weight.is_contiguous(memory_format=torch.channels_last)
            assert toolbox.model[0].weight.device.type == device
            return super().backward(images, labels, toolbox)

    plain = trained(tmp_path / "plain", device, channels_last=False)
    last = trained(tmp_path / "last", device, cls=Looking, channels_last=True)
    torch.testing.assert_close(losses(last), losses(plain), rtol=1e-3, atol=1e-3)


def test_a_run_that_crashed_and_went_on_ends_as_an_uninterrupted_one(device, tmp_path):
    whole = small_trainer(tmp_path / "whole", device=device)
    whole.train(2, amp="bf16", **QUIET)
    halted = crashing(small_trainer(tmp_path / "halted", device=device), step=3)
    with pytest.raises(Crash):
        halted.train(2, amp="bf16", save_every=1, **QUIET)
    resumed = small_trainer(tmp_path / "halted", device=device)
    resumed.resume(halted.experiment_folder())
    ends = (last_weights(trainer.experiment_folder()) for trainer in (whole, resumed))
    for value, other in zip(*(end.values() for end in ends), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4)


@pytest.mark.cuda
def test_a_step_takes_the_memory_that_its_plan_says(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    plan = unet_plan(96, (32, 64, 128, 256))
    image, label = torch.zeros(1, *plan.patch_shape), torch.zeros(1, *plan.patch_shape, dtype=torch.uint8)
    trainer = UNetTrainer(tmp_path, *loaders([(image, label)] * plan.batch_size), console=False, device="cuda")
    trainer.use_plan(plan)
    rehearsal = Rehearsal(trainer)
    (batch,) = rehearsal.loaders.training
    with rehearsal.begun(TrainSettings(num_epochs=1, seed=0), image):
        rehearsal.train(batch)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        rehearsal.train(batch)
        torch.cuda.synchronize()
        assert torch.cuda.max_memory_allocated() == pytest.approx(plan.step_bytes, rel=0.15)


@pytest.mark.cuda
@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_that_are_connected_by_nccl_train_as_one_on_a_cpu(count, tmp_path):
    if count > torch.cuda.device_count():
        pytest.skip(f"PyTorch finds {torch.cuda.device_count()} CUDA device(s)")
    ends = []
    for device, processes in (("cpu", 1), ("cuda", count)):
        launched = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), str(BY_PROCESSES)]
        environment = {**os.environ, "CANDY_MONAI_TEST_DEVICE": device, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, *launched, str(tmp_path / device), str(4 // processes)]
        subprocess.run(command, env=environment, check=True, timeout=240)
        (folder,) = (tmp_path / device / "ByProcesses").glob("[!.]*")
        ends.append(last_weights(folder))
    for value, other in zip(*(end.values() for end in ends), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4)
