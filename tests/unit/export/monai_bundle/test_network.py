"""A network becomes part of a bundle by MONAI's class, or with its own module in ``scripts``."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.export.monai_bundle import export_monai_bundle
from candy_monai.export.monai_bundle.network import checked_sizes
from candy_monai.incoming.bundle_inspection import inspect_bundle
from candy_monai.incoming.monai_bundle import load_bundle
from candy_monai.inference.predictor import experiment_predictor
from candy_monai.registry import find_bundle
from tests.bundles import PLANS, equal_share, predict_by_bundle, read_array, train_experiment, write_case
from tests.check_bundle import check_files, targets

CARRIED = {"cmunext": "scripts.cmunext.CMUNeXt", "unetpp": "scripts.unetpp.DeepestFirst"}


def _smallest(name):
    trainer = find_bundle(name).trainer
    return trainer if name == "dynunet" else trainer.with_network({"size": "S"})


@pytest.mark.parametrize("name", ["dynunet", *CARRIED])
def test_a_bundle_labels_as_the_experiment_does(name, tmp_path, monkeypatch):
    plan = PLANS["pictures"]
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


def test_a_network_with_another_number_of_outputs_is_refused_by_name():
    plan = PLANS["pictures"]
    built, trained = (nn.Conv2d(len(plan.channel_names), count, 1) for count in (2, 3))
    predictor = SimpleNamespace(plan=plan, device=lambda: torch.device("cpu"))
    with pytest.raises(ExperimentError, match="run: the network is a Conv2d, .* differs from it by inf"):
        checked_sizes(built, trained, predictor, "run: the network is a Conv2d")
