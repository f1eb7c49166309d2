"""Describe how to use an exported network, as plain values for the JSON file next to it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from candy_monai.aliases import Shape
from candy_monai.experiment.description import as_json, installed_versions
from candy_monai.export.networks import ExportedNetwork
from candy_monai.export.parity import LEAST_EQUAL, TOLERANCE, Comparison
from candy_monai.files import atomic_write_text, digest_of_file
from candy_monai.inference.inferers import WHOLE_IMAGE_LIMIT, WindowInferer
from candy_monai.nn.padding import padding_to_dict
from candy_monai.nn.slicewise import sides_of_slices

INPUT, OUTPUT = "image", "logits"
"""The names of the network's input and output, for formats with names."""

_WHERE = "all voxels in the box around the non-zero ones"  # CropForegroundd comes before NormalizeIntensityd
_OF_A_MODEL = ("experiment", "folder", "trainer", "bundle", "weights", "weights_sha256")
_WINDOW_DEFAULTS = {
    name: inspect.signature(WindowInferer).parameters[name].default
    for name in ("overlap", "mode", "sigma_scale", "padding_mode", "cval")
}


def usage_file(file: Path) -> Path:
    """Return the JSON file for the file of a network."""
    return file.with_name(f"{file.name}.json")


def write_usage(
    network: ExportedNetwork,
    file: Path,
    *,
    target: str,
    is_dynamic: Sequence[bool],
    comparisons: Sequence[Comparison],
    packages: Sequence[str] = (),
    **more: object,
) -> None:
    """Write the JSON file for an exported network, with the versions of ``packages`` and further entries."""
    content = {
        "format": target,
        "file": file.name,
        "sha256": digest_of_file(file),
        "written_by": installed_versions("candy-monai", "torch", "monai", *packages),
        **more,
        **describe_use(network, is_dynamic),
        "parity": {
            "max_difference_allowed": f"{TOLERANCE:g} of the greatest logit, or of 1",
            "equal_labels_needed": LEAST_EQUAL,
            "compared": [found.to_dict() for found in comparisons],
        },
    }
    atomic_write_text(usage_file(file), json.dumps(as_json(content), indent=2) + "\n")


def describe_use(network: ExportedNetwork, is_dynamic: Sequence[bool]) -> dict[str, Any]:
    """Return the network's input and output, and the steps before and after it."""
    predictor, plan = network.predictor, network.predictor.plan
    batch, _, *spatial = is_dynamic
    size = [
        f"{by}*n" if may_change else extent
        for by, may_change, extent in zip(network.divisor, spatial, network.sizes[0], strict=True)
    ]
    shape = ["batch" if batch else 1, predictor.num_channels, *size]
    note = None
    if not all(spatial):
        note = (
            f"The network takes images of {_times(network.sizes[0])} along its fixed axes only: cut larger ones into "
            "windows, and pad smaller ones."
        )
    return {
        "model": {name: value for name, value in predictor.describe_models()[0].items() if name in _OF_A_MODEL},
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "shape": shape,
            "channels": list(predictor.channel_names),
            "fixed_size": note,
        },
        "output": {"name": OUTPUT, "dtype": "float32", "shape": [shape[0], predictor.num_classes, *size]}
        | _meaning(network),
        "preprocessing": {
            "orientation": None if plan is None or plan.orientation is None else "".join(plan.orientation),
            "spacing_mm": None if plan is None else plan.pixdim,
            "normalization": None if plan is None else [_normalization(channel) for channel in plan.normalization],
            "steps": predictor.preprocessor.pipelines["preprocessing"],
        },
        "slices": None
        if network.slice_axis is None
        else {
            "axis": network.slice_axis,
            "note": "The network sees the slices of a preprocessed volume across this spatial axis, a batch of them at "
            "a time.",
        },
        "window": _window(network),
        "postprocessing": {"steps": _in_this_file(predictor.preprocessor.pipelines["postprocessing"])},
    }


def _meaning(network: ExportedNetwork) -> dict[str, Any]:
    """Return the meaning of each output channel, and how labels are computed from logits."""
    predictor, plan = network.predictor, network.predictor.plan
    if predictor.paints:
        names = [region.name for region in plan.regions] if plan is not None else [""] * len(predictor.paints)
        return {
            "channels": [
                {"name": name, "paints": label_id} for name, label_id in zip(names, predictor.paints, strict=True)
            ],
            "activation": "sigmoid",
            "labels": "Start with 0; each channel in turn writes the id that it paints where its logit is above 0.",
        }
    names = list(plan.class_names) if plan is not None else []
    if predictor.num_classes == 1:
        return {
            "channels": [{"name": (names or [""])[-1], "id": 1}],
            "activation": "sigmoid",
            "labels": "1 where the logit is above 0, else 0.",
        }
    named = names if len(names) == predictor.num_classes else [""] * (predictor.num_classes or 0)
    return {
        "channels": [{"name": name, "id": number} for number, name in enumerate(named)],
        "activation": "softmax",
        "labels": "The channel of the greatest logit, the first of equals.",
    }


def _normalization(channel: Any) -> dict[str, Any]:
    """Return the normalisation of a channel, with its parameters."""
    if channel.scheme == "ct":
        return {name: getattr(channel, name) for name in ("scheme", "lower", "upper", "mean", "std")}
    if channel.scheme == "zscore":
        return {"scheme": "zscore", "of": "non-zero voxels" if channel.nonzero_only else _WHERE}
    return {"scheme": channel.scheme}


def _window(network: ExportedNetwork) -> dict[str, Any]:
    """Return how images are run: at once up to a size, else in windows, how these are assembled, and all padding."""
    inferer, size = network.predictor.describe_windows(), network.inference_window
    described: dict[str, Any] = {
        "size": network.window if size is None else size,
        "sizes_are_multiples_of": network.divisor,
        "padding": _padding(network),
    }
    if inferer is None:
        named = network.predictor.describe_models()[0]["inferer"]
        how = "every image at once" if named is None else "images by another inferer than windows"
        return described | {"note": f"`candy-monai predict` runs {how}; `size` is that of training.", "inferer": named}
    described |= _WINDOW_DEFAULTS | {name: value for name, value in inferer.items() if name in _WINDOW_DEFAULTS}
    notes = []
    if isinstance(divisor := inferer["divisor"], tuple) and network.roi_size is not None:
        described["whole_up_to_voxels"] = int(WHOLE_IMAGE_LIMIT * math.prod(network.roi_size))
        what, sides = ("An image", "at its end") if network.slice_axis is None else ("A slice", "on both sides")
        by = _times(sides_of_slices(divisor, network.slice_axis))
        notes.append(
            f"{what} of up to this many voxels, once padded with zeros {sides} to multiples of {by}, is run at once by "
            "candy-monai predict; larger ones in windows."
        )
    notes.append("Where an image is smaller than a window, it is padded on both sides.")
    if network.roi_size is not None and network.roi_size != size:
        notes.append(
            f"candy-monai predict pads windows of {_times(network.roi_size)} to `size`, which changes scores a little."
        )
    return described | {"note": " ".join(notes)}


def _padding(network: ExportedNetwork) -> dict[str, Any] | None:
    """Return how the experiment pads the network's input to multiples of its divisor, as plain values."""
    described = padding_to_dict(network.padding)
    if described is None or not isinstance(factors := described.get("min_factor"), list):
        return described
    return {
        "to_multiples_of": sides_of_slices(factors, network.slice_axis),
        "sides": "both, with an odd voxel at the end",
        "mode": described["mode"],
        "value": described["value"],
    }


def _in_this_file(steps: Any) -> Any:
    """Return steps whose references to the preprocessing refer to this file, for MONAI's `ConfigParser`."""
    if isinstance(steps, dict):
        return {name: _in_this_file(value) for name, value in steps.items()}
    if isinstance(steps, list | tuple):
        return [_in_this_file(value) for value in steps]
    return "@preprocessing#steps" if steps == "@preprocessing" else steps


def _times(size: Shape) -> str:
    return " x ".join(map(str, size))
