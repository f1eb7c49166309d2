"""``state.pt``: everything that a run needs to go on, as tensors and plain values. Builds nothing from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candy_monai.errors import ExperimentError
from candy_monai.experiment.checkpoints import (
    LATEST,
    Checkpoints,
    Weights,
    WeightsKind,
    holds,
    load_tensors,
    load_weights,
    save_tensors,
    staged_path,
)
from candy_monai.experiment.folder import FORMAT, STATE

State = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunWeights:
    """The weights of a run at one moment.

    Attributes:
        raw: As the optimizer left them.
        scored: The weights that validation scores: the moving average where there is one, else ``raw``.
        kind: What ``scored`` is.
    """

    raw: Weights
    scored: Weights
    kind: WeightsKind

    def to_dict(self, *, raw: bool, scored: bool) -> dict[str, dict[str, Any]]:
        """Return the asked ones of the two, without saying the same twice."""
        found = {"raw": dict(self.raw)} if raw else {}
        return {**found, "scored": dict(self.scored)} if scored and self.kind == "ema" else found


def save_state(folder: Path, state: State, *, confirm: Callable[[], None]) -> None:
    """Replace ``state.pt`` in one step.

    Args:
        folder: The experiment folder.
        state: What it is to hold.
        confirm: Waits until all that the state names is on the disk; the new state takes its place after that.
    """
    save_tensors(folder / STATE, {"format": FORMAT, **state}, confirm=confirm)


def load_state(folder: Path) -> dict[str, Any]:
    """Read ``state.pt`` onto the CPU. Nothing in it is executed.

    Raises:
        ExperimentError: If it is missing, damaged or of another format.
    """
    path = folder / STATE
    if not path.is_file():
        raise ExperimentError(f"{path}: missing, so this run cannot be continued or checked")
    try:
        state = load_tensors(path)
    except Exception as error:
        raise ExperimentError(f"{path}: not readable ({type(error).__name__}: {error})") from error
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found != FORMAT:
        older = "; it was written by an earlier version, whose runs cannot be continued" if found == 1 else ""
        raise ExperimentError(f"{path}: format {found!r}, this version reads format {FORMAT}{older}")
    return state  # type: ignore[no-any-return]


def stored_weights(state: State, checkpoints: Checkpoints, folder: Path) -> RunWeights:
    """Return the weights that belong to a state: from the state itself, or from the files that hold the same.

    Raises:
        ExperimentError: If a file is damaged.
    """
    inside, kind, epoch = state["weights"], state["kind"], state["progress"]["epoch"]
    raw = inside["raw"] if "raw" in inside else load_weights(folder / LATEST)
    if kind == "raw":
        return RunWeights(raw=raw, scored=raw, kind=kind)
    if "scored" in inside:
        return RunWeights(raw=raw, scored=inside["scored"], kind=kind)
    file = checkpoints.holding(epoch=epoch, kind=kind)
    if file is None:
        raise ExperimentError(f"{folder}: no file holds the averaged weights of epoch {epoch}")
    return RunWeights(raw=raw, scored=load_weights(file), kind=kind)


def weight_file(folder: Path, name: str) -> Path:
    """Return where a weight file of this name is: in its place, or where a crash left it that came after its state."""
    staged = staged_path(folder, name)
    if staged.exists():
        try:
            record = load_state(folder)["checkpoints"].get(name)
            if record is not None and holds(staged, record["digest"]):
                return staged
        except (AttributeError, LookupError, TypeError) as error:
            raise ExperimentError(f"{folder / STATE}: is not the state of a run ({error!r})") from error
    return folder / name
