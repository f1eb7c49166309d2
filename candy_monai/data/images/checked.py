"""MONAI's ``ImageReader`` and ``ImageWriter`` with our reading and writing, for its ``LoadImage`` and ``SaveImage``."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.image_reader import ImageReader
from monai.data.image_writer import ImageWriter
from monai.transforms import SpatialResample
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.data.images.alignment import aligned, mismatch
from candy_monai.data.images.formats import codec_of
from candy_monai.data.images.reading import geometry_of, read_channels, readable_by
from candy_monai.data.images.writing import save_image
from candy_monai.errors import ImageReadError


class CheckedReader(ImageReader):
    """A reader for MONAI's ``LoadImage`` that reads and checks files as `load_image` does.

    Several files are the channels of one case, on the grid of the first. As in MONAI's readers, an image of one channel
    has no channel axis, which ``EnsureChannelFirst`` adds; with several channels, the channel axis comes first. A
    picture is (row, column), whereas MONAI's ``PILReader`` swaps them.

    ``LoadImage`` converts the result to float32; ``dtype=numpy.int64`` preserves label ids beyond 2^24. It passes files
    of unknown formats to MONAI's own readers. All other errors are raised here.

    Args:
        is_label: The files hold label ids: whole numbers, one channel each.
        num_channels: The expected number of channels of an image; None accepts any number.
    """

    def __init__(self, *, is_label: bool = False, num_channels: int | None = None) -> None:
        super().__init__()
        self.is_label = is_label
        self.num_channels = num_channels

    @override
    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return whether the format of a file, or of all given files, is known; a folder must hold DICOM files."""
        return all(codec_of(file) is not None for file in _files(filename))

    @override
    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[Path, ...]:
        """Return the paths of the files of a case; `get_data` opens them, since ``LoadImage`` hides errors from here.

        Raises:
            ImageReadError: If the format of a file is unknown.
        """
        files = _files(data)
        for file in files:
            readable_by(file)
        return files

    @override
    def get_data(self, img: Sequence[PathLike] | PathLike) -> tuple[NDArray[np.generic], dict[str, Any]]:
        """Decode the files of one case.

        Args:
            img: The result of `read`.

        Returns:
            The samples, float32 or for labels int64: ``(*spatial)`` for one channel, ``(C, *spatial)`` for several; and
            the metadata, as described in `load_image`.

        Raises:
            ImageReadError: If a file is missing, damaged, not a label map although it should be, the grids of the
                channels cover different regions, or the number of channels is not the expected one.
        """
        files = _files(img)
        scan = read_channels(files, is_label=self.is_label)
        count = len(scan.values)
        if self.num_channels not in (None, count):
            raise ImageReadError(f"{files[0]}: found {count} channels, expected {self.num_channels}")
        if count > 1:
            return scan.values.numpy(), scan.meta()
        return scan.values[0].numpy(), {**scan.meta(), "original_channel_dim": math.nan}  # MONAI's "no_channel"


class CheckedWriter(ImageWriter):
    """A writer for MONAI's ``SaveImage`` that writes as `save_image` does: on the grid of the image's original file.

    Swapped or flipped axes are restored, which is exact and needs no ``resample=True``; the file has as many axes as
    the original one. The stored type never changes a value: integers are not stored as floating point, the default of
    ``SaveImage``, and a type that cannot hold the values is widened. Ids in floating point, as from ``AsDiscrete``,
    stay float32 unless ``SaveImage(output_dtype=numpy.uint8)`` is used.

    Args:
        output_dtype: The type to store, see ``dtype`` in `save_image`.
        scale: Clip to 0..1 and multiply by this before storing as integers, as for pictures of 255 grey levels.
        options: Stored as attributes, as in MONAI's writers.
    """

    def __init__(self, output_dtype: DTypeLike | None = None, scale: int | None = None, **options: Any) -> None:
        super().__init__(output_dtype=output_dtype, scale=scale, **options)

    @override
    def set_data_array(
        self,
        data_array: Tensor | NDArray[np.generic],
        channel_dim: int | None = 0,
        squeeze_end_dims: bool = True,
        **kwargs: Any,
    ) -> None:
        """Check and store an image ``(C, *spatial)``, whose channels may be on another axis or absent (None).

        Its axes are those of its original file, regardless of ``squeeze_end_dims``.
        """
        values = data_array.as_tensor() if isinstance(data_array, MetaTensor) else torch.as_tensor(data_array)
        values = values[None] if channel_dim is None else values.movedim(channel_dim, 0)
        if self.scale is not None:
            values = (values.float().clamp(0, 1) * self.scale).round().long()
        self.data_obj = MetaTensor(values)

    @override
    def set_metadata(
        self,
        meta_dict: Mapping[str, Any] | None,
        resample: bool = True,
        mode: str = "nearest",
        padding_mode: str = "border",
        dtype: DTypeLike = np.float64,
        **options: Any,
    ) -> None:
        """Compute the image on the grid of its original file, and store that grid.

        Args:
            meta_dict: ``affine``, and ``original_affine`` and ``spatial_shape`` of the file.
            resample: Interpolate if the grid is a different one; otherwise the image is written on its own grid.
            mode: The interpolation, see MONAI's ``SpatialResample``.
            padding_mode: The values outside, see there.
            dtype: The type for computations.
            options: Not used.

        Raises:
            BadInputError: If an affine is invalid.
        """
        if not meta_dict:
            return
        values = self.data_obj.as_tensor()
        self.data_obj = MetaTensor(values, meta=dict(meta_dict))
        shape = tuple(int(length) for length in meta_dict.get("spatial_shape", ()))
        if "original_affine" not in meta_dict or len(shape) != values.ndim - 1:
            return
        file = MetaTensor(torch.empty(1, *shape), meta={**meta_dict, "affine": meta_dict["original_affine"]})
        found, expected, against = geometry_of(self.data_obj), geometry_of(file), "the file has"
        if mismatch(found, expected, against=against) is None:
            turned = aligned(values, found, expected, name="the image", against=against)
            if turned is not values:
                self.data_obj = MetaTensor(turned, meta=file.meta)
        elif resample:
            interpolate = SpatialResample(mode=mode, padding_mode=padding_mode, dtype=dtype)
            moved = interpolate(self.data_obj, dst_affine=expected.affine, spatial_size=shape).as_tensor()
            keeps_ids = mode == "nearest" and not values.is_floating_point()
            self.data_obj = MetaTensor(moved.round().to(values.dtype) if keeps_ids else moved, meta=file.meta)

    @override
    def write(self, filename: PathLike, verbose: bool = True, **kwargs: Any) -> None:
        """Write the file atomically.

        Raises:
            BadInputError: If the format, which the suffix determines, cannot hold the image.
        """
        super().write(filename, verbose=verbose)
        save_image(self.data_obj, filename, dtype=self.output_dtype)


def _files(given: Sequence[PathLike] | PathLike) -> tuple[Path, ...]:
    return tuple(map(Path, [given] if isinstance(given, str | os.PathLike) else given))
