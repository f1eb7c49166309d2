from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from candy_monai.config import (
    MAX_BYTES,
    Secrets,
    config_folder,
    environment_variable,
    load_secrets,
    load_settings,
    save_secret,
)
from candy_monai.errors import SettingsError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's config folder, empty; the working folder is another empty one."""
    folder = tmp_path / "config"
    folder.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("CANDY_MONAI_CONFIG", str(folder))
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def private(path: Path, text: str) -> Path:
    write(path, text).chmod(0o600)
    return path


def test_the_config_folder_is_the_one_named_before_the_xdg_one_before_the_one_in_home(monkeypatch):
    monkeypatch.setenv("CANDY_MONAI_CONFIG", "/a")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/b")
    assert config_folder() == Path("/a")
    monkeypatch.delenv("CANDY_MONAI_CONFIG")
    assert config_folder() == Path("/b/candy_monai")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert config_folder() == Path("/c/.config/candy_monai")


def test_a_relative_xdg_folder_is_ignored(monkeypatch):
    monkeypatch.setenv("HOME", "/c")
    monkeypatch.setenv("XDG_CONFIG_HOME", "here")
    assert config_folder() == Path("/c/.config/candy_monai")


def test_naming_the_config_folder_does_not_create_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CANDY_MONAI_CONFIG", str(tmp_path / "none"))
    assert load_settings() == {}
    assert len(load_secrets()) == 0
    assert not (tmp_path / "none").exists()


def test_the_later_settings_file_wins_key_by_key(home):
    write(home / "settings.yml", "a: user\nb: user\nc: user\n")
    write(Path("settings.yml"), "b: folder\nc: folder\n")
    given = write(home / "mine.yml", "c: given\nd: given\n")
    assert load_settings(given) == {"a": "user", "b": "folder", "c": "given", "d": "given"}


def test_a_settings_path_may_be_text(home):
    assert load_settings(str(write(home / "mine.yml", "seed: 42\n"))) == {"seed": 42}


def test_settings_keep_yaml_types(home):
    text = "note: 'two words'\nseed: 42\nema: true\nseed2: null\nquality: 0.75\nlist: [1, a]\nnested: {x: 1.5}\n"
    assert load_settings(write(home / "mine.yml", text)) == {
        "note": "two words",
        "seed": 42,
        "ema": True,
        "seed2": None,
        "quality": 0.75,
        "list": [1, "a"],
        "nested": {"x": 1.5},
    }


def test_an_exponent_without_a_point_is_a_number(home):
    settings = load_settings(write(home / "mine.yml", "lr: 1e-3\nhalf: 5.e-1\ntext: '1e-3'\nname: 1e-3x\n"))
    assert settings == {"lr": 0.001, "half": 0.5, "text": "1e-3", "name": "1e-3x"}


def test_an_empty_settings_file_sets_nothing(home):
    assert load_settings(write(home / "mine.yml", "# nothing yet\n")) == {}


def test_a_byte_order_mark_does_not_become_part_of_the_first_name(home):
    (home / "mine.yml").write_bytes(b"\xef\xbb\xbfseed: 1\n")
    assert load_settings(home / "mine.yml") == {"seed": 1}


def test_a_missing_settings_file_that_was_asked_for_is_an_error(home):
    with pytest.raises(SettingsError, match=r"none\.yml does not exist"):
        load_settings(home / "none.yml")


def test_a_folder_in_place_of_a_settings_file_is_an_error(home):
    with pytest.raises(SettingsError, match="is not a file"):
        load_settings(home)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: [1\n", 3, "not valid YAML"),
        ("- a\n- b\n", 1, "expected 'name: value' lines"),
        ("a: 1\n2: b\n", 2, "a name must be text"),
        ("a: 1\non: b\n", 2, "a name must be text"),
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is set twice"),
        ("a: 1\nwhen: 2025-11-01\n", 2, "write anything else in quotes"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "write anything else in quotes"),
        ("a: &x [1]\nb: *x\n", 1, "anchors and aliases"),
        ("x:\n  a: 1\n  a: 2\n", 3, "'a' is set twice"),
        ("a: 1\n---\nb: 1\n", 2, "not valid YAML"),
    ],
)
def test_a_bad_settings_file_is_named_with_its_line(home, text, line, said):
    with pytest.raises(SettingsError) as caught:
        load_settings(write(home / "mine.yml", text))
    assert f"mine.yml, line {line}: " in str(caught.value)
    assert said in str(caught.value)


def test_a_number_that_is_none_is_a_settings_error(home):
    with pytest.raises(SettingsError, match="write it in quotes"):
        load_settings(write(home / "mine.yml", "a: !!int abc\n"))


def test_a_settings_file_that_is_no_text_is_named_with_its_line(home):
    (home / "mine.yml").write_bytes(b"a: 1\nb: \xff\xfe\n")
    with pytest.raises(SettingsError, match=r"mine\.yml, line 2: not UTF-8"):
        load_settings(home / "mine.yml")


def test_an_exploding_alias_is_refused_before_it_explodes(home):
    rows = ["a: &a0 [x, x, x, x, x, x, x, x, x]"] + [
        f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(30)
    ]
    with pytest.raises(SettingsError, match="anchors and aliases"):
        load_settings(write(home / "mine.yml", "\n".join(rows)))


def test_very_deep_nesting_is_a_settings_error(home):
    with pytest.raises(SettingsError, match="nested too deeply"):
        load_settings(write(home / "mine.yml", "a: " + "[" * 5000 + "]" * 5000))


def test_a_huge_settings_file_is_refused(home):
    with pytest.raises(SettingsError, match="larger than 1024 KiB"):
        load_settings(write(home / "mine.yml", "#" * (MAX_BYTES + 1)))


def test_a_saved_secret_is_loaded_again_and_others_are_kept(home):
    save_secret("notion_api_key", "s3cret")
    assert save_secret("WANDB-token", 7) == home / "secrets.yml"
    assert dict(load_secrets()) == {"notion_api_key": "s3cret", "wandb_token": 7}


def test_a_saved_secret_can_be_read_by_its_owner_only(tmp_path, monkeypatch):
    monkeypatch.setenv("CANDY_MONAI_CONFIG", str(tmp_path / "new" / "config"))
    file = save_secret("key", "value")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["secrets.yml"]


def test_saving_a_secret_keeps_a_linked_file_linked(home, tmp_path):
    (home / "secrets.yml").symlink_to(private(tmp_path / "real.yml", "a: x\n"))
    save_secret("b", "y")
    assert (home / "secrets.yml").is_symlink()
    assert dict(load_secrets()) == {"a": "x", "b": "y"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_secrets_that_others_can_read_are_refused_with_the_remedy(home, mode):
    private(home / "secrets.yml", "key: value\n").chmod(mode)
    with pytest.raises(SettingsError, match=r"chmod 600 '.*secrets\.yml'"):
        load_secrets()
    with pytest.raises(SettingsError, match="chmod 600"):
        save_secret("other", "x")


def test_an_environment_variable_wins_over_the_secrets_file(home, monkeypatch):
    private(home / "secrets.yml", "key: file\nkept: file\n")
    monkeypatch.setenv("CANDY_MONAI_KEY", "environment")
    assert dict(load_secrets()) == {"key": "environment", "kept": "file"}


def test_an_empty_environment_variable_counts_as_not_set(home, monkeypatch):
    private(home / "secrets.yml", "key: file\n")
    monkeypatch.setenv("CANDY_MONAI_KEY", "")
    assert load_secrets()["key"] == "file"


def test_variables_that_name_folders_are_no_secrets(home, monkeypatch):
    monkeypatch.setenv("CANDY_MONAI_DATA", "/data")
    assert dict(load_secrets()) == {}


def test_secrets_can_be_read_from_a_given_file_which_must_exist(home, tmp_path):
    assert dict(load_secrets(private(tmp_path / "mine.yml", "key: value\n"))) == {"key": "value"}
    with pytest.raises(SettingsError, match="does not exist"):
        load_secrets(tmp_path / "none.yml")


def test_the_text_form_of_secrets_shows_names_and_no_values():
    secrets = Secrets({"key": "s3cret", "pin": 1234})
    for text in (repr(secrets), str(secrets), f"{secrets}", repr({"x": secrets})):
        assert "s3cret" not in text
        assert "1234" not in text
    assert repr(secrets) == "Secrets(key=***, pin=***)"


def test_names_of_secrets_ignore_case_and_take_a_dash_for_an_underscore():
    secrets = Secrets({"Api-Key": "x"})
    assert secrets["api_key"] == secrets["API-KEY"] == "x"
    assert "api-key" in secrets
    assert "key" not in secrets
    assert environment_variable("api-key") == "CANDY_MONAI_API_KEY"


@pytest.mark.parametrize(
    "text", ["key: *s3cret\n", "key: [s3cret\n", "- s3cret\n", "key: {a: s3cret}\n", "a: !s3cret x"]
)
def test_an_error_in_the_secrets_file_does_not_show_a_secret(home, text):
    private(home / "secrets.yml", text)
    with pytest.raises(SettingsError) as caught:
        load_secrets()
    assert "secrets.yml" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["", "two words", "config", "a=b", "1st", "naïve"])
def test_a_name_that_no_environment_variable_could_have_is_refused(home, name):
    with pytest.raises(SettingsError, match="not a valid name of a secret"):
        save_secret(name, "x")
    assert not (home / "secrets.yml").exists()


def test_an_empty_secret_is_refused(home):
    with pytest.raises(SettingsError, match="is empty"):
        save_secret("key", "")


@example(value="\x85")  # a line break to YAML
@example(value="1e5")  # a number to our reader, not to YAML 1.1
@given(value=st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.integers() | st.booleans())
def test_any_secret_survives_saving_and_loading(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANDY_MONAI_CONFIG", str(folder))
        save_secret("key", value)
        assert load_secrets()["key"] == value


def test_reading_settings_does_not_import_torch():
    code = "import sys, candy_monai.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_of_a_windows_editor_are_read(tmp_path, encoding):
    (tmp_path / "settings.yml").write_bytes("note: M\u00fcller\r\nnum_epochs: 3\r\n".encode(encoding))
    assert load_settings(tmp_path / "settings.yml") == {"note": "M\u00fcller", "num_epochs": 3}
