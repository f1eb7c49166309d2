"""Validations of a run without a trainer: two networks that a test calls or not, and scores made by hand."""

import math

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from candy_monai.processes import Processes
from candy_monai.training.reporting import Reporter
from candy_monai.training.run_validations import RunValidations
from candy_monai.training.toolbox import TrainerToolbox
from candy_monai.training.validation import CalledNetworks, ValidationCases
from tests.toys import loaders


class _Resting:
    """Stands for the run on disk: notes what a score rests on."""

    def score_rests_on(self, num_cases: int, standard_error: float) -> None:
        self.num_cases, self.standard_error = num_cases, standard_error


@pytest.fixture
def said():
    return []


@pytest.fixture
def validations(said):
    reporter = Reporter()
    reporter.log_once = lambda message, **_: said.append(message)
    return RunValidations(Processes(), reporter)


def _toolbox():
    network = nn.Sequential(nn.Conv2d(1, 1, 1))
    average = optim.swa_utils.AveragedModel(network)
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    schedule = optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    return TrainerToolbox(model=network, optimizer=optimizer, scheduler=schedule, criterion=nn.MSELoss(), ema=average)


def _validated(validations, scores, *, calls="ema", keeps_cases=True, toolbox=None):
    """Validate cases with these scores, or losses for None, and return the mean and what it rests on."""
    toolbox, cases, rests = toolbox or _toolbox(), ValidationCases(), _Resting()
    called = CalledNetworks(toolbox)
    validations.begin(toolbox, None, keeps_cases=keeps_cases)
    image = torch.zeros(1, 4, 4)
    with called.watched():
        for number, score in enumerate(scores):
            output = getattr(toolbox, calls)(image[None])
            loss = toolbox.criterion(output.detach(), image[None])
            score = float(loss) if score is None else score
            cases.add(score, image, image.long(), image, case_id=str(number))
            if validations.kept is not None:
                validations.kept.add(str(number), score, {}, lambda: None)
    return validations.finish(cases, called, lambda *_: None, experiment=rests, averages=True), rests


def test_of_a_limit_each_process_has_its_share():
    validations = RunValidations(Processes(rank=1, world_size=2), Reporter())
    assert validations.share_of(loaders()[1], 5) == (2, 2)


def test_without_a_limit_all_cases_are_validated(validations):
    assert validations.share_of(loaders()[1], None)[1] is None


def test_the_score_is_the_mean_of_the_cases_that_have_one(validations, said):
    score, rests = _validated(validations, [0.2, math.nan, 0.6])
    assert score == pytest.approx(0.4)
    assert rests.num_cases == 2
    assert validations.preview.case_id == "0"
    assert validations.padded_parts is None
    assert said == []


def test_a_score_of_no_case_is_said(validations, said):
    score, _ = _validated(validations, [math.nan])
    assert math.isnan(score)
    assert "NaN" in said[0]


@pytest.mark.parametrize("score", [math.inf, -math.inf])
def test_an_infinite_score_is_said(validations, said, score):
    assert _validated(validations, [score, 0.5])[0] == score
    (message,) = said
    assert f"Warning: the validation score is {score}" in message


def test_the_weights_that_were_called_are_those_that_are_scored(validations, said):
    _validated(validations, [0.5], calls="model")
    assert validations.scored == "raw"
    assert "holds its weights, not the average" in said[0]
    _validated(validations, [0.5])
    assert validations.scored == "ema"


def test_kept_cases_are_gathered_once(validations):
    _validated(validations, [0.5, 0.7])
    assert [case.case_id for case in validations.gathered().cases] == ["0", "1"]
    assert validations.gathered() is None


def test_without_a_page_no_case_is_kept(validations):
    _validated(validations, [0.5], keeps_cases=False)
    assert validations.gathered() is None


def test_cases_whose_output_holds_nan_are_named(validations, said):
    toolbox, cases = _toolbox(), ValidationCases()
    called = CalledNetworks(toolbox)
    validations.begin(toolbox, None, keeps_cases=False)
    image = torch.zeros(1, 4, 4)
    broken = image.clone()
    broken[0, 1, 2] = torch.nan
    for score, output, case_id in ((0.5, image, "a"), (0.1, broken, "b"), (math.nan, broken, "")):
        cases.add(score, image, image, output, case_id=case_id)
    validations.finish(cases, called, lambda *_: None, experiment=_Resting(), averages=False)
    assert any("output of validate_case holds NaN for b, number 3: their scores" in text for text in said)


@pytest.mark.parametrize(("batch_size", "drop_last", "left_out"), [(3, True, 2), (3, False, 0), (5, True, 0)])
def test_cases_that_the_validation_loader_leaves_out_are_counted_and_warned_of(
    validations, said, batch_size, drop_last, left_out
):
    data = TensorDataset(torch.zeros(5, 1, 4, 4), torch.zeros(5, 1, 4, 4))
    loader = DataLoader(data, batch_size, drop_last=drop_last)
    assert validations.share_of(loader, None)[0] == 5 - left_out
    assert (f"leaves out {left_out} of 5 cases" in "".join(said)) == bool(left_out)


def test_scores_that_are_losses_are_said_in_the_first_validation(validations, said):
    toolbox = _toolbox()
    _validated(validations, [None, None], toolbox=toolbox)
    assert "value of the criterion" in said[0]
    _validated(validations, [None], toolbox=toolbox)
    assert len(said) == 1
    assert not toolbox.criterion._forward_hooks


@pytest.mark.parametrize("scores", [[None, 0.5], [0.0]])
def test_scores_that_are_not_all_losses_are_none(validations, said, scores):
    _validated(validations, scores)
    assert said == []


def test_an_average_that_a_trained_model_never_updated_is_said_if_it_is_scored(validations, said):
    toolbox = _toolbox()
    _validated(validations, [0.5], toolbox=toolbox)
    assert said == []  # the model was not trained, either
    with torch.no_grad():
        toolbox.model[0].bias += 1
    _validated(validations, [0.5], calls="model", toolbox=toolbox)
    assert "not the average" in said.pop()
    _validated(validations, [0.5], toolbox=toolbox)
    assert "update_parameters was not called: unless you update the average in another way" in said.pop()
    toolbox.ema.update_parameters(toolbox.model)
    _validated(validations, [0.5], toolbox=toolbox)
    assert said == []
