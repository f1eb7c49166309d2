"""The results of a run's validations: the mean score, which weights were scored, and the cases to show.

How one case is padded and scored is in ``validation.py``, and the loop over the cases in ``trainer.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from candy_monai.data.values import join_names
from candy_monai.errors import WARNING
from candy_monai.experiment.checkpoints import WeightsKind
from candy_monai.experiment.events import Preview, Validated
from candy_monai.experiment.experiment import Experiment
from candy_monai.processes import Processes
from candy_monai.training.kept_cases import KeptCases
from candy_monai.training.loaders import num_cases
from candy_monai.training.reporting import Reporter
from candy_monai.training.toolbox import TrainerToolbox
from candy_monai.training.validation import (
    CalledNetworks,
    PaddedParts,
    ScoresThatAreLosses,
    ValidationCases,
    certainty,
    mean_score,
    untrained_average,
    what_is_scored,
)


class RunValidations:
    """The validations of one run, one at a time; each process validates its share of the cases.

    Attributes:
        scored: Which weights are scored, ``"ema"`` or ``"raw"``: these are saved as the best.
        preview: The worst case of the last validation.
        kept: The cases of the last validation, until `gathered` returns them; None if no page is written.
        padded_parts: Pads the parts that ``validate_case`` calls; None outside of a validation.
        case_id: The case that is scored now; empty if it has no id.
    """

    def __init__(self, processes: Processes, reporter: Reporter) -> None:
        self._processes, self._reporter = processes, reporter
        self.scored: WeightsKind = "raw"
        self.preview: Preview | None = None
        self.kept: KeptCases | None = None
        self.padded_parts: PaddedParts | None = None
        self.case_id = ""
        self._toolbox: TrainerToolbox | None = None
        self._losses: ScoresThatAreLosses | None = None

    def share_of(self, loader: DataLoader[Any], limit: int | None) -> tuple[int | None, int | None]:
        """Return the number of cases that this process validates, None if unknown, and its share of a limit."""
        count = num_cases(loader)
        if count is not None and loader.drop_last and (left_out := count % (loader.batch_size or 1)):
            count -= left_out
            self._reporter.log_once(
                f"{WARNING}the validation loader leaves out {left_out} of {count + left_out} cases, which do not fill "
                "its last batch: give it drop_last=False"
            )
        share = None if limit is None else len(range(self._processes.rank, limit, self._processes.world_size))
        known = [number for number in (count, share) if number is not None]
        return min(known, default=None), share

    def begin(self, toolbox: TrainerToolbox, padding: nn.Module | None, *, keeps_cases: bool) -> PaddedParts:
        """Start a validation, and return what pads separately called parts of a network.

        ``keeps_cases`` says whether to keep the scores of all cases and images of a few, for the run's page.
        """
        self.kept = KeptCases() if keeps_cases else None
        if self._toolbox is None:  # the first validation of the run
            self._losses = ScoresThatAreLosses(toolbox.criterion)
        self._toolbox = toolbox
        self.padded_parts = PaddedParts(toolbox, padding)
        return self.padded_parts

    def finish(
        self,
        cases: ValidationCases,
        called: CalledNetworks,
        draw: Callable[[Tensor, Tensor, Tensor], None],
        *,
        experiment: Experiment,
        averages: bool,
    ) -> float:
        """Return the mean score over the cases of all processes, and record its standard error and the scored weights.

        ``draw`` draws the preview from image, label and output; ``averages`` says whether the run has a moving average.
        """
        self.preview, self.padded_parts = cases.preview(draw), None
        self._note_scored(called.flags, averages=averages)
        parts = self._processes.all_gather(cases.scores)
        if with_nan := list(chain.from_iterable(self._processes.all_gather(cases.with_nan))):
            self._reporter.log_once(
                f"{WARNING}the output of validate_case holds NaN for {join_names(with_nan, limit=4)}: their scores "
                "are meaningless, or left out of the mean; check their images for NaN and infinite values"
            )
        experiment.score_rests_on(*certainty(parts))
        self._say_if_losses_are_scores(cases.scores)
        score = mean_score(parts)
        if math.isnan(score):
            self._reporter.log_once(f"{WARNING}the validation score is NaN: no validation case has a score")
        elif math.isinf(score):
            self._reporter.log_once(
                f"{WARNING}the validation score is {score}, since that of a case is infinite: such an epoch never "
                "counts as the best. Return a finite number, or NaN to leave the case out of the mean"
            )
        return score

    def gathered(self) -> Validated | None:
        """Return the cases of the last validation from all processes, once; None if none are kept."""
        kept, self.kept = self.kept, None
        return None if kept is None else kept.gathered(self._processes)

    def close(self) -> None:
        """Release the tensors of the last validation."""
        self.preview = self.kept = self.padded_parts = self._toolbox = None
        if self._losses is not None:
            self._losses.close()

    def _say_if_losses_are_scores(self, scores: Sequence[float]) -> None:
        losses, self._losses = self._losses, None
        if losses is not None and losses.are_scores(scores):
            self._reporter.log_once(
                f"{WARNING}the score of each validation case is the value of the criterion, but a higher score is a "
                "better one, so that the worst weights are saved as the best: return its negative as the score"
            )

    def _note_scored(self, called: Sequence[bool], *, averages: bool) -> None:
        raw, averaged = self._processes.all_reduce_any(called)
        if not averages:
            return
        self.scored = "raw" if raw and not averaged else "ema"
        if warning := what_is_scored(raw=raw, averaged=averaged):
            self._reporter.log_once(warning)
        if self.scored == "ema" and self._toolbox is not None and (fault := untrained_average(self._toolbox)):
            self._reporter.log_once(f"{WARNING}{fault}")
