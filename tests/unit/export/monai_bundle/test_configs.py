"""What ``train.json`` trains is what the experiment trained, with the parts that MONAI and PyTorch have for it."""

import json
import sys
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import LoadImaged

from candy_monai import load_image, save_image
from candy_monai.export.monai_bundle import export_monai_bundle
from candy_monai.export.monai_bundle.configs import _saving
from candy_monai.nn.deep_supervision import DeepSupervisionLoss
from candy_monai.nn.losses import DiceCELossWithLogits
from candy_monai.registry import find_bundle
from tests.bundles import PLANS, train_experiment, write_training_cases

PICTURES = PLANS["pictures"]


@pytest.fixture(params=["unet", "unetpp"])
def training(request, tmp_path, monkeypatch):
    """Return the parser of a bundle's ``train.json`` before a run of two steps, and the run."""
    experiment = train_experiment(tmp_path / "run", PICTURES, cls=find_bundle(request.param).trainer)
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    write_training_cases(tmp_path / "dataset", PICTURES)
    _forget_scripts(monkeypatch)
    monkeypatch.syspath_prepend(bundle)
    workflow = ConfigWorkflow(
        workflow_type="train",
        config_file=str(bundle / "configs" / "train.json"),
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(tmp_path / "dataset"),
        epochs=2,
        **{"train#dataloader#num_workers": 0},
    )
    workflow.initialize()
    yield workflow, bundle
    workflow.finalize()
    _forget_scripts(monkeypatch)


def _forget_scripts(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_average_of_a_network_with_deep_supervision_is_saved_for_the_network_of_inference(training):
    workflow, bundle = training
    assert workflow.check_properties() == []
    parser = workflow.parser
    network, steps = parser.get_parsed_content("network_def"), []
    parser.get_parsed_content("optimizer").register_step_post_hook(
        lambda *_: steps.append({name: value.detach().clone() for name, value in network.named_parameters()})
    )
    workflow.run()
    saved = torch.load(bundle / "models" / "model.pt", weights_only=True)
    inference = ConfigParser()
    inference.read_config(bundle / "configs" / "inference.json")
    deployed = inference.get_parsed_content("network_def")
    deployed.load_state_dict(saved)
    validated = parser.get_parsed_content("validate#network").state_dict()
    assert all(torch.equal(validated[name], value) for name, value in saved.items())
    first, second = steps
    assert not torch.equal(first[name := next(iter(first))], second[name])
    for name, value in deployed.named_parameters():
        # As `ExponentialMovingAverage` has it, but that it begins with the weights after the first step.
        assert torch.allclose(value, first[name].lerp(second[name], 9 / 11), atol=1e-7)


def test_the_loss_of_all_outputs_is_that_of_the_experiment(training):
    workflow, _ = training
    parser = workflow.parser
    network, loss = (parser.get_parsed_content(name) for name in ("network", "loss"))
    parser.get_parsed_content("train#hooks")
    labels = torch.randint(3, (2, 1, 1, 1), generator=torch.Generator().manual_seed(0)).expand(2, 1, 32, 32)
    outputs = network.train()(torch.randn(2, 3, 32, 32))
    assert len(outputs) > 1
    expected, _ = DeepSupervisionLoss(DiceCELossWithLogits(3))(outputs, labels)
    assert float(loss(outputs, labels.float()).detach()) == pytest.approx(float(expected.detach()), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("segresnet", {"optimizer": "torch.optim.AdamW", "lr_scheduler": "monai.optimizers.WarmupCosineSchedule"}),
        ("cmunext", {"optimizer": "torch.optim.SGD", "lr_scheduler": "torch.optim.lr_scheduler.PolynomialLR"}),
    ],
)
def test_optimizer_and_schedule_are_of_the_experiment_s_kind(name, kinds, tmp_path):
    trainer = find_bundle(name).trainer.with_network({"size": "S"})
    bundle = export_monai_bundle([train_experiment(tmp_path / "run", PICTURES, cls=trainer)], tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    assert {place: parser[f"{place}#_target_"] for place in kinds} == kinds
    assert parser["optimizer#lr"] == trainer.options.learning_rate
    if name == "segresnet":
        assert parser["optimizer#betas"] == [0.9, 0.999]
    if name == "cmunext":
        assert (parser["optimizer#momentum"], parser["optimizer#nesterov"]) == (0.99, True)
        assert parser["lr_scheduler#power"] == 0.9


def test_an_optimizer_with_other_options_for_some_parameters_becomes_adamw_and_the_readme_says_so(tmp_path):
    experiment = train_experiment(tmp_path / "run", PICTURES)
    description = json.loads((experiment / "experiment.json").read_text())
    description["parts"]["optimizer"] = {"kind": "SGD", "lr": [0.1, 0.1], "momentum": [0.9, 0.5]}
    (experiment / "experiment.json").write_text(json.dumps(description))
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    optimizer = json.loads((bundle / "configs" / "train.json").read_text())["optimizer"]
    assert optimizer.keys() == {"_target_", "params", "lr", "weight_decay"}
    assert optimizer["_target_"] == "torch.optim.AdamW"
    assert "AdamW with its defaults instead of the experiment's SGD" in (bundle / "docs" / "README.md").read_text()


def _label_map_of(image, plan):
    """Return the file that a bundle for such a plan writes for an image, whose values are the ids."""
    name, _, ending = image.name.partition("_0000")
    source = SimpleNamespace(plan=plan, file_ending=ending)
    config = {"imports": ["$import os"], "output_dir": str(image.parent / "out"), "steps": _saving(source)}
    data = LoadImaged("image", ensure_channel_first=True)({"image": str(image)})
    data["pred"] = data["image"].clone()
    for step in ConfigParser(config).get_parsed_content("steps"):
        data = step(data)
    return image.parent / "out" / f"{name}{ending}"


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("shape", [(1, 5, 6), (5, 1, 6), (5, 6, 1), (5, 6, 4)])
def test_a_label_map_is_saved_with_all_axes_of_its_image(shape, suffix, tmp_path):
    turned = np.array([[0.0, -0.7, 0.0, 5.0], [0.0, 0.0, 3.0, 6.0], [0.8, 0.0, 0.0, -7.0], [0.0, 0.0, 0.0, 1.0]])
    ids = torch.arange(np.prod(shape)).reshape(1, *shape) % 3
    file = tmp_path / f"case_0000{suffix}"
    save_image(MetaTensor(ids.float(), affine=torch.from_numpy(turned)), file)
    written = load_image(_label_map_of(file, PLANS["volumes"]), is_label=True)
    assert torch.equal(written.as_tensor(), ids)
    assert np.allclose(written.affine, turned)


def test_the_label_map_of_a_flat_nifti_file_is_flat(tmp_path):
    ids, file = np.arange(30, dtype=np.float32).reshape(5, 6) % 3, tmp_path / "case_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(ids, np.eye(4)), file)
    assert np.array_equal(nibabel.load(_label_map_of(file, PLANS["pictures"])).dataobj, ids)
