"""Pruning of Optuna's trials by the forecast of the best score. Needs the extra ``optuna``.

A pruner reads trials and the values that they reported, and decides whether a trial continues.
"""

from candy_monai.optuna.forecast_pruner import HORIZON, ForecastPruner

__all__ = ["HORIZON", "ForecastPruner"]
