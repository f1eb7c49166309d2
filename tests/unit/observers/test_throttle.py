from candy_monai.experiment.events import RunFinished, RunInterrupted
from candy_monai.observers.throttle import ThrottledObserver
from tests.events import epoch_finished


class _Drawing(ThrottledObserver):
    def __init__(self, clock):
        super().__init__(interval_s=30, clock=clock)
        self.drawn = []

    def draw(self, event):
        self.drawn.append(event.epoch)


def _after(times, last_event):
    now = [0.0]
    observer = _Drawing(lambda: now[0])
    for epoch, now[0] in enumerate(times, start=1):
        observer.receive(epoch_finished(epoch))
    if last_event is not None:
        observer.receive(last_event)
    return observer.drawn


def test_an_epoch_is_drawn_only_after_the_interval():
    assert _after([0, 10, 29, 31, 40, 62], None) == [4, 6]


def test_the_last_epoch_is_always_drawn_and_never_twice():
    finished = RunFinished(epoch=3, best_score=0.0, best_epoch=0)
    assert _after([31, 32, 33], finished) == [1, 3]
    assert _after([31], finished) == [1]


def test_what_takes_long_is_drawn_less_often():
    now = [0.0]

    class Slow(_Drawing):
        def draw(self, event):
            super().draw(event)
            now[0] += 2.0

    observer = Slow(lambda: now[0])
    for epoch, at in enumerate([30, 61, 129, 131], start=1):
        now[0] = at
        observer.receive(epoch_finished(epoch))
    assert observer.drawn == [1, 4]


def test_an_interrupted_run_draws_its_last_epoch_too():
    assert _after([31, 32], RunInterrupted(KeyboardInterrupt())) == [1, 2]
