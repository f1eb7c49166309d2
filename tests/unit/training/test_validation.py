import math

import torch

from candy_monai.training.validation import ValidationCases, mean_score


def _tensors(value):
    return tuple(torch.full((1, 2, 2), float(value)) for _ in range(3))


def test_the_score_of_each_case_is_kept():
    cases = ValidationCases()
    for score in (0.2, 0.6):
        cases.add(score, *_tensors(0))
    assert cases.scores == [0.2, 0.6]
    assert len(cases) == 2


def test_the_score_is_the_mean_over_the_cases_of_all_processes_that_have_one():
    assert math.isclose(mean_score([[0.2, math.nan], [], [0.6, 1.0]]), 0.6)


def test_no_score_at_all_is_nan():
    assert math.isnan(mean_score([[math.nan], []]))


def test_only_the_worst_case_is_kept():
    cases = ValidationCases()
    assert cases.preview() is None
    for score in (0.5, 0.1, 0.9):
        cases.add(score, *_tensors(score * 10))
    assert float(cases.preview().image[0, 0, 0]) == 1.0


def test_a_preview_keeps_no_graph_alive():
    cases = ValidationCases()
    image, label, output = _tensors(1)
    cases.add(0.5, image, label, output.requires_grad_() * 2)
    assert not cases.preview().output.requires_grad
