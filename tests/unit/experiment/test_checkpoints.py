import errno
import io
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from candy_monai.errors import ExperimentError
from candy_monai.experiment.checkpoints import (
    Checkpoints,
    digest_of,
    evenly_spaced_epochs,
    is_leftover,
    load_weights,
    records_of,
    save_tensors,
)


@given(st.integers(1, 500), st.integers(1, 500))
def test_exactly_as_many_epochs_as_asked_for_are_due_and_the_last_is_among_them(num_epochs, num_checkpoints):
    due = evenly_spaced_epochs(num_epochs, num_checkpoints)
    assert len(due) == min(num_epochs, num_checkpoints)
    assert max(due) == num_epochs
    assert min(due) >= 1


def test_five_of_a_hundred_epochs_are_every_twentieth():
    assert evenly_spaced_epochs(100, 5) == {20, 40, 60, 80, 100}


def test_no_checkpoints_asked_for_leaves_none_not_even_the_last(tmp_path):
    checkpoints = Checkpoints(tmp_path, num_epochs=10, num_checkpoints=0)
    assert not any(checkpoints.is_due(epoch, is_last=epoch == 10) for epoch in range(1, 11))


def test_an_early_end_is_due_as_well():
    checkpoints = Checkpoints(None, num_epochs=100, num_checkpoints=5)
    assert checkpoints.is_due(33, is_last=True)
    assert not checkpoints.is_due(33, is_last=False)


def test_each_file_s_epoch_score_kind_and_digest_are_known(tmp_path):
    checkpoints = Checkpoints(tmp_path, num_epochs=2, num_checkpoints=1)
    checkpoints.stage("checkpoint_best.pth", {"w": torch.ones(2)}, epoch=2, score=0.75, kind="ema")
    assert not (tmp_path / "checkpoint_best.pth").exists()
    checkpoints.confirm_staged()
    checkpoints.publish()
    record = checkpoints.records["checkpoint_best.pth"]
    digest = digest_of(tmp_path / "checkpoint_best.pth")
    assert (record.epoch, record.score, record.kind, record.digest) == (2, 0.75, "ema", digest)


def test_the_digest_tells_other_weights_and_not_another_name(tmp_path):
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        save_tensors(tmp_path / f"{name}.pth", {"w": torch.tensor(value)})
    same, again, other = (digest_of(tmp_path / f"{name}.pth") for name in "abc")
    assert same == again
    assert same != other


def test_a_tensor_damaged_on_disk_is_noticed_when_it_is_loaded(tmp_path):
    save_tensors(tmp_path / "w.pth", {"w": torch.ones(1000)})
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[content.index(torch.ones(4).numpy().tobytes()) + 3] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ExperimentError, match=r"w\.pth"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", [".checkpoint_best.pth.next", ".state-ab12_x9z.pt", ".metrics-00000000.csv"])
def test_what_a_crash_leaves_of_a_write_is_recognised_by_its_name(name):
    assert is_leftover(name)


@pytest.mark.parametrize("name", ["state.pt", ".gitignore", "checkpoint_best.pth", ".next", "a-abcdefgh.csv"])
def test_other_files_are_not_taken_for_leftovers(name):
    assert not is_leftover(name)


def test_weights_come_back_as_they_were(tmp_path):
    weights = {"conv.weight": torch.randn(3, 2), "steps": torch.tensor(7)}
    save_tensors(tmp_path / "w.pth", weights)
    loaded = load_weights(tmp_path / "w.pth")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


class _Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_a_hostile_file_is_refused_and_not_executed(tmp_path):
    torch.save({"w": _Hostile()}, tmp_path / "w.pth")
    with pytest.raises(ExperimentError, match=r"w\.pth"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ExperimentError, match=r"w\.pth"):
        load_weights(tmp_path / "w.pth")


def test_a_file_that_holds_no_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ExperimentError, match="found list"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["/etc/passwd", "../checkpoint_best.pth", "logs.txt", "checkpoint_1.pth\n"])
def test_a_state_that_names_a_file_other_than_a_checkpoint_is_refused_before_anything_is_moved(tmp_path, name):
    folder = tmp_path / "run"
    staged = folder / f".{name}.next"
    staged.parent.mkdir(parents=True)
    torch.save({"w": torch.ones(1)}, staged)
    record = {"epoch": 1, "score": None, "kind": "raw", "digest": digest_of(staged)}
    with pytest.raises(ExperimentError, match="not a valid checkpoint name"):
        records_of({name: record})
    assert staged.exists()


class _FullDisk(io.BytesIO):
    def write(self, data, /):
        if self.tell() + len(data) > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("size", [100, 1500])
def test_a_disk_that_is_full_is_said_to_be_full_whatever_pytorch_says_of_it(tmp_path, monkeypatch, size):
    checkpoints = Checkpoints(tmp_path, num_epochs=1, num_checkpoints=1)

    @contextmanager
    def new_file(_path):
        yield _FullDisk()

    monkeypatch.setattr("candy_monai.experiment.checkpoints.new_file", new_file)
    weights = {str(index): torch.ones(size) for index in range(9)}
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.stage("checkpoint_best.pth", weights, epoch=1, score=None, kind="raw")
