import torch

from candy_monai.experiment.events import EpochFinished, Preview, RunFinished
from candy_monai.observers.previews import PreviewObserver


def _epoch(epoch, preview):
    return EpochFinished(
        epoch=epoch,
        num_epochs=9,
        metrics={},
        score=None,
        best_score=0.0,
        best_epoch=0,
        early_stop_tolerance=None,
        preview=preview,
    )


def test_an_epoch_without_a_preview_does_not_hide_the_one_before():
    preview = Preview(image=torch.zeros(1, 2, 2), label=torch.zeros(1, 2, 2), output=torch.zeros(1, 2, 2))
    saved = []
    observer = PreviewObserver(saved.append, interval_s=0)
    observer.receive(_epoch(1, None))
    assert saved == []
    observer.receive(_epoch(2, preview))
    observer.receive(_epoch(3, None))
    observer.receive(RunFinished(epoch=3, best_score=0.0, best_epoch=0))
    assert saved == [preview]
