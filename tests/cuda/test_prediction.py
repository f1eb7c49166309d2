"""Windows and their memory on a GPU."""

import pytest
import torch
from torch import nn

from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.predictor import Predictor
from candy_monai.live_bytes import LiveBytes
from candy_monai.network import meta_copy
from tests.toys import small_trainer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(8, 5, 1)).eval()


@pytest.fixture
def image():
    return torch.randn(1, 1, 40, 36, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("keeps_on", ["its own", "cpu"])
@pytest.mark.parametrize("image_on", ["its own", "cpu"])
def test_windows_are_those_of_a_cpu_wherever_the_scores_are_kept(device, keeps_on, image_on, image):
    places = {name: device if name == "its own" else name for name in (keeps_on, image_on)}
    inferer = WindowInferer((16, 16, 16), sw_device=device, device=places[keeps_on])
    expected, model = WindowInferer((16, 16, 16))(image, network()), network().to(device)
    with torch.inference_mode():
        scores = inferer(image.to(places[image_on]), model)
        labels = inferer.labels(image.to(places[image_on]), model)
    assert {scores.device.type, labels.device.type} == {places[keeps_on]}
    torch.testing.assert_close(scores.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert (labels.cpu() != expected.argmax(1, keepdim=True)).float().mean() < 1e-3


def test_an_image_may_be_on_the_device_already(device, tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1, save_preview=False, save_report=False)
    network = trainer.build_network((1, 16, 16))
    predictor = Predictor(trainer.experiment_folder(), network=network, device=device)
    image = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(predictor.predict(image.to(device)).cpu(), predictor.predict(image))


@pytest.mark.cuda
def test_a_call_of_a_network_takes_the_memory_that_is_counted_on_the_meta_device(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    windows = torch.zeros(4, 1, 64, 64, 64)
    with torch.no_grad(), LiveBytes("meta") as live:
        on_meta = windows.to("meta")
        meta_copy(network())(on_meta)
    model, windows = network().cuda(), windows.cuda()
    with torch.inference_mode():
        model(windows)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated() - windows.nbytes
        torch.cuda.reset_peak_memory_stats()
        model(windows)
        torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(live.most, rel=0.15)
