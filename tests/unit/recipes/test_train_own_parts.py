import json
from typing import ClassVar

import pytest
import torch

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.reading import load_image
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.description import read_description
from candy_monai.experiment.state import load_state
from candy_monai.incoming.opening import load_predictor
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.resume import resume_training
from candy_monai.recipes.train import train_dataset
from candy_monai.recipes.trainers import check_trainer_args, find_trainer
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.unet import UNetTrainer

TINY = {"filters": "4,8,8", "iterations_per_epoch": "3", "batch_size": "2", "validate_every": "1"}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", num_cases=6, shape=(24, 26, 16))


def _quiet(_message):
    pass


OWN = {
    "preprocessing": [{"_target_": "ScaleIntensityd", "keys": "image", "minv": 2.0, "maxv": 3.0}],
    "augmentation": [{"_target_": "candy_monai.transforms.RandBlurd", "keys": "image", "prob": 1.0}],
    "postprocessing": [{"_target_": "LabelFilterd", "keys": "pred", "applied_labels": [2]}],
}


def test_transforms_of_ones_own_are_trained_with_kept_and_resumed_with(phantom, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    options = {"num_epochs": 1, "overrides": TINY, "device": "cpu", "out": tmp_path, "on_progress": _quiet}
    folder = train_dataset(phantom, transforms=tmp_path / "own.json", **options)
    described = json.loads((folder / "experiment.json").read_text())["pipelines"]
    assert [described["preprocessing"][-2]] == OWN["preprocessing"]
    assert [described["augmentation"][-2]] == OWN["augmentation"]
    assert described["postprocessing"][-1:] == OWN["postprocessing"]
    stores = sorted((tmp_path / ".store").glob("*-*/store*.json"))
    resume_training(folder, num_epochs=2, schedule="restart", device="cpu", on_progress=_quiet)
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert json.loads((folder / "experiment.json").read_text())["pipelines"] == described
    assert sorted((tmp_path / ".store").glob("*-*/store*.json")) == stores  # what was stored serves again
    predictor = load_predictor(folder)
    image = NNUNetDataset(phantom).load(0)[0]
    prepared = predictor.prepare("case", image).cases[0].image
    assert (float(prepared.min()), float(prepared.max())) == (2.0, 3.0)
    plain = predictor.run(predictor.prepare("case", image)).labels.as_tensor()
    assert torch.equal(predictor.predict(image).as_tensor(), torch.where(plain == 2, plain, 0))


def test_transforms_of_a_trainers_attributes_are_those_of_the_run_unless_a_file_has_others(phantom, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from candy_monai_bundles.unet import UNetTrainer\n"
        f"class Mine(UNetTrainer):\n    preprocessing = {OWN['preprocessing']}\n"
        f"    postprocessing = {OWN['postprocessing']}\n"
    )
    (tmp_path / "own.json").write_text(json.dumps({"postprocessing": [{"_target_": "FillHolesd", "keys": "pred"}]}))
    options = {"num_epochs": 1, "overrides": TINY, "device": "cpu", "out": tmp_path, "on_progress": _quiet}
    options |= {"trainer": f"{tmp_path / 'mine.py'}:Mine", "transforms": tmp_path / "own.json"}
    described = json.loads((train_dataset(phantom, **options) / "experiment.json").read_text())["pipelines"]
    assert [described["preprocessing"][-2]] == OWN["preprocessing"]
    assert described["postprocessing"][-1]["_target_"] == "FillHolesd"


def test_a_trainers_attribute_that_cannot_be_built_is_refused_with_its_position(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from candy_monai import SegmentationOptions\n"
        "from candy_monai_bundles.unet import UNetTrainer\n"
        "class Mine(UNetTrainer):\n    options = SegmentationOptions(preprocessing=[{'_target_': 'os.system'}])\n"
    )
    with pytest.raises(SettingsError, match=r"Mine\.preprocessing\[0\]: os\.system"):
        train_dataset(tmp_path / "nowhere", trainer=f"{tmp_path / 'mine.py'}:Mine", out=tmp_path, on_progress=_quiet)


@pytest.mark.slow
def test_a_run_of_a_version_that_kept_no_pipelines_goes_on_and_predicts(phantom, tmp_path):
    options = {"num_epochs": 1, "overrides": TINY, "device": "cpu", "out": tmp_path, "on_progress": _quiet}
    folder = train_dataset(phantom, **options)
    description = json.loads((folder / "experiment.json").read_text())
    del description["pipelines"], description["plan"]["resampling"]
    (folder / "experiment.json").write_text(json.dumps(description))
    resume_training(folder, num_epochs=2, schedule="restart", device="cpu", on_progress=_quiet)
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    case = NNUNetDataset(phantom).cases[0]
    assert load_predictor(folder).predict(case.images).shape == load_image(case.label, is_label=True).shape


def test_a_list_of_transforms_that_cannot_be_built_is_refused_before_the_dataset_is_read(tmp_path):
    (tmp_path / "own.yml").write_text("- _target_: RandFlipd\n  keys: [image]\n- _target_: os.system\n")
    with pytest.raises(SettingsError, match=r"own\.yml: augmentation\[1\]: os\.system"):
        train_dataset(tmp_path / "nowhere", transforms=tmp_path / "own.yml", on_progress=_quiet)


MINE = {
    "its own settings": """
from candy_monai import SegmentationOptions
from candy_monai_bundles.unet import UNetTrainer
class Mine(UNetTrainer):
    options = SegmentationOptions(weight_decay=0.5)
""",
    "its own network in the bundle's trainer": """
from candy_monai_bundles.unet import UNetTrainer
from torch import nn
class Mine(UNetTrainer):
    def build_network(self, example_shape):
        return nn.Conv3d(example_shape[0], self.num_classes, 3, padding=1)
""",
    "no bundle at all": """
from candy_monai import SegmentationTrainer
from torch import nn
class Mine(SegmentationTrainer):
    def build_network(self, example_shape):
        return nn.Conv3d(example_shape[0], self.num_classes, 3, padding=1)
""",
}


@pytest.mark.parametrize("code", MINE.values(), ids=MINE)
def test_a_trainer_of_the_user_s_own_is_taken_from_its_file_trained_and_scored(phantom, tmp_path, code):
    file = tmp_path / "mine.py"
    file.write_text(code)
    folder = train_dataset(
        phantom, num_epochs=1, overrides=TINY, device="cpu", out=tmp_path, trainer=f"{file}:Mine", on_progress=_quiet
    )
    assert folder.parent.name == "Mine"
    assert (folder / "validation.json").exists()


@pytest.mark.parametrize("where", ["nowhere.py:T", "T", "{file}:Missing", "{file}:NotATrainer"])
def test_a_trainer_that_cannot_be_had_is_a_clear_error(tmp_path, where):
    file = tmp_path / "mine.py"
    file.write_text("class NotATrainer:\n    pass\n")
    with pytest.raises(BadInputError, match="--trainer"):
        find_trainer(own=where.format(file=file))


def test_a_class_can_stand_for_a_file_with_a_trainer(phantom, tmp_path):
    class Mine(UNetTrainer):
        options = SegmentationOptions(weight_decay=0.5)

    options = TrainOptions(num_epochs=1, overrides=TINY, device="cpu", out=tmp_path)
    folder = train_dataset(phantom, options, trainer=Mine, on_progress=_quiet)
    assert folder.parent.name == "Mine"


class Sized(UNetTrainer):
    sizes = (1, 2)
    seen: ClassVar[list[object]] = []

    def build_network(self, example_shape):
        self.seen.append(self.sizes)
        return super().build_network(example_shape)


def test_attributes_of_the_trainer_that_are_none_or_are_the_plans_are_refused():
    for name, value, said in [
        ("max_grad_nrm", 1.0, "Did you mean 'max_grad_norm'"),
        ("max_grad_norm", "often", "got 'often', expected float, such as 12.0"),
        ("max_grad_norm", True, "got True"),
        ("filters", (8, 16), "The plan decides it: --set filters="),
        ("build_network", 1, "no attribute 'build_network'"),
        ("_score_range", 1, "no attribute '_score_range'"),
    ]:
        with pytest.raises(SettingsError, match=said):
            check_trainer_args(UNetTrainer, {name: value})
    check_trainer_args(UNetTrainer, {"max_grad_norm": 3})
    check_trainer_args(UNetTrainer, {"max_grad_norm": None})
    check_trainer_args(Sized, {"sizes": (3, 4)})
    check_trainer_args(Sized, {"sizes": [3, 4]})  # as in a file of options


@pytest.mark.slow
def test_a_run_keeps_the_attributes_of_its_trainer_when_it_is_resumed(tmp_path):
    dataset = write_phantom_dataset(tmp_path / "phantom", num_cases=4, shape=(24, 26, 16))
    options = {"overrides": TINY, "num_epochs": 1, "device": "cpu", "out": tmp_path / "out", "seed": 1}
    attributes = {"max_grad_norm": 1e-6, "sizes": [3, 4]}
    folder = train_dataset(dataset, trainer=Sized, trainer_args=attributes, **options)
    assert read_description(folder).more["trainer_args"] == attributes
    resume_training(folder, num_epochs=2, schedule="keep", device="cpu", trainer=Sized)
    assert read_description(folder).more["trainer_args"] == attributes
    assert len(load_state(folder).history["rows"]) == 2
    assert set(Sized.seen) == {(3, 4)}
