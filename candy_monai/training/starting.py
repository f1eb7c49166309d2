"""Start a run from existing weights: load them, and freeze some of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from candy_monai.aliases import PathLike
from candy_monai.errors import SettingsError, did_you_mean
from candy_monai.incoming.weights import load_into, read_weights

_MOST_LISTED = 12


def start_from(network: nn.Module, source: PathLike, *, num_channels: int, log: Callable[..., None]) -> None:
    """Load existing weights, as for ``init_from`` of ``Trainer.train``, into a new network for such images.

    A summary is logged, and with ``on_screen=False`` every name.

    Raises:
        BadInputError: If they cannot be read safely, or no tensor fits.
    """
    report = load_into(network, read_weights(source), num_channels=num_channels)
    log(str(report))
    if details := report.details():
        log(details, on_screen=False)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The parameters of a network that are not trained.

    Attributes:
        names: Their names.
        parameters: Their identities.
        num_values: How many numbers they hold.
        num_fixed: Number of normalisation layers whose statistics are not updated.
    """

    names: tuple[str, ...] = ()
    parameters: frozenset[int] = frozenset()
    num_values: int = 0
    num_fixed: int = 0
    _trained_before: tuple[nn.Parameter, ...] = ()
    _handles: list[RemovableHandle] = field(default_factory=list)

    def __str__(self) -> str:
        fixed = f", and the statistics of {self.num_fixed} normalisation layers" if self.num_fixed else ""
        return f"Frozen: {len(self.names)} parameter tensors with {self.num_values:,} values{fixed}"

    def close(self) -> None:
        """Make the parameters trainable again."""
        while self._handles:
            self._handles.pop().remove()
        for parameter in self._trained_before:
            parameter.requires_grad_(True)


def freeze(network: nn.Module, patterns: str | Sequence[str]) -> Frozen:
    """Freeze the matching parameters, and the statistics of matching normalisation layers.

    Raises:
        SettingsError: If a pattern matches nothing, or nothing would be left to train.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not patterns:
        return Frozen()
    parameters = dict(network.named_parameters(remove_duplicate=False))
    layers = {
        name: layer
        for name, layer in network.named_modules(remove_duplicate=False)
        if getattr(layer, "running_mean", None) is not None
    }
    statistics = {f"{name}.running_mean".lstrip("."): layer for name, layer in layers.items()}
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in (*parameters, *statistics)):
            first = list(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters))
            raise SettingsError(
                f"freeze: {pattern!r} matches no parameter.{did_you_mean(pattern.rstrip('.*'), first)} They are in: "
                f"{', '.join(first[:_MOST_LISTED])}{' and more' * (len(first) > _MOST_LISTED)}"
            )
    chosen = {
        id(parameter): (name, parameter)
        for name, parameter in reversed(parameters.items())  # of several names the first
        if any(_matches(name, pattern) for pattern in patterns)
    }
    if all(id(parameter) in chosen or not parameter.requires_grad for parameter in parameters.values()):
        raise SettingsError(f"freeze: {', '.join(map(repr, patterns))} leaves nothing to train; freeze less")
    fixed = {id(layer): layer for name, layer in statistics.items() if any(_matches(name, each) for each in patterns)}
    trained = tuple(parameter for _, parameter in chosen.values() if parameter.requires_grad)
    for parameter in trained:
        parameter.requires_grad_(False)
    return Frozen(
        names=tuple(name for name, _ in reversed(chosen.values())),
        parameters=frozenset(chosen),
        num_values=sum(parameter.numel() for _, parameter in chosen.values()),
        num_fixed=len(fixed),
        _trained_before=trained,
        _handles=[layer.register_forward_pre_hook(_in_evaluation) for layer in fixed.values()],
    )


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def _in_evaluation(layer: nn.Module, _: Any) -> None:
    layer.training = False  # whatever mode the network is put into: with its own statistics, which then stay
