"""The page for those who come from MIPCandy: its code runs, and what it says is here is here."""

import re
from pathlib import Path

import pytest

import candy_monai

PAGE = (Path(__file__).parents[2] / "docs" / "porting.md").read_text(encoding="utf-8")


def rows():
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("|") and not line.startswith(("|---", "| MIPCandy"))
    ]


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(block, "porting.md", "exec"), {"__name__": "porting"})
    assert list((tmp_path / "experiments").glob("UNetTrainer/*/checkpoint_best.pth"))


def test_every_name_that_stayed_the_same_is_public():
    methods = {name for owner in (candy_monai.Evaluator, candy_monai.Predictor) for name in dir(owner)}
    kept = [name for old, new, _ in rows() if new.startswith("same name") for name in re.findall(r"`(\w+)`", old)]
    assert len(kept) > 30
    assert [name for name in kept if name not in {*candy_monai.__all__, *methods}] == []


def test_every_class_and_function_that_replaces_another_is_public():
    new_names = {name for _, new, _ in rows() for name in re.findall(r"`([A-Z]\w+|\w+(?=\())", new)}
    methods = {"fold", "validate_case"}
    assert new_names - set(candy_monai.__all__) - methods == set()
