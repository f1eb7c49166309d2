"""Which parts of a trainer have a state that is not saved with its run. Saves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from candy_monai.attachment import tensors_in

_DEPTH = 3  # of lists and dictionaries in each other


def unsaved_parts(attributes: Mapping[str, object], *, saved: object, extra: object) -> list[str]:
    """Return the names and kinds of what has a ``state_dict`` that is not part of what is saved.

    A state is saved if its tensors are, or if the trainer adds a dictionary with the same names.

    Args:
        attributes: Objects by name, some of them in lists and dictionaries.
        saved: Nested lists, tuples and dictionaries of what is saved of every run.
        extra: What the trainer adds to it.
    """
    memory = {_place(tensor) for tensor in tensors_in([saved, extra])}
    names = {frozenset(map(str, mapping)) for mapping in _mappings(extra)}
    found = []
    for name, part in _parts(attributes):
        try:
            state = part.state_dict()  # type: ignore[attr-defined]
        except Exception:  # not of the kind that is meant here, or not ready
            continue
        tensors = list(tensors_in(state))
        is_saved = (bool(tensors) and all(_place(tensor) in memory for tensor in tensors)) or (
            isinstance(state, Mapping) and frozenset(map(str, state)) in names
        )
        if state and not is_saved:
            found.append(f"{name} ({type(part).__name__})")
    return found


def _parts(attributes: Mapping[str, object], depth: int = 0) -> Iterator[tuple[str, object]]:
    if depth > _DEPTH:
        return
    for name, value in attributes.items():
        members: Iterable[tuple[object, object]] = ()
        if isinstance(value, Mapping) and not isinstance(value, nn.Module):
            members = value.items()
        elif isinstance(value, list | tuple):
            members = enumerate(value)
        elif not isinstance(value, type) and all(
            callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict")
        ):
            yield name, value
        for key, member in members:
            yield from _parts({f"{name}[{key!r}]": member}, depth + 1)


def _mappings(tree: object) -> Iterator[Mapping[object, object]]:
    if isinstance(tree, Mapping):
        yield tree
    if isinstance(tree, Mapping | list | tuple):
        for member in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _mappings(member)


def _place(tensor: Tensor) -> object:
    """Tell tensors apart by where they are: a state refers to the memory of what it is the state of."""
    return tensor.device, tensor.data_ptr() if tensor.numel() else id(tensor), tensor.numel()
