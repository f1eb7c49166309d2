import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from candy_monai.errors import BadInputError
from candy_monai.incoming.weights import load_into, read_weights, with_channels
from candy_monai.nn.slicewise import Slicewise


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def _network(in_channels=1, num_classes=2):
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, num_classes, 1)
    )


@pytest.fixture
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _saved(content, name="weights.pt", **options):
    torch.save(content, name, **options)
    return name


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "network_weights": lambda state: {"network_weights": state, "logging": {"dice": [np.float64(0.5), np.float32(1)]}},
    "module.": lambda state: {f"module.{name}": value for name, value in state.items()},
    "state_dict of module._orig_mod.": lambda state: {
        "state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}
    },
}


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_state_dict_is_found_in_what_libraries_put_around_it(wrap):
    trained, network = _network(), _network()
    report = load_into(network, read_weights(_saved(wrap(trained.state_dict()))), num_channels=1)
    for mine, theirs in zip(network.state_dict().values(), trained.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert len(report.loaded) == len(trained.state_dict())
    assert not report.details()


@pytest.mark.usefixtures("_here")
def test_safetensors_are_read():
    safetensors = pytest.importorskip("safetensors.torch")
    trained, network = _network(), _network()
    safetensors.save_file(trained.state_dict(), "weights.safetensors")
    load_into(network, read_weights("weights.safetensors"), num_channels=1)
    assert torch.equal(network[0].weight, trained[0].weight)


@pytest.mark.usefixtures("_here")
def test_what_does_not_fit_is_left_as_it_was_drawn_and_named():
    torch.manual_seed(0)
    state = {**_network(num_classes=5).state_dict(), "other.weight": torch.zeros(3)}
    del state["1.running_var"]
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = load_into(network, read_weights(_saved(state)), num_channels=1)
    assert report.mismatched == ("3.weight: 5x4x1x1 -> 2x4x1x1", "3.bias: 5 -> 2")
    assert report.missing == ("1.running_var",)
    assert report.skipped == ("other.weight",)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name] if name in report.loaded else before[name])
    assert "6 of the network's 9 tensors loaded" in str(report)
    assert "other.weight" in report.details()


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3), (3, 2), (4, 8)])
def test_equal_channels_lead_to_the_same_activations_for_another_number_of_them(before, after):
    weight = torch.randn(5, before, 3, 3, 3)
    image = torch.randn(1, 1, 6, 6, 6)
    old = nn.functional.conv3d(image.expand(-1, before, -1, -1, -1), weight)
    new = nn.functional.conv3d(image.expand(-1, after, -1, -1, -1), with_channels(weight, after))
    assert torch.allclose(old, new, atol=1e-5)


@pytest.mark.usefixtures("_here")
def test_only_layers_that_read_the_image_are_fitted_to_its_channels():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 1, 1))
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(3, 1, 1))
    report = load_into(network, read_weights(_saved(other.state_dict())), num_channels=2)
    assert report.adapted == ("0.weight: 4x1x3x3 -> 4x2x3x3",)
    assert report.mismatched == ("2.weight: 1x3x1x1 -> 1x4x1x1",)
    assert torch.allclose(network[0].weight, other[0].weight / 2)


@pytest.mark.usefixtures("_here")
def test_a_network_for_slices_takes_the_weights_of_one_for_pictures_and_of_its_own_kind():
    trained = _network()
    for source in (trained, Slicewise(trained, 0)):
        network = Slicewise(_network(), 2)
        load_into(network, read_weights(_saved(source.state_dict())), num_channels=1)
        assert torch.equal(network.network[0].weight, trained[0].weight)


@pytest.mark.usefixtures("_here")
def test_weights_of_another_network_are_refused_with_the_beginnings_of_both():
    weights = read_weights(_saved({"encoder.conv.weight": torch.zeros(8, 1, 3)}))
    with pytest.raises(BadInputError, match=r"encoder\.conv\.weight 8x1x3(.|\n)*0\.weight 4x1x3x3(.|\n)*--bundle"):
        load_into(_network(), weights, num_channels=1)


def _bomb():
    with zipfile.ZipFile("weights.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(20 << 20))
    return "weights.pt"


def _written(content):
    with open("weights.pt", "wb") as file:
        file.write(content)
    return "weights.pt"


def _program():
    torch.jit.script(nn.Linear(2, 2)).save("weights.pt")
    return "weights.pt"


def _endless():
    content = {}
    content["model"] = content
    return content


HOSTILE = {
    "a call in a zip archive": (lambda: _saved({"state_dict": Evil()}), r"system.*nothing in it was executed"),
    "a call in the old format": (lambda: _saved(Evil(), _use_new_zipfile_serialization=False), "system.*executed"),
    "a call in a bare pickle": (lambda: _written(pickle.dumps(Evil(), protocol=2)), "weights.pt"),
    "a whole network": (lambda: _saved(nn.Linear(2, 2)), r"Linear.*only the network's state_dict"),
    "a TorchScript program": (_program, "TorchScript"),
    "an archive that grows": (_bomb, "unpack"),
    "no tensors": (lambda: _saved({"epoch": 3}), r"holds no weights.*epoch"),
    "no dictionary": (lambda: _saved([torch.zeros(2)]), "found list"),
    "a dictionary that holds itself": (lambda: _saved(_endless()), r"holds no weights.*model"),
    "complex numbers": (lambda: _saved({"0.weight": torch.ones(2) * 1j}), r"0\.weight holds complex numbers"),
    "numbers that are none": (lambda: _saved({"0.weight": torch.tensor([1, torch.nan])}), r"0\.weight holds NaN"),
    "a sparse tensor": (lambda: _saved({"0.weight": torch.eye(2).to_sparse()}), r"0\.weight is not a dense tensor"),
    "a tensor without values": (lambda: _saved({"a": torch.ones(2, device="meta")}), "a is not a dense tensor"),
    "text": (lambda: _written(b"hello" * 100), "not a readable"),
    "nothing": (lambda: _written(b""), "not a readable"),
    "no file": (lambda: "nowhere.pt", "no such file"),
}


@pytest.mark.usefixtures("_here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("write", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_more_than_weights_runs_nothing_and_ends_in_one_error(write, message):
    file = write()
    with pytest.raises(BadInputError, match=message) as caught:
        read_weights(file)
    assert str(caught.value).startswith(file)
    assert not os.path.exists("PWNED")


@pytest.mark.usefixtures("_here")
def test_a_folder_is_a_bundle_s_model_or_an_nnu_net_fold_and_a_folder_of_neither_is_refused(tmp_path):
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    (tmp_path / "nnunet" / "fold_0").mkdir(parents=True)
    (tmp_path / "program" / "models").mkdir(parents=True)
    state = {"a": torch.ones(1)}
    _saved(state, "bundle/models/model.pt")
    _saved({"network_weights": state}, "nnunet/fold_0/checkpoint_final.pth")
    (tmp_path / "program/models/model.ts").write_bytes(b"")
    for folder in ("bundle", "nnunet"):
        assert read_weights(folder).tensors == state
    with pytest.raises(BadInputError, match=r"model\.ts"):
        read_weights("program")
    with pytest.raises(BadInputError, match="holds no weights"):
        read_weights(tmp_path)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_bit_is_an_error(compressed):
    file = _saved(_network().state_dict())
    if compressed:
        with zipfile.ZipFile(file) as archive:
            parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, part in parts.items():
                archive.writestr(name, part)
    content = bytearray(Path(file).read_bytes())
    with zipfile.ZipFile(file) as archive:
        entry = next(each for each in archive.infolist() if each.filename.endswith("data/0"))
    content[entry.header_offset + 30 + len(entry.filename) + 70] ^= 1
    Path(file).write_bytes(content)
    with pytest.raises(BadInputError, match=r"weights\.pt: (damaged, its part|not a readable)"):
        read_weights(file)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("content", [b"These are notes.\n", b"", b"\x00" * 40, b"{}", b"0 1 2 weights"])
def test_a_file_of_text_is_no_file_of_weights_and_the_error_says_how_it_begins(content):
    Path("notes.txt").write_bytes(content)
    with pytest.raises(BadInputError, match=r"notes\.txt: not a readable file of weights \(it begins with b'") as found:
        read_weights("notes.txt")
    assert "IndexError" not in str(found.value)
