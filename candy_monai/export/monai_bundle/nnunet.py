"""The networks of a trained nnU-Net for a bundle: as MONAI's DynUNet if that is equivalent, else as they are.

nnU-Net's plain network with two convolutions per stage is a `DynUNet` with three differences. It has a bias before each
normalisation, which subtracts it again. At each level its decoder uses the kernel of that level, and DynUNet's that of
the level below, into which the smaller kernel is written, surrounded by zeros. And the names of its layers differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.nn import functional as F

from candy_monai.errors import ExperimentError
from candy_monai.export.definitions import TARGET, define, noted_arguments
from candy_monai.export.monai_bundle.network import BundleNetwork, checked_sizes, ensemble_of
from candy_monai.incoming.nnunet import ARCHITECTURES, NNUNetPredictor, load_nnunet_network
from candy_monai.network import plain_network
from candy_monai.nn.slicewise import Slicewise


def describe_nnunet(predictor: NNUNetPredictor) -> BundleNetwork:
    """Describe the network of a trained nnU-Net, for several folds their mean."""
    network = plain_network(predictor.model)
    network = network.network if isinstance(network, Slicewise) else network
    entry = _entry(predictor)
    folds = list(network.networks) if len(predictor.checkpoints) > 1 else [network]  # type: ignore[arg-type]
    found = [_described(*each, predictor, entry) for each in zip(folds, predictor.checkpoints, strict=True)]
    return found[0] if len(found) == 1 else ensemble_of(found, sigmoid=bool(predictor.plan.regions), of_logits=True)


def _entry(predictor: NNUNetPredictor) -> dict[str, Any]:
    """Return the network as its own class and arguments, which must be plain data."""
    unet = import_module("dynamic_network_architectures.architectures.unet")
    with noted_arguments(*(getattr(unet, name) for name in ARCHITECTURES)) as noted:
        network, _ = load_nnunet_network(predictor.folder, checkpoint=predictor.checkpoints[0].name)
    try:
        return define(type(network), noted[network])
    except TypeError as error:
        raise ExperimentError(
            f"{predictor.folder}: the network is a {type(network).__name__}, whose argument {error} is not plain "
            "data: export to onnx or pt2"
        ) from error


def _described(trained: nn.Module, where: Path, predictor: NNUNetPredictor, entry: dict[str, Any]) -> BundleNetwork:
    weights = {name: value.detach().cpu().clone() for name, value in trained.state_dict().items()}
    if (as_monais := _as_dynunet(trained, predictor, entry)) is not None:
        entry, weights = as_monais
    built: nn.Module = ConfigParser({"network_def": entry}).get_parsed_content("network_def")
    weights = {name: value for name, value in weights.items() if name in built.state_dict()}
    built.load_state_dict(weights)
    sizes = checked_sizes(built, trained, predictor, f"{where}: the network is a {type(trained).__name__}")
    return BundleNetwork(entry=entry, weights=weights, spatial_shape=sizes)


def _as_dynunet(
    trained: nn.Module, predictor: NNUNetPredictor, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return the entry and the weights of the equivalent DynUNet; None if there is none."""
    plan, kernels, strides = predictor.plan, given["kernel_sizes"], given["strides"]
    num_dims = len(kernels[0])
    norm, activation = (dict(given.get(f"{name}_kwargs") or {}) for name in ("norm_op", "nonlin"))
    one_after_the_other = [pair for pairs in itertools.pairwise(kernels) for pair in zip(*pairs, strict=True)]
    is_one = (
        type(trained).__name__ == "PlainConvUNet"
        and len(kernels) > 2
        and _twice(given.get("n_conv_per_stage"))
        and _twice(given.get("n_conv_per_stage_decoder"))
        and _name(given.get("norm_op")) == f"InstanceNorm{num_dims}d"
        and set(norm) <= {"eps", "affine"}
        and norm.get("affine") is True
        and _name(given.get("nonlin")) == "LeakyReLU"
        and set(activation) <= {"inplace", "negative_slope"}
        and given.get("dropout_op") is None
        and not given.get("nonlin_first")
        and given.get("conv_bias") is True
        and all(size % 2 for kernel in kernels for size in kernel)
        and all(above <= below for above, below in one_after_the_other)
    )
    if not is_one:
        return None
    arguments = {
        "spatial_dims": num_dims,
        "in_channels": len(plan.channel_names),
        "out_channels": plan.num_classes,
        "kernel_size": kernels,
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        "filters": list(plan.filters),
        "norm_name": ["INSTANCE", norm],
        "act_name": ["leakyrelu", {"inplace": True, "negative_slope": activation.get("negative_slope", 0.01)}],
        "trans_bias": True,
    }
    network = DynUNet(**arguments)
    state = network.state_dict()
    with torch.no_grad():
        for theirs, ours in _pairs(trained, network):
            for name, parameter in ours.named_parameters():
                _put(dict(theirs.named_parameters())[name], parameter)
    weights = {name: value.detach().cpu().clone() for name, value in state.items()}
    return {TARGET: "monai.networks.nets.DynUNet", **arguments}, weights


def _pairs(trained: Any, network: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield each layer of nnU-Net's network with the layer of DynUNet that takes its weights."""
    down = [network.input_block, *network.downsamples, network.bottleneck]
    for stage, block in zip(trained.encoder.stages, down, strict=True):
        yield from _of_block(stage[-1], block)
    for layer, stage, block in zip(trained.decoder.transpconvs, trained.decoder.stages, network.upsamples, strict=True):
        yield layer, block.transp_conv.conv
        yield from _of_block(stage, block.conv_block)
    yield trained.decoder.seg_layers[-1], network.output_block.conv.conv


def _of_block(stage: Any, block: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    first, second = stage.convs
    yield first.conv, block.conv1.conv
    yield first.norm, block.norm1
    yield second.conv, block.conv2.conv
    yield second.norm, block.norm2


def _put(theirs: Tensor, ours: nn.Parameter) -> None:
    """Write a tensor into one of the same shape, or into the centre of a larger kernel, whose rest becomes 0."""
    margins = [(ours.shape[axis] - theirs.shape[axis]) // 2 for axis in range(2, theirs.ndim)]
    ours.copy_(F.pad(theirs, [margin for each in reversed(margins) for margin in (each, each)]))


def _twice(counts: object) -> bool:
    return counts == 2 or (isinstance(counts, list | tuple) and all(count == 2 for count in counts))


def _name(layer: object) -> str | None:
    return str(layer[TARGET]).rpartition(".")[2] if isinstance(layer, Mapping) else None
