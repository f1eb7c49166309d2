import shlex
import shutil
import subprocess

import pytest

from candy_monai.cli.main import COMMANDS, main


@pytest.fixture
def script(capsys):
    def written(shell):
        assert main(["completion", shell]) == 0
        return capsys.readouterr().out

    return written


@pytest.fixture
def complete(script, tmp_path):
    """Return a function that asks bash what may follow the words so far."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    path = tmp_path / "completion.bash"
    path.write_text(script("bash"))
    ask = f'source {path}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _candy_monai; echo "${{COMPREPLY[@]}}"'

    def completed(*words):
        done = subprocess.run(["bash", "-euc", ask, "bash", "candy-monai", *words], capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout.split()

    return completed


def test_bash_completes_commands(complete):
    assert complete("tr") == ["train"]
    assert set(COMMANDS) <= set(complete(""))


def test_bash_completes_the_options_of_the_command_and_no_other_s(complete):
    assert complete("train", "D", "--bud") == ["--budget"]
    assert complete("inspect", "D", "--bud") == []
    assert "--options" not in complete("train", "--opt")  # by which a fold is told, not by a user


def test_bash_completes_values_of_which_there_are_few(complete):
    assert complete("resume", "run", "--schedule", "") == ["keep", "stretch", "restart"]
    assert complete("resume", "run", "--schedule", "st") == ["stretch"]
    assert complete("completion", "z") == ["zsh"]


def test_bash_completes_the_literal_values_of_a_metavar(complete):
    assert complete("export", "run", "out", "--to", "t") == ["torchscript"]
    assert complete("train", "D", "--configuration", "") == ["2d", "3d", "3d_lowres", "3d_cascade", "auto"]
    assert complete("train", "D", "--fold", "") == ["all"]


def test_bash_leaves_the_value_of_an_option_to_file_names(complete):
    assert complete("train", "D", "--out", "") == []
    assert complete("train", "D", "--groups", "") == []  # REGEX|FILE.csv


def test_zsh_runs_the_script_of_bash_by_its_own_emulation(script):
    first, _, rest = script("zsh").partition("\n")
    assert "bashcompinit" in first
    assert rest == script("bash")


def test_fish_is_told_commands_options_and_values_with_their_help(script):
    lines = script("fish").splitlines()
    assert "complete -c candy-monai -n __fish_use_subcommand -f -a train -d 'train on a dataset'" in lines
    schedule = next(line for line in lines if "-l schedule" in line)
    assert "'__fish_seen_subcommand_from resume' -l schedule -x -a 'keep stretch restart' -d " in schedule
    assert all(shlex.split(line)[-2:-1] == ["-d"] for line in lines)  # what is said of each is one word for the shell
    assert not any("%(" in line for line in lines)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_its_shell_reads(shell, script, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    (tmp_path / "script").write_text(script(shell))
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
