import json

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.sweep_space import SearchSpace

OPTIONS = TrainOptions()


def space_of(tmp_path, text: str, options: TrainOptions = OPTIONS) -> SearchSpace:
    path = tmp_path / "space.yml"
    path.write_text(text)
    return SearchSpace.read(path, options)


def test_entries_of_the_plan_attributes_of_the_trainer_and_options_are_searched(tmp_path):
    space = space_of(
        tmp_path,
        "learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        "batch_size: {low: 2, high: 8, step: 2}\n"
        "patch_shape: {choices: [[32, 32, 16], '48,48,16']}\n"
        "deep_supervision: {choices: [true, false]}\n"
        "max_grad_norm: {low: 1, high: 12}\n"
        "bundle: {choices: [unet, segresnet]}\n",
    )
    assert space.distributions() == {
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "batch_size": IntDistribution(2, 8, step=2),
        "patch_shape": CategoricalDistribution(["32,32,16", "48,48,16"]),
        "deep_supervision": CategoricalDistribution([True, False]),
        "max_grad_norm": FloatDistribution(1, 12),
        "bundle": CategoricalDistribution(["unet", "segresnet"]),
    }
    values = {"learning_rate": 1 / 3000, "patch_shape": "32,32,16", "deep_supervision": True, "max_grad_norm": 2.5}
    applied = space.applied(TrainOptions(overrides={"filters": "4,8"}), {**values, "bundle": "segresnet"})
    assert applied.overrides == {
        "filters": "4,8",
        "learning_rate": repr(1 / 3000),
        "patch_shape": "32,32,16",
        "deep_supervision": "true",
    }
    assert (applied.trainer_args, applied.bundle) == ({"max_grad_norm": 2.5}, "segresnet")


def test_a_share_between_whole_bounds_is_a_fraction_and_a_number_of_things_is_none(tmp_path):
    space = space_of(tmp_path, "foreground_share: {low: 0, high: 1}\nbatch_size: {low: 1, high: 4}\n")
    share, size = space.distributions().values()
    assert isinstance(share, FloatDistribution)
    assert isinstance(size, IntDistribution)


def test_json_is_read_as_yaml_is(tmp_path):
    path = tmp_path / "space.json"
    path.write_text(json.dumps({"learning_rate": {"low": 0.001, "high": 0.01}}, indent=2))
    assert SearchSpace.read(path, OPTIONS).distributions() == {"learning_rate": FloatDistribution(0.001, 0.01)}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("learning_rat: {low: 1, high: 2}", "Did you mean 'learning_rate'"),
        ("num_classes: 3", "got 3, expected for example"),
        ("batch_size: {low: 2}", "expected for example"),
        ("batch_size: {low: 4, high: 2}", "low is above high: 4 and 2"),
        ("batch_size: {low: 0, high: 2}", "got '0', expected a positive whole number"),
        ("batch_size: {low: 1.5, high: 2}", "got '1.5', expected a positive whole number"),
        ("batch_size: {choices: []}", "must be a list of values"),
        ("batch_size: {choices: [2, two]}", "got 'two', expected a positive whole number"),
        ("batch_size: {choices: [2, 2]}", "choices must differ"),
        ("batch_size: {choices: [2], low: 1}", "choices cannot be combined"),
        ("batch_size: {low: 1, hihg: 2}", "Did you mean 'high'"),
        ("learning_rate: {low: 0, high: 1, log: true}", "above 0 where log is true"),
        ("learning_rate: {low: 1e-3, high: 1, log: true, step: 1e-3}", "log or step, not both"),
        ("learning_rate: {low: .nan, high: 1}", "low must be a number"),
        ("learning_rate: {low: 1e-3, high: 1e-2, step: 0}", "step must be above 0"),
        ("bundle: {choices: [unte]}", "no bundle 'unte' is installed"),
        ("max_grad_norm: {choices: [often]}", "got 'often', expected float"),
        ("build_network: {choices: [1]}", "no attribute 'build_network' that can be set"),
    ],
)
def test_a_bad_entry_is_one_clear_error_that_names_the_file_and_the_entry(tmp_path, line, said):
    with pytest.raises(SettingsError) as caught:
        space_of(tmp_path, f"weight_decay: {{low: 0, high: 0.1}}\n{line}\n")
    text = str(caught.value)
    assert said in text
    assert "space.yml: 1 setting cannot be searched" in text
    assert f"- {line.partition(':')[0]}:" in text


def test_all_bad_entries_are_listed_at_once(tmp_path):
    with pytest.raises(SettingsError, match=r"3 settings cannot be searched:\n(.*\n){2}.*c"):
        space_of(tmp_path, "a: {low: 1, high: 2}\nb: 1\nbatch_size: {choices: [c]}\n")


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("batch_size: {choices: [2, 4]}", TrainOptions(overrides={"batch_size": "2"})),
        ("max_grad_norm: {low: 1, high: 2}", TrainOptions(trainer_args={"max_grad_norm": 3.0})),
        ("bundle: {choices: [unet, vnet]}", TrainOptions(bundle="segresnet")),
    ],
)
def test_what_an_option_fixes_is_not_searched(tmp_path, line, options):
    with pytest.raises(SettingsError, match="is fixed by --"):
        space_of(tmp_path, line, options)


def test_the_length_of_a_run_is_not_searched_beside_a_budget(tmp_path):
    with pytest.raises(SettingsError, match="a budget decides num_epochs"):
        space_of(tmp_path, "num_epochs: {low: 10, high: 20}", TrainOptions(budget_s=60))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no setting to search"),
        ("- 1", "line 1"),
        ("batch_size: {low: 1, low: 2, high: 3}", "'low' is set twice"),
        ("batch_size: {low: 1", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, text, said):
    with pytest.raises(SettingsError, match=said):
        space_of(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        SearchSpace.read(tmp_path / "none.yml", OPTIONS)


def test_what_only_the_plan_of_the_dataset_refuses_is_told_by_entry(tmp_path):
    space = space_of(tmp_path, "batch_size: {choices: [2, 4]}\nlearning_rate: {low: 1e-3, high: 1e-2}\n")

    def check(options: TrainOptions) -> None:
        if (options.overrides or {}).get("batch_size") == "4":
            raise SettingsError("too large")

    with pytest.raises(SettingsError, match=r"1 setting cannot be searched:\n  - batch_size: too large"):
        space.check_with(OPTIONS, check)

    def check_none(_options: TrainOptions) -> None:
        raise BadInputError("no first stage")

    with pytest.raises(BadInputError, match="^no first stage$"):  # it is not said of each setting
        space.check_with(OPTIONS, check_none)
