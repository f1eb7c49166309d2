from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.nets import DynUNet
from torch import nn

from candy_monai.errors import SettingsError
from candy_monai.nn.deep_supervision import DeepSupervisionLoss, downsample_labels, main_output, outputs_as_list
from candy_monai.nn.losses import DiceBCELossWithLogits, DiceCELossWithLogits


class Level(nn.Module):
    """A criterion whose loss is the first logit, and which remembers the labels that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[torch.Tensor] = []

    def forward(self, logits, labels):
        self.labels.append(labels)
        return logits.flatten()[0], {"level": logits.flatten()[0].detach()}


def level(value: float, *size: int, channels: int = 1) -> torch.Tensor:
    return torch.full((1, channels, *size), float(value))


@pytest.mark.parametrize("arrange", [list, tuple, lambda heads: dict(zip("abc", heads, strict=True))])
def test_the_default_weights_halve_at_every_level_and_sum_to_one(arrange):
    heads = arrange([level(7, 8, 8), level(14, 4, 4), level(28, 2, 2)])
    loss, parts = DeepSupervisionLoss(Level())(heads, torch.zeros(1, 1, 8, 8))
    assert loss.item() == pytest.approx((4 * 7 + 2 * 14 + 1 * 28) / 7)
    assert parts["level"].item() == 7


def test_given_weights_are_used_as_given():
    heads = [level(1, 8, 8), level(10, 4, 4)]
    loss, _ = DeepSupervisionLoss(Level(), weights=[2.0, 0.5])(heads, torch.zeros(1, 1, 8, 8))
    assert loss.item() == pytest.approx(2 * 1 + 0.5 * 10)


def test_an_output_of_weight_zero_is_not_computed():
    criterion = Level()
    DeepSupervisionLoss(criterion, weights=[1.0, 0.0])([level(1, 8, 8), level(1, 4, 4)], torch.zeros(1, 1, 8, 8))
    assert len(criterion.labels) == 1


def test_outputs_given_from_coarse_to_fine_are_weighed_from_the_finest():
    heads = [level(10, 4, 4), level(1, 8, 8)]
    loss, parts = DeepSupervisionLoss(Level())(heads, torch.zeros(1, 1, 8, 8))
    assert loss.item() == pytest.approx((2 * 1 + 10) / 3)
    assert parts["level"].item() == 1


def test_a_single_tensor_costs_what_the_bare_criterion_says():
    logits, ids = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 1, 4, 4))
    criterion = DiceCELossWithLogits(3)
    loss, parts = DeepSupervisionLoss(criterion)(logits, ids)
    expected, expected_parts = criterion(logits, ids)
    assert torch.equal(loss, expected)
    assert parts == expected_parts


def test_a_criterion_that_returns_a_bare_tensor_has_no_parts():
    heads = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    loss, parts = DeepSupervisionLoss(nn.BCEWithLogitsLoss())(heads, torch.ones(1, 1, 4, 4))
    assert loss.item() == pytest.approx(0.6931, abs=1e-4)
    assert parts == {}


@pytest.mark.parametrize(
    "criterion", [DiceCELossWithLogits(2, ignore_index=2), DiceBCELossWithLogits(1, ignore_index=2)], ids=["ce", "bce"]
)
def test_integer_labels_with_an_ignore_value_reach_every_level(criterion):
    heads = [torch.zeros(1, criterion.num_classes, n, n, requires_grad=True) for n in (8, 4, 2)]
    labels = torch.full((1, 1, 8, 8), 2)
    labels[..., 4:] = 1
    loss, _ = DeepSupervisionLoss(criterion)(heads, labels)
    loss.backward()
    for head in heads:
        half = head.shape[-1] // 2
        assert (head.grad[..., :half] == 0).all()
        assert (head.grad[..., half:] != 0).any()


def test_dynunets_stacked_heads_train_and_evaluate_to_one_tensor():
    network = DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], deep_supervision=True, deep_supr_num=1)
    x, ids = torch.randn(2, 1, 16, 16), torch.randint(0, 2, (2, 1, 16, 16))
    stacked = network.train()(x)
    loss, parts = DeepSupervisionLoss(DiceCELossWithLogits(2))(stacked, ids)
    loss.backward()
    assert torch.equal(parts["ce loss"], DiceCELossWithLogits(2)(stacked[:, 0], ids)[1]["ce loss"])
    assert main_output(stacked, num_dims=2).shape == main_output(network.eval()(x), num_dims=2).shape == (2, 2, 16, 16)


@pytest.mark.parametrize("size", [(8, 8, 8), (4, 4, 4), (2, 2, 2), (5, 3, 7)])
@pytest.mark.parametrize("margin", [1, 2, 3, 4])
def test_a_centred_cube_stays_centred(size, margin):
    labels = torch.zeros(1, 1, 16, 16, 16, dtype=torch.int16)
    inner = slice(margin, 16 - margin)
    labels[..., inner, inner, inner] = 3
    small = downsample_labels(labels, size)
    assert small.shape[2:] == size
    assert torch.equal(small, small.flip(2, 3, 4))
    assert small.max() == 3


@given(old=st.integers(1, 40), share=st.floats(0, 1))
def test_every_pick_lies_within_half_a_new_voxel_of_its_centre_and_picks_are_mirror_symmetric(old, share):
    new = max(1, round(old * share))
    line = torch.arange(old).reshape(1, 1, old, 1)
    picks = downsample_labels(line, (new, 1)).flatten().tolist()
    centres = [(i + 0.5) * old / new - 0.5 for i in range(new)]
    assert len(picks) == new
    assert all(abs(pick - centre) <= 0.5 + 1e-9 for pick, centre in zip(picks, centres, strict=True))
    off_centre = [i for i in range(new) if 2 * i != new - 1]
    assert all(picks[i] == old - 1 - picks[new - 1 - i] for i in off_centre)


def test_labels_cannot_be_brought_to_a_higher_resolution():
    with pytest.raises(ValueError, match="cannot be downsampled"):
        downsample_labels(torch.zeros(1, 1, 4, 4), (8, 8))


def test_an_output_coarser_than_the_labels_is_not_taken_for_the_full_resolution():
    with pytest.raises(ValueError, match="finest output"):
        DeepSupervisionLoss(Level())([level(1, 4, 4), level(1, 2, 2)], torch.zeros(1, 1, 8, 8))


def test_another_number_of_weights_than_outputs_is_refused():
    with pytest.raises(ValueError, match="2 weights for 1 outputs"):
        DeepSupervisionLoss(Level(), weights=[1.0, 0.5])([level(1, 8, 8)], torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_weights_out_of_range_are_refused(weights):
    with pytest.raises(SettingsError):
        DeepSupervisionLoss(Level(), weights=weights)


@pytest.mark.parametrize("key", ["out", "logits"])
def test_a_dict_names_its_main_output_though_an_equal_one_comes_first(key):
    assert main_output({"aux": level(1, 8, 8), key: level(2, 8, 8)}, num_dims=2).mean() == 2


def test_without_a_known_name_the_first_of_the_finest_is_the_main_output():
    output = {"a": level(1, 4, 4), "b": level(2, 8, 8), "c": level(3, 8, 8)}
    assert main_output(output, num_dims=2).mean() == 2


def test_a_scalar_loss_beside_the_output_is_left_out():
    assert len(outputs_as_list((level(1, 8, 8), torch.tensor(0.1), None), 2)) == 1


def test_a_network_without_any_segmentation_output_is_named_as_such():
    with pytest.raises(ValueError, match="no tensor"):
        main_output([torch.zeros(3)], num_dims=2)


def test_something_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="got str"):
        main_output("logits", num_dims=2)
