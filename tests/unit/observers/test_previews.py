import torch

from candy_monai.experiment.events import Preview, RunFinished
from candy_monai.observers.previews import PreviewObserver
from tests.events import epoch_finished


def test_an_epoch_without_a_preview_does_not_hide_the_one_before():
    preview = Preview(image=torch.zeros(1, 2, 2), label=torch.zeros(1, 2, 2), output=torch.zeros(1, 2, 2))
    saved = []
    observer = PreviewObserver(saved.append, interval_s=0)
    observer.receive(epoch_finished(1))
    assert saved == []
    observer.receive(epoch_finished(2, preview=preview))
    observer.receive(epoch_finished(3))
    observer.receive(RunFinished(epoch=3, best_score=0.0, best_epoch=0))
    assert saved == [preview]
