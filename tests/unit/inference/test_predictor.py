import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import ScaleIntensityd

from candy_monai.data.datasets.files import DatasetFromMemory
from candy_monai.data.datasets.joint import JointTransform
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.prediction import PredictionListener
from candy_monai.inference.predictor import Predictor
from candy_monai.network import plain_weights
from candy_monai.nn.padding import Pad2d
from tests.toys import SmallTrainer, Squares, small_trainer


class _Small(Predictor):
    def build_network(self, example_shape):
        return SmallTrainer("unused", None, None).build_network(example_shape)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    trainer = small_trainer(tmp_path_factory.mktemp("run"), Squares(2, size=(14, 16, 12)))
    trainer.train(1, save_preview=False)
    return trainer.experiment_folder()


def _scan(path, shape=(9, 11, 7)):
    affine = np.array([[0.0, -1.5, 0.2, 10], [2.0, 0.1, 0, -20], [0, 0.3, 3.0, 5], [0, 0, 0, 1]])
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path, affine


def test_a_trainer_of_no_bundle_asks_for_its_network(experiment):
    with pytest.raises(ExperimentError, match="network="):
        Predictor(experiment)


def test_its_network_can_be_given_or_built_by_a_subclass(experiment):
    image = torch.randn(1, 9, 11, 7)
    network = SmallTrainer("unused", None, None).build_network((1, 9, 11, 7))
    given, built = Predictor(experiment, network=network), _Small(experiment)
    assert torch.equal(given.predict(image).as_tensor(), built.predict(image).as_tensor())


def test_a_prediction_has_the_scan_s_shape_and_affine_and_whole_ids(experiment, tmp_path):
    path, affine = _scan(tmp_path / "a_0000.nii.gz")
    (written,) = _Small(experiment).predict_to_files(path, tmp_path / "out")
    prediction = nibabel.load(written)
    assert written.name == "a.nii.gz"
    assert prediction.shape == (9, 11, 7)
    assert np.allclose(prediction.affine, affine, atol=1e-5)
    assert prediction.get_data_dtype() == np.uint8
    assert set(np.unique(prediction.get_fdata())) <= {0, 1}


def test_a_network_whose_output_holds_nan_is_warned_of_with_the_case(experiment, tmp_path):
    path, _ = _scan(tmp_path / "a_0000.nii.gz")
    predictor = _Small(experiment)
    with torch.no_grad():
        next(predictor.model.parameters()).fill_(torch.nan)
    with pytest.warns(UserWarning, match="a: the network's output contains NaN, where the label map is meaningless"):
        predictor.predict_to_files(path, tmp_path / "out")


def test_every_case_of_a_folder_is_predicted_and_reported(experiment, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b", "a"):
        _scan(folder / f"{name}_0000.nii.gz")
    seen = []

    class Listener(PredictionListener):
        def on_case(self, *args):
            seen.append(args)

    written = _Small(experiment).predict_to_files(folder, tmp_path / "out", listener=Listener())
    assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz"]
    assert seen == [(1, 2, "a", None), (2, 2, "b", None)]


def test_a_tensor_keeps_its_affine(experiment):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    prediction = _Small(experiment).predict(MetaTensor(torch.randn(1, 9, 11, 7), affine=affine))
    assert torch.equal(prediction.affine, affine)
    assert prediction.shape == (1, 9, 11, 7)


def test_an_image_of_another_number_of_channels_is_refused(experiment):
    with pytest.raises(BadInputError, match="has 2 channels, the network expects 1"):
        _Small(experiment).predict(torch.randn(2, 9, 11, 7))


def test_an_image_of_another_number_of_axes_is_refused(experiment):
    picture = MetaTensor(torch.randn(1, 9, 11))
    with pytest.raises(BadInputError, match=r"has 2 spatial axes \(shape \(9, 11\)\), the network expects 3"):
        _Small(experiment).predict(picture)


@pytest.mark.parametrize("checkpoint", ["best", "latest", "checkpoint_1.pth"])
def test_any_weight_file_of_the_experiment_can_be_chosen(experiment, checkpoint):
    predictor = _Small(experiment, checkpoint=checkpoint)
    name = checkpoint if checkpoint.endswith(".pth") else f"checkpoint_{checkpoint}.pth"
    weights = plain_weights(predictor.model)
    stored = torch.load(experiment / name, weights_only=True)
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[key], stored[key]) for key in stored)


def test_the_best_weights_are_not_the_latest_so_that_the_choice_matters(experiment):
    best, latest = (torch.load(experiment / f"checkpoint_{name}.pth", weights_only=True) for name in ("best", "latest"))
    assert not all(torch.equal(best[key], latest[key]) for key in best)


def test_a_weight_file_that_is_not_there_is_named(experiment):
    with pytest.raises(ExperimentError, match=r"checkpoint_9\.pth: no such checkpoint"):
        _Small(experiment, checkpoint="checkpoint_9.pth")


def test_a_network_that_does_not_fit_the_weights_is_a_clear_error(experiment):
    with pytest.raises(ExperimentError, match="do not match the network Linear"):
        Predictor(experiment, network=torch.nn.Linear(2, 2))


def test_an_image_is_never_overwritten_by_its_prediction(experiment, tmp_path):
    path, _ = _scan(tmp_path / "a.nii.gz")
    before = path.read_bytes()
    for source in (path, tmp_path):
        with pytest.raises(BadInputError, match="contains the images to predict"):
            _Small(experiment).predict_to_files(source, tmp_path)
    assert path.read_bytes() == before


def test_no_label_map_is_put_where_it_would_be_taken_for_an_image(experiment, tmp_path):
    path, _ = _scan(tmp_path / "a_0000.nii.gz")
    with pytest.raises(BadInputError, match="would be taken for an image in the next prediction"):
        _Small(experiment).predict_to_files(path, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("padding", [Pad2d(16, mode="reflect"), Pad2d((8, 32), value=0.5)], ids=repr)
def test_a_padding_of_ours_is_found_in_the_experiment_and_reproduces_validation(tmp_path, padding):
    class Padded(SmallTrainer):
        def build_padding_module(self):
            return padding

    outputs = []
    trainer = small_trainer(tmp_path, Squares(2, size=(13, 18)), cls=Padded)
    validate_case = trainer.validate_case

    def looking(image, label, toolbox):
        result = validate_case(image, label, toolbox)
        outputs.append((image, result[2]))
        return result

    trainer.validate_case = looking
    trainer.train(1, save_preview=False)
    predictor = _Small(trainer.experiment_folder())
    for image, logits in outputs:
        assert torch.equal(predictor.logits(image), logits)


def test_a_padding_or_an_inferer_of_the_user_s_own_must_be_given(tmp_path):
    class OwnInferer(SimpleInferer):
        pass

    class Own(SmallTrainer):
        inferer = OwnInferer()

        def build_padding_module(self):
            return torch.nn.ZeroPad2d(1)

    trainer = small_trainer(tmp_path, cls=Own)
    trainer.train(1, save_preview=False)
    folder = trainer.experiment_folder()
    with pytest.raises(ExperimentError, match="inferer="):
        _Small(folder)
    with pytest.raises(ExperimentError, match="padding="):
        _Small(folder, inferer=SimpleInferer())
    _Small(folder, inferer=SimpleInferer(), padding=torch.nn.ZeroPad2d(1))


def test_a_prediction_after_one_that_a_ctrl_c_ended_is_what_it_was_before(tmp_path):
    class Padded(SmallTrainer):
        def build_padding_module(self):
            return Pad2d(8)

    trainer = small_trainer(tmp_path, Squares(2, size=(13, 16)), cls=Padded)
    trainer.train(1, save_preview=False, amp="bf16")
    predictor, image = _Small(trainer.experiment_folder()), torch.randn(1, 13, 16)
    before = predictor.predict_image(image, probabilities=True).probabilities

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = predictor.model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        predictor.predict(image)
    hook.remove()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(predictor.predict_image(image, probabilities=True).probabilities, before)


def test_nothing_of_a_prediction_keeps_a_graph(experiment):
    assert not _Small(experiment).logits(torch.randn(1, 9, 11, 7)).requires_grad


def _warnings_of_transforms(recwarn):
    return [str(warning.message) for warning in recwarn if "transformed by" in str(warning.message)]


def test_transforms_of_the_dataset_that_prediction_lacks_are_warned_of_where_files_are_predicted(tmp_path, recwarn):
    image, label = torch.rand(1, 16, 16), torch.zeros(1, 16, 16, dtype=torch.int64)
    data = DatasetFromMemory([image] * 2, [label] * 2, transform=JointTransform(ScaleIntensityd("image")))
    trainer = small_trainer(tmp_path, data)
    trainer.train(1, save_preview=False, save_report=False)
    _scan(tmp_path / "scan.nii.gz", shape=(16, 16))
    predictor = _Small(trainer.experiment_folder())
    predictor.predict(ScaleIntensityd("image")({"image": image})["image"])
    assert _warnings_of_transforms(recwarn) == []
    for by in (predictor, EnsemblePredictor([_Small(trainer.experiment_folder()) for _ in range(2)])):
        for _ in range(2):
            by.predict(tmp_path / "scan.nii.gz")
        (warning,) = _warnings_of_transforms(recwarn)
        assert "transformed by ScaleIntensityd of their dataset" in warning
        recwarn.clear()


def test_without_transforms_there_is_no_warning(experiment, tmp_path, recwarn):
    _Small(experiment).predict(_scan(tmp_path / "scan.nii.gz")[0])
    assert _warnings_of_transforms(recwarn) == []
