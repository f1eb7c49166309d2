import pytest
import torch
from monai.data import MetaTensor

from candy_monai.data.pipelines.description import largest_component, without_small_components
from candy_monai.errors import BadInputError
from candy_monai.inference.buffers import buffer_on_disk
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.expected_overlap import ExpectedOverlap
from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.prediction import NoPreprocessing
from candy_monai.inference.predictor import Predictor
from candy_monai.inference.quality import Calibration, QualityModel
from candy_monai.inference.typical_inputs import TypicalInputs
from tests.toys import SmallTrainer, Squares, small_trainer

INPUTS = TypicalInputs(
    spacing_mm=(), shape=((17.0, 17.0), (13.0, 13.0)), intensities={}, has_empty_cases=False, classes={}
)


class _Multi(SmallTrainer):
    num_classes = 3


def _member(folder, *, cls=SmallTrainer, channels=1, inferer=None, seed=None):
    data = Squares(2, size=(14, 16), channels=channels, num_classes=max(2, cls.num_classes))
    trainer = small_trainer(folder, data, cls=cls)
    trainer.train(1, save_preview=False, seed=seed)
    network = trainer.build_network((channels, 14, 16))
    return Predictor(trainer.experiment_folder(), network=network, inferer=inferer)


@pytest.mark.parametrize("cls", [SmallTrainer, _Multi])
@pytest.mark.parametrize("inferer", [None, WindowInferer((8, 8))], ids=["whole", "windows"])
def test_an_ensemble_averages_the_probabilities_of_its_members(tmp_path, cls, inferer):
    members = [_member(tmp_path, cls=cls, inferer=inferer) for _ in range(2)]
    image = torch.randn(1, 17, 13, generator=torch.Generator().manual_seed(0))
    own = [member.predict_image(image, probabilities=True).probabilities.as_tensor() for member in members]
    mean = (own[0] + own[1]) / 2
    prediction = EnsemblePredictor(members).predict_image(image, probabilities=True)
    assert torch.allclose(prediction.probabilities.as_tensor(), mean, atol=1e-5)
    expected = mean.argmax(0, keepdim=True) if cls.num_classes > 1 else (mean > 0.5)
    assert torch.equal(prediction.labels.as_tensor(), expected.to(torch.uint8))
    assert torch.equal(EnsemblePredictor(members).predict(image).as_tensor(), expected.to(torch.uint8))


def test_members_with_other_windows_are_averaged_on_the_file_s_grid(tmp_path):
    members = [_member(tmp_path, cls=_Multi, inferer=WindowInferer(window)) for window in ((8, 8), (12, 6))]
    image = torch.randn(1, 17, 13, generator=torch.Generator().manual_seed(0))
    mean = sum(m.predict_image(image, probabilities=True).probabilities.as_tensor() for m in members) / 2
    prediction = EnsemblePredictor(members).predict_image(image, probabilities=True)
    assert torch.allclose(prediction.probabilities.as_tensor(), mean, atol=1e-5)
    assert torch.equal(prediction.labels.as_tensor(), mean.argmax(0, keepdim=True).to(torch.uint8))


@pytest.mark.slow
def test_all_classes_of_members_with_other_windows_count_towards_the_memory(tmp_path, monkeypatch):
    members = [_member(tmp_path, cls=_Multi, inferer=WindowInferer(window)) for window in ((8, 8), (12, 6))]
    image = torch.randn(1, 170, 130, generator=torch.Generator().manual_seed(0))
    several, alike = EnsemblePredictor(members), EnsemblePredictor([members[0], members[0]])
    needed, needed_alike = (e.estimate_prepared(e.prepare("a", MetaTensor(image))) for e in (several, alike))
    assert needed.without_buffer > needed_alike.without_buffer + 3 * 170 * 130 * 4
    made = []
    where = "candy_monai.inference.network_predictor.buffer_on_disk"
    monkeypatch.setattr(where, lambda *arguments: made.append(1) or buffer_on_disk(*arguments))
    bounded = EnsemblePredictor(members, memory=needed.without_buffer + needed.buffer // 2)
    assert torch.equal(bounded.predict(image).as_tensor(), several.predict(image).as_tensor())
    assert made
    with pytest.raises(BadInputError, match="raise this limit"):
        EnsemblePredictor(members, memory=needed_alike.without_buffer).predict(image)


def test_members_that_predict_other_things_are_refused_by_name(tmp_path):
    first = _member(tmp_path)
    for other, what in ((_member(tmp_path, channels=2), "channels 2"), (_member(tmp_path, cls=_Multi), "classes 3")):
        with pytest.raises(BadInputError, match=f"{other.folder.name}: found {what}"):
            EnsemblePredictor([first, other])


def test_members_whose_regions_write_other_ids_are_refused(tmp_path):
    first, other = (_member(tmp_path, cls=_Multi) for _ in range(2))
    first.preprocessor, other.preprocessor = NoPreprocessing((1, 2, 3)), NoPreprocessing((1, 3, 2))
    with pytest.raises(BadInputError, match=r"found ids of regions \(1, 3, 2\), but .* has \(1, 2, 3\)"):
        EnsemblePredictor([first, other])


def test_an_ensemble_of_nobody_is_refused():
    with pytest.raises(BadInputError, match="at least one experiment"):
        EnsemblePredictor([])


def test_groups_of_members_predict_what_an_ensemble_of_each_does(tmp_path):
    members = [_member(tmp_path, cls=_Multi, inferer=WindowInferer(window)) for window in ((8, 8), (12, 6), (8, 12))]
    image = torch.randn(1, 17, 13, generator=torch.Generator().manual_seed(0))
    whole = EnsemblePredictor(members)
    case = whole.prepare("a", MetaTensor(image))
    groups = [(0,), (2,), (0, 1), (0, 1, 2)]
    found = dict(whole.run_groups(case, groups, probabilities=True))
    assert list(found) == [0, 2, 1, 3]  # as their members were run
    for index, group in enumerate(groups):
        expected = EnsemblePredictor([members[each] for each in group]).predict_image(image, probabilities=True)
        assert torch.equal(found[index].labels.as_tensor(), expected.labels.as_tensor())
        assert torch.allclose(found[index].probabilities, expected.probabilities, atol=1e-6)


@pytest.mark.slow
def test_groups_of_members_keep_to_the_memory_of_the_whole(tmp_path, monkeypatch):
    members = [_member(tmp_path, cls=_Multi, inferer=WindowInferer(window)) for window in ((8, 8), (12, 6))]
    image = MetaTensor(torch.randn(1, 170, 130, generator=torch.Generator().manual_seed(0)))
    free = EnsemblePredictor(members)
    needed = free.estimate_prepared(free.prepare("a", image)).with_probabilities()
    made = []
    where = "candy_monai.inference.network_predictor.buffer_on_disk"
    monkeypatch.setattr(where, lambda *arguments: made.append(1) or buffer_on_disk(*arguments))

    def together(ensemble):
        return dict(ensemble.run_groups(ensemble.prepare("a", image), [(0, 1)]))[0].labels.as_tensor()

    expected = together(free)
    assert not made
    bounded = EnsemblePredictor(members, memory=needed.without_buffer + needed.buffer // 2)
    assert torch.equal(together(bounded), expected)
    assert made
    with pytest.raises(BadInputError, match="raise this limit"):
        together(EnsemblePredictor(members, memory=needed.without_buffer // 2))


def test_a_single_foreground_counts_above_its_threshold(tmp_path):
    members = [_member(tmp_path) for _ in range(2)]
    image = torch.randn(1, 17, 13, generator=torch.Generator().manual_seed(0))
    prediction = EnsemblePredictor(members, thresholds=(0.3,)).predict_image(image, probabilities=True)
    mean = prediction.probabilities.as_tensor()
    assert torch.equal(prediction.labels.as_tensor(), (mean > 0.3).to(torch.uint8))
    assert 0 < int((mean > 0.5).sum()) < int((mean > 0.3).sum())
    with pytest.raises(BadInputError, match="found 2 thresholds, expected 1"):
        EnsemblePredictor(members, thresholds=(0.3, 0.4))


def test_ids_of_steps_after_the_members_own_are_kept_whatever_their_size(tmp_path):
    member = _member(tmp_path, cls=_Multi, seed=0)
    image = torch.randn(1, 17, 13, generator=torch.Generator().manual_seed(0))
    plain = member.predict(image).as_tensor()

    def mapped(target):
        step = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": [1, 2], "target_labels": target}
        return EnsemblePredictor([member], postprocessing=[step]).predict(image).as_tensor()

    assert mapped([2, 1]).dtype == plain.dtype == torch.uint8
    for large in (300, 70_000):
        ids = mapped([1, large])
        assert torch.equal(ids.long(), plain.long().where(plain != 2, large))
    with pytest.raises(BadInputError, match="the label map that postprocessing made holds -1"):
        mapped([1, -1])


def test_steps_after_the_members_own_change_the_label_map_alone(tmp_path):
    members = [_member(tmp_path, cls=_Multi, seed=seed) for seed in range(2)]
    image = torch.randn(1, 17, 13, generator=torch.Generator().manual_seed(0))
    steps = [without_small_components([1, 2], 1000), largest_component([1, 2])]
    plain = EnsemblePredictor(members).predict_image(image, probabilities=True)
    cleaned = EnsemblePredictor(members, postprocessing=steps).predict_image(image, probabilities=True)
    assert plain.labels.any()
    assert not cleaned.labels.any()
    assert torch.equal(cleaned.probabilities.as_tensor(), plain.probabilities.as_tensor())


@pytest.mark.parametrize("windows", [((8, 8), (8, 8)), ((8, 8), (12, 6))], ids=["side by side", "on the file's grid"])
def test_the_quality_is_that_of_the_mean_probabilities_where_every_member_has_learned_it(tmp_path, windows):
    members = [_member(tmp_path, cls=_Multi, inferer=WindowInferer(window)) for window in windows]
    image = torch.randn(1, 17, 13, generator=torch.Generator().manual_seed(0))
    members[0].quality = QualityModel(calibration=Calibration(num_cases=9), inputs=INPUTS)
    assert EnsemblePredictor(members).predict_image(image).quality is None
    members[1].quality = QualityModel(calibration=Calibration(offset=-1.0, num_cases=9), inputs=INPUTS)
    prediction = EnsemblePredictor(members).predict_image(image, probabilities=True)
    overlap = ExpectedOverlap()
    overlap.add(prediction.probabilities.as_tensor(), are_probabilities=True)
    signs = (overlap.precision, overlap.recall, prediction.quality.usual_size)
    expected = sum(member.quality.calibration(signs) for member in members) / 2
    assert prediction.quality.estimated_dice == pytest.approx(expected, abs=1e-4)


def test_the_quality_is_that_of_the_probabilities_and_changes_no_label(tmp_path):
    member = _member(tmp_path, cls=_Multi, inferer=WindowInferer((8, 8)))
    image = torch.randn(1, 17, 13, generator=torch.Generator().manual_seed(0))
    before = member.predict_image(image, probabilities=True)
    member.quality = QualityModel(calibration=Calibration(), inputs=INPUTS)
    for probabilities in (True, False):
        found = member.predict_image(image, probabilities=probabilities)
        overlap = ExpectedOverlap()
        overlap.add(before.probabilities.as_tensor(), are_probabilities=True)
        assert found.quality.expected_precision == pytest.approx(overlap.precision, abs=1e-4)
        assert found.quality.expected_recall == pytest.approx(overlap.recall, abs=1e-4)
        assert torch.equal(found.labels.as_tensor(), before.labels.as_tensor())
