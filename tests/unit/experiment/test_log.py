from datetime import datetime

import pytest

from candy_monai.experiment.log import RunLog


@pytest.mark.parametrize("message", ["plain", "[bold]not markup[/]", "naïve ✓ 日本", "100 % {braces} %s", "a\ud800b"])
def test_any_text_is_logged_verbatim(tmp_path, message):
    log = RunLog(tmp_path / "logs.txt", clock=lambda: datetime(2026, 1, 2, 3, 4, 5))
    log.write(message)
    shown = message.encode("utf-8", "backslashreplace").decode()
    assert (tmp_path / "logs.txt").read_text(encoding="utf-8") == f"[2026-01-02 03:04:05] {shown}\n"
