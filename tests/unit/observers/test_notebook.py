import nbformat
import pytest

from candy_monai.experiment.events import MessageLogged, StepFinished
from candy_monai.observers.notebook import NotebookObserver
from tests.events import epoch_finished, run_started
from tests.notebooks import run_notebook


class Cell:
    """What stands below a cell, and how often it was replaced."""

    def __init__(self):
        self.shown = []
        self.now = 0.0

    def observer(self):
        return NotebookObserver(self.shown.append, clock=lambda: self.now)

    @property
    def text(self):
        return self.shown[-1]["text/plain"]


def _epoch(number):
    metrics = {"loss": [1.0] * number}
    return epoch_finished(number, num_epochs=100, metrics=metrics, best_score=0.5, best_epoch=1)


def test_a_hundred_epochs_are_as_long_as_one():
    cell = Cell()
    observer = cell.observer()
    lengths = []
    for number in range(1, 101):
        for line in ("a forecast", "its time"):
            observer.receive(MessageLogged(line))
        observer.receive(_epoch(number))
        lengths.append(len(cell.text.splitlines()))
    assert "Epoch 100 of 100" in cell.text
    assert "Epoch 99" not in cell.text
    assert "... 189 more in logs.txt" in cell.text
    assert max(lengths) == lengths[-1] == lengths[6]


def test_the_bar_is_gone_when_the_run_is_over():
    cell = Cell()
    observer = cell.observer()
    observer.receive(run_started())
    cell.now = 1.0
    observer.receive(StepFinished(1, "training", 3, 10))
    assert "Epoch 1 training" in cell.text
    assert "3/10" in cell.text
    observer.close()
    assert "3/10" not in cell.text


def test_the_bar_shows_the_speed_and_the_end_of_the_run():
    cell = Cell()
    observer = cell.observer()
    durations = {"epoch duration": [10.0, 10.0]}
    observer.receive(epoch_finished(2, num_epochs=5, metrics=durations, best_score=0.5, best_epoch=1))
    for step in range(1, 4):
        cell.now += 1.0
        observer.receive(StepFinished(3, "training", step, 10, 8))
    bar, outlook = cell.text.splitlines()[-2:]
    assert bar.startswith("Epoch 3 of 5 training")
    assert bar.endswith("3/10 8 samples/s, 7 s left")
    assert outlook == "the run ends in 27 s, best 0.5000"


_CELL = """
from candy_monai.experiment.events import MessageLogged, StepFinished
from candy_monai.observers.screen import screen_observer
from tests.events import epoch_finished, run_started
observer = screen_observer()
for event in (run_started(), epoch_finished(1, num_epochs=2, metrics={"loss": [0.25]}), MessageLogged("Interrupted")):
    observer.receive(event)
observer.close()
"""


@pytest.mark.slow
def test_a_saved_notebook_keeps_the_last_state_once(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(_CELL)]), tmp_path / "run.ipynb")
    (cell,) = run_notebook(tmp_path / "run.ipynb", tmp_path).cells
    (output,) = cell.outputs
    assert output.output_type == "display_data"
    text = output.data["text/plain"]
    assert text.count("Epoch 1 of 2") == text.count("0.2500") - 2 == text.count("Interrupted") == 1
    assert "<pre" in output.data["text/html"]


def test_steps_are_shown_twice_a_second_only():
    cell = Cell()
    observer = cell.observer()
    for step in range(1000):
        cell.now += 0.001
        observer.receive(StepFinished(1, "training", step, 1000))
    assert len(cell.shown) == 2


def test_a_message_a_step_neither_slows_the_steps_down_nor_hides_the_bar():
    cell = Cell()
    observer = cell.observer()
    for step in range(1000):
        cell.now += 0.001
        observer.receive(MessageLogged(f"in step {step}"))
        observer.receive(StepFinished(1, "training", step, 1000))
    assert len(cell.shown) <= 3
    assert "Epoch 1 training" in cell.text
    observer.close()
    assert "in step 999" in cell.text


def test_a_stream_without_a_length_has_a_bar_too():
    cell = Cell()
    cell.now = 1.0
    cell.observer().receive(StepFinished(1, "training", 7, None))
    assert "7/?" in cell.text


def test_a_message_with_brackets_is_shown_verbatim_and_markup_of_the_page_is_escaped():
    cell = Cell()
    cell.observer().receive(MessageLogged("[bold] 100% [/nonsense] <script>"))
    assert "[bold] 100% [/nonsense] <script>" in cell.text
    assert "&lt;script&gt;" in cell.shown[-1]["text/html"]


def test_a_long_message_keeps_its_words_on_one_line():
    cell = Cell()
    cell.observer().receive(MessageLogged("word " * 60))
    assert len(cell.text.splitlines()) == 1
