"""Export trained experiments to files that run where candy_monai is not installed.

Experiment folders are converted to a MONAI Bundle, or to a network in another format with a description of its use.
`targets` lists the formats; each is written by a module, and `parity` compares the written files with the experiment on
real cases before they are moved to their final place.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "export":  # imported on first use, so that the command line can list the targets without PyTorch
        from candy_monai.export.exporting import export_experiments

        return export_experiments
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
