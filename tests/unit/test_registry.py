import pytest

from candy_monai.errors import BadInputError
from candy_monai.inference.predictor import Predictor
from candy_monai.registry import Bundle, bundle_name, bundle_names, find_bundle
from candy_monai.training.segmentation import SegmentationTrainer


@pytest.mark.parametrize("name", ["cmunext", "unet"])
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


def test_an_unknown_bundle_is_an_error_with_the_closest_installed_one():
    with pytest.raises(BadInputError, match="'unett'.*Did you mean 'unet'"):
        find_bundle("unett")


def test_a_name_that_is_a_module_but_no_bundle_is_not_imported():
    with pytest.raises(BadInputError, match="no bundle 'os'"):
        find_bundle("os")
