import pytest

from candy_monai.cli.main import main
from tests.pages import made_up_folder, made_up_run


@pytest.fixture
def runs(tmp_path):
    for name in ("first", "second"):
        made_up_run(tmp_path / name)
        (tmp_path / name / "kept.html").write_bytes((tmp_path / name / "report.html").read_bytes())
    return tmp_path / "first", tmp_path / "second"


def test_the_page_of_a_run_is_written_again_into_its_folder(runs, capsys):
    (runs[0] / "report.html").unlink()
    assert main(["report", str(runs[0])]) == 0
    assert (runs[0] / "report.html").stat().st_size > 50_000
    assert f"Report: {runs[0] / 'report.html'}" in capsys.readouterr().out


def test_a_page_can_be_written_elsewhere(runs, tmp_path):
    before = (runs[0] / "report.html").read_bytes()
    assert main(["report", str(runs[0]), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").exists()
    assert (runs[0] / "report.html").read_bytes() == before


def test_several_runs_are_compared(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, runs)]) == 0
    assert "2 runs compared" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_an_error_that_names_those_below(runs, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "below it are 2 runs" in capsys.readouterr().err


def test_of_several_configurations_one_is_to_be_named(tmp_path, capsys):
    for name in ("2d", "3d"):
        (tmp_path / name).mkdir()
    (tmp_path / "crossval.json").write_text('{"configurations": {"2d": null, "3d": null}}')
    assert main(["report", str(tmp_path)]) == 2
    assert f"configurations 2d, 3d, each of which has its own page: give one of them, such as {tmp_path / '2d'}" in (
        capsys.readouterr().err
    )


def test_a_page_that_cannot_be_written_is_an_error_before_anything_is_read(runs, tmp_path, monkeypatch, capsys):
    assert main(["report", str(runs[0]), "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: is a folder, expected the name of a file" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)  # also for root, who may write anywhere else
    assert main(["report", str(runs[0])]) == 2
    assert f"no permission to write to {runs[0]}; give another file" in capsys.readouterr().err
    assert main(["report", *map(str, runs)]) == 2
    assert "no permission to write to" in capsys.readouterr().err


def test_a_folder_in_the_place_of_the_page_is_said_before_anything_is_read(tmp_path, capsys):
    run = made_up_folder(tmp_path / "run")
    (run / "report.html").mkdir()
    assert main(["report", str(run)]) == 2
    assert "report.html: is a folder, expected the name of a file; give another" in capsys.readouterr().err
