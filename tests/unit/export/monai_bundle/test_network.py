"""Every network of the zoo becomes part of a bundle, by MONAI's class or with its own module in ``scripts``."""

import pytest

from candy_monai.errors import BadInputError
from candy_monai.export.monai_bundle import export_monai_bundle
from candy_monai.incoming.bundle_inspection import inspect_bundle
from candy_monai.incoming.monai_bundle import load_bundle
from candy_monai.inference.predictor import experiment_predictor
from candy_monai.registry import bundle_names, find_bundle
from tests.bundles import PLANS, equal_share, predict_by_bundle, read_array, train_experiment, write_case
from tests.check_bundle import check_files, targets

CARRIED = {"cmunext": "scripts.cmunext.CMUNeXt", "unetpp": "scripts.unetpp.DeepestFirst"}
_SLOW = ("attention_unet", "mednext", "segresnet", "swin_unetr", "unetr", "vnet")


def _smallest(name):
    trainer = find_bundle(name).trainer
    follows_the_plan = name in ("unet", "dynunet", "attention_unet")
    return trainer if follows_the_plan or "S" not in trainer.sizes else trainer.with_network({"size": "S"})


@pytest.mark.parametrize("num_dims", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ())
        for name in bundle_names()
        if name not in ("monai", "unet")
    ],
)
def test_a_bundle_of_each_of_the_zoo_labels_as_the_experiment_does(name, num_dims, tmp_path, monkeypatch):
    plan = PLANS["pictures"] if num_dims == 2 else PLANS["volumes"]
    if name == "vnet" and num_dims == 2:
        pytest.skip("V-Net takes no colour pictures")
    experiment = train_experiment(tmp_path / "run", plan, cls=_smallest(name))
    files = write_case(tmp_path / "dataset" / "imagesTs", plan)
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    check_files(bundle)
    assert (CARRIED.get(name) in targets(bundle, "inference")) == (name in CARRIED)
    expected = experiment_predictor(experiment).predict([str(file) for file in files]).as_tensor()[0].numpy()
    written = predict_by_bundle(bundle, monkeypatch, tmp_path / "dataset")
    assert equal_share(read_array(written), expected) > 0.995
    opened = load_bundle(bundle).predict([str(file) for file in files]).as_tensor()[0].numpy()
    assert equal_share(opened, expected) > 0.999
    assert inspect_bundle(bundle).problem is None


def test_a_network_that_monai_does_not_have_is_no_part_of_a_portable_bundle(tmp_path):
    experiment = train_experiment(tmp_path / "run", PLANS["pictures"], cls=_smallest("unetpp"))
    with pytest.raises(BadInputError, match="MONAI does not have the network DeepestFirst: export without --portable"):
        export_monai_bundle([experiment], tmp_path / "bundle", portable=True)
