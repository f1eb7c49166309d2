"""Build the network of a trained nnU-Net from the classes and layers listed here, along the axes of this library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.errors import ExperimentError, reason_in_short
from candy_monai.incoming.nnunet.folder import NNUNetCheckpoint
from candy_monai.optional import require

ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
"""The permitted classes of ``dynamic_network_architectures.architectures.unet``."""

_PACKAGE = "dynamic_network_architectures"
NNUNET_NETWORKS = f"{_PACKAGE}."
"""The beginning of the full names of these classes."""

_LAYERS = (
    *("Conv2d", "Conv3d", "InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d"),
    *("Dropout", "Dropout2d", "Dropout3d", "LeakyReLU", "ReLU", "PReLU", "ELU", "GELU", "SiLU", "Mish"),
)
_BLOCKS = ("BasicBlockD", "BottleneckD")
_ALONG_AXES = ("kernel_sizes", "strides")
_COUNTS = ("n_stages", "n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder")
_MOST_LAYERS = 64
"""Maximum in a stage; nnU-Net's largest presets have 6 blocks in one, and it plans at most 10 stages."""

_OLD = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}


def described_architecture(configuration: Mapping[str, Any], num_dims: int, where: PathLike) -> dict[str, Any]:
    """Return the entry ``architecture`` of a configuration, converted from that of versions before 2.3."""
    if isinstance(configuration.get("architecture"), dict):
        return dict(configuration["architecture"])
    kind = configuration.get("UNet_class_name")
    try:
        convolutions = list(configuration["n_conv_per_stage_encoder"])
        base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
        arguments = {
            "n_stages": len(convolutions),
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(convolutions))],
            "conv_op": f"torch.nn.Conv{num_dims}d",
            "kernel_sizes": configuration["conv_kernel_sizes"],
            "strides": configuration["pool_op_kernel_sizes"],
            _OLD[str(kind)]: convolutions,
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.InstanceNorm{num_dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
    except (KeyError, TypeError) as error:
        raise ExperimentError(
            f"{where}: the configuration has no architecture, and none can be made of its entries as those of earlier "
            f"versions ({type(error).__name__}: {error})"
        ) from error
    return {
        "network_class_name": f"{_PACKAGE}.architectures.unet.{kind}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def stages_of(architecture: Mapping[str, Any], num_dims: int, where: PathLike) -> dict[str, list[tuple[int, ...]]]:
    """Return kernel sizes and strides of each stage, in the network's own axes; raise if it is no U-Net."""
    arguments = architecture.get("arch_kwargs")
    if not isinstance(arguments, dict):
        raise ExperimentError(f"{where}: architecture.arch_kwargs is {arguments!r}, expected an object")
    for name in _COUNTS:
        counts = arguments.get(name, 1)
        listed = counts if isinstance(counts, list) else [counts]
        if len(listed) > _MOST_LAYERS or not all(type(each) is int and 0 < each <= _MOST_LAYERS for each in listed):
            raise ExperimentError(
                f"{where}: architecture.arch_kwargs.{name} is {str(counts)[:60]}, expected numbers of 1 to "
                f"{_MOST_LAYERS}"
            )
    found: dict[str, list[tuple[Any, ...]]] = {}
    for name in _ALONG_AXES:
        value, count = arguments.get(name), arguments.get("n_stages")
        stages = value if isinstance(value, list) else [value] * (count if isinstance(count, int) else 0)
        levels = [tuple(stage) if isinstance(stage, list) else (stage,) * num_dims for stage in stages]
        flat = [size for level in levels for size in level]
        sizes_fit = all(type(size) is int and 0 < size <= _MOST_LAYERS for size in flat)
        if len(levels) != count or not sizes_fit or any(len(level) != num_dims for level in levels):
            raise ExperimentError(
                f"{where}: architecture.arch_kwargs.{name} is {str(value)[:60]}, expected {num_dims} sizes for each of "
                f"{count} stages"
            )
        found[name] = levels
    return found


def build_network(
    architecture: Mapping[str, Any],
    *,
    num_inputs: int,
    num_outputs: int,
    order: Sequence[int],
    where: PathLike,
) -> nn.Module:
    """Build the network of the plans' ``architecture`` on the meta device, with its axes in another order.

    ``order`` is for each axis of the built network the axis in the plans; ``where`` is the file, for messages. Classes
    and layers that are not listed here are refused.
    """
    name = str(architecture.get("network_class_name"))
    kind = name.rpartition(".")[2]
    if not name.startswith(f"{_PACKAGE}.") or kind not in ARCHITECTURES:
        raise ExperimentError(
            f"{where}: the network is {name}, which is not imported, since only known classes are built; known are "
            f"{', '.join(ARCHITECTURES)} of {_PACKAGE}"
        )
    unet = require(f"{_PACKAGE}.architectures.unet", extra="nnunet", purpose="build the networks of nnU-Net")
    stages = stages_of(architecture, len(order), where)
    arguments = dict(architecture["arch_kwargs"])
    for key, levels in stages.items():
        arguments[key] = [[level[axis] for axis in order] for level in levels]
    for key in architecture.get("_kw_requires_import") or ():
        arguments[key] = _layer(arguments.get(key), f"{where}: architecture.arch_kwargs.{key}", unet)
    arguments["deep_supervision"] = False
    try:
        with torch.device("meta"):
            network = getattr(unet, kind)(input_channels=num_inputs, num_classes=num_outputs, **arguments)
    except Exception as error:  # each class raises its own for unsuitable arguments
        reason = reason_in_short(error)
        raise ExperimentError(f"{where}: {kind} cannot be built of architecture.arch_kwargs ({reason})") from error
    assert isinstance(network, nn.Module)
    return network


def load_weights_into(network: nn.Module, checkpoint: NNUNetCheckpoint, order: Sequence[int]) -> nn.Module:
    """Load a checkpoint's weights, with the axes of all kernels reordered, into a network on the meta device."""
    weights = {name: _in_order(value, order) for name, value in checkpoint.weights.items()}
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        name = next(name for name in (*expected, *found) if expected.get(name) != found.get(name))
        raise ExperimentError(
            f"{checkpoint.path}: does not fit the network {type(network).__name__} of the plans: {name} has shape "
            f"{found.get(name, 'none')}, expected {expected.get(name, 'none')}; it was trained by "
            f"{checkpoint.trainer}, and models of trainers that build their own network cannot be opened"
        )
    network = network.to_empty(device="cpu")
    network.load_state_dict(weights)
    return network.requires_grad_(True).eval()


class MeanOfFolds(nn.Module):
    """The networks of several folds; it returns the mean of their logits for images ``(B, C, *spatial)``."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    @override
    def forward(self, x: Tensor, *, fold: int | None = None) -> Tensor:
        """Return the mean of the logits for windows ``(B, C, *spatial)``, or those of the fold with this number."""
        first, *others = self.networks if fold is None else [self.networks[fold]]
        total: Tensor = first(x)
        for network in others:
            total = total + network(x)
        return total / (1 + len(others))


def _in_order(value: Tensor, order: Sequence[int]) -> Tensor:
    """Return a kernel ``(K, C, *spatial)`` with its axes reordered, and any other tensor unchanged."""
    return value.permute(0, 1, *(axis + 2 for axis in order)) if value.ndim == len(order) + 2 else value


def _layer(name: object, where: str, unet: Any) -> Any:
    if name is None:
        return None
    package, _, kind = str(name).rpartition(".")
    if package.startswith("torch.nn") and kind in _LAYERS:
        return getattr(nn, kind)
    if package.startswith(f"{_PACKAGE}.") and kind in _BLOCKS:
        return getattr(unet, kind)
    raise ExperimentError(
        f"{where} is {str(name)[:80]!r}, which is not imported, since only known classes are built; known are "
        f"{', '.join((*_LAYERS, *_BLOCKS))}"
    )
