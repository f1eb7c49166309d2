import sys

import pytest

from candy_monai.errors import BadInputError
from candy_monai.inference.predictor import Predictor
from candy_monai.registry import Bundle, bundle_name, bundle_names, bundle_of_network, class_from_file, find_bundle
from candy_monai.training.segmentation import SegmentationTrainer

OURS = "attention_unet cmunext dynunet mednext monai segresnet swin_unetr unet unetpp unetr vnet"


@pytest.mark.parametrize("name", OURS.split())
def test_our_bundles_are_found_by_their_entry_points(name):
    bundle = find_bundle(name)
    assert bundle.name == bundle_name(bundle.trainer) == name
    assert issubclass(bundle.trainer, SegmentationTrainer)
    assert bundle.predictor is None or issubclass(bundle.predictor, Predictor)
    assert name in bundle_names()


def test_a_bundle_gives_its_trainer_its_name_and_needs_no_predictor_of_its_own():
    class Network(SegmentationTrainer):
        pass

    assert Bundle(name="mine", build_network=Network, trainer=Network).predictor is None
    assert bundle_name(Network) == "mine"
    assert bundle_name(SegmentationTrainer) is None


def test_a_trainer_that_builds_a_network_of_its_own_belongs_to_no_bundle():
    ready_made = find_bundle("unet").trainer
    slower = type("Slower", (ready_made,), {})
    other = type("Other", (ready_made,), {"build_network": lambda self, example_shape: None})
    assert [bundle_of_network(cls) for cls in (ready_made, slower, other)] == ["unet", "unet", None]


def test_an_unknown_bundle_is_an_error_with_the_closest_installed_one():
    with pytest.raises(BadInputError, match="'unett'.*Did you mean 'unet'"):
        find_bundle("unett")


def test_a_name_that_is_a_module_but_no_bundle_is_not_imported():
    with pytest.raises(BadInputError, match="no bundle 'os'"):
        find_bundle("os")


def test_a_file_of_the_user_s_imports_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lies_beside.py").write_text("class Mine: pass\n")
    (tmp_path / "mine.py").write_text("from lies_beside import Mine\n")
    assert class_from_file(f"{tmp_path / 'mine.py'}:Mine", option="--trainer").__module__ == "lies_beside"


def test_an_error_in_a_file_of_the_user_s_names_the_file(tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ModuleNotFoundError) as caught:
        class_from_file(f"{tmp_path / 'mine.py'}:Mine", option="--trainer")
    assert caught.value.__notes__ == [
        f"Raised when {tmp_path / 'mine.py'} was executed (--trainer {tmp_path / 'mine.py'}:Mine)"
    ]
