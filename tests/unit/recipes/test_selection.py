import json

import pytest

from candy_monai.data.pipelines.description import filled_holes, largest_component, without_small_components
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.files import digest_of_file
from candy_monai.recipes.predict import load_experiments
from candy_monai.recipes.selection import Member, Selection, selection_in

RUN = "2d/fold_0/T/20260101-00-aaaa"


@pytest.fixture
def selection(tmp_path):
    folder = tmp_path / "crossval-D"
    (folder / RUN).mkdir(parents=True)
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    (folder / RUN / "experiment.json").write_text(json.dumps({"format": 2, "dataset": {"labels": labels}}))
    weights = folder / RUN / "checkpoint_best.pth"
    weights.write_bytes(b"weights")
    return Selection(
        folder=folder,
        configurations=("2d",),
        members=(Member(experiment=RUN, weights_sha256=digest_of_file(weights)),),
        thresholds=(0.4, 0.5),
        postprocessing=(largest_component([1, 2]), without_small_components([2], 12.5), filled_holes(1)),
        reasons=("2d: the best",),
        candidates=({"name": "2d", "dice": 0.5},),
        trials=({"step": "fill holes of a", "kept": False},),
        scores={"name": "2d", "dice": 0.6},
    )


def test_what_was_saved_is_read_again(selection):
    selection.save()
    assert Selection.read(selection.folder) == selection
    assert selection_in([selection.folder]) == selection
    assert selection.experiments == [selection.folder / RUN]
    selection.check_weights()


def test_a_folder_without_a_choice_has_none(tmp_path):
    assert selection_in([tmp_path, tmp_path]) is None
    with pytest.raises(BadInputError, match="candy-monai select writes it"):
        Selection.read(tmp_path)


def test_a_choice_stands_by_itself(selection, tmp_path):
    selection.save()
    with pytest.raises(BadInputError, match=r"give only this folder, or the experiments to average"):
        selection_in([selection.folder, tmp_path])


STEP = largest_component([1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "no choice of format 1"),
        ({"members": []}, "members is \\[\\], expected a list of objects"),
        ({"members": [{"experiment": "../other", "weights_sha256": "0" * 64}]}, "lies outside the cross-validation"),
        ({"members": [{"experiment": "/etc", "weights_sha256": "0" * 64}]}, "lies outside the cross-validation"),
        ({"members": [{"experiment": "2d/fold_1", "weights_sha256": "0" * 64}]}, "2d/fold_1 is not an experiment"),
        ({"members": [{"experiment": RUN, "weights_sha256": "best"}]}, "is not a SHA-256"),
        ({"members": [{"experiment": RUN}]}, "expected experiment and weights_sha256"),
        ({"thresholds": [1.5]}, "the threshold is 1.5, expected a probability between 0 and 1"),
        ({"thresholds": "0.5"}, "thresholds is 0.5, expected a list of numbers"),
        (
            {"postprocessing": [{"_target_": "os.system", "command": "ls"}]},
            "is unknown, expected one that candy-monai select chooses",
        ),
        ({"postprocessing": [{**STEP, "keys": "image"}]}, "is unknown, expected one that candy-monai select chooses"),
        (
            {"postprocessing": [{**STEP, "applied_labels": ["$1"]}]},
            "is unknown, expected one that candy-monai select chooses",
        ),
        (
            {"postprocessing": [without_small_components([1], -3)]},
            "is unknown, expected one that candy-monai select chooses",
        ),
        ({"postprocessing": [largest_component([1, 3])]}, "of ids among \\[1, 2\\]"),
        ({"reasons": None}, "reasons is None, expected a list of texts"),
    ],
)
def test_a_file_that_was_edited_is_read_only_as_far_as_select_could_have_written_it(selection, changes, said):
    file = selection.save()
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(BadInputError, match=said):
        Selection.read(selection.folder)
    with pytest.raises(BadInputError, match=said):
        load_experiments([selection.folder])


@pytest.mark.parametrize("content", ["", "[]", "{", '"text"'])
def test_a_file_that_is_no_choice_is_refused(selection, content):
    (selection.folder / "inference.json").write_text(content)
    with pytest.raises(BadInputError, match=r"inference\.json: (cannot be read|found no choice)"):
        Selection.read(selection.folder)


def test_weights_that_were_trained_on_are_not_those_of_the_choice(selection):
    (selection.folder / RUN / "checkpoint_best.pth").write_bytes(b"others")
    with pytest.raises(ExperimentError, match=r"are not those that .* candy-monai select"):
        selection.check_weights()
