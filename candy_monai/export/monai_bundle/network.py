"""A trained network as an entry of MONAI's configuration language, with weights for the network built from it."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from candy_monai.data.planning.topology import rounded_up
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.description import DESCRIPTION
from candy_monai.export.definitions import TARGET, define, exported_as, noted_arguments
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.predictor import Predictor
from candy_monai.network import plain_network
from candy_monai.nn.deep_supervision import main_output, outputs_as_list
from candy_monai.nn.slicewise import Slicewise
from candy_monai.registry import find_bundle, name_in_scripts

_SINGLE_OUTPUT: dict[str, object] = {"deep_supervision": False, "dsdepth": 1}
"""The arguments of MONAI's networks that add outputs for training only, with the values that disable them."""

_TOLERANCE = 1e-4
_MOST_VOXELS = 1 << 20
"""Maximum size of an image with which a network is tried."""


@dataclass(frozen=True, kw_only=True)
class DeepSupervision:
    """A network with outputs for training only."""

    entry: dict[str, Any]  # ``{"_target_": ..., arguments}``
    num_outputs: int  # number of outputs in training, the main one first
    is_stacked: bool  # whether they are one tensor ``(B, outputs, K, *spatial)`` instead of a list


@dataclass(frozen=True, kw_only=True)
class BundleNetwork:
    """A network for a bundle."""

    entry: dict[str, Any]  # ``{"_target_": ..., arguments}``
    weights: dict[str, Tensor]  # the state_dict of the network built from it
    spatial_shape: list[str | int]  # as in ``metadata.json``: ``16*n``, or a number for a fixed size
    supervision: DeepSupervision | None = None  # the network as it was trained, if deeply supervised
    scripts: Mapping[str, str] = field(default_factory=dict)  # the modules of networks that MONAI does not have

    @property
    def num_members(self) -> int:
        """Number of networks that it averages; 1 for a single one."""
        return len(self.entry.get("networks", [self.entry]))


def describe_network(predictor: Predictor) -> BundleNetwork:
    """Describe an experiment's network by its class, MONAI's or a bundle's, without outputs for training only.

    Raises an error if a MONAI Bundle cannot use its class, or what is built from the description computes otherwise.
    """
    trained = plain_network(predictor.model)
    trained = trained.network if isinstance(trained, Slicewise) else trained
    kind = exported_as(type(trained))
    where = f"{predictor.folder}: the network is a {kind.__module__}.{kind.__qualname__}"
    bundle = predictor.description.bundle
    is_carried = bundle is not None and kind in find_bundle(bundle).networks
    if not is_carried and not kind.__module__.startswith("monai."):
        raise ExperimentError(
            f"{where}, but a MONAI Bundle can use only MONAI's own networks: export the experiment to onnx or pt2, "
            "which hold the network itself, or train a network of MONAI's"
        )
    trained_with = _arguments_of(kind, predictor)
    arguments = trained_with | {name: single for name, single in _SINGLE_OUTPUT.items() if name in trained_with}
    try:
        entry, supervised = define(kind, arguments), define(kind, trained_with)
    except TypeError as error:
        raise ExperimentError(f"{where}, whose argument {error} is not plain data: export to onnx or pt2") from error
    built: nn.Module = ConfigParser({"network_def": entry}).get_parsed_content("network_def")
    saved = trained.state_dict()
    weights = {name: saved[name].detach().cpu().clone() for name in built.state_dict() if name in saved}
    try:
        built.load_state_dict(weights)
    except RuntimeError as error:
        raise ExperimentError(f"{where}, and its weights do not fit what its arguments build: {error}") from error
    spatial_shape = checked_sizes(built, trained, predictor, where)
    supervision = None if supervised == entry else _deep_supervision(supervised, spatial_shape, predictor)
    network = BundleNetwork(entry=entry, weights=weights, spatial_shape=spatial_shape, supervision=supervision)
    return _carried(network, kind) if is_carried else network


def _carried(network: BundleNetwork, kind: type[nn.Module]) -> BundleNetwork:
    """Return a network with its name in the ``scripts`` of a bundle, and the module of its class."""
    name = {TARGET: name_in_scripts(kind)}
    supervision = network.supervision
    return replace(
        network,
        entry=network.entry | name,
        supervision=None if supervision is None else replace(supervision, entry=supervision.entry | name),
        scripts={kind.__module__.rpartition(".")[2]: inspect.getsource(sys.modules[kind.__module__])},
    )


def _deep_supervision(entry: dict[str, Any], sizes: Sequence[str | int], predictor: Predictor) -> DeepSupervision:
    """Return the outputs in training of a network that has outputs for training only."""
    network: nn.Module = ConfigParser({"network_def": entry}).get_parsed_content("network_def")
    images = torch.zeros(2, predictor.num_channels, *(int(str(size).partition("*")[0]) for size in sizes))
    with torch.no_grad():
        output = network.train()(images)
    count = len(outputs_as_list(output, len(sizes)))
    return DeepSupervision(entry=entry, num_outputs=count, is_stacked=isinstance(output, Tensor))


def _arguments_of(kind: type[nn.Module], predictor: Predictor) -> dict[str, Any]:
    """Return the arguments with which the experiment's bundle calls the constructor of the network's class."""
    bundle = predictor.description.bundle
    if bundle is None:
        raise ExperimentError(
            f"{predictor.folder}: trained by {predictor.description.trainer}, which belongs to no bundle, so that "
            f"{DESCRIPTION} does not say how its network is built: export to onnx or pt2"
        )
    with noted_arguments(kind) as noted:
        built = find_bundle(bundle).build_network(**predictor.network_arguments())
    return noted[built]


def checked_sizes(built: nn.Module, trained: nn.Module, predictor: NetworkPredictor, where: str) -> list[str | int]:
    """Check that two networks are equivalent, and return the input sizes that they accept."""
    plan = predictor.plan
    assert plan is not None
    axes = [axis for axis in range(plan.num_dims) if axis != plan.slice_axis]
    patch = [rounded_up(plan.patch_shape, plan.divisor)[axis] for axis in axes]
    # Twice the divisor, so that more than one voxel is left at the lowest level, as normalisation requires.
    smallest = [2 * plan.divisor[axis] if plan.divisor[axis] > 1 else 1 for axis in axes]
    twice = [2 * size for size in smallest]
    sizes: list[str | int] = [f"{size}*n" for size in smallest]
    channels = len(plan.channel_names)
    device = predictor.device()
    trained, built = trained.eval(), built.eval().to(device)

    def output_of(network: nn.Module, size: Sequence[int]) -> Any:
        image = torch.linspace(-1, 1, channels * torch.Size(size).numel(), device=device).view(1, channels, *size)
        with torch.no_grad():
            return network.forward(image)  # without the hooks of prediction, which compute in half precision

    tried = smallest
    try:
        output_of(built, smallest)
        if torch.Size(twice).numel() <= _MOST_VOXELS:
            output_of(built, twice)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError):
        tried, sizes = patch, list(patch)
    output = output_of(built, tried)
    if not isinstance(output, Tensor):
        raise ExperimentError(
            f"{where}, which returns a {type(output).__name__}; MONAI's tools for bundles take networks that return "
            "one tensor: export to onnx or pt2"
        )
    expected = main_output(output_of(trained, tried), num_dims=len(axes))
    difference = float((output - expected).abs().max()) if output.shape == expected.shape else math.inf
    if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ExperimentError(
            f"{where}, and what its arguments build without deep supervision differs from it by {difference:.2g}: "
            "export to onnx or pt2"
        )
    return sizes


def ensemble_of(members: Sequence[BundleNetwork], *, sigmoid: bool, of_logits: bool = False) -> BundleNetwork:
    """Return one network that averages the probabilities of several, or their logits, as nnU-Net does."""
    if any(member.spatial_shape != members[0].spatial_shape for member in members):
        shapes = "; ".join(str(member.spatial_shape) for member in members)
        raise BadInputError(
            f"the experiments' networks take images of different sizes ({shapes}): export each separately"
        )
    networks, logits = [member.entry for member in members], {"of_logits": True} if of_logits else {}
    entry = {TARGET: "scripts.ensemble.Ensemble", "networks": networks, "sigmoid": sigmoid, **logits}
    weights = {f"networks.{i}.{name}": value for i, each in enumerate(members) for name, value in each.weights.items()}
    scripts = {name: text for member in members for name, text in member.scripts.items()}
    return BundleNetwork(entry=entry, weights=weights, spatial_shape=members[0].spatial_shape, scripts=scripts)
