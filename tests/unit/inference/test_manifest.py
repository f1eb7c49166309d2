"""What stands beside predictions."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from candy_monai.cli.main import main
from candy_monai.errors import BadInputError
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.outputs import PredictionError
from candy_monai.inference.prediction import PredictionListener
from candy_monai.inference.predictor import Predictor
from candy_monai.processes import Processes
from tests.toys import SmallTrainer, Squares, small_trainer

SPACING = (2.0, 1.5, 3.0)


class _Threshold(torch.nn.Module):
    """Class 1 where the image exceeds 0.5."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return images[:, :1] - 0.5 + 0 * self.weight


class _Trainer(SmallTrainer):
    def build_network(self, example_shape):
        return _Threshold()


def _trained(folder, num_dims):
    trainer = small_trainer(folder, Squares(2, size=(14,) * num_dims), cls=_Trainer)
    trainer.train(1, save_preview=False)
    return trainer.experiment_folder()


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    return {dims: _trained(tmp_path_factory.mktemp("run"), dims) for dims in (2, 3)}


@pytest.fixture
def predictor(experiments):
    return Predictor(experiments[3], network=_Threshold())


def _scan(path, count=10):
    data = np.zeros((6, 5, 4), np.float32)
    data.flat[:count] = 1
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([-SPACING[0], *SPACING[1:], 1.0])), path)
    return path


def _manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_a_case_has_its_files_model_time_and_volumes(predictor, tmp_path):
    scan, out = _scan(tmp_path / "in" / "a_0000.nii.gz"), tmp_path / "out"
    predictor.predict_to_files(tmp_path / "in", out)
    content = _manifest(out)
    (run,), case = content["runs"], content["cases"]["a"]
    assert case["inputs"] == [
        {
            "file": str(scan),
            "bytes": scan.stat().st_size,
            "modified_ns": scan.stat().st_mtime_ns,
            "sha256": hashlib.sha256(scan.read_bytes()).hexdigest(),
        }
    ]
    assert case["classes"] == [
        {"name": "1", "ids": [1], "voxels": 10, "ml": pytest.approx(10 * np.prod(SPACING) / 1000)}
    ]
    assert (case["file"], case["shape"], case["spacing_mm"]) == ("a.nii.gz", [6, 5, 4], pytest.approx(SPACING))
    made = (out / "a.nii.gz").read_bytes()
    assert [(file["file"], file["sha256"]) for file in case["written"]] == [
        ("a.nii.gz", hashlib.sha256(made).hexdigest())
    ]
    assert case["seconds"] > 0
    (model,) = run["models"]
    weights = predictor.folder / model["weights"]
    assert model["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (model["experiment"], model["device"], model["precision"]) == (predictor.description.id, "cpu", "fp32")
    assert {"python", "candy-monai", "torch", "monai"} == run["versions"].keys()
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "manifest.json"]


def test_runs_into_one_folder_are_merged_and_a_case_belongs_to_its_last_run(predictor, experiments, tmp_path):
    _scan(tmp_path / "in" / "a.nii.gz")
    _scan(tmp_path / "in" / "b.nii.gz")
    out = tmp_path / "out"
    predictor.predict_to_files(tmp_path / "in" / "a.nii.gz", out)
    EnsemblePredictor([predictor, predictor]).predict_to_files(tmp_path / "in" / "b.nii.gz", out)
    content = _manifest(out)
    assert list(content["cases"]) == ["a", "b"]
    assert [len(run["models"]) for run in content["runs"]] == [1, 2]
    predictor.predict_to_files(tmp_path / "in", out)
    (run,) = _manifest(out)["runs"]
    assert {case["run"] for case in _manifest(out)["cases"].values()} == {run["id"]}


def test_statistics_are_a_row_a_case_and_class_and_follow_later_runs(predictor, tmp_path):
    out = tmp_path / "out"
    predictor.predict_to_files(_scan(tmp_path / "in" / "a.nii.gz"), out, statistics=True)
    predictor.predict_to_files(_scan(tmp_path / "in" / "b.nii.gz", 0), out)
    with (out / "statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"case": "a", "class": "1", "ids": "1", "voxels": "10", "ml": "0.09"},
        {"case": "b", "class": "1", "ids": "1", "voxels": "0", "ml": "0.0"},
    ]


def test_what_lies_in_no_physical_space_is_counted_in_pixels_alone(experiments, predictor, tmp_path):
    pixels = np.zeros((8, 9), np.uint8)
    pixels[:2] = 255
    Image.fromarray(pixels).save(tmp_path / "p.png")
    Predictor(experiments[2], network=_Threshold()).predict_to_files(tmp_path / "p.png", tmp_path / "out")
    predictor.predict_to_files([torch.ones(1, 2, 3, 4)], tmp_path / "out")
    cases = _manifest(tmp_path / "out")["cases"]
    assert [(case["classes"][0]["voxels"], case["classes"][0]["ml"]) for case in cases.values()] == [
        (24, None),
        (18, None),
    ]


def test_ids_of_no_class_take_no_memory_however_large(predictor, tmp_path):
    step = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [0], "target_labels": [1 << 40]}
    ensemble = EnsemblePredictor([predictor], postprocessing=[step])
    (written,) = ensemble.predict_to_files(_scan(tmp_path / "scans" / "a.nii.gz"), tmp_path / "out")
    assert np.unique(nibabel.load(written).dataobj).tolist() == [1, 1 << 40]
    assert _manifest(tmp_path / "out")["cases"]["a"]["classes"][0]["voxels"] == 10


def test_a_case_that_fails_is_named_and_its_earlier_prediction_stays(predictor, tmp_path):
    out = tmp_path / "out"
    for name in "ab":
        _scan(tmp_path / "in" / f"{name}.nii.gz")
    predictor.predict_to_files(tmp_path / "in", out)
    (tmp_path / "in" / "a.nii.gz").write_bytes(b"text")
    with pytest.raises(PredictionError):
        predictor.predict_to_files(tmp_path / "in", out)
    earlier, last = _manifest(out)["runs"]
    assert "a" in last["failures"]
    assert _manifest(out)["cases"]["a"]["run"] == earlier["id"]


def test_what_was_predicted_until_an_interruption_is_in_the_manifest(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr("candy_monai.inference.manifest._PAUSES", 1e9)
    for name in "abcd":
        _scan(tmp_path / "in" / f"{name}.nii.gz")

    class Interrupting(PredictionListener):
        def on_case(self, done, total, case_id, error):
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predictor.predict_to_files(tmp_path / "in", tmp_path / "out", statistics=True, listener=Interrupting())
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["a.nii.gz", "b.nii.gz", "c.nii.gz", "manifest.json", "statistics.csv"]
    assert list(_manifest(tmp_path / "out")["cases"]) == ["a", "b", "c"]


class _Counting(PredictionListener):
    def __init__(self):
        self.kept, self.predicted = 0, []

    def on_kept(self, num_cases, total):
        self.kept = num_cases

    def on_case(self, done, total, case_id, error):
        self.predicted.append(case_id)


def _resumed(predictor, tmp_path, **options):
    """Go on with the prediction of a folder, and return which cases were kept and which predicted."""
    told = _Counting()
    predictor.predict_to_files(tmp_path / "in", tmp_path / "out", resume=True, listener=told, **options)
    return told.kept, told.predicted


@pytest.fixture
def half_done(predictor, tmp_path):
    """Return a folder with the predictions of three cases of four."""
    for index, name in enumerate("abcd"):
        _scan(tmp_path / "in" / f"{name}.nii.gz", 10 + index)
    predictor.predict_to_files([tmp_path / "in" / f"{name}.nii.gz" for name in "abc"], tmp_path / "out")
    return tmp_path


def test_a_prediction_goes_on_with_the_cases_that_are_not_there(half_done, predictor):
    before = {name: (half_done / "out" / f"{name}.nii.gz").stat().st_mtime_ns for name in "abc"}
    assert _resumed(predictor, half_done) == (3, ["d"])
    assert {name: (half_done / "out" / f"{name}.nii.gz").stat().st_mtime_ns for name in "abc"} == before
    runs = _manifest(half_done / "out")["runs"]
    assert len(runs) == 2
    assert _resumed(predictor, half_done, statistics=True) == (4, [])
    assert _manifest(half_done / "out")["runs"] == runs
    assert len((half_done / "out" / "statistics.csv").read_text().splitlines()) == 5


def test_without_being_asked_to_go_on_all_cases_are_predicted(half_done, predictor):
    told = _Counting()
    predictor.predict_to_files(half_done / "in", half_done / "out", listener=told)
    assert (told.kept, told.predicted) == (0, ["a", "b", "c", "d"])


def _changed_image(folder):
    _scan(folder / "in" / "b.nii.gz", 40)


def _label_map_of_another(folder):
    (folder / "out" / "b.nii.gz").write_bytes((folder / "out" / "a.nii.gz").read_bytes())


def _no_label_map(folder):
    (folder / "out" / "b.nii.gz").unlink()


def _unknown_to_the_manifest(folder):
    content = _manifest(folder / "out")
    del content["cases"]["b"]
    (folder / "out" / "manifest.json").write_text(json.dumps(content))


def _of_an_earlier_version(folder):
    content = _manifest(folder / "out")
    del content["cases"]["b"]["written"]
    (folder / "out" / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [_changed_image, _label_map_of_another, _no_label_map, _unknown_to_the_manifest, _of_an_earlier_version],
)
def test_a_case_whose_files_are_not_what_was_read_and_written_is_predicted_again(half_done, predictor, change):
    change(half_done)
    assert _resumed(predictor, half_done) == (2, ["b", "d"])


def test_files_that_were_copied_elsewhere_are_still_the_same(half_done, predictor):
    for folder in ("in", "out"):
        (half_done / folder).rename(half_done / f"{folder} before")
        shutil.copytree(half_done / f"{folder} before", half_done / folder, copy_function=shutil.copyfile)
    assert _resumed(predictor, half_done) == (3, ["d"])


def test_another_model_other_settings_and_another_version_predict_all_cases_again(half_done, predictor, monkeypatch):
    assert _resumed(EnsemblePredictor([predictor, predictor]), half_done)[0] == 0
    predictor.predict_to_files(half_done / "in", half_done / "out")
    assert _resumed(predictor, half_done, probabilities=True)[0] == 0
    assert _resumed(predictor, half_done, probabilities=True)[0] == 4
    (half_done / "out" / "c_probabilities.nii.gz").unlink()
    assert _resumed(predictor, half_done, probabilities=True) == (3, ["c"])
    monkeypatch.setattr("candy_monai.inference.manifest.installed_versions", lambda *_: {"candy-monai": "another"})
    assert _resumed(predictor, half_done, probabilities=True)[0] == 0


def test_processes_share_the_cases_and_end_with_one_manifest(half_done, predictor):
    shutil.rmtree(half_done / "out")
    told = [_Counting(), _Counting()]
    for rank in (1, 0):
        written = predictor.predict_to_files(
            half_done / "in",
            half_done / "out",
            processes=Processes(rank=rank, world_size=2),
            listener=told[rank],
        )
        assert len(written) == 4
    assert told[1].predicted == ["b", "d", "a", "c"]  # the first process had not come, as one that was killed
    assert (told[0].predicted, told[0].kept) == ([], 2)
    assert list(_manifest(half_done / "out")["cases"]) == ["a", "b", "c", "d"]
    assert not list((half_done / "out").glob(".*"))


def test_a_label_map_that_was_removed_leaves_the_manifest_and_the_statistics(predictor, tmp_path):
    out = tmp_path / "out"
    for name in "ab":
        predictor.predict_to_files(_scan(tmp_path / "in" / f"{name}.nii.gz"), out, statistics=True)
    (out / "a.nii.gz").unlink()
    predictor.predict_to_files(tmp_path / "in" / "b.nii.gz", out)
    assert list(_manifest(out)["cases"]) == ["b"]
    assert [row.split(",")[0] for row in (out / "statistics.csv").read_text().splitlines()] == ["case", "b"]


_CASE = {"run": "1", "file": "a.nii.gz", "classes": [{"name": "1", "ids": [1], "voxels": 1, "ml": None}]}


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"format": 99}',
        '{"format": 1, "runs": {}, "cases": {}}',
        '{"format": 1, "runs": [{"id": []}], "cases": {}}',
        *(
            json.dumps({"format": 1, "runs": [], "cases": {"a": {**_CASE, **change}}})
            for change in ({"run": []}, {"file": 1}, {"classes": [1]}, {"classes": [{"name": "1"}]})
        ),
    ],
)
def test_a_manifest_of_something_else_is_left_alone(predictor, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(content)
    with pytest.raises(BadInputError, match=r"manifest\.json: .*move it away"):
        predictor.predict_to_files(_scan(tmp_path / "in" / "a.nii.gz"), out)
    assert [path.name for path in out.iterdir()] == ["manifest.json"]
    assert (out / "manifest.json").read_text() == content


def test_evaluate_takes_neither_for_a_label_map_nor_names_them(predictor, tmp_path, capsys):
    out = tmp_path / "out"
    predictor.predict_to_files(_scan(tmp_path / "in" / "a.nii.gz"), out, statistics=True)
    assert main(["evaluate", str(out), str(tmp_path / "in")]) == 0
    said = capsys.readouterr().out
    assert "manifest" not in said
    assert "statistics" not in said
