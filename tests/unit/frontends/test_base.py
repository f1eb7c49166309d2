from __future__ import annotations

import inspect

import pytest

from candy_monai.errors import SettingsError
from candy_monai.frontends.base import Frontend


class Dashboard(Frontend):
    pass


def test_every_callback_has_a_default_that_does_nothing():
    frontend = Frontend({})
    assert frontend.on_experiment_created("id", "Trainer", "UNet", "note", 1e6, 1e9, 10, None) is None
    assert frontend.on_experiment_updated("id", 1, {"loss": [0.5]}, 5) is None
    assert frontend.on_experiment_completed("id") is None
    assert frontend.on_experiment_interrupted("id", KeyboardInterrupt()) is None


@pytest.mark.parametrize(
    ("callback", "parameters"),
    [
        (
            "on_experiment_created",
            "experiment_id trainer model note num_params num_macs num_epochs early_stop_tolerance",
        ),
        ("on_experiment_updated", "experiment_id epoch metrics early_stop_tolerance"),
        ("on_experiment_completed", "experiment_id"),
        ("on_experiment_interrupted", "experiment_id error"),
    ],
)
def test_callbacks_keep_the_parameters_that_existing_frontends_override(callback, parameters):
    assert list(inspect.signature(getattr(Frontend({}), callback)).parameters) == parameters.split()


def test_a_secret_that_is_there_is_returned():
    assert Frontend({"api_key": "x"}).require_nonempty_secret("api_key") == "x"


@pytest.mark.parametrize("secrets", [{}, {"api_key": ""}, {"api_key": "  "}])
def test_a_missing_or_empty_secret_is_an_error_that_says_how_to_set_it(secrets):
    with pytest.raises(
        SettingsError, match=r"Dashboard needs .*'api_key'.*set-secret api_key.*CANDY_MONAI_API_KEY.*secrets\.yml"
    ):
        Dashboard(secrets).require_nonempty_secret("api_key")


def test_text_becomes_a_number_where_a_number_is_asked_for():
    frontend = Frontend({"port": "8080", "timeout": "2.5", "retries": 3})
    assert frontend.require_nonempty_secret("port", require_type=int) == 8080
    assert frontend.require_nonempty_secret("timeout", require_type=float) == 2.5
    assert frontend.require_nonempty_secret("retries", require_type=float) == 3.0


@pytest.mark.parametrize(
    ("value", "wanted"), [("s3cret", int), ("s3cret", float), (1, str), (True, int), ("true", bool), (2.5, int)]
)
def test_a_secret_of_another_type_is_an_error_that_does_not_show_it(value, wanted):
    with pytest.raises(SettingsError, match=f"as {wanted.__name__}, got {type(value).__name__}") as caught:
        Frontend({"key": value}).require_nonempty_secret("key", require_type=wanted)
    assert "s3cret" not in str(caught.value)


def test_the_state_of_a_frontend_does_not_show_its_secrets():
    assert "s3cret" not in repr(vars(Frontend({"key": "s3cret"})))


def test_outside_of_a_run_a_frontend_s_message_is_a_warning():
    with pytest.warns(RuntimeWarning, match="no column"):
        Frontend({}).log("no column")
