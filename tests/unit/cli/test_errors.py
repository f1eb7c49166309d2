import errno

import pytest

from candy_monai.cli.errors import BAD_INPUT, DONE, FAILED, done, report
from candy_monai.errors import ExperimentError, RunFailedError
from candy_monai.files import atomic_path


@pytest.mark.parametrize(
    ("rank", "printed"), [(None, "Experiment: runs/a\n"), ("0", "Experiment: runs/a\n"), ("1", "")]
)
def test_of_several_processes_the_first_says_where_the_result_is(monkeypatch, capsys, rank, printed):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert done("Experiment", "runs/a") == DONE
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(("count", "is_told_apart"), [("2", True), ("1", False)])
def test_a_process_that_only_noticed_the_end_of_another_says_so(monkeypatch, capsys, count, is_told_apart):
    monkeypatch.setenv("WORLD_SIZE", count)
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2048")
    assert report(lost, debug=False) == FAILED
    assert ("another process of this run has ended" in capsys.readouterr().err) is is_told_apart


@pytest.mark.parametrize(("kind", "code"), [(ExperimentError, BAD_INPUT), (RunFailedError, FAILED)])
def test_a_run_that_fails_after_its_start_is_told_apart_from_bad_input(capsys, kind, code):
    assert report(kind("runs/a: the disk is full"), debug=False) == code
    assert capsys.readouterr().err == "candy-monai: error: runs/a: the disk is full\n"


def test_a_full_disk_is_said_in_one_line_with_the_file(tmp_path, capsys):
    def write():
        with atomic_path(tmp_path / "a.npz") as temporary, temporary.open("wb"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="a.npz") as caught:
        write()
    assert report(caught.value, debug=False) == FAILED
    expected = (
        f"candy-monai: error: {tmp_path / 'a.npz'}: cannot be written, the disk is full; free some space and try again"
    )
    assert capsys.readouterr().err == expected + "\n"
    assert not list(tmp_path.iterdir())
