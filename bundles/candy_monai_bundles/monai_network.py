"""Any network of MONAI by its name: ``--network SegResNet --network-args init_filters=16``.

The class is one that ``monai.networks.nets`` exports; nothing else is ever imported by a name in a file. The divisor of
its input sizes is determined by trying.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from monai.networks import nets
from torch import nn
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.planning.plan import Plan
from candy_monai.data.values import frozen
from candy_monai.errors import SettingsError, did_you_mean
from candy_monai.inference.predictor import Predictor
from candy_monai.network import meta_copy
from candy_monai.nn.deep_supervision import main_output
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer

__all__ = ["BUNDLE", "MONAIPredictor", "MONAITrainer", "build_monai_network"]

DIMS = ("spatial_dims", "dimensions", "dim")
IN_CHANNELS = ("in_channels", "num_channels", "n_input_channels", "in_chans")
OUT_CHANNELS = ("out_channels", "num_classes", "n_classes", "out_chans")
SIZE = ("img_size", "image_size", "input_image_size")
"""Names of the arguments that are filled in for MONAI's classes; the first one that a class has is used."""

DIVISORS = (1, 2, 4, 8, 16, 32, 64)
ON_META, ON_CPU = 64, 32
"""Minimum length of an axis in trials, on the meta device and, for networks that need real tensors, on the CPU."""


def build_monai_network(
    *,
    network: str,
    network_args: Mapping[str, Any] | None = None,
    num_dims: int,
    in_channels: int,
    out_channels: int,
    image_size: Sequence[int] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a network of ``monai.networks.nets``.

    Args:
        network: The name of the class.
        network_args: Its arguments, except those that are filled in; lists are converted to tuples.
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image.
        out_channels: Number of logits per voxel.
        image_size: The only size that it accepts, if its class requires one.
        pretrained: Whether the argument ``pretrained`` is passed on; if not, no weights are downloaded to be replaced.

    Returns:
        The network.

    Raises:
        SettingsError: If there is no such class or argument, or the class refuses a value; shows its signature.
    """
    kind = find_network(network)
    chosen: dict[str, Any] = {name: frozen(value) for name, value in (network_args or {}).items()}
    check_arguments(network, chosen)
    if not pretrained and "pretrained" in chosen:
        chosen["pretrained"] = False
    known = inspect.signature(kind).parameters
    filled: dict[tuple[str, ...], object] = {DIMS: num_dims, IN_CHANNELS: in_channels, OUT_CHANNELS: out_channels}
    if image_size is not None:
        filled[SIZE] = tuple(image_size)
    for names, value in filled.items():
        if (name := next((name for name in names if name in known), None)) is not None:
            chosen[name] = value
    try:
        built: nn.Module = kind(**chosen)
    except Exception as error:  # each class raises its own for unsuitable arguments
        raise SettingsError(f"{network} cannot be built ({_first_line(error)}).\n{_signature(network)}") from error
    return built


def find_network(name: str) -> type[nn.Module]:
    """Return a class that ``monai.networks.nets`` exports; raise if there is none of this name."""
    if not name:
        raise SettingsError(
            "no network is named: give the name of a class in monai.networks.nets, by --network NAME or in Python by "
            "MONAITrainer.with_network({'network': NAME})"
        )
    found = vars(nets).get(name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        known = [name for name, kind in vars(nets).items() if isinstance(kind, type) and issubclass(kind, nn.Module)]
        raise SettingsError(
            f"--network {name}: monai.networks.nets exports no network of this name.{did_you_mean(name, known)}"
        )
    return found


def check_arguments(network: str, arguments: Mapping[str, object]) -> None:
    """Check that a class has these arguments, and that none of them is filled in."""
    parameters = inspect.signature(find_network(network)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in arguments:
        if name in (*DIMS, *IN_CHANNELS, *OUT_CHANNELS, *SIZE) and name in parameters:
            raise SettingsError(f"--network-args {name}: is set from the dataset; leave it out")
        if name not in parameters and not takes_any:
            raise SettingsError(
                f"--network-args {name}: {network} has no such argument.{did_you_mean(name, parameters)}\n"
                f"{_signature(network)}"
            )


@functools.lru_cache(maxsize=32)
def divisor_of(network: str, network_args: str, num_dims: int, in_channels: int, out_channels: int) -> int:
    """Return the number that the length of each axis of a network's input must be a multiple of, found by trying.

    Args:
        network: The name of the class.
        network_args: Its arguments, as JSON.
        num_dims: 2 or 3 spatial axes.
        in_channels: Number of channels of the image.
        out_channels: Number of logits per voxel that it should return.

    Raises:
        SettingsError: If it cannot be built, or does not return one logit per class for each voxel at any size.
    """
    given = {"network": network, "network_args": json.loads(network_args), "num_dims": num_dims}
    build = functools.partial(build_monai_network, **given, in_channels=in_channels, out_channels=out_channels)
    takes_any_size = not has_fixed_size(network)
    built = build() if takes_any_size else None
    problem = ""
    for on_meta in (True, False):
        for divisor in DIVISORS:
            first, second = _odd_multiples(divisor, ON_META if on_meta else ON_CPU)
            size = (first, second, first)[:num_dims]
            model = build(image_size=size) if built is None else built
            try:
                found = _output_shape(model, (1, in_channels, *size), on_meta=on_meta)
            except Exception as error:  # a network may fail with meta tensors, or refuse a size in its own way
                problem = _first_line(error)
                continue
            if found == (1, out_channels, *size):
                if built is not None:
                    _refuse_probabilities(
                        built, network, (1, in_channels, *(-(-ON_CPU // divisor) * divisor,) * num_dims)
                    )
                return divisor
            problem = f"for images of shape {(1, in_channels, *size)} it returns shape {found}"
    raise SettingsError(
        f"--network {network}: must return {out_channels} logits for each voxel of {num_dims}-D images with "
        f"{in_channels} channels, at the size of the image, but does not: {problem}.\n{_signature(network)}"
    )


def has_fixed_size(network: str) -> bool:
    """Return whether a class requires the only size that it accepts as an argument."""
    return any(name in inspect.signature(find_network(network)).parameters for name in SIZE)


class MONAITrainer(BundleTrainer):
    """Trains any network of ``monai.networks.nets`` that returns one logit per class for each voxel, with AdamW.

    Attributes:
        network: The name of the class.
        network_args: Its arguments, except those that follow from the data.
    """

    network_name = "this network of MONAI"
    network_builder = staticmethod(functools.partial(build_monai_network, pretrained=True))
    network_options = ("network", "network_args")
    network: str = ""
    network_args: Mapping[str, Any] = {}
    options = SegmentationOptions(learning_rate=1e-3, weight_decay=1e-5, memory_factor=2.0)

    @override
    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if cls.network:
            cls.network_name, cls.has_fixed_size = cls.network, has_fixed_size(cls.network)

    @override
    @classmethod
    def with_network(cls, options: Mapping[str, object]) -> type[Self]:
        chosen = super().with_network(options)
        check_arguments(chosen.network, chosen.network_args)
        problems = list(chosen._problems())
        if len(problems) == len(_TRIED):
            raise problems[0]
        return chosen

    @classmethod
    def _problems(cls) -> Iterator[SettingsError]:
        """Yield errors of the network for pictures and for volumes, before a dataset determines which are needed."""
        for num_dims, in_channels in _TRIED:
            try:
                cls._divisor(num_dims, in_channels, 2)
            except SettingsError as error:
                yield error

    @classmethod
    def _divisor(cls, num_dims: int, in_channels: int, out_channels: int) -> int:
        return divisor_of(cls.network, json.dumps(cls.network_args), num_dims, in_channels, out_channels)

    @override
    @classmethod
    def divisors(cls, plan: Plan) -> Shape:
        return (cls._divisor(plan.network_dims, plan.num_inputs, plan.num_classes),) * plan.network_dims

    @override
    @classmethod
    def check_plan(cls, plan: Plan) -> None:
        super().check_plan(plan)
        cls.divisors(plan)

    @override
    def network_arguments(self, example_shape: Shape) -> dict[str, Any]:
        return {**super().network_arguments(example_shape), "network_args": dict(self.network_args)}

    @override
    def _padding_factors(self) -> Shape:
        if self.image_size is not None or self.plan is not None:
            return super()._padding_factors()
        return (type(self)._divisor(self.num_dims, 1, self.num_classes),) * self.num_dims


class MONAIPredictor(Predictor):
    """Predicts with a trained network of MONAI, given only its experiment folder."""


_TRIED = ((2, 1), (3, 1))


def _output_shape(network: nn.Module, shape: Shape, *, on_meta: bool) -> Shape:
    """Return the shape of a network's output at full resolution."""
    images = torch.empty(shape, device="meta") if on_meta else torch.zeros(shape)
    model = meta_copy(network) if on_meta else network.eval()
    with torch.no_grad():
        return tuple(main_output(model(images), num_dims=len(shape) - 2).shape)


def _refuse_probabilities(model: nn.Module, network: str, shape: Shape) -> None:
    """Refuse a network that ends in a softmax, since the loss would apply another."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            scores = main_output(model.eval()(images), num_dims=len(shape) - 2)
    except Exception:  # whether it runs is checked with other sizes
        return
    if scores.shape[1] > 1 and bool((scores >= 0).all()) and torch.allclose(scores.sum(1), torch.ones(()), atol=1e-4):
        raise SettingsError(
            f"--network {network}: returns probabilities that sum to 1, but the loss and the prediction expect logits: "
            f"leave out its last activation (--network-args).\n{_signature(network)}"
        )


def _odd_multiples(divisor: int, least: int) -> tuple[int, int]:
    """Return two lengths that are multiples of this divisor but not of the next greater one."""
    odd = -(-least // divisor) | 1
    return odd * divisor, (odd + 2) * divisor


def _signature(network: str) -> str:
    return f"{network}{inspect.signature(find_network(network))}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


BUNDLE = Bundle(name="monai", build_network=build_monai_network, trainer=MONAITrainer, predictor=MONAIPredictor)
