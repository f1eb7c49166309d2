import copy

import pytest
import torch
from monai.data import MetaTensor

from candy_monai.attachment import Surroundings, attach
from candy_monai.export.monai_bundle.carried.inferers import SlicesInferer as CarriedSlicesInferer
from candy_monai.export.monai_bundle.carried.inferers import WholeOrWindowsInferer as CarriedInferer
from candy_monai.export.monai_bundle.carried.losses import DiceEntropyLoss
from candy_monai.export.monai_bundle.carried.patches import RandCenterd
from candy_monai.inference.inferers import SlicesInferer, WholeOrWindowsInferer
from candy_monai.nn.losses import DiceBCELossWithLogits, DiceCELossWithLogits
from candy_monai.nn.padding import Pad2d
from candy_monai.nn.regions import RegionLoss
from candy_monai.nn.slicewise import Slicewise

_BLEND = {"overlap": 0.5, "mode": "gaussian", "sw_batch_size": 3}


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(9, 10, 7), (16, 16, 8), (21, 18, 11), (5, 19, 24)])
def test_images_are_run_whole_or_in_windows_as_by_the_experiments_inferer(size):
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.InstanceNorm3d(3)).eval()
    images = _random(1, 1, *size)
    with torch.no_grad():
        expected = WholeOrWindowsInferer((8, 16, 8), divisor=(4, 4, 4))(images, network)
        found = CarriedInferer((8, 16, 8), divisor=(4, 4, 4), **_BLEND)(MetaTensor(images), network)
    assert isinstance(found, MetaTensor)
    assert torch.allclose(found.as_tensor(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 10, 5), (30, 18, 3)])
@pytest.mark.parametrize("axis", [0, 2])
def test_slices_are_run_as_by_the_experiments_inferer(size, axis):
    size = size if axis == 2 else size[::-1]
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.InstanceNorm2d(3)).eval()
    roi, divisor = ([8, 16], [4, 4])
    volume = {name: (*two[:axis], 1, *two[axis:]) for name, two in (("roi", roi), ("divisor", divisor))}
    images = _random(1, 2, *size)
    with torch.no_grad():
        ours = SlicesInferer(volume["roi"], divisor=volume["divisor"], sw_batch_size=2)
        expected = ours(images, Slicewise(network, axis))
        found = CarriedSlicesInferer(roi, spatial_dim=axis, divisor=divisor, **_BLEND)(images, network)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 10), (16, 24), (5, 33)])
def test_the_networks_input_is_padded_as_by_the_experiment(size):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.InstanceNorm2d(2)).eval()
    images, padding = _random(1, 1, *size), Pad2d((12, 5))
    attach(padded := copy.deepcopy(network), Surroundings(padding=padding, num_dims=2))
    with torch.no_grad():
        expected = WholeOrWindowsInferer((8, 16), divisor=(4, 4))(images, padded)
        found = CarriedInferer((8, 16), divisor=(4, 4), multiples=padding.min_factor, **_BLEND)(images, network)
    assert torch.allclose(found, expected, atol=1e-5)


def test_half_precision_is_that_of_the_experiment():
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    images = _random(1, 1, 8, 8, 8)
    run = {amp: CarriedInferer((8,) * 3, (4,) * 3, amp, **_BLEND)(images, network) for amp in (None, "bfloat16")}
    assert run["bfloat16"].dtype == torch.float32
    assert 0 < float((run["bfloat16"] - run[None]).abs().max()) < 0.1
    assert torch.equal(CarriedInferer((8,) * 3, (4,) * 3, "float16", **_BLEND)(images, network), run[None])


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (DiceCELossWithLogits(3, ignore_index=3), {"num_classes": 3}),
        (DiceBCELossWithLogits(1, ignore_index=3), {"num_classes": 1}),
        (
            RegionLoss(DiceBCELossWithLogits(2, ignore_index=3), [[1, 2], [2]], ignore_index=3),
            {"num_classes": 2, "regions": [[1, 2], [2]]},
        ),
    ],
)
def test_the_loss_beside_an_ignore_label_is_that_of_the_experiment(ours, options):
    ids = [0, 1, 3] if options["num_classes"] == 1 else [0, 1, 2, 3]
    labels = torch.tensor(ids)[torch.randint(len(ids), (2, 1, 7, 8), generator=torch.Generator().manual_seed(2))]
    logits = _random(2, options["num_classes"], 7, 8)
    loss = DiceEntropyLoss(ignore_label=3, **options)(logits, labels)
    assert float(loss) == pytest.approx(float(ours(logits, labels)[0]), abs=1e-5)


def test_a_share_of_patches_is_centred_on_foreground():
    label = torch.zeros(1, 6, 7, 8)
    label[0, 2, 3, 4], label[0, 5, 5, 5] = 1, 2
    center = RandCenterd("label", foreground_share=0.5, ignore_label=2).set_random_state(0)
    drawn = [center({"label": label})["center"] for _ in range(40)]
    assert 10 < sum(place == [2, 3, 4] for place in drawn) < 30
    assert all(place in ([2, 3, 4], None) for place in drawn)
    assert RandCenterd("label", foreground_share=1.0)({"label": label * 0})["center"] is None
