import math

import torch

from candy_monai.training.validation import ValidationCases


def _tensors(value):
    return tuple(torch.full((1, 2, 2), float(value)) for _ in range(3))


def test_the_score_is_the_mean_over_the_cases_that_have_one():
    cases = ValidationCases()
    for score in (0.2, math.nan, 0.6):
        cases.add(score, *_tensors(0))
    assert math.isclose(cases.score, 0.4)
    assert len(cases) == 3


def test_no_score_at_all_is_nan():
    cases = ValidationCases()
    cases.add(math.nan, *_tensors(0))
    assert math.isnan(cases.score)


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
