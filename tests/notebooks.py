"""Run a notebook in an empty folder. As a script it stores the notebooks with what they showed: ``make tutorials``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def run_notebook(path, folder, *, timeout_s=180):
    """Return the notebook with fresh outputs; what it writes goes to the folder. One thread, as on a small machine."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # on a slow machine what a cell prints comes in several pieces
        resources={"metadata": {"path": str(folder)}},
    )
    source = os.pathsep.join([str(ROOT), str(ROOT / "bundles"), os.environ.get("PYTHONPATH", "")])
    without_widgets = "ignore:IProgress not found"  # said of progress bars that no notebook shows
    client.execute(env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": without_widgets})
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as empty:
            ran = run_notebook(name, empty)
        nbformat.write(ran, name)
        print(f"{name}: {Path(name).stat().st_size / 1000:.0f} kB")
