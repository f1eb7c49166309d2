import math

import pytest
import torch
from monai.inferers import (
    PatchInferer,
    SaliencyInferer,
    SimpleInferer,
    SliceInferer,
    SlidingWindowInferer,
    SlidingWindowInfererAdapt,
    SlidingWindowSplitter,
)
from monai.losses import DiceCELoss, DiceLoss
from torch import nn
from torch.utils.data import DataLoader

from candy_monai.data.planning.plan import Region
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.predictor import Predictor
from candy_monai.nn.deep_supervision import DeepSupervisionLoss
from candy_monai.nn.losses import DiceBCELossWithLogits, DiceCELossWithLogits
from candy_monai.nn.padding import Pad2d
from candy_monai.training.options import SegmentationOptions
from tests.toys import SmallTrainer, Squares, loaders, log_of, small_trainer


def _three_classes(folder, cls=SmallTrainer):
    trainer = small_trainer(folder, Squares(2, num_classes=3), cls=cls)
    trainer.num_classes = 3
    return trainer


def test_one_logit_is_trained_by_binary_entropy_and_several_by_cross_entropy(tmp_path):
    trainer = small_trainer(tmp_path)
    assert isinstance(trainer.build_criterion(), DiceBCELossWithLogits)
    trainer.num_classes = 3
    assert isinstance(trainer.build_criterion(), DiceCELossWithLogits)
    trainer.options = SegmentationOptions(deep_supervision=True)
    assert isinstance(trainer.build_criterion(), DeepSupervisionLoss)


def test_the_score_is_the_negative_loss_by_default_and_the_foreground_s_dice_on_request(tmp_path):
    trainer = _three_classes(tmp_path)
    trainer.train(1)
    metrics = trainer.metrics()
    assert metrics["val score"] == pytest.approx([-value for value in metrics["val combined loss"]])
    trainer.options = SegmentationOptions(score="dice")
    trainer.train(1)
    metrics = trainer.metrics()
    assert metrics["val score"] == pytest.approx(metrics["val dice"], abs=1e-6)


def test_the_mean_dice_never_counts_the_background(tmp_path):
    trainer = _three_classes(tmp_path)
    trainer.train(1)
    metrics = trainer.metrics()
    assert metrics["val dice"][0] == pytest.approx((metrics["val dice 1"][0] + metrics["val dice 2"][0]) / 2, abs=1e-6)


def test_leaving_the_background_out_holds_for_the_reported_dice_too(tmp_path):
    trainer = _three_classes(tmp_path)
    trainer.train(1)
    assert "val dice 0" in trainer.metrics()
    trainer.options = SegmentationOptions(include_background=False)
    trainer.train(1)
    assert "val dice 0" not in trainer.metrics()


class _Outputs(SmallTrainer):
    """A network whose outputs come in some structure."""

    wrap = staticmethod(lambda full, half: full)

    def build_network(self, example_shape):
        base, wrap = super().build_network(example_shape), type(self).wrap

        class Wrapped(nn.Module):
            def __init__(self):
                super().__init__()
                self.base = base

            def forward(self, images):
                full = self.base(images)
                return wrap(full, nn.functional.avg_pool2d(full, 2))

        return Wrapped()


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda full, half: full,
        lambda full, half: [full, half],
        lambda full, half: (full, half),
        lambda full, half: {"out": full, "half": half},
        lambda full, half: torch.stack([full, full], 1),
    ],
    ids=["tensor", "list", "tuple", "dict", "stacked"],
)
def test_whatever_structure_a_network_returns_it_trains_and_evaluates_to_one_tensor(tmp_path, wrap, supervised):
    trainer = _three_classes(tmp_path, type("Wrapping", (_Outputs,), {"wrap": staticmethod(wrap)}))
    trainer.options = SegmentationOptions(deep_supervision=supervised)
    seen = []
    validate_case = trainer.validate_case

    def looking(image, label, toolbox):
        result = validate_case(image, label, toolbox)
        seen.append(tuple(result[2].shape))
        return result

    trainer.validate_case = looking
    trainer.train(1)
    assert seen == [(3, 16, 16)] * 2


def test_an_inferer_of_monai_s_is_used_for_whole_images(tmp_path):
    calls = []

    class Counting(SlidingWindowInferer):
        def __call__(self, inputs, network, *args, **kwargs):
            calls.append(tuple(inputs.shape))
            return super().__call__(inputs, network, *args, **kwargs)

    trainer = small_trainer(tmp_path)
    trainer.inferer = Counting(roi_size=(8, 8), overlap=0.5, mode="gaussian")
    trainer.train(1)
    assert calls == [(1, 1, 16, 16)] * 4


@pytest.mark.parametrize(
    "inferer",
    [
        SimpleInferer(),
        SlidingWindowInferer((8, 8), sw_batch_size=3, overlap=0.25),
        SlidingWindowInfererAdapt((8, 8), mode="gaussian"),
        WindowInferer((8, 8), mode="constant"),
        PatchInferer(SlidingWindowSplitter((8, 8), overlap=0.5), batch_size=2),
        SaliencyInferer("GradCAM", "0", class_idx=0),
    ],
    ids=lambda inferer: type(inferer).__name__,
)
def test_any_inferer_of_monai_s_validates_and_is_what_the_predictor_finds_in_the_experiment(tmp_path, inferer):
    trainer = small_trainer(tmp_path, Squares(2, size=(16, 20)))
    trainer.inferer = inferer
    outputs = _outputs_of_validation(trainer)
    trainer.train(1, save_preview=False)
    network = trainer.build_network((1, 8, 8))
    predictor = Predictor(trainer.experiment_folder(), network=network)
    for image, logits in outputs:
        with torch.enable_grad():
            expected = inferer(image[None], network)[0]
        assert torch.allclose(logits, expected, atol=1e-6)
        assert torch.equal(predictor.logits(image), logits)
    assert predictor.predict(torch.randn(1, 19, 23)).shape == (1, 19, 23)


def test_a_network_of_slices_validates_and_predicts_volumes(tmp_path):
    slices, volumes = Squares(4, size=(16, 20)), Squares(2, size=(16, 20, 5))
    trainer = SmallTrainer(tmp_path, DataLoader(slices, 2), DataLoader(volumes), console=False)
    trainer.inferer = SliceInferer(roi_size=(16, 20), spatial_dim=2)
    outputs = _outputs_of_validation(trainer)
    trainer.train(1, save_preview=False)
    network = trainer.build_network((1, 16, 20))
    predictor = Predictor(trainer.experiment_folder(), network=network)
    for volume, logits in outputs:
        with torch.no_grad():
            expected = torch.stack([network(volume[None, ..., index])[0] for index in range(5)], dim=-1)
        assert torch.allclose(logits, expected, atol=1e-6)
        assert torch.equal(predictor.predict(volume), (logits > 0).to(torch.uint8))


def test_a_network_that_is_told_where_its_windows_lie_validates_and_predicts(tmp_path):
    class Placed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, images, places=()):
            starts = [float(place[2].start) for place in places] or [0.0] * len(images)
            return images * self.scale + torch.tensor(starts).reshape(-1, 1, 1, 1)

    trainer = small_trainer(tmp_path, Squares(2, size=(16, 20)))
    trainer.build_network = lambda example_shape: Placed()
    trainer.inferer = WindowInferer((8, 20), overlap=0.0, with_coord=True)
    outputs = _outputs_of_validation(trainer)
    trainer.train(1, save_preview=False)
    network = Placed()
    predictor = Predictor(trainer.experiment_folder(), network=network)
    for image, logits in outputs:
        scaled = image * network.scale.detach()
        assert torch.allclose(logits[:, :8], scaled[:, :8], atol=1e-5)
        assert torch.allclose(logits[:, 8:], scaled[:, 8:] + 8, atol=1e-5)
        assert torch.equal(predictor.logits(image), logits)
        assert torch.equal(predictor.predict(image), (logits > 0).to(torch.uint8))


def _outputs_of_validation(trainer):
    """Return a list that fills with each validated image and its logits."""
    outputs, validate_case = [], trainer.validate_case

    def looking(image, label, toolbox):
        result = validate_case(image, label, toolbox)
        outputs.append((image, result[2]))
        return result

    trainer.validate_case = looking
    return outputs


def test_the_five_previews_are_written(tmp_path):
    trainer = _three_classes(tmp_path)
    trainer.train(1)
    names = {path.name for path in trainer.experiment_folder().glob("* (preview).png")}
    assert names == {f"{name} (preview).png" for name in ("input", "label", "prediction", "expected", "actual")}


def test_padded_voxels_get_the_ignored_id(tmp_path):
    seen = []

    class Padded(SmallTrainer):
        ignore_index = 255

        def build_padding_module(self):
            return Pad2d(8)

        def backward(self, images, labels, toolbox):
            seen.append(int(labels.max()))
            return super().backward(images, labels, toolbox)

    small_trainer(tmp_path, Squares(2, size=(13, 16)), cls=Padded).train(1)
    assert seen == [255]


def test_a_case_of_ignored_voxels_only_has_no_score_and_is_said(tmp_path):
    class Ignoring(SmallTrainer):
        ignore_index = 255

    data = Squares(3)
    data.samples[1][1].fill_(255)
    rows = [{"image": image, "label": label, "case_id": f"case_{n}"} for n, (image, label) in enumerate(data.samples)]
    both, one = (
        Ignoring(tmp_path / str(len(cases)), DataLoader(data, batch_size=3), DataLoader(cases), console=False)
        for cases in (rows[:2], rows[:1])
    )
    for trainer in (both, one):
        trainer.train(1, seed=0, save_preview=False, save_report=False)
    for name in ("val score", "val combined loss", "val dice"):
        assert both.metrics()[name] == one.metrics()[name]
    assert "Warning: every voxel of case_1 has the ignored label id 255: it has no score" in log_of(both)
    assert "every voxel" not in log_of(one)


def test_an_unknown_score_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="'negative loss' or 'dice', got 'Dice'"):
        small_trainer(tmp_path).options = SegmentationOptions(score="Dice")


def test_scores_that_are_nan_throughout_still_leave_a_best_checkpoint_to_predict_with(tmp_path):
    class Nothing(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label * 0

    trainer = small_trainer(tmp_path, Nothing())
    trainer.options = SegmentationOptions(score="dice")
    trainer.validate_case = lambda image, label, toolbox: (math.nan, {}, torch.zeros_like(image))
    trainer.train(2)
    assert (trainer.experiment_folder() / "checkpoint_best.pth").exists()


class RegionTrainer(SmallTrainer):
    num_classes = 2
    options = SegmentationOptions(
        regions=(Region(name="whole", ids=(1, 2), paints=1), Region(name="core", ids=(2,), paints=2)), score="dice"
    )


def test_overlapping_regions_are_scored_by_name_and_painted_by_the_predictor(tmp_path):
    trainer = small_trainer(tmp_path, Squares(num_classes=3), cls=RegionTrainer)
    trainer.train(2)
    assert {"val dice whole", "val dice core"} <= set(trainer.metrics())
    whole, core = (trainer.metrics()[f"val dice {name}"][-1] for name in ("whole", "core"))
    assert trainer.metrics()["val score"][-1] == pytest.approx((whole + core) / 2)
    network = trainer.build_network((1, 16, 16))
    labels = Predictor(trainer.experiment_folder(), network=network).predict(Squares()[0][0])
    assert set(labels.unique().tolist()) <= {0, 1, 2}


def test_an_id_that_belongs_to_no_region_is_refused(tmp_path):
    class Stray(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label * 5

    with pytest.raises(BadInputError, match="label id"):
        small_trainer(tmp_path, Stray(num_classes=3), cls=RegionTrainer).train(1)


class _Named(SmallTrainer):
    """A trainer that knows its classes by name, or not."""

    names = None

    def _names_by_id(self):
        return type(self).names


def test_the_dice_of_a_class_is_recorded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(_Named, "names", {0: "background", 1: "kidney", 2: "tumor"})
    trainer = _three_classes(tmp_path, cls=_Named)
    trainer.train(1)
    assert {"val dice background", "val dice kidney", "val dice tumor"} <= set(trainer.metrics())


def test_a_run_that_began_with_numbers_goes_on_with_them(tmp_path, monkeypatch):
    begun = _three_classes(tmp_path, cls=_Named)
    begun.train(1)
    monkeypatch.setattr(_Named, "names", {0: "background", 1: "kidney", 2: "tumor"})
    trainer = _three_classes(tmp_path, cls=_Named)
    trainer.resume(begun.experiment_folder(), 2, schedule="keep")
    assert [len(values) for name, values in trainer.metrics().items() if name == "val dice 1"] == [2]
    assert "val dice kidney" not in trainer.metrics()


def test_a_network_of_other_channels_than_classes_is_refused(tmp_path):
    class Two(SmallTrainer):
        def build_network(self, example_shape):
            return nn.Conv2d(example_shape[0], 2, 1)

    with pytest.raises(BadInputError, match=r"Two\.build_network returned \(2, 2, 16, 16\), expected 1 channels"):
        small_trainer(tmp_path, cls=Two).train(1)


def test_a_loss_of_a_subclass_s_takes_other_channels_than_classes_where_nothing_is_validated(tmp_path):
    class OfFirst(nn.Module):
        def forward(self, logits, label):
            return (logits[:, :1] - label).square().mean()

    class Two(SmallTrainer):
        def build_network(self, example_shape):
            return nn.Conv2d(example_shape[0], 2, 1)

        def build_criterion(self):
            return OfFirst()

    Two(tmp_path, loaders()[0], None, console=False).train(1, save_report=False)


@pytest.mark.parametrize("name", ["preprocessing", "augmentation", "postprocessing"])
def test_transforms_that_only_a_plan_applies_are_refused_without_one(tmp_path, name):
    trainer = small_trainer(tmp_path)
    trainer.options = SegmentationOptions(**{name: [{"_target_": "monai.transforms.RandBiasFieldd", "keys": "image"}]})
    with pytest.raises(SettingsError, match=f"SmallTrainer.options has {name}, which only a run with a plan applies"):
        trainer.train(1)
    assert list(tmp_path.iterdir()) == []


def test_cross_entropy_of_pytorch_s_trains_and_scores_as_it_is(tmp_path):
    class Entropy(SmallTrainer):
        num_classes = 2

        def build_criterion(self):
            return nn.CrossEntropyLoss()

    trainer = small_trainer(tmp_path, cls=Entropy)
    trainer.train(1, save_preview=False, save_report=False)
    assert trainer.metrics()["val score"][0] < 0


def test_scores_that_are_all_nan_are_said_in_the_log(tmp_path):
    class NoScore(SmallTrainer):
        def score_case(self, logits, label, toolbox):
            return math.nan, {}

    trainer = small_trainer(tmp_path, cls=NoScore)
    trainer.train(1, save_preview=False, save_report=False)
    log = (trainer.experiment_folder() / "logs.txt").read_text()
    assert "Warning: the validation score is NaN: no validation case has a score" in log


@pytest.mark.parametrize(
    ("num_classes", "activation", "warns"),
    [(1, nn.Sigmoid(), True), (3, nn.Softmax(1), True), (1, nn.Hardtanh(0, 1), False), (3, nn.LogSoftmax(1), False)],
)
def test_a_network_that_ends_in_a_sigmoid_or_softmax_gets_a_warning(tmp_path, num_classes, activation, warns):
    class Activated(SmallTrainer):
        def build_network(self, example_shape):
            return nn.Sequential(super().build_network(example_shape), activation)

    trainer = small_trainer(tmp_path, Squares(2, num_classes=num_classes), cls=Activated)
    trainer.num_classes = num_classes
    trainer.train(2, save_preview=False, save_report=False)
    log = (trainer.experiment_folder() / "logs.txt").read_text()
    assert log.count("Warning: the network of Activated.build_network returned only values between 0 and 1") == warns


@pytest.mark.parametrize("warns", [True, False])
def test_a_network_that_ends_in_a_softmax_gets_a_warning_if_the_own_loss_takes_logits(tmp_path, warns):
    class Activated(SmallTrainer):
        def build_network(self, example_shape):
            return nn.Sequential(super().build_network(example_shape), nn.Softmax(1) if warns else nn.Identity())

        def build_criterion(self):
            return DiceCELoss(to_onehot_y=True, softmax=True)

    trainer = small_trainer(tmp_path, Squares(2, num_classes=3), cls=Activated)
    trainer.num_classes = 3
    trainer.train(1, save_preview=False, save_report=False)
    assert ("between 0 and 1" in (trainer.experiment_folder() / "logs.txt").read_text()) is warns


def test_probabilities_are_no_mistake_where_a_subclass_s_loss_takes_them(tmp_path):
    class Probabilities(SmallTrainer):
        num_classes = 3

        def build_network(self, example_shape):
            return nn.Sequential(super().build_network(example_shape), nn.Softmax(1))

        def build_criterion(self):
            return DiceLoss(to_onehot_y=True)

    trainer = small_trainer(tmp_path, Squares(2, num_classes=3), cls=Probabilities)
    trainer.train(1, save_preview=False, save_report=False)
    assert "between 0 and 1" not in (trainer.experiment_folder() / "logs.txt").read_text()
