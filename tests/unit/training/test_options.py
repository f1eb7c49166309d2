from __future__ import annotations

import pytest

from candy_monai.data.planning.plan import Region
from candy_monai.errors import SettingsError
from candy_monai.training.options import NAMES, SegmentationOptions
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.training.sliding import SlidingSegmentationTrainer
from tests.toys import SmallTrainer, small_trainer


class Slow(SegmentationTrainer):
    """Says two options."""

    options = SegmentationOptions(learning_rate=1e-5, memory_factor=2.0)


def test_a_class_inherits_each_option_that_it_does_not_say():
    class Slower(Slow):
        options = SegmentationOptions(learning_rate=1e-6)

    assert (Slower.options.learning_rate, Slower.options.memory_factor) == (1e-6, 2.0)
    assert SegmentationTrainer.options.learning_rate == 1e-3


def test_of_two_bases_an_option_comes_from_the_first_that_says_it():
    class Windows(SlidingSegmentationTrainer, Slow):
        pass

    assert (Windows.options.learning_rate, Windows.options.score) == (1e-5, "negative loss")


def test_what_a_class_is_set_to_later_holds_for_its_subclasses_and_trainers(tmp_path):
    class Base(SmallTrainer):
        pass

    class Derived(Base):
        options = SegmentationOptions(score="dice")

    trainer = small_trainer(tmp_path, cls=Derived)
    Base.options = SegmentationOptions(weight_decay=0.5)
    with pytest.warns(DeprecationWarning, match=r"Base\.memory_factor"):
        Base.memory_factor = 3.0
    assert (trainer.options.weight_decay, Derived.options.memory_factor, Derived.options.score) == (0.5, 3.0, "dice")
    assert SmallTrainer.options.weight_decay == 1e-2


def test_what_a_trainer_is_set_to_changes_only_what_it_says_and_no_other_trainer(tmp_path):
    first, second = small_trainer(tmp_path), small_trainer(tmp_path)
    first.options = SegmentationOptions(score="dice")
    assert (first.options.score, first.options.learning_rate) == ("dice", 0.02)
    assert second.options.score == "negative loss"


@pytest.mark.parametrize("value", ["fast", "0.1", True, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_no_number_is_refused_where_it_is_said(value):
    with pytest.raises(SettingsError, match="weight_decay must be a number of at least 0, got "):
        SegmentationOptions(weight_decay=value)


def test_an_attribute_of_this_name_that_is_something_else_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"Mine\.options must be SegmentationOptions.*my_options"):
        type("Mine", (SmallTrainer,), {"options": {"depth": 3}})
    with pytest.raises(SettingsError, match="^SmallTrainer.options must be"):
        small_trainer(tmp_path).options = 5


@pytest.mark.parametrize("name", NAMES)
def test_every_option_goes_on_working_as_an_attribute_and_warns(tmp_path, name):
    values = {"regions": (Region(name="whole", ids=(1,), paints=1),), "score": "dice", "include_background": False}
    values |= {"deep_supervision": True, "follows_filters": True}
    value = values.get(name, [{"_target_": "RandFlipd"}] if name in ("preprocessing", "augmentation") else 0.25)
    with pytest.warns(DeprecationWarning, match=f"Mine.{name} .*options = SegmentationOptions") as told:
        cls = type("Mine", (SmallTrainer,), {name: value})
    assert [warning.filename for warning in told] == [__file__]  # Python shows those of the user's own script alone
    assert getattr(cls.options, name) == value
    trainer = small_trainer(tmp_path)
    with pytest.warns(DeprecationWarning, match=f"SmallTrainer.{name} .*options = SegmentationOptions"):
        setattr(trainer, name, value)
    assert getattr(trainer.options, name) == value
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(trainer, name) == value
    assert name not in dir(cls)


def test_earlier_names_of_options_in_a_class_beside_the_trainers_are_heard():
    class Rates:
        learning_rate = 0.5

    with pytest.warns(DeprecationWarning, match="learning_rate"):
        cls = type("Mine", (Rates, SmallTrainer), {})
    assert cls.options.learning_rate == 0.5


def test_no_augmentation_of_one_s_own_was_said_by_none(tmp_path):
    trainer = small_trainer(tmp_path)
    with pytest.warns(DeprecationWarning, match="augmentation"):
        trainer.augmentation = None
    assert trainer.options.augmentation == ()


def test_a_property_by_an_earlier_name_is_refused_since_nothing_reads_it():
    with pytest.raises(SettingsError, match=r"Mine\.learning_rate .*, which is no longer used"):
        type("Mine", (SmallTrainer,), {"learning_rate": property(lambda self: 0.5)})
