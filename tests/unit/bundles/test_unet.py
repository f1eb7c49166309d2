import json

import pytest
import torch
from monai.networks import nets
from torch.nn.functional import interpolate

from candy_monai.errors import BadInputError, ExperimentError, SettingsError
from candy_monai.incoming.opening import load_predictor
from candy_monai.training.description import describe_network
from candy_monai.training.options import NAMES, SegmentationOptions
from candy_monai_bundles import unet
from candy_monai_bundles.unet import UNetPredictor, UNetTrainer, build_unet, default_strides
from tests.contracts.trainer_contract import TrainerContract
from tests.plans import PLAN
from tests.toys import Squares, small_trainer


def _trainer(folder, size=(20, 28), **attributes):
    attributes = {"num_dims": len(size), "filters": (4, 8, 8), "learning_rate": 0.01, **attributes}
    num_classes = attributes.get("num_classes", 1)
    return small_trainer(folder, Squares(2, size=size, num_classes=num_classes), cls=_with(attributes))


def _with(attributes):
    options = {name: attributes[name] for name in NAMES if name in attributes}
    others = {name: value for name, value in attributes.items() if name not in options}
    return type("UNetTrainer", (UNetTrainer,), {**others, "options": SegmentationOptions(**options)})


class TestUNetTrainerOnPictures(TrainerContract):
    def make_trainer(self, folder):
        return _trainer(folder)


@pytest.mark.slow
class TestUNetTrainerOnVolumesWithDeepSupervision(TrainerContract):
    def make_trainer(self, folder):
        return _trainer(folder, (14, 16, 12), num_classes=3, deep_supervision=True)


def test_the_default_is_two_dimensional_with_one_class(tmp_path):
    trainer = UNetTrainer(tmp_path, None, None)
    assert (trainer.num_dims, trainer.num_classes) == (2, 1)


@pytest.mark.parametrize(("num_dims", "size"), [(2, (64, 64)), (2, (16, 16)), (3, (32, 32, 32)), (3, (16, 64, 16))])
def test_the_default_network_trains_on_small_and_large_examples(tmp_path, num_dims, size):
    trainer = UNetTrainer(tmp_path, None, None)
    trainer.num_dims, trainer.num_classes = num_dims, 3
    network = trainer.build_network((2, *size)).train()
    assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("residual", [False, True])
def test_coarser_logits_are_monai_s_at_their_own_resolution_and_all_else_is_monai_s(monkeypatch, residual):
    levels = {"kernel_sizes": [(3, 3)] * 4, "strides": [(1, 1), (2, 2), (2, 1), (2, 2)], "filters": (4, 6, 8, 8)}
    options = {"num_dims": 2, "in_channels": 1, "out_channels": 3, "residual": residual, "deep_supervision": True}
    ours = build_unet(**options, **levels)
    monkeypatch.setattr(unet, "DynUNet", nets.DynUNet)
    monais = build_unet(**options, **levels)
    assert describe_network(monais) == describe_network(ours)  # so that earlier runs can be resumed
    monais.load_state_dict(ours.state_dict())
    images = torch.randn(2, 1, 32, 16)
    outputs = ours(images)
    assert [tuple(output.shape[2:]) for output in outputs] == [(32, 16), (16, 8), (8, 8)]
    stacked = monais(images).unbind(1)
    for own, at_full_resolution in zip(outputs, stacked, strict=True):
        assert torch.equal(interpolate(own, (32, 16)), at_full_resolution)
    assert torch.equal(ours.eval()(images), monais.eval()(images))


def test_an_axis_is_halved_only_while_it_stays_large_enough():
    assert default_strides((32, 8), 5) == [(1, 1), (2, 2), (2, 1), (2, 1)]


def test_fewer_levels_than_the_network_can_have_are_a_clear_error(tmp_path):
    with pytest.raises(SettingsError, match="at least 3 levels, got 2"):
        _trainer(tmp_path, filters=(4, 8)).train(1)


def test_a_plan_of_fewer_levels_is_refused_before_cases_are_preprocessed_but_not_for_a_network_of_one_s_own():
    class Own(UNetTrainer):
        def build_network(self, example_shape):
            return torch.nn.Conv2d(1, 1, 1)

    plan = PLAN  # of two levels
    with pytest.raises(SettingsError, match="at least 3 levels, got 2"):
        UNetTrainer.check_plan(plan)
    Own.check_plan(plan)


def test_volumes_given_to_a_two_dimensional_trainer_are_a_clear_error(tmp_path):
    with pytest.raises(BadInputError, match="set trainer.num_dims = 3"):
        _trainer(tmp_path, (12, 12, 12), num_dims=2).train(1)


def test_the_predictor_reproduces_the_validation_s_output_from_the_folder_alone(tmp_path):
    trainer = _trainer(tmp_path, (21, 30), num_classes=3)
    outputs = []
    validate_case = trainer.validate_case

    def looking(image, label, toolbox):
        result = validate_case(image, label, toolbox)
        outputs.append((image, result[2]))
        return result

    trainer.validate_case = looking
    trainer.train(1, save_preview=False)
    predictor = UNetPredictor(trainer.experiment_folder())
    for image, logits in outputs:
        assert torch.equal(predictor.logits(image), logits)
        assert torch.equal(predictor.predict(image).as_tensor(), logits.argmax(0, keepdim=True))


@pytest.mark.parametrize(
    "change",
    [{"bundle": "os"}, {"network": {"arguments": {}}}, {"network": {"arguments": {"num_dims": "x"}}}],
    ids=["bundle", "nothing", "text"],
)
def test_what_no_bundle_can_build_is_refused_with_the_file(tmp_path, change):
    trainer = _trainer(tmp_path, num_classes=3)
    trainer.train(1, save_preview=False)
    path = trainer.experiment_folder() / "experiment.json"
    described = json.loads(path.read_text()) | {"bundle": "unet"}
    for name, value in change.items():
        described[name] = described[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(described))
    with pytest.raises(ExperimentError, match=r"experiment\.json: .*(bundle 'os'|network\.arguments)"):
        load_predictor(path.parent)
