import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.rules import plan
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.state import load_state
from candy_monai.metrics.overlap import dice_per_class
from candy_monai.training.options import NAMES, SegmentationOptions
from candy_monai_bundles.cmunext import CMUNeXtPredictor, CMUNeXtTrainer, build_cmunext
from candy_monai_bundles.networks.cmunext import BatchNormOfAnySize, BatchNormOfAnySize3d
from tests.contracts.trainer_contract import TrainerContract
from tests.toys import Squares, loaders


class Small(CMUNeXtTrainer):
    variant = "s"


def _trainer(folder, data=None, *, batch_size=2, cls=Small, **attributes):
    training, validation = loaders(Squares(size=(20, 28)) if data is None else data, batch_size=batch_size)
    trainer = cls(folder, training, validation, console=False)
    trainer.options = SegmentationOptions(**{name: attributes.pop(name) for name in NAMES if name in attributes})
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def _rates(trainer):
    return trainer.options.learning_rate, trainer.options.weight_decay


def _kinds(network):
    return {type(module) for module in network.modules()} & {BatchNormOfAnySize, BatchNormOfAnySize3d, nn.GroupNorm}


def _num_parameters(**arguments):
    return sum(parameter.numel() for parameter in build_cmunext(**arguments).parameters())


@pytest.fixture(scope="module")
def picture_plan(tmp_path_factory):
    folder = write_phantom_dataset(tmp_path_factory.mktemp("d") / "p", num_cases=3, num_dims=2, shape=(40, 40))
    return lambda **overrides: plan(inspect(folder), overrides=overrides)


class TestCMUNeXtTrainerOnBatches(TrainerContract):
    def make_trainer(self, folder):
        return _trainer(folder)


@pytest.mark.slow
class TestCMUNeXtTrainerOnSinglePicturesOfThreeClasses(TrainerContract):
    def make_trainer(self, folder):
        return _trainer(folder, Squares(2, size=(20, 28), channels=3, num_classes=3), batch_size=1, num_classes=3)


@pytest.mark.parametrize(("variant", "count"), [(None, 3_149_185), ("s", 417_505), ("l", 8_286_721)])
def test_the_variants_have_their_number_of_parameters(variant, count):
    assert _num_parameters(in_channels=3, out_channels=1, variant=variant) == count


def test_another_channel_or_class_costs_one_kernel_a_feature_map_and_nothing_else():
    count = _num_parameters(in_channels=1, out_channels=1)
    assert _num_parameters(in_channels=2, out_channels=1) == count + 16 * 3 * 3
    assert _num_parameters(in_channels=1, out_channels=2) == count + 16 + 1


@pytest.mark.parametrize("variant", [None, "s", "l"])
@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_every_variant_answers_each_pixel_with_a_logit_for_each_class(variant, normalization):
    network = build_cmunext(in_channels=2, out_channels=5, variant=variant, normalization=normalization)
    logits = network(torch.randn(2, 2, 32, 48))
    assert logits.shape == (2, 5, 32, 48)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_one_pixel_in_the_middle_is_felt_in_every_corner():
    torch.manual_seed(0)
    network = build_cmunext(in_channels=1, out_channels=1, variant="s").eval().double()
    image = torch.rand(1, 1, 128, 128, dtype=torch.float64)
    dot = image.clone()
    dot[..., 64, 64] = 9
    with torch.no_grad():
        changed = (network(image) != network(dot))[0, 0]
    corners = [
        changed[rows, columns] for rows in (slice(16), slice(112, None)) for columns in (slice(16), slice(112, None))
    ]
    assert all(corner.any() for corner in corners)  # the coarsest of five stages has 8 x 8 pixels and a kernel of 9 x 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"variant": "m"}, "variant must be 's', 'l', or None.*'m'"), ({"normalization": "layer"}, "'layer'")],
)
def test_what_there_is_not_is_refused_with_what_there_is(arguments, words):
    with pytest.raises(SettingsError, match=words):
        build_cmunext(in_channels=1, out_channels=1, **arguments)


def test_a_misspelt_variant_stops_the_run_before_a_folder_is_made(tmp_path):
    with pytest.raises(SettingsError, match="'S'"):
        _trainer(tmp_path, variant="S").train(1)
    assert not list(tmp_path.iterdir())


def test_the_default_is_the_base_variant_with_one_class(tmp_path):
    trainer = _trainer(tmp_path, cls=CMUNeXtTrainer)
    assert (trainer.variant, trainer.num_classes) == (None, 1)
    assert trainer.network_arguments((3, 16, 16))["variant"] is None


@pytest.mark.parametrize(("batch_size", "kind"), [(1, nn.GroupNorm), (2, BatchNormOfAnySize)])
def test_single_pictures_are_normalised_in_groups_and_larger_batches_as_a_batch(tmp_path, batch_size, kind):
    assert _kinds(_trainer(tmp_path, batch_size=batch_size).build_network((1, 16, 16))) == {kind}


def test_the_size_of_a_batch_is_asked_of_a_batch_sampler_and_groups_are_used_where_none_says_it(tmp_path):
    data = Squares()

    def kinds(**options):
        return _kinds(CMUNeXtTrainer(tmp_path, DataLoader(data, **options), None).build_network((1, 16, 16)))

    assert kinds(batch_sampler=BatchSampler(SequentialSampler(data), 2, drop_last=False)) == {BatchNormOfAnySize}
    assert kinds(batch_sampler=BatchSampler(SequentialSampler(data), 1, drop_last=False)) == {nn.GroupNorm}
    assert kinds(batch_sampler=[[0, 1], [2, 3]]) == {nn.GroupNorm}
    assert kinds(batch_size=None) == {nn.GroupNorm}


def test_the_user_s_choice_of_normalisation_wins(tmp_path):
    assert _kinds(_trainer(tmp_path, normalization="group").build_network((1, 16, 16))) == {nn.GroupNorm}
    trainer = _trainer(tmp_path, batch_size=1, normalization="batch")
    assert _kinds(trainer.build_network((1, 16, 16))) == {BatchNormOfAnySize}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_a_picture_left_over_that_is_reduced_to_one_pixel_trains(tmp_path, batch_size, normalization):
    trainer = _trainer(tmp_path, Squares(3), batch_size=batch_size, normalization=normalization)
    trainer.train(1, save_preview=False)
    weights = torch.load(trainer.experiment_folder() / "checkpoint_latest.pth", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_a_single_value_a_channel_is_normalised_by_what_was_learned_and_changes_none_of_it():
    layer, values = BatchNormOfAnySize(2), torch.tensor([3.0, 7.0]).reshape(1, 2, 1, 1)
    layer.running_mean.copy_(torch.tensor([1.0, 3.0]))
    layer.running_var.copy_(torch.tensor([4.0, 16.0]))
    assert torch.allclose(layer.train()(values).flatten(), torch.ones(2), atol=1e-4)
    assert layer.running_mean.tolist() == [1, 3]
    batch = torch.randn(2, 2, 1, 1)
    assert torch.equal(layer(batch), nn.BatchNorm2d(2)(batch))


def test_it_steps_by_sgd_with_momentum_at_a_rate_that_decays_to_nothing_as_the_run_ends(tmp_path):
    trainer = _trainer(tmp_path)  # two batches an epoch
    optimizer = trainer.build_optimizer([nn.Parameter(torch.zeros(1))])
    scheduler = trainer.build_scheduler(optimizer, 2)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 1e-4)
    rates = [group["lr"]]
    for _ in range(4):
        optimizer.step()
        scheduler.step()
        rates.append(group["lr"])
    assert rates == pytest.approx([0.01 * (1 - step / 4) ** 0.9 for step in range(5)])


def test_volumes_given_to_a_two_dimensional_trainer_are_a_clear_error(tmp_path):
    with pytest.raises(BadInputError, match="set trainer.num_dims = 3"):
        _trainer(tmp_path, Squares(size=(14, 14, 14))).train(1)


@pytest.mark.parametrize(("batch_size", "kind"), [(1, nn.GroupNorm), (2, BatchNormOfAnySize3d)])
def test_it_trains_on_volumes_that_are_reduced_to_one_voxel(tmp_path, batch_size, kind):
    trainer = _trainer(tmp_path, Squares(3, size=(14, 16, 12)), batch_size=batch_size, num_dims=3)
    trainer.train(1, save_preview=False)
    predictor = CMUNeXtPredictor(trainer.experiment_folder())
    assert _kinds(predictor.model) == {kind}
    assert predictor.logits(torch.randn(1, 14, 16, 12)).shape == (1, 14, 16, 12)


def test_deep_supervision_is_refused_since_there_is_none(tmp_path, picture_plan):
    with pytest.raises(SettingsError, match="no outputs at lower resolutions"):
        _trainer(tmp_path, deep_supervision=True).train(1)
    with pytest.raises(SettingsError, match="no outputs at lower resolutions"):
        _trainer(tmp_path).use_plan(picture_plan(deep_supervision=True))


def test_of_a_plan_it_takes_the_classes_and_leaves_what_was_chosen_for_a_u_net(tmp_path, picture_plan):
    trainer = _trainer(tmp_path)
    trainer.use_plan(dataclasses.replace(picture_plan(), deep_supervision=True))
    assert trainer.num_classes == picture_plan().num_classes == 3
    assert _rates(trainer) == (0.01, 1e-4)
    assert not trainer.options.deep_supervision
    assert (trainer.plan.learning_rate, trainer.plan.deep_supervision) == (0.01, False)


def test_rates_that_the_user_chose_for_the_plan_are_kept(tmp_path, picture_plan):
    trainer = _trainer(tmp_path)
    trainer.use_plan(picture_plan(learning_rate=0.05))
    assert _rates(trainer) == (0.05, 1e-4)


def test_a_layout_asked_of_the_plan_is_refused_since_the_variant_has_its_own(picture_plan):
    with pytest.raises(SettingsError, match=r"is fixed by its size \(S, B, L\): leave out filters"):
        CMUNeXtTrainer.check_plan(picture_plan(filters=(4, 8, 8)))


@pytest.mark.parametrize(("batch_size", "channels", "num_classes"), [(1, 3, 1), (2, 2, 3)])
def test_the_best_checkpoint_in_a_predictor_scores_what_was_recorded(tmp_path, batch_size, channels, num_classes):
    data = Squares(size=(21, 30), channels=channels, num_classes=num_classes)
    trainer = _trainer(tmp_path, data, batch_size=batch_size, num_classes=num_classes, score="dice")
    trainer.train(3, seed=0, save_preview=False)
    predictor, scores = CMUNeXtPredictor(trainer.experiment_folder()), []
    for image, label in data:
        dice = dice_per_class(predictor.predict(image).as_tensor(), label, max(num_classes, 2), batched=False)
        scores.append(float(dice.nanmean()))
    recorded = load_state(trainer.experiment_folder()).checkpoints["checkpoint_best.pth"].score
    assert sum(scores) / len(scores) == recorded


def test_the_experiment_says_which_normalisation_was_chosen_so_that_any_loader_rebuilds_it(tmp_path):
    trainer = _trainer(tmp_path, batch_size=1)
    trainer.train(1, save_preview=False)
    description = json.loads((trainer.experiment_folder() / "experiment.json").read_text())
    assert description["network"]["arguments"]["normalization"] == "group"
    assert description["padding"] == {"kind": "Pad2d", "min_factor": [16, 16], "value": 0.0, "mode": "constant"}
    assert _kinds(CMUNeXtPredictor(trainer.experiment_folder()).model) == {nn.GroupNorm}
