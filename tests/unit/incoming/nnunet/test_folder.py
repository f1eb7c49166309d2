from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from candy_monai.errors import ExperimentError
from candy_monai.incoming.nnunet.folder import find_nnunet_folder, is_nnunet_folder, read_checkpoint


def fold(folder, *files):
    folder.mkdir(parents=True)
    (folder.parent / "plans.json").write_text("{}")
    for name in files:
        (folder / name).write_bytes(b"")
    return folder.parent


def test_a_model_folder_a_fold_and_the_dataset_above_are_found(tmp_path):
    model = fold(tmp_path / "Dataset004" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0", "checkpoint_final.pth")
    fold(model / "fold_10", "checkpoint_final.pth")
    fold(model / "fold_2", "checkpoint_final.pth")
    fold(model / "fold_all", "checkpoint_final.pth")
    for place in (model, model.parent):
        assert is_nnunet_folder(place)
        assert [each.name for each in find_nnunet_folder(place).folds] == ["fold_0", "fold_2", "fold_10"]
    assert find_nnunet_folder(model / "fold_all").checkpoints() == (model / "fold_all" / "checkpoint_final.pth",)


def test_several_configurations_must_be_chosen_from(tmp_path):
    for name in ("2d", "3d_fullres"):
        fold(tmp_path / f"nnUNetTrainer__nnUNetPlans__{name}" / "fold_0")
    with pytest.raises(ExperimentError, match="2 trained configurations .*__2d, .*__3d_fullres.*name one"):
        find_nnunet_folder(tmp_path)


def test_the_final_weights_are_taken_and_the_best_ones_of_training_that_goes_on(tmp_path):
    model = fold(tmp_path / "m" / "fold_0", "checkpoint_final.pth", "checkpoint_best.pth")
    fold(model / "fold_1", "checkpoint_best.pth", "checkpoint_latest.pth")
    found = find_nnunet_folder(model)
    assert found.checkpoints() == (model / "fold_0" / "checkpoint_final.pth",)
    assert len(found.checkpoints("checkpoint_best.pth")) == 2
    assert found.checkpoints("latest") == (model / "fold_1" / "checkpoint_latest.pth",)
    with pytest.raises(ExperimentError, match=r"no fold has other\.pth \(found checkpoint_best\.pth, .*fold_0, fold_1"):
        found.checkpoints("other.pth")


def test_a_model_of_version_1_is_refused_by_name(tmp_path):
    (tmp_path / "plans.pkl").write_bytes(b"")
    (tmp_path / "fold_0").mkdir()
    assert is_nnunet_folder(tmp_path)
    for place in (tmp_path, tmp_path / "fold_0"):
        with pytest.raises(ExperimentError, match="nnU-Net v1"):
            find_nnunet_folder(place)


def test_other_folders_are_none_of_nnunets(tmp_path):
    assert not is_nnunet_folder(tmp_path)
    with pytest.raises(ExperimentError, match="not a trained nnU-Net model; expected a folder such as"):
        find_nnunet_folder(tmp_path)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["weights", "beside"])
def test_a_hostile_checkpoint_runs_nothing_and_the_error_names_what_it_asked_for(tmp_path, where):
    file, touched = tmp_path / "checkpoint_final.pth", tmp_path / "touched"
    bad = Hostile(os.system, f"touch {touched}")
    torch.save({"network_weights": bad if where == "weights" else {}, "logging": bad}, file)
    with pytest.raises(ExperimentError, match=r"checkpoint_final\.pth: not a checkpoint .* asks for \w+\.system"):
        read_checkpoint(file)
    assert not touched.exists()


def test_arrays_of_objects_cannot_bring_code_along(tmp_path):
    file, touched = tmp_path / "a.pth", tmp_path / "touched"
    hidden = np.array([Hostile(os.system, f"touch {touched}")], dtype=object)
    torch.save({"network_weights": {}, "logging": hidden}, file)
    with pytest.raises(ExperimentError, match="asks for"):
        read_checkpoint(file)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"network_weights": {"a": 1}}, "network_weights is missing or damaged"),
        ({"network_weights": {}, "init_args": {}}, "init_args is missing or damaged"),
        ([1, 2], "network_weights is missing or damaged, found entries none"),
        (
            {
                "network_weights": {},
                "init_args": {"configuration": "2d"},
                "inference_allowed_mirroring_axes": (7,),
            },
            "inference_allowed_mirroring_axes is missing or damaged, found .7",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_it_lacks(tmp_path, content, said):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ExperimentError, match=said):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [torch.tensor([torch.nan]), torch.ones(1) * 1j, torch.eye(1).to_sparse()])
def test_weights_that_no_trained_network_has_are_refused(tmp_path, value):
    content = {"network_weights": {"seg.weight": value}, "init_args": {"configuration": "2d"}}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ExperimentError, match=r"a\.pth: seg\.weight .*expected finite real numbers"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(ExperimentError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "a.pth")
    torch.save({"network_weights": {}}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for content in (pickle.dumps({"a": 1}), b"", whole[: len(whole) // 2]):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(ExperimentError, match=r"a\.pth: not a checkpoint .*truncated"):
            read_checkpoint(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("data.pkl", "no pickle")
    with pytest.raises(ExperimentError, match=r"b\.pth: not a checkpoint"):
        read_checkpoint(tmp_path / "b.pth")


def test_weights_of_wrapped_networks_and_numbers_of_numpy_are_read(tmp_path):
    content = {
        "network_weights": {"module._orig_mod.a.weight": torch.ones(2)},
        "logging": [np.float64(1.5), np.float32(1), np.int64(3), np.bool_(True)],
        "init_args": {"configuration": "2d", "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
    }
    torch.save(content, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert list(read.weights) == ["a.weight"]
    assert (read.trainer, read.configuration, read.mirror_axes) == ("nnUNetTrainer", "2d", ())
