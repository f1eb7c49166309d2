import io
import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn

from candy_monai.experiment.saving import Snapshots, Writer


def test_work_is_done_beside_and_one_thing_after_the_other():
    writer, go, done = Writer(), threading.Event(), []
    writer.start(lambda: go.wait(10) and done.append(1))
    assert writer.is_busy
    assert done == []
    go.set()
    writer.start(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]
    assert not writer.is_busy


def test_a_failure_reaches_whoever_waits_and_nothing_more_is_written():
    def fail():
        raise OSError("broken")

    writer, done = Writer(), []
    writer.start(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            writer.wait()
    with pytest.raises(OSError, match="broken"):
        writer.start(lambda: done.append(1))
    writer.join()
    assert done == []


def test_where_nothing_was_written_there_is_nothing_to_wait_for():
    writer = Writer()
    writer.wait()
    assert not writer.is_busy


def _written(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _content():
    network = nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 1, bias=False))
    network.to(memory_format=torch.channels_last_3d)
    tied = OrderedDict(network.state_dict())
    tied["again"] = tied["0.weight"]
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 2, 5, 5, 5)).sum().backward()
    optimizer.step()
    whole = torch.arange(12.0).reshape(3, 4)
    views = [whole, whole[1:, ::2], whole.T, whole[0, 0]]
    plain = {"a": (1, None, "text", [True, 2.5]), "empty": torch.empty(0, 3), "numbers": torch.tensor([1, 2])}
    return {"weights": tied, "optimizer": optimizer.state_dict(), "views": views, "plain": plain}


def test_what_is_written_of_a_copy_is_what_is_written_of_the_original():
    content, snapshots = _content(), Snapshots()
    for _ in range(2):  # into new memory, then into that of the copy before
        assert _written(snapshots.of(content)) == _written(content)


def test_a_copy_stays_as_it_is_when_the_original_changes():
    content = {"w": torch.ones(3), "rows": [{"loss": 0.5}]}
    copied = Snapshots().of(content)
    content["w"].zero_()
    content["rows"][0]["loss"] = 9.0
    content["rows"].append({})
    assert copied["w"].tolist() == [1.0, 1.0, 1.0]
    assert copied["rows"] == [{"loss": 0.5}]


def test_memory_is_used_again_and_no_two_tensors_get_the_same():
    snapshots = Snapshots()
    first = snapshots.of([torch.zeros(5), torch.ones(5)])
    places = {tensor.data_ptr() for tensor in first}
    second = snapshots.of([torch.full((5,), 2.0), torch.full((5,), 3.0)])
    assert {tensor.data_ptr() for tensor in second} == places
    assert [tensor[0].item() for tensor in second] == [2.0, 3.0]
    third = snapshots.of([torch.full((5,), 4.0), torch.full((7,), 5.0), torch.full((5,), 6.0), torch.full((5,), 7.0)])
    assert [tensor[0].item() for tensor in third] == [4.0, 5.0, 6.0, 7.0]


def test_tensors_of_other_kinds_are_copied_too():
    sparse = torch.eye(3).to_sparse()
    conjugated = torch.tensor([1 + 2j]).conj()
    copied = Snapshots().of([sparse, conjugated])
    assert torch.equal(copied[0].to_dense(), torch.eye(3))
    assert copied[1].tolist() == [1 - 2j]
