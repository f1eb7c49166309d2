import math

import pytest
import torch
from torch import nn

from candy_monai.attachment import Surroundings, attach
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.nn.padding import Pad2d
from candy_monai.training.toolbox import TrainerToolbox
from candy_monai.training.validation import CalledNetworks, PaddedParts, ValidationCases, mean_score


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
    assert cases.preview(print) is None
    for score in (0.5, 0.1, 0.9):
        cases.add(score, *_tensors(score * 10))
    assert float(cases.preview(print).image[0, 0, 0]) == 1.0


def test_a_preview_keeps_no_graph_alive():
    cases = ValidationCases()
    image, label, output = _tensors(1)
    cases.add(0.5, image, label, output.requires_grad_() * 2)
    assert not cases.preview(print).output.requires_grad


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.down = nn.Conv2d(4, 4, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(4, 1, 2, stride=2)

    def forward(self, images):
        return self.decoder(self.down(self.encoder(images)).tanh())


PADDING = Pad2d(4, mode="reflect")
IMAGE, LABEL = torch.randn(1, 13, 10, generator=torch.Generator().manual_seed(0)), torch.ones(1, 13, 10)


def _toolbox(network=None):
    network = _Net().eval() if network is None else network
    attach(network, Surroundings(padding=PADDING, num_dims=2))
    return TrainerToolbox(
        model=network, optimizer=None, scheduler=None, criterion=nn.MSELoss(), ema=ExponentialMovingAverage(network)
    )


@pytest.mark.parametrize("which", ["model", "ema"])
@torch.no_grad()
def test_a_case_through_a_network_s_parts_is_what_the_padded_network_gives(which):
    toolbox = _toolbox()
    network = getattr(toolbox, which).eval()
    parts = network.module if which == "ema" else network
    padded = PaddedParts(toolbox, PADDING)
    expected = network(IMAGE[None])
    with padded.of(IMAGE):
        output = parts.decoder(parts.down(parts.encoder(input=IMAGE[None])).tanh())
        loss = toolbox.criterion(output, LABEL[None])
        whole = network(IMAGE[None])  # in between, and the parts again
        again = parts.decoder(parts.down(parts.encoder(IMAGE[None])).tanh())
    assert output.shape == (1, 1, 16, 12)
    assert torch.equal(padded.cropped(output[0]), expected[0])
    assert torch.equal(loss, toolbox.criterion(expected, LABEL[None]))
    assert torch.equal(whole, expected)
    assert torch.equal(again, output)
    assert parts.encoder(IMAGE[None]).shape[2:] == (13, 10)  # nothing is left behind


@torch.no_grad()
def test_within_a_part_nothing_is_padded_again():
    class Cuts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, images):
            return self.inner(images[..., 3:, 2:])  # of the case's own size by chance

    network = nn.Sequential(Cuts()).eval()
    with PaddedParts(_toolbox(network), PADDING).of(IMAGE):
        assert network[0](IMAGE[None]).shape[2:] == (13, 10)


def test_a_case_that_fits_adds_no_hooks():
    toolbox = _toolbox()
    with PaddedParts(toolbox, PADDING).of(torch.zeros(1, 8, 8)):
        assert not toolbox.model.encoder._forward_pre_hooks


def test_a_compiled_network_is_compiled_without_the_hooks_of_its_parts():
    network, graphs = _Net().eval(), []
    network.compile(backend=lambda graph, _: graphs.append(graph) or graph)
    toolbox = _toolbox(network)
    called = CalledNetworks(toolbox)
    with torch.no_grad(), called.watched(), PaddedParts(toolbox, PADDING).of(IMAGE):
        network(IMAGE[None])
    assert len(graphs) == 1
    assert called.flags == [True, False]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda toolbox: toolbox.model(IMAGE[None]), [True, False]),
        (lambda toolbox: toolbox.ema(IMAGE[None]), [False, True]),
        (lambda toolbox: toolbox.model.encoder(IMAGE[None]), [True, False]),
        (lambda toolbox: toolbox.ema.module.encoder[0](IMAGE[None]), [False, True]),
        (lambda toolbox: (toolbox.ema(IMAGE[None]), toolbox.model.encoder(IMAGE[None])), [True, True]),
        (lambda toolbox: None, [False, False]),
    ],
)
def test_it_is_noticed_which_network_is_called_as_a_whole_or_by_its_parts(call, expected):
    toolbox = _toolbox()
    called = CalledNetworks(toolbox)
    toolbox.model(IMAGE[None])  # before
    with called.watched():
        call(toolbox)
    assert called.flags == expected
    assert not toolbox.model.encoder._forward_pre_hooks


def test_the_title_of_a_preview_says_which_case_it_shows():
    cases = ValidationCases()
    assert cases.title(3) == ""
    for score, case_id in ((0.5, "a"), (0.125, "b")):
        cases.add(score, *_tensors(0), case_id=case_id)
    assert cases.title(3) == "b · score 0.1250 · worst of 2 cases · epoch 3"
    assert cases.preview(print).case_id == "b"


def test_a_case_without_id_and_score_is_told_by_its_epoch():
    cases = ValidationCases()
    cases.add(math.nan, *_tensors(0))
    assert cases.title(3) == "the only case · epoch 3"
