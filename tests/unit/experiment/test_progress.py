import math

from candy_monai.experiment.progress import Progress


def test_a_nan_or_infinite_score_never_becomes_the_best():
    progress = Progress()
    assert not progress.offer(math.nan, epoch=1)
    assert not progress.offer(math.inf, epoch=2)
    assert progress.offer(-0.5, epoch=3)
    assert (progress.best_score, progress.best_epoch) == (-0.5, 3)


def test_an_equal_score_is_no_improvement():
    progress = Progress()
    assert progress.offer(0.5, epoch=1)
    assert not progress.offer(0.5, epoch=2)


def test_a_saved_progress_loads_with_whole_numbers_whole():
    progress = Progress(epoch=3, step=30, best_score=0.5, best_epoch=2)
    loaded = Progress()
    loaded.load_state_dict(progress.state_dict())
    assert loaded == progress
