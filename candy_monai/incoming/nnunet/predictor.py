"""Predict with a trained nnU-Net as nnU-Net does, in bounded memory."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.data.pipelines.preprocessing import Preprocessor
from candy_monai.data.planning.plan import Plan
from candy_monai.errors import ExperimentError
from candy_monai.files import digest_of_file
from candy_monai.incoming.nnunet.folder import NNUNetCheckpoint, find_nnunet_folder, read_checkpoint
from candy_monai.incoming.nnunet.network import MeanOfFolds, build_network, load_weights_into
from candy_monai.incoming.nnunet.plans import OpenedPlans, open_plans
from candy_monai.inference.buffers import ScoreFunction, Tile
from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.tiles import Slices, WindowGrid
from candy_monai.nn.slicewise import Slicewise

if TYPE_CHECKING:
    from candy_monai.nn.deep_supervision import NetworkOutput

_STEP = 0.5  # of a window
_SIGMA = 0.125
_GREATEST_WEIGHT = 10.0
_KEPT_IN = torch.float16


class NNUNetPredictor(NetworkPredictor):
    """Predicts with a trained nnU-Net v2, with its preprocessing, windows and export.

    The folds of a folder are averaged as by nnU-Net, by the mean of their logits.

    Args:
        folder: The folder ``TRAINER__PLANS__CONFIGURATION``; that of one of its folds; or that of the dataset, if it
            contains only one configuration.
        checkpoint: ``best`` for ``checkpoint_final.pth``, which nnU-Net predicts with, or ``checkpoint_best.pth`` if no
            fold has finished; ``latest`` for ``checkpoint_latest.pth``; or the name of a file.
        device: The device for prediction.
        mirror: Average over the mirror images along the axes that training mirrored, as nnU-Net does without
            ``--disable_tta``; or along the axes given, which are those of the image.
        largest_component: As for `Predictor`, like the rest.
        memory: As for `Predictor`.
        channels: As for `Predictor`.
        trust: Has no effect: nothing in the folder is executed.

    Attributes:
        checkpoints: The weight files, one per fold.
        trainer: The name of nnU-Net's trainer.
        configuration: The name of the configuration.

    Raises:
        ExperimentError: If the folder is not a trained nnU-Net v2, or requires something that is not reproduced here.
        MissingExtraError: If ``dynamic-network-architectures`` is not installed.
    """

    plan: Plan

    def __init__(
        self,
        folder: PathLike,
        *,
        checkpoint: str = "best",
        device: Device = "cpu",
        mirror: bool | Sequence[int] = False,
        largest_component: bool = False,
        memory: int | None = None,
        channels: Sequence[int] | None = None,
        trust: bool = False,
    ) -> None:
        opened, checkpoints = _opened(folder, checkpoint)
        plan = opened.plan
        self.checkpoints = tuple(each.path for each in checkpoints)
        self.trainer, self.configuration = checkpoints[0].trainer, checkpoints[0].configuration
        super().__init__(
            folder,
            preprocessor=NNUNetPreprocessor(plan, own=opened.own),
            inferer=NNUNetInferer(plan.patch_shape, rounds_sums=len(checkpoints) == 1),
            example_shape=(len(plan.channel_names), *plan.patch_shape),
            channel_names=plan.channel_names,
            num_classes=plan.num_classes,
            plan=plan,
            device=device,
            mirror=mirror,
            largest_component=largest_component,
            memory=memory,
            channels=channels,
            trust=trust,
        )
        networks = [_network(opened, each) for each in checkpoints]
        network = networks[0] if len(networks) == 1 else MeanOfFolds(networks)
        # Always the precision of the weights; on a GPU nnU-Net itself runs in float16.
        self._run_with(network if plan.slice_axis is None else Slicewise(network, plan.slice_axis))

    @cached_property
    @override
    def _network(self) -> ScoreFunction:
        network, num_folds = super()._network, len(self.checkpoints)
        return network if num_folds == 1 else mean_of_rounded_folds(network, num_folds, self.plan.patch_shape)

    @override
    def describe_models(self) -> list[dict[str, object]]:
        said = {"trainer": self.trainer, "configuration": self.configuration}
        folds = [
            {"weights": f"{path.parent.name}/{path.name}", "weights_sha256": digest_of_file(path)}
            for path in self.checkpoints
        ]
        return [{**said, "folds": folds, **how} for how in super().describe_models()]

    @property
    def summary(self) -> str:
        """A description of the model in one line: configuration, trainer, checkpoint and folds."""
        folds = ", ".join(path.parent.name for path in self.checkpoints)
        return f"nnU-Net's {self.configuration} by {self.trainer}, {self.checkpoints[0].name} of {folds}"


def mean_of_rounded_folds(network: ScoreFunction, num_folds: int, window: Shape) -> ScoreFunction:
    """Return a function that runs windows with each fold and rounds each result separately.

    nnU-Net sums each fold's weighted logits in half precision. Near the corners of a window the weights are so small
    that this leaves steps of up to 1 between logits, and the mean of rounded folds differs from the rounded mean.
    """

    def mean_of_rounded(windows: Tensor) -> Tensor:
        weights = _gaussian(window, windows.device)
        total: Tensor | None = None
        for fold in range(num_folds):
            weighted = (network(windows, fold=fold) * weights).to(_KEPT_IN)
            total = weighted.float() if total is None else total.add_(weighted)
        assert total is not None
        return total.div_(weights * num_folds)

    return mean_of_rounded


def load_nnunet_network(folder: PathLike, *, checkpoint: str = "best") -> tuple[nn.Module, Plan]:
    """Return the network of a trained nnU-Net, for images with their axes as in the file, and its plan.

    Arguments are those of `NNUNetPredictor`; of several folds the first one's weights are used. The network is 2-D if
    the plan has a ``slice_axis``.
    """
    opened, checkpoints = _opened(folder, checkpoint)
    return _network(opened, checkpoints[0]), opened.plan


class NNUNetPreprocessor(Preprocessor):
    """Preprocesses according to a plan, and rounds logits resampled to the grid of the file as nnU-Net does."""

    _logits_rounded_to = _KEPT_IN


class NNUNetInferer(WindowInferer):
    """Runs images in nnU-Net's windows: spaced evenly over the image, blended with its Gaussian weights.

    nnU-Net stores logits in half precision, which decides where two classes are nearly equal; so they are rounded.

    Args:
        roi_size: The window.
        sw_batch_size: Number of windows in one call of the network.
        rounds_sums: Whether sums of logits are also rounded after each window, as for a single fold.
    """

    def __init__(self, roi_size: Sequence[int], sw_batch_size: int | None = None, *, rounds_sums: bool = True) -> None:
        super().__init__(roi_size, sw_batch_size, overlap=1 - _STEP, sigma_scale=_SIGMA)
        self.window: Shape = tuple(roi_size)
        self._sums_rounded_to = _KEPT_IN if rounds_sums else None

    @override
    def tiles(
        self, image: Tensor, network: Callable[[Tensor], NetworkOutput], *, in_layers: bool = False
    ) -> Iterator[Tile]:
        for tile in super().tiles(image, network, in_layers=in_layers):
            assert tile.weights is not None
            weights = tile.weights().to(_KEPT_IN).float()
            scores = tile.sums.copy_(tile.sums.div_(weights).to(_KEPT_IN))
            yield Tile(place=tile.place, sums=scores)

    @override
    def grid(self, size: Sequence[int]) -> WindowGrid:
        assert isinstance(self.roi_size, Sequence)
        return NNUNetGrid(size=tuple(size), window=tuple(self.roi_size), overlap=self.overlap)


@dataclass(frozen=True)
class NNUNetGrid(WindowGrid):
    """The windows of nnU-Net over images of one size."""

    @cached_property
    def slices(self) -> tuple[Slices, ...]:
        """The place of each window in the padded image: as few as overlap by half, at even distances."""
        starts = []
        for extent, side in zip(self.padded_size, self.window, strict=True):
            last, count = extent - side, math.ceil((extent - side) / (side * _STEP)) + 1
            starts.append([round(last / max(count - 1, 1) * index) for index in range(count)])
        corners = itertools.product(*starts)
        return tuple(
            tuple(slice(start, start + side) for start, side in zip(corner, self.window, strict=True))
            for corner in corners
        )

    @override
    def importance(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        return _gaussian(self.window, device).to(dtype)


@lru_cache(maxsize=4)
def _gaussian(window: Shape, device: torch.device) -> Tensor:
    """Return nnU-Net's weights, rounded to half precision."""
    along = []
    for side in window:
        impulse = np.zeros(side)
        impulse[side // 2] = 1.0
        along.append(scipy.ndimage.gaussian_filter(impulse, side * _SIGMA, mode="constant") if side > 1 else impulse)
    weights = functools.reduce(np.multiply.outer, along)
    half = torch.from_numpy(weights / (weights.max() / _GREATEST_WEIGHT)).half().float()
    return half.masked_fill_(half == 0, float(half[half > 0].min())).to(device)


def _opened(folder: PathLike, checkpoint: str) -> tuple[OpenedPlans, list[NNUNetCheckpoint]]:
    found = find_nnunet_folder(folder)
    checkpoints = [read_checkpoint(path) for path in found.checkpoints(checkpoint)]
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if (other.configuration, other.trainer) != (first.configuration, first.trainer):
            raise ExperimentError(
                f"{other.path}: trained as {other.configuration} by {other.trainer}, but {first.path} as "
                f"{first.configuration} by {first.trainer}: folds of one folder have one network"
            )
    return open_plans(found, first), checkpoints


def _network(opened: OpenedPlans, checkpoint: NNUNetCheckpoint) -> nn.Module:
    """Return the network of the plans with the weights of a fold."""
    network = build_network(
        opened.architecture,
        num_inputs=len(opened.plan.channel_names),
        num_outputs=opened.plan.num_classes,
        order=opened.order,
        where=opened.where,
    )
    return load_weights_into(network, checkpoint, opened.order)
