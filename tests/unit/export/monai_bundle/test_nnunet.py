"""Trained models of nnU-Net leave as bundles, which label as they do."""

import json

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import torch

from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.export.exporting import export_experiments
from candy_monai.export.monai_bundle.parity import equal_foreground, run_inference
from candy_monai.incoming.nnunet import NNUNetPredictor
from candy_monai.incoming.opening import load_predictor
from candy_monai.inference.predictor import Predictor
from tests.check_bundle import check_files, targets
from tests.nnunet_folders import plans, write_folder

pytest.importorskip("dynamic_network_architectures", reason="the networks of nnU-Net come with the extra nnunet")


def _plans(kind="PlainConvUNet", **changes):
    written = plans(kind=kind, **changes)
    for configuration in written["configurations"].values():
        arguments = configuration["architecture"]["arch_kwargs"]
        counts = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
        arguments |= {counts: [2, 2, 2], "n_conv_per_stage_decoder": [2, 2]}
    return written


FOLDERS = {
    "as MONAI's network": (_plans(), (0,), {}),
    "transposed, two folds": (_plans(transpose=(1, 2, 0), spacing=(1.0, 1.0, 2.0)), (0, 1), {}),
    "residual": (_plans("ResidualEncoderUNet"), (0,), {}),
    "residual, two folds": (_plans("ResidualEncoderUNet"), (0, 1), {}),
    "slices": (_plans(patch=(16, 12), spacing=(1.0, 1.0), configuration="2d"), (0,), {}),
    "regions": (
        _plans(),
        (0,),
        {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]},
    ),
}
_QUICK = ("as MONAI's network", "residual, two folds")


def _write_images(folder):
    folder.mkdir(parents=True)
    for seed in range(2):
        values = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(14, 22, 19)), 1.0) * 400 + 100
        values[:2], values[:, -1] = 0, 0
        image = nibabel.Nifti1Image(values.astype(np.float32), np.diag([-1.0, 1.2, 1.7, 1.0]))
        nibabel.save(image, folder / f"case{seed}_0000.nii.gz")
    return folder


@pytest.fixture(scope="module", params=[n if n in _QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FOLDERS])
def exported(request, tmp_path_factory, _few_threads):
    """Return the folder, its bundle, images and what was told."""
    work = tmp_path_factory.mktemp("nnunet")
    written, folds, dataset = FOLDERS[request.param]
    model = work / "nnUNetTrainer__nnUNetPlans__it"
    write_folder(model, written, folds=folds, **dataset)
    images, told = _write_images(work / "data" / "imagesTs"), []
    bundle = export_experiments(
        model, work / "it_segmentation", to="monai-bundle", images=images, on_progress=told.append
    )
    return request.param, model, bundle, images, told


def test_a_bundle_of_an_nnunet_labels_as_it_does_in_monai_and_when_it_is_opened_again(exported, tmp_path):
    _, model, bundle, images, told = exported
    assert "2 cases: " in told[-1]
    run_inference(bundle, images.parent, tmp_path / "by_monai")
    load_predictor(bundle).predict_to_files(images, tmp_path / "opened")
    for expected in NNUNetPredictor(model).predict_to_files(images, tmp_path / "expected"):
        share = equal_foreground(expected, tmp_path / "by_monai" / expected.name)
        assert share is not None
        assert share > 0.995
        assert equal_foreground(expected, tmp_path / "opened" / expected.name) > 0.995
        for found in ("by_monai", "opened"):
            affine = nibabel.load(tmp_path / found / expected.name).affine
            assert np.allclose(affine, nibabel.load(expected).affine)


def test_the_network_is_monais_own_where_that_computes_the_same(exported):
    name, _, bundle, _, _ = exported
    found = targets(bundle)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    needed = "dynamic-network-architectures" in metadata["required_packages_version"]
    assert needed == ("residual" in name)
    if "residual" in name:
        assert "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet" in found
    else:
        assert "monai.networks.nets.DynUNet" in found
        check_files(bundle)
    assert "nnU-Net, nnUNetTrainer" in (bundle / "docs" / "README.md").read_text()


@pytest.mark.parametrize("change", [{"n_conv_per_stage": [2, 3, 2]}, {"nonlin": "torch.nn.ReLU"}, {"conv_bias": False}])
def test_a_plain_network_that_monais_is_not_equal_to_stays_what_it_is(change, tmp_path):
    written = _plans()
    arguments = written["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments |= change
    if "nonlin" in change:
        arguments["nonlin_kwargs"] = {"inplace": True}
    write_folder(tmp_path / "m", written)
    bundle = export_experiments(tmp_path / "m", tmp_path / "b", to="monai-bundle", on_progress=lambda _: None)
    assert "dynamic_network_architectures.architectures.unet.PlainConvUNet" in targets(bundle)
    image = torch.randn(1, 1, 16, 24, 24)
    with torch.no_grad():
        expected, found = (load_predictor(each).model(image) for each in (tmp_path / "m", bundle))
    assert torch.equal(found, expected)


def test_scores_of_nnunets_validation_are_in_the_readme(tmp_path):
    write_folder(tmp_path / "m", _plans())
    scores = {"Dice": 0.812, "IoU": 0.7}
    summary = {"foreground_mean": scores, "mean": {"1": scores, "2": scores}}
    case = {"prediction_file": "/x/validation/case7.nii.gz"}
    (tmp_path / "m" / "fold_0" / "validation").mkdir()
    file = tmp_path / "m" / "fold_0" / "validation" / "summary.json"
    file.write_text(json.dumps(summary | {"metric_per_case": [case]}))
    bundle = export_experiments(tmp_path / "m", tmp_path / "b", to="monai-bundle", on_progress=lambda _: None)
    text = (bundle / "docs" / "README.md").read_text()
    assert "| organ | 0.8120 | 0.7000 | 1 |" in text
    assert "on validation cases, by nnU-Net" in text
    assert "Label maps were not compared" in text
    assert json.loads((bundle / "configs" / "train.json").read_text())["validation_cases"] == ["case7"]


def test_a_bundle_of_a_bundle_and_of_several_folders_of_nnunet_is_refused(tmp_path):
    for name in "ab":
        write_folder(tmp_path / name, _plans())
    with pytest.raises(BadInputError, match="averages either the folds of one nnU-Net model or several experiments"):
        export_experiments([tmp_path / "a", tmp_path / "b"], tmp_path / "out", to="monai-bundle", on_progress=print)
    bundle = export_experiments(tmp_path / "a", tmp_path / "bundle", to="monai-bundle", on_progress=print)
    with pytest.raises(ExperimentError, match="already a MONAI Bundle"):
        export_experiments(bundle, tmp_path / "out", to="monai-bundle", on_progress=print)


def test_predictor_names_what_opens_models_from_elsewhere(tmp_path):
    write_folder(tmp_path / "m", _plans())
    bundle = export_experiments(tmp_path / "m", tmp_path / "bundle", to="monai-bundle", on_progress=print)
    for folder, kind in {
        tmp_path / "m": "a trained nnU-Net",
        tmp_path / "m" / "fold_0": "a fold of a trained nnU-Net",
        bundle: "a MONAI Bundle",
    }.items():
        with pytest.raises(ExperimentError, match=rf"{kind}, but Predictor opens .*load_predictor\(folder\)"):
            Predictor(folder)


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_the_network_leaves_in_other_formats_compared_on_images(to, tmp_path):
    write_folder(tmp_path / "m", _plans("ResidualEncoderUNet"))
    images = _write_images(tmp_path / "images")
    file = export_experiments(tmp_path / "m", tmp_path / "out", to=to, images=images, on_progress=lambda _: None)
    described = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert [each["case"] for each in described["parity"]["compared"]] == ["case0", "case0", "case1", "case1"]
    assert all(each["equal_labels"] > 0.999 for each in described["parity"]["compared"])


HOSTILE = {
    "a call as a layer": {"conv_op": {"_target_": "os.system", "_mode_": "callable"}},
    "another class of its package": {"_target_": "dynamic_network_architectures.os.system"},
    "a network of a million stages": {"n_stages": 10**6, "kernel_sizes": [[3, 3, 3]] * 10**5},
    "a stage of a million layers": {"n_blocks_per_stage": [10**6, 2, 2]},
    "a network that fills the memory": {"features_per_stage": [4, 8, 10**5]},
    "texts for numbers": {"input_channels": "1"},
    "no kernels": {"kernel_sizes": None},
    "an argument that it does not take": {"hook": "$print(1)"},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_entry_for_a_network_of_nnunets_is_refused_by_name(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "m", _plans("ResidualEncoderUNet"))
    bundle = export_experiments(tmp_path / "m", tmp_path / "bundle", to="monai-bundle", on_progress=lambda _: None)
    file = bundle / "configs" / "inference.json"
    config = json.loads(file.read_text())
    config["network_def"] |= changes
    file.write_text(json.dumps(config))
    with pytest.raises(BadInputError, match=r"bundle/configs/inference\.json"):
        load_predictor(bundle)


def test_an_export_that_ends_early_leaves_nothing(tmp_path, monkeypatch):
    write_folder(tmp_path / "m", _plans())

    def ended(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("candy_monai.export.monai_bundle.bundle.write_readme", ended)
    with pytest.raises(KeyboardInterrupt):
        export_experiments(tmp_path / "m", tmp_path / "out" / "b", to="monai-bundle", on_progress=lambda _: None)
    assert list((tmp_path / "out").iterdir()) == []
