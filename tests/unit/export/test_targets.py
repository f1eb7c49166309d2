from __future__ import annotations

import subprocess
import sys

import pytest

from candy_monai.errors import SettingsError
from candy_monai.export.targets import TARGETS, find_target


def test_an_unknown_target_is_refused_with_the_closest_name():
    with pytest.raises(SettingsError, match=r"unknown target 'onxx'\. Did you mean 'onnx'\? Known: monai-bundle, onnx"):
        find_target("onxx")


def test_the_targets_are_listed_without_importing_pytorch():
    code = "import sys, candy_monai.export.targets; assert 'torch' not in sys.modules and 'monai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_target_that_is_one_file_has_a_suffix_of_its_own():
    suffixes = [target.suffix for target in TARGETS.values() if target.suffix]
    assert len(set(suffixes)) == len(suffixes) == len(TARGETS) - 1
