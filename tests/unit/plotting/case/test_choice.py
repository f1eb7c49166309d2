import math

import numpy as np
import pytest

from candy_monai.plotting.case.choice import MOST_HELD, CaseChoice


def offered(scores, **more):
    choice = CaseChoice(**more)
    for place, score in enumerate(scores):
        choice.offer(score, lambda place=place: place)
    return choice


def test_of_few_cases_the_worst_the_median_and_the_best_are_exact():
    chosen = offered([0.5, 0.1, 0.9, 0.4, 0.6]).chosen()
    assert {role: held.score for role, held in chosen.items()} == {"worst": 0.1, "median": 0.5, "best": 0.9}
    assert [held.case for held in chosen.values()] == [1, 0, 2]


@pytest.mark.parametrize("seed", range(5))
def test_of_many_cases_few_are_held_the_extremes_are_exact_and_the_median_is_near(seed):
    scores = np.random.default_rng(seed).permutation(np.linspace(0, 1, 201)).tolist()
    choice, looked_at, most = CaseChoice(), [], 0
    for place, score in enumerate(scores):
        choice.offer(score, lambda place=place: looked_at.append(place) or place)
        most = max(most, len(choice._held))
    chosen = choice.chosen()
    assert [scores[held.case] for held in chosen.values()] == [held.score for held in chosen.values()]
    assert (chosen["worst"].score, chosen["best"].score) == (0, 1)
    assert abs(chosen["median"].score - 0.5) < 0.1
    assert most == MOST_HELD
    assert len(looked_at) < 100


def test_where_many_scores_are_alike_a_case_is_still_chosen_for_each_role():
    chosen = offered([0.5] * 20, most=3).chosen()
    assert len({held.case for held in chosen.values()}) == 3


@pytest.mark.parametrize(
    ("scores", "roles"), [([], []), ([math.nan], []), ([0.5], ["worst"]), ([0.5, 0.5], ["worst", "best"])]
)
def test_of_few_cases_none_is_chosen_twice(scores, roles):
    chosen = offered(scores).chosen()
    assert list(chosen) == roles
    assert len({held.case for held in chosen.values()}) == len(chosen)


def test_a_case_of_which_there_is_nothing_to_see_takes_no_place():
    choice = offered([0.2, 0.4, 0.6], most=3)
    choice.offer(0.9, lambda: None)
    assert [held.score for held in choice.chosen().values()] == [0.2, 0.4, 0.6]


def test_the_median_may_be_that_of_other_scores():
    assert offered([0.1, 0.4, 0.6, 0.9]).chosen([0.1, 0.6, 0.7])["median"].score == 0.6
