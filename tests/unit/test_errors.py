from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candy_monai import errors
from candy_monai.errors import BadInputError, CandyError, DatasetError, did_you_mean

PURPOSE_MADE = [
    value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", PURPOSE_MADE)
def test_every_error_of_ours_can_be_caught_as_one(error):
    assert issubclass(error, CandyError)


@pytest.mark.parametrize("error", ["DatasetError", "ExperimentError", "ImageReadError", "SettingsError"])
def test_errors_that_the_user_can_mend_count_as_bad_input(error):
    assert issubclass(getattr(errors, error), BadInputError)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        ("BadInputError", ValueError),
        ("NonFiniteLossError", ArithmeticError),
        ("RunFailedError", RuntimeError),
        ("MissingExtraError", ImportError),
    ],
)
def test_errors_can_be_caught_as_the_builtin_that_they_specialise(error, builtin):
    assert issubclass(getattr(errors, error), builtin)


def test_failures_of_a_run_do_not_count_as_bad_input():
    assert not issubclass(errors.NonFiniteLossError, BadInputError)
    assert not issubclass(errors.RunFailedError, BadInputError)
    assert not issubclass(errors.MissingExtraError, BadInputError)


def test_a_dataset_error_lists_every_problem_on_a_line_of_its_own():
    error = DatasetError("folder", ["a.nii.gz: damaged", "b.nii.gz: no label"])
    assert str(error).splitlines() == [
        "folder: 2 problems found before any work started:",
        "  - a.nii.gz: damaged",
        "  - b.nii.gz: no label",
    ]
    assert error.problems == ("a.nii.gz: damaged", "b.nii.gz: no label")


def test_a_dataset_error_counts_a_single_problem_in_the_singular():
    assert str(DatasetError("folder", ["x"])).startswith("folder: 1 problem found")


def test_a_close_name_is_suggested():
    assert did_you_mean("batchsize", ["batch_size", "patch_shape"]) == " Did you mean 'batch_size'?"


def test_nothing_is_suggested_when_nothing_is_close():
    assert did_you_mean("zzz", ["batch_size", "patch_shape"]) == ""
    assert did_you_mean("zzz", []) == ""


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8, unique=True), st.data())
def test_a_known_name_is_its_own_closest(names, data):
    name = data.draw(st.sampled_from(names))
    assert did_you_mean(name, names) == f" Did you mean {name!r}?"
