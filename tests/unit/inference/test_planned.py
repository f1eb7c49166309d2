"""Prediction of planned runs: preprocessing, windows and the way back, together."""

import dataclasses
import json
import shutil
import warnings

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.data.planning.plan import Region
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.inference.buffers import buffer_on_disk
from candy_monai.inference.channels import RunChannels
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.inputs import (
    input_case,
)
from candy_monai.inference.prediction import PredictionListener
from candy_monai.inference.predictor import Predictor
from candy_monai.training.options import SegmentationOptions
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.transforms import KeepLargestComponent
from tests.plans import small_plan
from tests.toys import Squares, small_trainer


def _network():
    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 1))
    return network.eval()


class _Planned(SegmentationTrainer):
    def build_network(self, example_shape):
        return _network()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    plan = dataclasses.replace(small_plan(), patch_shape=(16, 16, 16), spacing_mm=(1.0, 1.5, 2.0))
    assert plan.num_classes == 3
    trainer = small_trainer(tmp_path_factory.mktemp("run"), Squares(2, size=(16,) * 3, num_classes=3), cls=_Planned)
    trainer.use_plan(plan)
    trainer.options = SegmentationOptions(deep_supervision=False)
    trainer.train(1, save_preview=False)
    return trainer.experiment_folder()


@pytest.fixture
def predictor(experiment):
    return Predictor(experiment, network=_network())


AFFINE = np.array([[-1.1, 0.1, 0, 30], [0.1, -1.4, 0.2, 40], [0, 0.2, 2.2, -7], [0, 0, 0, 1]])


def _scan(shape=(37, 33, 29)):
    rng = np.random.default_rng(1)
    data = rng.normal(size=shape).astype(np.float32)
    data[:3], data[:, -2:] = 0, 0
    return nibabel.Nifti1Image(data, AFFINE)


def test_a_scan_is_predicted_part_by_part_as_it_is_at_once(predictor):
    image = _scan()
    (case,) = predictor.prepare("a", _loaded(image)).cases
    assert case.is_resampled
    at_once = predictor.preprocessor.restore_labels(predictor.logits(case.image), case)
    by_parts = predictor.predict(image)
    differing = int((at_once != by_parts.as_tensor()).sum())
    assert differing <= 1  # a tie, at most
    assert len(by_parts.unique()) > 1
    assert bool((by_parts[0, :3] == 0).all())


def _loaded(image):
    return input_case(image, channels=RunChannels(names=("",)), num_dims=3).load(RunChannels(names=("",)))


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR", "PIL", "IRP"])
def test_the_same_anatomy_stored_in_other_axes_gets_the_same_labels(predictor, codes):
    image = _scan()
    start = nibabel.orientations.io_orientation(image.affine)
    turn = nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    assert turned.affine.tolist() != image.affine.tolist()
    expected = nibabel.Nifti1Image(predictor.predict(image)[0].numpy(), image.affine).as_reoriented(turn)
    prediction = predictor.predict(turned)
    assert np.array_equal(prediction[0].numpy(), np.asarray(expected.dataobj))
    assert np.allclose(prediction.affine, turned.affine)


@pytest.mark.parametrize("in_list", [False, True])
def test_a_tensor_without_an_affine_gets_a_warning_that_its_spacing_is_unknown(predictor, in_list):
    values = torch.zeros(1, 16, 16, 16)
    with pytest.warns(UserWarning, match=r"image: the tensor has no affine.* 1 mm .* 1 x 1.5 x 2 mm; give \(array"):
        predictor.predict([values] if in_list else values)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predictor.predict((values[0].numpy(), (1.0, 1.5, 2.0)))
        predictor.predict(MetaTensor(values, affine=torch.eye(4)))


def test_a_large_case_tells_of_its_windows(predictor, tmp_path):
    seen = []

    class Listener(PredictionListener):
        def on_windows(self, case_id, done, total):
            seen.append((done, total))

    predictor.predict_to_files([_scan()], tmp_path / "out", listener=Listener())
    assert len(seen) > 8
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}


def test_mirrors_come_from_the_plan(experiment, predictor):
    assert predictor.plan.mirror_axes == (0, 1, 2)
    mirrored, image = Predictor(experiment, network=_network(), mirror=True), _scan()
    (case,) = predictor.prepare("a", _loaded(image)).cases
    plain = predictor.logits(case.image[:, :16, :16, :16])
    flips = [[], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]]
    expected = sum(predictor.logits(case.image[:, :16, :16, :16].flip(dims)).flip(dims) for dims in flips) / 8
    assert torch.allclose(mirrored.logits(case.image[:, :16, :16, :16]), expected, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-5)


@pytest.mark.parametrize("axes", [(3,), (-1,), (0, 0)])
def test_mirror_axes_that_the_image_does_not_have_are_refused(experiment, axes):
    with pytest.raises(SettingsError, match="expected distinct axes from 0 to 2"):
        Predictor(experiment, network=_network(), mirror=axes)


def test_little_memory_sends_unfinished_scores_to_disk_and_changes_nothing(experiment, predictor, monkeypatch):
    image = _scan()
    needed = predictor.estimate_prepared(predictor.prepare("a", _loaded(image)))
    assert needed.buffer > 0
    made = []
    where = "candy_monai.inference.network_predictor.buffer_on_disk"
    monkeypatch.setattr(where, lambda *arguments: made.append(1) or buffer_on_disk(*arguments))
    for memory, goes in ((None, False), (2 * needed.total, False), (needed.without_buffer + needed.buffer // 2, True)):
        bounded = Predictor(experiment, network=_network(), memory=memory)
        assert torch.equal(bounded.predict(image).as_tensor(), predictor.predict(image).as_tensor())
        assert bool(made) is goes


def test_a_case_for_which_disk_does_not_help_is_refused(experiment):
    with pytest.raises(BadInputError, match="raise this limit"):
        Predictor(experiment, network=_network(), memory=1000).predict(_scan())


@pytest.mark.parametrize("memory", [0, -1, True, "1G"])
def test_memory_that_is_no_number_of_bytes_is_refused(experiment, memory):
    with pytest.raises(SettingsError, match="expected a number of bytes above 0"):
        Predictor(experiment, network=_network(), memory=memory)


def test_probabilities_count_towards_the_memory(experiment, predictor):
    image = _scan()
    needed = predictor.estimate_prepared(predictor.prepare("a", _loaded(image)))
    bounded = Predictor(experiment, network=_network(), memory=needed.total)
    assert torch.equal(bounded.predict(image).as_tensor(), predictor.predict(image).as_tensor())
    with pytest.raises(BadInputError, match="raise this limit"):
        bounded.predict_image(image, probabilities=True)


def _written(predictor, tmp_path, *, probabilities):
    """Return the label map and the probabilities that are written of the scan."""
    nibabel.save(_scan(), tmp_path / "a.nii.gz")
    out = tmp_path / f"out{probabilities}"
    (labels,) = predictor.predict_to_files(tmp_path / "a.nii.gz", out, probabilities=probabilities)
    file = out / "a_probabilities.nii.gz"
    return np.asarray(nibabel.load(labels).dataobj), np.asarray(nibabel.load(file).dataobj) if probabilities else None


@pytest.mark.parametrize("together", ["one", "side by side", "other windows"])
def test_the_label_map_is_that_of_the_greatest_probability_written(experiment, predictor, tmp_path, together):
    if together != "one":
        other = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 1))
        inferer = WindowInferer((24, 16, 16)) if together == "other windows" else None
        second = Predictor(experiment, network=_network(), inferer=inferer)
        second.model.network.load_state_dict(other.state_dict())
        predictor = EnsemblePredictor([predictor, second])
    labels, probabilities = _written(predictor, tmp_path, probabilities=True)
    assert np.array_equal(probabilities.argmax(-1), labels)
    assert len(np.unique(labels)) > 1
    assert np.array_equal(_written(predictor, tmp_path, probabilities=False)[0], labels)


def test_regions_are_where_the_written_probability_exceeds_a_half(tmp_path):
    regions = (Region(name="whole", ids=(1, 2), paints=1), Region(name="core", ids=(2,), paints=2))
    plan = dataclasses.replace(
        small_plan(),
        patch_shape=(16, 16, 16),
        spacing_mm=(1.0, 1.5, 2.0),
        regions=regions,
        num_classes=2,
        class_names=("whole", "core"),
    )

    class Regions(_Planned):
        def build_network(self, example_shape):
            return torch.nn.Conv3d(1, 2, 3, padding=1)

    data = [(torch.randn(1, 16, 16, 16), torch.randint(0, 3, (1, 16, 16, 16))) for _ in range(2)]
    trainer = small_trainer(tmp_path / "run", data, cls=Regions)
    trainer.use_plan(plan)
    trainer.options = SegmentationOptions(deep_supervision=False)
    trainer.train(1, save_preview=False)
    network = trainer.build_network((1, 16, 16, 16))
    members = [Predictor(trainer.experiment_folder(), network=network) for _ in range(2)]
    for predictor in (members[0], EnsemblePredictor(members)):
        labels, probabilities = _written(predictor, tmp_path, probabilities=True)
        painted = np.where(probabilities[..., 1] > 0.5, 2, np.where(probabilities[..., 0] > 0.5, 1, 0))
        assert np.array_equal(painted, labels)
        assert len(np.unique(labels)) == 3
        assert np.array_equal(_written(predictor, tmp_path, probabilities=False)[0], labels)


def test_an_ensemble_of_twins_predicts_what_each_of_them_does(predictor, experiment):
    twins = EnsemblePredictor([predictor, Predictor(experiment, network=_network())])
    image = _scan()
    own, together = (p.predict_image(image, probabilities=True).probabilities.as_tensor() for p in (predictor, twins))
    assert torch.allclose(own, together, atol=1e-5)


def _with_postprocessing(experiment, folder, change):
    """Return a copy of an experiment whose postprocessing is another."""
    shutil.copytree(experiment, folder)
    described = json.loads((folder / "experiment.json").read_text())
    described["pipelines"]["postprocessing"] = change(described["pipelines"]["postprocessing"])
    (folder / "experiment.json").write_text(json.dumps(described))
    return folder


ONLY_TWO = {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": [2]}


@pytest.mark.parametrize("way", ["appended", "replaced"])
def test_the_postprocessing_of_the_experiment_makes_the_label_map_of_one_and_of_several(
    experiment, predictor, tmp_path, way
):
    change = {"appended": lambda steps: [*steps, ONLY_TWO], "replaced": lambda steps: [steps[0], *steps, ONLY_TWO]}[way]
    folder = _with_postprocessing(experiment, tmp_path / "run", change)
    member, image = Predictor(folder, network=_network()), _loaded(_scan())
    plain = predictor.predict(image).as_tensor()
    expected = torch.where(plain == 2, plain, 0)
    assert 0 < (expected > 0).sum() < (plain > 0).sum()
    assert member.preprocessor.paints_in_parts == (way == "appended")
    prediction = member.predict_image(image, probabilities=True)
    for labels in (prediction.labels, EnsemblePredictor([member, member]).predict(image)):
        assert labels.dtype == torch.uint8
        assert np.allclose(labels.affine, AFFINE)
        assert (labels.as_tensor() == expected).float().mean() >= (1.0 if way == "appended" else 0.999)
    assert prediction.probabilities.shape == (3, *plain.shape[1:])
    with pytest.raises(BadInputError, match="postprocessing"):
        EnsemblePredictor([predictor, member])


def test_a_postprocessing_that_takes_all_scores_at_once_counts_towards_the_memory(experiment, predictor, tmp_path):
    folder = _with_postprocessing(experiment, tmp_path / "run", lambda steps: [steps[0], *steps])
    image, member = _scan(), Predictor(folder, network=_network())
    plain, needed = (p.estimate_prepared(p.prepare("a", _loaded(image))) for p in (predictor, member))
    assert plain.all_scores == 0
    assert needed.all_scores >= 3 * 3 * 4 * np.prod(image.shape)
    with pytest.raises(BadInputError, match="raise this limit"):
        Predictor(folder, network=_network(), memory=plain.total).predict(image)


def test_the_largest_component_is_a_step_after_those_of_the_experiment(experiment, tmp_path):
    folder = _with_postprocessing(experiment, tmp_path / "run", lambda steps: [*steps, ONLY_TWO])
    image = _loaded(_scan())
    cleaned = Predictor(folder, network=_network(), largest_component=True).predict(image).as_tensor()
    expected = KeepLargestComponent()(Predictor(folder, network=_network()).predict(image).as_tensor())
    assert (cleaned > 0).sum() > 0
    assert torch.equal(cleaned, expected.as_tensor())


def test_a_step_that_makes_no_label_map_is_refused(experiment, tmp_path):
    halves = {"_target_": "ScaleIntensityd", "keys": "pred", "minv": 0.0, "maxv": 1.0}
    folder = _with_postprocessing(experiment, tmp_path / "run", lambda steps: [*steps, halves])
    with pytest.raises(BadInputError, match="postprocessing returned values .* expected label ids"):
        Predictor(folder, network=_network()).predict(_loaded(_scan()))


@pytest.mark.parametrize(
    "step", [{"_target_": "FillHolesd", "keys": "nokey"}, {"_target_": "DeleteItemsd", "keys": "pred"}], ids=str
)
@pytest.mark.parametrize("way", ["appended", "replaced"])
def test_a_step_that_cannot_be_applied_is_named(experiment, tmp_path, step, way):
    first = {"appended": [], "replaced": [{"_target_": "EnsureTyped", "keys": "pred", "track_meta": True}]}[way]
    folder = _with_postprocessing(experiment, tmp_path / "run", lambda steps: [*first, *steps, step])
    with pytest.raises(BadInputError, match=r"postprocessing.*cannot be applied to the prediction \(KeyError"):
        Predictor(folder, network=_network()).predict(_loaded(_scan()))
