"""Open a MONAI Bundle as a predictor, built of classes that are known instead of by running what it names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.networks.nets
import numpy as np
import torch
from monai.inferers import Inferer
from monai.transforms import Compose, MapTransform, Spacingd
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

import candy_monai.transforms
from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.images.reading import Scan
from candy_monai.data.inspection.inspect import axis_codes
from candy_monai.data.pipelines.building import moves_voxels
from candy_monai.data.pipelines.description import IMAGE, PREDICTION, Entry
from candy_monai.data.pipelines.preprocessing import Preprocessor
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.incoming.bundle_config import BundleConfig
from candy_monai.incoming.weights import load_whole, read_weights
from candy_monai.inference.inferer_descriptions import inferer_from_description
from candy_monai.inference.inferers import SlicesInferer, WholeOrWindowsInferer, WindowInferer
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.nn.ensemble import MeanOfNetworks
from candy_monai.nn.slicewise import Slicewise

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
"""The networks of MONAI that are built by name: those that segment, and read nothing but their arguments."""

_SPELLINGS = {name.casefold(): name for name in NETWORKS}
_WITHOUT_EFFECT = {"SwinUNETR": ("img_size",)}
"""Arguments of earlier versions of MONAI that changed nothing about the network."""
_FETCHED = ("pretrained", "load_pretrain")
"""Arguments that would fetch weights from elsewhere; a bundle brings its own."""
_LARGEST_NUMBER = 1 << 14
_LONGEST_LIST = 64
ENSEMBLE = "scripts.ensemble.Ensemble"
_OUR_INFERERS = ("scripts.inferers.WholeOrWindowsInferer", "scripts.inferers.SlicesInferer")
_AMP = {"bfloat16": "bf16", "float16": "fp16"}
_OF_THE_MACHINE = ("device", "sw_device", "progress", "cache_roi_weight_map")
_LEFT_OUT = ("EnsureChannelFirstd", "SaveImaged")
"""Steps that reading and writing of ours have in themselves."""
_REFERENCES = ("@preprocessing", "@device")


class BundlePredictor(NetworkPredictor):
    """Predicts with a MONAI Bundle, as its ``inference.json`` says. For arguments see `load_bundle`.

    Attributes:
        config: The bundle's configuration.
        model: The network with the bundle's weights.
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
        num_channels, num_dims = _channels_and_axes(config, described)
        inferer, axis, amp = bundle_inferer(config, num_dims)
        if axis is not None:
            network, num_dims = Slicewise(network, axis), 3
        preprocessor = BundlePreprocessor(config, num_channels=num_channels, num_dims=num_dims, paints=paints)
        names = described.get("channel_def")
        super().__init__(
            folder,
            preprocessor=preprocessor,
            inferer=inferer,
            example_shape=(num_channels, *(1,) * num_dims),
            channel_names=[str(name) for name in names.values()] if isinstance(names, dict) else (),
            num_classes=_number(_format_of(config, "outputs").get("num_channels")),
            trust=trust,
            **options,
        )
        preprocessor.check()
        weights = read_weights(folder if checkpoint in (None, "best") else Path(folder) / "models" / str(checkpoint))
        load_whole(network.network if isinstance(network, Slicewise) else network, weights)
        self._run_with(network, amp=amp)


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
    """Open a MONAI Bundle, one of ours or of the model zoo's layout, as a predictor.

    The network, the inferer and the transforms are built by name from those that are known; references are followed,
    and Python in the configuration is not run. Images are read and label maps written as by any predictor here: on the
    image's own grid, with its name.

    Args:
        path: The bundle's folder, with ``configs/inference.json`` (or ``.yaml``) and ``models/model.pt``.
        checkpoint: Another file of weights in ``models``.
        device: Where to predict.
        mirror: Average over the mirror images along the axes given.
        largest_component: Keep only the largest connected part of each class.
        memory: As for `Predictor`.
        channels: As for `Predictor`.
        paints: The id that each channel of the output writes into the label map, later over earlier, for a bundle whose
            channels are overlapping regions.
        trust: Run the Python that the bundle brings where it names more than is known.

    Raises:
        BadInputError: If it is no bundle, names what is not known, or weights and network do not fit.
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
    """Build the network of ``network_def``, with weights drawn.

    Raises:
        BadInputError: If it is none that is known, or its arguments do not fit.
    """
    name = "network_def" if "network_def" in config else "network"
    if name not in config:
        raise BadInputError(f"{config.file}: has no network_def, expected the network by its class and arguments")
    return _network(config, config.resolved(config.content[name], name), name)


def _network(config: BundleConfig, entry: Any, where: str) -> nn.Module:
    target = entry.get("_target_") if isinstance(entry, Mapping) else None
    if target == ENSEMBLE and isinstance(entry.get("networks"), list):
        networks = [_network(config, part, f"{where}#networks") for part in entry["networks"][:_LONGEST_LIST]]
        return MeanOfNetworks(networks, sigmoid=entry.get("sigmoid") is True)
    name = network_name(target)
    if name is None:
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
            f"{config.file}: {where}#_mode_ is {entry['_mode_']!r}, expected none, which builds a network"
        )
    kind: type[nn.Module] = getattr(monai.networks.nets, name)
    arguments = {
        key: _argument(config, value, f"{where}#{key}")
        for key, value in entry.items()
        if not str(key).startswith("_") and key not in _WITHOUT_EFFECT.get(name, ())
    }
    arguments |= {key: False for key in _FETCHED if key in arguments}
    if "dimensions" in arguments:  # the name until MONAI 0.9
        arguments["spatial_dims"] = arguments.pop("dimensions")
    try:
        inspect.signature(kind).bind(**arguments)
        return kind(**arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each constructor has its own
        reason = " ".join(str(error).split())[:300]
        raise BadInputError(f"{config.file}: {where}: {name} cannot be built with these arguments: {reason}") from error


def network_name(target: object) -> str | None:
    """Return the name of the network of MONAI's that a target means, one of `NETWORKS`; None for anything else."""
    if not isinstance(target, str):
        return None
    package, _, name = target.rpartition(".")
    is_there = package in ("", "monai.networks.nets") or (
        package.startswith("monai.networks.nets.") and package.count(".") == 3
    )
    return _SPELLINGS.get(name.casefold()) if is_there else None


def _argument(config: BundleConfig, value: Any, where: str) -> Any:
    """Return an argument of a network if it is plain, or a class of layers of PyTorch's."""
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
        raise BadInputError(f"{config.file}: {where} is {value!r}, which no network needs; it was not built")
    return value


def bundle_inferer(config: BundleConfig, num_dims: int) -> tuple[Inferer | None, int | None, str | None]:
    """Return how a bundle runs whole images.

    Returns:
        The inferer, None for all at once; the axis across the slices for a 2-D network that is applied to them by our
        own inferer; and the precision, ``auto`` where the bundle's evaluator uses mixed precision.

    Raises:
        BadInputError: If it is none that is known.
    """
    amp = "auto" if _is_on(config, "evaluator#amp") else None
    if "inferer" not in config:
        return None, None, amp
    entry = config.resolved(config.content["inferer"], "inferer", keep=_REFERENCES)
    target = entry.get("_target_") if isinstance(entry, Mapping) else None
    arguments = {
        key: value
        for key, value in (entry.items() if isinstance(entry, Mapping) else ())
        if key not in ("_target_", *_OF_THE_MACHINE)
    }
    try:
        if target in _OUR_INFERERS:
            return _our_inferer(str(target), arguments)
        name = str(target).rpartition(".")[2]
        if target not in (name, f"monai.inferers.{name}", f"monai.inferers.inferer.{name}"):
            raise SettingsError(f"{target!r}")
        if name == "SimpleInferer":
            return None, None, amp
        inferer = inferer_from_description({"_target_": f"monai.inferers.{name}", **arguments})
        return inferer, None, amp
    except (SettingsError, TypeError, ValueError, LookupError) as error:
        if config.trust:
            built = config.built("inferer")
            if isinstance(built, Inferer):
                return built, None, amp
        raise BadInputError(
            f"{config.file}: inferer: cannot be built without running the bundle's Python ({error}): expected one of "
            "monai.inferers with plain arguments; --trust (in Python trust=True) runs it"
        ) from error


def _our_inferer(target: str, arguments: dict[str, Any]) -> tuple[Inferer, int | None, str | None]:
    amp = _AMP.get(str(arguments.pop("amp_dtype", None)))
    divisor, axis = arguments.pop("divisor", None), arguments.pop("spatial_dim", None)
    if target.endswith("SlicesInferer"):
        roi_size, divided = ((*sides[:axis], 1, *sides[axis:]) for sides in (arguments["roi_size"], divisor))
        return SlicesInferer(roi_size, divisor=divided, sw_batch_size=arguments.get("sw_batch_size")), axis, amp
    if divisor is None:
        return WindowInferer(**arguments), None, amp
    windows = WholeOrWindowsInferer(arguments.pop("roi_size"), divisor=divisor)
    for name, value in arguments.items():
        if not hasattr(windows, name):
            raise SettingsError(f"{name} is no argument of it")
        setattr(windows, name, value)
    return windows, None, amp


class BundlePreprocessor(Preprocessor):
    """The preprocessing of a bundle, and the way of its results back to the grid of the image.

    Args:
        config: The bundle's configuration.
        num_channels: Channels of an image.
        num_dims: Its spatial axes.
        paints: As for `load_bundle`.

    Raises:
        BadInputError: If a step is not known, or its arguments cannot be known without running Python.
    """

    paints: tuple[int, ...] = ()
    paints_in_parts = False
    own_postprocessing = None

    def __init__(self, config: BundleConfig, *, num_channels: int, num_dims: int, paints: Sequence[int] = ()) -> None:
        self._trust = config.trust
        self._folder, self._file = config.folder, config.file
        self._num_channels, self._num_dims = num_channels, num_dims
        before, key, swaps = _preprocessing_of(config)
        self._swaps_pictures = swaps and num_dims == 2
        if self._swaps_pictures:
            before.insert(1, {"_target_": "monai.transforms.Transposed", "keys": IMAGE, "indices": [0, 2, 1]})
        after = _postprocessing_of(config, key)
        moves = self._swaps_pictures or any(moves_voxels(entry.get("_target_")) for entry in before)
        if moves and not any(_name(entry) == "Invertd" for entry in after):
            after.append(_inverting())
        self._is_sigmoid = any(entry.get("sigmoid") is True for entry in after)
        if paints:
            after.append(
                {
                    "_target_": "candy_monai.transforms.PaintLabelsd",
                    "keys": PREDICTION,
                    "paints": list(paints),
                    "are_probabilities": True,
                }
            )
        self.pipelines = {"preprocessing": before, "augmentation": [], "postprocessing": after}

    def check(self) -> None:
        """Build both pipelines.

        Raises:
            BadInputError: If a step is not known, or does not take its arguments.
        """
        try:
            _ = self.preprocessing, self.postprocessing
        except SettingsError as error:
            raise BadInputError(f"{self._file}: {error}") from error

    @override
    def shape_on_grid(self, geometry: Geometry) -> Shape:
        return geometry.spatial_shape  # an estimate: what the steps make of it is not known before

    @override
    def _is_exclusive(self, scores: Tensor) -> bool:
        return len(scores) > 1 and not self._is_sigmoid

    @override
    def _spacing(self, keys: Sequence[str], pixdim: Sequence[float], **stock: Any) -> MapTransform:
        spacing: MapTransform = Spacingd(keys, pixdim, **stock)
        return spacing

    @override
    def _checked(self, scan: Scan, label: Tensor | None) -> Tensor:
        where, image = scan.file_name or "the image", scan.values
        if image.ndim != self._num_dims + 1 or len(image) != self._num_channels:
            raise BadInputError(
                f"{where}: found shape {tuple(image.shape)}, expected {self._num_channels} channels and "
                f"{self._num_dims} spatial axes, as {self._file} says"
            )
        if self._swaps_pictures and scan.file_name and not scan.geometry.is_picture:
            raise BadInputError(
                f"{where}: has a place in space, and the bundle reads pictures, whose rows and columns MONAI swaps: "
                f'name the reader in preprocessing of {self._file}: "reader": "NibabelReader"'
            )
        values = image.float()
        if not bool(torch.isfinite(values).all()):
            count = int((~torch.isfinite(values)).sum())
            raise BadInputError(f"{where}: {count} intensities are NaN or infinite; replace them, for example by 0")
        return values

    @override
    def _affine(self, geometry: Geometry | None) -> NDArray[np.float64]:
        if geometry is None:
            return np.eye(4)
        if not geometry.is_picture and self._num_dims > 2:
            axis_codes(geometry.affine)  # says so where an axis points nowhere
        return geometry.affine.copy()

    @override
    def restore_whole(self, scores: Tensor, case: Any, *, are_probabilities: bool = False) -> tuple[Tensor, Tensor]:
        try:
            return super().restore_whole(scores, case, are_probabilities=are_probabilities)
        except BadInputError as error:
            if len(scores) < 2 or not self._is_sigmoid or self.pipelines["postprocessing"][-1].get("paints"):
                raise
            raise BadInputError(
                f"{self._folder}: its {len(scores)} channels are overlapping regions, which a label map cannot hold: "
                f"say which id each of them writes, later over earlier: load_bundle(..., paints=(2, 1, 3)) ({error})"
            ) from error


def _preprocessing_of(config: BundleConfig) -> tuple[list[Entry], str, bool]:
    """Return the steps of preprocessing, the key that stands for the image, and whether pictures come transposed."""
    entries = _steps(config, ("preprocessing", "pre_transforms"))
    loading = next((entry for entry in entries if _name(entry).startswith("LoadImage")), None)
    keys = (loading or {"keys": IMAGE}).get("keys", IMAGE)
    names = [keys] if isinstance(keys, str) else list(keys)
    if not names:
        raise BadInputError(f"{config.file}: preprocessing: LoadImaged has no keys, expected that of the image")
    # MONAI's reader of pictures swaps rows and columns by default, and ITK's unless it is told to.
    by_default = {"PILReader": True, "ITKReader": False, "None": True}
    reader = str(None if loading is None else loading.get("reader"))
    swaps = loading is not None and reader in by_default
    if swaps and loading is not None and loading.get("reverse_indexing", by_default[reader]) is not by_default[reader]:
        swaps = False
    read: Entry = {"_target_": "monai.transforms.LoadImaged", "keys": IMAGE}
    others = [entry for entry in entries if entry is not loading and _name(entry) not in _LEFT_OUT]
    return [read, *(_for_key(entry, names[0], IMAGE) for entry in others)], str(names[0]), swaps


def _postprocessing_of(config: BundleConfig, image_key: str) -> list[Entry]:
    """Return the steps of postprocessing, on the network's output at ``pred``."""
    entries = _steps(config, ("postprocessing", "post_transforms"))
    steps = [_for_key(entry, image_key, IMAGE) for entry in entries if _name(entry) not in _LEFT_OUT]
    for step in steps:
        if _name(step) == "Invertd":
            step["transform"] = {"_target_": "monai.transforms.Compose", "transforms": "@preprocessing"}
            step["orig_keys"] = IMAGE
    return steps


def _inverting() -> Entry:
    transform = {"_target_": "monai.transforms.Compose", "transforms": "@preprocessing"}
    return {
        "_target_": "monai.transforms.Invertd",
        "keys": PREDICTION,
        "transform": transform,
        "orig_keys": IMAGE,
        "nearest_interp": True,
    }


def _steps(config: BundleConfig, names: Sequence[str]) -> list[Entry]:
    """Return the transforms of an entry as plain data, those in a ``Compose`` one after the other."""
    name = next((name for name in names if name in config), None)
    if name is None:
        raise BadInputError(f"{config.file}: has no {names[0]}, expected a list of transforms")
    return _flat(config, config.resolved(config.content[name], name, keep=_REFERENCES, skip=_LEFT_OUT), name)


def _flat(config: BundleConfig, entry: Any, where: str) -> list[Entry]:
    if isinstance(entry, list):
        return [step for index, part in enumerate(entry) for step in _flat(config, part, f"{where}#{index}")]
    if isinstance(entry, Compose):
        raise BadInputError(f"{config.file}: {where}: is computed, expected a list of transforms")
    if not isinstance(entry, Mapping) or not isinstance(entry.get("_target_"), str):
        raise BadInputError(f"{config.file}: {where} is {entry!r}, expected a transform with its _target_")
    if entry.get("_disabled_") in (True, "true", "True"):
        return []
    target = entry["_target_"]
    if target in ("Compose", "monai.transforms.Compose"):
        return _flat(config, entry.get("transforms", []), f"{where}#transforms")
    kept = {key: value for key, value in entry.items() if key not in ("_desc_", "_disabled_", "device")}
    if _name(entry) == "Orientationd":
        kept.setdefault("labels", None)  # without, MONAI warns, and does the same to images in its own space
    return [{**kept, "_target_": known_target(target)}]


def known_target(target: str) -> str:
    """Return the full name of a transform: MONAI's, or ours where a bundle of ours has it in ``scripts``."""
    package, _, name = target.rpartition(".")
    if package.startswith("scripts.") and name in candy_monai.transforms.__all__:
        return f"candy_monai.transforms.{name}"
    if package == "" or package.startswith("monai.transforms."):
        return f"monai.transforms.{name}"
    return target


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("_target_")).rpartition(".")[2]


def _for_key(entry: Entry, before: str, after: str) -> Entry:
    """Return a step with the key of the image renamed."""
    if before == after:
        return dict(entry)
    renamed = {}
    for name, value in entry.items():
        if name.endswith(("keys", "key")):
            value = [after if part == before else part for part in value] if isinstance(value, list) else value
            value = after if value == before else value
        renamed[name] = value
    return renamed


def _format_of(config: BundleConfig, side: str) -> dict[str, Any]:
    """Return what the metadata say of the network's first input or output; empty where they say nothing."""
    formats = config.metadata.get("network_data_format")
    tensors = formats.get(side) if isinstance(formats, dict) else None
    name = {"inputs": "image", "outputs": "pred"}[side]
    if not isinstance(tensors, dict) or not tensors:
        return {}
    found = tensors.get(name, next(iter(tensors.values())))
    return found if isinstance(found, dict) else {}


def _channels_and_axes(config: BundleConfig, described: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many channels and spatial axes an image of the network's has."""
    name = "network_def" if "network_def" in config else "network"
    entry = config.resolved(config.content[name], name)
    if isinstance(entry, Mapping) and isinstance(entry.get("networks"), list) and entry["networks"]:
        entry = entry["networks"][0]
    arguments: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    kind = network_name(arguments.get("_target_"))
    known = inspect.signature(getattr(monai.networks.nets, kind)).parameters if kind is not None else {}

    def said(*names: str) -> int | None:
        for each in names:
            if (value := _number(arguments.get(each))) is not None:
                return value
        defaults = (known[each].default for each in names if each in known)
        return next((value for default in defaults if (value := _number(default)) is not None), None)

    shape = described.get("spatial_shape")
    num_channels = said("in_channels") or _number(described.get("num_channels"))
    num_dims = said("spatial_dims", "dimensions") or (len(shape) if isinstance(shape, list) else None)
    if num_channels is None or num_dims not in (2, 3):
        raise BadInputError(
            f"{config.folder}: does not say how many channels and spatial axes an image has: found {num_channels} and "
            f"{num_dims}, expected in_channels and spatial_dims of network_def, or num_channels and spatial_shape in "
            "configs/metadata.json"
        )
    return num_channels, num_dims


def _is_on(config: BundleConfig, name: str) -> bool:
    try:
        return config.value(name) is True
    except BadInputError:
        return False


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_NUMBER else None
