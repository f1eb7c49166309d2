import inspect

import pytest

from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.training.sliding import SlidingSegmentationTrainer


@pytest.mark.parametrize("cls", [SegmentationTrainer, SlidingSegmentationTrainer])
def test_every_public_method_says_when_to_override_it_or_that_it_is_called(cls):
    methods = {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}
    silent = [name for name, method in methods.items() if callable(method) and "verrid" not in inspect.getdoc(method)]
    assert not silent
