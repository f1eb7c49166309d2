"""One web page with the plots of a study, drawn by Optuna."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from candy_monai.optional import require

if TYPE_CHECKING:
    from optuna import Study

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2.5em}p{color:#555}"
)


def study_page(study: Study, *, title: str, value_name: str) -> str:
    """Return an HTML page with the plots of a study, in one file that needs no network.

    A plot for which there are too few trials is replaced by a sentence that says so.
    """
    plots = _plots(study, value_name)
    parts, has_script = [], False
    for heading, plot in plots.items():
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        try:
            figure = plot()
        except (ValueError, RuntimeError) as error:  # raised by Optuna for studies without enough trials
            parts.append(f"<p>Not drawn: {html.escape(str(error))}</p>")
            continue
        figure.update_layout(title=None, template="plotly_white", height=480, margin={"t": 30})
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not has_script))
        has_script = True
    name = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n'
        f"<body><h1>{name}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _plots(study: Study, value_name: str) -> dict[str, Callable[[], Any]]:
    """Return a function that draws each plot, by its heading."""
    _, visualization, importance, trial = (
        require(name, extra="optuna", purpose="draw the plots of a study")
        for name in ("plotly", "optuna.visualization", "optuna.importance", "optuna.trial")
    )

    def importances() -> Any:
        _ask_for(study, trial.TrialState, 4)
        # Optuna's default evaluator needs scikit-learn.
        evaluator = importance.PedAnovaImportanceEvaluator()
        return visualization.plot_param_importances(study, evaluator=evaluator, target_name=value_name)

    def drawn(name: str, **arguments: Any) -> Callable[[], Any]:
        def draw() -> Any:
            _ask_for(study, trial.TrialState, 1)
            return getattr(visualization, name)(study, **arguments)

        return draw

    return {
        f"{value_name} by trial": drawn("plot_optimization_history", target_name=value_name),
        "Validation scores by epoch": drawn("plot_intermediate_values"),
        f"How much each setting matters for {value_name}": importances,
        f"{value_name} by setting": drawn("plot_slice", target_name=value_name),
        "All settings together": drawn("plot_parallel_coordinate", target_name=value_name),
        "When each trial ran": drawn("plot_timeline"),
    }


def _ask_for(study: Study, states: Any, least: int) -> None:
    """Raise a ValueError if too few trials are completed, as Optuna does."""
    completed = len(study.get_trials(deepcopy=False, states=(states.COMPLETE,)))
    if completed < least:
        raise ValueError(f"{completed} completed trials, {least} are needed")
