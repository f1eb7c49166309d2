"""The parts that a training step uses, built by the ``build_*`` methods of a trainer."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn, optim
from torch.amp.grad_scaler import GradScaler

from candy_monai.aliases import Shape
from candy_monai.attachment import Surroundings, attach, attachment_of, detach
from candy_monai.data.values import join_names
from candy_monai.experiment.settings import TrainSettings
from candy_monai.network import (
    channels_last_pays,
    check_takes_complex,
    choose_precision,
    copyable,
    initialize_lazy,
    plain_network,
)
from candy_monai.nn.activations import refuse_logits
from candy_monai.nn.padding import pad_labels
from candy_monai.nn.previous_stage import build_for_inputs, without_ids
from candy_monai.nn.slicewise import padding_of_slices
from candy_monai.training.gradients import ScaledBackward, optimized_parameters, trained_parameters
from candy_monai.training.returns import optimizer_returned, returned, scheduler_returned
from candy_monai.training.schedule import warmed_up
from candy_monai.training.sharding import sharded
from candy_monai.training.starting import Frozen, freeze, start_from

if TYPE_CHECKING:
    from candy_monai.training.hooks import Hooks


@dataclass
class TrainerToolbox:
    """The parts of one run, handed to ``backward`` and ``validate_case``.

    Attributes:
        model: The network that ``build_network`` returned. During a run there are hooks around its calls for mixed
            precision, float32 outputs, and padding in evaluation mode.
        optimizer: The optimizer, stepped once per batch.
        scheduler: The learning rate schedule, stepped after each optimizer step.
        criterion: The loss, on the trainer's device.
        ema: The moving average of ``model``, called in the same way, in evaluation mode; None if it is switched off.
    """

    model: nn.Module
    optimizer: optim.Optimizer
    scheduler: optim.lr_scheduler.LRScheduler
    criterion: nn.Module
    ema: optim.swa_utils.AveragedModel | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """The model, and the average if there is one."""
        return [self.model] if self.ema is None else [self.model, self.ema]


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """A toolbox, with the hooks that the library adds to its networks and gradients.

    Attributes:
        toolbox: The toolbox that the trainer's methods receive.
        example_shape: The shape that the network was built for: that of one padded image.
        device: The device of all parts.
        padding: Pads images; None to leave them as they are.
        surroundings: The hooks around the calls of the networks.
        scaled_backward: Scales losses in half precision.
        image_type: The floating-point type to which images are converted.
        surrounded: The networks that have hooks.
        frozen: The parameters that are not trained.
        unwatch: Ends the check of what the criterion gets.
    """

    toolbox: TrainerToolbox
    example_shape: Shape
    device: torch.device
    padding: nn.Module | None
    surroundings: Surroundings
    scaled_backward: ScaledBackward
    image_type: torch.dtype
    surrounded: tuple[weakref.ref[nn.Module], ...]
    frozen: Frozen = field(default_factory=Frozen)
    unwatch: Callable[[], None] = lambda: None

    @property
    def scaler(self) -> GradScaler:
        """The gradient scaler, which is enabled only for half precision."""
        return self.scaled_backward.scaler

    def on_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels on the device, floating ones in the network's type, labels in float32 at least."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
        if images.is_floating_point():
            images = images.to(self.image_type)
        if labels.is_floating_point():
            labels = labels.to(torch.promote_types(self.image_type, torch.float32))
        return images, labels

    def prepared(self, images: Tensor, labels: Tensor, *, fill: int) -> tuple[Tensor, Tensor]:
        """Return images and labels on the device, padded for the network; added voxels get the label id ``fill``."""
        images, labels = self.on_device(images, labels)
        if self.padding is None:
            return images, labels
        return self.padding(images), pad_labels(self.padding, labels, fill)

    def close(self) -> None:
        """Remove all hooks from the networks and the criterion, which are the user's own."""
        self.unwatch()
        self.scaled_backward.close()
        self.frozen.close()
        for reference in self.surrounded:
            if (network := reference()) is not None:
                detach(network)


def build_toolbox(
    trainer: Hooks,
    settings: TrainSettings,
    image: Tensor,
    device: torch.device,
    *,
    starts: bool = False,
    log: Callable[..., None] = lambda *_, **__: None,
) -> Equipment:
    """Build all parts that a step uses.

    Args:
        trainer: Builds each part.
        settings: The keywords of ``train``.
        image: The part of a training image that the network gets at once, ``(C, *spatial)``, for its shape.
        device: The device of all parts.
        starts: Whether this is a new run, so that starting weights are loaded; a saved run has its own.
        log: Called with messages about loaded weights, frozen parts and the warm-up; with ``on_screen=False`` for those
            that are only written to the file.

    Raises:
        BadInputError: If a ``build_*`` method returned an invalid value, the starting weights cannot be read or do not
            fit, or no parameter would be trained.
    """
    padding = padding_of_slices(trainer.build_padding_module(), trainer.slice_axis)
    example = image[None].to(device)
    if padding is not None:
        padding = returned(trainer, "build_padding_module", padding, nn.Module).to(device)
        example = padding(example)
    example_shape = tuple(example.shape[1:])
    num_dims = len(example_shape) - 1
    network = build_for_inputs(
        lambda shape: returned(trainer, "build_network", trainer.build_network(shape), nn.Module),
        example_shape,
        slice_axis=trainer.slice_axis,
        num_previous=trainer._num_previous,
    ).to(device)
    initialize_lazy(network, example)
    check_takes_complex(network, example)
    if settings.sync_batchnorm:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    if starts and settings.init_from is not None:
        num_channels = without_ids(example_shape, trainer._num_previous)[0]
        start_from(plain_network(network), settings.init_from, num_channels=num_channels, log=log)
    frozen = freeze(plain_network(network), settings.freeze)
    if frozen.names:
        log(str(frozen))
    if starts and settings.warm_up:
        log(f"The learning rate rises to that of the schedule over the first {settings.warm_up} steps")
    image_type = _floating_type(network)
    amp = choose_precision(settings.amp, device)
    channels_last = settings.channels_last
    if channels_last is None:
        channels_last = channels_last_pays(num_dims, amp, device)
    if settings.compile_model:
        network.compile()  # in place: the weights keep their names, and the moving average's copy is not compiled
    surroundings = Surroundings(padding=padding, amp=amp, channels_last=channels_last, num_dims=num_dims)
    attach(network, surroundings)
    try:
        trained = (parameter for parameter in network.parameters() if id(parameter) not in frozen.parameters)
        optimizer = optimizer_returned(trainer, trainer.build_optimizer(trained))
        if settings.shard_optimizer and distributed.is_available() and distributed.is_initialized():
            optimizer = sharded(optimizer)
        elif settings.shard_optimizer:
            log("shard_optimizer has no effect in a run of one process")
        scheduler = scheduler_returned(trainer, trainer.build_scheduler(optimizer, settings.num_epochs), optimizer)
        toolbox = TrainerToolbox(
            model=network,
            optimizer=optimizer,
            scheduler=warmed_up(scheduler, settings.warm_up),
            criterion=returned(trainer, "build_criterion", trainer.build_criterion(), nn.Module).to(device),
            ema=_average_of(network, trainer, surroundings) if settings.ema else None,
        )
        if left_out := _not_optimized(toolbox):
            log(f"Not in the optimizer, and so not trained by it: {join_names(left_out, limit=4)}")
    except BaseException:
        detach(network)
        frozen.close()
        raise
    scaled_backward = ScaledBackward(GradScaler(device.type, enabled=amp == "fp16"))
    scaled_backward.watch(trained_parameters(toolbox), optimizer)
    averaged = [] if toolbox.ema is None else [toolbox.ema.module]
    return Equipment(
        toolbox=toolbox,
        example_shape=example_shape,
        device=device,
        padding=padding,
        surroundings=surroundings,
        scaled_backward=scaled_backward,
        image_type=image_type,
        surrounded=tuple(weakref.ref(network) for network in (network, *averaged)),
        frozen=frozen,
        unwatch=refuse_logits(toolbox.criterion),
    )


def _average_of(network: nn.Module, trainer: Hooks, surroundings: Surroundings) -> optim.swa_utils.AveragedModel:
    """Build the average of the user's own network, in evaluation mode and surrounded as the network is."""
    plain = plain_network(network)
    with copyable(plain):
        ema = returned(trainer, "build_ema", trainer.build_ema(plain), optim.swa_utils.AveragedModel)
    if attachment_of(ema.module) is None:  # of a network in a wrapper, or one whose copies have no hooks
        attach(ema.module, surroundings)
    return ema.eval()


def _not_optimized(toolbox: TrainerToolbox) -> list[str]:
    """Return the names of parameters of network and loss that require gradients, but that the optimizer does not have.

    ``build_optimizer`` receives those of the network only; a loss can have some, such as weights of its terms.
    """
    known = {id(parameter) for parameter in optimized_parameters(toolbox.optimizer)}
    of_network = plain_network(toolbox.model).named_parameters()
    of_loss = ((f"criterion.{name}", parameter) for name, parameter in toolbox.criterion.named_parameters())
    named = itertools.chain(of_network, of_loss)
    return [name for name, parameter in named if parameter.requires_grad and id(parameter) not in known]


def _floating_type(network: nn.Module) -> torch.dtype:
    """Return the type of a network's first floating parameter; else float32."""
    types = (parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
    return next(types, torch.float32)
