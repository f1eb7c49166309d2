from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Invertd, RandFlipd

from candy_monai.data.images.writing import save_image
from candy_monai.data.pipelines.building import build_pipeline, check_own_transforms, read_own_transforms
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.errors import ImageReadError, SettingsError

FLIP = {"_target_": "monai.transforms.RandFlipd", "keys": ["image"], "prob": 1.0, "spatial_axis": 0}
FLIP_BOTH = FLIP | {"keys": ["image", "label"]}
MODES = {"image": "bilinear", "label": "nearest"}


def built(*entries, **options):
    return build_pipeline(list(entries), name="augmentation", **options)


def refused(message, *entries):
    with pytest.raises(SettingsError, match=message):
        built(*entries)


def test_transforms_of_monai_and_ours_are_built_and_the_pipeline_is_a_compose():
    pipeline = built(
        FLIP, FLIP | {"_target_": "RandFlipd"}, {"_target_": "candy_monai.transforms.RandBlurd", "keys": "image"}
    )
    assert isinstance(pipeline, Compose)
    assert isinstance(pipeline.transforms[0], RandFlipd)
    image = torch.rand(1, 3, 4)
    assert torch.equal(built(FLIP)({"image": image})["image"], image.flip(1))
    assert torch.equal(pickle.loads(pickle.dumps(built(FLIP)))({"image": image})["image"], image.flip(1))


def test_it_prints_every_step_with_its_arguments():
    select = {"_target_": "torch.ne", "_mode_": "callable", "other": 0}
    crop = {"_target_": "monai.transforms.CropForegroundd", "keys": "image", "source_key": "image", "select_fn": select}
    assert str(built(FLIP, crop)) == (
        "0: RandFlipd(keys=['image'], prob=1.0, spatial_axis=0)\n"
        "1: CropForegroundd(keys='image', source_key='image', select_fn=torch.ne(other=0))"
    )


def test_what_a_transform_raises_comes_out_as_it_was():
    with pytest.raises(KeyError, match="image"):
        built(FLIP)({"label": torch.rand(1, 3)})


def test_a_known_function_is_an_argument():
    select = {"_target_": "torch.ne", "_mode_": "callable", "other": 0}
    crop = built({"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "select_fn": select})
    image = torch.tensor([[[0.0, -1.0, 0.0]]])
    assert crop({"image": image})["image"].shape == (1, 1, 1)


def test_a_reference_means_the_transforms_that_were_built_of_that_list():
    flips = built(FLIP)
    invert = {
        "_target_": "Invertd",
        "keys": "pred",
        "orig_keys": "image",
        "transform": {"_target_": "Compose", "transforms": "@preprocessing"},
    }
    pipeline = built(invert, transforms={"preprocessing": flips.transforms})
    assert pipeline.transforms[0].transform.transforms[0] is flips.transforms[0]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "monai.transforms.compose.warnings.sys.exit",
        "monai.transforms.utils.np.load",
        "monai.data.DataLoader",
        "torch.load",
        "torch.ne",
        "candy_monai.transforms.warping.np.load",
        "RandFlip3d",
        7,
        ["os.system"],
        {"os": "system"},
    ],
)
def test_any_other_target_is_refused_with_the_position_of_the_entry(target):
    refused(r"augmentation\[1\]: ", FLIP, {"_target_": target, "keys": "image"})


@pytest.mark.parametrize("text", ["$import os", "@image", "%file.json", "a@b", "image$"])
def test_expressions_and_references_are_refused_wherever_they_stand(text):
    refused(r"augmentation\[0\]\.keys", FLIP | {"keys": text})
    refused(r"augmentation\[0\]\.keys\[1\]", FLIP | {"keys": ["image", text]})


@pytest.mark.parametrize(
    "entry",
    [
        {"_target_": "LoadImaged", "keys": "image", "reader": "os.system", "command": "true"},
        {"_target_": "LoadImaged", "keys": "image", "reader": "os.system"},
        {"_target_": "SaveImaged", "keys": "image"},
        {"_target_": "SaveClassificationd", "keys": "pred", "output_dir": "results"},
        {"_target_": "RandTorchIOd", "keys": "image", "name": "RandomMotion"},
        {"_target_": "TorchVisiond", "keys": "image", "name": "ColorJitter"},
        FLIP | {"_requires_": "x"},
        FLIP | {"_mode_": "debug"},
    ],
)
def test_what_writes_files_or_calls_by_name_is_refused(entry):
    refused(r"augmentation\[0\]: ", entry)


class Harmful:
    def __init__(self, trace):
        self._trace = trace

    def __reduce__(self):
        return self._trace.touch, ()


@pytest.mark.parametrize("reader", [{}, {"reader": "NumpyReader"}], ids=["any reader", "NumpyReader"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_file_of_pickled_objects_is_refused_and_executes_nothing(tmp_path, reader, suffix):
    trace, path = tmp_path / "trace", tmp_path / f"a.{suffix}"
    content = np.array([Harmful(trace)], dtype=object)
    np.savez(path, content) if suffix == "npz" else np.save(path, content, allow_pickle=True)
    entry = {"_target_": "LoadImaged", "keys": "image", **reader}
    with pytest.raises((ValueError, RuntimeError)):
        built(entry)({"image": path})
    assert not trace.exists()
    refused(r"augmentation\[0\]: .*allow_pickle", entry | {"allow_pickle": True})


def test_our_reader_may_be_named(tmp_path):
    save_image(torch.full((1, 2, 3, 4), 0.5), tmp_path / "a.nii")
    entry = {"_target_": "LoadImaged", "keys": "label", "reader": "candy_monai.CheckedReader"}
    load, load_ids = (build_pipeline([entry | more], name="loading") for more in ({}, {"is_label": True}))
    assert load({"label": tmp_path / "a.nii"})["label"].unique().tolist() == [0.5]
    with pytest.raises(ImageReadError, match=r"a\.nii: 24 values that are not whole numbers"):
        load_ids({"label": tmp_path / "a.nii"})


def test_wrong_arguments_and_what_is_no_entry_are_refused_with_the_position():
    refused(r"augmentation\[0\]: RandFlipd cannot be built.*'probability'", FLIP | {"probability": 1})
    refused(r"augmentation\[1\]: found 'RandFlipd', expected a transform", FLIP, "RandFlipd")
    refused("Did you mean 'RandFlipd'", {"_target_": "RandFliped"})
    refused(r"augmentation\[0\]: found 5", FLIP | {5: "image"})
    with pytest.raises(SettingsError, match="augmentation: found dict, expected a list"):
        build_pipeline(FLIP, name="augmentation")


def test_text_in_place_of_what_is_called_is_refused_when_it_is_built():
    refused(
        r"augmentation\[0\]\.func: found 'os.system'", {"_target_": "Lambdad", "keys": "image", "func": "os.system"}
    )
    refused(r"augmentation\[0\]\.transforms\[1\]: found 'x'", {"_target_": "Compose", "transforms": [FLIP, "x"]})
    crop = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "select_fn": "os.system"}
    refused(r"augmentation\[0\]\.select_fn: found 'os.system'", crop)
    other = {"_target_": "Activationsd", "keys": "image", "other": ["os.system"]}
    refused(r"augmentation\[0\]\.other\[0\]: found 'os.system'", other)


def test_entries_that_hold_themselves_are_refused(tmp_path):
    (tmp_path / "a.yml").write_text("- &flip\n  _target_: RandFlipd\n  keys: *flip\n")
    with pytest.raises(SettingsError, match=r"a\.yml: holds more than 100,000 values, or a YAML anchor"):
        read_own_transforms(tmp_path / "a.yml")
    levels = ["a0: &a0 [1, 2]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    (tmp_path / "many.yml").write_text("augmentation:\n- _target_: RandFlipd\n  " + "\n  ".join(levels))
    with pytest.raises(SettingsError, match=r"many\.yml: holds more than 100,000 values"):
        read_own_transforms(tmp_path / "many.yml")
    entry: dict = {"_target_": "RandFlipd"}
    entry["keys"] = entry
    refused("the entries are nested too deep, or contain themselves", entry)
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(SettingsError, match=r"a\.json: is not JSON"):
        read_own_transforms(tmp_path / "a.json")


def test_a_trusted_list_is_built_as_monai_builds_it():
    pipeline = built(FLIP | {"prob": "$0.5 + 0.5"}, trust=True)
    assert pipeline.transforms[0].prob == 1.0
    with pytest.raises(SettingsError, match=r"augmentation\[0\]: cannot be built"):
        built({"_target_": "nowhere.Nothing"}, trust=True)


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.yml"])
def test_a_file_of_transforms_is_json_or_yaml(tmp_path, name):
    path = tmp_path / name
    path.write_text(
        json.dumps([FLIP_BOTH])
        if name == "a.json"
        else "- _target_: RandFlipd\n  keys: [image, label]\n  prob: 1.0\n  spatial_axis: 0\n"
    )
    assert len(read_own_transforms(path).augmentation) == 1


@pytest.mark.parametrize("text", ["[", "{}", "[]", "- !!python/object/apply:os.system [true]"])
def test_a_file_that_holds_no_list_is_refused_by_name(tmp_path, text):
    for name in ("a.json", "a.yml"):
        (tmp_path / name).write_text(text)
        with pytest.raises(SettingsError, match=name.replace(".", r"\.")):
            read_own_transforms(tmp_path / name)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_own_transforms(tmp_path / "none.json")


def test_a_file_may_hold_a_list_for_each_pipeline(tmp_path):
    (tmp_path / "own.yml").write_text(
        "preprocessing:\n- {_target_: ScaleIntensityd, keys: image, _before_: EnsureTyped}\n"
        "postprocessing:\n- {_target_: FillHolesd, keys: pred}\n"
    )
    own = read_own_transforms(tmp_path / "own.yml")
    assert [entry["_target_"] for entry in own.preprocessing] == ["ScaleIntensityd"]
    assert [entry["_target_"] for entry in own.postprocessing] == ["FillHolesd"]
    assert not own.augmentation


def test_an_unknown_pipeline_is_refused_with_a_suggestion(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"preprocess": [FLIP]}))
    with pytest.raises(SettingsError, match=r"own\.json: 'preprocess' is not a pipeline.*preprocessing"):
        read_own_transforms(tmp_path / "own.json")


@pytest.mark.parametrize(
    ("name", "entry", "reason"),
    [
        ("preprocessing", {"_target_": "RandGaussianNoised", "keys": "image"}, "random"),
        ("preprocessing", {"_target_": "GridSplitd", "keys": "image"}, "GridSplitd cannot be inverted"),
        ("preprocessing", {"_target_": "CropForegroundd", "keys": "image", "source_key": "label"}, "needs the label"),
        ("preprocessing", {"_target_": "ScaleIntensity"}, "ScaleIntensityd, with keys"),
        ("postprocessing", {"_target_": "RandFlipd", "keys": "pred"}, "random"),
        ("augmentation", {"_target_": "RandFlip"}, "RandFlipd, with keys"),
        ("augmentation", "RandFlipd", "expected a transform"),
    ],
)
def test_what_cannot_stand_in_its_pipeline_is_refused_with_its_position(name, entry, reason):
    fine = {"_target_": "ScaleIntensityd", "keys": "image"}
    with pytest.raises(SettingsError, match=rf"^f\.yml: {name}\[1\]: .*{reason}"):
        check_own_transforms(OwnTransforms(**{name: [fine, entry]}), "f.yml: ")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"_target_": "RandRotated", "keys": ["image"], "range_x": 0.3, "prob": 0.5}, "RandRotated moves the image"),
        ({"_target_": "RandFlipd", "keys": "label", "prob": 0.5}, "RandFlipd moves the label but not the image"),
        ({"_target_": "Flipd", "keys": "image"}, "Flipd moves the image but not the label"),
        ({"_target_": "Compose", "transforms": [FLIP]}, "RandFlipd moves the image"),
        ({"_target_": "OneOf", "transforms": [FLIP, FLIP]}, "RandFlipd moves the image"),
        ({"_target_": "candy_monai.transforms.RandWarpd", "keys": "image"}, "RandWarpd moves the image"),
        ({"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}, "CropForegroundd moves the image"),
    ],
)
def test_what_moves_the_image_and_not_its_label_is_refused_unless_the_list_is_trusted(entry, reason):
    fine = {"_target_": "ScaleIntensityd", "keys": "image"}
    with pytest.raises(SettingsError, match=rf"^f\.yml: augmentation\[1\]: {reason}"):
        check_own_transforms(OwnTransforms(augmentation=[fine, entry]), "f.yml: ")
    check_own_transforms(OwnTransforms(augmentation=[fine, entry], trust=True), "f.yml: ")


def test_what_moves_both_or_none_is_taken_also_by_two_entries():
    apart = [{"_target_": "Rotated", "keys": key, "angle": 0.1, "mode": mode} for key, mode in MODES.items()]
    coarser = {"_target_": "RandSimulateLowResolutiond", "keys": "image", "prob": 0.5}
    check_own_transforms(OwnTransforms(augmentation=[FLIP_BOTH, *apart, coarser]))
    with pytest.raises(SettingsError, match=r"^preprocessing\[0\]: Flipd moves the image"):
        check_own_transforms(OwnTransforms(preprocessing=[{"_target_": "Flipd", "keys": "image"}]))


def test_a_pipeline_gives_what_compose_gives_also_where_a_step_returns_several_samples():
    entries = [
        FLIP | {"prob": 1.0},
        {"_target_": "RandSpatialCropSamplesd", "keys": "image", "roi_size": [2], "num_samples": 2},
        {"_target_": "ScaleIntensityd", "keys": "image"},
    ]
    pipeline = built(*entries)
    found = pipeline.set_random_state(0)({"image": torch.arange(8.0)[None]})
    expected = Compose(pipeline.transforms).set_random_state(0)({"image": torch.arange(8.0)[None]})
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["image"].as_tensor(), other["image"].as_tensor())


def test_a_trusted_list_may_mix_what_is_replaced_with_what_refers_to_other_lists():
    invert = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": {"_target_": "Compose", "transforms": "@preprocessing"},
        "orig_keys": "image",
    }
    known = built(FLIP).transforms
    pipeline = build_pipeline([invert], name="post", transforms={"preprocessing": known}, trust=True)
    assert isinstance(pipeline.transforms[0], Invertd)


def test_what_a_transform_raises_notes_its_position_and_arguments():
    pipeline = built({"_target_": "ScaleIntensityd", "keys": "image"}, {"_target_": "ScaleIntensityd", "keys": "img"})
    with pytest.raises(KeyError) as caught:
        pipeline({"image": torch.arange(8.0)[None]})
    assert caught.value.__notes__ == ["augmentation[1], ScaleIntensityd(keys='img')"]


def test_a_transform_of_ours_without_its_package_is_refused_with_its_whole_name():
    with pytest.raises(SettingsError, match=r"Did you mean 'candy_monai\.transforms\.RandWarpd'"):
        built({"_target_": "RandWarpd", "keys": "image"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_transforms_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "own.json").write_text(json.dumps([FLIP_BOTH]), encoding=encoding)
    assert read_own_transforms(tmp_path / "own.json").augmentation == [FLIP_BOTH]


def test_a_trusted_entry_that_builds_no_transform_is_refused_with_its_position():
    with pytest.raises(SettingsError, match=r"own\[0\]: numpy\.array is not a transform: found ndarray"):
        build_pipeline([{"_target_": "numpy.array", "object": 1}], name="own", trust=True)
