"""Check a MONAI Bundle as its users will meet it: with MONAI's command line, where candy_monai is not installed.

    python tests/check_bundle.py BUNDLE [--dataset FOLDER] [--schema FILE]

The dataset, in nnU-Net's format, is trained on and predicted; without one a phantom of the bundle's kind is written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

REQUIRED = (
    "LICENSE",
    "configs/metadata.json",
    "configs/inference.json",
    "configs/train.json",
    "configs/evaluate.json",
    "configs/multi_gpu_train.json",
    "configs/logging.conf",
    "models/model.pt",
    "docs/README.md",
)

_BLOCK = """
import sys


class _NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("candy_monai", "candy_monai_bundles"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _NotInstalled())
"""

_COMMANDS = """
import json, sys, fire
import monai.bundle.__main__ as commands
for command in json.loads(sys.argv[1]):
    fire.Fire(vars(commands), command=command)
"""

_PROPERTIES = """
import json, sys
from monai.bundle import ConfigWorkflow
missing = {}
for kind, name in (("train", "train"), ("infer", "inference")):
    workflow = ConfigWorkflow(workflow_type=kind, config_file=f"configs/{name}.json", dataset_dir=sys.argv[1])
    workflow.initialize()  # without it MONAI looks for nothing
    missing[name] = workflow.check_properties()
print("PROPERTIES", json.dumps(missing))
"""

_STRICTLY = """
import sys, torch
from monai.bundle import ConfigParser
parser = ConfigParser(); parser.read_config("configs/inference.json")
parser.get_parsed_content("network_def").load_state_dict(torch.load(sys.argv[1], weights_only=True))
"""

_TORCHSCRIPT = """
import sys, torch
from monai.bundle import ConfigParser
from monai.data import load_net_with_metadata
parser = ConfigParser(); parser.read_config("configs/inference.json"); parser.read_meta("configs/metadata.json")
net = parser.get_parsed_content("network_def").eval()
net.load_state_dict(torch.load("models/model.pt", weights_only=True))
scripted, _, extra = load_net_with_metadata(sys.argv[2])
image = parser["_meta_"]["network_data_format"]["inputs"]["image"]
shape = [int(str(size).replace("*n", "")) for size in image["spatial_shape"]]
x = torch.rand(1, image["num_channels"], *shape)
with torch.no_grad():
    print("DIFFERENCE", float((scripted.eval()(x) - net(x)).abs().max()))
"""


class BareMonai:
    """An environment with this one's packages, candy_monai apart.

    A virtual environment whose ``.pth`` file names this one's ``site-packages``. An editable candy_monai is not found
    through it, since ``.pth`` files of a folder that is added so are not read; one that is installed there is hidden by
    an import hook in ``sitecustomize``.

    Args:
        folder: Where to make it.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=os.name != "nt")
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        places = subprocess.run(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        )
        site_packages = Path(places.stdout.strip())
        shared = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        (site_packages / "shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
        (site_packages / "sitecustomize.py").write_text(_BLOCK, encoding="utf-8")
        ran = self.run("-c", "import monai, torch; import candy_monai", cwd=folder, check=False)
        assert "No module named 'candy_monai'" in ran.stderr, ran.stderr

    def run(self, *arguments: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run its Python in a folder; with ``check`` fail with what it wrote."""
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = [str(self.python), *map(str, arguments)]
        ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        if check and ran.returncode:
            raise AssertionError(f"{' '.join(command)}\n{ran.stdout[-3000:]}\n{ran.stderr[-6000:]}")
        return ran

    def bundle(self, command: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run MONAI's command line for bundles in a bundle's folder."""
        return self.run("-m", "monai.bundle", command, *arguments, cwd=cwd)

    def commands(
        self, *commands: tuple[object, ...], cwd: Path, then: str = "", arguments: tuple[object, ...] = ()
    ) -> str:
        """Run commands of MONAI's command line in one process, then code; return what is printed."""
        words = json.dumps([[*map(str, command)] for command in commands])
        return self.run("-c", _COMMANDS + then, words, *arguments, cwd=cwd).stdout


def check_files(bundle: Path) -> None:
    """Check that everything is there, and that nothing names this machine or candy_monai's modules."""
    missing = [name for name in REQUIRED if not (bundle / name).is_file()]
    assert not missing, missing
    for path in [*bundle.rglob("*.json"), *bundle.rglob("*.py"), *bundle.rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(import|from) candy_monai|\"candy_monai\.", text), f"{path} names candy_monai"
        assert str(Path.home()) not in text, f"{path} names {Path.home()}"
        assert tempfile.gettempdir() + os.sep not in text, f"{path} names {tempfile.gettempdir()}"
    found = targets(bundle)
    foreign = {name for name in found if name.partition(".")[0] not in ("monai", "torch", "scripts")}
    assert not foreign, foreign
    scripts = {name.split(".")[1] for name in found if name.startswith("scripts.")}
    assert all((bundle / "scripts" / f"{name}.py").is_file() for name in scripts), scripts


def targets(bundle: Path, *configs: str) -> set[str]:
    """Return every ``_target_`` of the bundle's configurations."""
    texts = [path.read_text(encoding="utf-8") for path in (bundle / "configs").glob("*.json")]
    if configs:
        texts = [(bundle / "configs" / f"{name}.json").read_text(encoding="utf-8") for name in configs]
    return {name for text in texts for name in re.findall(r'"_target_": "([^"]+)"', text)}


def check_description(bundle: Path, bare: BareMonai, schema: Path) -> None:
    """Check ``metadata.json`` by a copy of the schema that it names, and by the network's output at two sizes."""
    network = ("verify_net_in_out", "network_def", "--meta_file", "configs/metadata.json")
    bare.commands(
        ("verify_metadata", "--meta_file", "configs/metadata.json", "--filepath", schema.resolve()),
        *((*network, "--config_file", "configs/inference.json", "--n", n) for n in (1, 2)),
        cwd=bundle,
    )


def check_properties(bundle: Path, bare: BareMonai, dataset: Path) -> None:
    """Check that MONAI finds every property of the workflows."""
    printed = bare.run("-c", _PROPERTIES, dataset, cwd=bundle).stdout
    missing = json.loads(printed.split("PROPERTIES ")[1])
    assert not any(missing.values()), missing


def check_training(bundle: Path, bare: BareMonai, dataset: Path, work: Path, *, by_two: bool = True) -> None:
    """Train for an epoch, by two processes unless told otherwise and by one, and score the held-out cases.

    What is trained must fit the network of ``inference.json``.
    """
    common = ("--dataset_dir", dataset, "--output_dir", work / "eval", "--ckpt_dir", work / "models")
    model = work / "models" / "model.pt"
    if by_two:
        several = ("--config_file", "['configs/train.json','configs/multi_gpu_train.json']", *common, "--epochs", 1)
        run = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "monai.bundle", "run")
        bare.run(*run, *several, cwd=bundle)
        assert model.is_file()
        model.unlink()
    bare.commands(
        ("run", "--config_file", "configs/train.json", *common, "--epochs", 1),
        ("run", "--config_file", "['configs/train.json','configs/evaluate.json']", *common),
        cwd=bundle,
    )
    bare.run("-c", _STRICTLY, model, cwd=bundle)
    assert (work / "eval" / "metrics.csv").is_file()


def check_inference(bundle: Path, bare: BareMonai, dataset: Path, output: Path) -> list[Path]:
    """Predict ``imagesTs`` and return the label maps, one a case."""
    common = ("--dataset_dir", dataset, "--output_dir", output)
    bare.bundle("run", "--config_file", "configs/inference.json", *common, cwd=bundle)
    written = sorted(output.iterdir())
    cases = {path.name.split("_0000.")[0] for path in (dataset / "imagesTs").glob("*_0000.*")}
    assert {path.name.partition(".")[0] for path in written} == cases, written
    return written


def check_torchscript(bundle: Path, bare: BareMonai, work: Path) -> None:
    """Export to TorchScript by MONAI's command line, as Deploy reads it, and compare with the network itself."""
    file = work / "model.ts"
    files = ("--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json")
    arguments = ("network_def", "--filepath", file, *files, "--config_file", "['configs/inference.json']")
    printed = bare.commands(("ckpt_export", *arguments), cwd=bundle, then=_TORCHSCRIPT, arguments=(file,))
    with zipfile.ZipFile(file) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    assert {"extra/metadata.json", "extra/inference.json"} <= set(names), names
    assert float(printed.split("DIFFERENCE ")[1]) < 1e-4, printed


def main() -> None:
    """Run all checks on a bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--dataset", type=Path, required=True, help="imagesTr, labelsTr and imagesTs to try it with")
    parser.add_argument("--schema", type=Path, required=True, help="a copy of the schema that metadata.json names")
    given = parser.parse_args()
    bundle, dataset = given.bundle.resolve(), given.dataset.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bare = BareMonai(work / "environment")
        steps = {
            "files": lambda: check_files(bundle),
            "description": lambda: check_description(bundle, bare, given.schema),
            "properties": lambda: check_properties(bundle, bare, dataset),
            "inference": lambda: check_inference(bundle, bare, dataset, work / "predictions"),
            "training": lambda: check_training(bundle, bare, dataset, work),
            "torchscript": lambda: check_torchscript(bundle, bare, work),
        }
        failed = 0
        for name, check in steps.items():
            try:
                check()
                print(f"{name}: right", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"{name}: WRONG\n{error}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
