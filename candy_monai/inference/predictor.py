"""From an experiment folder and an image to a label map in the image's own geometry. Trains and scores nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.data.io import image_suffix, load_image, save_image
from candy_monai.data.planning import Plan
from candy_monai.data.preprocessing import Preprocessor
from candy_monai.device import HasDevice
from candy_monai.errors import BadInputError, ExperimentError, SettingsError
from candy_monai.experiment.checkpoints import BEST, LATEST, load_weights
from candy_monai.experiment.folder import read_description
from candy_monai.experiment.state import weight_file
from candy_monai.files import check_writable
from candy_monai.inference.inferers import build_inferer, inferer_from_dict
from candy_monai.inference.inputs import find_inputs
from candy_monai.metrics.overlap import labels_from_logits
from candy_monai.network import NetworkAdapter, choose_precision
from candy_monai.nn.deep_supervision import main_output
from candy_monai.nn.padding import padding_from_dict
from candy_monai.registry import find_bundle

CHECKPOINTS = {"best": BEST, "latest": LATEST}

Input = PathLike | Sequence[PathLike] | Tensor


class Predictor(HasDevice):
    """Predicts with a trained experiment, by the same preprocessing and inference as its validation.

    Everything comes from the folder. Only the network of a trainer of your own must be given, as ``network`` or by
    overriding ``build_network``: its class is never imported by a name that stands in a file.

    Args:
        experiment: The experiment folder.
        network: The network to load the weights into, for trainers that belong to no bundle.
        padding: The padding module, for trainers that padded with one of their own.
        inferer: How whole images are run through the network, for trainers that used one of their own.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the folder.
        device: Where to predict.

    Attributes:
        description: What ``experiment.json`` says.
        plan: The plan that the data were prepared by; None without one.
        num_classes: Classes, background included, 1 for one logit; None if the trainer did not say.
        model: The network with the experiment's weights.

    Raises:
        ExperimentError: If the folder is no experiment, or weights and network do not fit.
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
    ) -> None:
        super().__init__(device)
        self._folder = Path(experiment)
        self.description = read_description(self._folder)
        plan, num_classes = self.description.get("plan"), self.description.get("num_classes")
        self.plan = Plan.from_dict(plan) if isinstance(plan, dict) else None
        self.num_classes = num_classes if isinstance(num_classes, int) else None
        self._inferer = self._find_inferer() if inferer is None else inferer
        self._preprocessor = None if self.plan is None else Preprocessor(self.plan)
        self._padding = padding
        self.model = self._load(network, weight_file(self._folder, CHECKPOINTS.get(checkpoint, checkpoint)))

    def build_network(self, example_shape: Shape) -> nn.Module:
        """Build the network that the weights belong to; by default the bundle does.

        Args:
            example_shape: ``(C, *spatial)`` of the example that the trainer built its network for.
        """
        bundle = self.description.get("bundle")
        if not isinstance(bundle, str):
            trainer = self.description.get("trainer")
            raise ExperimentError(
                f"{self._folder}: trained by {trainer}, which belongs to no bundle: pass Predictor(..., network=...) "
                "or override build_network"
            )
        return find_bundle(bundle).build_network(**self.network_arguments())

    def build_padding_module(self) -> nn.Module | None:
        """Build what the trainer padded with, from ``experiment.json``."""
        description = self.description.get("padding")
        try:
            return padding_from_dict(description if isinstance(description, dict) else None)
        except SettingsError as error:
            raise ExperimentError(
                f"{self._folder}: trained with a padding module of its own: pass Predictor(..., padding=...) "
                "or override build_padding_module"
            ) from error

    def network_arguments(self) -> dict[str, Any]:
        """Return what the trainer's ``network_arguments`` said, from ``experiment.json``."""
        network = self.description.get("network")
        arguments = network.get("arguments") if isinstance(network, dict) else None
        if not isinstance(arguments, dict):
            raise ExperimentError(f"{self._folder}: experiment.json holds no arguments to build the network from")
        return arguments

    def predict(self, image: Input) -> MetaTensor:
        """Predict the label map of one image.

        Args:
            image: A file; the files of one case, a channel each; or a tensor ``(C, *spatial)``, with its affine when it
                is a ``MetaTensor``.

        Returns:
            Label ids ``(1, *spatial)`` on the image's own grid, with its affine.

        Raises:
            BadInputError: If the image cannot be read or has another number of channels than the network expects.
        """
        loaded = self._loaded(image)
        if self._preprocessor is None:
            labels = self._labels(self.logits(loaded.as_tensor()))
        else:
            case = self._preprocessor.apply(loaded)
            labels = self._preprocessor.restore_labels(self.logits(case.image).cpu(), case.geometry)
        return MetaTensor(labels.cpu(), meta=dict(loaded.meta))

    def logits(self, image: Tensor) -> Tensor:
        """Run the network on one preprocessed image ``(C, *spatial)`` and return its logits ``(classes, *spatial)``."""

        def network(windows: Tensor) -> Tensor:
            return main_output(self.model(windows), num_dims=windows.ndim - 2)

        with torch.inference_mode():
            images = image[None].to(self.device(), torch.float32)
            result: Tensor = network(images) if self._inferer is None else self._inferer(images, network)
            return result[0]

    def predict_to_files(
        self, source: PathLike, target: PathLike, *, on_case: Callable[[int, int, str], None] | None = None
    ) -> list[Path]:
        """Predict a file or every case of a folder, and write each label map in its image's geometry and format.

        Args:
            source: An image, or a folder of images; ``{case}_{CCCC}`` files of one case belong together.
            target: The folder for the label maps, ``{case}{suffix}``; made when missing.
            on_case: Told the number of cases done, of all cases, and the case's id.

        Returns:
            The files written.

        Raises:
            BadInputError: If there is nothing to predict or cases lack channels; nothing was written then.
        """
        cases = find_inputs(source, num_channels=self.num_channels)
        paths = [Path(target) / f"{case.case_id}{_written_suffix(case.files[0])}" for case in cases]
        images = {file.resolve() for case in cases for file in case.files}
        if any(path.resolve() in images for path in paths) or Path(target).resolve() == Path(source).resolve():
            raise BadInputError(f"{target}: holds the images to predict; choose another folder for the label maps")
        check_writable(target)
        Path(target).mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for done, (case, path) in enumerate(zip(cases, paths, strict=True), start=1):
            save_image(self.predict(case.files), path, like=case.files[0])
            written.append(path)
            if on_case is not None:
                on_case(done, len(cases), case.case_id)
        return written

    @property
    def num_channels(self) -> int:
        """Channels that the network expects."""
        network = self.description.get("network")
        shape = network.get("example_shape") if isinstance(network, dict) else None
        if not isinstance(shape, list) or not shape:
            raise ExperimentError(f"{self._folder}: experiment.json does not say the shape the network was built for")
        return int(shape[0])

    def _loaded(self, image: Input) -> MetaTensor:
        if isinstance(image, Tensor):
            loaded = image if isinstance(image, MetaTensor) else MetaTensor(image)
        elif isinstance(image, str) or not isinstance(image, Sequence):
            loaded = load_image(image)
        else:
            channels = [load_image(file) for file in image]
            shapes = {tuple(channel.shape[1:]) for channel in channels}
            if len(shapes) > 1:
                raise BadInputError(f"{image[0]}: the channels of this case have different shapes: {sorted(shapes)}")
            loaded = MetaTensor(
                torch.cat([channel.as_tensor() for channel in channels]),
                meta=dict(channels[0].meta),
            )
        if loaded.shape[0] != self.num_channels:
            name = loaded.meta.get("filename_or_obj", "the image")
            raise BadInputError(
                f"{name}: has {loaded.shape[0]} channels, the network expects {self.num_channels}: one file with all "
                "of them, or files that end in _0000, _0001 and so on beside each other"
            )
        return loaded

    def _labels(self, logits: Tensor) -> Tensor:
        num_classes = logits.shape[0] if self.num_classes is None else self.num_classes
        return labels_from_logits(logits[None], num_classes=num_classes)[0]

    def _load(self, network: nn.Module | None, weights_file: Path) -> nn.Module:
        if network is None:
            network = self.build_network(self._example_shape())
        weights = load_weights(weights_file)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
            name = type(network).__name__
            raise ExperimentError(f"{weights_file}: does not fit the network {name}: {first[:200]}") from error
        padding = self._padding if self._padding is not None else self.build_padding_module()
        settings = self.description.get("settings")
        stored = settings.get("amp") if isinstance(settings, dict) else None
        amp = choose_precision(stored, self.device())
        if amp == "fp16" and self.device().type == "cpu":
            amp = None  # CPUs are slow in half precision
        return NetworkAdapter(network, padding=padding, amp=amp).to(self.device()).eval()

    def _find_inferer(self) -> Inferer | None:
        kind = self.description.get("inferer")
        if kind == "plan" and self.plan is not None:
            return build_inferer(self.plan)
        if isinstance(kind, dict):
            return inferer_from_dict(kind)
        if kind is not None:
            raise ExperimentError(
                f"{self._folder}: validated with an inferer of its own: pass it as Predictor(..., inferer=...)"
            )
        return None

    def _example_shape(self) -> Shape:
        network = self.description.get("network")
        shape = network.get("example_shape") if isinstance(network, dict) else None
        return tuple(shape) if isinstance(shape, list) else ()


def load_predictor(
    experiment: PathLike, *, network: nn.Module | None = None, checkpoint: str = "best", device: Device = "cpu"
) -> Predictor:
    """Return the predictor of an experiment: its bundle's where it belongs to one, else a plain `Predictor`.

    Args:
        experiment: The experiment folder.
        network: The network to load the weights into, for trainers that belong to no bundle.
        checkpoint: ``best``, ``latest``, or the name of a weight file in the folder.
        device: Where to predict.

    Raises:
        ExperimentError: If the folder is no experiment, or its network cannot be built again.
    """
    bundle = read_description(experiment).get("bundle")
    predictor = find_bundle(bundle).predictor if isinstance(bundle, str) else Predictor
    if not issubclass(predictor, Predictor):
        raise ExperimentError(f"the predictor of bundle {bundle!r} is not a Predictor")
    return predictor(experiment, network=network, checkpoint=checkpoint, device=device)


def _written_suffix(image: Path) -> str:
    """Return the suffix for the label map of an image: its own where a label map can be written so in one file."""
    suffix = image_suffix(image)
    return {".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha", ".nhdr": ".nrrd"}.get(suffix, suffix)
