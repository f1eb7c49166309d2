from __future__ import annotations

from pathlib import Path

import pytest

from candy_monai.cli.predict import _evaluation_of, as_recorded, command_for, parse_channels, parse_memory
from candy_monai.errors import SettingsError
from candy_monai.experiment.description import DatasetRecord, ExperimentDescription
from candy_monai.recipes.options import TrainOptions


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("500M", 500_000_000), ("1g", 10**9), ("1.5 GB", 1_500_000_000), ("2T", 2 * 10**12)]
)
def test_a_size_of_memory_has_a_unit_of_powers_of_1000(text, num_bytes):
    assert parse_memory(text) == num_bytes


@pytest.mark.parametrize("text", ["1", "G", "0G", "-1G", "1.2.3G", ".G", "1 X", "many", "9" * 400 + "G"])
def test_what_is_no_size_of_memory_is_refused(text):
    with pytest.raises(SettingsError, match="expected a size of memory such as 500M"):
        parse_memory(text)


@pytest.mark.parametrize(("text", "channels"), [("1,2", (1, 2)), (" 3 ", (3,)), ("2, 0", (2, 0)), ("None", ())])
def test_channels_are_numbers_or_none(text, channels):
    assert parse_channels(text) == channels


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1.5", "1-2"])
def test_other_channels_are_refused(text):
    with pytest.raises(SettingsError, match="expected channel numbers such as 1,2, or none"):
        parse_channels(text)


def test_the_command_that_predicts_names_the_test_cases_where_there_are_any(tmp_path):
    run, options = tmp_path / "run", TrainOptions(trainer="mine.py:Mine", trust=True)
    assert command_for(run, TrainOptions(), dataset=tmp_path)[2:] == [str(run), "IMAGES", "predictions"]
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "a_0000.nii.gz").touch()
    words = [str(run), str(tmp_path / "imagesTs"), "predictions", "--trainer", "mine.py:Mine", "--trust"]
    assert command_for(run, options, dataset=tmp_path)[2:] == words
    assert command_for(Path("./-out"), options, dataset=None)[2] == "./-out"  # not an option


def test_after_resume_the_command_that_predicts_names_what_the_run_knows_of_itself(tmp_path):
    record = DatasetRecord(folder=str(tmp_path))
    own = ExperimentDescription(trainer="Mine", dataset=record)
    options, dataset = as_recorded(own, TrainOptions(), None)
    assert (options.trainer, dataset) == ("FILE.py:Mine", tmp_path)
    options, dataset = as_recorded(own, TrainOptions(trainer="mine.py:Mine"), tmp_path / "moved")
    assert (options.trainer, dataset) == ("mine.py:Mine", tmp_path / "moved")
    assert as_recorded(ExperimentDescription(bundle="unet"), TrainOptions(), None) == (TrainOptions(), None)


def test_predictions_of_images_whose_references_lie_beside_them_can_be_evaluated(tmp_path):
    images, references = tmp_path / "imagesTs", tmp_path / "labelsTs"
    assert _evaluation_of(tmp_path / "out", images) == []
    references.mkdir()
    assert _evaluation_of(tmp_path / "out", images) == []
    (references / "a.nii.gz").touch()
    words = ["candy-monai", "evaluate", str(tmp_path / "out"), str(references)]
    assert _evaluation_of(tmp_path / "out", images) == words
    assert _evaluation_of(tmp_path / "out", references) == []
