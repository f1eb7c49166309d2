from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.handlers import ValidationHandler
from PIL import Image
from torch.nn import functional as F

from candy_monai.errors import BadInputError
from candy_monai.handlers import ExperimentFolderHandler, PreviewHandler
from candy_monai.handlers.previews import dice_of_case, ids_of
from candy_monai.plotting.case.previews import PREVIEW_NAMES
from tests.engines import host_script, only_run, same, trained_alone, weights_of

IDS = torch.tensor([[[0, 1, 2], [2, 0, 0]]])
CODES = F.one_hot(IDS[0], 3).movedim(-1, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (IDS, IDS),
        (IDS.float(), IDS),
        (MetaTensor(IDS.float()), IDS),
        (CODES, IDS),
        (CODES.float(), IDS),
        (CODES.bool(), IDS),
        (CODES * 9.0 - 4.5, IDS),
        (CODES * 0.8 + 0.1, IDS),
        (CODES[1:].float(), IDS),
        (torch.tensor([[[0.4, 0.6]]]), torch.tensor([[[0, 1]]])),
        (torch.tensor([[[-0.4, 0.6]]]), torch.tensor([[[0, 1]]])),
        (torch.tensor([[[1.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]]]), torch.tensor([[[2, 0, 1]]])),
    ],
    ids=[
        "ids",
        "ids as floats",
        "ids of MONAI",
        "one-hot",
        "one-hot as floats",
        "one-hot flags",
        "logits",
        "probabilities",
        "one-hot without the background",
        "the probability of one class",
        "the logit of one class",
        "regions that overlap",
    ],
)
def test_label_ids_of_what_an_output_may_hold(values, expected):
    assert torch.equal(ids_of(values).long(), expected)


def test_the_score_of_a_case_is_its_mean_dice():
    prediction = IDS.clone()
    prediction[0, 0, 2] = 0  # one of two voxels of class 2
    assert dice_of_case(prediction, IDS) == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(dice_of_case(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)))


class TestInARun:
    def test_pictures_of_three_cases_lie_in_the_folder(self, tmp_path):
        script = host_script(PreviewHandler(), ExperimentFolderHandler(tmp_path))
        script.trainer.run()
        folder = only_run(tmp_path)
        for place in (folder, folder / "median", folder / "best"):
            assert all((place / name).is_file() for name in PREVIEW_NAMES)
        worst, best = (np.asarray(Image.open(place / PREVIEW_NAMES[0])) for place in (folder, folder / "best"))
        assert worst.shape == best.shape
        assert not np.array_equal(worst, best)
        assert same(weights_of(script.network), trained_alone())

    def test_a_folder_of_its_own_needs_no_experiment(self, tmp_path):
        script = host_script(PreviewHandler(tmp_path / "pictures"))
        script.trainer.run()
        assert (tmp_path / "pictures" / "median" / PREVIEW_NAMES[-1]).is_file()

    def test_cases_are_collected_now_and_then_and_at_the_end(self, tmp_path):
        handler = PreviewHandler(tmp_path)
        script = host_script(handler, max_epochs=4)
        collected, offer = [], handler._collect

        def counting(validator):
            collected.append(script.trainer.state.epoch)
            offer(validator)

        handler._collect = counting
        script.trainer.run()
        assert sorted(set(collected)) == [1, 4]

    def test_a_score_of_ones_own_chooses_the_cases(self, tmp_path):
        brightness = []

        def score(prediction, label):
            brightness.append(float(label[1].sum()))
            return brightness[-1]

        handler = PreviewHandler(tmp_path, score_function=score)
        script = host_script(handler, max_epochs=1)
        found = []
        script.evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: found.append(handler._choice.chosen()))
        script.trainer.run()
        assert found[0]["worst"].score == min(brightness)
        assert found[0]["worst"].case.label.sum() == min(brightness)

    def test_an_output_without_labels_is_said_once_and_ends_nothing(self, tmp_path, caplog):
        def no_labels(output):
            return [case["image"] for case in output], [None for _ in output], [case["pred"] for case in output]

        script = host_script(PreviewHandler(tmp_path, output_transform=no_labels))
        with caplog.at_level(logging.WARNING, logger="candy_monai.handlers"):
            script.trainer.run()
        assert sum("there is no label in it" in record.getMessage() for record in caplog.records) == 1
        assert same(weights_of(script.network), trained_alone())

    def test_without_a_folder_it_says_what_is_missing(self):
        script = host_script(PreviewHandler())
        with pytest.raises(BadInputError, match="give it a save_dir, or add an ExperimentFolderHandler"):
            script.trainer.run()

    def test_without_an_evaluator_it_says_so(self, tmp_path):
        script = host_script(PreviewHandler(tmp_path), validates=False)
        with pytest.raises(BadInputError, match="found no evaluators"):
            script.trainer.run()

    def test_of_several_evaluators_it_draws_that_of_the_score(self, tmp_path):
        def second(_, evaluator):
            other = host_script(validates=False).evaluator
            other.network = evaluator.network
            return ValidationHandler(1, other)

        script = host_script(
            second, PreviewHandler(), lambda _, evaluator: ExperimentFolderHandler(tmp_path, validator=evaluator)
        )
        script.trainer.run()
        assert (only_run(tmp_path) / PREVIEW_NAMES[0]).is_file()

    def test_a_quality_that_is_none_is_refused_at_once(self):
        with pytest.raises(BadInputError, match="quality"):
            PreviewHandler(quality=0)

    def test_what_is_no_evaluator_is_refused_at_once(self):
        with pytest.raises(BadInputError, match="validator must be one of MONAI's evaluators.* got int"):
            PreviewHandler(validator=3)
