"""Stand-ins for SLURM's programs, which answer as those do and note how they were called."""

import os
import shlex
from pathlib import Path


class Slurm:
    """A folder of programs at the head of the PATH.

    Args:
        folder: Where the programs lie.
        monkeypatch: pytest's.
    """

    def __init__(self, folder: Path, monkeypatch) -> None:
        self._folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def add(self, name: str, *, prints: str = "", fails: str | None = None, when: str = "") -> None:
        """Add a program, or replace it.

        Args:
            name: What it is called.
            prints: What it writes to standard output.
            fails: What it writes to standard error as it ends with 1; None for a program that does not fail.
            when: The first argument that it fails for; empty for any.
        """
        lines = [
            "#!/bin/sh",
            f'echo "$@" >> {self._folder}/{name}.calls',
            f"env > {self._folder}/{name}.variables",
            f'if [ -f "$1" ]; then cp "$1" {self._folder}/{name}.script; fi',
        ]
        if fails is not None:
            condition = f'[ "$1" = {shlex.quote(when)} ]' if when else "true"
            lines.append(f"if {condition}; then echo {shlex.quote(fails)} >&2; exit 1; fi")
        lines.append(f"echo {shlex.quote(prints)}" if prints else "")
        file = self._folder / name
        file.write_text("\n".join(lines) + "\n")
        file.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """Return the arguments of each call of a program."""
        file = self._folder / f"{name}.calls"
        return file.read_text().splitlines() if file.exists() else []

    def variables(self, name: str) -> list[str]:
        """Return the environment of the last call of a program, as ``NAME=VALUE``."""
        return (self._folder / f"{name}.variables").read_text().splitlines()

    def script(self, name: str) -> str:
        """Return the file that a program was last called with."""
        return (self._folder / f"{name}.script").read_text()
