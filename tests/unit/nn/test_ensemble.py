import pytest
import torch
from torch import nn

from candy_monai.nn.ensemble import Ensemble


@pytest.mark.parametrize("sigmoid", [False, True])
def test_its_probabilities_are_the_mean_of_the_networks(sigmoid):
    networks = [nn.Conv2d(1, 3, 1) for _ in range(3)]
    image = 50 * torch.randn(2, 1, 4, 5)
    probabilities = torch.sigmoid if sigmoid else (lambda logits: logits.softmax(1))
    mean = torch.stack([probabilities(network(image)) for network in networks]).mean(0)
    ensemble = Ensemble(networks, sigmoid=sigmoid)
    assert torch.allclose(probabilities(ensemble(image)), mean, atol=1e-5)
    assert torch.allclose(torch.jit.script(ensemble)(image), ensemble(image), atol=1e-5)
