from __future__ import annotations

import csv
import errno
import json
import logging
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointSaver, EarlyStopHandler, MeanDice, StatsHandler, ValidationHandler, from_engine

from candy_monai.cli.main import main
from candy_monai.errors import BadInputError, ExperimentError, SettingsError
from candy_monai.experiment import checkpoints
from candy_monai.experiment.description import read_description
from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.runs import summarize
from candy_monai.experiment.state import load_state
from candy_monai.handlers import EMAHandler, ExperimentFolderHandler
from candy_monai.inference.predictor import Predictor
from tests.engines import Raises, host_script, make_network, only_run, same, trained_alone, weights_of


def train(tmp_path, *others, resume=None, handler_options=None, **options):
    """Run the script with a folder, and return it and the folder."""
    handler = ExperimentFolderHandler(tmp_path, resume=resume, **(handler_options or {}))
    script = host_script(handler, *others, **options)
    script.trainer.run()
    return script, only_run(tmp_path)


def interrupted(tmp_path, error, *others, **options):
    """Run the script until a handler raises."""
    script = host_script(ExperimentFolderHandler(tmp_path), *others, Raises(error, iteration=8), **options)
    with pytest.raises(type(error)):
        script.trainer.run()
    return script


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


class TestRecording:
    def test_the_weights_are_those_of_the_host_alone(self, tmp_path):
        script, folder = train(tmp_path)
        alone = trained_alone()
        assert same(weights_of(script.network), alone)
        assert same(torch.load(folder / "checkpoint_latest.pth", weights_only=True), alone)

    def test_the_folder_is_whole(self, tmp_path, curves):
        _, folder = train(tmp_path, handler_options={"note": "first"})
        names = {path.name for path in folder.iterdir()}
        assert {"experiment.json", "logs.txt", "metrics.csv", "progress.png", "state.pt"} <= names
        assert {f"checkpoint_{which}.pth" for which in ("best", "latest", 1, 2, 3)} <= names
        description = json.loads((folder / "experiment.json").read_text())
        assert (description["host"], description["settings"]["note"]) == ("monai", "first")
        assert description["network"]["example_shape"] == [1, 16, 16]
        summary = summarize(folder)
        assert (summary.epochs_done, summary.is_finished) == (3, True)

    def test_metrics_are_the_engines(self, tmp_path):
        losses, dices = [], []
        script = host_script(ExperimentFolderHandler(tmp_path))
        script.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"])
        )
        script.evaluator.add_event_handler(
            Events.COMPLETED, lambda engine: dices.append(engine.state.metrics["val_mean_dice"])
        )
        script.trainer.run()
        metrics = load_metrics(only_run(tmp_path) / "metrics.csv")
        expected = [sum(losses[first : first + 3]) / 3 for first in (0, 3, 6)]
        assert metrics["combined loss"] == pytest.approx(expected)
        assert metrics["val_mean_dice"] == metrics["val score"] == dices
        assert metrics["learning rate"] == [0.02, 0.02, 0.01]

    def test_the_best_weights_are_those_with_the_best_score(self, tmp_path):
        by_epoch = []
        script = host_script(ExperimentFolderHandler(tmp_path), max_epochs=4)
        script.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: by_epoch.append(weights_of(script.network)))
        script.trainer.run()
        folder = only_run(tmp_path)
        scores = load_metrics(folder / "metrics.csv")["val score"]
        best = torch.load(folder / "checkpoint_best.pth", weights_only=True)
        assert same(best, by_epoch[scores.index(max(scores))])

    @pytest.mark.slow
    def test_the_order_of_the_handlers_changes_nothing(self, tmp_path):
        def everything(folder, order):
            script = host_script(
                ExperimentFolderHandler(folder),
                lambda network, _: EMAHandler(network, decay=0.9),
                arrange=lambda handlers: [handlers[index] for index in order],
            )
            script.trainer.run()
            run = only_run(folder)
            rows = list(csv.DictReader((run / "metrics.csv").open()))
            numbers = [{name: row[name] for name in sorted(row) if name != "epoch duration"} for row in rows]
            weights = [torch.load(run / f"checkpoint_{name}.pth", weights_only=True) for name in ("best", "latest")]
            return numbers, weights, load_state(run)

        first = everything(tmp_path / "first", (0, 1, 2, 3))
        for number, order in enumerate([(3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1), (3, 0, 2, 1)]):
            numbers, weights, state = everything(tmp_path / str(number), order)
            assert numbers == first[0]
            assert all(same(*pair) for pair in zip(weights, first[1], strict=True))
            assert state.trainer.extra["own"].keys() == first[2].trainer.extra["own"].keys()
            assert state.trainer.extra["own"]["LrScheduleHandler.lr_scheduler"]["last_epoch"] == 3

    def test_with_an_average_the_best_weights_are_its(self, tmp_path):
        made = []

        def ema(network, _):
            made.append(EMAHandler(network, decay=0.5))
            return made[0]

        script, folder = train(tmp_path, ema)
        state = load_state(folder)
        assert state.kind == "ema"
        assert same(torch.load(folder / "checkpoint_3.pth", weights_only=True), weights_of(made[0].average))
        assert same(torch.load(folder / "checkpoint_latest.pth", weights_only=True), weights_of(script.network))

    def test_of_a_metric_of_which_less_is_better_the_score_is_the_negative(self, tmp_path):
        script, folder = train(tmp_path, evaluator_options={"metric_cmp_fn": lambda new, best: new < best})
        metrics = load_metrics(folder / "metrics.csv")
        assert metrics["val score"] == [-value for value in metrics["val_mean_dice"]]
        assert load_state(folder).progress.best_epoch == script.evaluator.state.best_metric_epoch

    def test_without_an_evaluator_there_is_no_score_and_the_log_says_so(self, tmp_path):
        _, folder = train(tmp_path, validates=False)
        assert "val score" not in load_metrics(folder / "metrics.csv")
        assert "the trainer runs no evaluator" in (folder / "logs.txt").read_text()
        assert (folder / "checkpoint_best.pth").read_bytes() == (folder / "checkpoint_3.pth").read_bytes()

    def test_an_evaluator_without_a_key_metric_gives_no_score_and_the_log_says_so(self, tmp_path):
        _, folder = train(tmp_path, key_metric=False)
        assert "the evaluator has no key metric" in (folder / "logs.txt").read_text()

    def test_of_several_evaluators_it_asks_for_one_and_records_both(self, tmp_path):
        def second(_, evaluator):
            other = host_script(validates=False).evaluator
            other.network = evaluator.network
            return ValidationHandler(1, other)

        script = host_script(ExperimentFolderHandler(tmp_path), second)
        with pytest.raises(BadInputError, match="runs 2 evaluators: give the one"):
            script.trainer.run()
        script = host_script(lambda _, evaluator: ExperimentFolderHandler(tmp_path, validator=evaluator), second)
        script.trainer.run()
        metrics = load_metrics(only_run(tmp_path) / "metrics.csv")
        assert metrics["val2 val_mean_dice"] == metrics["val_mean_dice"] == metrics["val score"]

    def test_a_metric_that_is_misspelt_is_said_before_training(self, tmp_path):
        script = host_script(ExperimentFolderHandler(tmp_path, key_metric_name="val_mean_dise"))
        with pytest.raises(BadInputError, match="did you mean|Did you mean"):
            script.trainer.run()
        assert not list(tmp_path.iterdir())

    def test_an_epoch_that_is_not_validated_has_no_score(self, tmp_path):
        script = host_script(
            lambda _, evaluator: ValidationHandler(2, evaluator),
            ExperimentFolderHandler(tmp_path),
            validates=False,
            max_epochs=4,
        )
        script.trainer.run()
        text = (only_run(tmp_path) / "metrics.csv").read_text()
        scores = [row["val score"] for row in csv.DictReader(text.splitlines())]
        assert [bool(score) for score in scores] == [False, True, False, True]

    def test_a_validation_within_the_epoch_is_no_score_of_its_end_and_the_log_says_so(self, tmp_path):
        script = host_script(
            lambda _, evaluator: ValidationHandler(2, evaluator, epoch_level=False),
            ExperimentFolderHandler(tmp_path),
            validates=False,
            max_epochs=2,
        )
        script.trainer.run()  # after the 2nd of 3 iterations, then after the 4th and the 6th of 6
        folder = only_run(tmp_path)
        rows = list(csv.DictReader((folder / "metrics.csv").open()))
        assert [bool(row["val score"]) for row in rows] == [False, True]
        assert all(row["val_mean_dice"] for row in rows)
        assert "is no score" not in (folder / "logs.txt").read_text()
        assert "are not the score of" in (folder / "logs.txt").read_text()

    def test_batches_may_be_pairs_and_outputs_whole(self, tmp_path):
        class Pairs(torch.utils.data.Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, index):
                return torch.full((1, 16, 16), float(index)), torch.zeros(1, 16, 16)

        script = host_script(ExperimentFolderHandler(tmp_path), decollate=False, validates=False)
        script.trainer.data_loader = torch.utils.data.DataLoader(Pairs(), batch_size=2)
        script.trainer.state.epoch_length = 2
        script.trainer.run()
        folder = only_run(tmp_path)
        assert len(load_metrics(folder / "metrics.csv")["combined loss"]) == 3
        assert read_description(folder).network.example_shape == (1, 16, 16)

    def test_an_output_transform_names_several_numbers(self, tmp_path):
        def two(output):
            return {"dice loss": output[0]["loss"], "twice": 2 * output[0]["loss"]}

        _, folder = train(tmp_path, handler_options={"output_transform": two})
        metrics = load_metrics(folder / "metrics.csv")
        assert metrics["twice"] == pytest.approx([2 * value for value in metrics["dice loss"]])

    def test_a_metric_of_several_classes_has_a_column_for_each(self, tmp_path):
        by_class = MeanDice(reduction="mean_batch", output_transform=from_engine(["pred", "label"]))
        _, folder = train(tmp_path, evaluator_options={"additional_metrics": {"by class": by_class}})
        assert {"val by class 1", "val by class 2"} <= load_metrics(folder / "metrics.csv").keys()

    def test_metrics_of_the_trainer_are_recorded_too(self, tmp_path):
        dice = MeanDice(output_transform=lambda output: [[case[name] for case in output] for name in ("pred", "label")])
        script, folder = train(tmp_path, key_train_metric={"train dice": dice})
        assert load_metrics(folder / "metrics.csv")["train dice"][-1] == script.trainer.state.metrics["train dice"]

    def test_mixed_precision_and_accumulation_leave_the_weights_as_they_are(self, tmp_path):
        options = {"amp": True, "accumulation_steps": 2}
        script, _ = train(tmp_path, **options)
        assert same(weights_of(script.network), trained_alone(**options))

    def test_another_stop_of_the_hosts_finishes_the_run(self, tmp_path):
        def stop(_, evaluator):
            evaluator_stop.append(EarlyStopHandler(1, lambda engine: 0.0))
            evaluator_stop[0].attach(evaluator)
            return ExperimentFolderHandler(tmp_path)

        evaluator_stop = []
        script = host_script(stop, max_epochs=5)
        evaluator_stop[0].set_trainer(script.trainer)
        script.trainer.run()
        folder = only_run(tmp_path)
        summary = summarize(folder)
        assert (summary.epochs_done, summary.is_finished) == (2, True)
        assert "ended by another handler after epoch 2" in (folder / "logs.txt").read_text()

    def test_a_handler_that_lowers_max_epochs_makes_the_run_shorter(self, tmp_path):
        script = host_script(ExperimentFolderHandler(tmp_path), max_epochs=4)
        script.trainer.add_event_handler(
            Events.EPOCH_COMPLETED(once=1), lambda engine: setattr(engine.state, "max_epochs", 2)
        )
        script.trainer.run()
        folder = only_run(tmp_path)
        summary = summarize(folder)
        assert (summary.epochs_done, summary.is_finished) == (2, True)
        text = (folder / "logs.txt").read_text()
        assert "ended by another handler after epoch 2" in text
        assert "Interrupted" not in text

    def test_a_trainer_that_is_ended_within_an_epoch_keeps_its_last_weights(self, tmp_path):
        script = host_script(ExperimentFolderHandler(tmp_path))
        script.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), script.trainer.terminate)
        script.trainer.run()
        folder = only_run(tmp_path)
        assert same(torch.load(folder / "checkpoint_latest.pth", weights_only=True), weights_of(script.network))
        assert summarize(folder).is_finished

    def test_running_again_for_more_epochs_goes_on_in_the_same_folder(self, tmp_path):
        script, folder = train(tmp_path)
        script.trainer.state.max_epochs = 5
        script.trainer.run()
        assert only_run(tmp_path) == folder
        assert len(load_metrics(folder / "metrics.csv")["combined loss"]) == 5
        longer = host_script()
        longer.trainer.run()
        longer.trainer.state.max_epochs = 5
        longer.trainer.run()
        assert same(weights_of(script.network), weights_of(longer.network))

    def test_messages_go_to_pythons_logging(self, tmp_path, caplog):
        with caplog.at_level(logging.INFO, logger="candy_monai.handlers"):
            train(tmp_path)
        assert any("Best validation score" in record.message for record in caplog.records)

    def test_a_folder_that_cannot_be_made_is_said_before_the_first_step(self, tmp_path):
        (tmp_path / "file").write_text("")
        script = host_script(ExperimentFolderHandler(tmp_path / "file"))
        with pytest.raises(ExperimentError):
            script.trainer.run()
        assert script.trainer.state.iteration == 0

    def test_a_full_disk_does_not_end_the_training(self, tmp_path, monkeypatch, caplog):
        save = checkpoints._save
        script = host_script(ExperimentFolderHandler(tmp_path), max_epochs=4)
        script.trainer.add_event_handler(
            Events.EPOCH_STARTED,
            # The second epoch is written at some time before the third one is saved.
            lambda engine: monkeypatch.setattr(checkpoints, "_save", full if engine.state.epoch in (2, 3) else save),
        )
        script.trainer.run()
        assert same(weights_of(script.network), trained_alone(max_epochs=4))
        (said,) = [record.message for record in caplog.records if "cannot be written" in record.message]
        assert "(No space left on device). The training continues" in said
        folder = only_run(tmp_path)
        assert len(load_metrics(folder / "metrics.csv")["val score"]) == 4
        assert summarize(folder).is_finished

    def test_running_again_after_a_failed_save_goes_on_from_the_epoch_that_was_trained(self, tmp_path, monkeypatch):
        script = host_script(ExperimentFolderHandler(tmp_path), max_epochs=3)
        last = Events.EPOCH_STARTED(once=3)
        script.trainer.add_event_handler(last, lambda: monkeypatch.setattr(checkpoints, "_save", full))
        script.trainer.run()
        monkeypatch.undo()
        folder = only_run(tmp_path)
        assert load_state(folder).progress.epoch < 3
        script.trainer.state.max_epochs = 5
        script.trainer.run()
        assert load_state(folder).progress.epoch == 5
        assert summarize(folder).is_finished
        _, whole = train(tmp_path / "whole", max_epochs=5)
        found, expected = (load_metrics(each / "metrics.csv") for each in (folder, whole))
        assert all(found[name] == expected[name] for name in ("combined loss", "val score"))

    def test_a_score_outside_of_its_range_is_said_with_its_sign(self, tmp_path, caplog):
        options = {"metric_cmp_fn": lambda new, best: new < best}
        train(tmp_path, handler_options={"score_range": (0, 1)}, evaluator_options=options)
        (said,) = [record.message for record in caplog.records if "score_range=(0, 1)" in record.message]
        assert "the negative of val_mean_dice" in said

    def test_a_score_range_that_is_none_is_refused_at_once(self, tmp_path):
        with pytest.raises(SettingsError, match="score_range"):
            ExperimentFolderHandler(tmp_path, score_range=(1, 0))


class TestInterruption:
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("told to")], ids=["Ctrl-C", "an error"])
    @pytest.mark.parametrize("first", [True, False], ids=["StatsHandler first", "StatsHandler last"])
    def test_an_interrupted_run_leaves_a_readable_folder(self, tmp_path, error, first):
        stats = StatsHandler(output_transform=lambda _: None)
        interrupted(tmp_path, error, arrange=lambda made: [stats, *made] if first else [*made, stats])
        folder = only_run(tmp_path)
        assert load_state(folder).progress.epoch == 2
        assert len(load_metrics(folder / "metrics.csv")["val score"]) == 2
        text = (folder / "logs.txt").read_text()
        assert f"Interrupted in epoch 3: {type(error).__name__}" in text
        assert 'resume="latest"' in text

    def test_an_error_that_another_handler_takes_is_said(self, tmp_path):
        script = host_script(ExperimentFolderHandler(tmp_path), Raises(KeyboardInterrupt(), iteration=8))
        script.trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda _engine, _error: None)
        script.trainer.run()
        folder = only_run(tmp_path)
        assert "a handler suppressed the error" in (folder / "logs.txt").read_text()
        assert summarize(folder).is_finished is False

    @pytest.mark.parametrize("averages", [False, True], ids=["raw", "averaged"])
    def test_a_resumed_run_reaches_the_bits_of_one_that_was_never_interrupted(self, tmp_path, averages):
        ema = [lambda network, _: EMAHandler(network, decay=0.9)] if averages else []
        interrupted(tmp_path / "resumed", RuntimeError("told to"), *ema, max_epochs=4)
        script, folder = train(tmp_path / "resumed", *ema, resume="latest", max_epochs=4, seed=77)
        whole, expected = train(tmp_path / "whole", *ema, max_epochs=4)
        assert same(weights_of(script.network), weights_of(whole.network))
        assert script.schedule.state_dict() == whole.schedule.state_dict()
        for name in ("best", "latest"):
            pair = [torch.load(path / f"checkpoint_{name}.pth", weights_only=True) for path in (folder, expected)]
            assert same(*pair)
        metrics, others = load_metrics(folder / "metrics.csv"), load_metrics(expected / "metrics.csv")
        assert all(metrics[name] == others[name] for name in others if name != "epoch duration")

    def test_handlers_of_the_host_go_on_too(self, tmp_path):
        def patience(_, evaluator):
            handler = EarlyStopHandler(3, lambda engine: 0.0)
            handler.attach(evaluator)
            handlers.append(handler)
            return CheckpointSaver(str(tmp_path / "saved"), {"net": torch.nn.Linear(1, 1)}, save_interval=1, n_saved=2)

        handlers = []
        script = host_script(ExperimentFolderHandler(tmp_path), patience, Raises(RuntimeError("x"), iteration=8))
        handlers[0].set_trainer(script.trainer)
        with pytest.raises(RuntimeError):
            script.trainer.run()
        script = host_script(ExperimentFolderHandler(tmp_path, resume="latest"), patience, max_epochs=9)
        handlers[1].set_trainer(script.trainer)
        script.trainer.run()
        assert script.trainer.state.epoch == 4  # one that sets the best, three without a better one
        assert len(list((tmp_path / "saved").iterdir())) == 2

    def test_the_evaluators_best_metric_is_kept(self, tmp_path):
        script = interrupted(tmp_path, RuntimeError("told to"))
        best = script.evaluator.state.best_metric
        again = host_script(ExperimentFolderHandler(tmp_path, resume=str(only_run(tmp_path))))
        found = []
        again.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: found.append(again.evaluator.state.best_metric))
        again.trainer.run()
        assert found[0] == best

    def test_running_again_after_an_interruption_goes_on_from_the_last_epoch(self, tmp_path):
        script = host_script(
            ExperimentFolderHandler(tmp_path, resume="latest"), Raises(KeyboardInterrupt(), iteration=8)
        )
        with pytest.raises(KeyboardInterrupt):
            script.trainer.run()
        begun = []
        script.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: begun.append(script.trainer.state.iteration))
        for _ in range(2):  # Ignite 0.5.5 returns from the first run after an exception at once
            with suppress(KeyboardInterrupt):
                script.trainer.run()
        assert begun == [6]
        assert load_state(only_run(tmp_path)).progress.epoch == 2

    def test_what_else_has_a_state_is_saved_by_save_dict(self, tmp_path):
        counter = torch.nn.BatchNorm1d(1)
        interrupted_script = host_script(
            ExperimentFolderHandler(tmp_path, save_dict={"counter": counter}), Raises(RuntimeError("x"), iteration=8)
        )
        interrupted_script.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: counter.num_batches_tracked.add_(1)
        )
        with pytest.raises(RuntimeError):
            interrupted_script.trainer.run()
        other = torch.nn.BatchNorm1d(1)
        train(tmp_path, resume="latest", handler_options={"save_dict": {"counter": other}})
        assert other.num_batches_tracked == 6

    def test_latest_begins_anew_where_nothing_is_unfinished(self, tmp_path):
        train(tmp_path, resume="latest")
        script = host_script(ExperimentFolderHandler(tmp_path, resume="latest"))
        script.trainer.run()
        assert len(list((tmp_path / "SupervisedTrainer").iterdir())) == 2

    def test_a_finished_run_goes_on_to_more_epochs(self, tmp_path):
        _, folder = train(tmp_path)
        script, again = train(tmp_path, resume=folder.name, max_epochs=5)
        assert again == folder
        assert same(weights_of(script.network), trained_alone(max_epochs=5))

    def test_fewer_epochs_than_were_trained_are_refused(self, tmp_path):
        _, folder = train(tmp_path)
        script = host_script(ExperimentFolderHandler(tmp_path, resume=folder), max_epochs=2)
        with pytest.raises(ExperimentError, match="3 epochs are done, but the trainer's max_epochs is 2"):
            script.trainer.run()

    def test_engines_that_are_put_together_otherwise_are_refused_by_what_differs(self, tmp_path):
        _, folder = train(tmp_path)
        script = host_script(ExperimentFolderHandler(tmp_path, resume=folder), max_epochs=4, accumulation_steps=2)
        with pytest.raises(ExperimentError, match=r"parts\.accumulation_steps: 1 -> 2"):
            script.trainer.run()
        assert script.trainer.state.iteration == 0

    def test_a_run_of_our_trainer_is_refused(self, tmp_path):
        from tests.toys import small_trainer

        trainer = small_trainer(tmp_path)
        trainer.train(1, save_preview=False)
        script = host_script(ExperimentFolderHandler(tmp_path, resume=trainer.experiment_folder()))
        with pytest.raises(ExperimentError, match="not by MONAI's engines"):
            script.trainer.run()

    def test_where_the_bits_may_differ_the_log_says_why(self, tmp_path):
        _, folder = train(tmp_path, epoch_length=2)
        assert "an epoch has 2 iterations and the loader 3 batches" in (folder / "logs.txt").read_text()

    def test_a_trainer_that_has_epochs_behind_it_says_so(self, tmp_path):
        script = host_script(ExperimentFolderHandler(tmp_path))
        script.trainer.load_state_dict({"epoch": 1, "max_epochs": 3, "epoch_length": 3})
        script.trainer.run()
        folder = only_run(tmp_path)
        assert len(load_metrics(folder / "metrics.csv")["combined loss"]) == 2
        assert "has done 1 epochs before" in (folder / "logs.txt").read_text()


class TestCommands:
    def test_forecast_reads_the_folder(self, tmp_path, capsys):
        _, folder = train(tmp_path)
        assert main(["forecast", str(folder)]) == 0
        assert "val score, finished, 3 epochs run" in capsys.readouterr().out

    def test_resume_says_that_the_script_goes_on_with_it(self, tmp_path, capsys):
        _, folder = train(tmp_path)
        assert main(["resume", str(folder)]) == 2
        assert "was trained by the SupervisedTrainer of monai" in capsys.readouterr().err

    def test_predict_says_that_the_network_is_the_scripts(self, tmp_path, capsys):
        _, folder = train(tmp_path)
        (tmp_path / "images").mkdir()
        assert main(["predict", str(folder), str(tmp_path / "images"), str(tmp_path / "out")]) == 2
        assert "Predictor(..., network=...)" in capsys.readouterr().err

    def test_a_predictor_takes_the_network(self, tmp_path):
        script, folder = train(tmp_path)
        predictor = Predictor(folder, network=make_network(), checkpoint="latest")
        assert same(weights_of(predictor.model), weights_of(script.network))


def test_without_ignite_the_package_says_which_extra_is_missing():
    code = "import sys; sys.modules['ignite'] = None\nimport candy_monai.handlers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "candy-monai[ignite]"' in done.stderr
