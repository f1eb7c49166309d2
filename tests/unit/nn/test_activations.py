from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from monai import losses
from torch import nn

from candy_monai.errors import BadInputError
from candy_monai.nn.activations import ends_in_activation, refuse_logits, takes_logits, tell_of_logits
from candy_monai.nn.deep_supervision import DeepSupervisionLoss
from candy_monai.nn.losses import DiceCELossWithLogits
from candy_monai.nn.slicewise import Slicewise

LOGITS = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
LABELS = (torch.arange(2 * 8 * 8) % 3).reshape(2, 1, 8, 8).float()
KINDS = {
    kind
    for name, kind in vars(losses).items()
    if inspect.isclass(kind) and {"sigmoid", "softmax"} <= set(inspect.signature(kind).parameters)
}


class _OwnNLL(nn.NLLLoss):
    def forward(self, logits, ids):
        return super().forward(logits.log_softmax(1), ids[:, 0].long())


class _Own(nn.Module):
    """Applies the activation itself."""

    def __init__(self):
        super().__init__()
        self.dice = losses.DiceLoss(to_onehot_y=True)

    def forward(self, logits, labels):
        return self.dice(logits.softmax(1), labels)


def test_every_loss_of_monai_with_an_activation_is_known():
    assert {losses.DiceLoss, losses.DiceCELoss, losses.TverskyLoss, losses.GeneralizedDiceFocalLoss} <= KINDS


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_logits_are_refused_where_there_is_no_activation(kind):
    bare, activated = kind(to_onehot_y=True), kind(to_onehot_y=True, softmax=True)
    for criterion in (bare, DeepSupervisionLoss(bare), losses.DeepSupervisionLoss(bare)):
        close = refuse_logits(criterion)
        with pytest.raises(BadInputError, match="no activation.* from -2 to 2, .* softmax=True, or sigmoid"):
            criterion(LOGITS, LABELS)
        close()
        criterion(LOGITS, LABELS)
    refuse_logits(activated)
    activated(LOGITS, LABELS)


def test_logits_are_refused_where_logarithms_of_probabilities_are_taken():
    criterion, ids = nn.NLLLoss(), LABELS[:, 0].long()
    refuse_logits(criterion)
    criterion(LOGITS.log_softmax(1), ids)
    with pytest.raises(BadInputError, match=r"NLLLoss takes logarithms.* up to 2, .*CrossEntropyLoss"):
        criterion(LOGITS, ids)


def test_probabilities_and_losses_that_apply_an_activation_are_not_refused():
    bare = losses.DiceLoss(to_onehot_y=True)
    refuse_logits(bare)
    bare(LOGITS.softmax(1), LABELS)
    assert bare(LOGITS.softmax(1).log().log(), LABELS).isnan()  # for train(non_finite=...) to handle
    criteria = (
        _Own(),
        _OwnNLL(),
        losses.DiceLoss(to_onehot_y=True, other_act=torch.sigmoid),
        losses.FocalLoss(to_onehot_y=True),
        DiceCELossWithLogits(3),
    )
    for criterion in criteria:
        refuse_logits(criterion)
        criterion(LOGITS, LABELS)


@pytest.mark.filterwarnings("ignore:single channel prediction")
def test_a_softmax_that_monai_ignores_for_one_channel_is_none():
    criterion = losses.DiceLoss(softmax=True)
    refuse_logits(criterion)
    with pytest.raises(BadInputError, match="ignores softmax=True for a single channel.* give it sigmoid=True"):
        criterion(input=LOGITS[:, :1], target=LABELS > 0)


def test_logits_are_noticed_after_a_first_call_that_could_be_probabilities():
    criterion = losses.DiceLoss(to_onehot_y=True)
    refuse_logits(criterion)
    criterion(LOGITS * 0, LABELS)
    with pytest.raises(BadInputError, match="give it softmax=True"):
        criterion(LOGITS, LABELS)


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_a_loss_takes_logits_if_it_or_a_part_of_it_applies_an_activation(kind):
    assert takes_logits(DeepSupervisionLoss(kind(softmax=True)))
    assert takes_logits(kind()) == any(
        isinstance(part, nn.CrossEntropyLoss | losses.FocalLoss) for part in kind().modules()
    )


def test_a_criterion_that_is_checked_can_be_pickled():
    criterion = losses.DiceLoss(to_onehot_y=True)
    refuse_logits(criterion)
    pickle.loads(pickle.dumps(criterion))


def test_a_loss_that_is_compiled_into_one_graph_is_computed_without_the_check():
    criterion, ids = nn.NLLLoss(), LABELS[:, 0].long()
    refuse_logits(criterion)
    compiled = torch.compile(criterion, backend="eager", fullgraph=True)  # raises an error where a value is read
    torch.testing.assert_close(compiled(LOGITS.log_softmax(1), ids), criterion(LOGITS.log_softmax(1), ids))


def test_a_loss_that_torch_func_maps_over_cases_is_computed_without_the_check():
    criterion = losses.DiceLoss()
    refuse_logits(criterion)
    of_each = torch.func.vmap(lambda image, label: criterion(image[None], label[None]))
    assert of_each(LOGITS[:, :1].sigmoid(), (LABELS > 0).float()).shape == (2,)


def test_a_host_s_loss_is_told_of_once_and_its_copies_say_nothing():
    told, bare = [], losses.DiceLoss(to_onehot_y=True)
    close = tell_of_logits(nn.ModuleDict({"loss": bare}), told.append)
    copied = pickle.loads(pickle.dumps(bare))
    for _ in range(2):
        copied(LOGITS, LABELS)
        assert not told
    for _ in range(2):
        bare(LOGITS, LABELS)
    assert len(told) == 1
    assert "DiceLoss was given no activation" in told[0]
    close()
    assert not bare._forward_pre_hooks


class _Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.network, self.function = nn.Conv2d(1, 2, 3, padding=1), function

    def forward(self, images):
        return self.function(self.network(images))


@pytest.mark.parametrize(
    ("function", "ends"),
    [
        (nn.Sigmoid(), True),
        (torch.sigmoid, True),
        (torch.special.expit, True),
        (lambda logits: [nn.functional.softmax(logits, 1), logits], True),
        (lambda logits: logits.softmax(1)[:, :, None].squeeze(2), True),
        (lambda logits: logits, False),
        (lambda logits: logits * logits.sigmoid(), False),
        (nn.LogSoftmax(1), False),
        (nn.Hardtanh(0, 1), False),
    ],
)
def test_an_activation_at_the_end_of_a_network_is_found_wherever_it_is_applied(function, ends):
    assert ends_in_activation(_Applies(function), torch.rand(1, 1, 8, 8)) is ends


def test_an_activation_is_found_in_a_network_for_slices_and_in_a_compiled_one():
    assert ends_in_activation(Slicewise(_Applies(nn.Softmax(1)), 1), torch.rand(1, 1, 4, 8, 8))
    network = _Applies(nn.Sigmoid())
    network.compile()
    assert ends_in_activation(network, torch.rand(1, 1, 8, 8))
