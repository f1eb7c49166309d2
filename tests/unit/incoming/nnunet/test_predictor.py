from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from candy_monai.cli.main import main
from candy_monai.errors import ExperimentError
from candy_monai.incoming.nnunet import NNUNetPredictor, load_nnunet_network
from candy_monai.incoming.opening import kind_of_model, load_predictor
from tests.nnunet_folders import plans, write_folder

pytest.importorskip("dynamic_network_architectures", reason="the networks of nnU-Net come with the extra nnunet")


def scan(shape=(13, 22, 19), *, seed=0, spacing=(1.0, 1.0, 2.0)):
    """Return a smooth volume with blank borders, as a NIfTI image; axes x, y, z."""
    values = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0) * 400 + 100
    values[:2], values[:, -1] = 0, 0
    return nibabel.Nifti1Image(values.astype(np.float32), np.diag([*spacing, 1.0]))


def steps(extent, side):
    count = int(np.ceil((extent - side) / (side * 0.5))) + 1
    return [int(np.round((extent - side) / max(count - 1, 1) * index)) for index in range(count)]


def windows_of_nnunet(image, network, patch, mirror):
    """Return the logits of nnU-Net's sliding window over ``(C, *spatial)``, written down as its description says."""
    flat = image.ndim - 1 > len(patch)
    missing = [max(side - size, 0) for side, size in zip(patch, image.shape[-len(patch) :], strict=True)]
    before = [total // 2 for total in missing]
    pads = [(0, 0)] * (image.ndim - len(patch)) + [
        (start, total - start) for start, total in zip(before, missing, strict=True)
    ]
    padded = torch.from_numpy(np.pad(image, pads)).float()
    impulse = np.zeros(patch)
    impulse[tuple(side // 2 for side in patch)] = 1
    weights = scipy.ndimage.gaussian_filter(impulse, [side / 8 for side in patch], mode="constant")
    weights = torch.from_numpy(weights / weights.max() * 10).half().float()
    weights[weights == 0] = weights[weights > 0].min()
    flips = [c for n in range(len(mirror) + 1) for c in itertools.combinations([axis + 2 for axis in mirror], n)]
    total, count = None, torch.zeros(padded.shape[1:], dtype=torch.half)
    spatial = padded.shape[-len(patch) :]
    for layer in range(padded.shape[1]) if flat else [slice(None)]:
        for corner in itertools.product(*(steps(e, s) for e, s in zip(spatial, patch, strict=True))):
            place = (
                slice(None),
                *((layer,) if flat else ()),
                *(slice(c, c + s) for c, s in zip(corner, patch, strict=True)),
            )
            window = padded[place][None]
            with torch.no_grad():
                scores = [network(window.flip(f)).flip(f) for f in flips]
            mean = torch.stack(scores).mean(0)[0]
            total = torch.zeros((len(mean), *padded.shape[1:]), dtype=torch.half) if total is None else total
            total[place] += mean * weights
            count[place[1:]] += weights
    crop = tuple(slice(b, b + s) for b, s in zip(before, image.shape[-len(patch) :], strict=True))
    return (total / count)[(..., *crop)].float().numpy()


def box_of(image):
    places = np.nonzero((image != 0).any(0))
    return tuple(slice(int(place.min()), int(place.max()) + 1) for place in places)


def predicted_as_nnunet(values, networks, patch, *, transpose=(0, 1, 2), mirror=(), normalise=None, decide=None):
    """Return nnU-Net's label map of ``(x, y, z)`` values that need no resampling."""
    array = values.transpose(2, 1, 0).transpose(transpose)[None].astype(np.float32)
    box = box_of(array)
    cropped = array[(slice(None), *box)]
    cropped = (cropped - cropped.mean()) / cropped.std() if normalise is None else normalise(cropped)
    folds = [windows_of_nnunet(cropped, network, patch, mirror).astype(np.float16) for network in networks]
    logits = sum(folds[1:], folds[0]) / np.float16(len(folds))
    labels = np.zeros(array.shape[1:], dtype=np.uint8)
    labels[box] = logits.argmax(0) if decide is None else decide(logits)
    return labels.transpose(np.argsort(transpose)).transpose(2, 1, 0)


def share_equal(found, expected):
    foreground = (found > 0) | (expected > 0)
    assert foreground.mean() > 0.1  # else nothing is compared
    return (found == expected)[foreground].mean()


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_3d_model_predicts_what_nnunets_steps_give_with_axes_in_any_order(tmp_path, transpose, kind):
    spacing = [(2.0, 1.0, 1.0)[axis] for axis in transpose]
    written = plans(transpose=transpose, spacing=spacing, kind=kind)
    networks = write_folder(tmp_path / "m", written, mirror=(0, 2))
    image = scan()
    for mirror, axes in ((False, ()), (True, (0, 2))):
        expected = predicted_as_nnunet(image.get_fdata(), networks, (8, 16, 12), transpose=transpose, mirror=axes)
        found = NNUNetPredictor(tmp_path / "m", mirror=mirror).predict(image)[0].numpy()
        assert share_equal(found, expected) >= 0.9999


def test_the_folds_are_averaged_by_their_logits(tmp_path):
    networks = write_folder(tmp_path / "m", plans(), folds=(0, 1, "all"))
    image = scan()
    expected = predicted_as_nnunet(image.get_fdata(), networks[:2], (8, 16, 12))
    predictor = NNUNetPredictor(tmp_path / "m")
    assert [path.parent.name for path in predictor.checkpoints] == ["fold_0", "fold_1"]
    assert share_equal(predictor.predict(image)[0].numpy(), expected) >= 0.9999
    one = predicted_as_nnunet(image.get_fdata(), networks[1:2], (8, 16, 12))
    assert share_equal(NNUNetPredictor(tmp_path / "m" / "fold_1").predict(image)[0].numpy(), one) >= 0.9999


def test_a_2d_model_runs_the_slices_of_a_volume(tmp_path):
    written = plans(patch=(16, 12), spacing=(1.0, 1.0), configuration="2d")
    networks = write_folder(tmp_path / "m", written, mirror=(0, 1))
    image = scan()
    predictor = NNUNetPredictor(tmp_path / "m", mirror=True)
    assert (predictor.plan.slice_axis, predictor.plan.patch_shape) == (2, (12, 16, 1))
    expected = predicted_as_nnunet(image.get_fdata(), networks, (16, 12), mirror=(0, 1))
    assert share_equal(predictor.predict(image)[0].numpy(), expected) >= 0.9999


def test_pictures_of_several_channels_keep_their_axes(tmp_path):
    written = plans(
        patch=(16, 24),
        spacing=(1.0, 1.0),
        configuration="2d",
        reader="NaturalImage2DIO",
        scheme="RGBTo01Normalization",
        num_channels=3,
    )
    networks = write_folder(tmp_path / "m", written, file_ending=".png", channel_names=("R", "G", "B"))
    pixels = np.random.default_rng(0).integers(1, 255, (30, 41, 3)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a_0000.png")
    (file,) = NNUNetPredictor(tmp_path / "m").predict_to_files(tmp_path / "in", tmp_path / "out")
    logits = windows_of_nnunet(pixels.transpose(2, 0, 1)[:, None] / 255, networks[0], (16, 24), ())
    assert share_equal(np.asarray(Image.open(file)), logits.argmax(0)[0]) >= 0.9999


def test_zeros_within_a_picture_are_background_where_the_plans_normalise_by_the_mask(tmp_path):
    written = plans(patch=(16, 24), spacing=(1.0, 1.0), configuration="2d", reader="NaturalImage2DIO", uses_mask=True)
    networks = write_folder(tmp_path / "m", written, file_ending=".png")
    pixels = np.random.default_rng(0).integers(1, 255, (30, 41)).astype(np.uint8)
    pixels[8:16, 8:16] = 0
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a_0000.png")
    (file,) = NNUNetPredictor(tmp_path / "m").predict_to_files(tmp_path / "in", tmp_path / "out")
    inside = pixels > 0
    normal = np.where(inside, (pixels - pixels[inside].mean()) / pixels[inside].std(), 0)
    logits = windows_of_nnunet(normal[None, None], networks[0], (16, 24), ())
    assert share_equal(np.asarray(Image.open(file)), logits.argmax(0)[0]) >= 0.9999


def test_regions_are_painted_in_their_order_and_ct_is_clipped_by_the_plans(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "lesion": 2}
    networks = write_folder(
        tmp_path / "m",
        plans(scheme="CTNormalization"),
        labels=labels,
        channel_names=("CT",),
        regions_class_order=[1, 2],
    )
    image = scan()

    def paint(logits):
        return np.where(logits[1] > 0, 2, np.where(logits[0] > 0, 1, 0))

    expected = predicted_as_nnunet(
        image.get_fdata(),
        networks,
        (8, 16, 12),
        normalise=lambda values: (np.clip(values, -20, 150) - 40) / 20,
        decide=paint,
    )
    found = NNUNetPredictor(tmp_path / "m").predict(image)[0].numpy()
    assert share_equal(found, expected) >= 0.9999


def test_thick_slices_are_resampled_apart_and_logits_brought_back_in_the_same_way(tmp_path):
    networks = write_folder(tmp_path / "m", plans(spacing=(4.0, 0.8, 1.25)))
    image = scan((16, 20, 9), spacing=(1.0, 1.0, 5.0))  # x, y, z: the third axis is nnU-Net's first
    array = image.get_fdata().transpose(2, 1, 0)[None].astype(np.float32)
    box = box_of(array)
    cropped = array[(slice(None), *box)]
    cropped = (cropped - cropped.mean()) / cropped.std()
    old = cropped.shape[1:]
    new = tuple(round(size * a / b) for size, a, b in zip(old, (5.0, 1.0, 1.0), (4.0, 0.8, 1.25), strict=True))

    def nearest(values, size):
        return values[((np.arange(size) + 0.5) * (len(values) / size)).astype(int)]

    def resized(values, shape, order):
        slices = []
        for plane in values:
            factors = [b / a for a, b in zip(plane.shape, shape[1:], strict=True)]
            larger = scipy.ndimage.zoom(plane.astype(float), factors, order=order, mode="nearest", grid_mode=True)
            slices.append(np.clip(larger, plane.min(), plane.max()))
        return nearest(np.stack(slices), shape[0])

    logits = windows_of_nnunet(resized(cropped[0], new, 3)[None], networks[0], (8, 16, 12), ())
    labels = np.zeros(array.shape[1:], dtype=np.uint8)
    labels[box] = np.stack([resized(channel, old, 1) for channel in logits]).astype(np.float16).argmax(0)
    predictor = NNUNetPredictor(tmp_path / "m")
    prediction = predictor.predict_image(image, probabilities=True)
    assert share_equal(prediction.labels[0].numpy(), labels.transpose(2, 1, 0)) >= 0.9999
    assert torch.equal(prediction.probabilities.argmax(0), prediction.labels[0].long())


def test_the_command_predicts_with_the_folder_and_memory_changes_nothing(tmp_path, capsys):
    write_folder(tmp_path / "Dataset999" / "nnUNetTrainer__nnUNetPlans__3d_fullres", plans(), mirror=(0, 1, 2))
    (tmp_path / "in").mkdir()
    nibabel.save(scan((20, 26, 24)), tmp_path / "in" / "a_0000.nii.gz")
    model = tmp_path / "Dataset999"
    command = ["predict", str(model), str(tmp_path / "in")]
    assert main([*command, str(tmp_path / "out"), "--mirror"]) == 0
    assert main([*command, str(tmp_path / "little"), "--mirror", "--memory", "3M"]) == 0
    first, second = (nibabel.load(tmp_path / name / "a.nii.gz").get_fdata() for name in ("out", "little"))
    assert (first > 0).any()
    assert np.array_equal(first, second)
    assert isinstance(load_predictor(model), NNUNetPredictor)
    assert kind_of_model(model) == "nnU-Net"


def test_the_network_alone_has_the_axes_of_the_file(tmp_path):
    (network,) = write_folder(tmp_path / "m", plans())
    mine, plan = load_nnunet_network(tmp_path / "m")
    image = torch.rand(1, 1, 8, 16, 12)
    with torch.no_grad():
        turned = mine(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        assert torch.allclose(turned, network(image), atol=1e-5)
    assert plan.spacing_mm == (1.0, 1.0, 2.0)


def test_folds_of_other_configurations_are_refused(tmp_path):
    write_folder(tmp_path / "m", plans(), folds=(0, 1))
    file = tmp_path / "m" / "fold_1" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["init_args"]["configuration"] = "3d_lowres"
    torch.save(content, file)
    with pytest.raises(ExperimentError, match="trained as 3d_lowres"):
        NNUNetPredictor(tmp_path / "m")


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.timeout(600)
def test_labels_are_those_of_nnunet_itself(tmp_path):
    python = os.environ.get("CANDY_MONAI_NNUNET_PYTHON")
    data = Path(os.environ.get("CANDY_MONAI_DATA", "missing")) / "Dataset004_Hippocampus"
    if not python or not data.is_dir():
        pytest.skip("CANDY_MONAI_NNUNET_PYTHON names no Python that has nnunetv2, or CANDY_MONAI_DATA no images")
    write_folder(tmp_path / "m", plans(patch=(32, 40, 32), spacing=(1.2, 0.8, 1.0)), mirror=(0, 1, 2), folds=(0, 1))
    (tmp_path / "in").mkdir()
    for file in sorted((data / "imagesTr").iterdir())[:2]:
        (tmp_path / "in" / file.name).write_bytes(file.read_bytes())
    paths = {f"nnUNet_{name}": str(tmp_path) for name in ("raw", "preprocessed", "results")}
    command = [Path(python).with_name("nnUNetv2_predict_from_modelfolder"), *("-f", "0", "1"), *("-device", "cpu")]
    for option, name in (("-m", "m"), ("-i", "in"), ("-o", "theirs")):
        command += [option, tmp_path / name]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, *("-npp", "1"), *("-nps", "1")],
        env={**environment, **paths},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    predictor = NNUNetPredictor(tmp_path / "m", mirror=True)
    for prediction in predictor.stream(tmp_path / "in"):
        theirs = nibabel.load(tmp_path / "theirs" / f"{prediction.case_id}.nii.gz").get_fdata()
        assert share_equal(prediction.labels[0].numpy(), theirs) >= 0.999


def test_the_plans_that_were_opened_can_be_stored_as_any_plan(tmp_path):
    write_folder(tmp_path / "m", plans())
    plan = NNUNetPredictor(tmp_path / "m").plan
    assert type(plan).from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
