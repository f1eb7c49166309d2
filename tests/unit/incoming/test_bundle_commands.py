import json
from hashlib import sha256

import nibabel
import pytest

from candy_monai import load_predictor
from candy_monai.cli.main import main
from tests.zoo_bundles import SPLEEN, write_bundle, write_scan


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def test_a_bundle_and_an_ensemble_of_bundles_predict_on_the_command_line(bundle, tmp_path, capsys):
    other = write_bundle(tmp_path / "other", seed=1)
    scan = write_scan(tmp_path / "scans" / "a.nii.gz")
    for folders in ([bundle], [bundle, other]):
        out = tmp_path / f"out{len(folders)}"
        assert main(["predict", *map(str, folders), str(scan.parent), str(out), "--device", "cpu"]) == 0
        assert nibabel.load(out / "a.nii.gz").shape == nibabel.load(scan).shape
    alone = load_predictor(bundle).predict(scan).as_tensor()[0]
    assert (alone.numpy() == nibabel.load(tmp_path / "out1" / "a.nii.gz").get_fdata()).all()
    models = json.loads((tmp_path / "out2" / "manifest.json").read_text())["runs"][0]["models"]
    weights = [folder / "models" / "model.pt" for folder in (bundle, other)]
    assert [model["weights_sha256"] for model in models] == [sha256(file.read_bytes()).hexdigest() for file in weights]
    assert (models[0]["name"], models[0]["version"]) == ("Spleen CT segmentation", "0.1.0")
    assert "1 label map" in capsys.readouterr().out


def test_inspect_shows_what_a_bundle_names_and_fails_where_it_would_not_open(bundle, tmp_path, capsys):
    assert main(["inspect", str(bundle)]) == 0
    assert "network_def: UNet" in capsys.readouterr().out
    assert main(["inspect", str(bundle), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["targets"]["network_def"], content["problem"]) == ("UNet", None)
    assert not any("not known" in target for target in content["targets"].values())
    assert main(["inspect", str(bundle), "--out", str(tmp_path / "out")]) == 2
    assert "--explain and --out apply to datasets only" in capsys.readouterr().err
    hostile = write_bundle(tmp_path / "hostile", {**SPLEEN, "network_def": {"_target_": "os.system"}}, weights={})
    assert main(["inspect", str(hostile)]) == 2
    assert "os.system (not known" in capsys.readouterr().out
    assert main(["predict", str(hostile), str(tmp_path), str(tmp_path / "out")]) == 2
