"""The predictor of a trained experiment: from an image to label ids in the image's own geometry."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import nn
from typing_extensions import override

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.pipelines.building import read_saved_transforms
from candy_monai.data.pipelines.preprocessing import PreprocessedCase, Preprocessor
from candy_monai.data.planning.files import plan_of
from candy_monai.errors import BadInputError, ExperimentError, SettingsError
from candy_monai.experiment.checkpoints import BEST, LATEST, load_weights
from candy_monai.experiment.description import DESCRIPTION, example_shape, read_description
from candy_monai.experiment.state import weight_file
from candy_monai.files import digest_of_file
from candy_monai.inference.buffers import MemoryEstimate
from candy_monai.inference.inferer_descriptions import inferer_from_description
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.prediction import NoPreprocessing
from candy_monai.inference.quality import QualityModel
from candy_monai.network import plain_network
from candy_monai.nn.padding import padding_from_dict
from candy_monai.nn.previous_stage import WithPreviousStage, build_for_inputs
from candy_monai.nn.slicewise import Slicewise, padding_of_slices
from candy_monai.registry import find_bundle

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Plan

CHECKPOINTS = {"best": BEST, "latest": LATEST}

PREVIOUS_STAGE = "previous"
"""The folder, in the experiment of a cascade's second stage, of the experiment of its first stage."""


class Predictor(NetworkPredictor):
    """Predicts with a trained experiment, with the same preprocessing and inference as in its validation.

    Everything is read from the folder. Only the network of a custom trainer must be given, as ``network`` or by
    overriding ``build_network``: its class is never imported by a name in a file.

    Args:
        experiment: The experiment folder.
        network: The network to load the weights into, for trainers without a bundle.
        padding: The padding module, for trainers with a custom one.
        inferer: The inference on whole images, any inferer of MONAI; None for that of the validation.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the folder.
        device: The device for prediction.
        mirror: Average over the mirror images along the plan's ``mirror_axes``, or along the given axes.
        largest_component: Keep only the largest connected part of each class.
        memory: Bytes that a case may use in addition to the process's memory before; None for no limit. Data that do
            not fit are kept in temporary files; if that is not enough, the case is refused.
        channels: The channels of the files or images to use, in the run's order: ``(1, 2)`` takes files that end in
            ``_0001`` and ``_0002``. None for 0, 1, 2 and so on; any other channels are refused. Empty if numbers at the
            ends of names belong to the names of the cases.
        trust: Build any callable that the experiment's pipelines name, instead of only known transforms.

    Attributes:
        description: The contents of ``experiment.json``.
        plan: The plan of the preprocessing; None without one.
        num_classes: The number of classes with background, 1 for one logit; None if the trainer did not set it.
        model: The network with the chosen weights.
        previous: The predictor of the first stage of a cascade; None without one.
        weights_file: The file of the weights.

    Raises:
        ExperimentError: If the folder is not an experiment, or weights and network do not match.
        SettingsError: If ``mirror`` contains no axes of the image, or needs a plan that is missing; or if ``memory`` is
            not a number of bytes, or the number of ``channels`` is not that of the run.
    """

    def __init__(
        self,
        experiment: PathLike,
        *,
        network: nn.Module | None = None,
        padding: nn.Module | None = None,
        inferer: Inferer | None = None,
        checkpoint: str = "best",
        device: Device = "cpu",
        mirror: bool | Sequence[int] = False,
        largest_component: bool = False,
        memory: int | None = None,
        channels: Sequence[int] | None = None,
        trust: bool = False,
    ) -> None:
        self._folder = Path(experiment)
        _refuse_models_from_elsewhere(self._folder)
        self.description = described = read_description(self._folder)
        where = self._folder / DESCRIPTION
        plan = None if described.plan is None else plan_of(described.plan, where)
        own = read_saved_transforms(described.pipelines, where, trust=trust)
        paints = [region["paints"] for region in described.regions or ()]
        names = described.dataset.channel_names if plan is None and described.dataset is not None else None
        super().__init__(
            experiment,
            preprocessor=NoPreprocessing(paints) if plan is None else Preprocessor(plan, own=own),
            inferer=self._find_inferer(plan) if inferer is None else inferer,
            example_shape=example_shape(self._folder, described),
            channel_names=(names or ()) if plan is None else plan.channel_names,
            num_classes=described.num_classes,
            plan=plan,
            device=device,
            mirror=mirror,
            largest_component=largest_component,
            memory=memory,
            channels=channels,
            trust=trust,
        )
        self.previous: Predictor | None = None
        if plan is not None and plan.num_previous:
            # Without mirror images, as in the predictions for the training cases.
            self.previous = experiment_predictor(
                self._folder / PREVIOUS_STAGE, device=device, memory=memory, channels=channels, trust=trust
            )
        self._padding = padding
        self.weights_file = weight_file(self._folder, CHECKPOINTS.get(checkpoint, checkpoint))
        self._load(network, self.weights_file)
        self.quality = QualityModel.load(self._folder, self.weights_file)
        self._unknown_transforms = described.unknown_transforms()

    @override
    def _preprocessed(self, case_id: str, image: MetaTensor) -> PreprocessedCase:
        if self.previous is None:
            return super()._preprocessed(case_id, image)
        first = self.previous.run(self.previous.prepare(case_id, image))
        return self.preprocessor.apply(image, previous=first.labels)

    @override
    def _limit_first_stage(self, memory: int | None) -> None:
        if self.previous is not None:
            self.previous.memory = memory

    @override
    def estimate(self, geometry: Geometry) -> MemoryEstimate | None:
        needed = super().estimate(geometry)
        before = None if self.previous is None else self.previous.estimate(geometry)
        return needed if needed is None or before is None else needed.or_more(before)

    @override
    def _warn_of_files(self) -> None:
        if self._unknown_transforms:
            names, self._unknown_transforms = ", ".join(self._unknown_transforms), ()
            warnings.warn(
                f"{self._folder}: in validation, images were transformed by {names} of their dataset, which this "
                "predictor cannot apply to files: predict images that are transformed in the same way",
                stacklevel=2,
            )

    def build_network(self, example_shape: Shape) -> nn.Module:
        """Build the network for the weights; by default the bundle's.

        Args:
            example_shape: ``(C, *spatial)`` of the example for which the trainer built its network.
        """
        bundle = self.description.bundle
        if bundle is None:
            raise ExperimentError(
                f"{self._folder}: trained by {self.description.trainer}, which belongs to no bundle: pass "
                "Predictor(..., network=...) or override build_network"
            )
        arguments = self.network_arguments()
        try:
            return find_bundle(bundle).build_network(**arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # networks raise different errors for wrong arguments
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ExperimentError(
                f"{self._folder / DESCRIPTION}: bundle {bundle!r} cannot build a network from network.arguments "
                f"({first})"
            ) from error

    def build_padding_module(self) -> nn.Module | None:
        """Build the padding module that the trainer used, from ``experiment.json``."""
        try:
            return padding_from_dict(self.description.padding)
        except SettingsError as error:
            raise ExperimentError(
                f"{self._folder / DESCRIPTION}: {error}; if the trainer had its own padding module, pass "
                "Predictor(..., padding=...) or override build_padding_module"
            ) from error

    def network_arguments(self) -> dict[str, Any]:
        """Return the result of the trainer's ``network_arguments``, from ``experiment.json``."""
        arguments = self.description.network.arguments
        if arguments is None:
            raise ExperimentError(f"{self._folder}: experiment.json contains no arguments to build the network from")
        return arguments

    @override
    def describe_models(self) -> list[dict[str, object]]:
        described, (how,) = self.description, super().describe_models()
        return [
            {
                "experiment": described.id,
                "trainer": described.trainer,
                "bundle": described.bundle,
                "weights": self.weights_file.name,
                "weights_sha256": digest_of_file(self.weights_file),
                **how,
                "inferer": how["inferer"] or described.inferer,
                **({} if self.previous is None else {"previous": self.previous.describe_models()}),
            }
        ]

    def _load(self, network: nn.Module | None, weights_file: Path) -> None:
        axis = self.description.network.slice_axis
        num_previous = 0 if self.plan is None else self.plan.num_previous
        if network is None:
            network = build_for_inputs(
                self.build_network, self._example_shape, slice_axis=axis, num_previous=num_previous
            )
        elif axis is not None and not isinstance(plain_network(network), Slicewise):
            network = Slicewise(network, axis)
        elif num_previous and not isinstance(plain_network(network), WithPreviousStage):
            network = WithPreviousStage(network, num_previous)
        weights = load_weights(weights_file)
        try:
            plain_network(network).load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
            name = type(network).__name__
            raise ExperimentError(
                f"{weights_file}: the weights do not match the network {name}: {first[:200]}"
            ) from error
        padding = self._padding if self._padding is not None else self.build_padding_module()
        self._run_with(network, padding=padding_of_slices(padding, axis), amp=self.description.setting("amp"))

    def _find_inferer(self, plan: Plan | None) -> Inferer | None:
        try:
            return inferer_from_description(self.description.inferer, plan)
        except SettingsError as error:
            raise ExperimentError(
                f"{self._folder}: validated with a custom inferer, which is not stored: pass it as Predictor(..., "
                "inferer=...)"
            ) from error


def _refuse_models_from_elsewhere(folder: Path) -> None:
    """Raise ExperimentError if a folder holds a model of another tool, with the way to open it."""
    if (folder / DESCRIPTION).is_file():
        return
    kinds = {
        "a MONAI Bundle": folder.glob("configs/inference.*"),
        "a trained nnU-Net": (place for name in ("plans.json", "*__*__*/plans.json") for place in folder.glob(name)),
    }
    if folder.name.startswith("fold_"):
        kinds["a fold of a trained nnU-Net"] = folder.parent.glob("plans.json")
    for kind, files in kinds.items():
        if any(files):
            raise ExperimentError(
                f"{folder}: is {kind}, but Predictor opens only experiments of candy_monai (there is no "
                f"{DESCRIPTION}): use candy_monai.load_predictor(folder), which opens any of these"
            )


def experiment_predictor(
    experiment: PathLike,
    *,
    network: nn.Module | None = None,
    checkpoint: str = "best",
    device: Device = "cpu",
    **options: Any,
) -> Predictor:
    """Return the predictor of an experiment: that of its bundle if it has one, else a plain `Predictor`.

    Arguments are those of `Predictor`.

    Raises:
        ExperimentError: If the folder is not an experiment, or its network cannot be rebuilt.
    """
    predictor: type[object] = Predictor
    if (bundle := read_description(experiment).bundle) is not None:
        try:
            predictor = find_bundle(bundle).predictor or Predictor
        except BadInputError as error:
            raise ExperimentError(f"{Path(experiment) / DESCRIPTION}: {error}") from error
    if not issubclass(predictor, Predictor):
        raise ExperimentError(f"the predictor of bundle {bundle!r} is not a Predictor")
    return predictor(experiment, network=network, checkpoint=checkpoint, device=device, **options)
