"""A preview that is still being drawn when the next run begins."""

import threading

import pytest

from candy_monai.data.planning.plan import Region
from candy_monai.training.options import SegmentationOptions
from tests.toys import SmallTrainer, small_trainer


class _DrawsLate(SmallTrainer):
    """Draws the first run's preview once the second run is trained, and notes which run it is drawn for."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.drawn_for = []
        self.has_begun, self.may_draw, self.has_drawn = (threading.Event() for _ in range(3))

    def save_preview(self, image, label, output, *, quality=0.75):
        is_first = not self.drawn_for
        self.drawn_for.append(None)
        self.has_begun.set()
        if is_first:
            assert self.may_draw.wait(200)
        self.log("drawing", on_screen=False)
        self.drawn_for[0 if is_first else 1] = self.experiment_folder()
        super().save_preview(image, label, output, quality=quality)
        if is_first:
            self.has_drawn.set()

    def train_epoch(self, toolbox):
        super().train_epoch(toolbox)
        if self.drawn_for:  # in the second run
            self.may_draw.set()
            assert self.has_drawn.wait(200)


@pytest.fixture
def pictures(monkeypatch):
    """Return what is asked to be drawn, in place of drawing it: folder and names of the classes."""
    asked = []
    monkeypatch.setattr("candy_monai.training.reporting.RENDERING_PATIENCE_S", 0.0)
    monkeypatch.setattr(
        "candy_monai.plotting.case.previews.save_preview_files",
        lambda folder, *_, class_names, **__: asked.append((folder, class_names)),
    )
    return asked


def test_a_preview_that_is_drawn_while_the_next_run_is_trained_is_of_its_own_run(tmp_path, pictures):
    trainer = small_trainer(tmp_path, cls=_DrawsLate)
    trainer.options = SegmentationOptions(regions=(Region(name="before", ids=(1,), paints=1),))
    trainer.train(1, save_report=False)  # which nobody waits for here
    first = trainer.experiment_folder()
    assert trainer.has_begun.wait(200)
    trainer.options = SegmentationOptions(regions=(Region(name="after", ids=(1,), paints=1),))
    trainer.train(1, save_preview=False, save_report=False)
    assert first != trainer.experiment_folder()
    assert trainer.drawn_for[0] == first
    assert pictures[0] == (first, {1: "before"})
    assert (first / "logs.txt").read_text(encoding="utf-8").count("drawing") == 1


def test_a_preview_that_a_user_draws_is_of_the_trainer_as_it_is(tmp_path, pictures):
    trainer = small_trainer(tmp_path)
    trainer.train(1, save_preview=False, save_report=False)
    trainer.options = SegmentationOptions(regions=(Region(name="now", ids=(1,), paints=1),))
    image, label = trainer._dataloader.dataset[0]
    trainer.save_preview(image, label, image)
    assert pictures == [(trainer.experiment_folder(), {1: "now"})]
