"""What surrounds a user's network while it is trained or predicts, as forward hooks on the network itself.

Autocast, float32 outputs, memory format, padding before and cropping after, and a fall-back from compilation. The
network stays the user's own object, under its own names, and is called as ever. Optimizes nothing.
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
    """What surrounds a network and its copies.

    Attributes:
        padding: Pads ``(B, C, *spatial)`` to a size that the network accepts; None if it accepts any.
        amp: ``"bf16"`` or ``"fp16"`` runs the network under autocast; None in the precision of its weights.
        channels_last: Whether weights and images are stored with the channels last, which some kernels want.
        num_dims: Spatial axes of an image; None to take the first tensor argument of three axes or more for one.
        is_active: False once the network was given back: then its copies are plain networks, too.
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
        """Build a block within which images pass as they are, in evaluation mode too."""
        before, self.pads = self.pads, False
        try:
            yield
        finally:
            self.pads = before

    def image_among(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """Return the first tensor that is a batch of images, or else one image; None if there is none."""
        if self.num_dims is None:
            return next((tensor for tensor in tensors if tensor.ndim >= _LEAST_AXES), None)
        for num_axes in (self.num_dims + 2, self.num_dims + 1):
            for tensor in tensors:
                if tensor.ndim == num_axes:
                    return tensor
        return None

    def size_of(self, image: Tensor) -> Shape:
        """Return the spatial size of what `image_among` returned."""
        return tuple(image.shape[2:] if self.num_dims is None else image.shape[-self.num_dims :])


class Attachment:
    """The hooks of one network, and the call that each thread is in. A copy begins outside of any call.

    Attributes:
        surroundings: Shared with the network's copies.
        compile_failure: Why a compiled network runs as it is all the same; None if it does not.
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
        return Attachment, (Surroundings(is_active=False),)  # a network that is pickled is loaded as a plain one

    def before(
        self, network: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Begin a call: return the arguments that the network is to have, or None to leave them."""
        if not self.surroundings.is_active:
            return None
        present = self._present
        present.depth += 1
        if present.depth > 1:  # a network that calls itself, within the call that is surrounded
            return None
        for listener in self.on_enter:
            listener()
        present.call = _Call(self.surroundings, pads=self.surroundings.pads and not network.training)
        return present.call.begin(arguments, keywords)

    def after(self, network: nn.Module, arguments: object, keywords: object, outputs: object) -> object:
        """End a call, also one that failed: return the outputs that the caller is to have, or None to leave them."""
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
        """Write off a call that never ended, as an interruption from the keyboard makes one."""
        self._present.depth = min(self._present.depth, 1)
        self.after(nn.Identity(), None, None, None)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Yield, and close the call if a Ctrl-C ends it: PyTorch runs hooks after exceptions, but not after that."""
        try:
            yield
        except BaseException:
            self.close()
            raise


class _Present(threading.local):
    """The call that a thread is in, and how many calls of the same network are in each other."""

    depth = 0
    call: _Call | None = None


class _Call:
    """One outermost call of a network."""

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
            # None is not autocast(enabled=False): that would switch off the caller's own.
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
    """Takes the place of the call of a network that was compiled in place: the hooks are not compiled with it.

    Of a scripted network, too, which takes no hooks. A copy of the network has none of it, and is not compiled.
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
        except Exception as error:  # of the compiler, or of the network: then it comes again
            self.compiled = None
            outputs = self._network._call_impl(*arguments, **keywords)  # type: ignore[no-untyped-call]
            self.attachment.compile_failure = reason_in_short(error)
            return outputs


def attach(network: nn.Module, surroundings: Surroundings) -> Attachment:
    """Surround a network's calls until `detach`; whatever surrounded it before no longer does.

    In evaluation mode images are padded, and every output that has the padded size is cropped; outputs of other
    resolutions, which serve deep supervision, are left out of lists and dictionaries then. In training mode images are
    expected to be padded already, together with their labels. Only the first tensor argument that is a batch of images
    is padded, and whatever else has its size. Outputs in half precision become float32.

    Args:
        network: Any network. If it was compiled in place, `nn.Module.compile`, its own part is what is compiled.
        surroundings: What surrounds it.

    Returns:
        What the hooks know.
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
        # Trainers of earlier versions reached their network through an adapter, `toolbox.model.network`.
        network.__dict__["network"] = network
    return attachment


def detach(network: nn.Module) -> None:
    """Detach from a network and its copies what `attach` put around it; any other is not changed."""
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
    """Return what the hooks of a network know; None if it has none of ours."""
    compiled = getattr(network, "_compiled_call_impl", None)
    if isinstance(compiled, _SurroundedCall):
        return compiled.attachment
    owners = (getattr(hook, "__self__", None) for hook in network._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Attachment)), None)


def with_channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor of 4 or 5 axes with its second one last in memory; any other as it is."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return nested lists, tuples and dictionaries with every tensor replaced."""
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
    """Yield the tensors of nested lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors_in(value)


def _without(unwanted: Callable[[Tensor], bool], tree: object) -> object:
    """Return a list, tuple or dictionary without its unwanted tensors; anything else as it is."""
    if isinstance(tree, dict):
        return {name: value for name, value in tree.items() if not (isinstance(value, Tensor) and unwanted(value))}
    if isinstance(tree, list | tuple):
        return [value for value in tree if not (isinstance(value, Tensor) and unwanted(value))]
    return tree
