import json
import math

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn, optim
from torch.utils.data import DataLoader

from candy_monai.errors import SettingsError
from candy_monai.inference.predictor import Predictor
from candy_monai.inference.tiles import SWMetadata
from candy_monai.nn.losses import DiceBCELossWithLogits
from candy_monai.nn.padding import Pad2d
from candy_monai.nn.schedules import AbsoluteLinearLR
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.training.sliding import SlidingTrainer, _WeightedMeans
from tests.contracts.trainer_contract import TrainerContract
from tests.toys import SmallTrainer, Squares, small_trainer


class Windowed(SlidingTrainer):
    """Every method by hand, with floats and ``.item()`` as people write them."""

    window = (8, 8)
    learning_rate = 0.02

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seen = []

    def get_window_shape(self):
        return self.window

    def build_network(self, example_shape):
        self.example_shape = example_shape
        conv = nn.Conv2d if len(example_shape) == 3 else nn.Conv3d
        return nn.Sequential(conv(example_shape[0], 4, 3, padding=1), nn.ReLU(), conv(4, 1, 3, padding=1))

    def build_optimizer(self, params):
        return optim.SGD(params, lr=self.learning_rate)

    def build_scheduler(self, optimizer, num_epochs):
        return AbsoluteLinearLR(optimizer, 0.0, self.learning_rate)

    def build_criterion(self):
        return DiceBCELossWithLogits(1)

    def backward_windowed(self, images, labels, toolbox, metadata):
        self.seen.append(("training", tuple(images.shape), tuple(labels.shape), metadata))
        predictions = toolbox.model(images)
        loss, metrics = toolbox.criterion(predictions, labels)
        loss.backward()
        return loss.item(), metrics

    def validate_case_windowed(self, images, labels, toolbox, metadata):
        self.seen.append(("validation", tuple(images.shape), tuple(labels.shape), metadata))
        with torch.no_grad():
            predictions = (toolbox.ema if toolbox.ema else toolbox.model)(images)
            loss, metrics = toolbox.criterion(predictions, labels)
        return -loss.item(), metrics, predictions


class TestTheContract(TrainerContract):
    def make_trainer(self, folder):
        return small_trainer(folder, cls=Windowed)


def test_windows_of_a_batch_come_in_passes_of_at_most_the_asked_number_with_their_metadata(tmp_path):
    trainer = small_trainer(tmp_path, Squares(2, size=(12, 16)), cls=Windowed)
    trainer.sliding_window_batch_size = 5
    trainer.train(1, save_preview=False)
    metadata = SWMetadata(kernel=(8, 8), stride=(4, 4), ndim=2, batch_size=2, out_size=(12, 16), n=6)
    assert trainer.example_shape == (1, 8, 8)
    # 2 images of 2 x 3 windows in one step; then each image alone
    assert [entry for entry in trainer.seen if entry[0] == "training"] == [
        ("training", (4, 1, 8, 8), (4, 1, 8, 8), metadata)
    ] * 3
    validated = [entry[1:3] for entry in trainer.seen if entry[0] == "validation"]
    assert validated == [((3, 1, 8, 8), (3, 1, 8, 8))] * 4
    assert trainer.seen[-1][3].batch_size == 1


def test_a_step_is_the_same_in_one_pass_over_all_windows_as_in_many(tmp_path):
    class MeanSquares(Windowed):
        def build_criterion(self):
            return nn.MSELoss()

        def backward_windowed(self, images, labels, toolbox, metadata):
            loss = toolbox.criterion(toolbox.model(images), labels.float())
            loss.backward()
            return loss.item(), {}

        def validate_case_windowed(self, images, labels, toolbox, metadata):
            return 0.0, {}, toolbox.model(images)

    weights = []
    for batch_size in (1, 4, 100):
        trainer = small_trainer(tmp_path / str(batch_size), Squares(2, size=(12, 20)), cls=MeanSquares)
        trainer.sliding_window_batch_size = batch_size
        trainer.train(2, seed=3, ema=False, save_preview=False)
        folder = trainer.experiment_folder()
        weights.append(torch.load(folder / "checkpoint_latest.pth", weights_only=True))
        assert json.loads((folder / "experiment.json").read_text())["inferer"]["sw_batch_size"] == batch_size
    for other in weights[1:]:
        assert all(torch.allclose(weights[0][name], other[name], atol=1e-6) for name in other)


class _Squared(Windowed):
    """A loss that is a mean over windows, by the whole network or by its parts, and a penalty on the weights."""

    by_parts = False
    penalty = 0.0

    def build_criterion(self):
        return nn.MSELoss()

    def run(self, network, images):
        return network[2](network[:2](images)) if self.by_parts else network(images)

    def backward_windowed(self, images, labels, toolbox, metadata):
        if self.penalty:
            squares = sum(parameter.square().sum() for parameter in toolbox.model.parameters())
            (0.5 * self.penalty * squares).backward()
        loss = toolbox.criterion(self.run(toolbox.model, images), labels.float())
        loss.backward()
        return loss.item(), {}

    def validate_case_windowed(self, images, labels, toolbox, metadata):
        output = self.run(toolbox.model, images)
        return -toolbox.criterion(output, labels.float()).item(), {}, output


def _gradients(folder, *, windows, cls=_Squared, batch_size=2, **settings):
    found = []

    class Stopped(cls):
        def step(self, toolbox, **keywords):
            found.extend(parameter.grad.clone() for parameter in toolbox.model.parameters())
            found.append([parameter.detach().clone() for parameter in toolbox.model.parameters()])
            raise InterruptedError

    data = Squares(2, size=(12, 20))
    trainer = Stopped(folder, DataLoader(data, batch_size), None, console=False)
    trainer.sliding_window_batch_size = windows
    with pytest.raises(InterruptedError):
        trainer.train(1, seed=3, ema=False, save_preview=False, **settings)
    return found[:-1], found[-1]


@pytest.mark.parametrize("by_parts", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 3.0])
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "batch_size": 1}])
def test_the_passes_gradients_are_their_mean_for_any_loss(tmp_path, by_parts, penalty, settings):
    cls = type("Any", (_Squared,), {"by_parts": by_parts, "penalty": penalty})
    at_once, weights = _gradients(tmp_path / "1", windows=100)
    in_passes, _ = _gradients(tmp_path / "2", windows=3, cls=cls, **settings)  # 16 windows: 5 passes of 3, one of 1
    for expected, weight, gradient in zip(at_once, weights, in_passes, strict=True):
        assert torch.allclose(gradient, expected + penalty * weight, atol=1e-6)


def test_windows_through_the_parts_of_a_padded_network_are_scored_and_put_together_as_through_the_whole(tmp_path):
    outputs = []
    for by_parts in (False, True):

        class Padded(_Squared):
            window = (9, 7)

            def build_padding_module(self):
                return Pad2d(4)

            def validate_case(self, image, label, toolbox):
                outputs.append(super().validate_case(image, label, toolbox))
                return outputs[-1]

        Padded.by_parts = by_parts
        small_trainer(tmp_path / str(by_parts), Squares(1, size=(12, 20)), cls=Padded).train(1, seed=0)
    (score, _, whole), (score_by_parts, _, by_parts) = outputs
    assert by_parts.shape == (1, 12, 20)
    assert torch.equal(whole, by_parts)
    assert score == score_by_parts


def test_the_score_and_the_metrics_are_means_over_the_windows(tmp_path):
    class Counting(Windowed):
        def validate_case_windowed(self, images, labels, toolbox, metadata):
            return float(len(images)), {"windows": float(len(images))}, images

    trainer = small_trainer(tmp_path, Squares(1, size=(8, 20)), cls=Counting)  # 4 windows: 2 and 2; with 3: 2 and 2
    trainer.sliding_window_batch_size = 3
    trainer.train(1)
    assert trainer.metrics()["val score"] == [2.0]
    assert trainer.metrics()["val windows"] == [2.0]


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (8, 23), (6, 9, 11)])
def test_outputs_are_put_together_for_images_of_any_size(tmp_path, size):
    class Passing(Windowed):
        window = (8,) * len(size)

        def validate_case_windowed(self, images, labels, toolbox, metadata):
            return 0.0, {}, images

    trainer = small_trainer(tmp_path, Squares(1, size=size), cls=Passing)
    trainer.train(1, save_preview=False)
    image, label = Squares(1, size=size)[0]
    _, _, output = trainer.validate_case(image, label, None)
    assert torch.allclose(output, image, atol=1e-5)


def test_a_loss_that_is_nan_in_one_window_only_is_noticed(tmp_path):
    class Sick(Windowed):
        def backward_windowed(self, images, labels, toolbox, metadata):
            super().backward_windowed(images, labels, toolbox, metadata)
            return float("nan") if len(self.seen) == 2 else 0.0, {}

    trainer = small_trainer(tmp_path, cls=Sick)
    trainer.train(1, non_finite="skip", save_preview=False)
    assert "Skipped steps: 1" in (trainer.experiment_folder() / "logs.txt").read_text()


def test_windows_are_padded_for_the_network_in_training_and_in_validation(tmp_path):
    class Padded(Windowed):
        window = (10, 10)

        def build_padding_module(self):
            return Pad2d(8)

    trainer = small_trainer(tmp_path, cls=Padded)
    trainer.train(1)
    assert trainer.example_shape == (1, 16, 16)
    assert {entry[1][1:] for entry in trainer.seen if entry[0] == "training"} == {(1, 16, 16)}
    assert {entry[1][1:] for entry in trainer.seen if entry[0] == "validation"} == {(1, 10, 10)}


def test_inference_blends_the_windows_of_the_scored_weights(tmp_path):
    trainer = small_trainer(tmp_path, Squares(1, size=(20, 20)), cls=Windowed)
    image, label = Squares(1, size=(20, 20))[0]
    outputs = []

    def train_epoch(toolbox):
        Windowed.train_epoch(trainer, toolbox)
        toolbox.model.eval()
        with torch.no_grad():
            outputs.append((trainer.infer(image[None], toolbox), trainer.validate_case(image, label, toolbox)[2]))

    trainer.train_epoch = train_epoch
    trainer.train(1)
    ((inferred, validated),) = outputs
    assert torch.equal(inferred[0], validated)


def test_a_predictor_repeats_the_windows_of_validation(tmp_path):
    trainer = small_trainer(tmp_path, Squares(1, size=(20, 20)), cls=Windowed)
    trainer.train(1, ema=False)
    folder = trainer.experiment_folder()
    predictor = Predictor(folder, network=trainer.build_network((1, 8, 8)))
    image, label = Squares(1, size=(20, 20))[0]
    logits = predictor.logits(image)
    criterion = DiceBCELossWithLogits(1)
    seen = []

    class Same(Windowed):
        def build_network(self, example_shape):
            network = super().build_network(example_shape)
            network.load_state_dict(torch.load(folder / "checkpoint_best.pth", weights_only=True))
            return network

    again = small_trainer(tmp_path / "again", Squares(1, size=(20, 20)), cls=Same)
    again.train_epoch = lambda toolbox: seen.append(again.validate_case(image, label, toolbox)[2])
    again.train(1, ema=False)
    assert torch.equal(seen[0], logits)
    assert criterion(logits[None], label[None])[0].isfinite()


def test_a_trainer_s_own_methods_meet_the_segmentation_defaults_in_one_class(tmp_path):
    class Both(SlidingTrainer, SmallTrainer):
        def get_window_shape(self):
            return (8, 8)

        backward_windowed = Windowed.backward_windowed
        validate_case_windowed = Windowed.validate_case_windowed
        seen = []  # noqa: RUF012  # the borrowed methods append to it

    trainer = small_trainer(tmp_path, cls=Both)
    trainer.train(2)
    assert {kind for kind, *_ in trainer.seen} == {"training", "validation"}
    assert (trainer.experiment_folder() / "expected (preview).png").exists()
    assert Both.build_optimizer is SegmentationTrainer.build_optimizer


def test_the_wrong_order_of_bases_is_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match="name SlidingTrainer before SegmentationTrainer"):
        type("Wrong", (SegmentationTrainer, SlidingTrainer), {})


def test_the_windowed_methods_must_be_there():
    with pytest.raises(TypeError, match="backward_windowed"):
        type("Unfinished", (SlidingTrainer, SmallTrainer), {"get_window_shape": lambda self: (8, 8)})("x", None, None)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"window": (8, 8, 8)}, r"2 spatial axes.*window \(8, 8, 8\) has 3"),
        ({"window": (8, 0)}, "positive whole numbers"),
        ({"window": (8.0, 8)}, "positive whole numbers"),
        ({"window": 8}, "2 or 3 positive .* got 8"),
        ({"window": None}, "2 or 3 positive .* got None"),
        ({"sliding_window_overlap": 1.0}, "below 1"),
        ({"sliding_window_batch_size": 0}, "at least 1"),
    ],
)
def test_windows_that_cannot_work_are_refused_before_anything_is_written(tmp_path, attributes, words):
    trainer = small_trainer(tmp_path, cls=type("Odd", (Windowed,), attributes))
    with pytest.raises(SettingsError, match=words):
        trainer.train(1)
    assert not list(tmp_path.iterdir())


def test_labels_beyond_the_image_hold_what_the_trainer_fills_them_with(tmp_path):
    class Filled(Windowed):
        ignore_index = 7

        def backward_windowed(self, images, labels, toolbox, metadata):
            self.labels = labels
            return super().backward_windowed(images, labels.clamp(max=1), toolbox, metadata)

        def validate_case_windowed(self, images, labels, toolbox, metadata):
            return super().validate_case_windowed(images, labels.clamp(max=1), toolbox, metadata)

    trainer = small_trainer(tmp_path, Squares(1, size=(8, 6)), cls=Filled)
    trainer.train(1)
    assert trainer.labels.shape == (1, 1, 8, 8)
    assert (trainer.labels[..., [0, -1]] == 7).all()
    assert (trainer.labels[..., 1:-1] <= 1).all()


def test_batches_of_several_images_of_one_size_train_together(tmp_path):
    data = Squares(4, size=(12, 12))
    trainer = Windowed(tmp_path, DataLoader(data, batch_size=4), DataLoader(data), console=False)
    trainer.train(1)
    assert {entry[3].batch_size for entry in trainer.seen if entry[0] == "training"} == {4}


def test_an_inferer_makes_the_outputs_and_the_windows_make_the_scores(tmp_path):
    trainer = small_trainer(tmp_path, Squares(1, size=(20, 20)), cls=Windowed)
    trainer.inferer = SimpleInferer()
    image, _ = Squares(1, size=(20, 20))[0]
    outputs = []
    validate_case = trainer.validate_case
    trainer.validate_case = lambda *arguments: outputs.append(validate_case(*arguments)) or outputs[-1]
    trainer.train(1, save_preview=False)
    assert {entry[1][2:] for entry in trainer.seen if entry[0] == "validation"} == {(8, 8)}
    predictor = Predictor(trainer.experiment_folder(), network=trainer.build_network((1, 8, 8)))
    with torch.no_grad():
        assert torch.equal(outputs[0][2], predictor.model(image[None])[0])
    assert torch.equal(predictor.logits(image), outputs[0][2])


def test_values_count_by_their_weight():
    means = _WeightedMeans()
    means.add({"dice": 1.0}, weight=3)
    means.add({"dice": 0.0}, weight=1)
    assert means.means() == {"dice": 0.75}


def test_what_is_not_measured_somewhere_is_left_out_of_the_mean():
    means = _WeightedMeans()
    means.add({"dice": math.nan, "tensor": torch.tensor(math.nan)}, weight=5)
    means.add({"dice": 0.5, "tensor": torch.tensor(0.5)}, weight=1)
    assert means.means() == {"dice": 0.5, "tensor": torch.tensor(0.5)}


def test_what_is_measured_nowhere_has_no_mean():
    means = _WeightedMeans()
    means.add({"dice": math.nan, "tensor": torch.tensor(math.nan)}, weight=2)
    assert all(math.isnan(value) for value in means.means().values())


def test_tensors_stay_tensors_and_lose_their_graph():
    means = _WeightedMeans()
    means.add({"loss": torch.tensor(2.0, requires_grad=True)}, weight=1)
    means.add({"loss": 4.0}, weight=1)
    mean = means.means()["loss"]
    assert mean == torch.tensor(3.0)
    assert not mean.requires_grad
