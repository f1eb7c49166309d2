"""The transforms of a MONAI Bundle: from an image to the network's input, and from scores to label ids."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import Compose, MapTransform, Spacingd
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

import candy_monai.transforms
from candy_monai.aliases import Shape
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.images.reading import Scan
from candy_monai.data.inspection.inspect import axis_codes
from candy_monai.data.pipelines.building import moves_voxels
from candy_monai.data.pipelines.description import IMAGE, PREDICTION, Entry, inverting
from candy_monai.data.pipelines.preprocessing import PreprocessedCase, Preprocessor, finite
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.incoming.bundle_config import BundleConfig, class_name

_CHECKING = "@check_spacing"
"""Marks, in bundles exported by this package, that MONAI's ``Spacingd`` replaces our resampling."""

REFERENCES = ("@preprocessing", "@device", _CHECKING)
"""References that are not resolved: preprocessing is built here, and the device is that of the predictor."""

LEFT_OUT = ("EnsureChannelFirstd", "SaveImaged")
"""Steps that are part of this package's reading and writing."""


class BundlePreprocessor(Preprocessor):
    """The preprocessing of a bundle, and the restoration of its results to the grid of the image.

    Raises an error if a step is not known, its arguments cannot be resolved without running Python, or postprocessing
    derives no label ids from a single channel of output.
    """

    paints: tuple[int, ...] = ()
    paints_in_parts = False
    own_postprocessing = None

    def __init__(
        self,
        config: BundleConfig,
        *,
        num_channels: int,
        num_dims: int,
        num_outputs: int | None = None,
        paints: Sequence[int] = (),
    ) -> None:
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
            after.append(inverting(ids=True))
        if num_outputs == 1:
            _check_way_from_one_channel(config, after)
        self._is_sigmoid = any(entry.get("sigmoid") is True for entry in after)
        if paints:
            step: Entry = {"_target_": "candy_monai.transforms.PaintLabelsd", "keys": PREDICTION}
            after.append({**step, "paints": list(paints), "are_probabilities": True})
        self.pipelines = {"preprocessing": before, "augmentation": [], "postprocessing": after}

    def check(self) -> None:
        """Build both pipelines; raise if a step is not known, or does not accept its arguments."""
        try:
            _ = self.preprocessing, self.postprocessing
        except SettingsError as error:
            raise BadInputError(f"{self._file}: {error}") from error

    @override
    def shape_on_grid(self, geometry: Geometry) -> Shape:
        return geometry.spatial_shape  # an estimate: the effect of the steps is not known before

    @override
    def _is_exclusive(self, scores: Tensor) -> bool:
        return len(scores) > 1 and not self._is_sigmoid

    @override
    def _spacing(self, keys: Sequence[str], pixdim: Sequence[float], **stock: Any) -> MapTransform:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="align_corners=False is not compatible")  # set by the bundle
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
                f"{where}: has a position in space, but the bundle reads pictures, whose rows and columns MONAI swaps: "
                f'name the reader in preprocessing of {self._file}: "reader": "NibabelReader"'
            )
        return finite(image.float(), where)

    @override
    def _affine(self, geometry: Geometry | None) -> NDArray[np.float64]:
        if geometry is None:
            return np.eye(4)
        if not geometry.is_picture and self._num_dims > 2:
            axis_codes(geometry.affine)  # raises if the direction of an axis is undefined
        return geometry.affine.copy()

    @override
    def restore_whole(
        self, scores: Tensor, case: PreprocessedCase, *, are_probabilities: bool = False
    ) -> tuple[Tensor, Tensor]:
        try:
            return super().restore_whole(scores, case, are_probabilities=are_probabilities)
        except BadInputError as error:
            if len(scores) < 2 or not self._is_sigmoid or self.pipelines["postprocessing"][-1].get("paints"):
                raise
            raise BadInputError(
                f"{self._folder}: its {len(scores)} channels are overlapping regions, which a label map cannot hold: "
                "give the label id that each of them writes, later over earlier: load_bundle(..., paints=(2, 1, 3)) "
                f"({error})"
            ) from error


def _preprocessing_of(config: BundleConfig) -> tuple[list[Entry], str, bool]:
    """Return the steps of preprocessing, the key of the image, and whether pictures are transposed."""
    entries = _steps(config, ("preprocessing", "pre_transforms"))
    loading = next((entry for entry in entries if _name(entry).startswith("LoadImage")), {})
    keys = loading.get("keys", IMAGE)
    names = keys if isinstance(keys, list) else [keys]
    if not names or not all(isinstance(name, str) for name in names):
        raise BadInputError(
            f"{config.file}: preprocessing: LoadImaged has the keys {keys!r}, expected that of the image"
        )
    # By default, these readers swap rows and columns: PIL's with reverse_indexing, ITK's without it.
    by_default = {"PILReader": True, "ITKReader": False, "None": True}
    reader = str(loading.get("reader"))
    swaps = bool(loading) and reader in by_default
    swaps = swaps and loading.get("reverse_indexing", by_default[reader]) is by_default[reader]
    read: Entry = {"_target_": "monai.transforms.LoadImaged", "keys": IMAGE}
    others = [entry for entry in entries if entry is not loading and _name(entry) not in LEFT_OUT]
    if any(entry.get("func") == _CHECKING for entry in others):
        others = [_resampling_of_ours(entry) for entry in others if entry.get("func") != _CHECKING]
    return [read, *(_for_key(entry, names[0], IMAGE) for entry in others)], str(names[0]), swaps


def _postprocessing_of(config: BundleConfig, image_key: str) -> list[Entry]:
    """Return the steps of postprocessing, on the network's output at ``pred``."""
    entries = _steps(config, ("postprocessing", "post_transforms"))
    steps = [_for_key(entry, image_key, IMAGE) for entry in entries if _name(entry) not in LEFT_OUT]
    for step in steps:
        if _name(step) == "Invertd":
            step |= {name: inverting(ids=True)[name] for name in ("transform", "orig_keys")}
    return steps


def _check_way_from_one_channel(config: BundleConfig, steps: Sequence[Entry]) -> None:
    """Check that postprocessing compares the single channel with a threshold."""
    if any(_name(step) == "PaintLabelsd" for step in steps):
        return
    for step in steps:
        for name in ("argmax", "softmax"):
            if step.get(name) not in (None, False):
                raise BadInputError(
                    f"{config.file}: postprocessing: {_name(step)} has {name}, but the network has one output "
                    "channel, which is then always the largest: expected Activationsd with sigmoid and AsDiscreted "
                    "with a threshold"
                )
    if not any(_name(step) == "AsDiscreted" and {"threshold", "rounding"} & step.keys() for step in steps):
        raise BadInputError(
            f"{config.file}: postprocessing: no step converts the network's single output channel to label ids: "
            "expected AsDiscreted with a threshold"
        )


def _resampling_of_ours(entry: Entry) -> Entry:
    if _name(entry) != "Spacingd":
        return entry
    ours = "candy_monai.transforms.ResampleToSpacingd"
    return {"_target_": ours, "keys": entry.get("keys"), "pixdim": entry.get("pixdim"), "mode": "cubic"}


def _steps(config: BundleConfig, names: Sequence[str]) -> list[Entry]:
    """Return the transforms of an entry as plain data, with each ``Compose`` flattened."""
    name = next((name for name in names if name in config), None)
    if name is None:
        raise BadInputError(f"{config.file}: has no {names[0]}, expected a list of transforms")
    return _flat(config, config.resolved(config.content[name], name, keep=REFERENCES, skip=LEFT_OUT), name)


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
        kept.setdefault("labels", None)  # otherwise MONAI warns, with the same result for images in their own space
    return [{**kept, "_target_": known_target(target)}]


def known_target(target: str) -> str:
    """Return the full name of a transform: MONAI's, or ours if an exported bundle has it in ``scripts``."""
    package, name = target.rpartition(".")[0], class_name(target)
    if package.startswith("scripts.") and name in candy_monai.transforms.__all__:
        return f"candy_monai.transforms.{name}"
    if package == "" or package.startswith("monai.transforms."):
        return f"monai.transforms.{name}"
    return target


def _name(entry: Mapping[str, Any]) -> str:
    return class_name(str(entry.get("_target_")))


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
