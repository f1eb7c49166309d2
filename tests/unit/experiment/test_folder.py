import json
import re
from datetime import datetime

import pytest

from candy_monai.errors import ExperimentError
from candy_monai.experiment.folder import example_shape, publish_folder, read_description


def _clock():
    return datetime(2025, 11, 1, 14, 30)


def test_the_id_is_the_hour_and_four_characters(tmp_path):
    folder = publish_folder(tmp_path, lambda _folder, _id: None)
    assert re.fullmatch(r"\d{8}-\d{2}-[0-9a-f]{4}", folder.name)


def test_a_folder_that_cannot_be_filled_never_appears(tmp_path):
    def fill(folder, _id):
        (folder / "a.txt").write_text("a")
        raise RuntimeError("stopped half-way")

    with pytest.raises(RuntimeError):
        publish_folder(tmp_path, fill)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_id_is_drawn_again_and_the_other_run_s_folder_stays_as_it_is(tmp_path):
    draws = iter(["aaaa", "aaaa", "bbbb"])
    fill = lambda folder, experiment_id: (folder / "id.txt").write_text(experiment_id)  # noqa: E731
    first = publish_folder(tmp_path, fill, clock=_clock, draw=lambda: next(draws))
    second = publish_folder(tmp_path, fill, clock=_clock, draw=lambda: next(draws))
    assert (first.name, second.name) == ("20251101-14-aaaa", "20251101-14-bbbb")
    assert (first / "id.txt").read_text() == "20251101-14-aaaa"


def test_a_folder_that_another_process_publishes_at_the_same_moment_is_not_replaced(tmp_path):
    draws = iter(["aaaa", "bbbb"])

    def fill(folder, _id):
        if "aaaa" in folder.name:  # the other process is quicker
            (tmp_path / "20251101-14-aaaa").mkdir()
            (tmp_path / "20251101-14-aaaa" / "theirs.txt").write_text("theirs")

    assert publish_folder(tmp_path, fill, clock=_clock, draw=lambda: next(draws)).name == "20251101-14-bbbb"
    assert (tmp_path / "20251101-14-aaaa" / "theirs.txt").exists()


def test_a_parent_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match="file/UNetTrainer"):
        publish_folder(tmp_path / "file" / "UNetTrainer", lambda _folder, _id: None)


def test_a_folder_without_a_description_is_no_experiment(tmp_path):
    with pytest.raises(ExperimentError, match=r"no experiment\.json"):
        read_description(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": 99})])
def test_a_description_of_another_format_is_refused_by_name(tmp_path, text):
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(ExperimentError, match=r"experiment\.json"):
        read_description(tmp_path)


def test_the_shape_that_the_network_was_built_for_is_a_tuple():
    assert example_shape("runs/a", {"network": {"example_shape": [1, 32, 48]}}) == (1, 32, 48)


@pytest.mark.parametrize("description", [{}, {"network": None}, {"network": {}}, {"network": {"example_shape": []}}])
def test_a_description_without_that_shape_is_refused_by_the_folder_s_name(description):
    with pytest.raises(ExperimentError, match="runs/a: experiment.json does not say the shape"):
        example_shape("runs/a", description)
