from __future__ import annotations

import pytest
from monai.losses import DiceLoss

from candy_monai.handlers import ExperimentFolderHandler
from tests.engines import host_script, only_run


@pytest.mark.parametrize("softmax", [False, True])
def test_a_loss_that_gets_logits_is_said_in_the_log_once(tmp_path, softmax):
    script = host_script(ExperimentFolderHandler(tmp_path), max_epochs=2)
    script.trainer.loss_function = DiceLoss(to_onehot_y=True, softmax=softmax)
    script.trainer.run()
    log = (only_run(tmp_path) / "logs.txt").read_text(encoding="utf-8")
    assert log.count("Warning: the loss DiceLoss was given no activation") == (not softmax)
    assert not script.trainer.loss_function._forward_pre_hooks
