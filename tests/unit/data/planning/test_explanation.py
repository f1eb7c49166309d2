from __future__ import annotations

from dataclasses import fields, replace

import pytest

from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.explanation import explain
from candy_monai.data.planning.plan import SETTABLE
from candy_monai.data.planning.rules import plan
from candy_monai.demo.phantom import write_phantom_dataset


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory):
    return inspect(write_phantom_dataset(tmp_path_factory.mktemp("d") / "d", num_cases=3, shape=(24, 24, 16)))


def test_every_entry_that_can_be_set_is_explained_with_the_option_that_sets_it(fingerprint):
    choices = {choice.name: choice for choice in explain(plan(fingerprint), fingerprint)}
    assert set(choices) >= SETTABLE
    for name in SETTABLE:
        assert f"{name}=" in choices[name].remedy
        assert choices[name].reason.endswith(".")


def test_every_entry_of_a_plan_is_explained_or_follows_from_the_dataset(fingerprint):
    explained = {choice.name for choice in explain(plan(fingerprint), fingerprint)}
    described = {"dataset_name", "num_dims", "channel_names", "class_names", "ignore_label", "regions", "chosen"}
    described |= {"full_spacing_mm", "num_previous"}  # by the reasons of spacing_mm and configuration
    assert {field.name for field in fields(plan(fingerprint))} <= explained | described


def test_the_values_shown_make_the_same_plan_when_they_are_given_back(fingerprint):
    made = plan(fingerprint)
    shown = {c.name: c.value for c in explain(made, fingerprint) if c.name in SETTABLE}
    given_back = plan(fingerprint, overrides=shown)
    assert given_back.spacing_mm == pytest.approx(made.spacing_mm, rel=1e-5)  # shown with six digits
    assert replace(given_back, spacing_mm=made.spacing_mm, chosen=()) == made


def test_what_the_user_fixed_is_said_to_be_the_users_choice(fingerprint):
    made = plan(fingerprint, overrides={"batch_size": "3"})
    choices = {choice.name: choice for choice in explain(made, fingerprint)}
    assert (choices["batch_size"].value, choices["batch_size"].reason) == ("3", "Set by you.")
    assert choices["filters"].reason != "Set by you."


def test_a_configuration_that_a_network_asks_for_is_not_said_to_be_the_users_choice_alone(fingerprint):
    for configuration, kind in (("2d", "2-D"), ("3d", "3-D")):
        made = plan(fingerprint, configuration=configuration)
        (choice,) = [choice for choice in explain(made, fingerprint) if choice.name == "configuration"]
        assert choice.value == configuration
        assert f"or required by a network or weights that are {kind} (--network" in choice.reason


def test_what_a_budget_decided_and_what_a_trainer_builds_itself_is_not_explained_by_the_rules(fingerprint):
    choices = explain(plan(fingerprint), fingerprint, by_budget=("num_epochs",), criterion_of="Mine")
    found = {choice.name: choice for choice in choices}
    assert found["num_epochs"].reason == "Decided by the budget, from what was measured on this machine."
    assert (found["loss"].value, found["loss"].remedy) == ("of its own", "override build_criterion of Mine")


def test_an_entry_that_is_none_says_what_it_could_be(fingerprint, tmp_path):
    remedies = {choice.name: choice.remedy for choice in explain(plan(fingerprint), fingerprint)}
    assert remedies["slice_axis"] == "--set slice_axis=AXIS"
    assert remedies["resampling"] == "--set resampling=extent|separate_z|stock"
    pictures = inspect(write_phantom_dataset(tmp_path / "d", num_cases=3, num_dims=2))
    remedies = {choice.name: choice.remedy for choice in explain(plan(pictures), pictures)}
    assert {remedies[name] for name in ("orientation", "spacing_mm", "slice_axis")} == {"follows from the data"}


def test_a_lower_resolution_is_explained_by_the_full_one(fingerprint):
    made = replace(plan(fingerprint, configuration="3d"), full_spacing_mm=(0.5, 0.5, 1.0))
    choices = {choice.name: choice for choice in explain(made, fingerprint)}
    assert (choices["configuration"].value, choices["configuration"].remedy) == ("3d_lowres", "--configuration 3d")
    assert "a patch covers more of a volume" in choices["configuration"].reason
    assert "Coarser than in the configuration 3d (0.5,0.5,1)" in choices["spacing_mm"].reason
    (cascade,) = (
        choice
        for choice in explain(plan(fingerprint, configuration="3d_cascade"), fingerprint)
        if choice.name == "configuration"
    )
    assert (cascade.value, cascade.remedy) == ("3d_cascade", "--configuration 3d")
    assert "(--previous)" in cascade.reason
