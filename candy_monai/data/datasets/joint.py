"""Apply random MONAI transforms to an image and its label together.

The default augmentation of a planned run is described in ``candy_monai.data.pipelines``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from candy_monai.errors import BadInputError
from candy_monai.label_ids import holds_whole_numbers, ids_in


class JointTransform:
    """Transforms an image and its label with one random state, and then each by itself.

    Inputs are never changed. Labels must be interpolated by nearest neighbour; other interpolation is detected by new
    ids.

    Random transforms are MONAI's, whose generators depend neither on ``set_seed`` nor on a loader's workers. So they
    are seeded for every sample from PyTorch's generator: every worker and every epoch has its own numbers, determined
    by ``set_seed``, and the transforms have no state that a resumed run would need. ``set_random_state`` takes
    precedence in the process that calls it.

    Args:
        transform: Takes and returns ``{"image": ..., "label": ...}``: any MONAI dictionary transform, or any callable.
            A transform that returns a list of samples, such as ``RandCropByPosNegLabeld``, must return a single one.
        image_transform: Applied to the image alone, afterwards.
        label_transform: Applied to the label alone, afterwards; may change ids on purpose.
    """

    def __init__(
        self,
        transform: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
        *,
        image_transform: Callable[[Tensor], Tensor] | None = None,
        label_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._transform = transform
        self._image_transform = image_transform
        self._label_transform = label_transform
        parts = (transform, image_transform, label_transform)
        self._random_parts = tuple(part for part in parts if callable(getattr(part, "set_random_state", None)))
        self._seeded_in: int | str | None = None

    def set_random_state(self, seed: int) -> None:
        """Seed every transform that can be seeded in MONAI's way, for this process."""
        self._seed(seed)
        self._seeded_in = _process()

    def _seed(self, seed: int) -> None:
        for part in self._random_parts:
            part.set_random_state(seed=seed)  # type: ignore[union-attr]  # checked above

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return a transformed image and label; the label keeps its type.

        Args:
            image: ``(C, *spatial)``.
            label: ``(1, *spatial)`` ids.

        Raises:
            BadInputError: If ``transform`` created new label ids, or did not return one image and its label.
        """
        if self._random_parts and self._seeded_in != _process():
            self._seed(int(torch.randint(1 << 32, ())))
        new_image, new_label = image.clone(), label.clone()
        if self._transform is not None:
            new_image, new_label = _pair_in(self._transform({"image": new_image, "label": new_label}))
            _refuse_new_ids(label, new_label)
            new_label = new_label.to(label.dtype)
        if self._image_transform is not None:
            new_image = self._image_transform(new_image)
        if self._label_transform is not None:
            new_label = self._label_transform(new_label)
        return new_image, new_label


def _pair_in(changed: object) -> tuple[Tensor, Tensor]:
    """Return the image and the label of the single sample that a transform returned."""
    if isinstance(changed, list) and len(changed) == 1:  # MONAI's crops return a list even with num_samples=1
        changed = changed[0]
    if isinstance(changed, Mapping) and {"image", "label"} <= set(changed):
        return changed["image"], changed["label"]
    if isinstance(changed, list):
        raise BadInputError(
            f"the transform returned {len(changed)} samples, but one image and its label are expected: use "
            "num_samples=1; to train on more crops in a step, increase the batch size"
        )
    found = f"the entries {sorted(map(str, changed))}" if isinstance(changed, Mapping) else type(changed).__name__
    raise BadInputError(f'the transform must return {{"image": ..., "label": ...}}, but returned {found}')


def _process() -> int | str:
    """Return a value that distinguishes the workers of each iteration of a loader, and the main process."""
    worker = get_worker_info()
    return "main" if worker is None else worker.seed


def _refuse_new_ids(before: Tensor, after: Tensor) -> None:
    if not holds_whole_numbers(after):
        invented: list[float] = [float(after[after != after.round()][0])]
    else:
        invented = sorted({*ids_in(after)} - {0, *ids_in(before)})  # padding may add the background
    if invented:
        raise BadInputError(
            f"the transform created label values that were not in the label map, for example {invented[0]}: "
            'interpolate labels with nearest neighbour, in MONAI with mode=("bilinear", "nearest") for image and label'
        )
