"""The README's code does what a reader expects of it: it runs, from top to bottom, in an empty folder."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.readme
def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 2
    exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
    assert len(list((tmp_path / "experiments").glob("*/*/checkpoint_best.pth"))) == 2
