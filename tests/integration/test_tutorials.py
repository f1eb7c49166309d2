"""The notebooks run, and are stored with what they showed: small, complete, and without a trace of where that was."""

import json
import re

import nbformat
import pytest

from tests.notebooks import ROOT, run_notebook

NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.mark.slow
@each
def test_a_tutorial_runs_in_an_empty_folder_and_shows_what_it_stores(path, tmp_path):
    stored, ran = nbformat.read(path, as_version=4), run_notebook(path, tmp_path)
    assert [_kinds(cell) for cell in ran.cells] == [_kinds(cell) for cell in stored.cells]


@each
def test_a_tutorial_is_stored_as_it_ran_from_top_to_bottom(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert not any([output.output_type for output in cell.outputs].count("stream") > 1 for cell in cells)


@each
def test_a_tutorial_is_small_and_names_no_folder_of_the_machine_that_ran_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r'[\s"(](/[a-z]+){2,}|[A-Z]:\\\\|file://', _without_pictures(text))


def _kinds(cell):
    """Name what stands below a cell, so that a picture or a table that vanished is noticed and a number is not."""
    outputs = cell.get("outputs", [])
    return [sorted(output.get("data", {output.output_type: ""})) for output in outputs]


def _without_pictures(text):
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    return json.dumps(notebook)
