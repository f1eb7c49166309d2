"""The target ``slicer``: a model for 3D Slicer's extension MONAIAuto3DSeg.

The extension runs its own script, which builds a network of MONAI, preprocesses according to a few settings, and
computes a label map. Models that the script cannot run are refused, with the reason; how its label maps compare with
those of the experiment is measured and written next to the model.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInfererAdapt
from monai.transforms import Compose, Invertd, LoadImaged, NormalizeIntensityd, Orientationd, Spacingd
from torch import Tensor, nn

from candy_monai.data.values import plain_tensor
from candy_monai.errors import BadInputError, RunFailedError
from candy_monai.export.definitions import TARGET
from candy_monai.export.networks import ExportedNetwork
from candy_monai.export.parity import check, compare
from candy_monai.export.usage import write_usage
from candy_monai.files import atomic_write_text
from candy_monai.nn.deep_supervision import main_output
from candy_monai.nn.slicewise import sides_of_volume
from candy_monai.transforms.painting import label_ids

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Plan

MAX_CHANNELS = 4
"""Maximum number of volumes that the script accepts."""

LEAST_DICE = 0.9
"""Minimum Dice of the script's label map with the experiment's, over all foreground: its windows overlap more, its
resampling differs, and it does not crop."""

LABELS = "labels.csv"
_CODES = (
    "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence",
    "SegmentedPropertyTypeModifierCodeSequence",
    "AnatomicRegionSequence",
    "AnatomicRegionModifierSequence",
)
_ANATOMY = ("SCT", "123037004", "Anatomical Structure")
_TISSUE = ("SCT", "85756007", "Tissue")


def write_slicer(network: ExportedNetwork, file: Path, *, on_progress: Callable[[str], None]) -> None:
    """Write a model for MONAIAuto3DSeg with its JSON file, and compare it as the extension runs it."""
    plan = _checked_plan(network, file)
    definition, weights = _volumetric(network)
    modes = [_mode(channel, plan, network) for channel in plan.normalization]
    content = {
        "config": {
            "bundle_root": file.stem,
            "network": definition,
            "roi_size": _window(network),
            "normalize_mode": modes[0],
            "intensity_bounds": [0.0, 1.0],
            "orientation_ras": True,
            "crop_foreground": False,
            "resample_resolution": list(plan.spacing_mm or ()),
            "extra_modalities": {f"image{number}": mode for number, mode in enumerate(modes[1:], start=2)},
            "sigmoid": plan.num_classes == 1,
        },
        "state_dict": weights,
        "epoch": 0,
        "best_metric": 0.0,
    }
    torch.save(content, file)
    atomic_write_text(file.with_name(LABELS), _labels(plan))
    on_progress("Comparing it with the experiment on real cases, read as the extension reads it")
    config, model = read_model(file)

    def run(images: Tensor) -> Tensor:
        flat = network.slice_axis
        given = images if flat is None else images.unsqueeze(2 + flat)
        with torch.no_grad():
            scores = main_output(model(given), num_dims=3)
        return scores if flat is None else scores.squeeze(2 + flat)

    comparisons = compare(network, run, network.samples(network.sizes))
    check(comparisons, name="slicer", on_progress=on_progress)
    agreement = {case.case_id: _agreement(network, case.files, config, model) for case in network.cases}
    for case_id, dice in agreement.items():
        on_progress(f"{case_id}: the label maps of the extension and of candy-monai predict agree by Dice {dice:.3f}")
        if not dice >= LEAST_DICE:
            raise RunFailedError(
                f"slicer: on {case_id} the extension's label map agrees with that of candy-monai predict only by a "
                f"Dice of {dice:.3f} (expected at least {LEAST_DICE}), and the model was discarded: the extension's "
                "windows and preprocessing differ from the plan's, which matters less for a network that was trained "
                "for longer; --to monai-bundle uses those of the plan"
            )
    write_usage(
        network,
        file,
        target="slicer",
        is_dynamic=(True, False, *network.free_axes),
        comparisons=comparisons,
        config={name: value for name, value in config.items() if name != "network"},
        agreement_of_label_maps={"dice_of_the_foreground": agreement, "at_least": LEAST_DICE},
    )


def read_model(file: Path) -> tuple[dict[str, Any], nn.Module]:
    """Return a model's settings and network, loaded as by the extension's script."""
    content = torch.load(file, map_location="cpu", weights_only=True)
    model: nn.Module = ConfigParser(content["config"]["network"]).get_parsed_content()
    model.load_state_dict(content["state_dict"], strict=True)
    return content["config"], model.eval()


def preprocessing(config: Mapping[str, Any]) -> Compose:
    """Return the script's preprocessing of one or several files, one channel each, under the key ``image``."""
    spacing = config["resample_resolution"]
    margins = {"min_pixdim": [0.75 * step for step in spacing], "max_pixdim": [1.25 * step for step in spacing]}
    normalized = [config["normalize_mode"], *config["extra_modalities"].values()]
    steps: list[Callable[..., Any]] = [LoadImaged("image", ensure_channel_first=True)]
    if set(normalized) == {"meanstd"}:
        steps.append(NormalizeIntensityd("image", nonzero=True, channel_wise=True))
    steps += [
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=spacing, mode="bilinear", dtype=torch.float32, **margins),
    ]
    return Compose(steps)


def _checked_plan(network: ExportedNetwork, file: Path) -> Plan:
    """Return the plan, if the script supports it."""
    predictor = network.predictor
    plan, where = predictor.plan, predictor.folder
    if file.name != "model.pt":
        raise BadInputError(f"{file.name}: the extension looks for model.pt in a folder of its own: give a folder")
    if plan is None:
        raise BadInputError(f"{where}: trained without a plan, from which the settings for Slicer are derived")
    no: str | None = None
    if plan.spacing_mm is None:
        no = "pictures, and the extension reads volumes"
    elif plan.regions:
        no = "overlapping regions, of which the extension shows the first one only"
    elif plan.orientation != ("R", "A", "S"):
        no = (
            f"volumes turned to {''.join(plan.orientation or ())}, and the extension turns them to RAS: train with "
            "--set orientation=R,A,S"
        )
    elif len(plan.channel_names) > MAX_CHANNELS:
        no = f"{len(plan.channel_names)} channels, and the extension takes at most {MAX_CHANNELS} volumes"
    elif network.definition is None:
        no = (
            f"a network of class {type(network.plain_network).__name__}, and the extension builds only MONAI's networks"
        )
    elif network.slice_axis is not None and network.definition[TARGET] != "monai.networks.nets.DynUNet":
        no = (
            f"slices by a 2-D {network.definition[TARGET].rpartition('.')[2]}, and the extension takes 3-D networks "
            "(a DynUNet is converted)"
        )
    if no is not None:
        raise BadInputError(f"{where}: cannot be exported to slicer: it predicts {no}")
    return plan


def _window(network: ExportedNetwork) -> list[int]:
    """Return the window of the volumes, which is one slice for a 2-D network."""
    if (window := network.inference_window) is None:
        named = network.predictor.describe_models()[0]["inferer"]
        raise BadInputError(
            f"{network.predictor.folder}: cannot be exported to slicer: its images were validated by the inferer "
            f"{named or 'of whole images'}, and the extension runs windows"
        )
    return list(sides_of_volume(window, network.slice_axis))


def _mode(channel: Any, plan: Plan, network: ExportedNetwork) -> str:
    """Return the script's name for a normalisation."""
    modes = {"zscore": "meanstd", "nonorm": "none"}
    schemes = {entry.scheme for entry in plan.normalization}
    if channel.scheme not in modes or len(schemes) > 1:
        raise BadInputError(
            f"{network.predictor.folder}: cannot be exported to slicer: its channels are normalised by "
            f"{', '.join(sorted(schemes))}, and of these the extension knows zscore and nonorm, one for all channels"
        )
    return modes[channel.scheme]


def _volumetric(network: ExportedNetwork) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a network's definition and weights, without the heads of deep supervision; a 2-D one is converted to 3-D.

    A kernel that is flat along an axis is a 2-D kernel, so with a window of one slice the slices of a volume are
    processed one by one.
    """
    assert network.definition is not None
    definition, axis = dict(network.definition), network.slice_axis
    if definition.get("deep_supervision"):
        definition["deep_supervision"] = False
    if axis is not None:
        definition["spatial_dims"] = 3
        for name in ("kernel_size", "strides", "upsample_kernel_size"):
            definition[name] = [_with_flat_axis(level, axis) for level in definition[name]]
    expected = ConfigParser(definition).get_parsed_content().state_dict()
    weights = dict(network.plain_network.state_dict())
    kept = {name: _reshaped(weights[name], expected[name]) for name in expected if name in weights}
    if missing := expected.keys() - kept.keys():
        raise BadInputError(
            f"{network.predictor.folder}: cannot be exported to slicer: without deep supervision the network has other "
            f"weights, such as {min(missing)}"
        )
    return definition, kept


def _reshaped(weight: Tensor, expected: Tensor) -> Tensor:
    same_size = weight.shape != expected.shape and weight.numel() == expected.numel()
    return weight.detach().reshape(expected.shape) if same_size else weight.detach()


def _with_flat_axis(extents: Sequence[int] | int, axis: int) -> list[int]:
    return list(sides_of_volume([extents, extents] if isinstance(extents, int) else extents, axis))


def _labels(plan: Plan) -> str:
    """Return the table of segments. The experiment has no terminology codes, so each segment is a tissue."""
    names = list(plan.class_names)[-1:] if plan.num_classes == 1 else list(plan.class_names)[1:]
    parts = ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")
    codes = [*_ANATOMY, *_TISSUE, *[""] * (3 * (len(_CODES) - 2))]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["LabelValue", "Name", *(f"{code}.{part}" for code in _CODES for part in parts)])
    table.writerows([number, name, *codes] for number, name in enumerate(names, start=1))
    return text.getvalue()


def _agreement(network: ExportedNetwork, files: Sequence[Path], config: Mapping[str, Any], model: nn.Module) -> float:
    """Return the Dice of the script's label map with the experiment's, over all foreground."""
    predictor, transforms = network.predictor, preprocessing(config)
    case = transforms({"image": [str(file) for file in files]})
    inferer = SlidingWindowInfererAdapt(roi_size=config["roi_size"], sw_batch_size=1, overlap=0.625, mode="gaussian")
    with torch.no_grad():
        logits = inferer(plain_tensor(case["image"])[None], lambda windows: main_output(model(windows), num_dims=3))[0]
    labels = label_ids(logits)[None]
    made = Invertd("pred", transforms, "image", nearest_interp=True)({**case, "pred": MetaTensor(labels)})["pred"]
    found, expected = plain_tensor(made), plain_tensor(predictor.predict([str(file) for file in files]))
    both = int(((found == expected) & (expected > 0)).sum())
    foreground = int((found > 0).sum()) + int((expected > 0).sum())
    return 2 * both / foreground if foreground else 1.0
