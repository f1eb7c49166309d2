from candy_monai.cli.crossval import _as_text, _options
from candy_monai.cli.main import _parsed, main


def test_every_option_that_was_typed_reaches_the_folds():
    typed = ["crossval", "D", "--epochs", "3", "--seed", "1", "--set", "a=1", "--set", "b=2", "--note", "mine"]
    args = _parsed([*typed, "--save-every", "90s"])
    options = _options(args)
    assert options[:2] == ["--bundle", "unet"]
    pairs = set(zip(options[::2], options[1::2], strict=True))
    assert {
        ("--epochs", "3"),
        ("--seed", "1"),
        ("--set", "a=1"),
        ("--set", "b=2"),
        ("--note", "mine"),
        ("--save-every", "90s"),
    } <= pairs


def test_a_budget_is_passed_on_in_seconds():
    assert "600.0s" in _options(_parsed(["crossval", "D", "--budget", "10m"]))


def test_a_plan_to_keep_reaches_the_folds_and_what_is_none_is_refused_before_the_dataset_is_read(tmp_path, capsys):
    options = _options(_parsed(["crossval", "D", "--plan", str(tmp_path / "plan.json")]))
    assert options[options.index("--plan") + 1] == str(tmp_path / "plan.json")
    assert main(["crossval", str(tmp_path / "none"), "--plan", str(tmp_path / "plan.json")]) == 2
    assert "plan.json: there is no such file; give the folder of an experiment" in capsys.readouterr().err


def test_folds_without_scores_are_shown_without_numbers():
    folds = [
        {"fold": 0, "foreground_mean": 0.5, "classes": {"1": 0.5}},
        {"fold": 1, "foreground_mean": None, "classes": {}},
    ]
    lines = _as_text({"foreground_mean": 0.5, "classes": {"1": 0.5}, "folds": folds}).splitlines()
    assert [line.split() for line in lines] == [
        ["fold", "Dice", "class", "1"],
        ["0", "0.5000", "0.5000"],
        ["1", "-", "-"],
        ["mean", "0.5000", "0.5000"],
    ]
