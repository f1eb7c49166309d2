import json
import shlex
from pathlib import Path

import pytest

from candy_monai.cli.main import main
from candy_monai.experiment.description import DESCRIPTION, FORMAT


@pytest.fixture
def exported(monkeypatch):
    """Replace what does the work, which is to return what it was told to write."""
    monkeypatch.setattr("candy_monai.export.exporting.export_experiments", lambda experiments, out, **_: out)


@pytest.fixture
def experiment(tmp_path):
    """Return an experiment that was trained on a dataset with test cases."""
    images, folder = tmp_path / "my data" / "imagesTs", tmp_path / "run"
    for made in (images, folder):
        made.mkdir(parents=True)
    (images / "a_0000.nii.gz").touch()
    description = {"format": FORMAT, "trainer": "UNetTrainer", "dataset": {"folder": str(images.parent)}}
    (folder / DESCRIPTION).write_text(json.dumps(description))
    return folder


def _last_lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()[-2:]


def test_after_a_bundle_the_command_of_monai_that_predicts_the_test_cases_is_named(exported, experiment, capsys):
    assert main(["export", str(experiment), "out/heart", "--to", "monai-bundle"]) == 0
    inference = ["--config_file", "configs/inference.json", "--dataset_dir", str(experiment.parent / "my data")]
    command = ["python", "-m", "monai.bundle", "run", *inference, "--output_dir", "predictions"]
    assert _last_lines(capsys) == [f"Next: cd {Path('out/heart')}", f"Then: {shlex.join(command)}"]


@pytest.mark.parametrize("lacking", ["the images", "the description"])
def test_the_dataset_is_a_placeholder_where_no_test_cases_are_known(exported, experiment, lacking, capsys):
    if lacking == "the images":
        (experiment.parent / "my data" / "imagesTs" / "a_0000.nii.gz").unlink()
    else:
        (experiment / DESCRIPTION).unlink()
    assert main(["export", str(experiment), "heart", "--to", "monai-bundle"]) == 0
    assert " --dataset_dir DATASET " in _last_lines(capsys)[1]


def test_after_a_file_no_command_is_named(exported, experiment, capsys):
    assert main(["export", str(experiment), "heart.onnx", "--to", "onnx"]) == 0
    assert capsys.readouterr().out == "Exported: heart.onnx\n"
