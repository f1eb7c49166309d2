import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image

from candy_monai.errors import SettingsError
from candy_monai.lightning import SegmentationPreviews
from candy_monai.plotting.case.previews import PREVIEW_NAMES
from tests.lightning_toys import Segmenter, fitted


class Returning(Segmenter):
    """Returns its logits from ``validation_step``, as they are or by a key, and counts its calls."""

    key = None
    calls = 0

    def validation_step(self, batch, index):
        logits = self(batch[0])
        return logits if self.key is None else {"loss": logits.mean(), self.key: logits}

    def forward(self, images):
        self.calls += not self.training
        return super().forward(images)


@pytest.mark.parametrize("key", [None, "logits", "mine"])
def test_what_validation_step_returns_is_drawn_without_another_call(tmp_path, key):
    module = Returning()
    module.key = key
    callback = SegmentationPreviews(image=0, label=1, output="mine" if key == "mine" else None, folder=tmp_path / "p")
    fitted(tmp_path, [callback], num_epochs=1, module=module, num_sanity_val_steps=0)
    assert module.calls == 2  # batches
    for kind in ("worst", "median", "best"):
        for name in PREVIEW_NAMES:
            assert min(Image.open(tmp_path / "p" / "previews" / kind / name).size) > 100


def test_the_worst_the_median_and_the_best_are_in_this_order(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("candy_monai.lightning.previews._draw", lambda cases, *_: drawn.update(cases))
    fitted(tmp_path, [SegmentationPreviews(image=0, label=1, num_cases=5)], num_epochs=1)
    dice = [drawn[kind].score for kind in ("worst", "median", "best")]
    assert dice == sorted(dice)
    assert dice[0] < dice[2]
    assert {tuple(held.case.ids.shape) for held in drawn.values()} == {(1, 16, 16)}


def test_where_nothing_is_returned_the_module_is_asked_and_the_weights_stay_the_same(tmp_path):
    _, plain = fitted(tmp_path, num_epochs=2)
    _, module = fitted(tmp_path, [SegmentationPreviews(image=0, label=1, interval_s=0)], num_epochs=2)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name])


def test_drawing_is_rare_but_for_the_first_and_the_last_epoch(tmp_path, monkeypatch):
    epochs = []
    monkeypatch.setattr("candy_monai.lightning.previews._draw", lambda _cases, _folder, epoch, *_: epochs.append(epoch))
    fitted(tmp_path, [SegmentationPreviews(image=0, label=1, interval_s=1000)], num_epochs=5)
    assert epochs == [1, 5]


def test_a_drawing_that_fails_warns_and_the_training_goes_on(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no ink")

    monkeypatch.setattr("candy_monai.lightning.previews._draw", fail)
    with pytest.warns(UserWarning, match="SegmentationPreviews failed: OSError: no ink"):
        trainer, _ = fitted(tmp_path, [SegmentationPreviews(image=0, label=1)], num_epochs=2)
    assert trainer.current_epoch == 2


class OneHot(Segmenter):
    """Validates with one-hot codes in place of ids."""

    def validation_step(self, batch, index):
        batch[1] = torch.nn.functional.one_hot(batch[1], 3).movedim(-1, 1)


class InWindows(Segmenter):
    """Validates in windows, since its network only accepts images of their size, and returns no logits."""

    def validation_step(self, batch, index):
        self.log("val_acc", 0.5)

    def forward(self, images):
        if not self.training:
            raise ValueError("no window")
        return super().forward(images)


@pytest.mark.parametrize(
    ("module", "where", "message"),
    [
        (Segmenter, {"image": 7, "label": 1}, "has no image at 7"),
        (
            InWindows,
            {"image": 0, "label": 1},
            r"on whole images of shape \(8, 1, 16, 16\) \(ValueError: no window.*return",
        ),
        (OneHot, {"image": 0, "label": 1}, r"labels of shape \(8, 3, 16, 16\) do not match logits of shape \(8, 3"),
    ],
)
def test_what_a_batch_lacks_is_one_clear_error_before_training(tmp_path, module, where, message):
    started = []
    begun = LambdaCallback(on_train_start=lambda *_: started.append(1))
    with pytest.raises(SettingsError, match=message):
        fitted(tmp_path, [SegmentationPreviews(**where), begun], num_epochs=1, module=module())
    assert not started
    with pytest.warns(UserWarning, match=message):
        fitted(tmp_path, [SegmentationPreviews(**where)], num_epochs=2, module=module(), num_sanity_val_steps=0)
