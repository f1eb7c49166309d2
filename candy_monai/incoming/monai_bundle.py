"""Open a MONAI Bundle as a predictor, built from known classes instead of by running what it names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import monai.networks.nets
import torch
from monai.inferers import Inferer, SliceInferer
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from candy_monai.aliases import Device, PathLike
from candy_monai.errors import BadInputError, CandyError, SettingsError
from candy_monai.files import digest_of_file
from candy_monai.incoming.bundle_config import BundleConfig
from candy_monai.incoming.bundle_preprocessing import REFERENCES, BundlePreprocessor
from candy_monai.incoming.nnunet import (
    NNUNET_NETWORKS,
    MeanOfFolds,
    NNUNetInferer,
    build_network,
    mean_of_rounded_folds,
)
from candy_monai.incoming.weights import load_whole, read_weights, weights_file_of
from candy_monai.inference.buffers import ScoreFunction, Tile
from candy_monai.inference.inferer_descriptions import inferer_from_description
from candy_monai.inference.inferers import SlicesInferer, WholeOrWindowsInferer, WindowInferer
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.prediction import PredictionListener, PreparedCase
from candy_monai.network import plain_network
from candy_monai.nn.ensemble import Ensemble
from candy_monai.nn.padding import padding_from_dict
from candy_monai.nn.slicewise import Slicewise, padding_of_slices, sides_of_volume
from candy_monai.registry import carried_network

NETWORKS = (
    "AHNet",
    "AttentionUnet",
    "BasicUNet",
    "BasicUNetPlusPlus",
    "DAF3D",
    "DynUNet",
    "FlexibleUNet",
    "HighResNet",
    "MedNeXt",
    "SegResNet",
    "SegResNetDS",
    "SegResNetDS2",
    "SegResNetVAE",
    "SwinUNETR",
    "UNETR",
    "UNet",
    "VNet",
)
"""The networks of MONAI that are built by name: those for segmentation that read nothing but their arguments."""

_SPELLINGS = {name.casefold(): name for name in NETWORKS}
_WITHOUT_EFFECT = {"SwinUNETR": ("img_size",)}
"""Arguments of earlier versions of MONAI that had no effect on the network."""
_FETCHED = ("pretrained", "load_pretrain")
"""Arguments that would download weights; a bundle has its own."""
_LARGEST_NUMBER = 1 << 14
_LONGEST_LIST = 64
_VALUES_BESIDE_WEIGHTS = 1 << 24
"""Allowance for tensors that a network creates and does not save."""
_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
ENSEMBLE = "scripts.ensemble.Ensemble"
_OUR_INFERERS = (
    *("scripts.inferers.WholeOrWindowsInferer", "scripts.inferers.SlicesInferer"),
    _LIKE_NNUNET := "scripts.nnunet.NNUNetInferer",
)
_AMP = {"bfloat16": "bf16", "float16": "fp16"}
_OF_THE_MACHINE = ("device", "sw_device", "progress", "cache_roi_weight_map")


class BundlePredictor(NetworkPredictor):
    """Predicts with a MONAI Bundle, according to its ``inference.json``. For arguments see `load_bundle`.

    Attributes:
        config: The bundle's configuration.
        model: The network with the bundle's weights.
        weights_file: The file of the weights.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        checkpoint: str | None = None,
        paints: Sequence[int] = (),
        trust: bool = False,
        **options: Any,
    ) -> None:
        self.config = config = BundleConfig(folder, trust=trust)
        network = bundle_network(config)
        described = _format_of(config, "inputs")
        num_channels, num_dims, num_outputs = _sizes(config, described)
        inferer, axis, amp, padding = bundle_inferer(config, num_dims)
        if axis is not None:
            network, num_dims = Slicewise(network, axis), 3
        image_dims = 3 if isinstance(inferer, SliceInferer) else num_dims  # MONAI's runs a 2-D network on volumes
        preprocessor = BundlePreprocessor(
            config, num_channels=num_channels, num_dims=image_dims, num_outputs=num_outputs, paints=paints
        )
        names = described.get("channel_def")
        super().__init__(
            folder,
            preprocessor=preprocessor,
            inferer=inferer,
            example_shape=(num_channels, *(1,) * num_dims),
            channel_names=[str(name) for name in names.values()] if isinstance(names, dict) else (),
            num_classes=num_outputs,
            trust=trust,
            **options,
        )
        preprocessor.check()
        weights = read_weights(folder if checkpoint in (None, "best") else Path(folder) / "models" / str(checkpoint))
        load_whole(network.network if isinstance(network, Slicewise) else network, weights)
        self.weights_file = weights.file
        self._run_with(network, padding=padding_of_slices(padding, axis), amp=amp)

    @override
    def tiles(
        self, case: PreparedCase, *, on_disk: bool = False, listener: PredictionListener | None = None
    ) -> Iterator[Tile]:
        try:
            yield from super().tiles(case, on_disk=on_disk, listener=listener)
        except (CandyError, torch.OutOfMemoryError):
            raise
        except (ArithmeticError, AssertionError, LookupError, NameError, RuntimeError, TypeError, ValueError) as error:
            shape, reason = tuple(case.cases[0].image.shape), " ".join(str(error).split())[:300]
            raise BadInputError(
                f"{self.config.file}: its network and inferer cannot be run on a preprocessed image of shape {shape} "
                f"({type(error).__name__}: {reason})"
            ) from error

    @cached_property
    @override
    def _network(self) -> ScoreFunction:
        model = plain_network(self.model)
        model = model.network if isinstance(model, Slicewise) else model
        if not isinstance(model, MeanOfFolds) or not isinstance(self._inferer, NNUNetInferer):
            return super()._network
        return mean_of_rounded_folds(super()._network, len(model.networks), self._inferer.window)

    @override
    def describe_models(self) -> list[dict[str, object]]:
        said = {key: self.config.metadata.get(key) for key in ("name", "version")}
        digest = {"weights": self.weights_file.name, "weights_sha256": digest_of_file(self.weights_file)}
        return [{**said, **digest, **how} for how in super().describe_models()]


def load_bundle(
    path: PathLike,
    *,
    checkpoint: str | None = None,
    device: Device = "cpu",
    mirror: bool | Sequence[int] = False,
    largest_component: bool = False,
    memory: int | None = None,
    channels: Sequence[int] | None = None,
    paints: Sequence[int] = (),
    trust: bool = False,
) -> BundlePredictor:
    """Open a MONAI Bundle, exported by this package or with the model zoo's layout, as a predictor.

    The network, the inferer and the transforms are built by name from known classes; references are resolved, and
    Python in the configuration is not run. Images are read and label maps written as by every predictor here: on the
    image's own grid, with its name.

    Args:
        path: The bundle's folder, with ``configs/inference.json`` (or ``.yaml``) and ``models/model.pt``.
        checkpoint: Another file of weights in ``models``.
        device: The device for prediction.
        mirror: Average over the mirror images along the axes given.
        largest_component: Keep only the largest connected component of each class.
        memory: As for `Predictor`.
        channels: As for `Predictor`.
        paints: The id that each channel of the output writes into the label map, later over earlier, for a bundle whose
            channels are overlapping regions.
        trust: Run the bundle's Python if it names unknown classes.

    Raises:
        BadInputError: If it is not a bundle, names unknown classes, or weights and network do not fit.
    """
    return BundlePredictor(
        path,
        checkpoint=checkpoint,
        device=device,
        mirror=mirror,
        largest_component=largest_component,
        memory=memory,
        channels=channels,
        paints=paints,
        trust=trust,
    )


def bundle_network(config: BundleConfig) -> nn.Module:
    """Build the network of ``network_def``, with random weights; raise if class or arguments do not fit."""
    name = "network_def" if "network_def" in config else "network"
    if name not in config:
        raise BadInputError(f"{config.file}: has no network_def, expected the network by its class and arguments")
    return _network(config, config.resolved(config.content[name], name), name)


def _network(config: BundleConfig, entry: Any, where: str) -> nn.Module:
    target = entry.get("_target_") if isinstance(entry, Mapping) else None
    if target == ENSEMBLE and isinstance(entry.get("networks"), list):
        networks = [_network(config, part, f"{where}#networks") for part in entry["networks"][:_LONGEST_LIST]]
        if entry.get("of_logits") is True:
            return MeanOfFolds(networks)
        return Ensemble(networks, sigmoid=entry.get("sigmoid") is True)
    if str(target).startswith(NNUNET_NETWORKS):
        return _network_of_nnunet(config, entry, where)
    kind = _class_of_network(target)
    if kind is None:
        if config.trust:
            built = config.built(where)
            if isinstance(built, nn.Module):
                return built
        raise BadInputError(
            f"{config.file}: {where} is {target!r}, expected one of MONAI's networks: {', '.join(NETWORKS)}. If you "
            "trust whoever wrote the bundle, let it run its Python: --trust (in Python trust=True)"
        )
    if entry.get("_mode_", "default") != "default":
        raise BadInputError(
            f"{config.file}: {where}#_mode_ is {entry['_mode_']!r}, expected no _mode_, so that the network is built"
        )
    arguments = {
        key: _argument(config, value, f"{where}#{key}")
        for key, value in entry.items()
        if not str(key).startswith("_") and key not in _WITHOUT_EFFECT.get(kind.__name__, ())
    }
    arguments |= {key: False for key in _FETCHED if key in arguments}
    if "dimensions" in arguments:  # the name before MONAI 0.9
        arguments["spatial_dims"] = arguments.pop("dimensions")
    try:
        inspect.signature(kind).bind(**arguments)
        with _AtMost(_bytes_of_weights(config) + _VALUES_BESIDE_WEIGHTS):
            return kind(**arguments)
    except (BadInputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each constructor raises its own
        reason = " ".join(str(error).split())[:300]
        raise BadInputError(
            f"{config.file}: {where}: {kind.__name__} cannot be built with these arguments: {reason}"
        ) from error


class _AtMost(TorchFunctionMode):
    """Refuse, within a block, to create tensors with more values in total than given."""

    def __init__(self, num_values: int) -> None:
        super().__init__()
        self.left = num_values

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTORIES:
            self.left -= func(*args, **{**(kwargs or {}), "device": "meta"}).numel()
            if self.left < 0:
                raise MemoryError("it has many more parameters than the bundle's file of weights can hold")
        return func(*args, **(kwargs or {}))


def _network_of_nnunet(config: BundleConfig, entry: Mapping[str, Any], where: str) -> nn.Module:
    """Build one of nnU-Net's own networks from its arguments in an exported bundle."""
    arguments = {key: value for key, value in entry.items() if key != "_target_"}
    layers = [key for key, value in arguments.items() if isinstance(value, Mapping) and "_target_" in value]
    for key in layers:
        arguments[key] = arguments[key]["_target_"]
    kernel, channels = arguments.get("kernel_sizes"), arguments.pop("input_channels", None)
    num_dims = len(kernel[0]) if isinstance(kernel, list) and kernel and isinstance(kernel[0], list) else 0
    num_outputs = arguments.pop("num_classes", None)
    if _number(channels) is None or _number(num_outputs) is None or num_dims not in (2, 3):
        raise BadInputError(
            f"{config.file}: {where}: found input_channels {channels!r}, num_classes {num_outputs!r} and kernel_sizes "
            f"{str(kernel)[:60]}, expected two numbers and the kernel of each stage along 2 or 3 axes"
        )
    network = build_network(
        {"network_class_name": entry["_target_"], "arch_kwargs": arguments, "_kw_requires_import": layers},
        num_inputs=int(channels),
        num_outputs=int(num_outputs),
        order=range(num_dims),
        where=f"{config.file}: {where}",
    )
    num_values, num_bytes = sum(each.numel() for each in network.parameters()), _bytes_of_weights(config)
    if num_values > num_bytes:
        raise BadInputError(
            f"{config.file}: {where}: has {num_values:,} parameters, and the bundle's weights are {num_bytes:,} bytes: "
            "expected its own network; it was not built"
        )
    return network.to_empty(device="cpu")


def _bytes_of_weights(config: BundleConfig) -> int:
    """Return the size of the largest file of weights; raise if there is none."""
    files = [file for file in (config.folder / "models").glob("*") if file.is_file()]
    return max(file.stat().st_size for file in files or [weights_file_of(config.folder)])


def network_name(target: object) -> str | None:
    """Return the name of MONAI's network that a target refers to, one of `NETWORKS`; None for anything else."""
    if not isinstance(target, str):
        return None
    package, _, name = target.rpartition(".")
    is_there = package in ("", "monai.networks.nets") or (
        package.startswith("monai.networks.nets.") and package.count(".") == 3
    )
    return _SPELLINGS.get(name.casefold()) if is_there else None


def _class_of_network(target: object) -> type[nn.Module] | None:
    """Return MONAI's class of `NETWORKS`, or that of an installed bundle which MONAI Bundles carry; else None."""
    name = network_name(target)
    found: type[nn.Module] | None = carried_network(target) if name is None else getattr(monai.networks.nets, name)
    return found


def _argument(config: BundleConfig, value: Any, where: str) -> Any:
    """Return an argument of a network if it is plain data, or a class of PyTorch's layers."""
    if isinstance(value, Mapping) and "_target_" in value:
        package, _, name = str(value["_target_"]).rpartition(".")
        layer = getattr(torch.nn, name, None) if package == "torch.nn" else None
        if isinstance(layer, type) and issubclass(layer, nn.Module) and value.get("_mode_") == "callable":
            return layer
        raise BadInputError(f"{config.file}: {where} is {value!r}, expected plain values or a class of torch.nn")
    if isinstance(value, Mapping):
        return {key: _argument(config, part, f"{where}#{key}") for key, part in value.items()}
    if isinstance(value, list):
        if len(value) > _LONGEST_LIST:
            raise BadInputError(f"{config.file}: {where} holds {len(value)} values, expected {_LONGEST_LIST} at most")
        return [_argument(config, part, f"{where}#{index}") for index, part in enumerate(value)]
    if isinstance(value, int | float) and abs(value) > _LARGEST_NUMBER:
        raise BadInputError(
            f"{config.file}: {where} is {value!r}, which is too large for an argument of a network; it was not built"
        )
    return value


class HowItRuns(NamedTuple):
    """How a bundle runs whole images."""

    inferer: Inferer | None = None  # None to run an image at once
    slice_axis: int | None = None  # the axis across the slices if our inferer applies a 2-D network to slices
    amp: str | None = None  # the precision, ``auto`` if the bundle's evaluator uses mixed precision
    padding: nn.Module | None = None  # pads the network's input; None if nothing does


def bundle_inferer(config: BundleConfig, num_dims: int) -> HowItRuns:
    """Return how a bundle runs whole images.

    Raises:
        BadInputError: If the inferer is unknown.
    """
    amp = _AMP.get(str(config.content.get("amp_dtype")), "auto" if _is_on(config, "evaluator#amp") else None)
    if "inferer" not in config:
        return HowItRuns(amp=amp)
    entry = config.resolved(config.content["inferer"], "inferer", keep=REFERENCES)
    given = dict(entry) if isinstance(entry, Mapping) else {}
    target = given.get("_target_")
    arguments = {key: value for key, value in given.items() if key not in ("_target_", *_OF_THE_MACHINE)}
    try:
        if target in _OUR_INFERERS:
            return _our_inferer(str(target), arguments)
        name = str(target).rpartition(".")[2]
        if target not in (name, f"monai.inferers.{name}", f"monai.inferers.inferer.{name}"):
            raise SettingsError(f"{target!r}")
        if name == "SimpleInferer":
            return HowItRuns(amp=amp)
        return HowItRuns(inferer_from_description({"_target_": f"monai.inferers.{name}", **arguments}), amp=amp)
    except (SettingsError, TypeError, ValueError, LookupError) as error:
        if config.trust:
            built = config.built("inferer")
            if isinstance(built, Inferer):
                return HowItRuns(built, amp=amp)
        raise BadInputError(
            f"{config.file}: inferer: cannot be built without running the bundle's Python ({error}): expected one of "
            "monai.inferers with plain arguments; --trust (in Python trust=True) runs it"
        ) from error


def _our_inferer(target: str, arguments: dict[str, Any]) -> HowItRuns:
    if target == _LIKE_NNUNET:
        sides, across = list(arguments["roi_size"]), arguments.get("spatial_dim")
        window = sides_of_volume(sides, across)
        return HowItRuns(NNUNetInferer(window, rounds_sums=arguments.get("rounds_sums") is not False), across)
    amp = _AMP.get(str(arguments.pop("amp_dtype", None)))
    is_for_slices = target.endswith("SlicesInferer")
    divisor, axis = arguments.pop("divisor", None), arguments.pop("spatial_dim") if is_for_slices else None
    multiples = arguments.pop("multiples", None)
    padding = None
    if multiples is not None:
        described = {"kind": f"Pad{len(multiples)}d", "min_factor": multiples, "value": 0.0, "mode": "constant"}
        padding = padding_from_dict(described)
    # Refuses arguments that it does not have or that are out of range; what is not given is MONAI's default.
    windows = WindowInferer(**{"overlap": 0.25, "mode": "constant", **arguments})
    inferer: WindowInferer = windows
    if axis is not None:
        windows.roi_size = sides_of_volume(windows.roi_size, axis)
    if divisor is not None and axis is not None:
        inferer = SlicesInferer(windows.roi_size, divisor=sides_of_volume(divisor, axis))
    elif divisor is not None:
        inferer = WholeOrWindowsInferer(windows.roi_size, divisor=divisor)
    for name in {*arguments, "overlap", "mode"} - {"roi_size"}:
        setattr(inferer, name, getattr(windows, name))
    return HowItRuns(inferer, axis, amp, padding)


def _format_of(config: BundleConfig, side: str) -> dict[str, Any]:
    """Return the metadata of the network's first input or output; empty if there are none."""
    formats = config.metadata.get("network_data_format")
    tensors = formats.get(side) if isinstance(formats, dict) else None
    name = {"inputs": "image", "outputs": "pred"}[side]
    if not isinstance(tensors, dict) or not tensors:
        return {}
    found = tensors.get(name, next(iter(tensors.values())))
    return found if isinstance(found, dict) else {}


def _sizes(config: BundleConfig, described: Mapping[str, Any]) -> tuple[int, int, int | None]:
    """Return the numbers of channels and spatial axes of an input image, and the number of output channels."""
    name = "network_def" if "network_def" in config else "network"
    entry = config.resolved(config.content[name], name)
    if isinstance(entry, Mapping) and isinstance(entry.get("networks"), list) and entry["networks"]:
        entry = entry["networks"][0]
    arguments: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    kind = _class_of_network(arguments.get("_target_"))
    known = inspect.signature(kind).parameters if kind is not None else {}

    def said(*names: str) -> int | None:
        for each in names:
            if (value := _number(arguments.get(each))) is not None:
                return value
        defaults = (known[each].default for each in names if each in known)
        return next((value for default in defaults if (value := _number(default)) is not None), None)

    shape = described.get("spatial_shape")
    kernels = arguments.get("kernel_sizes")
    if kind is None and isinstance(kernels, list) and kernels and isinstance(kernels[0], list):
        shape = kernels[0]  # of one of nnU-Net's networks
    num_channels = said("in_channels") or _number(described.get("num_channels"))
    num_dims = said("spatial_dims", "dimensions") or (len(shape) if isinstance(shape, list) else None)
    if num_channels is None or num_dims not in (2, 3):
        raise BadInputError(
            f"{config.folder}: does not say how many channels and spatial axes an image has: found {num_channels} and "
            f"{num_dims}, expected in_channels and spatial_dims of network_def, or num_channels and spatial_shape in "
            "configs/metadata.json"
        )
    num_outputs = said("out_channels", "num_classes") or _number(_format_of(config, "outputs").get("num_channels"))
    return num_channels, num_dims, num_outputs


def _is_on(config: BundleConfig, name: str) -> bool:
    try:
        return config.value(name) is True
    except BadInputError:
        return False


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_NUMBER else None
