"""The target ``pt2``: an exported program, loaded by ``torch.export.load`` without the network's Python code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from candy_monai.export.networks import ExportedNetwork
from candy_monai.export.parity import check, compare
from candy_monai.export.programs import build_program, quiet, write_apart
from candy_monai.export.usage import write_usage


def write_pt2(network: ExportedNetwork, file: Path, *, on_progress: Callable[[str], None]) -> None:
    """Write a network as an exported program with a JSON file, load it again and compare it on real cases."""
    on_progress("Exporting the network by torch.export")
    made = build_program(network, on_progress=on_progress)
    with quiet():
        write_apart(file, lambda buffer: torch.export.save(made.program, buffer))
        module = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([module(part) for part in torch.split(images, len(images) if made.is_dynamic[0] else 1)])

    on_progress("Comparing it with the experiment on real cases")
    comparisons = compare(network, run, network.samples(network.sizes_within(made.is_dynamic[2:])))
    check(comparisons, name="pt2", on_progress=on_progress)
    write_usage(network, file, target="pt2", is_dynamic=made.is_dynamic, comparisons=comparisons)
