import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from candy_monai.data.samples.batches import Batch
from candy_monai.errors import BadInputError
from candy_monai.nn.losses import DiceBCELossWithLogits
from candy_monai.nn.padding import Pad2d
from tests.toys import SmallTrainer, Squares, small_trainer


class _Changed(Squares):
    """Squares of three classes with their labels changed."""

    def __init__(self, change):
        super().__init__(num_classes=3)
        self.change = change

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, self.change(label)


def _changed(folder, change, *, num_classes=3, **attributes):
    trainer = small_trainer(folder, _Changed(change))
    vars(trainer).update(num_classes=num_classes, **attributes)
    return trainer


LABEL_TYPES = [torch.float32, torch.float64, torch.float16, torch.int8, torch.int16, torch.int32, torch.uint8]


@pytest.mark.parametrize("dtype", [*LABEL_TYPES, torch.uint16, torch.uint32])
def test_labels_of_any_type_train_like_those_of_int64(tmp_path, dtype):
    def metrics(change):
        trainer = _changed(tmp_path, change)
        trainer.train(1, seed=0)
        return {name: values for name, values in trainer.metrics().items() if name != "epoch duration"}

    assert metrics(lambda label: label.to(dtype)) == metrics(lambda label: label)


def test_boolean_labels_train_and_validate(tmp_path):
    trainer = _changed(tmp_path, lambda label: label > 0, num_classes=1)
    trainer.train(1)
    assert 0 <= trainer.metrics()["val dice"][0] <= 1


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda label: (label > 0) / 255, r"holds fractions such as 0\.003922.*multiply by 255"),
        (lambda label: (label > 0) * 0.5, r"holds fractions such as 0\.5.*nearest-neighbour"),
        (lambda label: torch.where(label > 0, math.nan, label.float()), "holds NaN"),
        (lambda label: torch.where(label > 0, math.inf, label.float()), "holds infinity"),
        (lambda label: torch.where(label > 0, -1, label), "holds -1,"),
        (lambda label: label[0], r"shape \(1, 16, 16\), expected \(B, 1, \*spatial\).*label\[None\]"),
    ],
)
def test_labels_that_are_no_ids_are_refused_before_anything_is_written(tmp_path, num_classes, change, message):
    with pytest.raises(BadInputError, match=message):
        _changed(tmp_path, change, num_classes=num_classes).train(1)
    assert list(tmp_path.iterdir()) == []


def test_one_hot_labels_are_refused_with_the_way_to_ids(tmp_path):
    def one_hot(label):
        return nn.functional.one_hot(label[0], 3).movedim(-1, 0)

    with pytest.raises(BadInputError, match=r"shape \(1, 3, 16, 16\).*labels\.argmax\(1, keepdim=True\)"):
        _changed(tmp_path, one_hot).train(1)


def test_the_case_at_fault_is_named_among_those_of_its_batch(tmp_path):
    trainer = _changed(tmp_path, lambda label: label)
    labels = torch.zeros(3, 1, 4, 4)
    labels[1] = 0.5
    with pytest.raises(BadInputError, match=r"^b holds fractions"):
        trainer._check_batch(Batch(torch.zeros(labels.shape), labels, ("a", "b", "c")))


def test_labels_of_minus_1_that_are_ignored_train_whatever_their_type_and_padding(tmp_path):
    class Padded(SmallTrainer):
        num_classes, ignore_index = 3, -1

        def build_padding_module(self):
            return Pad2d(32)

    data = _Changed(lambda label: label.to(torch.uint8))
    small_trainer(tmp_path, data, cls=Padded).train(1)
    data.change = lambda label: torch.where(label == 2, -1, label)
    small_trainer(tmp_path, data, cls=Padded).train(1)


def test_masks_of_a_trainer_that_scores_them_itself_are_its_own_matter(tmp_path):
    class Masks(SmallTrainer):
        num_classes = 2

        def build_criterion(self):
            return DiceBCELossWithLogits(2)

        def score_case(self, logits, label, toolbox):
            return -float(toolbox.criterion(logits, label)[0]), {}

    data = _Changed(lambda label: torch.cat([label > 0, label > 1]))
    small_trainer(tmp_path, data, cls=Masks).train(1)


def test_empty_labels_survive_training_and_a_class_that_is_nowhere_counts_nowhere(tmp_path):
    class Empty(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label * (index % 2)

    trainer = small_trainer(tmp_path, Empty())
    trainer.train(2)
    assert torch.isfinite(torch.tensor(trainer.metrics()["combined loss"])).all()


def test_more_classes_than_the_trainer_knows_are_refused_before_anything_is_written(tmp_path):
    trainer = small_trainer(tmp_path, Squares(2, num_classes=3))
    with pytest.raises(BadInputError, match="id 2.*num_classes is 1.*set num_classes = 3"):
        trainer.train(1)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_that_knows_its_classes_is_believed(tmp_path):
    data = Squares(2, num_classes=1)
    data.num_classes = 5
    trainer = small_trainer(tmp_path, data)
    trainer.num_classes = 3
    with pytest.raises(BadInputError, match="the dataset has 5 classes"):
        trainer.train(1)


def test_the_ignored_id_counts_neither_in_the_check_nor_in_the_loss(tmp_path):
    class Ignoring(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            label = label.clone()
            label[:, :2] = 9
            return image, label

    trainer = small_trainer(tmp_path, Ignoring())
    trainer.ignore_index = 9
    trainer.train(1)
    assert 0 <= trainer.metrics()["val dice"][0] <= 1


def test_a_label_id_that_only_a_later_case_holds_stops_the_run_and_names_the_case(tmp_path):
    class LateSurprise(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return {"image": image, "label": label * (2 if index == 3 else 1), "case_id": f"case_{index}"}

    with pytest.raises(BadInputError, match="case_3.*label id 2.*num_classes is 1"):
        small_trainer(tmp_path, LateSurprise()).train(1)


def _of_shapes(image, label):
    return [{"image": torch.zeros(image), "label": torch.zeros(label, dtype=torch.int64)}] * 2


class _OwnScore(SmallTrainer):
    def build_criterion(self):
        return nn.MSELoss()  # compares tensors of any shapes that can be broadcast

    def score_case(self, logits, label, toolbox):
        return 0.0, {}


@pytest.mark.parametrize("cls", [SmallTrainer, _OwnScore])
@pytest.mark.parametrize("side", ["training", "validation"])
@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        ((1, 16, 16), (16, 16), r"shape \(1, 16, 16\), expected \(B, 1, \*spatial\) of label ids.*label\[None\]"),
        ((16, 16), (16, 16), r"images have the shape \(1, 16, 16\), expected \(B, C, \*spatial\).*EnsureChannelFirst"),
    ],
)
def test_images_and_labels_without_a_channel_are_refused_before_anything_is_written(
    tmp_path, cls, side, image, label, message
):
    good, bad = DataLoader(_of_shapes((1, 16, 16), (1, 16, 16))), DataLoader(_of_shapes(image, label))
    with pytest.raises(BadInputError, match=message):
        cls(tmp_path, *((bad, good) if side == "training" else (good, bad)), console=False).train(1)
    assert list(tmp_path.iterdir()) == []


def test_a_label_on_another_grid_than_its_image_is_refused(tmp_path):
    data = DataLoader(_of_shapes((1, 16, 16), (1, 8, 8)))
    with pytest.raises(BadInputError, match=r"images have the shape \(1, 1, 16, 16\) and the labels \(1, 1, 8, 8\)"):
        SmallTrainer(tmp_path, data, None, console=False).train(1)


def test_labels_on_another_grid_are_taken_where_infer_is_a_subclass_s(tmp_path):
    class Coarse(SmallTrainer):
        def build_network(self, example_shape):
            return nn.Conv2d(example_shape[0], 1, 2, stride=2)

        def infer(self, images, toolbox):
            return toolbox.model(images)

    data = DataLoader(_of_shapes((1, 16, 16), (1, 8, 8)))
    trainer = Coarse(tmp_path, data, data, console=False)
    trainer.train(1, save_preview=False, save_report=False)
    assert trainer.metrics()["val score"][0] < 0


def test_labels_without_a_channel_are_taken_where_loss_and_score_are_a_subclass_s(tmp_path):
    class Entropy(_OwnScore):
        num_classes = 2

        def build_criterion(self):
            return nn.CrossEntropyLoss()

        def score_case(self, logits, label, toolbox):
            return -float(toolbox.criterion(logits, label)), {}

    data = DataLoader(_of_shapes((1, 16, 16), (16, 16)))
    trainer = Entropy(tmp_path, data, data, console=False)
    trainer.train(1, save_preview=False, save_report=False)
    assert trainer.metrics()["val score"][0] < 0


def test_validation_images_with_other_channels_are_refused_before_anything_is_written(tmp_path):
    good, other = (DataLoader(_of_shapes((channels, 16, 16), (1, 16, 16))) for channels in (1, 3))
    with pytest.raises(BadInputError, match="the first validation case has 3 channels and the first training image 1"):
        SmallTrainer(tmp_path, good, other, console=False).train(1)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_of_0_and_255_is_refused_with_how_to_binarize_it(tmp_path):
    with pytest.raises(BadInputError, match=r"label id 255.*BinarizedDataset\(dataset, positive_ids=\[255\]\)"):
        _changed(tmp_path, lambda label: (label > 0) * 255).train(1)
