import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tests.toys import SmallTrainer, Squares, loaders, log_of


class _MeanSquares(SmallTrainer):
    """A loss that is a mean over samples, and a network without batch statistics."""

    def build_criterion(self):
        return nn.MSELoss()

    def backward(self, images, labels, toolbox):
        loss = toolbox.criterion(toolbox.model(images), labels.float())
        loss.backward()
        return loss.detach(), {}

    def validate_case(self, image, label, toolbox):
        return 0.0, {}, toolbox.model(image[None])[0]


def _trained(folder, *, batch_size, cls=_MeanSquares, **settings):
    torch.manual_seed(0)
    training, validation = loaders(Squares(8), batch_size=batch_size)
    trainer = cls(folder, training, validation, console=False)
    trainer.train(2, seed=4, save_preview=False, early_stop_tolerance=None, **settings)
    return trainer, torch.load(trainer.experiment_folder() / "checkpoint_latest.pth", weights_only=True)


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_several_batches_step_as_one_batch_of_their_size_would(tmp_path, amp):
    whole, one = _trained(tmp_path / "1", batch_size=4, amp=amp)
    parts, several = _trained(tmp_path / "2", batch_size=2, accumulate=2, amp=amp)
    tolerance = 1e-6 if amp is None else 1e-2  # Adam's first steps have the size of the rate whatever the gradient
    assert all(torch.allclose(one[name], several[name], atol=tolerance) for name in one)
    assert parts._current().progress.step == whole._current().progress.step == 4


class _Penalized(_MeanSquares):
    """With SGD, whose steps tell by how much a gradient is wrong, and two backward passes."""

    def build_optimizer(self, params):
        return torch.optim.SGD(params, lr=0.1)

    def backward(self, images, labels, toolbox):
        (0.1 * sum(parameter.square().sum() for parameter in toolbox.model.parameters())).backward()
        return super().backward(images, labels, toolbox)


def test_a_penalty_on_the_weights_counts_once_a_step_however_many_batches_share_it(tmp_path):
    _, one = _trained(tmp_path / "1", cls=_Penalized, batch_size=4)
    _, several = _trained(tmp_path / "2", cls=_Penalized, batch_size=2, accumulate=2)
    assert all(torch.allclose(one[name], several[name], atol=1e-6) for name in one)


def test_the_schedule_ends_with_the_run_however_many_batches_share_a_step(tmp_path):
    trainer, _ = _trained(tmp_path, batch_size=2, accumulate=3)  # 4 batches: steps after 3 and 4
    assert trainer.metrics()["learning rate"] == pytest.approx([0.02, 0.01])
    assert trainer._current().progress.step == 4


def test_batches_at_the_end_of_a_stream_that_make_no_whole_step_are_named(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from Squares(8)

    class Constant(_MeanSquares):
        def build_scheduler(self, optimizer, num_epochs):
            return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    _, validation = loaders()
    trainer = Constant(tmp_path, DataLoader(Stream(), batch_size=2), validation, console=False)
    trainer.train(1, accumulate=3, save_preview=False)  # 4 batches
    assert trainer._current().progress.step == 1
    log = (trainer.experiment_folder() / "logs.txt").read_text()
    assert "are skipped if they are fewer than accumulate=3, here 1" in log


def test_a_step_with_one_bad_batch_in_it_is_left_out_whole(tmp_path):
    class Sick(_MeanSquares):
        calls = 0

        def backward(self, images, labels, toolbox):
            self.calls += 1
            loss, metrics = super().backward(images, labels, toolbox)
            return loss * float("nan") if self.calls == 2 else loss, metrics

    training, validation = loaders(Squares(8))
    trainer = Sick(tmp_path, training, validation, console=False)
    trainer.train(1, accumulate=2, non_finite="skip", save_preview=False)
    assert trainer._current().progress.step == 1
    weights = torch.load(trainer.experiment_folder() / "checkpoint_latest.pth", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


class _Restarting(_MeanSquares):
    def backward(self, images, labels, toolbox):
        toolbox.optimizer.zero_grad()
        return super().backward(images, labels, toolbox)


@pytest.mark.parametrize(
    ("cls", "accumulate", "warns"),
    [(_Restarting, 2, True), (_Restarting, 1, False), (_Penalized, 2, False), (_MeanSquares, 3, False)],
)
def test_a_backward_that_clears_the_gradients_of_earlier_batches_gets_a_warning(tmp_path, cls, accumulate, warns):
    trainer, _ = _trained(tmp_path, cls=cls, batch_size=2, accumulate=accumulate)
    assert log_of(trainer).count("leave out zero_grad() in _Restarting.backward") == warns
