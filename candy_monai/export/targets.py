"""The formats that experiments are exported to. Imports neither PyTorch nor MONAI."""

from __future__ import annotations

from dataclasses import dataclass

from candy_monai.errors import SettingsError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Target:
    """One format."""

    summary: str
    writer: str  # the function that writes it, as ``module:function``
    suffix: str = ""  # of the file; empty for a folder
    not_in_path: tuple[str, ...] = ()  # words in a path by which its reader would behave differently


TARGETS = {
    "monai-bundle": Target(
        summary="a complete MONAI Bundle; of several experiments, one that averages them",
        writer="candy_monai.export.monai_bundle:export_monai_bundle",
    ),
    "onnx": Target(
        summary="ONNX, for ONNX Runtime and TensorRT",
        writer="candy_monai.export.onnx:write_onnx",
        suffix=".onnx",
    ),
    "pt2": Target(
        summary="an exported program of PyTorch, for torch.export.load",
        writer="candy_monai.export.pt2:write_pt2",
        suffix=".pt2",
    ),
    "torchscript": Target(
        summary="TorchScript, for torch.jit.load and LibTorch",
        writer="candy_monai.export.torchscript:write_torchscript",
        suffix=".ts",
    ),
    "slicer": Target(
        summary="a model of 3D Slicer's extension MONAIAuto3DSeg",
        writer="candy_monai.export.slicer:write_slicer",
        suffix=".pt",
        not_in_path=("brats", "whole-head"),
    ),
}
"""The formats by name."""


def find_target(name: str) -> Target:
    """Return the format of this name; raise if there is none."""
    if name not in TARGETS:
        raise SettingsError(f"unknown target {name!r}.{did_you_mean(name, TARGETS)} Known: {', '.join(TARGETS)}")
    return TARGETS[name]
