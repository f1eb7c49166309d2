import json

import pytest
from PIL import Image

from candy_monai.cli.main import main


@pytest.fixture
def summaries(tmp_path):
    """Return two summaries of six cases, two of each patient."""
    for name, shift in (("ours", 0.05), ("theirs", 0.0)):
        cases = [
            {"case": f"p{number // 2}_{number}", "metrics": {"1": {"Dice": 0.6 + 0.02 * number + shift, "n_ref": 5}}}
            for number in range(12)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    return tmp_path / "ours", tmp_path / "theirs"


def compare(*arguments) -> int:
    return main(["compare", *map(str, arguments)])


def test_the_table_names_both_and_json_is_written_where_asked(summaries, tmp_path, capsys):
    files = tmp_path / "new" / "comparison.json", tmp_path / "new" / "plot.png"
    assert compare(*summaries, "--out", files[0], "--plot", files[1], "--classes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"Plot: {files[1]}" in lines
    assert Image.open(files[1]).format == "PNG"
    assert lines[0] == "dice (higher is better), mean over the classes, 12 cases"
    assert any(line.startswith("ours - theirs") and "12 / 0 / 0" in line for line in lines)
    assert any(line.startswith("ranking") and line.endswith("ours 1.00, theirs 2.00") for line in lines)
    assert json.loads((tmp_path / "new" / "comparison.json").read_text())["num_cases"] == 12


def test_json_prints_nothing_else_and_patients_count_once(summaries, capsys):
    assert compare(*summaries, "--json", "--groups", r"p(\d+)_", "--names", "x,y", "--intervals", "bootstrap") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["num_cases"], shown["num_groups"]) == (12, 6)
    assert list(shown["methods"]) == ["x", "y"]
    assert shown["interval"]["method"] == "bootstrap"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "x"], "--names: expected 2 different names"),
        (["--names", "x,x"], "--names: expected 2 different names"),
        (["--metrics", "hd95"], "hd95 was not measured by all"),
        (["--groups", "q(.)"], "groups: no group for"),
        (["--plot", "plot.pdf"], "--plot: expected a file name that ends in .png, got plot.pdf"),
    ],
)
def test_what_does_not_fit_exits_with_2(summaries, capsys, arguments, message):
    assert compare(*summaries, *arguments) == 2
    assert message in capsys.readouterr().err


def test_other_cases_exit_with_2_unless_the_common_ones_are_asked_for(summaries, capsys):
    file = summaries[1] / "summary.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"metric_per_case": content["metric_per_case"][1:]}))
    assert compare(*summaries) == 2
    assert "lacks 1 case: p0_0" in capsys.readouterr().err
    assert compare(*summaries, "--common") == 0
    assert "left out, not in all evaluations: p0_0" in capsys.readouterr().out
