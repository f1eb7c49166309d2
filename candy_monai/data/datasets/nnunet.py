"""Dataset for a folder in nnU-Net's format.

``nnunet_description`` reads ``dataset.json``, ``nnunet_files`` pairs files, ``inspection.checks`` opens the images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import Device, PathLike
from candy_monai.data.datasets.bases import PairTransform, SupervisedDataset, Transform
from candy_monai.data.datasets.folds import DEFAULT_SEED, Fold, Grouping, Strata, checked_splits, choose_folds
from candy_monai.data.datasets.nnunet_description import NNUNetCase, Split
from candy_monai.data.datasets.nnunet_files import Listing, list_dataset
from candy_monai.data.images.names import composed
from candy_monai.data.images.reading import (
    Scan,
    at_finest_spacing,
    read_channels,
    read_geometry,
    read_scan,
    turned_label,
)
from candy_monai.errors import BadInputError, DatasetError, ImageReadError, SettingsError

if TYPE_CHECKING:
    from monai.data import MetaTensor


class NNUNetDataset(SupervisedDataset):
    """The training or test cases of an nnU-Net folder, paired by case id.

    Args:
        folder: The folder with ``dataset.json``.
        split: ``"Tr"``, or ``"Ts"`` for the test cases, whose labels may be missing.
        prefix: Use only cases whose id starts with it.
        align_spacing: Resample every case to its own finest spacing, see ``load_image``.
        transform: Applied to image and label together, after the two below.
        image_transform: Applied to the image alone.
        label_transform: Applied to the label alone.
        device: The device of the items.
        listing: The listing of the folder, if known; None to read it.

    Raises:
        DatasetError: If ``dataset.json`` is invalid, or files are missing or surplus; lists every problem. The images
            are not opened, only by ``check_dataset``.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        split: Split = "Tr",
        prefix: str = "",
        align_spacing: bool = False,
        transform: PairTransform | None = None,
        image_transform: Transform | None = None,
        label_transform: Transform | None = None,
        device: Device = "cpu",
        listing: Listing | None = None,
    ) -> None:
        if split not in ("Tr", "Ts"):
            raise SettingsError(f"split must be 'Tr' or 'Ts', got {split!r}")
        self._folder = Path(folder)
        self._split = split
        listing = list_dataset(self._folder, split) if listing is None else listing
        description, cases = listing.description, listing.cases.get(split, ())
        problems = [*listing.description_problems, *listing.problems.get(split, ())]
        if description is None or problems:
            raise DatasetError(folder, problems)
        self.description = description
        self._all_ids = tuple(case.case_id for case in cases)
        cases = tuple(case for case in cases if case.case_id.startswith(composed(prefix)))
        if not cases:
            found = f"no case whose id starts with {prefix!r}" if prefix else "no case"
            raise DatasetError(folder, [f"images{split}: {found}"])
        super().__init__(cases, cases, transform=transform, device=device, case_ids=[case.case_id for case in cases])
        self._align_spacing = align_spacing
        self._image_transform = image_transform
        self._label_transform = label_transform

    @property
    def folder(self) -> Path:
        """The dataset's folder."""
        return self._folder

    @property
    def cases(self) -> tuple[NNUNetCase, ...]:
        """The cases with their files, in the order of the items."""
        return tuple(self._images)

    @property
    def num_classes(self) -> int:
        """The number of labels, including the background but not the ignore label."""
        return self.description.num_classes

    @property
    def num_channels(self) -> int:
        """The number of channels of every image."""
        return self.description.num_channels

    def dicts(self, *, label: bool | None = None) -> list[dict[str, Any]]:
        """Return the cases as MONAI's datasets expect them: dictionaries of file names, for ``LoadImaged``.

        This dataset's own transforms and ``align_spacing`` do not apply.

        Args:
            label: Whether to include a ``"label"``; None for those cases that have one, as all training cases do.

        Returns:
            For each case ``"image"``, a file name or a list of them for several channels, ``"label"``, a file name, and
            ``"case_id"``.

        Raises:
            DatasetError: If ``label`` is True and a case has none.
        """
        missing = [case.case_id for case in self.cases if case.label is None]
        if label and missing:
            raise DatasetError(self._folder, [f"{case_id}: has no label" for case_id in missing])
        entries: list[dict[str, Any]] = []
        for case in self.cases:
            files = [str(path) for path in case.images]
            entry: dict[str, Any] = {"image": files[0] if len(files) == 1 else files, "case_id": case.case_id}
            if case.label is not None and label is not False:
                entry["label"] = str(case.label)
            entries.append(entry)
        return entries

    @override
    def load_image(self, idx: int) -> MetaTensor:
        """Return the image of a case with all its channels, ``(C, *spatial)`` float32.

        Raises:
            ImageReadError: If a file cannot be decoded, the number of channels is wrong, or the channels cover
                different regions. Channels with other axes in the same space are aligned to the first one.
        """
        return self._tensor(self._image_scan(self._images[idx]), is_label=False)

    @override
    def load_label(self, idx: int) -> MetaTensor:
        """Return the label ids of a case, ``(1, *spatial)`` int64.

        They are aligned to the axes of the image if both are in the same space.

        Raises:
            DatasetError: If the case has no label, which is allowed only for test cases.
            ImageReadError: If the file cannot be decoded or contains fractions.
        """
        case: NNUNetCase = self._labels[idx]
        if case.label is None:
            raise DatasetError(self._folder, [f"{case.case_id}: has no label; use load_image for images alone"])
        label = read_scan(case.label, is_label=True)
        return self._tensor(turned_label(label, read_geometry(case.images[0])), is_label=True)

    def read(self, idx: int) -> tuple[Scan, Scan]:
        """Return the same as ``load`` as plain scans on the CPU, without MONAI; errors are the same."""
        loaders = ("load", "load_image", "load_label")
        own = all(getattr(type(self), name) is getattr(NNUNetDataset, name) for name in loaders)
        case: NNUNetCase = self._images[idx]
        if self._align_spacing or case.label is None or not own:
            image, label = (tensor.cpu() for tensor in self.load(idx))
            return Scan.of(image), Scan.of(label)
        image = self._image_scan(case)
        return image, turned_label(read_scan(case.label, is_label=True), image.geometry)

    def fold(  # one option more than the base
        self,
        *,
        fold: int | Literal["all"] = 0,
        k: int | None = None,
        seed: int = DEFAULT_SEED,
        groups: Grouping | None = None,
        stratify_by: Strata | None = None,
        splits: PathLike | None = None,
    ) -> tuple[Self, Self]:
        """Divide the cases into training and validation datasets.

        Without ``k``, ``groups`` and ``stratify_by``, the splits of an earlier nnU-Net run are used if there are any:
        ``splits``, ``splits_final.json`` in the dataset's folder, or the one under ``$nnUNet_preprocessed``. Otherwise
        the folds are nnU-Net's own. ``splits`` is a file in nnU-Net's format; the other arguments and the result are
        those of `CaseDataset.fold`.

        Raises:
            SettingsError: If ``k`` or ``fold`` is out of range or options contradict each other.
            DatasetError: If a split file names unknown cases or has a case on both sides.
        """
        if fold == "all":
            return super().fold(fold=fold)
        return self.sides(self.folds(k=k, seed=seed, groups=groups, stratify_by=stratify_by, splits=splits), fold)

    def folds(
        self,
        *,
        k: int | None = None,
        seed: int = DEFAULT_SEED,
        groups: Grouping | None = None,
        stratify_by: Strata | None = None,
        splits: PathLike | None = None,
    ) -> tuple[Fold, ...]:
        """Return all folds from which ``fold`` chooses; arguments and errors are the same."""
        makes_own = k is not None or groups is not None or stratify_by is not None
        if splits is not None and makes_own:
            raise SettingsError(
                "splits defines the folds, so k, groups and stratify_by have no effect: give either splits or these"
            )
        path = None if makes_own or self._split != "Tr" else self._splits_file(splits)
        if path is None:
            return choose_folds(self._case_ids, k=k, seed=seed, groups=groups, stratify_by=stratify_by)
        folds, problems = checked_splits(path, self._all_ids)
        if problems:
            raise DatasetError(self._folder, problems)
        return folds

    @override
    def _transformed(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        image = image if self._image_transform is None else self._image_transform(image)
        label = label if self._label_transform is None else self._label_transform(label)
        return super()._transformed(image, label)

    def _image_scan(self, case: NNUNetCase) -> Scan:
        scan = read_channels(case.images)
        channels = len(scan.values)
        if channels != self.num_channels:
            raise ImageReadError(
                f"{case.images[0]}: found {channels} channels, expected {self.num_channels}: "
                f"{', '.join(self.description.channel_names)} (dataset.json)"
            )
        return scan

    def _tensor(self, scan: Scan, *, is_label: bool) -> MetaTensor:
        tensor = scan.tensor(self._device)
        return at_finest_spacing(tensor, is_label=is_label) if self._align_spacing else tensor

    def _splits_file(self, given: PathLike | None) -> Path | None:
        if given is not None:
            if not Path(given).is_file():
                raise BadInputError(f"{given}: no such file; expected a file of splits in nnU-Net's format")
            return Path(given)
        preprocessed = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 - the name is nnU-Net's
        folders = [self._folder, *([Path(preprocessed) / self._folder.resolve().name] if preprocessed else [])]
        return next((path for path in (folder / "splits_final.json" for folder in folders) if path.is_file()), None)
