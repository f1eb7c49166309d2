from __future__ import annotations

import numpy as np

from candy_monai.plotting.scores import Dice


def test_dice_of_each_class_is_twice_the_shared_over_the_sum() -> None:
    dice = Dice.between(np.array([0, 1, 1, 2]), np.array([1, 1, 0, 2]))
    assert dice.per_class == {1: 0.5, 2: 1.0}
    assert dice.mean == 0.75


def test_a_class_that_only_one_holds_scores_0() -> None:
    assert Dice.between(np.array([0, 3]), np.array([4, 0])).per_class == {3: 0.0, 4: 0.0}


def test_two_empty_labels_have_no_score() -> None:
    assert Dice.between(np.zeros(4, dtype=int), np.zeros(4, dtype=int)).mean is None


def test_an_ignored_region_does_not_count() -> None:
    dice = Dice.between(np.array([1, 255, -1, 0]), np.array([1, 1, 1, 0]), num_classes=2)
    assert dice.per_class == {1: 1.0}
