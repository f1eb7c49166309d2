import io
from pathlib import Path

import pytest
from rich.console import Console

from candy_monai.cli.progress import PredictionProgress
from candy_monai.inference.buffers import MemoryEstimate
from candy_monai.inference.quality import CaseQuality


@pytest.fixture
def printed():
    """Return a listener and what it has printed so far, on no terminal."""
    text = io.StringIO()
    return PredictionProgress(Console(file=text, width=200, highlight=False)), text


def test_what_the_largest_case_takes_is_said_before_prediction_starts(printed):
    progress, text = printed
    needed = MemoryEstimate(preparing=0, image=10**9, network=0, buffer=2 * 10**9, labels=0)
    progress.on_started(3, "b [0]", needed)
    assert text.getvalue() == (
        "the largest of 3 cases, b [0], takes about 3.0 GB of memory, "
        "or 1.0 GB with its scores in temporary files (--memory)\n"
    )


def test_scores_too_small_to_save_memory_are_not_spoken_of(printed):
    progress, text = printed
    progress.on_started(1, "a", MemoryEstimate(preparing=0, image=67_000_000, network=0, buffer=1000, labels=0))
    assert text.getvalue() == "the case takes about 67 MB of memory\n"


def test_each_case_is_told_and_a_failed_one_is_marked(printed):
    progress, text = printed
    with progress:
        progress.on_started(2, None, None)
        progress.on_windows("a", 20, 100)
        progress.on_case(1, 2, "a", None)
        progress.on_case(2, 2, "b", ValueError("damaged"))
    assert text.getvalue().splitlines() == ["[1/2] a", "[2/2] b failed"]


def test_what_an_earlier_prediction_left_is_named(printed):
    progress, text = printed
    progress.on_left_over(Path("out/a.nii.gz"), "a could not be predicted this time")
    assert text.getvalue() == "out/a.nii.gz is from an earlier prediction: a could not be predicted this time\n"


def test_every_warning_of_a_case_is_a_line(printed):
    progress, text = printed
    shares = {"expected_precision": 0.8, "expected_recall": 0.8, "usual_size": 1.0}
    warnings = ("its Dice is low [1]", "it is unlike")
    progress.on_quality("a", CaseQuality(estimated_dice=0.3, warnings=warnings, **shares))
    progress.on_quality("b", CaseQuality(estimated_dice=0.9, **shares))
    assert text.getvalue() == "Warning: a: its Dice is low [1]\nWarning: a: it is unlike\n"
