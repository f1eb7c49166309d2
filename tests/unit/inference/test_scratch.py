import tempfile

import pytest
import torch

from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.scratch import disk_cell


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_cell_on_disk_holds_what_is_put_in_and_leaves_no_file(scratch):
    cell = disk_cell((2, 3, 4), torch.device("cpu"))
    values = torch.randn(2, 3, 4)
    cell.copy_(values)
    assert torch.equal(cell, values)
    assert list(scratch.iterdir()) == []


def test_the_label_map_is_the_same_with_cells_on_disk(scratch):
    torch.manual_seed(0)
    network, images = torch.nn.Conv3d(1, 5, 3, padding=1), torch.randn(1, 1, 20, 17, 9)
    inferer = WindowInferer((8, 8, 8))
    on_disk = inferer.with_cells(disk_cell)
    assert torch.equal(inferer.labels(images, network), on_disk.labels(images, network))
    assert list(scratch.iterdir()) == []


def test_scores_of_another_device_are_refused():
    with pytest.raises(ValueError, match="scores on meta cannot be summed on disk"):
        disk_cell((1,), torch.device("meta"))
