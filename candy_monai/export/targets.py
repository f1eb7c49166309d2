"""The formats that experiments are exported to. Imports neither PyTorch nor MONAI."""

from __future__ import annotations

from dataclasses import dataclass

from candy_monai.errors import SettingsError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Target:
    """One format.

    Attributes:
        summary: A short description.
        module: The module that writes it.
        function: The function in the module.
        suffix: The suffix of the file; empty for a folder.
        not_in_path: Words that the path of the file must not contain, since its reader would behave differently.
    """

    summary: str
    module: str
    function: str
    suffix: str = ""
    not_in_path: tuple[str, ...] = ()


TARGETS = {
    "monai-bundle": Target(
        summary="a complete MONAI Bundle; of several experiments, one that averages them",
        module="candy_monai.export.monai_bundle",
        function="export_monai_bundle",
    ),
    "onnx": Target(
        summary="ONNX, for ONNX Runtime and TensorRT",
        module="candy_monai.export.onnx",
        function="write_onnx",
        suffix=".onnx",
    ),
    "pt2": Target(
        summary="an exported program of PyTorch, for torch.export.load",
        module="candy_monai.export.pt2",
        function="write_pt2",
        suffix=".pt2",
    ),
    "torchscript": Target(
        summary="TorchScript, for torch.jit.load and LibTorch",
        module="candy_monai.export.torchscript",
        function="write_torchscript",
        suffix=".ts",
    ),
    "slicer": Target(
        summary="a model of 3D Slicer's extension MONAIAuto3DSeg",
        module="candy_monai.export.slicer",
        function="write_slicer",
        suffix=".pt",
        not_in_path=("brats", "whole-head"),
    ),
}
"""The formats by name."""


def find_target(name: str) -> Target:
    """Return the format of this name.

    Raises:
        SettingsError: If there is none.
    """
    if name not in TARGETS:
        raise SettingsError(f"unknown target {name!r}.{did_you_mean(name, TARGETS)} Known: {', '.join(TARGETS)}")
    return TARGETS[name]
