"""DICOM series in, label maps and DICOM SEG out."""

import dataclasses
import errno
import json

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.uid import generate_uid

from candy_monai.cli.main import main
from candy_monai.data.images.reading import load_image
from candy_monai.data.planning.plan import Region
from candy_monai.errors import BadInputError, ImageReadError, SettingsError
from candy_monai.inference.dicom_seg import TISSUE, read_segments, save_dicom_seg
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.inputs import CaseFiles
from candy_monai.inference.outputs import PredictionError
from candy_monai.inference.prediction import PredictionListener
from candy_monai.inference.predictor import Predictor
from candy_monai.training.segmentation import SegmentationTrainer
from tests.dicom_series import DX, base, multi_frame, oblique, placing, save, slices, volume
from tests.plans import small_plan
from tests.toys import Squares, small_trainer

VALUES, AFFINE = volume((23, 21, 12)), oblique()
CLASSES = {"background": 0, "shell": 1, "core": 2, "rim": 3}


def _network(channels=1, num_dims=3):
    torch.manual_seed(3)
    conv = torch.nn.Conv3d if num_dims == 3 else torch.nn.Conv2d
    network = torch.nn.Sequential(conv(channels, 4, 3, padding=1), torch.nn.ReLU(), conv(4, 3, 1))
    return network.eval()


class _Trainer(SegmentationTrainer):
    num_classes = 3

    def build_network(self, example_shape):
        return _network(example_shape[0], len(example_shape) - 1)


def _experiment(folder, *, channels=1, num_dims=3, plan=None):
    data = Squares(2, size=(16,) * num_dims, channels=channels, num_classes=3)
    trainer = small_trainer(folder, data, cls=_Trainer)
    if plan is not None:
        trainer.use_plan(plan)
        trainer.deep_supervision = False
    trainer.train(1, save_preview=False)
    return trainer.experiment_folder()


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Return an experiment whose plan resamples; it knows the names of its classes."""
    plan = dataclasses.replace(small_plan(), patch_shape=(16, 16, 16), spacing_mm=(1.0, 1.5, 2.0))
    return _experiment(tmp_path_factory.mktemp("planned"), plan=plan)


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory):
    return _experiment(tmp_path_factory.mktemp("two"), channels=2)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return _experiment(tmp_path_factory.mktemp("flat"), num_dims=2)


@pytest.fixture
def predictor(planned):
    return Predictor(planned, network=_network())


def _nifti(path, values, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def _ways(values, affine):
    return {
        "slices": slices(values, affine),
        "rescaled": slices(values, affine, RescaleSlope=lambda i: str(1 + i / 2), RescaleIntercept="-300"),
        "multi-frame": [multi_frame(values, affine, order=list(range(values.shape[2]))[::-1])],
    }


@pytest.mark.parametrize("way", ["slices", "rescaled", "multi-frame"])
def test_a_series_is_predicted_as_the_same_volume_in_nifti(predictor, tmp_path, way):
    folder = save(tmp_path / "case", _ways(VALUES, AFFINE)[way])
    values = load_image(folder)[0].numpy()
    expected = predictor.predict(_nifti(tmp_path / "scan.nii.gz", values))
    found = predictor.predict(folder)
    assert len(expected.unique()) > 1
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert np.allclose(found.affine, expected.affine, atol=1e-6)
    (written,) = predictor.predict_to_files(folder, tmp_path / "out", probabilities=True)
    (reference,) = predictor.predict_to_files(tmp_path / "scan.nii.gz", tmp_path / "reference", probabilities=True)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"case.nii.gz", "case_probabilities.nii.gz"} == {name for name in names if name.startswith("case")}
    for one, other in (
        (written, reference),
        (tmp_path / "out" / "case_probabilities.nii.gz", tmp_path / "reference" / "scan_probabilities.nii.gz"),
    ):
        one, other = nibabel.load(one), nibabel.load(other)
        assert np.array_equal(one.get_fdata(), other.get_fdata())
        assert np.allclose(one.affine, other.affine, atol=1e-5)


@pytest.mark.realdata
def test_a_real_ct_is_predicted_as_the_same_volume_in_nifti(predictor, real_dataset, tmp_path):
    scan = next((real_dataset("Dataset060_TotalSegCTExample") / "imagesTr").glob("*.nii.gz"))
    image = nibabel.load(scan).slicer[40:64, 30:60, 5:20]
    values, scale = np.asarray(image.dataobj), {"RescaleSlope": 1, "RescaleIntercept": -1100}
    folder = save(tmp_path / "ct", slices((values + 1100).astype(np.uint16), image.affine, **scale))
    (written,) = predictor.predict_to_files(folder, tmp_path / "out", dicom_seg=True)
    expected = predictor.predict(image)
    assert len(expected.unique()) > 1
    assert np.array_equal(nibabel.load(written).get_fdata(), expected[0])
    assert np.array_equal(_by_pydicom(tmp_path / "out" / "ct_seg.dcm", folder), expected[0])


def test_a_folder_of_series_and_of_files_has_a_case_for_each(predictor, tmp_path):
    scans = tmp_path / "scans"
    save(scans / "a", slices(VALUES, AFFINE))
    save(scans / "b.v1", slices(VALUES[::-1], AFFINE))
    (scans / "empty").mkdir()
    _nifti(scans / "c.nii.gz", VALUES)
    with pytest.warns(UserWarning, match="left out folders without DICOM files: empty"):
        written = predictor.predict_to_files(scans, tmp_path / "out")
    assert [file.name for file in written] == ["a.nii.gz", "b.v1.nii.gz", "c.nii.gz"]
    a, b, c = (nibabel.load(file).get_fdata() for file in written)
    assert np.array_equal(a, c)
    assert not np.array_equal(a, b)
    listed = predictor.predict_to_files([scans / "a", scans / "b.v1"], tmp_path / "listed")
    assert [np.array_equal(nibabel.load(file).get_fdata(), x) for file, x in zip(listed, (a, b), strict=True)] == [1, 1]


def test_a_series_that_cannot_be_read_does_not_stop_the_others(predictor, tmp_path):
    for name in ("good", "gap"):
        save(tmp_path / "scans" / name, slices(VALUES, AFFINE), [f"slice{index}" for index in range(12)])
    (tmp_path / "scans" / "gap" / "slice4").unlink()
    with pytest.raises(PredictionError, match=r"1 of 2 cases .*\n  - gap: .*5 mm from slice3 to slice5") as failed:
        predictor.predict_to_files(tmp_path / "scans", tmp_path / "out", dicom_seg=True)
    assert [file.name for file in failed.value.written] == ["good.nii.gz"]
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"good.nii.gz", "good_seg.dcm"} == {name for name in names if name.startswith("g")}


def test_no_segmentation_is_left_that_belongs_to_another_label_map(predictor, tmp_path, monkeypatch):
    folder = save(tmp_path / "ct", slices(VALUES, AFFINE))
    predictor.predict_to_files(folder, tmp_path / "out", dicom_seg=True)
    assert (tmp_path / "out" / "ct_seg.dcm").is_file()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("candy_monai.inference.outputs.save_image", full)
    with pytest.raises(OSError, match="No space left"):
        predictor.predict_to_files(folder, tmp_path / "out", dicom_seg=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["ct.nii.gz", "manifest.json"]


LAYOUTS = {
    "folders in the case's": (("case/0000", "case/0001"), lambda root: root),
    "the case's folder": (("case/0000", "case/0001"), lambda root: root / "case"),
    "one of them": (("case/0000", "case/0001"), lambda root: root / "case" / "0001"),
    "numbered folders": (("case_0000", "case_0001"), lambda root: root),
    "one of these": (("case_0000", "case_0001"), lambda root: root / "case_0000"),
    "a list": (("t1", "t2"), lambda root: [[root / "t1", root / "t2"]]),
    "CaseFiles": (("case_0000", "case_0001"), lambda root: [CaseFiles((root / "case_0000", root / "case_0001"))]),
}


@pytest.mark.parametrize(("names", "source"), LAYOUTS.values(), ids=LAYOUTS)
def test_each_channel_is_a_series(two_channels, tmp_path, names, source):
    predictor = Predictor(two_channels, network=_network(2))
    channels = VALUES, volume(VALUES.shape, seed=5)
    for name, values in zip(names, channels, strict=True):
        save(tmp_path / "scans" / name, slices(values, AFFINE))
    (written,) = predictor.predict_to_files(source(tmp_path / "scans"), tmp_path / "out")
    files = [_nifti(tmp_path / f"s_{number:04d}.nii.gz", values) for number, values in enumerate(channels)]
    assert np.array_equal(nibabel.load(written).get_fdata(), predictor.predict(files)[0])
    assert written.name == ("t1.nii.gz" if names[0] == "t1" else "case.nii.gz")


def test_a_case_without_one_of_its_series_is_refused(two_channels, tmp_path):
    save(tmp_path / "case" / "0001", slices(VALUES, AFFINE))
    with pytest.raises(BadInputError, match="case case: channel file _0000 is missing"):
        Predictor(two_channels, network=_network(2)).predict(tmp_path / "case")


def test_projections_are_pictures_each_a_case_of_its_own(flat, tmp_path):
    predictor, pictures = Predictor(flat, network=_network(num_dims=2)), {}
    for name in ("a.dcm", "IM_0001"):
        pictures[name] = volume((18, 24, 1), dtype=np.uint16, seed=len(pictures))[:, :, 0]
        save(tmp_path / "dx", [base(pictures[name], kind=DX, series=generate_uid(), modality="DX")], [name])
    written = predictor.predict_to_files(tmp_path / "dx", tmp_path / "out", dicom_seg=True)
    assert [file.name for file in written] == ["IM_0001.png", "a.png"]
    for name, label_map in zip(("IM_0001", "a.dcm"), written, strict=True):
        expected = predictor.predict(torch.from_numpy(pictures[name].astype(np.float32))[None])[0]
        assert len(expected.unique()) > 1
        assert np.array_equal(np.asarray(Image.open(label_map)), expected)
        seg = highdicom.seg.segread(label_map.with_name(f"{label_map.stem}_seg.dcm"))
        uid = pydicom.dcmread(tmp_path / "dx" / name).SOPInstanceUID
        assert np.array_equal(seg.get_pixels_by_source_instance([uid], combine_segments=True)[0], expected)


def test_a_folder_of_no_series_says_where_one_is(predictor, tmp_path):
    save(tmp_path / "patient" / "study" / "series", slices(VALUES, AFFINE))
    with pytest.raises(
        BadInputError, match=r"no image in this folder; a DICOM series is further down, in .*series: name"
    ):
        predictor.predict_to_files(tmp_path / "patient", tmp_path / "out")
    with pytest.raises(BadInputError, match="found a folder, expected one image"):
        predictor.predict(tmp_path / "patient")


def test_other_volumes_among_dicom_files_are_refused(predictor, tmp_path):
    save(tmp_path / "both", slices(VALUES, AFFINE))
    _nifti(tmp_path / "both" / "converted.nii.gz", VALUES)
    with pytest.raises(BadInputError, match=r"both: found DICOM files and other images \(converted.nii.gz\)"):
        predictor.predict_to_files(tmp_path / "both", tmp_path / "out")


def test_label_maps_are_not_written_among_the_slices(predictor, tmp_path):
    folder = save(tmp_path / "scans" / "a", slices(VALUES, AFFINE))
    for target in (folder, folder.parent):
        with pytest.raises(BadInputError, match="contains the images to predict"):
            predictor.predict_to_files([folder], target)


def _by_pydicom(path, folder, paints=None):
    """Return the label map ``(column, row, slice)`` of a SEG: each frame goes to the slice that it references."""
    seg, series = pydicom.dcmread(path), load_image(folder)
    labels = np.zeros(series.shape[1:], int)
    frames = np.reshape(seg.pixel_array, (-1, seg.Rows, seg.Columns))
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        affine = np.diag([-1.0, -1, 1, 1]) @ series.affine.numpy()
        *corner, index = (np.linalg.inv(affine) @ [*position, 1])[:3].round(3)
        assert corner == [0, 0]
        labels[:, :, int(index)][frame.T > 0] = number if paints is None else paints[number - 1]
    return labels


@pytest.mark.parametrize("way", ["slices", "multi-frame"])
@pytest.mark.parametrize("kind", ["some", "all", "none", "one slice"])
def test_a_segmentation_reads_back_as_the_label_map(tmp_path, way, kind):
    folder = save(tmp_path / "case", _ways(VALUES, AFFINE)[way])
    labels = np.random.default_rng(2).integers(0, 4, VALUES.shape)
    labels = {"some": labels * (labels < 3), "all": labels, "none": labels * 0, "one slice": labels}[kind]
    if kind == "one slice":
        labels[:, :, np.arange(VALUES.shape[2]) != 7] = 0
    path = tmp_path / "seg.dcm"
    save_dicom_seg(torch.from_numpy(labels)[None], path, series=folder, segments=CLASSES)
    assert np.array_equal(_by_pydicom(path, folder), labels)
    seg = highdicom.seg.segread(path)
    assert [seg.get_segment_description(number).segment_label for number in seg.segment_numbers] == [*CLASSES][1:]
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    assert {source.SeriesInstanceUID for source in sources} == {seg.ReferencedSeriesSequence[0].SeriesInstanceUID}
    assert seg.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == sources[0].StudyInstanceUID
    if way == "slices":
        sources.sort(key=lambda source: -source.InstanceNumber)
        read = seg.get_pixels_by_source_instance(
            [source.SOPInstanceUID for source in sources], combine_segments=True, assert_missing_frames_are_empty=True
        )
    else:
        read = seg.get_pixels_by_source_frame(
            sources[0].SOPInstanceUID,
            list(range(VALUES.shape[2], 0, -1)),  # the file has its frames in reverse
            combine_segments=True,
            assert_missing_frames_are_empty=True,
        )
    assert np.array_equal(read.transpose(2, 1, 0), labels)


def test_the_frames_of_a_segmentation_lie_where_those_of_the_series_do(tmp_path):
    folder = save(tmp_path / "case", slices(VALUES, AFFINE))
    labels = torch.from_numpy(np.random.default_rng(2).integers(0, 4, VALUES.shape))
    save_dicom_seg(labels, tmp_path / "seg.dcm", series=folder, segments=CLASSES)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    shared = seg.SharedFunctionalGroupsSequence[0]
    _, orientation, spacing, _ = placing(AFFINE, 0)
    assert np.allclose(shared.PlaneOrientationSequence[0].ImageOrientationPatient, np.array(orientation, float))
    assert np.allclose(shared.PixelMeasuresSequence[0].PixelSpacing, np.array(spacing, float))
    uids = {}
    for source in map(pydicom.dcmread, folder.iterdir()):
        uids[tuple(source.ImagePositionPatient)] = source.SOPInstanceUID
    for groups in seg.PerFrameFunctionalGroupsSequence:
        referenced = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert uids[tuple(groups.PlanePositionSequence[0].ImagePositionPatient)] == referenced


def test_regions_that_overlap_are_segments_that_overlap(planned, tmp_path):
    folder = save(tmp_path / "case", slices(VALUES, AFFINE))
    predictor = Predictor(planned, network=_network())
    regions = (Region(name="whole", ids=(1, 2, 3), paints=1), Region(name="core", ids=(2, 3), paints=2))
    predictor.plan = dataclasses.replace(predictor.plan, regions=(*regions, Region(name="inner", ids=(3,), paints=3)))
    classes = dict(predictor.classes)
    assert classes == {"whole": (1, 2, 3), "core": (2, 3), "inner": (3,)}
    labels = np.random.default_rng(2).integers(0, 4, VALUES.shape)
    path = tmp_path / "seg.dcm"
    save_dicom_seg(torch.from_numpy(labels), path, series=folder, segments=classes)
    assert np.array_equal(_by_pydicom(path, folder, paints=(1, 2, 3)), labels)
    seg = highdicom.seg.segread(path)
    assert seg.SegmentsOverlap == "YES"
    masks = seg.get_volume(combine_segments=False).array
    for number, ids in enumerate(classes.values()):
        turned = np.isin(labels, ids).transpose(2, 1, 0)
        assert any(np.array_equal(masks[..., number], mask) for mask in (turned, turned[::-1]))


def test_predict_writes_a_segmentation_with_the_plan_s_names(predictor, tmp_path):
    folder = save(tmp_path / "case", slices(VALUES, AFFINE))
    for one in (predictor, EnsemblePredictor([predictor, predictor])):
        (written,) = one.predict_to_files(folder, tmp_path / "out", dicom_seg=True)
        labels = nibabel.load(written).get_fdata()
        assert len(np.unique(labels)) > 1
        assert np.array_equal(_by_pydicom(tmp_path / "out" / "case_seg.dcm", folder), labels)
        seg = highdicom.seg.segread(tmp_path / "out" / "case_seg.dcm")
        described = [seg.get_segment_description(number) for number in seg.segment_numbers]
        assert [each.segment_label for each in described] == list(predictor.plan.class_names[1:])
        assert described[0].segmented_property_type == highdicom.sr.CodedConcept(*TISSUE)
        assert described[0].algorithm_type.name == "AUTOMATIC"


class _LeftOver(PredictionListener):
    def __init__(self):
        self.files = []

    def on_left_over(self, file, reason):
        self.files.append((file.name, reason))


def test_a_segmentation_of_an_earlier_prediction_is_named(predictor, tmp_path):
    folder, listener = save(tmp_path / "case", slices(VALUES, AFFINE)), _LeftOver()
    predictor.predict_to_files(folder, tmp_path / "out", dicom_seg=True, listener=listener)
    assert listener.files == []
    predictor.predict_to_files(folder, tmp_path / "out", listener=listener)
    assert listener.files == [
        ("case_seg.dcm", "the label map beside it is new, and no DICOM SEG was requested this time")
    ]


@pytest.mark.parametrize("kind", ["file", "tensor"])
def test_what_is_no_series_is_refused_before_any_work(predictor, tmp_path, kind):
    save(tmp_path / "scans" / "a", slices(VALUES, AFFINE))
    source = [tmp_path / "scans" / "a", _nifti(tmp_path / "scans" / "b.nii.gz", VALUES)]
    if kind == "tensor":
        source = torch.zeros(1, 8, 8, 8)
    with pytest.raises(BadInputError, match=r"(b.nii.gz|image_0|image): found no DICOM series, expected one"):
        predictor.predict_to_files(source, tmp_path / "out", dicom_seg=True)
    assert not (tmp_path / "out").exists()


def _no_frame_of_reference(datasets):
    for dataset in datasets:
        del dataset.FrameOfReferenceUID
    return datasets


def test_series_that_cannot_be_referenced_are_refused_before_any_work(predictor, tmp_path):
    lost = save(tmp_path / "lost", _no_frame_of_reference(slices(VALUES, AFFINE)))
    halves = multi_frame(VALUES[:, :, :6], AFFINE), multi_frame(VALUES, AFFINE, order=[6, 7, 8, 9, 10, 11])
    halves[1].SeriesInstanceUID = halves[0].SeriesInstanceUID
    several = save(tmp_path / "several", halves)
    assert np.array_equal(load_image(several)[0], VALUES)
    for folder, message in ((lost, "found no FrameOfReferenceUID"), (several, "found several multi-frame files")):
        with pytest.raises(BadInputError, match=message):
            predictor.predict_to_files(folder, tmp_path / "out", dicom_seg=True)
    assert not (tmp_path / "out").exists()


def test_headers_that_leave_out_what_may_be_empty_are_referenced_all_the_same(tmp_path):
    datasets = slices(VALUES, AFFINE)
    for dataset in datasets:
        for keyword in ("PatientSex", "PatientBirthDate", "StudyID", "AccessionNumber", "StudyTime", "SeriesNumber"):
            delattr(dataset, keyword)
    folder = save(tmp_path / "case", datasets)
    labels = np.random.default_rng(2).integers(0, 4, VALUES.shape)
    save_dicom_seg(torch.from_numpy(labels), tmp_path / "seg.dcm", series=folder, segments=CLASSES)
    assert np.array_equal(_by_pydicom(tmp_path / "seg.dcm", folder), labels)


def test_a_label_map_whose_axes_run_another_way_is_turned_and_one_elsewhere_refused(tmp_path):
    folder = save(tmp_path / "case", slices(VALUES, AFFINE))
    labels = np.random.default_rng(2).integers(0, 4, VALUES.shape).astype(np.uint8)
    image = nibabel.Nifti1Image(labels, AFFINE)
    nibabel.save(nibabel.as_closest_canonical(image), tmp_path / "turned.nii.gz")
    assert nibabel.load(tmp_path / "turned.nii.gz").shape != VALUES.shape
    turned = load_image(tmp_path / "turned.nii.gz", is_label=True)
    save_dicom_seg(turned, tmp_path / "seg.dcm", series=folder, segments=CLASSES)
    assert np.array_equal(_by_pydicom(tmp_path / "seg.dcm", folder), labels)
    turned.affine[:3, 3] += 20
    with pytest.raises(BadInputError, match="the label map: .* the series has"):
        save_dicom_seg(turned, tmp_path / "seg.dcm", series=folder, segments=CLASSES)


def test_label_maps_that_do_not_fit_are_refused(tmp_path):
    folder, path = save(tmp_path / "case", slices(VALUES, AFFINE)), tmp_path / "seg.dcm"
    with pytest.raises(BadInputError, match=r"shape \(4, 4, 4\), the series .*case \(23, 21, 12\)"):
        save_dicom_seg(torch.zeros(1, 4, 4, 4, dtype=int), path, series=folder, segments=CLASSES)
    labels = torch.zeros(VALUES.shape, dtype=int)
    labels[0, 0, :2] = torch.tensor([4, 9])
    with pytest.raises(BadInputError, match="holds the ids 4, 9, which belong to none of shell, core, rim"):
        save_dicom_seg(labels, path, series=folder, segments=CLASSES)
    with pytest.raises(ImageReadError, match="no such file"):
        save_dicom_seg(labels, path, series=tmp_path / "none.dcm", segments=CLASSES)
    assert not path.exists()


def test_segments_have_the_codes_and_colours_of_their_file(tmp_path):
    liver = {"category": ["123037004", "SCT", "Body structure"], "type": ["10200004", "SCT", "Liver"]}
    file = tmp_path / "segments.json"
    file.write_text(json.dumps({"core": {**liver, "color": [221, 130, 101]}, "rim": {"color": [1, 2, 3]}}))
    shell, core, rim = read_segments(CLASSES, file)
    assert (shell.category, shell.type) == (TISSUE, TISSUE)
    assert (core.category, core.type) == (tuple(liver["category"]), tuple(liver["type"]))
    assert (core.color, rim.color, rim.type, rim.ids) == ((221, 130, 101), (1, 2, 3), TISSUE, (3,))
    folder = save(tmp_path / "case", slices(VALUES, AFFINE))
    save_dicom_seg(torch.ones(VALUES.shape, dtype=int), tmp_path / "s.dcm", series=folder, segments=(shell, core, rim))
    described = highdicom.seg.segread(tmp_path / "s.dcm").get_segment_description(2)
    assert described.segmented_property_type == highdicom.sr.CodedConcept("10200004", "SCT", "Liver")
    assert np.allclose(
        highdicom.color.CIELabColor.from_dicom_value(described.RecommendedDisplayCIELabValue).to_rgb(),
        (221, 130, 101),
        atol=1,
    )


WRONG_CODES = {
    "no class": ({"liver": {}}, "unknown class 'liver', expected any of shell, core, rim"),
    "a typing error": ({"shel": {}}, "Did you mean 'shell'"),
    "no entry": ({"core": 3}, "core: found 3, expected entries category, type and color"),
    "other entries": ({"core": {"colour": [1, 2, 3]}}, "core: found colour, expected entries"),
    "two texts": ({"core": {"type": ["10200004", "SCT"]}}, "core: type is .*expected three texts"),
    "a long value": ({"core": {"type": ["1" * 17, "SCT", "Liver"]}}, "at most 16, 16 and 64 characters"),
    "a number": ({"core": {"category": [1, "SCT", "Liver"]}}, "core: category is .*expected three texts"),
    "two levels": ({"core": {"color": [1, 2]}}, "core: color is .*expected three whole numbers"),
    "a high level": ({"core": {"color": [1, 2, 256]}}, "core: color is .*from 0 to 255"),
    "a list": ([1], "found list, expected an object with the codes"),
    "nothing": (None, "found NoneType, expected an object with the codes"),
}


@pytest.mark.parametrize(("codes", "message"), WRONG_CODES.values(), ids=WRONG_CODES)
def test_wrong_codes_are_refused_with_their_file(tmp_path, codes, message):
    (tmp_path / "codes.json").write_text(json.dumps(codes))
    with pytest.raises(SettingsError, match=rf"codes\.json: {message}|codes\.json.*{message}"):
        read_segments(CLASSES, tmp_path / "codes.json")


def test_codes_that_are_no_json_are_refused(tmp_path):
    (tmp_path / "codes.json").write_text("{")
    for file in (tmp_path / "codes.json", tmp_path / "missing.json"):
        with pytest.raises(SettingsError, match=rf"{file.name}: not valid JSON"):
            read_segments(CLASSES, file)


def test_the_command_predicts_a_series_and_writes_its_segmentation(planned, tmp_path, capsys):
    trainer = tmp_path / "mine.py"
    trainer.write_text(
        "from torch import nn\nfrom candy_monai import SegmentationTrainer\n\nclass _Trainer(SegmentationTrainer):\n"
        "    num_classes = 3\n    def build_network(self, example_shape):\n"
        "        return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1))\n"
    )
    folder = save(tmp_path / "case", slices(VALUES, AFFINE))
    (tmp_path / "codes.json").write_text(json.dumps({"nothing": {}}))
    command = ["predict", str(planned), str(folder), str(tmp_path / "out"), "--trainer", f"{trainer}:_Trainer"]
    command += ["--device", "cpu"]
    assert main([*command, "--segments", str(tmp_path / "codes.json")]) == 2
    assert "give --to-dicom-seg, too" in capsys.readouterr().err
    assert main([*command, "--to-dicom-seg", "--segments", str(tmp_path / "codes.json")]) == 2
    assert "codes.json: unknown class 'nothing'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--to-dicom-seg"]) == 0
    labels = nibabel.load(tmp_path / "out" / "case.nii.gz").get_fdata()
    assert len(np.unique(labels)) > 1
    assert np.array_equal(_by_pydicom(tmp_path / "out" / "case_seg.dcm", folder), labels)
