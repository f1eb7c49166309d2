"""The reference is written from the public names, so what is public is documented and nothing is listed twice."""

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest

import candy_monai
from candy_monai import handlers, lightning, optuna, transforms
from candy_monai.cli.main import COMMANDS


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    file = Path(__file__).parents[2] / "docs" / "sources.py"
    spec = importlib.util.spec_from_file_location("docs_sources", file)
    sources = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sources)
    folder = tmp_path_factory.mktemp("reference")
    (folder / "a page of a name that is gone.md").touch()
    sources.write_reference(folder)
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_every_public_name_has_exactly_one_entry(pages):
    named = [page for name, page in pages.items() if name != "command_line"]
    entries = [line.split(":: ")[1] for page in named for line in page.splitlines() if line.startswith(".. ")]
    own = Counter(entry.removeprefix("candy_monai.") for entry in entries if "bundles" not in entry)
    parts = {"transforms": transforms, "handlers": handlers, "lightning": lightning, "optuna": optuna}
    others = [f"{part}.{name}" for part, module in parts.items() for name in module.__all__ if name != "HORIZON"]
    assert own == Counter([*candy_monai.__all__, *others])


def test_every_command_is_described_with_its_options_and_examples(pages):
    sections = dict(re.findall(r"^## candy-monai (\S+)$(.*?)(?=^## |\Z)", pages["command_line"], re.M | re.S))
    assert list(sections) == list(COMMANDS)
    assert ".. option:: --budget TIME\n\n   time limit for each run" in sections["train"]
    assert "candy-monai train Dataset004_Hippocampus --budget 10m" in sections["train"]
    assert "SUPPRESS" not in pages["command_line"]


def test_every_page_is_in_the_list_of_pages_and_old_ones_are_gone(pages):
    listed = pages["index"].split("```{toctree}\n")[1].split("\n```")[0].splitlines()
    assert sorted(listed) == sorted(pages.keys() - {"index"})


def test_what_a_public_base_documents_is_not_repeated(pages):
    options = pages["training"].split("autoclass:: candy_monai.SegmentationTrainer")[1].split("```")[0]
    ends = re.search(r":inherited-members: (.*)", options)[1].split(", ")
    assert "Trainer" in ends


def test_an_alias_shows_what_it_stands_for(pages):
    assert ":value: torch.device | str\n\n   A PyTorch device or its name." in pages["ground"]
