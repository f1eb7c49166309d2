import copy
import json

import monai.networks.nets
import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import init_bundle

from candy_monai import inspect_bundle, load_bundle, load_predictor
from candy_monai.errors import BadInputError
from candy_monai.incoming.bundle_config import BundleConfig
from candy_monai.incoming.monai_bundle import bundle_inferer
from candy_monai.incoming.opening import kind_of_model
from tests.zoo_bundles import BTCV, METADATA, SPLEEN, run_by_monai, write_bundle, write_scan


def _of_one_logit(*steps):
    """Return a bundle whose network has (one|single) output channel, with these steps of postprocessing."""
    config = copy.deepcopy(SPLEEN)
    config["network_def"]["out_channels"] = 1
    _, inverting, _, saving = config["postprocessing"]["transforms"]
    config["postprocessing"]["transforms"] = [*steps[:1], inverting, *steps[1:], saving]
    return config


SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
ONE_LOGIT = _of_one_logit(SIGMOID, THRESHOLD)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SPLEEN, id="spleen_ct_segmentation"),
        pytest.param(ONE_LOGIT, id="one logit"),
        pytest.param(BTCV, id="swin_unetr_btcv_segmentation", marks=pytest.mark.slow),
    ],
)
def test_a_bundle_of_the_zoo_s_layout_predicts_what_monai_s_own_run_of_it_does(tmp_path, config):
    bundle = write_bundle(tmp_path / "bundle", config)
    scan = write_scan(tmp_path / "data" / "imagesTs" / "case_7.nii.gz")
    expected = run_by_monai(bundle, tmp_path / "data", tmp_path / "by_monai")
    (written,) = load_predictor(bundle).predict_to_files(scan.parent, tmp_path / "ours")
    ours = nibabel.load(written)
    assert written.name == "case_7.nii.gz"
    assert np.allclose(ours.affine, nibabel.load(scan).affine, atol=1e-5)
    mine, theirs = (np.asarray(image.dataobj).squeeze() for image in (ours, expected))
    assert len(np.unique(mine)) > 1
    assert (mine == theirs).mean() > 0.9999


def _first(**changes):
    config = copy.deepcopy(SPLEEN)
    config |= changes
    return config


def test_what_a_bundle_of_init_bundle_says_is_enough(tmp_path):
    network = monai.networks.nets.UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
    init_bundle(tmp_path / "new", network=network)
    file = tmp_path / "new" / "configs" / "inference.json"
    config = json.loads(file.read_text())
    config["network_def"] |= {
        "_target_": "UNet",
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
    }
    file.write_text(json.dumps(config))
    image = torch.rand(1, 16, 24)
    labels = load_bundle(tmp_path / "new").predict(image)
    scaled = (image - image.min()) / (image.max() - image.min())
    swapped = network.eval()(scaled.swapaxes(1, 2)[None])[0].argmax(0).swapaxes(0, 1)  # as MONAI reads pictures
    assert torch.equal(labels.as_tensor()[0].long(), swapped)


def test_yaml_macros_relative_folders_and_full_names_are_understood(tmp_path, monkeypatch):
    reference = load_bundle(write_bundle(tmp_path / "plain"))
    config = _first(window=16, steps=SPLEEN["preprocessing"]["transforms"])
    config["network_def"] = SPLEEN["network_def"] | {"_target_": "monai.networks.nets.unet.Unet", "_desc_": "small"}
    config["preprocessing"] = {"_target_": "monai.transforms.Compose", "transforms": "%steps"}
    config["inferer"] = SPLEEN["inferer"] | {"roi_size": "$[@window] * 1 + [@window, 2 * 8]", "sw_device": "@device"}
    config["inferer"]["roi_size"] = "$[@window, @window, 2 * 8]"
    folder = write_bundle(tmp_path / "bundle")
    (folder / "configs" / "inference.json").unlink()
    (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(folder.parent)
    image = 100 * torch.randn(1, 20, 20, 20)
    assert torch.equal(load_bundle("bundle").predict(image).as_tensor(), reference.predict(image).as_tensor())


def test_overlapping_regions_ask_for_the_ids_that_they_write(tmp_path):
    config = _first()
    post = config["postprocessing"]["transforms"] = copy.deepcopy(SPLEEN["postprocessing"]["transforms"])
    post[0] = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
    post[2] = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
    folder, image = write_bundle(tmp_path / "bundle", config), 100 * torch.randn(1, 20, 20, 20)
    with pytest.raises(BadInputError, match=r"paints=\(2, 1, 3\)"):
        load_bundle(folder).predict(image)
    assert set(torch.unique(load_bundle(folder, paints=(5, 3)).predict(image)).tolist()) <= {0, 3, 5}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{**SIGMOID, "sigmoid": False, "softmax": True}, THRESHOLD], "Activationsd has softmax"),
        ([SIGMOID, ARGMAX], "AsDiscreted has argmax"),
        ([SIGMOID], "no step converts"),
        ([], "no step converts"),
    ],
)
def test_one_logit_that_postprocessing_compares_with_no_threshold_is_refused(tmp_path, steps, words):
    with pytest.raises(BadInputError, match=rf"inference\.json: postprocessing: {words}.*(one|single) output channel"):
        load_bundle(write_bundle(tmp_path / "bundle", _of_one_logit(*steps)))


def test_one_logit_has_one_probability_and_one_class(tmp_path):
    metadata = copy.deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 2  # as some count the background
    predictor = load_bundle(write_bundle(tmp_path / "bundle", ONE_LOGIT, metadata=metadata))
    made = predictor.predict_image(100 * torch.randn(1, 20, 20, 20), probabilities=True)
    assert made.probabilities.shape == (1, 20, 20, 20)
    assert torch.equal(made.labels.as_tensor() > 0, made.probabilities.as_tensor() > 0.5)
    assert 0 < float((made.labels.as_tensor() > 0).float().mean()) < 1
    assert predictor.num_classes == 1
    assert [ids for _, ids in predictor.classes] == [(1,)]


def test_a_bundle_that_brings_python_opens_only_where_it_is_trusted(tmp_path):
    config = _first(preprocessing=copy.deepcopy(SPLEEN["preprocessing"]))
    config["preprocessing"]["transforms"][4] = {
        "_target_": "Lambdad",
        "keys": "image",
        "func": "$lambda x: (x + 57).clip(0, 221) / 221",
    }
    folder, image = write_bundle(tmp_path / "bundle", config), 100 * torch.randn(1, 20, 20, 20)
    with pytest.raises(BadInputError, match=r"preprocessing#transforms#4#func.*lambda.*--trust"):
        load_bundle(folder)
    reference = load_bundle(write_bundle(tmp_path / "plain")).predict(image).as_tensor()
    assert (load_bundle(folder, trust=True).predict(image).as_tensor() == reference).float().mean() > 0.999


def _with(path, value):
    config = copy.deepcopy(SPLEEN)
    *parents, last = path
    place = config
    for part in parents:
        place = place[part]
    place[last] = value
    return config


RUN = "$__import__('os').system('touch PWNED')"
HOSTILE = {
    "an expression for a number": _with(["network_def", "in_channels"], RUN),
    "an expression for a list": _with(["preprocessing"], RUN),
    "a reference to an expression": _with(["network_def", "out_channels"], "@imports#0"),
    "an import through a reference": _with(["inferer", "overlap"], "$@network.__class__"),
    "a call of os": _with(["network_def"], {"_target_": "os.system", "command": "touch PWNED"}),
    "a call as an inferer": _with(["inferer"], {"_target_": "os.system", "command": "touch PWNED"}),
    "a call as a transform": _with(
        ["preprocessing", "transforms", 2], {"_target_": "os.system", "command": "touch PWNED"}
    ),
    "a call in an argument": _with(
        ["network_def", "act"], {"_target_": "subprocess.run", "args": ["touch", "PWNED"], "_mode_": "callable"}
    ),
    "a debugger": _with(["network_def", "_mode_"], "debug"),
    "a mode that is a path": _with(["preprocessing", "transforms", 2, "_mode_"], "../../etc/passwd"),
    "another file": _with(["network_def"], "%../../secret.json#network_def"),
    "a module of the bundle": _with(["network_def", "_target_"], "scripts.evil.Network"),
    "a writer": _with(["postprocessing", "transforms", 0], {"_target_": "SaveClassificationResultd", "keys": "pred"}),
    "a delay": _with(
        ["preprocessing", "transforms", 2], {"_target_": "SimulateDelayd", "keys": "image", "delay_time": 1e9}
    ),
    "no key to load": _with(["preprocessing", "transforms", 0, "keys"], None),
    "a reader by name": _with(["preprocessing", "transforms", 0, "reader"], "scripts.evil.Reader"),
    "an endless reference": _with(["network_def"], "@network_def"),
    "references that multiply": {
        **_with(["network_def", "channels"], "@a0"),
        **{f"a{level}": [f"@a{level + 1}"] * 2 for level in range(24)},
        "a24": 8,
    },
    "products that multiply": {
        **_with(["network_def", "out_channels"], "@a0"),
        **{f"a{level}": f"$@a{level + 1} * @a{level + 1}" for level in range(24)},
        "a24": 2,
    },
    "a huge number": _with(["network_def", "out_channels"], 10**9),
    "a huge list": _with(["network_def", "channels"], [1] * 10**4),
    "huge weights": _with(["network_def", "channels"], [8192, 8192, 8192]),
    "a huge product": _with(["network_def", "channels"], "$[4] * 10**9"),
    "huge numbers": _with(["network_def", "channels"], [8, "$9 ** 9 ** 9"]),
    "another network's arguments": _with(["network_def", "patch_size"], 4),
    "no network": {key: value for key, value in SPLEEN.items() if key not in ("network_def", "network")},
    "no preprocessing": {key: value for key, value in SPLEEN.items() if key != "preprocessing"},
    "text for a network": _with(["network_def"], "UNet"),
    "a number for a list": _with(["postprocessing"], 3),
}


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_bundle_runs_nothing_and_ends_in_one_error_that_names_the_file(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    folder = write_bundle(tmp_path / "bundle", config, weights={"model": {"a": torch.zeros(1)}})
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("")
    (folder / "scripts" / "evil.py").write_text("open('PWNED', 'w')")
    with pytest.raises(BadInputError) as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value)
    assert inspect_bundle(folder).problem is not None
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (_with(["inferer", "roi_size"], []), r"inference\.json: its network and inferer cannot be run.*ValueError"),
        (_with(["inferer", "sw_batch_size"], -1), "cannot be run on a preprocessed image of shape"),
        (_with(["network_def", "strides"], [0, 0]), "non-positive stride"),
        (
            _with(["preprocessing", "transforms", 3], {"_target_": "DeleteItemsd", "keys": "image"}),
            "must keep the image",
        ),
    ],
)
def test_what_cannot_be_run_on_an_image_ends_in_one_error(tmp_path, config, words):
    weights = torch.load(write_bundle(tmp_path / "good") / "models" / "model.pt", weights_only=True)
    predictor = load_bundle(write_bundle(tmp_path / "bundle", config, weights=weights))
    with pytest.raises(BadInputError, match=words):
        predictor.predict(100 * torch.randn(1, 20, 20, 20))


def test_ids_beyond_255_are_kept_and_negative_ones_refused(tmp_path):
    def predicted(label_id):
        mapping = {"keys": "pred", "orig_labels": [0, 1], "target_labels": [0, label_id]}
        config = _first(postprocessing=copy.deepcopy(SPLEEN["postprocessing"]))
        config["postprocessing"]["transforms"].insert(3, {"_target_": "MapLabelValued", **mapping})
        return load_bundle(write_bundle(tmp_path / str(label_id), config)).predict(100 * torch.randn(1, 20, 20, 20))

    assert torch.unique(predicted(500).as_tensor()).tolist() == [0, 500]
    assert torch.unique(predicted(70_000).as_tensor()).tolist() == [0, 70_000]
    with pytest.raises(BadInputError, match="label map returned by postprocessing holds -3"):
        predicted(-3)


OUR_INFERERS = {"SlicesInferer": {"roi_size": [8, 8], "spatial_dim": 2}, "WholeOrWindowsInferer": {"roi_size": [8] * 3}}


@pytest.mark.parametrize(("name", "window"), OUR_INFERERS.items(), ids=OUR_INFERERS)
def test_an_inferer_that_an_export_names_has_all_arguments_that_it_is_given(tmp_path, name, window):
    (tmp_path / "configs").mkdir()
    divisor = [4] * len(window["roi_size"])

    def opened(**options):
        entry = {"_target_": f"scripts.inferers.{name}", **window, "divisor": divisor, **options}
        (tmp_path / "configs" / "inference.json").write_text(json.dumps({"inferer": entry}))
        return bundle_inferer(BundleConfig(tmp_path), 3)[0].grid((40, 40, 40))

    assert (opened().overlap, opened().mode) == (0.25, "constant")  # as where MONAI builds it
    grid = opened(overlap=0.5, mode="gaussian", cval=-1.0)
    assert (grid.overlap, grid.mode, grid.cval) == (0.5, "gaussian", -1.0)
    for wrong in ({"overlap": 1.5}, {"step": 3}):
        with pytest.raises(BadInputError, match="inferer: cannot be built"):
            opened(**wrong)


def test_files_that_are_no_configuration_or_no_weights_are_refused(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    file = folder / "configs" / "inference.json"
    for text in ("[1]", "{", "", "{" * 10**5):
        file.write_text(text)
        with pytest.raises(BadInputError, match=r"inference\.json"):
            load_bundle(folder)
    file.unlink()
    (folder / "configs" / "inference.yaml").write_text("a: &a [*a, *a]\nnetwork_def: *a")
    with pytest.raises(BadInputError, match=r"inference\.yaml"):
        load_bundle(folder)
    other = write_bundle(tmp_path / "other", weights={"model": {"a": torch.zeros(1)}})
    with pytest.raises(BadInputError, match="does not fit the network UNet"):
        load_bundle(other)
    (other / "models" / "model.pt").unlink()
    with pytest.raises(BadInputError, match="other: holds no weights; expected"):
        load_bundle(other)


def test_what_a_bundle_names_is_shown_by_place_without_building_anything_unknown(tmp_path):
    folder = write_bundle(tmp_path / "bundle", _with(["preprocessing", "transforms", 4, "_target_"], "scripts.a.B"))
    text = str(inspect_bundle(folder))
    assert "Spleen CT segmentation" in text
    assert "network_def: UNet" in text
    assert "preprocessing#transforms#4: scripts.a.B (not known" in text
    assert "evaluator: SupervisedEvaluator" in text
    assert "initialize#0: $monai.utils.set_determinism(seed=123)" in text
    assert "cannot be used for prediction as it is" in text
    assert inspect_bundle(write_bundle(tmp_path / "good")).problem is None


def test_kinds_of_models_are_told_apart(tmp_path):
    assert kind_of_model(write_bundle(tmp_path / "bundle", metadata=None)) == "MONAI Bundle"
    assert kind_of_model(tmp_path) is None
    (tmp_path / "nn" / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (tmp_path / "nn" / name).write_text("{}")
    assert kind_of_model(tmp_path / "nn") == "nnU-Net"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").write_text("{}")
    assert kind_of_model(tmp_path / "run") == "experiment"


def test_metadata_name_the_channels_and_their_number_is_checked(tmp_path):
    metadata = copy.deepcopy(METADATA)
    metadata["network_data_format"]["inputs"]["image"]["channel_def"] = {"0": "CT"}
    predictor = load_bundle(write_bundle(tmp_path / "bundle", metadata=metadata))
    assert predictor.channel_names == ("CT",)
    with pytest.raises(BadInputError, match="2 channels"):
        predictor.predict(torch.zeros(2, 8, 8, 8))
