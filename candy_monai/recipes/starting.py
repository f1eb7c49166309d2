"""Adapt the plan of a run to the experiment whose weights it starts from, and warn about differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from candy_monai.data.planning.entries import as_text
from candy_monai.data.planning.files import plan_of
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.rules import Configuration
from candy_monai.data.values import join_names
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.description import DESCRIPTION, ExperimentDescription, read_description
from candy_monai.incoming.weights import weights_file_of
from candy_monai.registry import bundle_of_network

if TYPE_CHECKING:
    from candy_monai.recipes.options import TrainOptions
    from candy_monai.training.segmentation import SegmentationTrainer

Replan = Callable[[Mapping[str, object], Configuration], Plan]
"""Makes a new plan, with further fixed entries and a configuration."""


_LEAST_OTHER = 1.1
"""Ratio of the spacings from which on there is a warning."""


@dataclass(frozen=True, kw_only=True)
class StartingExperiment:
    """An experiment whose weights a planned run starts from.

    Attributes:
        folder: Its folder.
        description: Its ``experiment.json``.
        plan: Its plan.
    """

    folder: Path
    description: ExperimentDescription
    plan: Plan

    @classmethod
    def of(cls, options: TrainOptions, trainer: type[SegmentationTrainer] | None) -> Self | None:
        """Return the experiment that a run starts from; None for weights of another kind.

        Raises:
            BadInputError: If its network has another architecture than the one to be trained.
        """
        if options.init_from is None:
            return None
        folder = Path(options.init_from)
        if folder.is_file():
            folder = folder.parent
        if not (folder / DESCRIPTION).is_file():
            return None
        weights_file_of(options.init_from)
        description = read_description(folder)
        bundle = None if trainer is None else bundle_of_network(trainer)
        if None not in (description.bundle, bundle) and description.bundle != bundle:
            raise BadInputError(
                f"{folder}: its network is of the bundle {description.bundle!r}, and one of {bundle!r} is to be "
                f"trained: give --bundle {description.bundle}, or leave out --init-from"
            )
        if description.plan is None:
            return None
        plan = plan_of(description.plan, folder / DESCRIPTION)
        if plan.num_previous:
            raise BadInputError(
                f"{folder}: the second stage of a cascade, whose first layer also reads the label map of the first "
                "stage: start from an experiment of another configuration, or leave out --init-from"
            )
        return cls(folder=folder, description=description, plan=plan)

    def followed(self, made: Plan, replan: Replan, options: TrainOptions) -> tuple[Plan, list[str]]:
        """Return a plan with the network of the experiment, so that its weights fit, and the entries that were adopted.

        Raises:
            SettingsError: If the dataset cannot be planned for with that network.
        """
        overrides, configuration, notes = options.overrides or {}, options.configuration, []
        theirs = self.plan
        if theirs.network_dims != made.network_dims:
            wanted: Configuration = "2d" if theirs.network_dims == 2 else "3d"
            if made.num_dims < theirs.network_dims or configuration != "auto":
                raise SettingsError(
                    f"{self.folder}: has a {theirs.network_dims}-D network, and a {made.network_dims}-D one is to be "
                    f"trained on this dataset: "
                    + (f"give --configuration {wanted}" if made.num_dims == 3 else "start from other weights")
                )
            notes.append(f"Configuration {wanted}, to fit the weights of {self.folder}")
            configuration, made = wanted, replan({}, wanted)
        topology = theirs.network_topology
        if made.slice_axis is not None:
            topology = topology.with_flat_axis(made.slice_axis)
        network: dict[str, object] = {
            "filters": theirs.filters,
            "kernel_sizes": topology.kernel_sizes,
            "strides": topology.strides,
            "deep_supervision": theirs.deep_supervision,
        }
        other = [name for name, value in network.items() if name not in overrides and getattr(made, name) != value]
        if not other:
            return made, notes
        changes = (f"{name} {as_text(network[name])} instead of {as_text(getattr(made, name))}" for name in other)
        notes.append(f"Network adopted from {self.folder}: {'; '.join(changes)}")
        try:
            followed = replan({name: value for name, value in network.items() if name not in overrides}, configuration)
        except SettingsError as error:
            raise SettingsError(
                f"{self.folder}: its network cannot be adopted for this dataset ({error}): choose filters, "
                "kernel_sizes, strides and patch_shape by --set, or leave out --init-from"
            ) from error
        return followed, notes

    def warnings(self, made: Plan, validation: Sequence[str], *, digest: str) -> list[str]:
        """Return warnings about a run that starts from this experiment."""
        found, trained = [], self.description.dataset
        if trained is not None and (trained.digest == digest or trained.name == made.dataset_name):
            seen = sorted(set(trained.training or ()) & set(validation))
            if seen:
                found.append(
                    f"Warning: {len(seen)} of {len(validation)} validation cases were trained on by {self.folder} "
                    f"({join_names(seen, limit=3)}): the scores of this run will be too good; start from a run of the "
                    "same fold"
                )
        mine, theirs = made.class_names, self.plan.class_names
        if mine != theirs and made.num_classes == self.plan.num_classes:
            found.append(
                f"Warning: the classes of {self.folder} are {', '.join(theirs)}, and here {', '.join(mine)}: their "
                "number is equal, so the last layer is loaded, too"
            )
        elif made.num_classes == self.plan.num_classes and bool(made.regions) != bool(self.plan.regions):
            kinds = ("regions that may overlap", "classes that exclude each other")
            found.append(
                f"Warning: the last layer of {self.folder}, which is loaded, was trained for "
                f"{kinds[not self.plan.regions]}, and here are {kinds[not made.regions]}"
            )
        if (spacings := self._other_spacing(made)) is not None:
            theirs_mm, mine_mm = spacings
            found.append(
                f"Warning: {self.folder} was trained at a spacing of {theirs_mm} mm, and here it is {mine_mm} mm: "
                "structures have another size in voxels; --set spacing_mm=... sets the same spacing"
            )
        if len(made.channel_names) == len(self.plan.channel_names):
            for what, mine, theirs in (
                ("channels", made.channel_names, self.plan.channel_names),
                ("normalisations of the channels", _schemes(made), _schemes(self.plan)),
            ):
                if mine != theirs:
                    found.append(
                        f"Warning: the {what} of {self.folder} are {', '.join(theirs)}, and here {', '.join(mine)}: "
                        "the first layer is loaded unchanged, channel by channel"
                    )
        return found

    def _other_spacing(self, made: Plan) -> tuple[str, str] | None:
        """Return both spacings along the network's axes if they differ; pictures have none."""
        theirs, mine = (_seen_spacing(plan) for plan in (self.plan, made))
        if not theirs or not mine or len(theirs) != len(mine):
            return None
        if all(max(a, b) / min(a, b) < _LEAST_OTHER for a, b in zip(theirs, mine, strict=True)):
            return None
        return as_text(theirs), as_text(mine)


def _seen_spacing(plan: Plan) -> tuple[float, ...]:
    """Return the spacing along the axes that the network sees; empty without any."""
    return tuple(size for axis, size in enumerate(plan.spacing_mm or ()) if axis != plan.slice_axis)


def _schemes(plan: Plan) -> tuple[str, ...]:
    return tuple(channel.scheme for channel in plan.normalization)
