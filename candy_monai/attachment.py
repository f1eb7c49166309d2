"""Forward hooks on a user's network that adapt its calls during training and prediction.

They provide autocast, float32 outputs, memory format, padding and cropping, and a fall-back if compilation fails. The
network remains the user's own object, with its own names, and is called as usual. Optimizes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from candy_monai.aliases import Shape
from candy_monai.errors import reason_in_short
from candy_monai.nn.padding import restore_like

Precision = Literal["bf16", "fp16"] | None

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_HALF = tuple(HALF_TYPES.values())
_LEAST_AXES = 3  # of an image with its batch and channels


@dataclass(kw_only=True)
class Surroundings:
    """The settings of the hooks of a network and its copies.

    Attributes:
        padding: Pads ``(B, C, *spatial)`` to a size that the network accepts; None if it accepts any size.
        amp: ``"bf16"`` or ``"fp16"`` for autocast; None for the precision of the weights.
        channels_last: Whether weights and images are stored with the channels last, which some kernels prefer.
        num_dims: Spatial axes of an image; None to use the first tensor argument of three axes or more.
        is_active: False once the hooks are detached: then the copies are plain networks, too.
        pads: Whether images are padded in evaluation mode.
    """

    padding: nn.Module | None = None
    amp: Precision = None
    channels_last: bool = False
    num_dims: int | None = None
    is_active: bool = True
    pads: bool = True

    @contextmanager
    def padded_already(self) -> Iterator[None]:
        """Build a context in which images are not padded, even in evaluation mode."""
        before, self.pads = self.pads, False
        try:
            yield
        finally:
            self.pads = before

    def image_among(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """Return the first tensor that is a batch of images, else a single image; None if there is none."""
        if self.num_dims is None:
            return next((tensor for tensor in tensors if tensor.ndim >= _LEAST_AXES), None)
        for num_axes in (self.num_dims + 2, self.num_dims + 1):
            for tensor in tensors:
                if tensor.ndim == num_axes:
                    return tensor
        return None

    def size_of(self, image: Tensor) -> Shape:
        """Return the spatial size of a result of `image_among`."""
        return tuple(image.shape[2:] if self.num_dims is None else image.shape[-self.num_dims :])


class Attachment:
    """The hooks of one network, and the current call of each thread. A copy starts outside of any call.

    Attributes:
        surroundings: Shared with the network's copies.
        compile_failure: The reason why a compiled network runs uncompiled; None if it does not.
        on_enter: Called before each call of the network.
        on_leave: Called after each.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.compile_failure: str | None = None
        self.on_enter: list[Callable[[], None]] = []
        self.on_leave: list[Callable[[], None]] = []
        self._present = _Present()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        return Attachment(self.surroundings)

    def __reduce__(self) -> tuple[Any, ...]:
        return Attachment, (Surroundings(is_active=False),)  # a pickled network is loaded as a plain one

    def before(
        self, network: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Begin a call: return the arguments for the network, or None to leave them unchanged."""
        if not self.surroundings.is_active:
            return None
        present = self._present
        present.depth += 1
        if present.depth > 1:  # a network that calls itself, within the outermost call
            return None
        for listener in self.on_enter:
            listener()
        present.call = _Call(self.surroundings, pads=self.surroundings.pads and not network.training)
        return present.call.begin(arguments, keywords)

    def after(self, network: nn.Module, arguments: object, keywords: object, outputs: object) -> object:
        """End a call, also a failed one: return the outputs for the caller, or None to leave them unchanged."""
        present = self._present
        if present.depth == 0:
            return None
        present.depth -= 1
        if present.depth:
            return None
        for listener in self.on_leave:
            listener()
        call, present.call = present.call, None
        return None if call is None else call.end(outputs)

    def close(self) -> None:
        """Discard a call that never ended, as after an interruption from the keyboard."""
        self._present.depth = min(self._present.depth, 1)
        self.after(nn.Identity(), None, None, None)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Yield, and close the call after a Ctrl-C: PyTorch runs hooks after exceptions, but not after that."""
        try:
            yield
        except BaseException:
            self.close()
            raise


class _Present(threading.local):
    """The current call of a thread, and the nesting depth of the calls of its network."""

    depth = 0
    call: _Call | None = None


class _Call:
    """An outermost call of a network."""

    def __init__(self, surroundings: Surroundings, *, pads: bool) -> None:
        self._surroundings = surroundings
        self._padding = surroundings.padding if pads else None
        self._autocast: torch.autocast | None = None
        self._num_axes = 0
        self._size: Shape = ()
        self._padded_size: Shape = ()

    def begin(
        self, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        around = self._surroundings
        tensors = list(tensors_in((arguments, keywords)))
        image = around.image_among(tensors)
        if image is not None and (self._padding is not None or around.channels_last):
            self._num_axes, self._size = image.ndim, around.size_of(image)
            arguments, keywords = map_tensors(self._prepared, (arguments, keywords))
        if around.amp is not None and tensors:
            # None is not autocast(enabled=False), which would disable the caller's own.
            device = (tensors[0] if image is None else image).device
            self._autocast = torch.autocast(device.type, HALF_TYPES[around.amp])
            self._autocast.__enter__()  # type: ignore[no-untyped-call]
        return arguments, keywords

    def _prepared(self, tensor: Tensor) -> Tensor:
        around = self._surroundings
        if tensor.ndim != self._num_axes or around.size_of(tensor) != self._size:
            return tensor
        if self._padding is not None:
            tensor = self._padding(tensor)
            self._padded_size = around.size_of(tensor)
        return with_channels_last(tensor) if around.channels_last else tensor

    def end(self, outputs: object) -> object:
        if self._autocast is not None:
            self._autocast.__exit__(None, None, None)
        if outputs is None:
            return None
        if self._padding is not None and self._padded_size != self._size:
            outputs = self._cropped(self._padding, outputs)
        return map_tensors(lambda output: output.float() if output.dtype in _HALF else output, outputs)

    def _cropped(self, padding: nn.Module, outputs: object) -> object:
        size_of = self._surroundings.size_of
        outputs = _without(
            lambda output: output.ndim == self._num_axes and size_of(output) != self._padded_size, outputs
        )
        return map_tensors(
            lambda output: (
                restore_like(padding, output, self._size) if size_of(output) == self._padded_size else output
            ),
            outputs,
        )


class _SurroundedCall:
    """Replaces the call of a network that was compiled in place, so that the hooks are not compiled with it.

    Also that of a scripted network, which supports no hooks. Copies of the network are plain and not compiled.
    """

    def __init__(self, network: nn.Module, attachment: Attachment, compiled: Callable[..., Any] | None) -> None:
        self.attachment = attachment
        self.compiled = compiled
        self._network = network

    def __call__(self, *arguments: Any, **keywords: Any) -> object:
        prepared = self.attachment.before(self._network, arguments, keywords)
        outputs: object = None
        try:
            outputs = self._run(*((arguments, keywords) if prepared is None else prepared))
        finally:
            changed = self.attachment.after(self._network, arguments, keywords, outputs)
        return outputs if changed is None else changed

    def _run(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> object:
        if self.compiled is None:
            return self._network._call_impl(*arguments, **keywords)  # type: ignore[no-untyped-call]
        try:
            return self.compiled(*arguments, **keywords)
        except Exception as error:  # of the compiler or of the network, which then raises it again
            self.compiled = None
            outputs = self._network._call_impl(*arguments, **keywords)  # type: ignore[no-untyped-call]
            self.attachment.compile_failure = reason_in_short(error)
            return outputs


def attach(network: nn.Module, surroundings: Surroundings) -> Attachment:
    """Attach hooks to a network until `detach`, in place of any previous ones, and return their state.

    In evaluation mode images are padded, and every output of the padded size is cropped; outputs of other resolutions,
    as for deep supervision, are then removed from lists and dictionaries. In training mode images must be padded
    already, together with their labels. Only the first tensor argument that is a batch of images, and tensors of the
    same size, are padded. Outputs in half precision become float32. Of a network that was compiled in place by
    `nn.Module.compile`, only its own part is compiled.
    """
    _remove_hooks(network)
    attachment = Attachment(surroundings)
    if surroundings.channels_last:
        for parameter in network.parameters():
            parameter.data = with_channels_last(parameter.data)
    compiled = getattr(network, "_compiled_call_impl", None)
    if compiled is not None or isinstance(network, torch.jit.ScriptModule):
        vars(network)["_compiled_call_impl"] = _SurroundedCall(network, attachment, compiled)
    else:
        # The methods go into a copy of the network, bound to a copy of the attachment.
        network.register_forward_pre_hook(attachment.before, prepend=True, with_kwargs=True)
        network.register_forward_hook(attachment.after, with_kwargs=True, always_call=True)
    if getattr(network, "network", None) is None:
        # In earlier versions trainers accessed their network through an adapter, `toolbox.model.network`.
        network.__dict__["network"] = network
    return attachment


def detach(network: nn.Module) -> None:
    """Remove what `attach` added from a network and its copies; other networks are not changed."""
    attachment = _remove_hooks(network)
    if attachment is not None:
        attachment.surroundings.is_active = False


def _remove_hooks(network: nn.Module) -> Attachment | None:
    attachment = attachment_of(network)
    if attachment is None:
        return None
    attachment.close()
    compiled = getattr(network, "_compiled_call_impl", None)
    if isinstance(compiled, _SurroundedCall):
        vars(network)["_compiled_call_impl"] = compiled.compiled
    for hooks, others in (
        (network._forward_pre_hooks, (network._forward_pre_hooks_with_kwargs,)),
        (network._forward_hooks, (network._forward_hooks_with_kwargs, network._forward_hooks_always_called)),
    ):
        for number in [number for number, hook in hooks.items() if getattr(hook, "__self__", None) is attachment]:
            for registry in (hooks, *others):
                registry.pop(number, None)
    if network.__dict__.get("network") is network:
        del network.__dict__["network"]
    return attachment


def attachment_of(network: nn.Module) -> Attachment | None:
    """Return the state of a network's hooks; None if it has none of ours."""
    compiled = getattr(network, "_compiled_call_impl", None)
    if isinstance(compiled, _SurroundedCall):
        return compiled.attachment
    owners = (getattr(hook, "__self__", None) for hook in network._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Attachment)), None)


def with_channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor of 4 or 5 axes in the channels-last memory format; any other tensor unchanged."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply a function to every tensor in nested lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: map_tensors(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[map_tensors(function, value) for value in tree])
    if isinstance(tree, list):
        return [map_tensors(function, value) for value in tree]
    if isinstance(tree, tuple):
        return tuple(map_tensors(function, value) for value in tree)
    return tree


def tensors_in(tree: object) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors_in(value)


def _without(unwanted: Callable[[Tensor], bool], tree: object) -> object:
    """Return a list, tuple or dictionary without its unwanted tensors; anything else unchanged."""
    if isinstance(tree, dict):
        return {name: value for name, value in tree.items() if not (isinstance(value, Tensor) and unwanted(value))}
    if isinstance(tree, list | tuple):
        return [value for value in tree if not (isinstance(value, Tensor) and unwanted(value))]
    return tree
