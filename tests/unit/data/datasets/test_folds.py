from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candy_monai.data.datasets.folds import (
    Fold,
    choose_folds,
    grouped_kfold,
    kfold,
    pick_fold,
    read_splits,
    resolve_groups,
    stratified_kfold,
    write_splits,
)
from candy_monai.errors import BadInputError, SettingsError

IDS = st.lists(st.text("ab_019", min_size=1, max_size=6), min_size=2, max_size=40, unique=True)


def named(count: int) -> list[str]:
    return [f"case_{index:02d}" for index in range(count)]


def is_partition(folds: tuple[Fold, ...], ids: list[str]) -> bool:
    held_back = sorted(case_id for fold in folds for case_id in fold.validation)
    return held_back == sorted(ids) and all(sorted((*fold.train, *fold.validation)) == sorted(ids) for fold in folds)


@given(ids=IDS, data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_folds_partition_the_cases_and_their_sizes_differ_by_at_most_one(ids, data, seed):
    k = data.draw(st.integers(2, len(ids)))
    folds = kfold(ids, k, seed=seed)
    sizes = [len(fold.validation) for fold in folds]
    assert is_partition(folds, ids)
    assert len(folds) == k
    assert max(sizes) - min(sizes) <= 1


@given(ids=IDS, data=st.data(), seed=st.integers(0, 100))
def test_no_group_is_on_both_sides_of_a_grouped_fold(ids, data, seed):
    groups = {case_id: data.draw(st.sampled_from("wxyz")) for case_id in ids}
    groups[ids[0]], groups[ids[1]] = "w", "x"
    k = data.draw(st.integers(2, len(set(groups.values()))))
    folds = grouped_kfold(ids, groups, k, seed=seed)
    assert is_partition(folds, ids)
    assert all(fold.validation for fold in folds)
    for fold in folds:
        assert not {groups[i] for i in fold.train} & {groups[i] for i in fold.validation}


def test_groups_of_one_size_make_folds_whose_group_counts_differ_by_at_most_one():
    ids = named(22)
    groups = {case_id: case_id[:-1] + str(int(case_id[-1]) // 2) for case_id in ids}  # 11 pairs
    counts = [len({groups[i] for i in fold.validation}) for fold in grouped_kfold(ids, groups, 3)]
    assert sorted(counts) == [3, 4, 4]


@given(ids=IDS, data=st.data(), seed=st.integers(0, 100))
def test_stratified_folds_hold_an_equal_share_of_every_stratum(ids, data, seed):
    strata = {case_id: data.draw(st.booleans()) for case_id in ids}
    k = data.draw(st.integers(2, len(ids)))
    folds = stratified_kfold(ids, strata, k, seed=seed)
    assert is_partition(folds, ids)
    sizes = [len(fold.validation) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for value in set(strata.values()):
        counts = [Counter(strata[i] for i in fold.validation)[value] for fold in folds]
        assert max(counts) - min(counts) <= 1


def test_the_order_of_the_ids_changes_nothing_and_the_seed_does():
    ids = named(12)
    assert kfold(ids[::-1], 5) == kfold(ids, 5)
    assert kfold(ids, 5, seed=1) != kfold(ids, 5, seed=2)
    assert grouped_kfold(ids[::-1], {i: i for i in ids}, 3) == grouped_kfold(ids, {i: i for i in ids}, 3)


def test_the_folds_are_those_of_scikit_learn():
    # RandomState(12345), whose stream NumPy never changes, shuffles 0..9 to 0 7 3 9 6 4 1 8 5 2; KFold holds back
    # consecutive pieces of that, each sorted.
    folds = kfold([str(i) for i in range(10)], 5)
    assert [fold.validation for fold in folds] == [("0", "7"), ("3", "9"), ("4", "6"), ("1", "8"), ("2", "5")]
    assert folds[0].train == ("1", "2", "3", "4", "5", "6", "8", "9")


def test_the_first_folds_are_the_longer_ones_when_the_cases_do_not_divide():
    assert [len(fold.validation) for fold in kfold(named(12), 5)] == [3, 3, 2, 2, 2]


def test_more_folds_than_cases_is_an_error_that_gives_both_numbers():
    with pytest.raises(SettingsError, match="5 folds need at least 5 cases, there are 3"):
        choose_folds(named(3), k=5)
    with pytest.raises(SettingsError, match="3 folds need at least 3 groups, there are 2"):
        choose_folds(named(4), k=3, groups={"case_00": "a", "case_01": "a", "case_02": "b", "case_03": "b"})
    with pytest.raises(SettingsError, match="at least 2"):
        choose_folds(named(4), k=1)


def test_without_k_few_cases_make_fewer_folds_and_one_case_has_no_validation():
    assert len(choose_folds(named(20))) == 5
    assert len(choose_folds(named(3))) == 3
    assert choose_folds(["a"]) == (Fold(train=("a",), validation=()),)
    with pytest.raises(BadInputError, match="no cases"):
        choose_folds([])


def test_an_id_that_occurs_twice_is_an_error():
    with pytest.raises(SettingsError, match="'a' occurs more than once"):
        kfold(["a", "a", "b"], 2)


def test_groups_and_strata_together_are_a_contradiction():
    with pytest.raises(SettingsError, match="exclude each other"):
        choose_folds(named(4), groups="(.)", stratify_by=len)


def test_a_group_is_the_first_parenthesis_or_the_whole_match():
    ids = ["patient001_frame01", "patient001_frame12", "patient002_frame01"]
    assert list(resolve_groups(r"patient(\d+)", ids).values()) == ["001", "001", "002"]
    assert list(resolve_groups(r"patient\d+", ids).values()) == ["patient001", "patient001", "patient002"]


@pytest.mark.parametrize("header", ["", "case_id,patient\n"])
def test_groups_are_read_from_a_table_with_or_without_header(tmp_path, header):
    (tmp_path / "groups.csv").write_text(header + "a,x\n\nb, x\nc,y\nunused,z\n")
    for path in (tmp_path / "groups.csv", str(tmp_path / "groups.csv")):
        assert resolve_groups(path, ["a", "b", "c"]) == {"a": "x", "b": "x", "c": "y"}


def test_a_case_without_group_is_named(tmp_path):
    (tmp_path / "groups.csv").write_text("a,x\n")
    for groups in ("(a)", {"a": "x"}, tmp_path / "groups.csv"):
        with pytest.raises(BadInputError, match="no group for 'b'"):
            resolve_groups(groups, ["a", "b"])
    with pytest.raises(BadInputError, match="not a regular expression"):
        resolve_groups("(", ["a"])


def test_a_case_in_two_groups_is_refused(tmp_path):
    (tmp_path / "groups.csv").write_text("a,x\nb,y\na,y\n")
    with pytest.raises(BadInputError, match=r"groups\.csv: 'a' is in two groups, 'x' and 'y'"):
        resolve_groups(tmp_path / "groups.csv", ["a", "b"])


def test_a_property_is_balanced_by_function_or_mapping():
    ids = [f"{site}{index}" for site in "ab" for index in range(4)]
    by_function = choose_folds(ids, k=4, stratify_by=lambda case_id: case_id[0])
    by_mapping = choose_folds(ids, k=4, stratify_by={case_id: case_id[0] for case_id in ids})
    assert by_function == by_mapping
    assert all(sorted(case_id[0] for case_id in fold.validation) == ["a", "b"] for fold in by_function)


def test_splits_are_read_as_they_were_written(tmp_path):
    folds = kfold(named(7), 3)
    write_splits(tmp_path / "splits_final.json", folds)
    assert read_splits(tmp_path / "splits_final.json") == folds


@pytest.mark.parametrize("content", ["", "{}", "[]", '[{"train": ["a"]}]', '[{"train": [1.5], "val": [true]}]', "[3]"])
def test_a_file_that_holds_no_splits_is_an_error_with_its_name(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(BadInputError, match=r"s\.json: found .*expected a list"):
        read_splits(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"train": ["a"], "test": ["b"]}]', "no 'val' in fold 0, which has 'train', 'test'"),
        ('[{"train": ["a"], "val": ["b"]}, {}]', "no 'train' in fold 1, which has nothing"),
        ('[["a"], ["b"]]', r"\['a'\] for fold 0"),
        (str([named(200)]).replace("'", '"'), r"found \['case_00', .*, \.\.\.\] for fold 0; expected"),
        ("null", "found None"),
    ],
)
def test_what_a_file_of_splits_holds_instead_is_said_in_words(tmp_path, content, said):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(
        BadInputError, match=rf"s\.json: found .*{said}.*; expected a list" if "found" not in said else said
    ):
        read_splits(tmp_path / "s.json")


def test_a_split_with_a_case_on_both_sides_is_an_error(tmp_path):
    (tmp_path / "s.json").write_text('[{"train": ["a", "b"], "val": ["b"]}]')
    with pytest.raises(BadInputError, match="fold 0 has 'b' in both"):
        read_splits(tmp_path / "s.json")


def test_a_fold_that_does_not_exist_is_an_error():
    with pytest.raises(SettingsError, match="fold 3 does not exist: expected 0 to 2"):
        pick_fold(kfold(named(6), 3), 3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_splits_and_groups_of_any_editor_are_read(tmp_path, encoding):
    (tmp_path / "s.json").write_bytes('[{"train": ["a"],\r\n "val": ["M\u00fcller"]}]'.encode(encoding))
    (tmp_path / "g.csv").write_bytes("case,group\r\na,x\r\nM\u00fcller,y\r\n".encode(encoding))
    assert read_splits(tmp_path / "s.json") == (Fold(train=("a",), validation=("M\u00fcller",)),)
    assert resolve_groups(tmp_path / "g.csv", ["a", "M\u00fcller"]) == {"a": "x", "M\u00fcller": "y"}


@pytest.mark.parametrize(
    ("entry", "means"),
    [
        ("case_1", ("case_1",)),
        (["case_1.nii.gz"], ("case_1",)),
        (["./imagesTr/case_1_0000.nii.gz", "labelsTr\\007.nii.gz"], ("case_1", "007")),
        ([7], ("007",)),
        (7, ("007",)),
        ("case_1, 007", ("case_1", "007")),
        (["Mu\u0308ller"], ("M\u00fcller",)),
        (["scan.1"], ("scan.1",)),
        (["nobody.nii.gz"], ("nobody.nii.gz",)),
    ],
)
def test_an_entry_of_a_split_stands_for_the_one_case_that_it_can_mean(tmp_path, entry, means):
    (tmp_path / "s.json").write_text(json.dumps([{"train": ["other"], "val": entry}]))
    known = ["other", "case_1", "007", "M\u00fcller", "scan", "scan.1"]
    assert read_splits(tmp_path / "s.json", case_ids=known)[0].validation == means


def test_a_single_fold_needs_no_list_around_it(tmp_path):
    (tmp_path / "s.json").write_text('{"train": ["a"], "val": ["b"]}')
    assert read_splits(tmp_path / "s.json") == (Fold(train=("a",), validation=("b",)),)


def test_one_case_in_two_spellings_is_on_both_sides(tmp_path):
    (tmp_path / "s.json").write_text('[{"train": ["a", "b"], "val": ["b.nii.gz"]}]')
    with pytest.raises(BadInputError, match="'b' in both training and validation"):
        read_splits(tmp_path / "s.json", case_ids=["a", "b"])
