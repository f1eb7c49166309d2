"""DICOM series to test with, written by pydicom alone: slices, multi-frame files and projections of given volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, DX, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.2.1"


def volume(shape=(7, 6, 5), *, dtype=np.int16, seed=0):
    """Return stored values ``(column, row, slice)``."""
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(dtype)


def oblique(spacing=(0.8, 1.3, 2.5), origin=(-31.5, 12.25, 7.0)):
    """Return a right-handed RAS affine whose axes lie along none of the patient's."""
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.sign(np.linalg.det(rotation)) * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def base(values, *, kind=CT, series, modality="CT", **changes):
    """Return a dataset of one picture ``(row, column)`` or several."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[series]), series
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[series, "frame"])
    dataset.PatientID, dataset.PatientName, dataset.StudyID = "P1", "Doe^Jane", "S1"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyDate, dataset.StudyTime = "20260101", "120000"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.Modality, dataset.SeriesDescription = modality, "a series"
    dataset.Manufacturer = "nobody"
    dataset.Rows, dataset.Columns = values.shape[-2:] if values.shape[-1] != 3 else values.shape[-3:-1]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def placing(affine, index):
    """Return position, orientation and spacing of a slice by a RAS affine, as DICOM states them."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    position = (lps @ [0, 0, index, 1])[:3]
    texts = [[f"{number:.10g}"[:16] for number in numbers] for numbers in (position, directions[:, :2].T.ravel())]
    return *texts, [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"], f"{spacing[2]:.10g}"


def slices(values, affine, *, series=None, **changes):
    """Return the datasets of a volume ``(column, row, slice)``, in its order; a callable is asked for each slice."""
    series = series or generate_uid()
    result = []
    for index in range(values.shape[2]):
        of_slice = {key: change(index) if callable(change) else change for key, change in changes.items()}
        dataset = base(np.ascontiguousarray(values[:, :, index].T), series=series, **of_slice)
        position, orientation, spacing, _ = placing(affine, index)
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = position, orientation
        dataset.PixelSpacing, dataset.SliceThickness = spacing, "99"  # which is not the distance between slices
        dataset.InstanceNumber = values.shape[2] - index
        result.append(dataset)
    return result


def multi_frame(values, affine, *, order=None, slopes=None, **changes):
    """Return an enhanced multi-frame dataset; ``order`` is that of its frames, ``slopes`` one for each slice."""
    order = list(range(values.shape[2])) if order is None else order
    frames = np.ascontiguousarray(values.transpose(2, 1, 0)[order])
    dataset = base(frames, kind=ENHANCED_CT, series=generate_uid(), NumberOfFrames=len(order), **changes)
    _, orientation, spacing, distance = placing(affine, 0)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, plane.ImageOrientationPatient = spacing, distance, orientation
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    dataset.SharedFunctionalGroupsSequence, groups = Sequence([shared]), []
    for index in order:
        group, position, scale = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = placing(affine, index)[0]
        group.PlanePositionSequence = Sequence([position])
        if slopes is not None:
            scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = str(slopes[index]), "-10", "US"
            group.PixelValueTransformationSequence = Sequence([scale])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset


def save(folder: Path, datasets, names=None) -> Path:
    """Write datasets under names that are not in their order, without suffixes as scanners do."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(datasets)
    for index, dataset in enumerate(datasets):
        name = names[index] if names else f"IM{(index * 7 + 3) % (7 * count) if count % 7 else index:05d}"
        dataset.save_as(folder / name, enforce_file_format=True)
    return folder
