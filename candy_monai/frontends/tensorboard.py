"""A dashboard with TensorBoard's event files in the experiment folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from typing_extensions import override

from candy_monai.config import Secret
from candy_monai.experiment.events import RunScored, RunStarted
from candy_monai.frontends.dashboard import FINISHED, Dashboard, flattened
from candy_monai.optional import require

_EVENTS = "events.out.tfevents.*"
_COUNTED = "run/epoch_duration"
"""A metric that every epoch has."""
_COMPARED = ("val/best_score", "val/score", "train/combined_loss", "final/dice")
"""The metrics shown in TensorBoard's table of hyperparameters."""


class TensorBoardFrontend(Dashboard):
    """Writes TensorBoard's event files into the experiment folder: ``tensorboard --logdir experiments`` shows all runs.

    It needs no secret. Metrics are scalars by epoch; settings, plan and versions are hyperparameters (the tab HPARAMS);
    previews are images; the network's modules, the outcome of the run, its best weights and their final scores are
    text. A resumed run is continued in the same folder, and repeated epochs replace those already written.

    Args:
        secrets: The user's secrets, of which none is needed.

    Raises:
        MissingExtraError: If TensorBoard is not installed.
    """

    _writer: Any = None

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        super().__init__(secrets)
        _required("tensorboard")
        self._tensorboard = _required("torch.utils.tensorboard")
        self._proto = _required("tensorboard.compat.proto.summary_pb2")
        self._plugin = _required("tensorboard.plugins.hparams.plugin_data_pb2")
        self._statuses = _required("tensorboard.plugins.hparams.api_pb2")

    @override
    def _open(self, run: RunStarted, settings: Mapping[str, Any]) -> int:
        known = _last_epoch(run.folder) if any(run.folder.glob(_EVENTS)) else None
        done = 0 if known is None else min(known, run.epoch)
        self._writer = self._tensorboard.SummaryWriter(str(run.folder), purge_step=None if known is None else done + 1)
        flat = flattened(settings)
        # PyTorch's writer would take a truth value for the number 1.
        shown = {name: str(value) if isinstance(value, bool) else value for name, value in flat.items()}
        experiment, session, self._success = self._tensorboard.summary.hparams(shown, dict.fromkeys(_COMPARED, 0.0))
        self._add(experiment)
        self._add(session)
        self._writer.add_text("settings", _as_table(flat), run.epoch)
        self._writer.add_text("model", f"```\n{run.summary}\n```", run.epoch)
        if run.note:
            self._writer.add_text("note", run.note, run.epoch)
        self._writer.flush()
        return done

    @override
    def _show_epochs(self, epochs: Mapping[int, Mapping[str, float]]) -> None:
        for epoch, metrics in epochs.items():
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    @override
    def _show_previews(self, pictures: Mapping[str, Path], epoch: int) -> None:
        for name, path in pictures.items():
            content = path.read_bytes()  # as it is: add_image would decode it, and compress it anew
            with Image.open(io.BytesIO(content)) as picture:
                width, height = picture.size
                image = self._proto.Summary.Image(
                    height=height, width=width, colorspace=len(picture.getbands()), encoded_image_string=content
                )
            self._add(self._proto.Summary(value=[self._proto.Summary.Value(tag=name, image=image)]), epoch)
        self._writer.flush()

    @override
    def _show_scores(self, scores: Mapping[str, float], event: RunScored) -> None:
        for name, value in scores.items():
            self._writer.add_scalar(name, value, self._num_shown)
        text = f"{_as_table(scores)}\n\nof {event.num_cases} cases: `{event.file}`"
        self._writer.add_text("final scores", text, self._num_shown)
        self._writer.flush()

    @override
    def _show_end(self, status: str, facts: Mapping[str, str]) -> None:
        self._writer.add_text("end", _as_table(facts), self._num_shown)
        self._add(self._success if status == FINISHED else self._failed(self._success))
        self._writer.flush()

    @override
    def _close(self) -> None:
        self._writer.close()
        self._writer = None

    def _add(self, summary: Any, epoch: int | None = None) -> None:
        self._writer._get_file_writer().add_summary(summary, epoch)  # add_hparams writes into another folder

    def _failed(self, success: Any) -> Any:
        """Return the end of a session with the status of a failure, which PyTorch's writer does not know."""
        data = success.value[0].metadata.plugin_data
        end = self._plugin.HParamsPluginData.FromString(data.content)
        end.session_end_info.status = self._statuses.STATUS_FAILURE
        data.content = end.SerializeToString()
        return success


def _required(module: str) -> Any:
    return require(module, extra="tensorboard", purpose="write for TensorBoard")


def _last_epoch(folder: Path) -> int:
    """Return the last epoch that the event files of a folder hold; 0 for none."""
    accumulator = _required("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(
        str(folder), size_guidance={accumulator.SCALARS: 1, accumulator.IMAGES: 1, accumulator.TENSORS: 1}
    ).Reload()
    return events.Scalars(_COUNTED)[-1].step if _COUNTED in events.Tags()[accumulator.SCALARS] else 0


def _as_table(values: Mapping[str, object]) -> str:
    """Return values by name as a table in Markdown."""
    lines = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(["| name | value |", "| --- | --- |", *lines])


def _cell(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
