from __future__ import annotations

import pytest

from candy_monai.errors import SettingsError
from candy_monai.training.agreement import Agreement, SaveTimer, agree


def test_one_process_agrees_with_itself():
    own = Agreement(usable=False, save=True, stop=False, cut=True)
    assert agree(own, None) == own


def test_a_run_is_saved_after_so_many_batches_and_never_without_an_interval():
    timer = SaveTimer(3)
    assert [timer.is_over(batch) for batch in (2, 3)] == [False, True]
    timer.restart(3)
    assert [timer.is_over(batch) for batch in (5, 6)] == [False, True]
    assert not SaveTimer(None).is_over(10**6)


def test_a_run_is_saved_after_so_much_time():
    now = [0.0]
    timer = SaveTimer("90s", clock=lambda: now[0])
    assert not timer.is_over(5)
    now[0] = 90.0
    assert timer.is_over(5)
    timer.restart(5)
    assert not timer.is_over(6)


def test_what_is_no_interval_is_refused():
    with pytest.raises(SettingsError, match="save_every"):
        SaveTimer("often")
