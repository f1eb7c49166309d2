import math

import numpy as np
import pytest
import torch

from candy_monai.plotting.case.views import case_view
from candy_monai.processes import Processes
from candy_monai.training.kept_cases import MOST_VIEWS, KeptCases


def view_of(value):
    return case_view(torch.full((1, 2, 2), float(value)), None, None)


def kept(scores, **more):
    cases = KeptCases()
    for index, score in enumerate(scores):
        cases.add(f"c{index}", score, {"dice": torch.tensor(score), **more}, lambda: view_of(0))
    return cases.gathered(Processes())


def test_all_cases_keep_their_scores_and_metrics_in_order():
    found = kept([0.5, math.nan, 0.25], loss=0.125).cases
    assert [case.case_id for case in found] == ["c0", "c1", "c2"]
    assert found[0].metrics == {"dice": 0.5, "loss": 0.125}
    assert math.isnan(found[1].score)


def test_the_worst_the_median_and_the_best_are_looked_at():
    views = kept([0.9, 0.1, 0.5, 0.4, 0.8]).views
    assert [(view.role, view.case_id, view.rank) for view in views] == [
        ("worst", "c1", 1),
        ("median", "c2", 3),
        ("best", "c0", 5),
    ]
    assert {view.num_cases for view in views} == {5}


@pytest.mark.parametrize(
    ("scores", "roles"), [([], []), ([math.nan], []), ([0.5], ["worst"]), ([0.5, 0.5], ["worst", "best"])]
)
def test_of_few_cases_none_is_shown_twice(scores, roles):
    views = kept(scores).views
    assert [view.role for view in views] == roles
    assert len({view.case_id for view in views}) == len(views)


@pytest.mark.parametrize("seed", range(5))
def test_of_many_cases_few_images_are_held_and_the_median_is_close(seed):
    scores = np.random.default_rng(seed).random(400).tolist()
    looked = 0

    def look():
        nonlocal looked
        looked += 1
        return view_of(0)

    cases = KeptCases()
    most = 0
    for index, score in enumerate(scores):
        cases.add(str(index), score, {}, look)
        most = max(most, len(cases._choice._held))
    worst, median, best = cases.gathered(Processes()).views
    assert most == MOST_VIEWS
    assert (worst.score, best.score) == (min(scores), max(scores))
    assert abs(median.rank - 200) < 20
    assert looked < 150


def test_a_case_without_an_id_is_counted():
    cases = KeptCases()
    cases.add("", 0.5, {}, lambda: None)
    found = cases.gathered(Processes())
    assert [case.case_id for case in found.cases] == ["case 1"]
    assert found.views == []


def test_a_case_that_cannot_be_looked_at_is_scored_all_the_same():
    def look():
        raise ValueError("outputs of the user's own")

    cases = KeptCases()
    cases.add("a", 0.5, {}, look)
    assert [case.score for case in cases.gathered(Processes()).cases] == [0.5]


def test_a_metric_that_changes_afterwards_is_kept_as_it_was():
    cases, value = KeptCases(), torch.tensor(0.5)
    cases.add("a", 0.5, {"dice": value}, lambda: None)
    value.fill_(0.0)
    assert cases.gathered(Processes()).cases[0].metrics == {"dice": 0.5}


def test_of_several_processes_all_cases_are_listed_and_ranked_and_each_has_a_name_of_its_own():
    class Second(Processes):
        def all_gather(self, value):
            return [[("", 0.1, {}), ("", 0.9, {})], value]

    cases = KeptCases()
    for score in (0.2, 0.3):
        cases.add("", score, {}, lambda: view_of(0))
    found = cases.gathered(Second(rank=1, world_size=2))
    assert [case.case_id for case in found.cases] == ["case 1", "case 2", "case 3", "case 4"]
    looked_at = [(view.role, view.case_id, view.rank) for view in found.views]
    assert looked_at == [("worst", "case 3", 2), ("best", "case 4", 3)]
