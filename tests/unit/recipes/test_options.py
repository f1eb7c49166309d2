from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from candy_monai.errors import SettingsError
from candy_monai.experiment.settings import TrainSettings
from candy_monai.recipes.options import TrainOptions, parsed_literals, parsed_pairs

_KINDS = {field.name: field.metadata["kind"] for field in dataclasses.fields(TrainOptions)}


def test_overrides_are_split_at_the_first_equals_sign():
    assert parsed_pairs(["a=1", " b = x=y ", "note="]) == {"a": "1", "b": "x=y", "note": ""}


def test_no_overrides_are_none():
    assert parsed_pairs([]) == {}


@pytest.mark.parametrize("item", ["a", "=1", " =1", ""])
def test_an_override_without_key_or_value_is_an_error(item):
    with pytest.raises(SettingsError, match="expected KEY=VALUE"):
        parsed_pairs(["ok=1", item])


def test_one_key_with_two_values_is_an_error():
    with pytest.raises(SettingsError, match="--set a is given twice: '1' and '2'"):
        parsed_pairs(["a=1", "a=2"])
    assert parsed_pairs(["a=1", "a=1"]) == {"a": "1"}


def test_arguments_of_a_network_are_read_as_python_reads_literals_and_else_as_text():
    items = ["a=16", "b=1,2", "c=('group', {'num_groups': 4})", "d=batch", "e=true", "f=None", "g=__import__('os')"]
    found = parsed_literals(items)
    assert list(found.values()) == [16, (1, 2), ("group", {"num_groups": 4}), "batch", True, None, "__import__('os')"]
    with pytest.raises(SettingsError, match="--network-args 'a': expected KEY=VALUE, for example --network-args init"):
        parsed_literals(["a"])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("fold", "0", 0),
        ("fold", "12", 12),
        ("fold", "all", "all"),
        ("save_every", "50", 50),
        ("save_every", "10m", "10m"),
        ("save_every", "90s", "90s"),
        ("budget_s", "10m", 600.0),
        ("num_epochs", "3", 3),
        ("out", "there", Path("there")),
    ],
)
def test_text_means_what_a_value_of_python_does(name, text, value):
    assert _KINDS[name].read(text) == value
    assert getattr(TrainOptions(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        *(("fold", text, "expected a number from 0, or 'all'") for text in ("", "-1", "1.5", "All", "²", "one")),
        *(("save_every", text, "a number of batches, or a time") for text in ("0", "-3", "often", "1.5", "0m")),
        ("num_folds", "1", "expected a whole number of at least 2"),
        ("store_precision", "float64", "expected one of 'float32', 'float16'"),
    ],
)
def test_text_that_means_no_value_is_refused(name, text, words):
    with pytest.raises(SettingsError, match=words):
        _KINDS[name].read(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_epochs", 0), ("fold", -1), ("seed", 1.5), ("budget_s", "10m"), ("trust", 1), ("out", None), ("plan", 3)],
)
def test_a_value_of_python_that_is_none_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name} must be "):
        TrainOptions(**{name: value})


def test_options_are_the_same_again_after_they_were_data():
    options = TrainOptions(num_epochs=3, overrides={"a": "1"}, out=Path("o"), frontends=("notion",), trust=True)
    again = TrainOptions.from_json(options.to_json())
    assert {**vars(again), "out": Path(again.out), "frontends": tuple(again.frontends)} == vars(options)


def test_a_class_is_no_data():
    with pytest.raises(SettingsError, match="give FILE:Class"):
        TrainOptions(trainer=dict).to_json()


@pytest.mark.parametrize("text", ["{", '{"epochs": 3}', '{"num_epochs": 0}', "[]", "3"])
def test_data_that_are_no_options_are_refused(text):
    with pytest.raises(SettingsError):
        TrainOptions.from_json(text)


def test_an_option_that_is_a_keyword_of_train_has_its_default():
    defaults = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
    shared = [field for field in dataclasses.fields(TrainOptions) if field.name in defaults]
    assert {field.name for field in shared} >= {"note", "num_epochs", "save_every", "seed"}
    decided = ("num_epochs", "amp")  # by the plan, the device or the budget
    assert all(field.default == defaults[field.name] for field in shared if field.name not in decided)


def test_every_option_is_a_keyword_of_train_or_used_by_a_recipe():
    recipes = Path(inspect.getfile(TrainOptions)).parent.glob("*.py")
    source = "".join(file.read_text(encoding="utf-8") for file in recipes)
    used = {*re.findall(r"options\.(\w+)", source), *TrainSettings.names()}
    assert set(TrainOptions.names()) <= used


def test_every_option_is_documented_for_python():
    assert all(f"    {name}: " in TrainOptions.__doc__ for name in TrainOptions.names())
