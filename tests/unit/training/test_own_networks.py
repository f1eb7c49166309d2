"""Networks of all kinds that a trainer may be given, and what of them is scored, saved and left behind."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from candy_monai.attachment import attachment_of
from candy_monai.errors import BadInputError
from candy_monai.experiment.state import load_state
from candy_monai.inference.predictor import Predictor
from candy_monai.nn.padding import Pad2d
from tests.crashes import assert_same_run
from tests.own_networks import QUIET, Net, Plain, crashed_and_resumed, log_of, trained, weights_of
from tests.toys import SmallTrainer, Squares, small_trainer


class Padded(Plain):
    def build_padding_module(self):
        return Pad2d(8, mode="reflect")


def test_the_model_is_what_build_network_returned_and_is_given_back_after_the_run(tmp_path):
    network, seen = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()), []

    def train_epoch(self, toolbox):
        seen.append((toolbox.model is network, toolbox.model.network is network, toolbox.model[0] is network[0]))
        toolbox.model.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})
        Plain.train_epoch(self, toolbox)

    for folder in ("1", "2"):  # the same object again
        before = network[0].weight.clone()
        trained(tmp_path / folder, Padded, 1, build_network=lambda *_: network, train_epoch=train_epoch)
        assert (network[0].weight - before).mean() > 0.5
        assert attachment_of(network) is None
    assert seen == 2 * [(True, True, True)]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_can_be_copied_from_within_backward_and_validate_case(tmp_path, compiled):
    copies = []

    def copied(toolbox):
        # In the first batch: a mean teacher. In validation: adaptation to one case.
        copies.append(copy.deepcopy(toolbox.model))

    def backward(self, images, labels, toolbox):
        copied(toolbox)
        return Plain.backward(self, images, labels, toolbox)

    def validate_case(self, image, label, toolbox):
        copied(toolbox)
        return Plain.validate_case(self, image, label, toolbox)

    def build_network(self, example_shape):
        network = Net()
        if compiled:
            network.compile(backend="eager")
        return network

    methods = {"backward": backward, "validate_case": validate_case, "build_network": build_network}
    trainer = trained(tmp_path, Padded, 1, **methods)
    images = torch.randn(1, 1, 13, 10)
    with torch.no_grad():
        for network in copies:
            expected = Net()
            expected.load_state_dict(network.state_dict())
            assert torch.equal(network(images), expected(images))
    assert len(trainer.metrics()["val score"]) == 1


def test_a_network_is_given_back_after_a_run_that_fails(tmp_path):
    network = Net()
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path, build_network=lambda *_: network, build_scheduler=lambda *_: 1 / 0)
    assert attachment_of(network) is None


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_a_loss_through_the_network_s_parts_trains_as_one_through_the_whole(tmp_path, amp):
    whole, parts = (
        trained(tmp_path / str(by_parts), Plain, 4, settings={"amp": amp}, by_parts=by_parts)
        for by_parts in (False, True)
    )
    expected, start = weights_of(whole), trained(tmp_path / "0", Plain, 1, train_epoch=lambda *_: None)
    moved = max(float((expected[name] - value).abs().max()) for name, value in weights_of(start).items())
    for name, value in weights_of(parts).items():
        assert torch.allclose(value, expected[name], atol=1e-7 if amp is None else 0.02 * moved)


def test_in_half_precision_gradients_too_small_for_it_still_train(tmp_path):
    tiny = 1e-7  # the gradients at the outputs are below the smallest half number

    def backward(self, images, labels, toolbox):
        loss = tiny * toolbox.criterion(toolbox.model(images), labels.float())
        loss.backward()
        return loss.item(), {}

    moved = []
    for amp in (None, "fp16"):
        optimizer = {"build_optimizer": lambda _, params: torch.optim.SGD(params, lr=0.1 / tiny)}
        trainer = trained(tmp_path / str(amp), settings={"amp": amp, "ema": False}, backward=backward, **optimizer)
        moved.append(weights_of(trainer)["encoder.weight"])
    start = weights_of(trained(tmp_path / "0", Plain, 1, train_epoch=lambda *_: None))["encoder.weight"]
    assert (moved[1] - moved[0]).norm() < 0.02 * (moved[0] - start).norm()


@pytest.mark.parametrize("amp", [None, "fp16"])
def test_clipping_sees_the_gradients_of_the_mean_loss(tmp_path, amp):
    norms, params_of = [], []

    def build_optimizer(self, params):
        params_of[:] = list(params)
        optimizer = torch.optim.SGD(params_of, lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *_: norms.append(float(nn.utils.get_total_norm([p.grad for p in params_of])))
        )
        return optimizer

    def backward(self, images, labels, toolbox):
        pairs = zip(params_of, self.directions, strict=True)
        loss = sum((parameter * direction).sum() for parameter, direction in pairs)
        loss.backward()
        return 0.0, {}

    count = sum(parameter.numel() for parameter in Net().parameters())
    directions = [torch.full_like(parameter, count**-0.5) for parameter in Net().parameters()]  # of norm 1
    trained(
        tmp_path,
        Plain,
        1,
        settings={"amp": amp, "accumulate": 2},
        build_optimizer=build_optimizer,
        backward=backward,
        directions=directions,
        max_grad_norm=1.1,
    )
    assert norms == pytest.approx([1.0], rel=1e-4)


@pytest.mark.parametrize("by_parts", [False, True])
@pytest.mark.parametrize("ema", [False, True])
def test_a_case_scores_the_same_through_the_parts_of_a_padded_network(tmp_path, ema, by_parts):
    shapes = []

    def validate_case(self, image, label, toolbox):
        score, metrics, output = Padded.validate_case(self, image, label, toolbox)
        shapes.append(tuple(toolbox.criterion.seen))
        return score, metrics, output

    class Criterion(nn.BCEWithLogitsLoss):
        def forward(self, outputs, labels):
            self.seen = outputs.shape
            return super().forward(outputs, labels)

    trainer = trained(
        tmp_path,
        Padded,
        data=Squares(size=(13, 18)),
        settings={"ema": ema},
        build_criterion=lambda _: Criterion(),
        validate_case=validate_case,
        by_parts=by_parts,
    )
    assert set(shapes) == {(1, 1, 13, 18)}
    network = Net()
    network.load_state_dict(weights_of(trainer, "best"))
    padding, scores = Pad2d(8, mode="reflect"), []
    with torch.no_grad():
        for image, label in Squares(size=(13, 18)):
            output = padding.restore(network(padding(image[None])), (13, 18))
            scores.append(-nn.functional.binary_cross_entropy_with_logits(output, label[None].float()).item())
    assert max(trainer.metrics()["val score"]) == pytest.approx(sum(scores) / len(scores), abs=1e-7)


def test_arguments_by_name_reach_the_network_in_training_and_validation(tmp_path):
    def run(self, network, images):
        return network(images, scale=0.0)

    trainer = trained(tmp_path, Padded, 1, data=Squares(size=(13, 18)), run=run)
    assert trainer.metrics()["val score"] == pytest.approx([-math.log(2)])  # of logits that are all 0


@pytest.mark.parametrize("whole", [True, False])
def test_the_best_weights_are_those_that_were_scored_and_the_average_goes_on(tmp_path, whole):
    attributes = {"scored": lambda self, toolbox: toolbox.model, "by_parts": not whole}
    trainer = trained(tmp_path / "whole", Plain, 4, **attributes)
    record = load_state(trainer.experiment_folder()).checkpoints["checkpoint_best.pth"]
    assert record.kind == "raw"
    network = Net()
    network.load_state_dict(weights_of(trainer, "best"))
    with torch.no_grad():
        scores = [
            -nn.functional.binary_cross_entropy_with_logits(network(image[None]), label[None].float()).item()
            for image, label in Squares()
        ]
    assert sum(scores) / len(scores) == pytest.approx(record.score, abs=1e-7)
    assert log_of(trainer).count("validate_case scores toolbox.model") == 1

    options = {"step": 5, "settings": {"save_every": 1}}
    resumed = crashed_and_resumed(tmp_path / "halted", Plain, 4, **options, **attributes)
    assert_same_run(trainer.experiment_folder(), resumed.experiment_folder())


@pytest.mark.parametrize("which", ["both", "neither"])
def test_where_it_is_not_clear_what_was_scored_the_average_is_the_best_and_the_log_says_so(tmp_path, which):
    def validate_case(self, image, label, toolbox):
        outputs = [network(image[None]) for network in (toolbox.model, toolbox.ema) if which == "both"]
        return 0.5, {}, outputs[0][0] if outputs else image

    trainer = trained(tmp_path, validate_case=validate_case)
    assert load_state(trainer.experiment_folder()).checkpoints["checkpoint_best.pth"].kind == "ema"
    assert log_of(trainer).count(f"validate_case called {which} toolbox.model") == 1


@pytest.mark.parametrize("build_ema", [Plain.build_ema, lambda _, model: AveragedModel(model)])
def test_the_average_is_in_evaluation_mode_in_every_epoch_and_after_a_resume(tmp_path, build_ema):
    modes = []

    def backward(self, images, labels, toolbox):
        modes.append(toolbox.ema.training or toolbox.ema.module.training)
        toolbox.ema.train()
        return Plain.backward(self, images, labels, toolbox)

    crashed_and_resumed(tmp_path, Plain, backward=backward, build_ema=build_ema)
    assert modes[::2] == [False] * len(modes[::2])  # the first of each epoch of two batches


@pytest.mark.parametrize(
    "wrap", [lambda network: torch.compile(network, backend="eager"), nn.DataParallel], ids=["compiled", "parallel"]
)
def test_wrapped_networks_train_average_resume_and_save_under_the_network_s_own_names(tmp_path, wrap):
    def run(self, network, images):
        return network(images)

    attributes = {"build_network": lambda *_: wrap(Net()), "run": run}
    plain = trained(tmp_path / "plain", Padded, 3, run=run)
    whole = trained(tmp_path / "whole", Padded, 3, **attributes)
    for name in ("latest", "best"):
        expected = weights_of(plain, name)
        assert weights_of(whole, name).keys() == expected.keys() == Net().state_dict().keys()
        assert all(torch.allclose(value, expected[key], atol=1e-6) for key, value in weights_of(whole, name).items())
    resumed = crashed_and_resumed(tmp_path / "halted", Padded, **attributes)
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())
    folder, (image, _) = whole.experiment_folder(), Squares()[0]
    predicted = [Predictor(folder, network=network).logits(image) for network in (Net(), wrap(Net()))]
    assert torch.allclose(*predicted, atol=1e-6)


def test_compilation_that_fails_is_logged_and_the_network_runs_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Net, "compile", lambda self: setattr(self, "_compiled_call_impl", lambda *_: 1 / 0))
    trainer = trained(tmp_path, settings={"compile_model": True})
    assert "could not be compiled and runs uncompiled: ZeroDivisionError" in log_of(trainer)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_networks_with_normalized_weights_are_averaged(tmp_path, norm):
    def build_network(self, example_shape):
        network = Net()
        norm(network.encoder)
        return network

    trainer = trained(tmp_path, build_network=build_network)
    network = build_network(None, None)
    network.load_state_dict(weights_of(trainer, "best"))
    assert trainer.metrics()["val score"][1] > trainer.metrics()["val score"][0]


def test_complex_images_are_refused_where_the_network_cannot_take_them(tmp_path):
    class Complex(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return torch.complex(image, image), label

    with pytest.raises(BadInputError, match=r"complex64.*image\.abs\(\)"):
        trained(tmp_path, data=Complex(size=(16, 16)))
    assert not list(tmp_path.iterdir())


def _lazy(*_):
    return nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d(), nn.LazyConv2d(1, 1))


def test_lazy_layers_are_initialized_before_the_optimizer_is_built_and_predict(tmp_path):
    trainer = trained(tmp_path, Padded, data=Squares(size=(13, 18)), build_network=_lazy)
    assert trainer.metrics()["val score"][1] > trainer.metrics()["val score"][0]
    assert Predictor(trainer.experiment_folder(), network=_lazy()).predict(Squares(size=(13, 18))[0][0]).shape[-1] == 18


def test_lazy_layers_that_cannot_be_initialized_are_refused_before_anything_is_written(tmp_path):
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LazyConv2d(1, 1)

        def forward(self, images, time):
            return self.layer(images * time)

    with pytest.raises(BadInputError, match="build_network"):
        trained(tmp_path, build_network=lambda *_: TwoInputs())
    assert not list(tmp_path.iterdir())


def test_a_network_in_double_precision_stays_in_it(tmp_path):
    kinds, squares = [], Squares()
    images = torch.stack([image for image, _ in squares]).double()
    data = TensorDataset(images, torch.stack([label for _, label in squares]))

    class Double(Plain):
        def build_network(self, example_shape):
            return Net().double()

        def run(self, network, images):
            output = network(images)
            kinds.append(output.dtype)
            return output

    trainer = Double(tmp_path, DataLoader(data, 2), DataLoader(data), console=False)
    trainer.train(1, **QUIET)
    assert set(kinds) == {torch.float64}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_image_that_is_nan_spoils_no_running_statistics_where_such_steps_are_left_out(tmp_path, accumulate):
    squares = Squares()
    bad = [(image * math.nan, label) if index == 2 else (image, label) for index, (image, label) in enumerate(squares)]

    def build_network(self, example_shape):
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))

    cls = type("Normalized", (Plain,), {"build_network": build_network})
    trainer = cls(tmp_path, DataLoader(bad, 1), DataLoader(squares, 1), console=False)
    trainer.train(2, non_finite="skip", accumulate=accumulate, **QUIET)
    weights = weights_of(trainer)
    assert all(value.isfinite().all() for value in weights.values())
    assert weights["1.num_batches_tracked"] == 2 * 3  # all but the bad one in each epoch
    assert all(map(math.isfinite, trainer.metrics()["val score"]))


def test_batch_normalisation_is_synchronised_on_request_and_its_weights_keep_their_names(tmp_path):
    class Normalised(SmallTrainer):
        def build_network(self, example_shape):
            self.built = nn.Sequential(nn.Conv2d(example_shape[0], 1, 3, padding=1), nn.BatchNorm2d(1))
            return self.built

    weights = []
    for asked in (False, True):
        trainer = small_trainer(tmp_path, cls=Normalised)
        trainer.train(1, **QUIET, save_report=False, sync_batchnorm=asked)
        assert isinstance(trainer.built[1], nn.SyncBatchNorm) == asked
        weights.append(torch.load(trainer.experiment_folder() / "checkpoint_latest.pth", weights_only=True))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
