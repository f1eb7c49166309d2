from __future__ import annotations

import pytest
from monai.bundle import ConfigParser
from monai.networks import nets
from torch import nn

from candy_monai.export.definitions import define, exported_as, noted_arguments


class Mine(nets.UNet):
    """A network of one's own."""


class OtherwiseInTraining(nets.UNet):
    """A network of one's own that leaves as MONAI's."""

    exported_as = nets.UNet


class FurtherOff(OtherwiseInTraining):
    """A subclass, of which nobody said so."""


class WithRest(nn.Module):
    """A network that takes more arguments by name."""

    def __init__(self, width, **more):
        super().__init__()


def test_a_network_of_monais_is_built_again_from_what_it_was_built_with():
    before = nets.DynUNet.__init__
    with noted_arguments() as noted:
        built = nets.DynUNet(2, 1, 2, kernel_size=[3] * 3, strides=[1, 2, 2], upsample_kernel_size=[2, 2])
        mine = Mine(2, 1, 2, channels=(4, 8), strides=(2,))
    assert nets.DynUNet.__init__ is before
    assert mine not in noted
    definition = define(type(built), noted[built])
    assert definition["_target_"] == "monai.networks.nets.DynUNet"
    again = ConfigParser(definition).get_parsed_content()
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in built.state_dict().items()
    }


def test_a_class_that_inherits_its_constructor_is_left_as_it_was():
    with noted_arguments(Mine, WithRest) as noted:
        mine, rest = Mine(2, 1, 2, channels=(4, 8), strides=(2,)), WithRest(3, depth=2)
    assert noted[mine] == {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,)}
    assert noted[rest] == {"width": 3, "depth": 2}
    assert "__init__" not in vars(Mine)


def test_a_class_is_exported_as_the_one_that_it_names_itself():
    with noted_arguments() as noted:
        named, further = (kind(2, 1, 2, channels=(4, 8), strides=(2,)) for kind in (OtherwiseInTraining, FurtherOff))
    assert define(exported_as(type(named)), noted[named])["_target_"] == "monai.networks.nets.UNet"
    assert exported_as(type(further)) is FurtherOff
    assert further not in noted


def test_a_layer_of_pytorchs_is_named_and_any_other_object_is_refused():
    assert define(nets.UNet, {"act": nn.ReLU})["act"] == {"_target_": "torch.nn.ReLU", "_mode_": "callable"}
    with pytest.raises(TypeError, match="object at"):
        define(nets.UNet, {"act": object()})
