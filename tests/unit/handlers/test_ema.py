from __future__ import annotations

import itertools

import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointLoader, CheckpointSaver, StatsHandler, ValidationHandler

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.handlers import EMAHandler
from candy_monai.nn.ema import ExponentialMovingAverage
from tests.engines import host_script, make_network, same, trained_alone, weights_of


class Validated:
    """An evaluator's handler that keeps the weights that it finds in the network."""

    def __init__(self, network):
        self.network, self.seen = network, []

    def attach(self, engine):
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, _engine):
        self.seen.append(weights_of(self.network))


def averaged_script(**options):
    made = []

    def ema(network, evaluator):
        made.append(EMAHandler(network, decay=0.9))
        return made[0]

    return host_script(ema, **options), made[0]


def expected_average():
    """Return the average over the host's script, computed beside it."""
    script = host_script()
    average = ExponentialMovingAverage(script.network, decay=0.9)
    script.trainer.optimizer.register_step_post_hook(lambda *_: average.update_parameters(script.network))
    script.trainer.run()
    return weights_of(average.module)


def test_the_training_goes_on_to_the_bit_as_without_it():
    script, _ = averaged_script()
    script.trainer.run()
    assert same(weights_of(script.network), trained_alone())


def test_the_evaluator_and_its_savers_use_the_average_whatever_the_order(tmp_path):
    results = []
    for number, order in enumerate(itertools.permutations(range(3))):
        script, handler = averaged_script(arrange=lambda handlers, order=order: [handlers[index] for index in order])
        folder = tmp_path / str(number)
        seen = Validated(script.network)
        seen.attach(script.evaluator)
        saver = CheckpointSaver(
            str(folder), {"net": script.network}, save_key_metric=True, key_metric_filename="best.pt"
        )
        saver.attach(script.evaluator)
        script.trainer.run()
        assert same(seen.seen[-1], weights_of(handler.average))
        assert same(seen.seen[-2], seen.seen[-1])
        assert not same(weights_of(script.network), weights_of(handler.average))
        best = torch.load(folder / "best.pt", weights_only=True)
        best_epoch = script.evaluator.state.best_metric_epoch
        assert same(dict(best.get("net", best)), seen.seen[2 * best_epoch - 1])
        results.append((weights_of(handler.average), script.evaluator.state.metrics["val_mean_dice"]))
    assert all(same(average, results[0][0]) and dice == results[0][1] for average, dice in results)


def test_it_averages_after_each_step_of_the_optimizer():
    script, handler = averaged_script()
    script.trainer.run()
    assert same(weights_of(handler.average), expected_average())


def test_accumulated_gradients_make_one_step():
    script, handler = averaged_script(accumulation_steps=3)
    script.trainer.run()
    assert handler.state_dict()["n_averaged"] == 3


def test_an_evaluator_within_the_epoch_uses_the_average_of_that_moment():
    """Its handler was attached before ours, to the event that follows the optimizer's step."""
    script, handler = averaged_script(max_epochs=1, arrange=lambda handlers: [])
    ValidationHandler(1, script.evaluator, epoch_level=False).attach(script.trainer)
    handler.attach(script.trainer)
    averages, seen = [], Validated(script.network)
    seen.attach(script.evaluator)
    script.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: averages.append(weights_of(handler.average)))
    script.trainer.run()
    assert len(averages) == 3
    assert all(same(average, found) for average, found in zip(averages, seen.seen[::2], strict=True))


def test_an_evaluator_that_fails_leaves_the_weights_as_they_were():
    script, _ = averaged_script()

    def fail():
        raise RuntimeError("told to")

    before = []
    script.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: before.append(weights_of(script.network)))
    script.evaluator.add_event_handler(Events.ITERATION_COMPLETED, fail)
    with pytest.raises(RuntimeError, match="told to"):
        script.trainer.run()
    assert same(weights_of(script.network), before[-1])


def test_after_training_the_evaluator_goes_on_to_use_the_average():
    script, handler = averaged_script()
    script.trainer.run()
    at_the_end = script.evaluator.state.metrics["val_mean_dice"]
    seen = Validated(script.network)
    seen.attach(script.evaluator)
    script.evaluator.run()
    assert script.evaluator.state.metrics["val_mean_dice"] == at_the_end
    assert same(seen.seen[0], weights_of(handler.average))


def test_it_begins_with_the_weights_that_a_checkpoint_brings(tmp_path):
    other = make_network()
    torch.save(other.state_dict(), tmp_path / "start.pt")
    script, handler = averaged_script(max_epochs=1)
    CheckpointLoader(str(tmp_path / "start.pt"), {"net": script.network}).attach(script.trainer)
    first = []
    script.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: first.append(weights_of(handler.average)))
    script.trainer.run()
    assert same(first[0], weights_of(other))


def test_its_state_goes_into_a_saver_and_back(tmp_path):
    script, handler = averaged_script()
    CheckpointSaver(str(tmp_path), {"ema": handler}, save_final=True, final_filename="end.pt").attach(script.trainer)
    script.trainer.run()
    again, other = averaged_script()
    CheckpointLoader(str(tmp_path / "end.pt"), {"ema": other}).attach(again.trainer)
    begun = []
    again.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: begun.append(weights_of(other.average)))
    again.trainer.run()
    assert same(begun[0], weights_of(handler.average))


def test_another_network_than_the_trainers_is_refused():
    script = host_script(lambda *_: EMAHandler(make_network()))
    with pytest.raises(BadInputError, match="another network than the trainer"):
        script.trainer.run()


def test_without_an_evaluator_it_says_that_nothing_would_use_the_average():
    script = host_script(lambda network, _: EMAHandler(network), validates=False)
    with pytest.raises(BadInputError, match="no evaluator of its network"):
        script.trainer.run()


@pytest.mark.parametrize("validator", [3, [3]])
def test_what_is_no_evaluator_is_refused_at_once(validator):
    with pytest.raises(BadInputError, match="validator must be one of MONAI's evaluators.* got int"):
        EMAHandler(make_network(), validator=validator)


def test_an_evaluator_that_a_function_runs_is_found():
    script, handler = averaged_script(validates=False)
    evaluator = script.evaluator

    @script.trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        evaluator.run(engine.state.epoch)

    seen = Validated(script.network)
    seen.attach(script.evaluator)
    script.trainer.run()
    assert same(seen.seen[-1], weights_of(handler.average))


def test_in_an_evaluators_list_it_says_where_it_belongs():
    with pytest.raises(BadInputError, match="put it into the trainer's train_handlers"):
        host_script(val_handlers=[EMAHandler(make_network())])


def test_a_second_one_is_refused():
    with pytest.raises(BadInputError, match="two handlers of the class EMAHandler"):
        host_script(lambda network, _: EMAHandler(network), lambda network, _: EMAHandler(network))


def test_a_decay_that_is_none_is_refused_at_once():
    with pytest.raises(SettingsError, match="decay"):
        EMAHandler(make_network(), decay=1.0)


def test_a_stats_handler_before_or_behind_changes_nothing():
    results = []
    for arrange in (list, lambda handlers: list(reversed(handlers))):
        script, handler = averaged_script(arrange=arrange)
        StatsHandler(output_transform=lambda _: None).attach(script.trainer)
        script.trainer.run()
        results.append(weights_of(handler.average))
    assert same(*results)
