from __future__ import annotations

import pytest

from candy_monai.data.datasets.folds import Fold, choose_folds, resolve_groups
from candy_monai.data.datasets.patients import patients_by_name, patients_on_both_sides


def each(pattern: str, patients: int, parts: int) -> list[str]:
    """Return ids of every patient and part, numbered from 1."""
    return [pattern.format(patient, part) for patient in range(1, patients + 1) for part in range(1, parts + 1)]


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ("patient{:03d}_frame{:02d}", "patient001"),
        ("SC-HF-I-{:02d}-IM-0001-{:04d}", "SC-HF-I-01"),
        ("sub-{:02d}_ses-{:02d}_T1w", "sub-01"),
        ("vol{}_slice_{}", "vol1"),
        ("P{:03d}.visit{}", "P001"),
        ("patient_{}_t{}", "patient_1"),
        ("pat{:02d}_{}", "pat01"),
        ("10{:03d}_{}", "10001"),
        ("BraTS-GLI-{:05d}-{:03d}", "BraTS-GLI-00001"),
    ],
)
def test_ids_of_one_patient_are_found_and_the_expression_groups_them(pattern, first):
    ids = each(pattern, 8, 2)
    names = patients_by_name(ids)
    assert names.patient_of[ids[0]] == names.patient_of[ids[1]] == first
    assert len(set(names.patient_of.values())) == 8
    assert resolve_groups(names.groups, ids) == names.patient_of
    assert patients_on_both_sides(choose_folds(ids, groups=names.groups)) == []


@pytest.mark.parametrize(("first", "second"), [("_ED", "_ES"), ("L", "R"), ("-pre", "-post")])
def test_two_phases_or_sides_are_of_one_patient(first, second):
    ids = [f"p{number:02d}{side}" for number in range(4) for side in (first, second)]
    names = patients_by_name(ids)
    assert set(names.patient_of.values()) == {"p00", "p01", "p02", "p03"}
    assert resolve_groups(names.groups, ids) == names.patient_of


def test_an_id_without_a_part_is_a_patient_of_its_own():
    ids = [*each("patient{}_visit{}", 3, 2), "patient9"]
    names = patients_by_name(ids)
    assert set(names.patient_of.values()) == {"patient1", "patient2", "patient3", "patient9"}
    assert resolve_groups(names.groups, ids) == names.patient_of


@pytest.mark.parametrize(
    "ids",
    [
        each("hippocampus_{1:03d}", 1, 60),
        each("case_{1}", 1, 12),
        each("drive_{1}", 1, 20),
        [*each("benign ({1})", 1, 20), *each("malignant ({1})", 1, 20)],
        [*each("benign_img{1}", 1, 20), *each("malignant_img{1}", 1, 20)],
        each("BraTS20_Training_{1:03d}", 1, 30),
        each("site{}_{:03d}", 6, 5),
        each("site{}_frame{:03d}", 6, 5),
        each("202{}_{:03d}", 6, 5),
        each("batch{}_im{}", 6, 5),
        each("MR_T{}_{:02d}", 2, 9),
        each("train_slice_{1}", 1, 20),
        each("patient1_frame{1}", 1, 20),
        each("{0}_100000{0}", 12, 1),
        ["t1", "t2", "t2s", "mt0", "mt1"],
        ["ch2"],
    ],
)
def test_other_ids_name_no_patient_twice(ids):
    assert patients_by_name(ids) is None


def test_patients_on_both_sides_are_counted_with_the_folds_and_the_groups_that_part_them():
    ids = each("patient{}_frame{}", 3, 2)
    fold = Fold(train=(ids[0], ids[3], ids[4], ids[5]), validation=(ids[1], ids[2]))
    (text,) = patients_on_both_sides([fold], first=2)
    assert text.startswith("2 of 3 patients are both in training and in validation (2 of 2 validated in fold 2)")
    assert "patient1_frame1 and patient1_frame2" in text
    assert text.endswith("--groups '^(.+?)_frame'")


def test_a_fold_that_trains_on_everything_is_left_out():
    ids = tuple(each("patient{}_frame{}", 3, 2))
    assert patients_on_both_sides([Fold(train=ids, validation=ids)]) == []


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("Dataset027_ACDC", "^(.+?)_frame"),
        ("Dataset123_SunnybrookPNG", "^(.+?)-IM"),
        ("Dataset004_Hippocampus", None),
        ("Dataset121_DRIVE", None),
        ("Dataset127_BUSIMini", None),
        ("Dataset056_PICAI2ch", None),
    ],
)
def test_real_datasets_name_their_patients(real_dataset, name, groups):
    from candy_monai.data.datasets.nnunet import NNUNetDataset

    names = patients_by_name(NNUNetDataset(real_dataset(name)).case_ids)
    assert (names and names.groups) == groups
