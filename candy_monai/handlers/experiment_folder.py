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

    The folder is ``<save_dir>/SupervisedTrainer/<YYYYMMDD-HH-xxxx>``, as that of a `Trainer` of ours. After each epoch,
    behind whatever the trainer's other handlers do then, the weights and everything that a resumed run needs are
    copied, and written while the next epoch is trained. The epoch's score is the evaluator's key metric of the weights
    at its end; the best weights are those with the best score, or their average with an `EMAHandler`.

    A run that was interrupted, in whatever way, goes on from its last whole epoch, on a CPU to the bits of a run that
    never was, if the script is the same. Saved are network, optimizer, loss, gradient scaler, random generators (those
    of transforms and loaders, too), the engines' counts and best metrics, and whatever the handlers work with that has
    a ``state_dict``, such as the schedule of a ``LrScheduleHandler``. Where the bits may differ the log says so: with a
    loader that reads a stream or keeps its workers, a ``SmartCacheDataset``, an ``epoch_length`` that is not the
    loader's.

    In a run of several processes each of them needs the handler; only the first one writes.

    Args:
        save_dir: Where experiments go.
        validator: The evaluator that gives the score; by default the one that the trainer's handlers run.
        save_dict: What else is to be saved and resumed, by name: anything with ``state_dict`` and ``load_state_dict``.
        key_metric_name: The metric of the evaluator that is the score; by default its key metric.
        key_metric_negative_sign: Whether less of it is better; by default what the evaluator's ``metric_cmp_fn`` says.
        score_range: The least and the largest score that there can be, such as ``(0, 1)``, which helps the forecast.
        output_transform: Returns the loss, or several numbers by name, of the trainer's ``engine.state.output``; by
            default what stands there as ``"loss"``.
        note: A note for ``experiment.json``.
        num_checkpoints: How many evenly spaced weight files to keep, the last epoch's among them.
        resume: The experiment to go on with, by its folder or its id in ``save_dir``; ``"latest"`` for the newest one
            if it is not finished; None for a new one.
        force: Go on even if the engines are not put together as they were.
        console: Whether to report on the screen. Messages go to the logger ``candy_monai.handlers`` in any case.

    Raises:
        SettingsError: If a value that says what the score is has another kind, or ``score_range`` is no range.
        BadInputError: If ``validator`` is no evaluator.

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
