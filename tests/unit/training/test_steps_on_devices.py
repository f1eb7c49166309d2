"""Training steps on a device that is not the CPU, by PyTorch's meta device: it refuses to be read from.

What would make a step wait for a GPU (a number read back, a test of a tensor, indices of what is not zero, a copy that
blocks) is an error there, and so are tensors on different devices.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from candy_monai.data.planning.plan import Region
from candy_monai.experiment.history import History
from candy_monai.experiment.settings import TrainSettings
from candy_monai.live_bytes import LiveBytes
from candy_monai.nn.padding import Pad2d
from candy_monai.training.non_finite import LossWatch
from candy_monai.training.options import SegmentationOptions
from candy_monai.training.rehearsal import Rehearsal
from candy_monai.training.sliding import SlidingSegmentationTrainer
from candy_monai_bundles.unet import UNetTrainer
from tests.plans import unet_plan
from tests.toys import SmallTrainer, Squares, loaders, small_trainer


class BlockingCopiesRefused(TorchDispatchMode):
    """Fails at a copy to another device that does not say ``non_blocking``."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            moves = kwargs.get("device", args[0].device) != args[0].device
            assert not moves or kwargs.get("non_blocking"), f"a copy to {kwargs['device']} blocks"
        if func is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            assert (len(args) > 2 and args[2]) or kwargs.get("non_blocking"), f"a copy to {args[0].device} blocks"
        return func(*args, **kwargs)


class InRegions(SmallTrainer):
    num_classes = 2
    options = SegmentationOptions(
        regions=(Region(name="whole", ids=(1, 2), paints=1), Region(name="core", ids=(2,), paints=2))
    )


class Ignoring(SmallTrainer):
    num_classes = 3
    ignore_index = 2


class Padded(SmallTrainer):
    def build_padding_module(self):
        return Pad2d(12)


class InWindows(SlidingSegmentationTrainer, SmallTrainer):
    def get_window_shape(self):
        return (8, 8)


class DeeplySupervised(UNetTrainer):
    num_dims, num_classes, filters = 2, 3, (4, 8, 8)
    options = SegmentationOptions(deep_supervision=True)


class Peeking(SmallTrainer):
    def backward(self, images, labels, toolbox):
        loss, metrics = super().backward(images, labels, toolbox)
        return loss.item(), metrics


class Indexing(SmallTrainer):
    def backward(self, images, labels, toolbox):
        toolbox.model(images)[labels > 0].mean().backward()
        return 0.0, {}


class CopyingAtLength(SmallTrainer):
    def backward(self, images, labels, toolbox):
        weight = torch.tensor(0.5).to(images.device)
        loss, metrics = super().backward(images, labels, toolbox)
        return loss * weight, metrics


def steps_on_meta(folder, trainer_class, monkeypatch, **settings):
    """Train one epoch of two batches on the meta device, without what a run writes."""
    monkeypatch.setattr(LossWatch, "settle", lambda self: None)  # reads all losses at once, after the last step
    data = Squares(num_classes=1 if trainer_class.num_classes == 1 else 3)
    trainer = small_trainer(folder, data, cls=trainer_class, device="meta")
    rehearsal = Rehearsal(trainer)
    image, _ = rehearsal.loaders.training.dataset[0]
    with rehearsal.begun(TrainSettings(num_epochs=1, seed=0, **settings), image) as toolbox:
        run, history = trainer._run, History()
        run._rehearses = False
        run.experiment = SimpleNamespace(
            progress=SimpleNamespace(epoch=0, batch=0, step=0),
            history=history,
            settings=run.settings,
            left_s=math.inf,
            step_done=lambda num_batches: None,
        )
        with BlockingCopiesRefused():
            trainer.train_epoch(toolbox)
        return run.experiment.progress.batch, history


@pytest.mark.parametrize("trainer_class", [SmallTrainer, InRegions, Ignoring, Padded, InWindows, DeeplySupervised])
def test_no_step_waits_for_its_device(trainer_class, tmp_path, monkeypatch):
    num_batches, history = steps_on_meta(tmp_path, trainer_class, monkeypatch)
    assert num_batches == len(history._pending["combined loss"]) == 2


@pytest.mark.parametrize("settings", [{"accumulate": 2}, {"ema": False}, {"freeze": "0"}, {"channels_last": True}])
def test_no_step_waits_for_its_device_whatever_the_settings(settings, tmp_path, monkeypatch):
    num_batches, _ = steps_on_meta(tmp_path, SmallTrainer, monkeypatch, **settings)
    assert num_batches == 2


@pytest.mark.parametrize("trainer_class", [Peeking, Indexing, CopyingAtLength])
def test_a_step_that_waits_is_noticed(trainer_class, tmp_path, monkeypatch):
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError), match=r"meta|blocks"):
        steps_on_meta(tmp_path, trainer_class, monkeypatch)


@pytest.mark.parametrize(("device", "num_classes"), [("meta", 3), ("meta", 40), ("cpu", 3)])
def test_the_tensors_of_a_step_take_what_its_plan_says(device, num_classes, tmp_path):
    plan = unet_plan(32, (8, 16, 32), num_classes=num_classes)
    image, label = torch.zeros(1, *plan.patch_shape), torch.zeros(1, *plan.patch_shape, dtype=torch.uint8)
    trainer = UNetTrainer(tmp_path, *loaders([(image, label)] * plan.batch_size), console=False, device=device)
    trainer.use_plan(plan)
    rehearsal = Rehearsal(trainer)
    (batch,) = rehearsal.loaders.training
    with LiveBytes(device) as live, rehearsal.begun(TrainSettings(num_epochs=1, seed=0), image):
        for _ in range(2):
            rehearsal.train(batch)
    assert live.most == pytest.approx(plan.step_bytes, rel=0.05)
