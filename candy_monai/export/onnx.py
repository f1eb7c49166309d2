"""The target ``onnx``, verified with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from candy_monai.errors import BadInputError
from candy_monai.export.networks import ExportedNetwork
from candy_monai.export.parity import check, compare
from candy_monai.export.programs import build_program, first_line, quiet
from candy_monai.export.usage import INPUT, OUTPUT, write_usage
from candy_monai.optional import require

OPSET = 20
_LARGEST_FILE = (1 << 31) - (1 << 24)
"""Maximum size of one file in the protocol buffers format, minus room for the graph."""


def write_onnx(network: ExportedNetwork, file: Path, *, on_progress: Callable[[str], None]) -> None:
    """Write a network as ONNX with a JSON file, run it with ONNX Runtime and compare it on real cases."""
    purpose = "export to ONNX and to compare what was written"
    onnx, runtime, _ = (require(name, extra="onnx", purpose=purpose) for name in ("onnx", "onnxruntime", "onnxscript"))
    num_bytes = sum(tensor.nbytes for tensor in network.network.state_dict().values())
    if num_bytes > _LARGEST_FILE:
        raise BadInputError(
            f"{network.predictor.folder}: {num_bytes / 1e9:.1f} GB of weights do not fit into an ONNX file, "
            "which holds 2 GB: choose another target"
        )
    on_progress("Exporting the network by torch.export")
    made = build_program(network, on_progress=on_progress)
    on_progress(f"Converting it to ONNX, opset {OPSET}")
    with quiet(), torch.no_grad():
        try:
            names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
            program = torch.onnx.export(
                made.program, (made.example,), dynamo=True, opset_version=OPSET, verbose=False, **names
            )
            assert program is not None
        except Exception as error:  # from the converter, for example for an unsupported operator
            raise BadInputError(
                f"{network.predictor.folder}: the network {type(network.network).__name__} cannot be converted to "
                f"ONNX ({first_line(error)}); monai-bundle, pt2 and torchscript do not need it"
            ) from error
        program.save(file, external_data=False)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        parts = torch.split(images, len(images) if made.is_dynamic[0] else 1)
        return torch.cat([torch.from_numpy(session.run([OUTPUT], {INPUT: part.numpy()})[0]) for part in parts])

    on_progress("Comparing it with the experiment on real cases, by ONNX Runtime")
    comparisons = compare(network, run, network.samples(network.sizes_within(made.is_dynamic[2:])))
    check(comparisons, name="onnx", on_progress=on_progress)
    write_usage(
        network,
        file,
        target="onnx",
        is_dynamic=made.is_dynamic,
        comparisons=comparisons,
        packages=("onnx", "onnxscript", "onnxruntime"),
        opset=OPSET,
    )
