import time

import pytest

from candy_monai.errors import SettingsError
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.hybrid import create_hybrid_frontend
from tests.toys import small_trainer


class _Told(Frontend):
    def __init__(self, secrets):
        super().__init__(secrets)
        self.calls = []

    def on_experiment_created(self, *arguments):
        self.calls.append(("created", *arguments))

    def on_experiment_updated(self, experiment_id, epoch, metrics, early_stop_tolerance):
        self.calls.append(("updated", experiment_id, epoch, dict(metrics), early_stop_tolerance))
        metrics.clear()

    def on_experiment_completed(self, *arguments):
        self.calls.append(("completed", *arguments))

    def on_experiment_interrupted(self, *arguments):
        self.calls.append(("interrupted", *arguments))


class _First(_Told):
    pass


class _Second(_Told):
    pass


class _Down(Frontend):
    def on_experiment_updated(self, *arguments):
        raise ConnectionError("no route to host")


class _NeedsKey(Frontend):
    def __init__(self, secrets):
        super().__init__(secrets)
        self.require_nonempty_secret("key")


def test_every_part_is_told_everything():
    hybrid = create_hybrid_frontend(_First, _Second)({})
    error = RuntimeError("x")
    hybrid.on_experiment_created("id", "T", "UNet", "note", 1.0, 2.0, 10, None)
    hybrid.on_experiment_updated("id", 1, {"loss": [0.5]}, 3)
    hybrid.on_experiment_completed("id")
    hybrid.on_experiment_interrupted("id", error)
    expected = [
        ("created", "id", "T", "UNet", "note", 1.0, 2.0, 10, None),
        ("updated", "id", 1, {"loss": [0.5]}, 3),
        ("completed", "id"),
        ("interrupted", "id", error),
    ]
    assert [part.calls for part in hybrid.parts()] == [expected, expected]


def test_a_part_that_fails_is_reported_and_keeps_nothing_from_the_others():
    hybrid, said = create_hybrid_frontend(_Down, _First)({}), []
    hybrid.log_to(said.append)
    hybrid.on_experiment_updated("id", 1, {}, None)
    assert len(hybrid.parts()[1].calls) == 1
    assert said == ["_Down failed: ConnectionError: no route to host"]


def test_a_missing_secret_of_any_part_is_said_when_the_hybrid_is_made():
    with pytest.raises(SettingsError, match="_NeedsKey needs the secret 'key'"):
        create_hybrid_frontend(_First, _NeedsKey)({})


def test_a_hybrid_of_hybrids_has_their_parts():
    hybrid = create_hybrid_frontend(create_hybrid_frontend(_First, _Second), _Down)({})
    assert [type(part) for part in hybrid.parts()] == [_First, _Second, _Down]


def test_a_part_that_is_made_already_is_kept_as_it_is():
    made = _First({})
    assert create_hybrid_frontend(_Second, made)({}).parts()[1] is made


def test_a_hybrid_is_named_after_its_parts():
    class AlphaFrontend(Frontend):
        pass

    class BetaFrontend(Frontend):
        pass

    assert create_hybrid_frontend(AlphaFrontend, BetaFrontend).__name__ == "AlphaAndBetaFrontend"


@pytest.mark.parametrize("wrong", [(), (int,), ("notion",), (_First, None)])
def test_what_is_no_frontend_is_refused(wrong):
    with pytest.raises(SettingsError, match="create_hybrid_frontend"):
        create_hybrid_frontend(*wrong)


def test_in_a_run_a_part_that_hangs_or_fails_keeps_nothing_from_the_others(tmp_path, hanging):
    trainer = small_trainer(tmp_path)
    trainer.set_frontend(create_hybrid_frontend(hanging, _Down, _First))
    trainer.train(3, save_preview=False)
    told = trainer._dashboards.parts[2]
    deadline = time.monotonic() + 10
    while told.calls[-1][0] != "completed" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [call[0] for call in told.calls][-2:] == ["updated", "completed"]
    log = (trainer.experiment_folder() / "logs.txt").read_text()
    assert log.count("_Down failed, and the run continues: ConnectionError: no route to host") == 1
