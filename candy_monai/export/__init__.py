"""From trained experiments to files that run where candy_monai is not installed.

Experiment folders enter; a MONAI Bundle, or a network in another format with what it takes to use it, leaves. `targets`
lists the formats; each has a module that writes it, and `parity` compares what was written with the experiment on real
cases before it takes its name.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "export":  # on first use: the command line lists the targets without PyTorch
        from candy_monai.export.exporting import export_experiments

        return export_experiments
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
