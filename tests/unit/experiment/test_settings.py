import ast
import dataclasses
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from candy_monai.errors import SettingsError
from candy_monai.experiment.settings import TrainSettings
from candy_monai.training.trainer import Trainer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_epochs", 0),
        ("num_epochs", 2.5),
        ("num_epochs", None),
        ("num_checkpoints", -1),
        ("early_stop_tolerance", 0),
        ("early_stop_tolerance", "forecasts"),
        ("early_stop_confidence", 1.0),
        ("early_stop_margin", -0.1),
        ("validate_every", 0),
        ("num_validation_cases", 0),
        ("preview_quality", 0.0),
        ("seed", -1),
        ("seed", 2**32),
        ("amp", "fp8"),
        ("non_finite", "ignore"),
        ("time_limit_s", 0.0),
        ("time_limit_s", "10m"),
        ("ema", "false"),
        ("preview_quality", "0.5"),
        ("seed", 1.5),
        ("note", 3),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=name):
        TrainSettings(**{"num_epochs": 1, name: value})


def test_the_defaults_are_those_of_the_user_s_description():
    settings = TrainSettings(num_epochs=100)
    assert (settings.note, settings.num_checkpoints, settings.ema, settings.seed) == ("", 5, True, None)
    assert (settings.early_stop_tolerance, settings.val_score_prediction) == (5, True)
    assert (settings.val_score_prediction_degree, settings.save_preview, settings.preview_quality) == (5, True, 0.75)


def test_the_signature_and_the_page_of_train_say_what_is_declared():
    declared = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
    _, *keywords = inspect.signature(Trainer.train).parameters.values()
    missing = {inspect.Parameter.empty: dataclasses.MISSING}
    assert {keyword.name: missing.get(keyword.default, keyword.default) for keyword in keywords} == declared
    described = inspect.getdoc(Trainer.train)  # Python 3.13 takes the indentation from docstrings itself
    assert all(f"\n    {name}: " in described for name in declared)
    page = (Path(__file__).parents[3] / "docs" / "your_own_trainer.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`|required) \|", page, flags=re.MULTILINE)
    assert {name: ast.literal_eval(text) if text else dataclasses.MISSING for name, text in rows} == declared


def test_a_number_of_numpy_s_is_a_number():
    settings = TrainSettings(num_epochs=np.int64(2), ema=np.bool_(False), preview_quality=np.float32(0.5))
    assert settings == TrainSettings(num_epochs=2, ema=False, preview_quality=0.5)


def test_an_unknown_name_is_refused_with_the_closest_known_one():
    with pytest.raises(SettingsError, match=r"settings\.yml.*num_checkpoint'.*'num_checkpoints'"):
        TrainSettings.check_names({"num_checkpoint": 3}, source="settings.yml")
