"""The inferer of a bundle: in the windows of the experiment, and with its padding of the network's input."""

import json

import pytest
from monai.inferers import SlidingWindowInferer

from candy_monai.errors import ExperimentError
from candy_monai.export.monai_bundle import export_monai_bundle
from candy_monai.incoming.monai_bundle import load_bundle
from candy_monai.inference.predictor import experiment_predictor as load_predictor
from candy_monai.nn.padding import Pad2d, Pad3d
from candy_monai_bundles.unet import UNetTrainer
from tests.bundles import PLANS, equal_share, predict_by_bundle, read_array, train_experiment, write_case


class Padded(UNetTrainer):
    """Pads to other multiples than those of its plan."""

    def build_padding_module(self):
        return Pad2d((12, 8)) if self.plan.slice_axis is not None else Pad3d((12, 8, 4))


class InWindows(UNetTrainer):
    """Validates in other windows than those of its plan, which are no multiples of 4."""

    def use_plan(self, plan):
        super().use_plan(plan)
        self.inferer = SlidingWindowInferer([10, 10, 1 if plan.slice_axis is not None else 10], overlap=0.25)


class Mirrored(UNetTrainer):
    """Pads with the image itself."""

    def build_padding_module(self):
        return Pad3d(8, mode="reflect")


@pytest.mark.parametrize("cls", [Padded, InWindows])
@pytest.mark.parametrize("name", ["volumes", "slices"])
def test_a_bundle_has_the_windows_and_the_padding_of_a_trainer_of_ones_own(name, cls, tmp_path, monkeypatch):
    plan = PLANS[name]
    experiment = train_experiment(tmp_path / "run", plan, cls=cls)
    files = [str(file) for file in write_case(tmp_path / "dataset" / "imagesTs", plan)]
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    expected = load_predictor(experiment).predict(files)[0].numpy()
    assert equal_share(read_array(predict_by_bundle(bundle, monkeypatch, tmp_path / "dataset")), expected) > 0.999
    assert equal_share(load_bundle(bundle).predict(files)[0].numpy(), expected) > 0.999


def test_other_padding_than_with_zeros_is_refused(tmp_path):
    experiment = train_experiment(tmp_path / "run", PLANS["volumes"], cls=Mirrored)
    with pytest.raises(ExperimentError, match=r"Mirrored pads images by Pad3d\(min_factor=\[8, 8, 8\].*mode='reflect'"):
        export_monai_bundle([experiment], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_padding_is_described_only_where_the_windows_need_it(tmp_path):
    experiment = train_experiment(tmp_path / "run", PLANS["volumes"])
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    assert "multiples" not in json.loads((bundle / "configs" / "inference.json").read_text())["inferer"]
