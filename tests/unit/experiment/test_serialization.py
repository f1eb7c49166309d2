import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import io
import pathlib

import numpy as np
import pytest
import torch
from torch import nn, optim

from candy_monai.errors import BadInputError
from candy_monai.experiment.serialization import plain, restored


class Phase(enum.Enum):
    WARM = 1
    COLD = "cold"


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: float
    others: tuple = ()


Pair = collections.namedtuple("Pair", ["first", "second"])


def _through_a_file(value, **options):
    file = io.BytesIO()
    torch.save(plain(value, "it", **options), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.float16(1.5),
        np.datetime64("2025-01-02"),
        Phase.COLD,
        Point(1.0, (2, Point(3.0))),
        Pair(1, {2, 3}),
        {1, "a"},
        frozenset({(1, 2)}),
        collections.deque([1, 2], maxlen=3),
        collections.defaultdict(list, {"a": [1]}),
        collections.Counter("aab"),
        collections.OrderedDict(b=1, a=2),
        {(1, 2): "pair", None: 3, 4: {}},
        {Phase.WARM: 1},
        {"candy_monai kind": "a name of ours"},
        pathlib.Path("a") / "b",
        datetime.datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
        if hasattr(datetime, "UTC")
        else datetime.datetime(2025, 1, 2),
        datetime.date(2025, 1, 2),
        datetime.timedelta(days=1, microseconds=2),
        decimal.Decimal("1.50"),
        range(1, 9, 2),
        slice(1, None),
        1 + 2j,
        b"bytes",
        [np.dtype("float32")],
    ],
    ids=lambda value: type(value).__name__,  # a set shows its members in another order in each process
)
def test_what_is_read_back_is_what_was_saved(value):
    back = restored(_through_a_file(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::-1],
        np.array(3.0),
        np.empty((0, 4), dtype=np.float32),
        np.array(["ab", "c"]),
        np.array([1, 2], dtype=">u2"),
        np.array([None, "x", 1.5], dtype=object),
        np.array([True, False]),
    ],
    ids=repr,
)
def test_arrays_keep_type_shape_and_values(array):
    back = restored(_through_a_file({"table": array}))["table"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()
    assert back.size == 0 or back.flags.writeable


def test_numbers_of_numpy_that_are_python_s_become_these():
    values = _through_a_file([np.float64(0.1), np.int64(3), np.bool_(True), np.str_("a")])
    assert values == [0.1, 3, True, "a"]
    assert [type(value) for value in values] == [float, int, bool, str]


def test_tensors_are_passed_on_not_copied():
    weight = nn.Parameter(torch.ones(2))
    state = plain({"weights": [weight, weight]}, "it")
    assert state["weights"][0] is weight
    assert state["weights"][1] is weight


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, lambda x: x]}, r"it\['a'\]\[1\] is a function"),
        ([np.sin], r"it\[0\] is a ufunc"),
        ({"f": functools.partial(print)}, r"it\['f'\] is a partial"),
        (object(), "it is a object"),
        (collections.defaultdict(lambda: 1), "it is a defaultdict of a function"),
        (np.ma.masked_array([1, 2], [True, False]), "it is a MaskedArray"),
        (np.zeros(1, dtype=[("a", int)]), "it is an array of records"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_its_place(value, place):
    with pytest.raises(BadInputError, match=place):
        plain(value, "it")


def test_what_holds_itself_is_refused_and_what_is_held_twice_is_not():
    twice = [1]
    assert plain([twice, twice], "it") == [[1], [1]]
    endless = []
    endless.append(endless)
    with pytest.raises(BadInputError, match=r"it\[0\] holds itself"):
        plain(endless, "it")


def test_a_class_that_cannot_be_found_again_is_refused():
    class Local(enum.Enum):
        A = 1

    with pytest.raises(BadInputError, match="Local, which cannot be found again"):
        plain(Local.A, "it")


def test_code_and_objects_of_what_is_built_anew_are_taken_from_there():
    class Curve:
        def __init__(self, values):
            self.values, self.shape = values, lambda x: x * self.values.sum()

    built, saved = Curve(None), Curve(np.array([1.0, 2.0]))
    function = built.shape
    state = {"curve": built, "functions": [len]}
    back = restored(_through_a_file({"curve": saved, "functions": [max]}, rebuilt=True), state)
    assert back["curve"] is built
    assert built.shape is function
    assert built.shape(2) == 6
    assert back["functions"] == [len]


def test_a_schedule_within_a_schedule_is_saved_by_its_own_state():
    def built():
        optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        schedule.after = optim.lr_scheduler.StepLR(optimizer, 5)
        return schedule

    first, second = built(), built()
    first.after.last_epoch = 7
    inner = second.after
    second.load_state_dict(restored(_through_a_file(first.state_dict(), rebuilt=True), second.state_dict()))
    assert second.after is inner
    assert inner.last_epoch == 7


def test_a_state_of_another_kind_of_object_does_not_fit():
    class A:
        pass

    with pytest.raises(TypeError, match="which was saved, found a"):
        restored(plain({"a": A()}, "it", rebuilt=True), {"a": 3})


def test_only_enumerations_and_classes_without_code_of_their_own_are_looked_up_by_name():
    for kind in ("enum", "dataclass", "named tuple"):
        forged = {"candy_monai kind": kind, "class": "subprocess:Popen", "value": 1, "parts": {}, "members": []}
        with pytest.raises(TypeError):
            restored(forged)
