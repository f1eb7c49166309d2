from __future__ import annotations

import io
import stat
import sys

import pytest

from candy_monai.cli.main import main
from candy_monai.config import config_folder, load_secrets, save_secret


@pytest.fixture
def typed(monkeypatch):
    """Return a function that sets what the user types at the prompt of a terminal."""

    def answer(text):
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("getpass.getpass", lambda _prompt: text)

    return answer


def test_a_secret_is_asked_for_and_stored_for_its_owner_only(typed, capsys):
    typed("s3cret")
    assert main(["config", "set-secret", "notion_api_key"]) == 0
    file = config_folder() / "secrets.yml"
    assert dict(load_secrets()) == {"notion_api_key": "s3cret"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert capsys.readouterr().out == f"Stored notion_api_key in {file}\n"


def test_without_a_terminal_one_line_is_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(" s3cret \nmore\n"))
    assert main(["config", "set-secret", "key"]) == 0
    assert load_secrets()["key"] == "s3cret"


@pytest.mark.parametrize("arguments", [["key", "s3cret"], ["key=s3cret"], ["key", "s3cret", "more"]])
def test_a_value_on_the_command_line_is_refused_and_not_repeated(arguments, capsys):
    assert main(["config", "set-secret", *arguments]) == 2
    shown = capsys.readouterr()
    assert "give only the name of the secret" in shown.err
    assert "s3cret" not in shown.out + shown.err
    assert dict(load_secrets()) == {}


def test_of_a_missing_name_only_the_name_is_asked_for(capsys):
    assert main(["config", "set-secret"]) == 2
    assert "required: NAME\n" in capsys.readouterr().err


def test_an_empty_value_is_refused(typed, capsys):
    typed("  ")
    assert main(["config", "set-secret", "key"]) == 2
    assert "'key' is empty" in capsys.readouterr().err


def test_a_stored_secret_that_the_environment_overrides_is_said(typed, monkeypatch, capsys):
    monkeypatch.setenv("CANDY_MONAI_KEY", "x")
    typed("s3cret")
    assert main(["config", "set-secret", "key"]) == 0
    assert "CANDY_MONAI_KEY is set and takes precedence" in capsys.readouterr().err


def test_secrets_are_listed_by_name_and_source_without_their_values(monkeypatch, capsys):
    save_secret("in_both", "s3cret")
    save_secret("in_file", "s3cret")
    monkeypatch.setenv("CANDY_MONAI_IN_BOTH", "s3cret")
    assert main(["config", "list-secrets"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "in_both  environment (CANDY_MONAI_IN_BOTH)",
        f"in_file  {config_folder() / 'secrets.yml'}",
    ]


def test_no_secrets_are_said_with_what_to_do(capsys):
    assert main(["config", "list-secrets"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "config set-secret NAME" in shown.err


def test_the_settings_in_force_are_shown_with_the_files_that_they_come_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config_folder().mkdir(parents=True, exist_ok=True)
    (config_folder() / "settings.yml").write_text("seed: 1\nnote: mine\n")
    (tmp_path / "settings.yml").write_text("seed: 2\n")
    save_secret("key", "s3cret")
    assert main(["config", "show"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"# folder: {config_folder()}",
        f"# settings: {config_folder() / 'settings.yml'}",
        f"# settings: {tmp_path / 'settings.yml'}",
        "# secrets: key",
        "seed: 2",
        "note: mine",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [("num_checkpoint: 2", "Did you mean 'num_checkpoints'"), ("ema: 3", "ema must be true or false")],
)
def test_settings_that_training_would_refuse_are_told(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yml").write_text(text)
    assert main(["config", "show"]) == 0
    assert words in capsys.readouterr().err


def test_without_settings_it_is_said_where_they_would_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "show"]) == 0
    assert f"{config_folder() / 'settings.yml'} or ./settings.yml" in capsys.readouterr().out


def test_the_path_is_that_of_the_folder(capsys):
    assert main(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{config_folder()}\n"


@pytest.mark.parametrize("action", ["set-secret", "list-secrets", "show", "path"])
def test_every_action_has_help(action, capsys):
    assert main(["config", action, "--help"]) == 0
    assert f"usage: candy-monai config {action}" in capsys.readouterr().out
