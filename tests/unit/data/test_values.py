from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from candy_monai.data.values import frozen, ids_of_label, join_reprs, label_id_of, plain_tensor, repeated

FROZEN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize("tensor", [torch.zeros(2), MetaTensor(torch.zeros(2), meta={"case_id": "a"})])
def test_a_tensor_without_metadata_is_plain_and_shares_its_memory(tensor):
    plain = plain_tensor(tensor)
    assert type(plain) is torch.Tensor
    assert plain.data_ptr() == tensor.data_ptr()


def test_a_label_has_one_id_and_a_region_several():
    assert ids_of_label(3) == (3,)
    assert ids_of_label((1, 2)) == (1, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), ("3", 3), (np.uint8(3), 3), (-1, None), (True, None), (1.0, None), ("²", None), ("a", None), (None, None)],
)
def test_a_label_id_is_a_whole_number_from_0_that_may_be_text(value, expected):
    assert label_id_of(value) == expected


@given(FROZEN)
def test_frozen_values_survive_json(value):
    assert frozen(json.loads(json.dumps(value))) == value


@pytest.mark.parametrize(
    ("entries", "text"), [([], ""), (["a"], "'a'"), ([1, 2], "1, 2"), (["a", "b", "c", "d"], "'a', 'b' and 2 more")]
)
def test_a_list_in_a_message_is_cut_short(entries, text):
    assert join_reprs(entries, limit=2) == text


def test_what_occurs_more_than_once_is_named_once_in_order():
    assert repeated(["b", "a", "b", "c", "a", "a"]) == ["a", "b"]
    assert repeated([]) == []
