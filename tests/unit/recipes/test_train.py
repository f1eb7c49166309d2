import json

import pytest
import torch

from candy_monai.data.datasets.folds import read_splits
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.reading import load_image
from candy_monai.data.images.writing import save_image
from candy_monai.data.pipelines.description import describe_pipelines
from candy_monai.data.planning.plan import Plan
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, DatasetError, RunFailedError, SettingsError
from candy_monai.experiment.description import read_description
from candy_monai.experiment.events import RunFinished
from candy_monai.experiment.state import load_state
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.notion import NotionFrontend
from candy_monai.incoming.opening import load_predictor
from candy_monai.metrics.overlap import dice_per_class
from candy_monai.recipes.planned_run import PlannedRun
from candy_monai.recipes.resume import resume_training
from candy_monai.recipes.train import train_dataset
from candy_monai_bundles.unet import UNetTrainer
from tests.folders import make, texture
from tests.looks import counted_digests, counted_parses, counted_reads

TINY = {"filters": "4,8,8", "iterations_per_epoch": "3", "batch_size": "2", "validate_every": "1"}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", num_cases=6, shape=(24, 26, 16))


@pytest.fixture(scope="module")
def experiment(phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return train_dataset(phantom, num_epochs=2, seed=3, overrides=TINY, device="cpu", out=out, on_progress=_quiet)


def _quiet(_message):
    pass


def _listing(folder):
    return sorted((path.relative_to(folder), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_the_experiment_says_what_it_was_trained_on(experiment, phantom):
    description = json.loads((experiment / "experiment.json").read_text())
    dataset = description["dataset"]
    assert description["bundle"] == "unet"
    assert description["settings"]["seed"] == 3
    assert set(dataset["training"]).isdisjoint(dataset["validation"])
    assert sorted(dataset["training"] + dataset["validation"]) == list(NNUNetDataset(phantom).case_ids)


def test_the_experiment_holds_the_pipelines_that_it_was_trained_with(experiment):
    description = json.loads((experiment / "experiment.json").read_text())
    assert description["pipelines"] == describe_pipelines(Plan.from_dict(description["plan"]))


def test_the_best_weights_are_scored_on_whole_cases_in_their_own_geometry(experiment, phantom):
    summary = json.loads((experiment / "validation.json").read_text())
    predictor = load_predictor(experiment)
    cases = {case.case_id: case for case in NNUNetDataset(phantom).cases}
    for entry in summary["metric_per_case"]:
        case = cases[entry["case"]]
        reference = load_image(case.label, is_label=True).as_tensor()
        dice = dice_per_class(predictor.predict(case.images).as_tensor(), reference, 3, batched=False)
        assert [entry["metrics"][str(i)]["Dice"] for i in (1, 2)] == pytest.approx(dice.tolist(), abs=1e-6)


def test_loading_the_best_checkpoint_reproduces_the_recorded_best_score(experiment):
    from candy_monai.data.planning.plan import Plan
    from candy_monai.data.samples.patches import StoredCases
    from candy_monai.data.samples.store import CaseStore

    description = json.loads((experiment / "experiment.json").read_text())
    (index,) = (experiment.parents[1] / ".store").glob("*/store*.json")
    store, plan = CaseStore(index.parent), Plan.from_dict(description["plan"])
    predictor, scores = load_predictor(experiment), []
    for sample in StoredCases(store, description["dataset"]["validation"][: plan.num_validation_cases]):
        logits = predictor.logits(sample["image"])
        scores.append(dice_per_class(logits.argmax(0, keepdim=True), sample["label"], 3, batched=False).nanmean())
    recorded = load_state(experiment).checkpoints["checkpoint_best.pth"].score
    assert float(torch.stack(scores).mean()) == pytest.approx(recorded, abs=1e-6)


def test_nothing_is_written_into_the_dataset(phantom, tmp_path):
    before = _listing(phantom)
    train_dataset(phantom, num_epochs=1, overrides=TINY, device="cpu", out=tmp_path, fold=1, on_progress=_quiet)
    assert _listing(phantom) == before
    with pytest.raises(SettingsError, match="inside the dataset"):
        train_dataset(phantom, num_epochs=1, device="cpu", out=phantom / "experiments", on_progress=_quiet)


def test_a_first_run_looks_once_before_the_store_and_a_second_run_decodes_nothing(phantom, tmp_path, monkeypatch):
    parses, digests, reads = (count(monkeypatch) for count in (counted_parses, counted_digests, counted_reads))
    options = {"fold": "all", "num_epochs": 1, "overrides": TINY, "device": "cpu", "out": tmp_path}
    monkeypatch.setattr("candy_monai.recipes.planned_run.PlannedRun.train", lambda self: tmp_path)
    train_dataset(phantom, on_progress=_quiet, **options)
    training = [path for case in NNUNetDataset(phantom).cases for path in case.files]
    test = [path for case in NNUNetDataset(phantom, split="Ts").cases for path in case.files]
    parses.pop(), parses.pop()  # of the two lines above
    assert len(parses) == 1
    assert sorted(digests) == sorted(training + test)
    assert sorted(reads) == sorted(2 * training + test)
    reads.clear()
    train_dataset(phantom, on_progress=_quiet, **options)
    assert reads == []


def test_the_folds_are_written_to_the_store_and_the_experiment(experiment, phantom):
    folds = read_splits(experiment / "splits_final.json")
    assert folds == NNUNetDataset(phantom).folds()
    (in_store,) = (experiment.parents[1] / ".store").glob("*/splits_final.json")
    assert read_splits(in_store) == folds
    assert not (phantom / "splits_final.json").exists()


@pytest.mark.slow
def test_folds_are_grouped_or_stratified_by_a_table(phantom, tmp_path):
    ids = NNUNetDataset(phantom).case_ids
    table = tmp_path / "kinds.csv"
    table.write_text("".join(f"{case_id},{'ab'[index % 2]}\n" for index, case_id in enumerate(ids)))
    options = {"num_epochs": 1, "overrides": TINY, "device": "cpu", "out": tmp_path, "on_progress": _quiet}
    grouped = train_dataset(phantom, groups=str(table), **options)
    assert [set(fold.validation) for fold in read_splits(grouped / "splits_final.json")] in (
        [set(ids[::2]), set(ids[1::2])],
        [set(ids[1::2]), set(ids[::2])],
    )
    stratified = train_dataset(phantom, stratify=str(table), num_folds=3, **options)
    for fold in read_splits(stratified / "splits_final.json"):
        assert sorted(ids.index(case_id) % 2 for case_id in fold.validation) == [0, 1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"groups": "no_such_word"}, "groups: no group for"),
        ({"groups": "missing.csv"}, "cannot read groups"),
        ({"splits": "missing.json"}, "missing.json"),
        ({"fold": 9}, "fold 9 does not exist"),
    ],
    ids=str,
)
def test_options_of_the_folds_are_refused_before_a_case_is_read(phantom, tmp_path, monkeypatch, options, told):
    reads = counted_reads(monkeypatch)
    with pytest.raises(BadInputError, match=told):
        train_dataset(phantom, **options, device="cpu", out=tmp_path / "out", on_progress=_quiet)
    assert reads == []


def test_a_label_that_the_chosen_folds_leave_out_of_training_is_said(tmp_path):
    phantom = write_phantom_dataset(tmp_path / "d", num_cases=3, shape=(24, 24, 16))
    for case in NNUNetDataset(phantom).cases[1:]:
        save_image(load_image(case.label, is_label=True).clamp_max(1), case.label)
    ids, said = NNUNetDataset(phantom).case_ids, []
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ids[1:], "val": ids[:1]}]))
    train_dataset(
        phantom, splits=splits, num_epochs=1, overrides=TINY, device="cpu", out=tmp_path, on_progress=said.append
    )
    assert any("fold 0: no training case has the label 'core' (id 2)" in text for text in said)


def test_a_single_case_trains_without_validation(tmp_path):
    phantom = write_phantom_dataset(tmp_path / "one", num_cases=1, shape=(24, 24, 16))
    folder = train_dataset(phantom, num_epochs=1, overrides=TINY, device="cpu", out=tmp_path, on_progress=_quiet)
    assert (folder / "checkpoint_best.pth").exists()
    assert not (folder / "validation.json").exists()


def test_training_on_everything_validates_on_the_same_and_saves_as_often_as_asked(phantom, tmp_path):
    options = {"num_epochs": 1, "save_every": 2, "overrides": TINY, "device": "cpu", "on_progress": _quiet}
    folder = train_dataset(phantom, fold="all", out=tmp_path, **options)
    description = json.loads((folder / "experiment.json").read_text())
    assert description["dataset"]["training"] == description["dataset"]["validation"]
    assert description["settings"]["save_every"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_epochs": 1, "budget_s": 60}, "not both"),
        ({"num_epochs": 1, "overrides": {"num_epochs": "3"}}, "not both"),
        ({"budget_s": 60, "overrides": {"iterations_per_epoch": "3"}}, "a budget decides iterations_per_epoch"),
        ({"save_every": "often"}, "save_every must be"),
        ({"num_epoch": 1}, "unknown setting 'num_epoch'. Did you mean 'num_epochs'"),
        ({"frontends": ["notin"]}, "'notin' is unknown. Did you mean 'notion'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_settings_that_contradict_each_other_or_themselves_are_refused(phantom, tmp_path, options, words):
    with pytest.raises(BadInputError, match=words):
        train_dataset(phantom, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"fold": 9}, {"groups": "("}, {"splits": "missing.json"}])
def test_a_fold_that_cannot_be_is_said_before_anything_is_preprocessed(phantom, tmp_path, options):
    with pytest.raises(BadInputError):
        train_dataset(phantom, num_epochs=1, device="cpu", out=tmp_path / "out", on_progress=_quiet, **options)
    assert not list(tmp_path.rglob("store*.json"))


def test_pictures_are_trained_on_by_cmunext_at_its_own_rate_and_predicted_from_the_folder(tmp_path):
    pictures = write_phantom_dataset(tmp_path / "pictures", num_cases=5, num_dims=2, shape=(40, 44), num_channels=3)
    overrides = {"iterations_per_epoch": "2", "batch_size": "2", "patch_shape": "40,40"}
    folder = train_dataset(
        pictures, bundle="cmunext", num_epochs=1, overrides=overrides, device="cpu", out=tmp_path, on_progress=_quiet
    )
    description = json.loads((folder / "experiment.json").read_text())
    assert folder.parent.name == "CMUNeXtTrainer"
    assert description["network"]["arguments"]["normalization"] == "batch"
    assert description["plan"]["learning_rate"] == 0.01
    assert (folder / "validation.json").exists()
    case = NNUNetDataset(pictures).cases[0]
    assert load_predictor(folder).predict(case.images).shape == load_image(case.images[0]).shape


def test_images_that_a_network_cannot_take_are_refused_before_they_are_preprocessed(tmp_path):
    pictures = write_phantom_dataset(tmp_path / "pictures", num_cases=5, num_dims=2, shape=(40, 44), num_channels=3)
    with pytest.raises(BadInputError, match="V-Net adds the image .* but its input has 3"):
        train_dataset(pictures, bundle="vnet", num_epochs=1, device="cpu", out=tmp_path / "out", on_progress=_quiet)
    assert not list(tmp_path.rglob("store*.json"))


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    """Return a phantom of the regions whole (shell and core) and core, of which the last case has ignored voxels."""
    folder = write_phantom_dataset(tmp_path_factory.mktemp("regions") / "d", num_cases=4, shape=(24, 24, 16))
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"] = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    description["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(description))
    path = NNUNetDataset(folder).cases[-1].label
    label = load_image(path, is_label=True)
    label[0, :3] = 3
    save_image(label, path)
    return folder


def test_overlapping_regions_with_ignored_voxels_are_trained_scored_and_painted(regions, tmp_path):
    folder = train_dataset(
        regions, fold="all", num_epochs=2, overrides=TINY, device="cpu", out=tmp_path, seed=0, on_progress=_quiet
    )
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val dice whole", "val dice core", "val bce loss"} <= set(header)
    summary = json.loads((folder / "validation.json").read_text())
    assert set(summary["mean"]) == {"1", "2"}
    predictor = load_predictor(folder)
    assert predictor.num_classes == 2
    image = NNUNetDataset(regions).load_image(0)
    assert set(predictor.predict(image).unique().tolist()) <= {0, 1, 2}
    assert (folder / "actual (preview).png").exists()


def test_a_dataset_with_problems_is_refused_whole_and_nothing_is_written(tmp_path):
    phantom = write_phantom_dataset(tmp_path / "broken", num_cases=4, shape=(16, 16, 16))
    labels = sorted((phantom / "labelsTr").iterdir())
    labels[0].write_bytes(labels[0].read_bytes()[:-40])
    labels[1].unlink()
    with pytest.raises(DatasetError) as error:
        train_dataset(phantom, num_epochs=1, device="cpu", out=tmp_path / "out", on_progress=_quiet)
    assert labels[0].name in str(error.value)
    assert labels[1].name.split(".")[0] in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.alone
def test_a_budget_is_kept_to_and_what_it_was_spent_on_is_said(tmp_path):
    import time

    phantom = write_phantom_dataset(tmp_path / "phantom", num_cases=10, shape=(32, 32, 16))
    started, messages = time.monotonic(), []
    folder = train_dataset(phantom, budget_s=60, device="cpu", out=tmp_path, on_progress=messages.append)
    assert time.monotonic() - started < 75  # the machine may slow down by a quarter after it was measured
    weighed, chosen = [message for message in messages if message.split()[0] in ("Considered", "Chosen:")]
    record = read_description(folder).budget
    assert record.budget_s == 60
    assert [candidate["is_chosen"] for candidate in record.candidates] == [True] + [False] * (
        len(record.candidates) - 1
    )
    assert all(candidate["verdict"] in weighed for candidate in record.candidates[1:])
    assert chosen.startswith("Chosen: 3d, network of ")
    assert f" filters, {record.candidates[0]['batch_size']} patches of " in chosen
    scores = json.loads((folder / "validation.json").read_text())
    assert scores["num_cases"] == scores["num_validation_cases"] == 2
    low, high = scores["dice_interval_95"]
    assert 0 <= low <= scores["foreground_mean"]["Dice"] <= high <= 1


def test_a_fold_without_validation_cases_is_refused_unless_there_is_but_one_case(phantom, tmp_path):
    with pytest.raises(BadInputError, match=r"0 validation cases of 6.*--fold all"):
        train_dataset(phantom, groups="phantom", num_epochs=1, device="cpu", out=tmp_path / "out", on_progress=_quiet)


def test_a_place_that_cannot_be_written_to_is_said_before_the_data_are_read(phantom, tmp_path):
    (tmp_path / "file").write_text("")
    messages = []
    with pytest.raises(BadInputError, match="is a file"):
        train_dataset(phantom, num_epochs=1, device="cpu", out=tmp_path / "file" / "x", on_progress=messages.append)
    assert messages == []


def test_a_secret_that_a_frontend_misses_is_said_before_the_dataset_is_read(tmp_path):
    with pytest.raises(SettingsError, match="NotionFrontend needs the secret 'notion_api_key'"):
        train_dataset(tmp_path / "no dataset", frontends=[NotionFrontend], out=tmp_path / "out")


class _Hearing(Frontend):
    told = []  # noqa: RUF012

    def on_event(self, event):
        self.told.append(event)

    def on_experiment_closed(self, experiment_id):
        self.told.append(experiment_id)


def test_a_frontend_hears_the_final_scores_after_the_run_and_then_that_no_more_is_to_come(phantom, tmp_path):
    _Hearing.told.clear()
    folder = train_dataset(
        phantom, num_epochs=1, overrides=TINY, device="cpu", out=tmp_path, frontends=[_Hearing], on_progress=_quiet
    )
    finished, scored, closed = _Hearing.told[-3:]
    assert isinstance(finished, RunFinished)
    assert (closed, scored.file) == (folder.name, folder / "validation.json")
    written = json.loads(scored.file.read_text())
    names, mean = written["class_names"], written["foreground_mean"]
    assert scored.num_cases == written["num_cases"]
    assert scored.scores["dice"] == pytest.approx(mean["Dice"], nan_ok=True)
    for index, values in written["mean"].items():
        assert scored.scores[f"dice/{names[index]}"] == pytest.approx(values["Dice"], nan_ok=True)


def test_a_file_that_vanishes_during_training_is_a_failed_run_that_resume_ends(tmp_path, monkeypatch):
    data = write_phantom_dataset(tmp_path / "data", num_cases=4, shape=(24, 24, 16))
    options = {"num_epochs": 1, "overrides": TINY, "device": "cpu", "out": tmp_path, "on_progress": _quiet}
    hidden = []

    def vanish(self, *arguments, **keywords):
        hidden.extend(path.rename(tmp_path / path.name) for path in (data / "imagesTr").iterdir())
        return score(self, *arguments, **keywords)

    score = PlannedRun._score
    with monkeypatch.context() as patched:
        patched.setattr(PlannedRun, "_score", vanish)
        with pytest.raises(RunFailedError, match=r"is trained.*candy-monai resume"):
            train_dataset(data, **options)
    for path in hidden:
        path.rename(data / "imagesTr" / path.name)
    (folder,) = (tmp_path / "UNetTrainer").iterdir()
    resume_training(folder, device="cpu", on_progress=_quiet)
    assert (folder / "validation.json").exists()


@pytest.mark.parametrize(("amp", "expected"), [("auto", "auto"), ("off", None), ("fp16", "fp16")])
def test_a_run_trains_in_the_precision_that_was_asked_for_and_says_where_it_is_emulated(
    phantom, tmp_path, monkeypatch, amp, expected
):
    asked, messages = [], []

    def train(_trainer, *_, **settings):
        asked.append(settings["amp"])
        raise InterruptedError

    monkeypatch.setattr(UNetTrainer, "train", train)
    for at_hand in ((None,), ("fp16", None)):
        monkeypatch.setattr("candy_monai.recipes.train.precisions_at_hand", lambda _, found=at_hand: found)
        with pytest.raises(InterruptedError):
            train_dataset(phantom, amp=amp, device="cpu", out=tmp_path, on_progress=messages.append)
    assert asked == [expected] * 2
    assert sum("this processor emulates fp16" in text for text in messages) == (amp == "fp16")


@pytest.mark.parametrize(("groups", "told"), [(None, 1), ("^(.+?)_frame", 0)])
def test_patients_on_both_sides_of_the_chosen_fold_are_told_at_the_start(tmp_path, monkeypatch, groups, told):
    ids = tuple(f"patient{patient}_frame{frame}" for patient in range(3) for frame in range(2))
    said = []

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("candy_monai.recipes.prepare.plan", stop)
    folder = texture(make(tmp_path / "data", ids=ids))
    with pytest.raises(KeyboardInterrupt):
        train_dataset(folder, fold=1, groups=groups, device="cpu", out=tmp_path / "out", on_progress=said.append)
    found = [text for text in said if "patients are both in training and in validation" in text]
    assert len(found) == told
    assert all("validated in fold 1)" in text for text in found)


def test_a_run_that_is_told_to_write_no_page_writes_none_when_it_is_scored_or_resumed(phantom, tmp_path):
    options = {"overrides": TINY, "device": "cpu", "on_progress": _quiet}
    folder = train_dataset(phantom, num_epochs=1, out=tmp_path, no_report=True, **options)
    assert (folder / "validation.json").is_file()
    resume_training(folder, num_epochs=2, schedule="restart", device="cpu", on_progress=_quiet)
    assert len(load_state(folder).history["rows"]) == 2
    assert not (folder / "report.html").exists()


@pytest.mark.slow
def test_a_later_run_and_a_resumed_one_say_which_earlier_runs_their_forecasts_know_unless_told_not_to(
    phantom, tmp_path
):
    options = {"num_epochs": 3, "overrides": TINY, "device": "cpu", "out": tmp_path, "on_progress": _quiet}
    first = train_dataset(phantom, **options)
    second = train_dataset(phantom, **options)
    alone = train_dataset(phantom, **options, no_references=True)
    logs = [(folder / "logs.txt").read_text() for folder in (first, second, alone)]
    named = f"The forecast uses an earlier run on this dataset in {tmp_path}: UNetTrainer/{first.name}"
    assert [log.count("The forecast uses") for log in logs] == [0, 1, 0]
    assert named in logs[1]
    resumed = {"num_epochs": 4, "schedule": "restart", "device": "cpu", "on_progress": _quiet}
    resume_training(first, **resumed)
    assert "The forecast uses 2 earlier runs on this dataset" in (first / "logs.txt").read_text()
    resume_training(alone, **resumed, no_references=True)
    assert "The forecast uses" not in (alone / "logs.txt").read_text()
