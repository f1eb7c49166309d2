from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candy_monai.data.images.names import composed, existing_path, image_suffix, split_channel, stem_of


def test_the_suffix_is_lower_case_and_keeps_both_parts_of_a_compressed_nifti():
    assert image_suffix("a.b/case.1.NII.GZ") == ".nii.gz"
    assert image_suffix(Path("x.PNG")) == ".png"


def test_a_stem_keeps_every_dot_but_that_of_the_suffix():
    assert stem_of("folder/a.b.NII.gz") == "a.b"
    assert stem_of(Path("a.png")) == "a"
    assert stem_of("plain") == "plain"


@pytest.mark.parametrize(
    ("stem", "parts"),
    [
        ("a_0003", ("a", 3)),
        ("a_0000_0001", ("a_0000", 1)),
        ("a", ("a", None)),
        ("a_003", ("a_003", None)),
        ("a_00031", ("a_00031", None)),
        ("_0001", ("_0001", None)),
        ("a\n_0002", ("a\n", 2)),
    ],
)
def test_only_the_last_four_digits_behind_a_case_are_a_channel(stem, parts):
    assert split_channel(stem) == parts


@given(case=st.text(min_size=1), channel=st.integers(0, 9999))
def test_a_case_and_a_channel_are_found_again_in_their_name(case, channel):
    assert split_channel(f"{case}_{channel:04d}") == (case, channel)


def test_a_name_is_found_in_whichever_form_its_accents_are_stored(tmp_path):
    stored = tmp_path / "Mu\u0308ller.nii"
    stored.touch()
    assert existing_path(tmp_path / "M\u00fcller.nii") == stored
    assert existing_path(tmp_path / "Meier\u00e9.nii") == tmp_path / "Meier\u00e9.nii"
    assert composed(stored.name) == "M\u00fcller.nii"
