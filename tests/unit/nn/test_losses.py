from __future__ import annotations

import inspect
import math

import monai.losses
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch import nn

from candy_monai.errors import SettingsError
from candy_monai.nn.losses import DiceBCELossWithLogits, DiceCELossWithLogits, apply_loss, as_loss, split_loss


def some_ids(num_classes: int, shape=(2, 1, 6, 5)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, num_classes, shape, generator=generator)


def some_logits(channels: int, shape=(2, 6, 5)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape[0], channels, *shape[1:], generator=generator)


def confident(ids: torch.Tensor, num_classes: int, sharpness: float = 15.0) -> torch.Tensor:
    hot = torch.nn.functional.one_hot(ids.squeeze(1), num_classes).movedim(-1, 1)
    return (2.0 * hot - 1.0) * sharpness


def test_one_logit_of_zero_on_a_full_label_costs_log_two_and_a_dice_of_two_thirds():
    loss, parts = DiceBCELossWithLogits()(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    assert parts["bce loss"].item() == pytest.approx(math.log(2))
    # probabilities are 1/2 on 16 voxels of foreground: 2 * 8 / (8 + 16)
    assert parts["soft dice"].item() == pytest.approx(2 / 3, abs=1e-6)
    assert loss.item() == pytest.approx(math.log(2) + 1 / 3, abs=1e-6)


def test_dice_and_cross_entropy_equal_monais_combined_loss():
    logits, ids = some_logits(3), some_ids(3)
    ours, _ = DiceCELossWithLogits(3)(logits, ids)
    theirs = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, ids)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_weights_scale_their_own_part():
    logits, ids = some_logits(3), some_ids(3)
    loss, parts = DiceCELossWithLogits(3, lambda_ce=2.0, lambda_soft_dice=0.5)(logits, ids)
    assert loss.item() == pytest.approx(2 * parts["ce loss"].item() + 0.5 * (1 - parts["soft dice"].item()), rel=1e-6)


@pytest.mark.parametrize("foreground", [0.0, 1.0, 0.3])
def test_perfect_confident_single_logits_give_dice_one_also_on_an_empty_label(foreground):
    ids = (torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) < foreground).long()
    _, parts = DiceBCELossWithLogits()((2.0 * ids - 1) * 15, ids)
    assert parts["soft dice"].item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("criterion", [DiceCELossWithLogits(5), DiceBCELossWithLogits(5)])
def test_perfect_confident_logits_give_dice_one_though_two_classes_are_absent(criterion):
    ids = some_ids(3, (2, 1, 12, 12, 12))
    _, parts = criterion(confident(ids, 5), ids)
    assert parts["soft dice"].item() == pytest.approx(1.0, abs=1e-4)


def test_a_class_that_is_predicted_and_absent_from_the_label_lowers_the_reported_dice():
    ids = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    predicted = ids.clone()
    predicted[..., 0, 0] = 1
    _, parts = DiceCELossWithLogits(3)(confident(predicted, 3), ids)
    # background 2 * 15 / (15 + 16), class 1 has no overlap, class 2 is in neither and left out
    assert parts["soft dice"].item() == pytest.approx((30 / 31 + 0) / 2, abs=1e-4)


def test_the_background_is_left_out_of_loss_and_reported_dice_when_asked():
    ids = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    ids[..., :2, :] = 1
    predicted = torch.zeros_like(ids)
    predicted[..., :1, :] = 1
    loss, parts = DiceCELossWithLogits(2, lambda_ce=0.0, include_background=False)(confident(predicted, 2), ids)
    assert parts["soft dice"].item() == pytest.approx(2 * 4 / (4 + 8), abs=1e-4)
    assert loss.item() == pytest.approx(1 - 8 / 12, abs=1e-4)


def test_batch_dice_divides_after_summing_over_the_batch():
    labels = torch.zeros(2, 1, 4, 4)
    labels[0] = 1
    logits = torch.full((2, 1, 4, 4), 15.0)
    per_item = DiceBCELossWithLogits()(logits, labels)[1]["soft dice"].item()
    over_batch = DiceBCELossWithLogits(batch_dice=True)(logits, labels)[1]["soft dice"].item()
    assert per_item == pytest.approx((1 + 0) / 2, abs=1e-4)
    assert over_batch == pytest.approx(2 * 16 / (32 + 16), abs=1e-4)


def test_ids_and_their_one_hot_masks_cost_the_same_binary_cross_entropy():
    logits, ids = some_logits(3), some_ids(3)
    masks = torch.nn.functional.one_hot(ids.squeeze(1), 3).movedim(-1, 1)
    criterion = DiceBCELossWithLogits(3)
    assert criterion(logits, ids)[0].item() == pytest.approx(criterion(logits, masks.bool())[0].item(), rel=1e-6)


def test_overlapping_regions_are_accepted_as_masks():
    masks = torch.ones(1, 2, 4, 4)
    _, parts = DiceBCELossWithLogits(2)(torch.full((1, 2, 4, 4), 15.0), masks)
    assert parts["soft dice"].item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("criterion", [DiceCELossWithLogits(3), DiceBCELossWithLogits(3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32, torch.float64])
def test_labels_of_any_number_type_cost_the_same(criterion, dtype):
    logits, ids = some_logits(3), some_ids(3)
    assert torch.equal(criterion(logits, ids.to(dtype))[0], criterion(logits, ids)[0])


def test_boolean_labels_cost_the_same_as_integer_ones():
    logits, ids = some_logits(1), some_ids(2)
    criterion = DiceBCELossWithLogits()
    assert torch.equal(criterion(logits, ids.bool())[0], criterion(logits, ids)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    # 2**17 voxels of probability 1/2 sum to 65536, beyond float16 and beyond bfloat16's whole numbers
    logits = torch.zeros(1, 1, 2**17, 1, dtype=dtype, requires_grad=True)
    loss, parts = DiceBCELossWithLogits()(logits, torch.ones(1, 1, 2**17, 1))
    assert loss.dtype == torch.float32
    assert parts["soft dice"].item() == pytest.approx(2 / 3, abs=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("criterion", [DiceCELossWithLogits(3), DiceBCELossWithLogits(3)])
def test_meta_tensors_give_plain_results_and_the_same_value(criterion):
    logits, ids = some_logits(3), some_ids(3)
    loss, parts = criterion(MetaTensor(logits), MetaTensor(ids))
    assert torch.equal(loss, criterion(logits, ids)[0])
    assert type(loss) is torch.Tensor
    assert {type(part) for part in parts.values()} == {torch.Tensor}


@pytest.mark.parametrize("criterion", [DiceCELossWithLogits(2), DiceBCELossWithLogits(2), DiceBCELossWithLogits(1)])
def test_the_reported_parts_are_detached_tensors_without_dimensions(criterion):
    logits = some_logits(criterion.num_classes).requires_grad_()
    _, parts = criterion(logits, some_ids(2))
    assert all(part.ndim == 0 and not part.requires_grad for part in parts.values())


@pytest.mark.parametrize("level", [-1e4, -15.0, 0.0, 15.0, 1e4])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "criterion", [DiceBCELossWithLogits(1), DiceBCELossWithLogits(2), DiceCELossWithLogits(2)], ids=["one", "bce", "ce"]
)
def test_empty_and_full_labels_and_predictions_in_any_mix_stay_finite(level, label, criterion):
    logits = torch.zeros(2, criterion.num_classes, 4, 4)
    logits[:, -1] = level
    logits.requires_grad_()
    loss, parts = criterion(logits, torch.full((2, 1, 4, 4), label))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(part) for part in parts.values())
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("ignore", [-1, 3, 255])
@pytest.mark.parametrize("make", [DiceCELossWithLogits, DiceBCELossWithLogits])
@given(data=st.data())
@settings(max_examples=15)
def test_what_the_logits_say_at_ignored_voxels_changes_nothing(make, ignore, data):
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    ids = torch.randint(0, 3, (2, 1, 4, 5), generator=generator)
    hidden = torch.rand(2, 1, 4, 5, generator=generator) < data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    ids[hidden] = ignore
    other = torch.where(hidden, logits + 7 * torch.randn(logits.shape, generator=generator), logits)
    criterion = make(3, ignore_index=ignore)
    first, second = criterion(logits.requires_grad_(), ids), criterion(other, ids)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    first[0].backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.abs().amax(1, keepdim=True)[hidden] == 0).all()


@pytest.mark.parametrize("make", [DiceCELossWithLogits, DiceBCELossWithLogits])
def test_ignoring_half_of_the_picture_costs_the_same_as_cropping_it_away(make):
    logits, ids = some_logits(3), some_ids(3)
    masked = ids.clone()
    masked[..., 3:] = 255
    whole, _ = make(3, ignore_index=255)(logits, masked)
    cropped, _ = make(3)(logits[..., :3], ids[..., :3])
    assert whole.item() == pytest.approx(cropped.item(), rel=1e-5)


def test_a_binary_label_with_an_ignore_id_of_two_costs_the_same_as_cropping_it_away():
    logits, ids = some_logits(1), some_ids(2)
    masked = ids.clone()
    masked[..., 3:] = 2
    whole, _ = DiceBCELossWithLogits(ignore_index=2)(logits, masked)
    cropped, _ = DiceBCELossWithLogits()(logits[..., :3], ids[..., :3])
    assert whole.item() == pytest.approx(cropped.item(), rel=1e-5)


def test_region_masks_may_mark_ignored_voxels_in_every_channel():
    logits = some_logits(2)
    masks = (some_logits(2) > 0).long()
    masked = masks.clone()
    masked[..., 3:] = -1
    whole, _ = DiceBCELossWithLogits(2, ignore_index=-1)(logits, masked)
    cropped, _ = DiceBCELossWithLogits(2)(logits[..., :3], masks[..., :3])
    assert whole.item() == pytest.approx(cropped.item(), rel=1e-5)


def test_cross_entropy_over_one_channel_is_refused_and_names_the_binary_loss():
    with pytest.raises(SettingsError, match="DiceBCELossWithLogits"):
        DiceCELossWithLogits(1)


@pytest.mark.parametrize("options", [{"smooth": 0.0}, {"lambda_bce": -1.0}, {"lambda_soft_dice": math.nan}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(SettingsError):
        DiceBCELossWithLogits(1, **options)


@pytest.mark.parametrize(
    ("criterion", "logits", "labels"),
    [
        (DiceCELossWithLogits(3), (1, 2, 4, 4), (1, 1, 4, 4)),
        (DiceCELossWithLogits(3), (1, 3, 4, 4), (1, 3, 4, 4)),
        (DiceCELossWithLogits(3), (1, 3, 4, 4), (1, 1, 4, 5)),
        (DiceCELossWithLogits(3), (1, 3, 4, 4), (1, 4, 4)),
        (DiceBCELossWithLogits(1), (2, 1, 4, 4), (1, 1, 4, 4)),
        (DiceBCELossWithLogits(3), (1, 3, 4, 4), (1, 2, 4, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_naming_both(criterion, logits, labels):
    with pytest.raises(ValueError, match="expected") as caught:
        criterion(torch.zeros(logits), torch.zeros(labels))
    assert str(logits) in str(caught.value)
    assert str(labels) in str(caught.value)


def test_a_hundred_classes_keep_no_floating_copy_of_the_labels_for_the_backward_pass():
    kept: list[torch.Tensor] = []
    logits = torch.zeros(1, 100, 8, 8, requires_grad=True)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        DiceCELossWithLogits(100)(logits, some_ids(100, (1, 1, 8, 8)))
    floating = {t.data_ptr() for t in kept if t.numel() == logits.numel() and t.is_floating_point()}
    assert len(floating) == 2  # the softmax of the Dice and the log-softmax of the entropy


def test_as_loss_returns_only_the_tensor():
    logits, ids = some_logits(3), some_ids(3)
    criterion = DiceCELossWithLogits(3)
    assert torch.equal(as_loss(criterion)(logits, ids), criterion(logits, ids)[0])


def test_as_loss_is_the_loss_function_that_an_engine_of_monai_s_calls():
    prediction = torch.randn(2, 3, 6, 6, requires_grad=True)
    label = MetaTensor(torch.randint(0, 3, (2, 1, 6, 6)))
    as_loss(DiceCELossWithLogits(3))(prediction, label).mean().backward()  # as its trainer does
    assert prediction.grad is not None
    config = {
        "_target_": "candy_monai.as_loss",
        "criterion": {"_target_": "candy_monai.DiceCELossWithLogits", "num_classes": 3},
    }
    configured = ConfigParser({"loss": config}).get_parsed_content("loss")
    assert torch.equal(configured(prediction, label), DiceCELossWithLogits(3)(prediction, label)[0])


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("ignore_index", [None, 9, -1, 2])
def test_with_an_ignored_id_too_the_loss_is_that_of_monai_and_pytorch(include_background, ignore_index):
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 3, 6, 6), torch.randint(0, 2 if ignore_index == 2 else 3, (2, 1, 6, 6))
    if ignore_index is not None:
        ids[:, :, :2] = ignore_index
    ignored = {} if ignore_index is None else {"ignore_index": ignore_index}
    if ignored and "ignore_index" not in inspect.signature(monai.losses.DiceLoss).parameters:
        pytest.skip("the DiceLoss of MONAI before 1.6.1 has no ignore_index")
    dice = monai.losses.DiceLoss(include_background=include_background, softmax=True, to_onehot_y=True, **ignored)(
        logits, ids
    )
    entropy = nn.functional.cross_entropy(
        logits, ids[:, 0], ignore_index=-100 if ignore_index is None else ignore_index
    )
    criterion = DiceCELossWithLogits(3, include_background=include_background, ignore_index=ignore_index)
    assert criterion(logits, ids)[0] == pytest.approx((dice + entropy).item(), abs=1e-6)


def test_as_loss_leaves_a_plain_loss_as_it_is():
    logits, labels = some_logits(1), some_ids(2).float()
    assert torch.equal(as_loss(nn.BCEWithLogitsLoss())(logits, labels), nn.BCEWithLogitsLoss()(logits, labels))


def test_split_loss_gives_a_bare_tensor_no_parts():
    loss = torch.tensor(1.0)
    assert split_loss(loss) == (loss, {})


def test_split_loss_keeps_a_pair():
    loss = torch.tensor(1.0)
    assert split_loss((loss, {"part": 2.0})) == (loss, {"part": 2.0})


@pytest.mark.parametrize("result", [1.0, (1.0, {}), (torch.tensor(1.0), 2.0), None])
def test_split_loss_refuses_anything_else(result):
    with pytest.raises(TypeError, match="criterion must return"):
        split_loss(result)


BOTH_LOSSES = [(DiceBCELossWithLogits(1), 1), (DiceBCELossWithLogits(3), 3), (DiceCELossWithLogits(3), 3)]


@pytest.mark.parametrize(("criterion", "channels"), BOTH_LOSSES)
@pytest.mark.parametrize(
    ("value", "message"),
    [(0.5, "fractions such as 0.5"), (math.nan, "NaN"), (-1, "-1"), (7, "the id 7, but with num_")],
)
def test_labels_that_are_no_ids_of_the_classes_are_refused(criterion, channels, value, message):
    labels = torch.zeros(1, 1, 4, 4)
    labels[0, 0, 1, 1] = value
    with pytest.raises(ValueError, match=message):
        criterion(torch.zeros(1, channels, 4, 4), labels)


def test_masks_may_be_soft_and_not_beyond_0_and_1():
    criterion, logits = DiceBCELossWithLogits(2), torch.zeros(1, 2, 4, 4)
    assert criterion(logits, torch.full((1, 2, 4, 4), 0.3))[0].isfinite()
    with pytest.raises(ValueError, match="values from 0 to 255, expected 0 to 1"):
        criterion(logits, torch.tensor([0, 255])[None, :, None, None].expand(1, 2, 4, 4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.uint16, torch.bool, torch.float64])
@pytest.mark.parametrize(("criterion", "channels"), BOTH_LOSSES)
def test_ids_of_every_type_cost_the_same(criterion, channels, dtype):
    ids, logits = some_ids(2), some_logits(channels)
    assert torch.equal(criterion(logits, ids.to(dtype))[0], criterion(logits, ids)[0])


@pytest.mark.parametrize(
    "criterion", [DiceBCELossWithLogits(256, ignore_index=-1), DiceCELossWithLogits(256, ignore_index=-1)]
)
def test_255_in_a_byte_is_not_the_ignored_minus_1(criterion):
    ids, logits = torch.full((1, 1, 2, 2), 255), some_logits(256)[:1, :, :2, :2]
    assert torch.equal(criterion(logits, ids.to(torch.uint8))[0], criterion(logits, ids)[0])


class _Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU, where nothing may be read back."""

    device = torch.device("cuda")


def test_where_labels_cannot_be_looked_at_the_loss_is_nan():
    for criterion, channels in BOTH_LOSSES:
        loss, labels = torch.ones(()), torch.zeros(1, 1, 2, 2).as_subclass(_Elsewhere)
        assert criterion._combined(loss, loss, labels).item() == 2.0
        assert criterion._combined(loss, loss, labels + 0.5).isnan(), channels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_where_masks_of_whole_numbers_cannot_be_looked_at_255_is_no_1(dtype):
    criterion, loss = DiceBCELossWithLogits(2, ignore_index=7), torch.ones(())
    masks = torch.tensor([0, 1])[None, :, None, None].expand(1, 2, 2, 2).to(dtype).as_subclass(_Elsewhere)
    assert criterion._combined(loss, loss, masks).item() == 2.0
    assert criterion._combined(loss, loss, masks * 7).item() == 2.0
    assert criterion._combined(loss, loss, masks * 255).isnan()


def test_the_losses_of_pytorch_are_given_ids_as_they_take_them():
    logits, ids = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 1, 4, 4))
    entropy = nn.CrossEntropyLoss()
    for labels in (ids, ids.float(), ids.to(torch.uint8)):
        assert apply_loss(entropy, logits, labels) == (entropy(logits, ids[:, 0]), {})
    mask, binary = ids > 0, nn.BCEWithLogitsLoss()
    assert apply_loss(binary, logits[:, :1], mask.long()) == (binary(logits[:, :1], mask.float()), {})


@pytest.mark.parametrize("labels", [torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.int64)])
def test_a_cross_entropy_over_a_single_channel_which_is_always_0_is_refused(labels):
    with pytest.raises(ValueError, match=r"CrossEntropyLoss needs a channel for each class.*BCEWithLogitsLoss"):
        apply_loss(nn.CrossEntropyLoss(), torch.randn(2, 1, 4, 4), labels)


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss()])
def test_differences_of_logits_and_ids_of_another_shape_are_refused(criterion):
    ids = torch.ones(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"output has \(2, 3, 4, 4\), the labels \(2, 1, 4, 4\)"):
        apply_loss(criterion, torch.randn(2, 3, 4, 4), ids)
    assert apply_loss(criterion, ids, ids) == (0, {})


def test_a_subclass_of_a_loss_of_pytorch_may_change_what_it_gets():
    class Differences(nn.MSELoss):
        def forward(self, logits, ids):
            return super().forward(logits.softmax(1), torch.cat([1 - ids, ids], 1))

    class Entropy(nn.CrossEntropyLoss):
        def forward(self, logits, ids):
            return super().forward(torch.cat([-logits, logits], 1), ids)

    ids = torch.ones(2, 1, 4, 4)
    assert apply_loss(Differences(), torch.zeros(2, 2, 4, 4), ids)[0] == 0.25
    assert apply_loss(Entropy(), torch.zeros(2, 1, 4, 4), ids)[0] == pytest.approx(math.log(2))


def test_a_loss_of_each_case_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"L1Loss returned a tensor of shape \(2, 1\), expected one number: reduce it"):
        apply_loss(nn.L1Loss(reduction="none"), torch.zeros(2, 1), torch.zeros(2, 1))
