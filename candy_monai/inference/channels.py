"""The channels that a run expects, and their selection from the channels of a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from candy_monai.errors import BadInputError, SettingsError

CHANNEL_LIMIT = 16  # more files of one name are numbered cases; a longer axis is spatial
_LAST = (
    "; its last axis looks like the channel axis, which must be the first one: move it, for example with "
    "np.moveaxis(image, -1, 0)"
)
_SAYS_NOTHING = re.compile(r"(channel|modality|image|unknown)?[\W_]*\d*|nonorm|zscore|rescale.*|rgb.*|noname", re.ASCII)
"""Names that do not identify a modality: numbers, and the normalisation schemes that nnU-Net writes instead."""


@dataclass(frozen=True, kw_only=True)
class RunChannels:
    """The channels that a run was trained on, in their order, and how to find them.

    Attributes:
        names: One for each channel; empty strings if the run does not know them.
        numbers: The user's choice: the number of each channel in file names (``_0000``), and in images with more
            channels. Empty if numbers at the ends of names belong to the names of the cases; None for 0, 1, 2 and so
            on.

    Raises:
        SettingsError: If the number of chosen channels differs from that of the run.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.numbers:
            return
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in self.numbers):
            raise SettingsError(f"channels {self.numbers}: expected whole numbers, such as (1, 2)")
        if len(set(self.numbers)) < len(self.numbers) or min(self.numbers) < 0:
            raise SettingsError(f"channels {self.numbers}: expected distinct numbers from 0")
        if len(self.numbers) != len(self):
            raise SettingsError(f"channels {','.join(map(str, self.numbers))}: expected a number for each of {self}")

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        named = ", ".join(f"{number} {name}".strip() for number, name in enumerate(self.names))
        return f"the run's {_channels(len(self))}" + (f" ({named})" if any(self.names) else "")

    @property
    def expected(self) -> tuple[int, ...]:
        """The numbers of the run's channels in file names, in the order of the run."""
        return self.numbers or tuple(range(len(self)))

    def problem(self, case_id: str, found: Iterable[int]) -> str | None:
        """Return why files of a case with these numbers do not match the run's channels; None if they match."""
        there = sorted(set(found))
        wrong = [f"channel file _{number:04d} is missing" for number in self.expected if number not in there]
        if not self.numbers:
            extra = (number for number in there if number not in self.expected)
            wrong += [f"channel file _{number:04d} is unexpected" for number in extra]
        if not wrong:
            return None
        files = ", ".join(f"_{number:04d}" for number in there)
        return f"case {case_id}: {'; '.join(wrong)}: found {files}, expected {self}; {self._advice(there)}"

    def refuse_other_names(self, names: Sequence[str], source: object) -> None:
        """Raise an error, with the channels to choose, if a dataset's channel names or their order differ.

        Names are not compared if the user chose channels, or if they do not identify a modality.
        """
        if self.numbers is not None or not names:
            return
        mine, theirs = ([_comparable_name(name) for name in each] for each in (self.names, names))
        if len(mine) == len(theirs):
            if all(None in pair or pair[0] == pair[1] for pair in zip(mine, theirs, strict=True)):
                return
        elif not (any(mine) and any(theirs)):
            return  # the files show whether there are too many channels
        fitting = [theirs.index(name) for name in mine if name is not None and theirs.count(name) == 1]
        fits = len(fitting) == len(mine) == len(set(fitting))
        advice = f"choose those of the run with {_as_option(fitting)}" if fits else self._advice(range(len(names)))
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise BadInputError(f"{source}: the channels are {listed}, expected {self}; {advice}")

    def chosen_from(self, image: Tensor, name: str) -> Tensor:
        """Return the run's channels of an image ``(C, *spatial)`` that may have more; raise if they do not match."""
        if self.numbers and not (len(image) == len(self) == 1):
            if max(self.numbers) < image.shape[-1] <= CHANNEL_LIMIT < len(image):
                raise BadInputError(f"{name}: has shape {tuple(image.shape)}{_LAST}")
            if max(self.numbers) >= len(image):
                raise BadInputError(f"{name}: has channels 0 to {len(image) - 1}, but {self.numbers} were chosen")
            same = self.numbers == tuple(range(len(image)))
            return image if same else image[torch.tensor(self.numbers, device=image.device)]
        if len(image) == len(self):
            return image
        advice = self._advice(range(len(image)))
        if len(image) < len(self):
            advice = "give all of them in one file, or in files in the same folder that end in _0000, _0001 and so on"
        last = _LAST if image.ndim > 2 and image.shape[-1] == len(self) else ""
        raise BadInputError(
            f"{name}: has {_channels(len(image))}, the network expects {len(self)} (shape {tuple(image.shape)}, "
            f"{self}): {advice}{last}"
        )

    def _advice(self, there: Sequence[int]) -> str:
        """Return how to choose from the channels that were found."""
        count = len(self)
        if len(there) < count:
            return f"give all of them, or choose others with {_as_option(range(count))}"
        advice = f"choose those of the run, in its order, for example with {_as_option(there[-count:])}"
        if count == 1 and 0 not in there:
            advice += "; if the number belongs to the name of the case, use --channels none (channels=())"
        return advice


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count > 1)}"


def _comparable_name(name: str) -> str | None:
    """Return the part of a name to compare; None for an uninformative name."""
    plain = name.strip().casefold()
    return None if _SAYS_NOTHING.fullmatch(plain) else re.sub(r"[\W_]+", "", plain)


def _as_option(numbers: Iterable[int]) -> str:
    listed = ",".join(map(str, numbers))
    return f"--channels {listed} (in Python channels=({listed}{',' * (',' not in listed)}))"
