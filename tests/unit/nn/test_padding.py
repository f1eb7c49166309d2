from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from candy_monai.errors import SettingsError
from candy_monai.nn.padding import Pad2d, Pad3d, pad_labels, padding_from_dict, padding_to_dict, restore_like

MODES = ["constant", "reflect", "replicate", "circular"]


class PadAtTheEnd(nn.Module):
    """A user's own module: multiples of 16, everything at the end."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, [0, -x.shape[-1] % 16, 0, -x.shape[-2] % 16], value=self.value)


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def test_widths_are_split_evenly_with_the_extra_voxel_at_the_end():
    assert Pad2d(4).widths((5, 6)) == ((1, 2), (1, 1))


def test_a_row_of_three_becomes_a_row_of_four_with_the_value_last():
    padded = Pad2d((1, 4), value=9.0)(torch.tensor([[[1.0, 2.0, 3.0]]]))
    assert padded.tolist() == [[[1.0, 2.0, 3.0, 9.0]]]


def test_each_axis_may_have_its_own_factor():
    assert Pad3d((1, 4, 8))(torch.zeros(1, 2, 3, 5, 9)).shape == (1, 2, 3, 8, 16)


def test_a_size_that_fits_gives_the_very_same_tensor():
    x = torch.zeros(1, 1, 8, 16)
    assert Pad2d(8)(x) is x


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=25)
def test_restoring_what_was_padded_is_the_identity(mode, data):
    num_dims = data.draw(st.sampled_from([2, 3]))
    size = tuple(data.draw(st.lists(st.integers(1, 9), min_size=num_dims, max_size=num_dims)))
    factors = tuple(data.draw(st.lists(st.integers(1, 6), min_size=num_dims, max_size=num_dims)))
    leading = data.draw(st.sampled_from([(1,), (2,), (1, 2), (2, 1)]))
    pad = (Pad2d if num_dims == 2 else Pad3d)(factors, mode=mode)
    x = numbered(*leading, *size)
    padded = pad(x)
    assert all(length % factor == 0 for length, factor in zip(padded.shape[-num_dims:], factors, strict=True))
    assert torch.equal(pad.restore(padded, size), x)


def test_restoring_accepts_another_number_of_channels():
    pad = Pad2d(8)
    assert pad.restore(torch.zeros(2, 7, 8, 8), (5, 6)).shape == (2, 7, 5, 6)


def test_restoring_a_tensor_of_another_size_is_refused():
    with pytest.raises(ValueError, match="is padded to"):
        Pad2d(8).restore(torch.zeros(1, 1, 16, 8), (5, 6))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_copying_modes_equal_torchs_own(mode):
    x = numbered(1, 2, 5, 6)
    expected = torch.nn.functional.pad(x, [1, 1, 1, 2], mode=mode)
    assert torch.equal(Pad2d(4 * 2, mode=mode)(x), expected)


def test_an_axis_too_short_to_reflect_once_is_reflected_again():
    padded = Pad2d((1, 6), mode="reflect")(torch.tensor([[[1.0, 2.0]]]))
    assert padded.tolist() == [[[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]]]


def test_an_axis_of_one_voxel_is_replicated_when_reflected():
    assert Pad2d((1, 3), mode="reflect")(torch.ones(1, 1, 1)).tolist() == [[[1.0, 1.0, 1.0]]]


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4, 4)])
def test_a_tensor_with_the_wrong_number_of_axes_is_refused(shape):
    with pytest.raises(ValueError, match="spatial axes"):
        Pad2d(8)(torch.zeros(shape))


@pytest.mark.parametrize(
    "arguments",
    [{"min_factor": 0}, {"min_factor": (2, 2, 2)}, {"min_factor": 2, "mode": "mirror"}],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(SettingsError):
        Pad2d(**arguments)


def test_a_value_for_a_mode_that_copies_is_refused():
    with pytest.raises(SettingsError, match="no effect"):
        Pad2d(2, value=1.0, mode="reflect")


@pytest.mark.parametrize(
    "padding",
    [
        PadAtTheEnd(),
        PadAtTheEnd(value=3.0),
        nn.ZeroPad2d((1, 2, 3, 0)),
        nn.ReflectionPad2d((1, 2, 3, 0)),
        nn.ReplicationPad2d((1, 2, 3, 0)),
        nn.CircularPad2d((1, 2, 3, 0)),
        nn.ConstantPad2d((0, 3, 1, 2), -1000.0),
        nn.Identity(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_any_padding_module_is_undone(padding):
    x = numbered(1, 2, 5, 7)
    assert torch.equal(restore_like(padding, padding(x), (5, 7)), x)


def test_a_users_three_dimensional_padding_is_undone():
    padding = nn.ConstantPad3d((1, 0, 2, 3, 0, 4), 1.0)
    x = numbered(1, 2, 1, 4, 5)
    assert torch.equal(restore_like(padding, padding(x), (1, 4, 5)), x)


def test_a_modules_own_restore_is_preferred():
    class WithRestore(PadAtTheEnd):
        def restore(self, x, size):
            return x[..., :1, :1]

    assert restore_like(WithRestore(), torch.zeros(1, 1, 16, 16), (5, 7)).shape == (1, 1, 1, 1)


def test_our_own_padding_is_undone_by_its_own_inverse():
    x = numbered(1, 1, 5, 7)
    assert torch.equal(restore_like(Pad2d(8), Pad2d(8)(x), (5, 7)), x)


def test_a_module_that_alters_values_cannot_be_undone_and_says_what_to_do():
    with pytest.raises(ValueError, match="restore"):
        restore_like(nn.AvgPool2d(3, stride=1, padding=1), torch.zeros(1, 1, 5, 7), (5, 7))


def test_undoing_refuses_a_tensor_that_was_not_padded():
    with pytest.raises(ValueError, match="to restore has shape"):
        restore_like(PadAtTheEnd(), torch.zeros(1, 1, 5, 7), (5, 7))


@pytest.mark.parametrize("padding", [PadAtTheEnd(), Pad2d(16)], ids=["a user's", "ours"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_are_padded_in_step_with_the_fill(padding, dtype):
    image = torch.full((2, 3, 5, 7), 4.0)
    labels = torch.ones(2, 1, 5, 7, dtype=dtype)
    padded = pad_labels(padding, labels, fill=200)
    assert padded.dtype == dtype
    inside = padding(image)[:, :1] == 4
    assert (padded[inside] == 1).all()
    assert (padded[~inside] == 200).all()
    assert torch.equal(restore_like(padding, padded, (5, 7)), labels)


@pytest.mark.parametrize("padding", [Pad2d(8, mode="reflect"), nn.ReflectionPad2d(2)], ids=["ours", "a user's"])
def test_labels_follow_an_image_that_is_mirrored(padding):
    labels = (torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(0)) > 0.5).long()
    assert torch.equal(pad_labels(padding, labels, fill=9), padding(labels.float()).long())


def test_labels_that_need_no_padding_come_back_as_they_are():
    labels = torch.arange(16 * 32).reshape(1, 1, 16, 32)
    assert torch.equal(pad_labels(PadAtTheEnd(), labels, fill=0), labels)


@pytest.mark.parametrize("size", [(16, 32), (13, 32)])
def test_labels_are_padded_without_reading_anything_back_from_their_device(size, monkeypatch):
    def refuse(*_):
        raise AssertionError("a GPU would be waited for")

    for name in ("item", "tolist", "__bool__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch, "equal", refuse)
    pad_labels(PadAtTheEnd(), torch.ones(1, 1, *size, dtype=torch.int64), fill=0)


@pytest.mark.parametrize(
    "padding", [None, Pad2d(8), Pad2d((4, 1), value=-1.5), Pad3d((1, 2, 4), mode="reflect")], ids=repr
)
def test_a_padding_of_ours_is_built_again_from_its_description(padding):
    again = padding_from_dict(json.loads(json.dumps(padding_to_dict(padding))))
    assert repr(again) == repr(padding)


@pytest.mark.parametrize("factors", [["x"], [None, 8], [[1], 8], [8.5, 8], [0, 8], [8], [10**30, 8], "8", {}], ids=repr)
def test_a_damaged_description_of_a_padding_is_refused(factors):
    with pytest.raises(SettingsError, match="cannot be built from its description"):
        padding_from_dict({"kind": "Pad2d", "min_factor": factors, "value": 0.0, "mode": "constant"})


def test_a_user_s_own_padding_cannot_be_built_from_its_description():
    class Mine(Pad2d):
        pass

    for padding in (nn.ZeroPad2d(1), Mine(8)):
        with pytest.raises(SettingsError, match="custom"):
            padding_from_dict(padding_to_dict(padding))
