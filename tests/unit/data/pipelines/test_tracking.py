from __future__ import annotations

import threading

import pytest
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Flip

from candy_monai.data.pipelines.tracking import untracked


def is_tracked():
    return isinstance(Flip(0)(MetaTensor(torch.rand(1, 2))), MetaTensor)


def test_metadata_are_off_within_the_block_and_on_after_it_also_after_an_error():
    with untracked():
        with untracked():
            assert not is_tracked()
        assert not is_tracked()
    assert is_tracked()
    with pytest.raises(KeyError), untracked():
        raise KeyError
    assert is_tracked()
    assert get_track_meta() is True


def test_other_threads_keep_their_metadata():
    seen = []
    with untracked():
        thread = threading.Thread(target=lambda: seen.append(is_tracked()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_what_a_user_switched_off_stays_off():
    set_track_meta(False)
    try:
        with untracked():
            assert not is_tracked()
        assert get_track_meta() is False
    finally:
        set_track_meta(True)
