import tempfile

import pytest
import torch

from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.scratch import room_on_disk


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_room_on_disk_holds_what_is_put_in_and_leaves_no_file(scratch):
    room = room_on_disk(24, torch.device("cpu"))
    values = torch.randn(24)
    room.copy_(values)
    assert torch.equal(room, values)
    assert list(scratch.iterdir()) == []


def test_the_label_map_is_the_same_with_room_on_disk(scratch):
    torch.manual_seed(0)
    network, images = torch.nn.Conv3d(1, 5, 3, padding=1), torch.randn(1, 1, 20, 17, 9)
    inferer = WindowInferer((8, 8, 8))
    on_disk = inferer.with_room(room_on_disk)
    assert torch.equal(inferer.labels(images, network), on_disk.labels(images, network))
    assert list(scratch.iterdir()) == []


def test_scores_of_another_device_are_refused():
    with pytest.raises(ValueError, match="scores on meta cannot be summed on disk"):
        room_on_disk(1, torch.device("meta"))
