"""What the event files hold, by TensorBoard's own reader."""

import sys

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from candy_monai.errors import MissingExtraError
from candy_monai.experiment.events import RunScored
from candy_monai.frontends.delivery import FrontendObserver
from candy_monai.frontends.tensorboard import TensorBoardFrontend
from tests.events import epoch_finished, run_started
from tests.toys import ScriptedTrainer, Squares, small_trainer


def _read(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def _session(events, tag):
    content = events.PluginTagToContent("hparams")[tag]
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def _text(events, tag):
    return events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


@pytest.fixture
def trainer(tmp_path):
    trainer = small_trainer(tmp_path, Squares(4))
    trainer.set_frontend("tensorboard")
    return trainer


def _finish(trainer):
    assert trainer._dashboards.latest[0].wait(stuck_after_s=60, at_most_s=60)


def test_each_metric_of_each_epoch_is_a_scalar_by_the_epoch(trainer):
    trainer.train(3, seed=1, note="a *note*")
    _finish(trainer)
    events, metrics = _read(trainer.experiment_folder()), trainer.metrics()
    for column, tag in [("combined loss", "train/combined_loss"), ("val dice", "val/dice"), ("val score", "val/score")]:
        found = events.Scalars(tag)
        assert [event.step for event in found] == [1, 2, 3]
        assert [event.value for event in found] == pytest.approx(metrics[column], rel=1e-6)
    assert [event.value for event in events.Scalars("run/step")][-1] == 3 * 2
    assert _text(events, "note") == "a *note*"


def test_previews_are_pictures_as_they_are_in_the_folder(trainer):
    trainer.train(2, seed=1)
    _finish(trainer)
    folder = trainer.experiment_folder()
    events = _read(folder)
    pictures = sorted(path for path in folder.glob("*(preview).png"))
    assert len(pictures) == 5
    for path in pictures:
        newest = events.Images(f"previews/{path.name.removesuffix(' (preview).png')}")[-1]
        assert newest.encoded_image_string == path.read_bytes()
        assert (newest.width, newest.height) == _size(path)


def _size(path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.size


def test_settings_are_hyperparameters_beside_the_metrics_to_compare(trainer):
    trainer.train(1, seed=7)
    _finish(trainer)
    events = _read(trainer.experiment_folder())
    start = _session(events, "_hparams_/session_start_info").session_start_info
    assert start.hparams["settings/seed"].number_value == 7
    assert start.hparams["model/class"].string_value == "Sequential"
    assert start.hparams["settings/ema"].string_value == "True"
    experiment = _session(events, "_hparams_/experiment").experiment
    compared = {info.name.tag for info in experiment.metric_infos}
    assert {"val/best_score", "train/combined_loss"} <= compared & set(events.Tags()["scalars"])
    end = _session(events, "_hparams_/session_end_info").session_end_info
    assert end.status == api_pb2.STATUS_SUCCESS


def test_the_network_and_the_end_with_its_best_weights_are_text(trainer):
    trainer.train(2, seed=7)
    _finish(trainer)
    folder = trainer.experiment_folder()
    events = _read(folder)
    assert "Conv2d" in _text(events, "model")
    end = _text(events, "end")
    assert "finished after epoch 2" in end
    assert str(folder / "checkpoint_best.pth") in end


def test_a_failed_run_ends_as_a_failure(tmp_path):
    class Failing(ScriptedTrainer):
        def train_epoch(self, toolbox):
            raise RuntimeError("a | b")

    trainer = small_trainer(tmp_path, cls=Failing)
    trainer.set_frontend("tensorboard")
    with pytest.raises(RuntimeError):
        trainer.train(2)
    _finish(trainer)
    events = _read(trainer.experiment_folder())
    end = _session(events, "_hparams_/session_end_info").session_end_info
    assert end.status == api_pb2.STATUS_FAILURE
    assert "RuntimeError: a \\| b" in _text(events, "end")


def test_a_resumed_run_goes_on_in_its_folder_without_a_gap_or_a_repetition(trainer):
    trainer.train(2, seed=1)
    _finish(trainer)
    folder = trainer.experiment_folder()
    trainer.resume(folder, 4, schedule="keep")
    _finish(trainer)
    events = _read(folder)
    assert [event.step for event in events.Scalars("train/combined_loss")] == [1, 2, 3, 4]
    assert "finished after epoch 4" in _text(events, "end")


def _started(folder, **facts):
    from candy_monai.experiment.description import describe_trainer, write_description

    folder.mkdir(exist_ok=True)
    write_description(folder, describe_trainer("MyTrainer", {}))
    return run_started(folder=folder, **facts)


def _told(*events):
    observer = FrontendObserver(TensorBoardFrontend({}), print)
    for event in events:
        observer.receive(event)
    observer.close()


def _finished(count, value):
    return epoch_finished(count, metrics={"loss": [value] * count, "epoch duration": [1.0] * count})


def test_what_a_killed_run_did_not_write_and_what_is_trained_again_are_put_right(tmp_path):
    folder = tmp_path / "run"
    _told(_started(folder), _finished(2, 1.0), _finished(5, 1.0))
    _told(_started(folder, epoch=3), _finished(4, 2.0))  # of a copy that is older than what was written
    losses = [(event.step, event.value) for event in _read(folder).Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    _told(_started(folder, epoch=7), _finished(8, 3.0))  # the epochs 5 to 7 were lost with the process
    losses = [(event.step, event.value) for event in _read(folder).Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), *((epoch, 3.0) for epoch in (5, 6, 7, 8))]


def test_final_scores_are_scalars_and_a_table(tmp_path):
    folder = tmp_path / "run"
    scored = RunScored(scores={"dice": 0.5, "dice/Liver": 0.25}, num_cases=4, file=folder / "validation.json")
    _told(_started(folder), _finished(2, 1.0), scored)
    events = _read(folder)
    assert [(event.step, event.value) for event in events.Scalars("final/dice/Liver")] == [(2, 0.25)]
    assert "of 4 cases" in _text(events, "final scores")


def test_a_missing_package_is_one_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"tensorboard is needed .*candy-monai\[tensorboard\]"):
        TensorBoardFrontend({})
