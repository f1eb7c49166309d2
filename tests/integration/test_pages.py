"""The code on the README and on every page of the documentation does what a reader expects of it: it runs.

Each page starts in an empty folder and runs from top to bottom: ``python`` blocks share their names, ``bash`` blocks
share the folder. Blocks in other languages are for reading only, and so is what stands below a comment that says why:
``<!-- not run: needs an account -->``. Of the commands in them the arguments are parsed.
"""

import ast
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from candy_monai import Trainer
from candy_monai.cli.main import _parsed

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"^(?:    |\$ )?(?:[A-Z_]+=\S+ )*(?:srun (?:-\S+ )*)?(?:candy-monai|torchrun .*-m candy_monai) +(.+)$",
    flags=re.MULTILINE,
)
BLOCK = re.compile(r"^(<!-- not run: .+? -->\n)?^```(python|bash)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def run_page(page):
    text = page.read_text(encoding="utf-8")
    names = {"__name__": page.stem}
    for block in BLOCK.finditer(text):
        reason, language, code = block.groups()
        line = text[: block.start(3)].count("\n")
        if reason:
            continue
        if language == "bash":
            run_in_shell(code, page=page, line=line)
        else:  # the empty lines make an error name the line of the page
            exec(compile("\n" * line + code, page.name, "exec"), names)


def run_in_shell(script, *, page, line):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{page.name}, line {line + 1}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.readme
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom_in_an_empty_folder(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


def commands_of(text):
    """Return the arguments of every command line, without comments, pipes and redirections."""
    lines = COMMAND.findall(re.sub(r"\\\n\s*", "", text))
    return [shlex.split(re.split(r" [|>] ", line)[0], comments=True) for line in lines]


def is_taken(arguments):
    try:
        _parsed(arguments)
    except SystemExit as end:
        return not end.code
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_command_line_takes_every_command_of_a_page(page):
    assert [each for each in commands_of(page.read_text(encoding="utf-8")) if not is_taken(each)] == []


@pytest.mark.parametrize("path", sorted((ROOT / "tutorials").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_command_line_knows_what_a_tutorial_gives_to_its_commands(path, capsys):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    for command in re.findall(r"`(?:torchrun .+? -m )?candy[-_]monai ([^`]+)`", text):
        is_taken(shlex.split(command.replace("...", "")))  # some are shown without their required arguments
    assert not re.findall("error: (?!.*required).*", capsys.readouterr().err)
    assert [each for each in commands_of(text) if not is_taken(each)] == []


def test_commands_are_found_in_blocks_after_variables_and_in_front_of_torchrun():
    lines = [
        "    candy-monai train D  # why",
        "A=1 candy-monai predict \\",
        "    R I O > log",
        "torchrun -m candy_monai resume R",
        "srun --kill-on-bad-exit=1 candy-monai train D --requeue",
    ]
    text = "\n".join(lines)
    assert commands_of(text) == [
        ["train", "D"],
        ["predict", "R", "I", "O"],
        ["resume", "R"],
        ["train", "D", "--requeue"],
    ]
    assert not is_taken(["train", "D", "--no-such-option"])


def test_the_manifest_on_the_page_of_clusters_is_a_pytorchjob_whose_command_line_is_taken():
    text = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    (manifest,) = [
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = manifest["spec"]
    assert spec.keys() == {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs"}
    assert isinstance(spec["nprocPerNode"], str)  # the operator takes no number
    assert spec["pytorchReplicaSpecs"].keys() == {"Master", "Worker"}
    for replica in spec["pytorchReplicaSpecs"].values():
        assert replica.keys() == {"replicas", "restartPolicy", "template"}
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"  # the one that the operator gives its variables to
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        commands = re.findall(r"set -- (.+?)(?:;|$)", container["args"][0], flags=re.MULTILINE)
        assert [command.split()[0] for command in commands] == ["resume", "train"]
        assert all(is_taken(shlex.split(command)) for command in commands)


def test_every_message_on_the_page_of_errors_is_one_of_the_code():
    modules = (ROOT / "candy_monai").rglob("*.py")
    nodes = (node for module in modules for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))))
    texts = "\n".join({node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)})
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert len(messages) > 30
    assert [part for message in messages for part in message.split("…") if part not in texts] == []


def test_the_page_about_trainers_lists_every_keyword_of_train_with_its_default():
    table = (ROOT / "docs" / "your_own_trainer.md").read_text(encoding="utf-8").split("## The arguments of train()")[1]
    listed = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", table, flags=re.MULTILINE))
    _, *keywords = inspect.signature(Trainer.train).parameters.values()
    assert listed == {keyword.name: _default_as_text(keyword) for keyword in keywords}


def _default_as_text(keyword):
    if keyword.default is keyword.empty:
        return "required"
    return f'"{keyword.default}"' if isinstance(keyword.default, str) else repr(keyword.default)


def test_an_error_names_the_line_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\nraise LookupError(x)\n```\n")
    with pytest.raises(LookupError) as caught:
        run_page(page)
    assert caught.traceback[-1].lineno + 1 == 5


def test_only_a_block_below_a_reason_is_not_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: an account -->\n```python\n1 / 0\n```\n\n```python\nraise LookupError\n```\n")
    with pytest.raises(LookupError):
        run_page(page)


def test_a_command_that_fails_fails_its_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\necho so far\nfalse\necho further\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md, line 2:\s+so far"):
        run_page(page)
