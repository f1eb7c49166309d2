"""The notebooks run, and are stored with what they showed: small, complete, and without a trace of where that was."""

import hashlib
import json
import re
import shutil
import socket
from pathlib import Path

import nbformat
import pytest
from monai.apps import DecathlonDataset

from candy_monai import check_dataset, write_phantom_dataset
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


def test_the_real_images_of_a_tutorial_are_downloaded_and_some_are_held_out(tmp_path, monkeypatch):
    archive = _decathlon_archive(tmp_path, "Task04_Hippocampus", num_cases=30)
    monkeypatch.setitem(DecathlonDataset.resource, "Task04_Hippocampus", archive.as_uri())
    digest = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(DecathlonDataset.md5, "Task04_Hippocampus", digest)
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: None)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    cells = nbformat.read(ROOT / "tutorials" / "04_nnunet_dataset.ipynb", as_version=4).cells
    fetch = next(cell.source for cell in cells if cell.cell_type == "code")
    for _ in range(2):  # a reader may run the cell again
        names = {}
        exec(fetch, names)
        assert str(names["folder"]) == "Task04_Hippocampus"
        assert (len(names["training"]), len(names["held_out"])) == (24, 4)
        assert not set(names["training"].case_ids) & set(names["held_out"].case_ids)
        assert all("label" in case for case in names["held_out"].dicts())
        assert check_dataset(names["folder"]).problems == ()


def _decathlon_archive(folder, name, *, num_cases):
    """Write an archive like the Decathlon: files without channel numbers, lists of them, test cases without labels."""
    cases = write_phantom_dataset(folder / "archived" / name, num_cases=num_cases, num_test_cases=2, shape=(16, 16, 16))
    shutil.rmtree(cases / "labelsTs")
    for image in [*cases.glob("images*/*_0000.nii.gz")]:
        image.rename(image.with_name(image.name.replace("_0000", "")))
    labels = [f"./labelsTr/{file.name}" for file in sorted((cases / "labelsTr").iterdir(), reverse=True)]
    description = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "shell", "2": "core"},
        "training": [{"image": label.replace("labels", "images"), "label": label} for label in labels],
        "test": [f"./imagesTs/{file.name}" for file in sorted((cases / "imagesTs").iterdir())],
    }
    (cases / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return Path(shutil.make_archive(str(folder / name), "tar", cases.parent, name))


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
