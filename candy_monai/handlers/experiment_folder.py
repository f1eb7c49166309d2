"""The experiment folder of a run of MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monai.engines import Evaluator
from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.handlers.engine_run import TrainerHandler
from candy_monai.handlers.options import RunOptions, ScoreSource


class ExperimentFolderHandler(TrainerHandler):
    """Record a trainer's run in an experiment folder: log, metrics, curves, forecast, settings and checkpoints.

    The folder is ``<save_dir>/SupervisedTrainer/<YYYYMMDD-HH-xxxx>``, as for a `Trainer` of this package. After each
    epoch, after the trainer's other handlers, the weights and everything that a resumed run needs are copied, and
    written while the next epoch is trained. The score of an epoch is the evaluator's key metric for the weights at its
    end; the best weights are those with the best score, or their average with an `EMAHandler`.

    An interrupted run continues after its last complete epoch; on a CPU the result is bit-identical to that of an
    uninterrupted run, if the script is the same. Saved are network, optimizer, loss, gradient scaler, random generators
    (also those of transforms and loaders), the engines' counts and best metrics, and every object with a ``state_dict``
    that the handlers use, such as the schedule of a ``LrScheduleHandler``. The log says if the result may differ: with
    a loader that reads a stream or keeps its workers, a ``SmartCacheDataset``, or an ``epoch_length`` other than the
    loader's.

    In a run of several processes each of them needs the handler; only the first one writes.

    Args:
        save_dir: The folder for experiments.
        validator: The evaluator that gives the score; by default the one that the trainer's handlers run.
        save_dict: Further objects to save and resume, by name, each with ``state_dict`` and ``load_state_dict``.
        key_metric_name: The metric of the evaluator that is the score; by default its key metric.
        key_metric_negative_sign: Whether lower values are better; by default according to the evaluator's
            ``metric_cmp_fn``.
        score_range: The smallest and the largest possible score, such as ``(0, 1)``, which improves the forecast.
        output_transform: Returns the loss, or several named numbers, from the trainer's ``engine.state.output``; by
            default the entry ``"loss"``.
        note: A note for ``experiment.json``.
        num_checkpoints: Number of evenly spaced weight files to keep, including that of the last epoch.
        resume: The experiment to continue, by its folder or its id in ``save_dir``; ``"latest"`` for the newest one if
            it is not finished; None for a new one.
        force: Continue even if the engines are composed differently than before.
        console: Whether to report on the screen. Messages always go to the logger ``candy_monai.handlers``.

    Raises:
        SettingsError: If an argument that defines the score is of the wrong type, or ``score_range`` is invalid.
        BadInputError: If ``validator`` is not an evaluator.

    Example:
        >>> handlers = [ValidationHandler(1, evaluator), ExperimentFolderHandler("experiments")]  # doctest: +SKIP
        >>> trainer = SupervisedTrainer(..., train_handlers=handlers)  # doctest: +SKIP
    """

    def __init__(
        self,
        save_dir: PathLike,
        validator: Evaluator | None = None,
        save_dict: Mapping[str, Any] | None = None,
        key_metric_name: str | None = None,
        key_metric_negative_sign: bool | None = None,
        score_range: ScoreRange | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        note: str = "",
        num_checkpoints: int = 5,
        resume: PathLike | None = None,
        force: bool = False,
        console: bool = False,
    ) -> None:
        self._save_dir = save_dir
        self._save_dict = dict(save_dict or {})
        self._score = ScoreSource(
            validator=validator,
            key_metric_name=key_metric_name,
            key_metric_negative_sign=key_metric_negative_sign,
            score_range=score_range,
        )
        self._output_transform = output_transform
        self._note, self._num_checkpoints = note, num_checkpoints
        self._resume, self._force, self._console = resume, force, console

    @override
    def contribute(self, options: RunOptions) -> None:
        options.records = True
        options.save_dir, options.save_dict = self._save_dir, self._save_dict
        options.score = options.score.merged(self._score)
        options.output_transform = self._output_transform
        options.note, options.num_checkpoints = self._note, self._num_checkpoints
        options.resume, options.force, options.console = self._resume, self._force, self._console
