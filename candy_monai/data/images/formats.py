"""The supported formats, by suffix, and the modules that decode and encode them; a DICOM series is a folder.

Errors of decoders are converted into one readable error by ``candy_monai.data.images.reading``. The decoders convert
every unit of length to millimetres and refuse invalid affines, so that no other module has to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from candy_monai.data.images import dicom, itk_io, nifti, pictures
from candy_monai.data.images.names import image_suffix
from candy_monai.data.images.pictures import PICTURES, TIFFS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from candy_monai.data.images.geometry import Geometry

DETACHED = {".mhd": ".mha", ".nhdr": ".nrrd"}
"""Headers with a separate data file, which are read but not written, and the formats that contain both."""


class Codec(Protocol):
    """Protocol of the modules that read single formats."""

    def read(self, path: Path, *, is_label: bool) -> tuple[NDArray[np.generic], Geometry]:
        """Decode a file into a channel-first array and its geometry."""

    def read_header(self, path: Path) -> Geometry:
        """Read the geometry of a file without decoding its samples."""


class WritingCodec(Codec, Protocol):
    """Protocol of the modules that also write their format, which is that of all files but DICOM's."""

    def write(self, path: Path, array: NDArray[np.generic], geometry: Geometry, *, beside: Path) -> None:
        """Encode a channel-first array.

        Args:
            path: The file to write, possibly a temporary one, with the suffix of the final one.
            array: ``(C, *spatial)``, of a type that the format supports.
            geometry: The grid of the samples.
            beside: The file's final path: the spacing of a volume of TIFF pages is in a ``.json`` file next to it.

        Raises:
            ValueError: If the format cannot hold the array.
        """


CODECS: dict[str, WritingCodec] = {
    **dict.fromkeys((".nii", ".nii.gz"), nifti),
    **dict.fromkeys((*PICTURES, *TIFFS), pictures),
    **dict.fromkeys((".mha", ".mhd", ".nrrd", ".nhdr"), itk_io),
}
READABLE = tuple(CODECS)
VOLUMES = tuple(suffix for suffix in CODECS if suffix not in PICTURES)
KNOWN = f"known formats: {', '.join(READABLE)}, and a DICOM series, which is a folder or any of its files"


def codec_of(path: Path) -> Codec | None:
    """Return the module that decodes a path, by its suffix or as a DICOM series; None if there is none."""
    if not path.is_dir() and (codec := CODECS.get(image_suffix(path))) is not None:
        return codec
    return dicom if image_suffix(path) in dicom.SUFFIXES or dicom.is_dicom(path) else None
