import itertools
import json
from contextlib import nullcontext

import pytest
import torch

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.samples.store import CaseStore
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.processes import Processes
from candy_monai.recipes import planned_run
from candy_monai.recipes.budget import Speed
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.planned_run import PlannedRun, case_loader, num_workers, patch_loader
from candy_monai.recipes.prepare import evenly_spaced, prepare_dataset
from candy_monai.recipes.trainers import chosen_trainer
from candy_monai.training.signals import Interrupted
from tests.plans import small_plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    phantom = write_phantom_dataset(folder / "d", num_cases=3, shape=(24, 24, 16))
    return CaseStore.build(NNUNetDataset(phantom), small_plan(), folder / "store")


def test_an_epoch_has_the_planned_steps_of_the_planned_patches(store):
    plan = small_plan()
    loader = patch_loader(store, store.case_ids, plan, seed=0, device=CPU)
    assert len(loader) == plan.iterations_per_epoch
    batch = next(iter(loader))
    assert batch["image"].shape == (plan.batch_size, 1, *plan.patch_shape)
    assert batch["label"].shape == (plan.batch_size, 1, *plan.patch_shape)
    assert len(batch["case_id"]) == plan.batch_size


def test_a_seed_and_an_epoch_decide_the_patches(store):
    def first(seed, epoch):
        loader = patch_loader(store, store.case_ids, small_plan(), seed=seed, device=CPU)
        loader.sampler.set_epoch(epoch)
        return next(iter(loader))["image"]

    assert torch.equal(first(1, 0), first(1, 0))
    assert not torch.equal(first(1, 0), first(1, 1))
    assert not torch.equal(first(1, 0), first(2, 0))


def test_whole_cases_come_one_at_a_time_and_no_case_is_no_loader(store):
    loader = case_loader(store, store.case_ids, device=CPU)
    assert [batch["case_id"] for batch in loader] == [[case_id] for case_id in store.case_ids]
    assert case_loader(store, (), device=CPU) is None


def test_some_of_the_cases_are_spread_over_all():
    cases = [f"case_{index}" for index in range(16)]
    assert evenly_spaced(cases, 4) == ("case_0", "case_4", "case_8", "case_12")
    assert evenly_spaced(cases, 99) == evenly_spaced(cases, None) == tuple(cases)


@pytest.mark.parametrize("num_cases", [1, 2, 7, 32, 33])
def test_a_smaller_choice_of_cases_is_part_of_every_larger_one_in_the_same_order(num_cases):
    cases = [f"case_{index}" for index in range(num_cases)]
    choices = [evenly_spaced(cases, count) for count in range(num_cases + 1)]
    assert [len(choice) for choice in choices] == list(range(num_cases + 1))
    assert all(set(small) < set(large) for small, large in itertools.pairwise(choices))
    assert all(list(choice) == sorted(choice, key=cases.index) for choice in choices)


def test_a_cpu_prepares_batches_itself_and_a_gpu_has_them_prepared(monkeypatch):
    monkeypatch.setattr("candy_monai.recipes.planned_run.usable_cores", lambda: 32)
    assert num_workers(CPU) == 0
    assert num_workers(torch.device("cuda")) == 8


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("phantom") / "d", num_cases=5, shape=(24, 24, 16))


@pytest.fixture
def fitted(phantom, tmp_path, monkeypatch):
    """Return what fits a run with some options into an hour, on a machine that takes so long for a step and a case."""

    def fit(step_s, case_s=0.01, measured=None, **keywords):
        options = TrainOptions(out=tmp_path, device="cpu", budget_s=3600.0, **keywords)
        trainer, messages = chosen_trainer(options), []
        prepared = prepare_dataset(phantom, options, device=CPU, trainer=trainer, on_progress=messages.append)
        speed = Speed(amp=None, step_s=step_s, case_s=case_s)

        def measure(_trainer, *, seconds, precisions):
            if measured is not None:
                measured.append(precisions)
            return speed

        monkeypatch.setattr(planned_run, "measure_speed", measure)
        run = PlannedRun(
            prepared=prepared,
            options=options,
            trainer_class=trainer,
            own=OwnTransforms(),
            frontend=None,
            seed=0,
            device=CPU,
            processes=Processes.from_environment(),
        )
        return run.fitted_to(lambda: 3600.0, messages.append), messages

    return fit


def test_a_budget_says_in_two_lines_what_was_weighed_and_chosen(fitted):
    run, messages = fitted(1.0)
    weighed, chosen = [text for text in messages if text.startswith(("Considered", "Chosen"))]
    plan = run.prepared.plan
    network = f"3d, network of {plan.filters[0]} to {plan.filters[-1]} filters, {plan.batch_size} patches of "
    assert chosen.startswith(f"Chosen: {network}")
    assert chosen.endswith(f" of {plan.iterations_per_epoch} steps fit into the budget")
    assert all(candidate["verdict"] in weighed for candidate in run.budget.candidates[1:])
    assert not any(text.startswith("Warning: only") for text in messages)


@pytest.mark.parametrize(("amp", "first"), [("auto", None), ("off", (None,)), ("bf16", ("bf16",))])
def test_a_budget_measures_in_the_precision_alone_that_was_asked_for(fitted, amp, first):
    measured = []
    fitted(20.0, measured=measured, amp=amp)
    assert measured[0] == first
    assert len(measured) > 1
    assert all(precisions == (first or [None]) for precisions in measured[1:])


def test_a_network_whose_weights_come_from_elsewhere_keeps_its_width(fitted, tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pt")
    filters = [fitted(1e-3, **start)[0].prepared.plan.filters for start in ({}, {"init_from": tmp_path / "w.pt"})]
    assert filters[0] == tuple(2 * width for width in filters[1])


@pytest.mark.parametrize("chosen", [{"network": "SegResNet"}, {"bundle": "segresnet"}])
def test_of_a_network_with_widths_of_its_own_no_filters_are_said(fitted, chosen):
    run, messages = fitted(20.0, **chosen)
    assert not any("filters" in text for text in messages)
    assert [candidate["filters"] for candidate in run.budget.candidates] == [None] * len(run.budget.candidates)
    plan = run.prepared.plan
    assert all(size % divisor == 0 for size, divisor in zip(plan.patch_shape, plan.divisor, strict=True))


def test_of_a_plan_that_was_given_only_the_length_is_decided(fitted, tmp_path):
    given = fitted(1.0)[0].prepared.plan
    (tmp_path / "plan.json").write_text(json.dumps(given.to_dict()))
    run, messages = fitted(60.0, plan=tmp_path / "plan.json")
    kept = ("filters", "patch_shape", "batch_size", "slice_axis")
    assert [getattr(run.prepared.plan, name) for name in kept] == [getattr(given, name) for name in kept]
    assert run.prepared.plan.iterations_per_epoch < given.iterations_per_epoch
    assert "No other plans were considered, since the options leave only one" in messages


def test_a_run_that_validates_for_most_of_its_time_says_so(fitted):
    _, messages = fitted(0.5, case_s=1000.0)
    assert any("give a longer budget" in text and "1000.0 s" in text for text in messages)


@pytest.mark.parametrize(("case_s", "may_be_late"), [(140.0, False), (160.0, True)])  # a third of a quarter of 3600 s
def test_where_one_case_takes_so_long_that_a_slower_machine_ends_late_this_is_said_beforehand(
    fitted, case_s, may_be_late
):
    _, messages = fitted(0.5, case_s=case_s)
    assert any("may end later than its budget" in text for text in messages) == may_be_late


def test_a_plan_knows_whether_its_length_was_asked_for_or_is_the_budget_s(phantom, fitted, tmp_path):
    options = TrainOptions(out=tmp_path, device="cpu", num_epochs=3)
    asked = prepare_dataset(phantom, options, device=CPU, trainer=chosen_trainer(options), on_progress=lambda _: None)
    assert (asked.plan.num_epochs, "num_epochs" in asked.plan.chosen) == (3, True)
    run, _ = fitted(1.0)
    assert {"num_epochs", "iterations_per_epoch"} <= set(run.fit.decided)


@pytest.mark.parametrize(("error", "is_told"), [(KeyboardInterrupt(), True), (Interrupted("SIGINT"), False)])
def test_ctrl_c_while_a_run_is_scored_says_how_to_go_on(fitted, monkeypatch, tmp_path, error, is_told):
    class Trained:
        messages = ()

        def train(self, **_):
            pass

        def experiment_folder(self):
            return tmp_path / "run"

        def log(self, message):
            self.messages += (message,)

    def interrupted(*_):
        raise error

    run, _ = fitted(1.0)
    trainer = Trained()
    monkeypatch.setattr(PlannedRun, "_score", interrupted)
    monkeypatch.setattr(PlannedRun, "_ready_trainer", lambda _: trainer)
    monkeypatch.setattr(planned_run, "observed_beyond_the_run", lambda _: nullcontext())
    with pytest.raises(KeyboardInterrupt):
        run.train()
    how = f"To resume this run: candy-monai resume {tmp_path / 'run'} --trainer "
    assert [message.startswith(how) for message in trainer.messages] == [True] * is_told
