import pytest

from candy_monai.errors import BadInputError
from candy_monai.inference.found import find_inputs


def _touch(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_the_channels_of_a_case_belong_together_in_their_order(tmp_path):
    _touch(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "notes.txt", "._a_0000.nii.gz")
    cases = find_inputs(tmp_path, num_channels=2)
    assert [(case.case_id, [file.name for file in case.files]) for case in cases] == [
        ("a", ["a_0000.nii.gz", "a_0001.nii.gz"]),
        ("b", ["b_0000.nii.gz", "b_0001.nii.gz"]),
    ]


def test_only_the_last_four_digits_are_the_channel(tmp_path):
    _touch(tmp_path, "scan_0000_0000.nii.gz", "scan.v2_0000.nii.gz")
    assert [case.case_id for case in find_inputs(tmp_path, num_channels=1)] == ["scan.v2", "scan_0000"]


def test_files_without_a_channel_are_cases_of_their_own(tmp_path):
    _touch(tmp_path, "x.png", "y.PNG")
    assert [case.case_id for case in find_inputs(tmp_path, num_channels=3)] == ["x", "y"]


def test_a_case_that_lacks_a_channel_has_its_problem_and_the_others_have_none(tmp_path):
    _touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz", "c_0002.nii.gz", "c_0001.nii.gz")
    problems = {case.case_id: case.problem for case in find_inputs(tmp_path, num_channels=2)}
    assert problems == {
        "a": None,
        "b": "case b: channel file _0000 is missing",
        "c": "case c: channel file _0000 is missing; case c: channel file _0002 is one too many",
    }


def test_one_file_of_a_case_brings_its_other_channels(tmp_path):
    _touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    (case,) = find_inputs(tmp_path / "a_0000.nii.gz", num_channels=2)
    assert [file.name for file in case.files] == ["a_0000.nii.gz", "a_0001.nii.gz"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_predict_is_an_error_that_names_the_place(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match=name):
        find_inputs(tmp_path / name, num_channels=1)


def _ids(folder, num_channels):
    return [case.case_id for case in find_inputs(folder, num_channels=num_channels)]


@pytest.mark.parametrize("names", [("scan_0001", "scan_0002"), ("other_0007",), ("scan_0001", "scan_0001_0001")])
def test_a_number_that_is_no_channel_belongs_to_the_name_of_the_case(tmp_path, names):
    _touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    assert _ids(tmp_path, 1) == list(names)
    assert _ids(tmp_path / f"{names[0]}.nii.gz", 1) == [names[0]]


def test_a_case_with_a_channel_too_many_is_found_and_not_taken_for_two_cases(tmp_path):
    _touch(tmp_path, "scan_0000.nii.gz", "scan_0001.nii.gz", "other_0001.nii.gz")
    problems = {case.case_id: case.problem for case in find_inputs(tmp_path, num_channels=1)}
    assert problems == {"other_0001": None, "scan": "case scan: channel file _0001 is one too many"}


def test_a_lone_zero_is_a_channel(tmp_path):
    _touch(tmp_path, "scan_0000.nii.gz")
    assert _ids(tmp_path, 1) == _ids(tmp_path / "scan_0000.nii.gz", 1) == ["scan"]


def test_a_numbered_case_and_a_channel_that_would_be_written_to_one_file_are_an_error(tmp_path):
    _touch(tmp_path, "scan_0001.nii.gz", "scan_0001_0000.nii.gz")
    (case,) = find_inputs(tmp_path, num_channels=1)
    with pytest.raises(BadInputError, match="channel 0000 of case scan_0001 is also in scan_0001.nii.gz"):
        case.load(num_channels=1)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    _touch(tmp_path, "a_0000.nii.gz")
    (tmp_path / "b_0000.nii.gz").symlink_to(tmp_path / "gone")
    assert _ids(tmp_path, 1) == ["a", "b"]
    with pytest.raises(BadInputError, match=r"b_0000\.nii\.gz: no such file"):
        find_inputs(tmp_path, num_channels=1)[1].load(num_channels=1)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refused(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(BadInputError, match="the folder cannot be read .Permission denied.; check its permissions"):
        find_inputs(tmp_path, num_channels=1)


@pytest.mark.parametrize("channel", ["0000", "0001"])
def test_whichever_file_of_a_case_is_named_its_channels_come_in_order(tmp_path, channel):
    _touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    (case,) = find_inputs(tmp_path / f"a_{channel}.nii.gz", num_channels=2)
    assert (case.case_id, [file.name for file in case.files]) == ("a", ["a_0000.nii.gz", "a_0001.nii.gz"])
