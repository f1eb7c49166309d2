import math

import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.networks.nets import UNet
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from candy_monai.errors import BadInputError
from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.state import load_state
from candy_monai.nn.padding import Pad2d
from candy_monai.training.trainer import Trainer
from tests.toys import SmallTrainer, Squares, loaders, log_of, scripted_trainer, small_trainer


def test_every_case_is_validated_exactly_once_an_epoch_and_not_padded(tmp_path):
    seen = []

    class Counting(SmallTrainer):
        def build_padding_module(self):
            return Pad2d(8)

        def validate_case(self, image, label, toolbox):
            seen.append((tuple(image.shape), tuple(label.shape), (toolbox.ema or toolbox.model)(image[None]).shape))
            return super().validate_case(image, label, toolbox)

    data = Squares(3, size=(13, 18))
    trainer = Counting(tmp_path, DataLoader(data, batch_size=3), DataLoader(data, batch_size=2), console=False)
    trainer.train(2)
    assert seen == [((1, 13, 18), (1, 13, 18), (1, 1, 13, 18))] * 6


@pytest.mark.parametrize("moved", ["training sample", "validation case"])
def test_a_label_that_is_not_on_the_grid_of_its_image_is_said_in_the_log(tmp_path, moved):
    affine = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    samples = [tuple(MetaTensor(tensor, affine=affine) for tensor in sample) for sample in Squares()]
    flipped = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    turned = [(image, MetaTensor(label.as_tensor(), affine=flipped)) for image, label in samples]
    data = (turned, samples) if moved == "training sample" else (samples, turned)
    trainer = SmallTrainer(tmp_path, *(DataLoader(each, collate_fn=list_data_collate) for each in data), console=False)
    trainer.train(1, save_preview=False, save_report=False)
    (line,) = (line for line in log_of(trainer).splitlines() if "not on the grid" in line)
    assert f"Warning: the label of the first {moved}" in line


def test_backward_gets_images_and_labels_padded_in_step_and_the_new_label_voxels_are_filled(tmp_path):
    seen = []

    class Looking(SmallTrainer):
        ignore_index = 7

        def build_padding_module(self):
            return Pad2d(8)

        def backward(self, images, labels, toolbox):
            seen.append((images.shape, labels.shape, int(labels.max()), labels.dtype))
            return super().backward(images, labels.clamp(max=1), toolbox)

    small_trainer(tmp_path, Squares(2, size=(13, 16)), cls=Looking).train(1)
    assert seen == [((2, 1, 16, 16), (2, 1, 16, 16), 7, torch.int64)]


def test_the_score_is_the_same_with_and_without_padding(tmp_path):
    class Padded(SmallTrainer):
        def build_padding_module(self):
            return Pad2d(8)

    scores = []
    for cls in (SmallTrainer, Padded):
        trainer = small_trainer(tmp_path, Squares(size=(13, 18)), cls=cls)
        trainer.train_epoch = lambda toolbox: None
        trainer.train(1, seed=3)
        scores.append(trainer.metrics()["val score"][0])
    # padding with zeros and a 3 x 3 network without bias-free layers differ at the border alone
    assert scores[0] == pytest.approx(scores[1], abs=0.01)


def test_only_the_asked_number_of_cases_is_validated(tmp_path):
    seen = []

    class Counting(SmallTrainer):
        def validate_case(self, image, label, toolbox):
            seen.append(1)
            return super().validate_case(image, label, toolbox)

    small_trainer(tmp_path, cls=Counting).train(2, num_validation_cases=3)
    assert len(seen) == 6


def test_validating_each_few_epochs_still_validates_the_last(tmp_path):
    trainer = scripted_trainer(tmp_path, (0.1, 0.2, 0.3, 0.4, 0.5))
    trainer.train(5, validate_every=3)
    assert [not math.isnan(score) for score in trainer.metrics()["val score"]] == [False, False, True, False, True]


def test_dictionary_batches_are_accepted(tmp_path):
    class Dictionaries(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return {"image": image, "label": label, "case_id": f"case_{index}"}

    trainer = small_trainer(tmp_path, Dictionaries())
    trainer.train(1)
    assert math.isfinite(trainer.metrics()["val score"][0])


def test_a_stream_without_a_length_is_accepted_by_a_trainer_whose_schedule_needs_none(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from Squares()

    class Constant(SmallTrainer):
        def build_scheduler(self, optimizer, num_epochs):
            return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    trainer = Constant(tmp_path, DataLoader(Stream(), batch_size=2), DataLoader(Stream(), batch_size=1), console=False)
    trainer.train(2)
    assert len(trainer.metrics()["combined loss"]) == 2


def test_an_empty_loader_is_refused_before_anything_is_written(tmp_path):
    data = Squares(2)
    with pytest.raises(BadInputError, match=r"2 samples.*batch_size is 5.*drop_last is True"):
        SmallTrainer(tmp_path, DataLoader(data, batch_size=5, drop_last=True), DataLoader(data)).train(1)
    with pytest.raises(BadInputError, match="validation loader"):
        SmallTrainer(tmp_path, DataLoader(data), DataLoader(data, batch_size=5, drop_last=True)).train(1)
    assert list(tmp_path.iterdir()) == []


class _Varied(Squares):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image[:, : 16 - index], label[:, : 16 - index]


@pytest.mark.parametrize("part", [0, 1])
def test_samples_that_cannot_be_stacked_are_refused_before_anything_is_written(tmp_path, part):
    sizes = [Squares(4), Squares(4)]
    sizes[part] = _Varied(4)
    trainer = SmallTrainer(tmp_path, *(DataLoader(data, batch_size=2) for data in sizes), console=False)
    with pytest.raises(BadInputError, match="cannot stack samples of different sizes into a batch of 2"):
        trainer.train(1)
    assert list(tmp_path.iterdir()) == []


def test_validation_images_of_a_size_that_the_network_does_not_take_end_the_run_before_anything_is_written(tmp_path):
    class Halves(SmallTrainer):
        def build_network(self, example_shape):
            return UNet(2, 1, 1, (4, 8, 16), (2, 2))

        def train_epoch(self, toolbox):
            modes.append(toolbox.model.training)
            super().train_epoch(toolbox)

    modes: list[bool] = []
    training, validation = loaders(Squares(2))
    with pytest.raises(RuntimeError, match="must match") as caught:
        Halves(tmp_path, training, DataLoader(Squares(2, size=(17, 16))), console=False).train(1)
    assert "override build_padding_module" in caught.value.__notes__[-1]
    assert list(tmp_path.iterdir()) == []
    trainer = Halves(tmp_path, training, validation, console=False)
    trainer.train(1, ema=False, save_preview=False, save_report=False)
    assert modes == [True]


def test_a_slow_machine_s_run_ends_in_time_validated_and_with_its_learning_rate_come_down(tmp_path):
    class Slow(SmallTrainer):
        def train_epoch(self, toolbox):
            super().train_epoch(toolbox)
            self._current().progress.epoch_s += 10.0

    trainer = small_trainer(tmp_path, cls=Slow)
    trainer.train(100, seed=0, time_limit_s=49.0, validate_every=3, early_stop_tolerance=None)
    metrics = load_metrics(trainer.experiment_folder() / "metrics.csv")
    at_start = trainer.options.learning_rate
    # Until the first epoch ended, nothing told that 4 epochs of 10 s fit: from there straight down to the end of these.
    assert metrics["learning rate"] == pytest.approx([at_start * share for share in (1, 0.99, 0.66, 0.33)])
    (group,) = load_state(trainer.experiment_folder()).trainer.optimizer["param_groups"]
    assert group["lr"] <= 1e-6
    assert [math.isfinite(score) for score in metrics["val score"]] == [False, False, True, True]


class _Typed(Squares):
    """Squares with images and labels of some types."""

    def __init__(self, images, labels=torch.int64):
        super().__init__()
        self.types = images, labels

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (20 * image.abs()).round().to(self.types[0]), label.to(self.types[1])


IMAGE_TYPES = [
    torch.uint16,
    torch.float64,
    *(
        pytest.param(dtype, marks=pytest.mark.slow)
        for dtype in (torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16)
    ),
]


@pytest.mark.parametrize("dtype", IMAGE_TYPES)
def test_images_of_any_type_train_like_those_of_float32(tmp_path, dtype):
    def metrics(dtype):
        trainer = small_trainer(tmp_path, _Typed(dtype))
        trainer.train(1, seed=0, save_preview=False)
        return {name: values for name, values in trainer.metrics().items() if name != "epoch duration"}

    assert metrics(dtype) == metrics(torch.float32)


@pytest.mark.parametrize("network_type", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("image_type", [torch.float32, torch.float64])
def test_images_and_floating_labels_come_in_the_type_of_the_network(tmp_path, network_type, image_type):
    class Looking(SmallTrainer):
        seen = ()

        def build_network(self, example_shape):
            return super().build_network(example_shape).to(network_type)

        def backward(self, images, labels, toolbox):
            self.seen = images.dtype, labels.dtype
            return super().backward(images, labels, toolbox)

    trainer = small_trainer(tmp_path, _Typed(image_type, torch.float64), cls=Looking)
    trainer.train(1, save_preview=False)
    assert trainer.seen == (network_type, torch.promote_types(network_type, torch.float32))


def test_a_trainer_that_is_not_of_segmentation_may_learn_any_numbers(tmp_path):
    class Regression(Trainer):
        def build_network(self, example_shape):
            return nn.Conv2d(example_shape[0], 1, 3, padding=1)

        def build_optimizer(self, params):
            return torch.optim.SGD(params, lr=0.01)

        def build_scheduler(self, optimizer, num_epochs):
            return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

        def build_criterion(self):
            return nn.MSELoss()

        def backward(self, images, labels, toolbox):
            loss = toolbox.criterion(toolbox.model(images), labels)
            loss.backward()
            return loss.detach(), {}

        def validate_case(self, image, label, toolbox):
            output = toolbox.model(image[None])[0]
            return -toolbox.criterion(output, label).item(), {}, output

    class Fractions(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label.double() * -0.3

    trainer = small_trainer(tmp_path, Fractions(), cls=Regression)
    trainer.train(1, save_preview=False)
    assert math.isfinite(trainer.metrics()["val score"][0])
