"""The jobs of ``make benchmarks`` name what there is, and the tables of the pages are those of the results."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import run  # noqa: E402 - found by the line above
import tables  # noqa: E402

RESULT = {
    "job": "plain_loops-Dataset001_A-180",
    "date": "2026-11-02",
    "machine": {"processor": "P", "cores": 2, "system": "Linux"},
    "versions": {"python": "3.11.7", "candy-monai": "0.2.0", "torch": "2.13.0", "monai": "1.6.1"},
    "lines": [{"dataset": "Dataset001_A", "budget_s": 180.0, "num_tested": 7, "ours": 0.85, "plain_2d": 0.8}],
}
ECHO = "import json, sys; print('a word'); print(json.dumps({'arguments': sys.argv[1:]}))"


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_a_page_has_the_tables_that_the_results_make(page):
    text = page.read_text(encoding="utf-8")
    assert tables.PLACE.search(text)
    assert tables.with_tables(text, tables.read_results()) == text


def test_every_result_says_what_it_was_measured_with_and_is_of_a_job():
    for result in tables.read_results():
        assert result["machine"].keys() >= {"processor", "cores", "system"}
        assert result["versions"].keys() == {"python", "candy-monai", *run.PACKAGES}
        assert (FOLDER / f"{result['job'].partition('-')[0]}.py").exists()


def test_a_table_has_a_row_for_each_line_and_leaves_out_what_was_not_measured():
    text = "before\n<!-- benchmarks: dice -->\nold\n<!-- end of benchmarks -->\nafter"
    made = tables.with_tables(text, [RESULT])
    assert "| A | 7 | 3 | 0.850 | 0.800 |  |\n" in made
    assert (
        "Measured on 2 cores of P, Linux, candy-monai 0.2.0, torch 2.13.0, monai 1.6.1, python 3.11.7, 2026-11." in made
    )
    assert made.startswith("before\n")
    assert made.endswith("-->\nafter")
    assert "old" not in made
    assert tables.with_tables(made, [RESULT]) == made


def test_a_result_from_a_busy_machine_is_told_as_one():
    text = "<!-- benchmarks: dice -->\n<!-- end of benchmarks -->"
    assert "with other work" not in tables.with_tables(text, [{**RESULT, "load_before": 0.2}])
    assert "with other work on the machine, 2026-11" in tables.with_tables(text, [{**RESULT, "load_before": 9.0}])


def test_every_benchmark_whose_costs_are_in_the_table_is_a_job():
    assert {job.name for job in run.jobs()} >= tables.COSTS.keys()


def test_the_scripts_of_the_jobs_take_their_arguments():
    for job in run.jobs():
        source = (FOLDER / job.script).read_text(encoding="utf-8")
        declared = {
            node.args[0].value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        }
        given = {word for word in (*job.arguments, *(job.quick or ())) if word.startswith("--")}
        assert given <= declared, job.name


@pytest.fixture
def two_jobs(tmp_path, monkeypatch):
    """Have two jobs, one of which fails, and write their results to an empty folder."""
    for name, code in (("good", ECHO), ("bad", "raise SystemExit(3)")):
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "Dataset001_A").mkdir()
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "versions", lambda: {"candy-monai": "0"})
    monkeypatch.setattr(run, "DATA", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    jobs = [run.Job(name=name, script=f"{name}.py", arguments=("--long",)) for name in ("bad", "good")]
    monkeypatch.setattr(run, "jobs", lambda: iter(jobs))
    return tmp_path / "results"


def test_a_job_that_fails_leaves_no_result_and_the_others_run_once(two_jobs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main() == 1
    assert [file.name for file in two_jobs.iterdir()] == ["good.json"]
    result = json.loads((two_jobs / "good.json").read_text())
    assert result["lines"] == [{"arguments": ["--long"]}]
    assert result["machine"]["cores"] >= 1
    capsys.readouterr()
    assert run.main() == 1
    assert "good: begun" not in capsys.readouterr().out


def test_the_version_is_that_of_the_tree_that_ran():
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert run.versions()["candy-monai"] == project["version"]


def test_a_name_that_no_job_has_is_an_error(two_jobs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "goood"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no job is named goood" in capsys.readouterr().err


def test_a_script_that_prints_no_json_is_no_result(tmp_path, monkeypatch):
    (tmp_path / "silent.py").write_text("print('nothing')")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "versions", lambda: {"candy-monai": "0"})
    with pytest.raises(ValueError, match=r"silent\.py printed no line of JSON"):
        run.run(run.Job(name="silent", script="silent.py"), quick=False)


def test_the_command_lists_its_jobs(tmp_path):
    data = tmp_path / "Dataset001_A" / "labelsTr"
    data.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (data / name).touch()
    listed = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--list", "--only", "plain_loops-*"],
        capture_output=True,
        text=True,
        check=True,
        env={"CANDY_MONAI_DATA": str(tmp_path), "PATH": ""},
    )
    assert listed.stdout.split() == ["plain_loops-Dataset001_A-180", "plain_loops-Dataset001_A-600"]
