import ctypes
import errno
import os
import sys
from contextlib import nullcontext

import pytest

from candy_monai import files
from candy_monai.errors import BadInputError
from candy_monai.files import (
    atomic_path,
    atomic_write_text,
    check_writable,
    finish_file,
    flush_to_disk,
    folder_apart,
    new_file,
)

_really_flush = files._flush  # the other tests do not wait for the disk


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "state.pt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="disk full"):
        _fail_half_way(target)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.pt"]


def _fail_half_way(target):
    with atomic_path(target) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError("disk full")


def test_a_write_that_succeeds_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "metrics.csv"
    atomic_write_text(target, "one")
    atomic_write_text(target, "zwei: ä")
    assert target.read_text(encoding="utf-8") == "zwei: ä"
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_a_file_that_was_begun_and_not_finished_is_removed(tmp_path):
    with pytest.raises(RuntimeError, match="disk full"):
        _begin(tmp_path / "weights")
    assert os.listdir(tmp_path) == []


def _begin(path):
    with new_file(path) as file:
        file.write(b"half")
        raise RuntimeError("disk full")


def test_another_name_of_a_file_that_is_written_anew_keeps_its_content(tmp_path):
    (tmp_path / "weights").write_bytes(b"old")
    os.link(tmp_path / "weights", tmp_path / "other name")
    with new_file(tmp_path / "weights") as file:
        file.write(b"new")
        finish_file(file)
    assert (tmp_path / "weights").read_bytes() == b"new"
    assert (tmp_path / "other name").read_bytes() == b"old"


def test_of_a_large_file_the_cache_holds_the_last_two_portions(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files, "_BYTES_ON_THE_WAY", 10_000)
    monkeypatch.setattr(files, "_forget", lambda _handle, *part: done.append(("forget", *part)))
    monkeypatch.setattr(files, "_wait_for", lambda _handle, *part: done.append(("wait", *part)))
    content = os.urandom(20_150) + os.urandom(10_100)
    with new_file(tmp_path / "weights") as file:
        file.write(content[:20_150])
        file.write(content[20_150:])
        file.flush()
        assert done == [
            ("forget", 0, 10_000),
            ("forget", 10_000, 10_000),
            ("wait", 0, 10_000),
            ("forget", 0, 10_000),
            ("forget", 20_000, 10_000 + 150),
            ("wait", 10_000, 10_000),
            ("forget", 10_000, 10_000),
        ]
        finish_file(file)
    assert done[-1] == ("forget",)
    assert (tmp_path / "weights").read_bytes() == content


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux waits for a part of a file")
@pytest.mark.parametrize(("number", "is_error"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.ENOSYS, False)])
def test_a_part_that_does_not_reach_the_disk_is_an_error(tmp_path, monkeypatch, number, is_error):
    def refuse(*_part):
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(files, "_BYTES_ON_THE_WAY", 10_000)
    monkeypatch.setattr(files, "_sync_file_range", refuse)
    refused = pytest.raises(OSError, match=os.strerror(number)) if is_error else nullcontext()
    with refused, new_file(tmp_path / "weights") as file:
        file.write(bytes(30_000))
        finish_file(file)
    assert (tmp_path / "weights").exists() is not is_error


@pytest.mark.parametrize(("number", "is_error"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_data_that_do_not_reach_the_disk_are_an_error_and_a_disk_that_cannot_be_asked_is_none(
    tmp_path, monkeypatch, number, is_error
):
    def refuse(_handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr("candy_monai.files._flush", _really_flush)
    with new_file(tmp_path / "a.txt") as file:
        for flush in (lambda: flush_to_disk(tmp_path / "a.txt"), lambda: finish_file(file)):
            with pytest.raises(OSError, match=os.strerror(number)) if is_error else nullcontext():
                flush()
    assert file.closed
    flush_to_disk(tmp_path)


def test_the_temporary_file_keeps_the_whole_suffix_by_which_writers_choose_a_format(tmp_path):
    with atomic_path(tmp_path / "case.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")


def test_a_written_file_is_readable_by_whom_the_umask_allows(tmp_path):
    atomic_write_text(tmp_path / "a.txt", "a")
    (tmp_path / "b.txt").write_text("b")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_writing_never_changes_the_umask_which_all_threads_share(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    atomic_write_text(tmp_path / "a.txt", "a")


def test_a_system_that_opens_no_folder_writes_all_the_same(tmp_path, monkeypatch):
    real = os.open

    def like_windows(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", like_windows)
    atomic_write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"


def test_a_folder_below_a_file_is_refused_and_one_that_can_be_made_is_not_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "out" / "deep"):
        with pytest.raises(BadInputError, match="file is a file"):
            check_writable(folder)
    check_writable(tmp_path / "new" / "out")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("files", [(), ("apart/model.pt",), ("read.png", None, "apart/copy.png")])
def test_an_error_in_a_temporary_folder_names_what_it_was_to_become(tmp_path, files):
    def fill():
        with folder_apart("out", beside=tmp_path, prefix=".") as apart:
            raise OSError(
                errno.ENOSPC, "No space left", *(name and name.replace("apart", str(apart)) for name in files)
            )

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert (caught.value.filename, caught.value.filename2) == ("out", None)
    assert os.listdir(tmp_path) == []


def test_an_error_of_another_file_than_those_of_a_temporary_folder_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, folder_apart("out", beside=tmp_path, prefix="."):
        (tmp_path / "absent").read_text()
    assert caught.value.filename == str(tmp_path / "absent")
