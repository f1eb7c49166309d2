from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from candy_monai.errors import BadInputError
from candy_monai.plotting.canvas.colors import class_color
from candy_monai.plotting.case.previews import PREVIEW_NAMES, save_preview_files

INPUT, LABEL, PREDICTION, EXPECTED, ACTUAL = range(5)


def _case(*spatial: int, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(channels, *spatial, generator=generator)
    label = torch.zeros(1, *spatial, dtype=torch.long)
    label[(0, *(slice(length // 4, length // 2 + 1) for length in spatial))] = 1
    prediction = torch.zeros_like(label)
    prediction[(0, *(slice(length // 3, length // 2 + 1) for length in spatial))] = 2
    return image, label, prediction


def _colors(path: Path) -> set[tuple[int, int, int]]:
    pixels = np.asarray(Image.open(path)).astype(np.int64)
    codes = np.unique(pixels @ np.array([65536, 256, 1])).tolist()
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes}


@pytest.mark.parametrize("spatial", [(20, 30), (16, 18, 12), (20, 24, 1), (1, 20, 24), (300, 400)])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_five_files_are_left_for_any_image(tmp_path: Path, spatial: tuple[int, ...], channels: int) -> None:
    paths = save_preview_files(tmp_path, *_case(*spatial, channels=channels), quality=0.01)
    assert [path.name for path in paths] == list(PREVIEW_NAMES)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(PREVIEW_NAMES)
    assert all(min(Image.open(path).size) >= 200 for path in paths)


def test_the_files_are_named_by_the_contract() -> None:
    assert PREVIEW_NAMES == (
        "input (preview).png",
        "label (preview).png",
        "prediction (preview).png",
        "expected (preview).png",
        "actual (preview).png",
    )


def test_a_label_shows_only_its_own_ids_in_their_colours(tmp_path: Path) -> None:
    image, label, prediction = _case(24, 24)
    paths = save_preview_files(tmp_path, image, label, prediction)
    assert class_color(1) in _colors(paths[LABEL])
    assert class_color(2) not in _colors(paths[LABEL])
    assert class_color(2) in _colors(paths[PREDICTION])
    assert class_color(1) not in _colors(paths[PREDICTION])


def test_no_colour_between_two_classes_appears(tmp_path: Path) -> None:
    label = torch.randint(0, 5, (1, 20, 20), generator=torch.Generator().manual_seed(0)) * 50
    path = save_preview_files(tmp_path, torch.rand(1, 20, 20), label, label)[LABEL]
    pixels = np.asarray(Image.open(path))
    area = pixels[60:700, 20:-20].reshape(-1, 3)  # without the title and the legend, which have letters
    assert set(map(tuple, area.tolist())) <= {class_color(50 * number) for number in range(5)}


def test_the_same_slices_are_in_all_files(tmp_path: Path) -> None:
    image = torch.zeros(1, 12, 12, 12)
    image[0, :, :, 7] = 1.0  # only this slice is bright
    label = torch.zeros(1, 12, 12, 12, dtype=torch.long)
    label[0, 4:8, 4:8, 7] = 1
    prediction = torch.zeros_like(label)
    prediction[0, 2:9, 2:9, 2] = 1
    paths = save_preview_files(tmp_path, image, label, prediction, quality=0.01)
    for which in (INPUT, EXPECTED, ACTUAL):
        corner = np.asarray(Image.open(paths[which]))[90:120, 20:60]
        assert (corner == 255).all()
    assert class_color(1) not in _colors(paths[ACTUAL]) - _colors(paths[LABEL])


@pytest.mark.parametrize("spatial", [(20, 20), (10, 10, 10)])
def test_empty_labels_and_predictions_are_drawn(tmp_path: Path, spatial: tuple[int, ...]) -> None:
    image, label, _ = _case(*spatial)
    empty = torch.zeros_like(label)
    for one, other in ((label, empty), (empty, label), (empty, empty)):
        assert len(save_preview_files(tmp_path, image, one, other, quality=0.01)) == 5


def test_nan_constant_and_empty_looking_images_are_drawn(tmp_path: Path) -> None:
    _, label, prediction = _case(10, 10, 10)
    for value in (0.0, float("nan"), float("inf")):
        save_preview_files(tmp_path, torch.full((1, 10, 10, 10), value), label, prediction, quality=0.01)


def test_metatensors_and_half_precision_are_drawn(tmp_path: Path) -> None:
    image, label, prediction = _case(10, 10, 10)
    affine = torch.diag(torch.tensor([-0.5, -0.5, 3.0, 1.0], dtype=torch.float64))
    save_preview_files(
        tmp_path, MetaTensor(image.half(), affine=affine), label.bool(), prediction.float(), quality=0.01
    )


def test_proportions_follow_the_spacing(tmp_path: Path) -> None:
    case = _case(16, 16, 16)
    cube = Image.open(save_preview_files(tmp_path / "a", *case, quality=0.01)[INPUT]).size
    flat = Image.open(save_preview_files(tmp_path / "b", *case, quality=0.01, spacing_mm=(1, 1, 0.25))[INPUT]).size
    assert flat != cube


def test_a_title_of_any_letters_is_drawn(tmp_path: Path) -> None:
    save_preview_files(tmp_path, *_case(20, 20), title="[case] 肝 " * 30, class_names={1: "liver" * 50})


def test_a_hundred_classes_are_drawn(tmp_path: Path) -> None:
    label = torch.arange(1000).reshape(1, 10, 10, 10) // 8
    save_preview_files(tmp_path, torch.rand(1, 10, 10, 10), label, label.flip(1), quality=0.01)


def test_different_shapes_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    image, label, prediction = _case(10, 10, 10)
    with pytest.raises(BadInputError, match="same size"):
        save_preview_files(tmp_path, image, label, prediction[..., :9])
    assert not list(tmp_path.iterdir())


def test_a_batch_is_refused(tmp_path: Path) -> None:
    image, label, prediction = _case(10, 10, 10)
    with pytest.raises(BadInputError, match="a label has shape"):
        save_preview_files(tmp_path, image[None], label[None], prediction[None])


def test_a_quality_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="quality"):
        save_preview_files(tmp_path, *_case(10, 10), quality=0.0)


def test_a_background_thread_draws_the_same(tmp_path: Path) -> None:
    case = _case(12, 12, 12)
    here = save_preview_files(tmp_path / "here", *case, quality=0.01)
    thread = threading.Thread(target=save_preview_files, args=(tmp_path / "there", *case), kwargs={"quality": 0.01})
    thread.start()
    thread.join()
    for path in here:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


def test_the_tensors_are_not_changed(tmp_path: Path) -> None:
    case = _case(12, 12, 12)
    before = [part.clone() for part in case]
    save_preview_files(tmp_path, *case, quality=0.01)
    assert all(torch.equal(one, other) for one, other in zip(case, before, strict=True))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("dataset", "case", "channels"),
    [("Dataset004_Hippocampus", "hippocampus_001", 1), ("Dataset056_PICAI2ch", "10005_1000005", 2)],
)
def test_a_real_volume_shows_all_its_classes(
    tmp_path: Path, real_dataset: Callable[[str], Path], dataset: str, case: str, channels: int
) -> None:
    folder = real_dataset(dataset)
    file = nib.load(folder / "labelsTr" / f"{case}.nii.gz")
    label = np.asarray(file.dataobj).astype(np.int16)[None]
    images = [nib.load(folder / "imagesTr" / f"{case}_{number:04}.nii.gz").get_fdata() for number in range(channels)]
    image = MetaTensor(torch.from_numpy(np.stack(images)), affine=torch.from_numpy(file.affine))
    paths = save_preview_files(tmp_path, image, label, label)
    assert {class_color(value) for value in np.unique(label) if value} <= _colors(paths[LABEL])
    assert 1000 < Image.open(paths[LABEL]).size[0] < 1600
