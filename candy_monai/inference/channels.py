"""The channels that a run expects, and which of a case's files or of an image's channels these are. Reads no image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.text import read_json

_SAYS_NOTHING = re.compile(r"(channel|modality|image|unknown)?[\W_]*\d*|nonorm|zscore|rescale.*|rgb.*|noname", re.ASCII)
"""Names that do not tell a modality: numbers, and the normalisation schemes that nnU-Net has in their place."""

_FEW = 16  # channels; an axis of more is one of space
_LAST = (
    "; its last axis looks like that of the channels, which is the first one here: move it, for example with "
    "np.moveaxis(image, -1, 0)"
)


@dataclass(frozen=True, kw_only=True)
class RunChannels:
    """The channels that a run was trained on, in their order, and where they are to be found.

    Attributes:
        names: One for each channel; empty texts where the run does not know them.
        numbers: What the user chose: the number of each channel in the names of files (``_0000``), and in images that
            hold more channels. Empty where numbers at the ends of names belong to the names of the cases; None for
            0, 1, 2 and so on.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.numbers:
            return
        if len(set(self.numbers)) < len(self.numbers) or min(self.numbers) < 0:
            raise SettingsError(f"channels {self.numbers}: expected different numbers from 0 on")
        if len(self.numbers) != len(self):
            raise SettingsError(f"channels {','.join(map(str, self.numbers))}: expected a number for each of {self}")

    @classmethod
    def unnamed(cls, count: int) -> RunChannels:
        """Return the channels of a run that does not know their names."""
        return cls(names=("",) * count)

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        named = ", ".join(f"{number} {name}".strip() for number, name in enumerate(self.names))
        return f"the run's {len(self)} channel{'s' * (len(self) > 1)}" + (f" ({named})" if any(self.names) else "")

    @property
    def expected(self) -> tuple[int, ...]:
        """The numbers of the run's channels in the names of files, in the order of the run."""
        return self.numbers or tuple(range(len(self)))

    @property
    def are_numbered(self) -> bool:
        """Whether a number at the end of a file's name is a channel."""
        return self.numbers != ()

    def problem(self, case_id: str, found: Iterable[int]) -> str | None:
        """Return why the numbered files of a case are not the run's channels; None where they are.

        Args:
            case_id: The case.
            found: The channels that the names of its files state.
        """
        there = sorted(set(found))
        missing = [number for number in self.expected if number not in there]
        extra = [] if self.numbers else [number for number in there if number not in self.expected]
        if not missing and not extra:
            return None
        wrong = [f"channel file _{number:04d} is missing" for number in missing]
        wrong += [f"channel file _{number:04d} is one too many" for number in extra]
        files = ", ".join(f"_{number:04d}" for number in there)
        return f"case {case_id}: {'; '.join(wrong)}: found {files}, expected {self}; {self._advice(there)}"

    def refuse_other_names(self, names: Sequence[str], source: object) -> None:
        """Refuse a dataset whose channels have other names, or the same ones in another order.

        Nothing is compared where the user chose channels, or where names do not tell what a channel is.

        Args:
            names: The dataset's channels.
            source: Where they are said.

        Raises:
            BadInputError: If they differ; names the choice that would fit, where there is one.
        """
        if self.numbers is not None or not names:
            return
        mine, theirs = ([_compared(name) for name in each] for each in (self.names, names))
        pairs = zip(mine, theirs, strict=False)
        if len(mine) == len(theirs) and all(one is None or other is None or one == other for one, other in pairs):
            return
        if len(mine) != len(theirs) and not (any(mine) and any(theirs)):
            return  # the files themselves show whether there are too many
        fitting = [theirs.index(name) for name in mine if name is not None and theirs.count(name) == 1]
        fits = len(fitting) == len(mine) and len(set(fitting)) == len(fitting)
        advice = f"these would be {_as_option(fitting)}" if fits else self._advice(range(len(names)))
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise BadInputError(f"{source}: the channels are {listed}, expected {self}; {advice}")

    def chosen_from(self, image: Tensor, name: str) -> Tensor:
        """Return the run's channels of an image that may hold more.

        Args:
            image: ``(C, *spatial)``.
            name: What to call it.

        Raises:
            BadInputError: If it has other channels than the run.
        """
        if self.numbers and not (len(image) == len(self) == 1):
            if max(self.numbers) < image.shape[-1] <= _FEW < len(image):
                raise BadInputError(f"{name}: has shape {tuple(image.shape)}{_LAST}")
            if max(self.numbers) >= len(image):
                raise BadInputError(f"{name}: has channels 0 to {len(image) - 1}, and {self.numbers} were chosen")
            same = self.numbers == tuple(range(len(image)))
            return image if same else image[torch.tensor(self.numbers, device=image.device)]
        if len(image) == len(self):
            return image
        last = _LAST if image.ndim > 2 and image.shape[-1] == len(self) else ""
        advice = (
            "give all of them in one file, or in files that end in _0000, _0001 and so on beside each other"
            if len(image) < len(self)
            else self._advice(range(len(image)))
        )
        raise BadInputError(
            f"{name}: has {len(image)} channel{'s' * (len(image) > 1)}, the network expects {len(self)} "
            f"(shape {tuple(image.shape)}, {self}): {advice}{last}"
        )

    def _advice(self, there: Sequence[int]) -> str:
        """Return how to choose from the channels that are there."""
        count = len(self)
        if len(there) < count:
            return f"give all of them, or choose others with {_as_option(range(count))}"
        advice = f"say which are the run's, in its order, for example with {_as_option(there[-count:])}"
        if count == 1 and 0 not in there:
            advice += "; or that the number belongs to the name of the case, with --channels none (channels=())"
        return advice


def names_beside(folder: Path) -> tuple[tuple[str, ...], Path] | None:
    """Return the channel names of the ``dataset.json`` that images of a folder belong to, and the file.

    Args:
        folder: The folder of the images. A ``dataset.json`` may be in it, or beside it as in nnU-Net's datasets.

    Returns:
        None where there is none, or one that names no channels.
    """
    for file in (folder / "dataset.json", folder.absolute().parent / "dataset.json"):
        try:
            content = read_json(file)
        except (OSError, ValueError):  # it is not what is predicted: whoever trains on it is told
            continue
        names = content.get("channel_names", content.get("modality")) if isinstance(content, dict) else None
        if isinstance(names, Mapping):
            numbered = sorted((int(key), str(name)) for key, name in names.items() if str(key).isdecimal())
            if numbered and len(numbered) == len(names):
                return tuple(name for _, name in numbered), file
    return None


def _compared(name: str) -> str | None:
    """Return what of a name is compared; None for one that says nothing."""
    plain = name.strip().casefold()
    return None if _SAYS_NOTHING.fullmatch(plain) else re.sub(r"[\W_]+", "", plain)


def _as_option(numbers: Iterable[int]) -> str:
    listed = ",".join(map(str, numbers))
    return f"--channels {listed} (in Python channels=({listed}{',' * (',' not in listed)}))"
