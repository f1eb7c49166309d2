"""Pruning of Optuna's trials by the forecast of the best score. Needs the extra ``optuna``.

Trials and the values that they reported enter; whether to go on leaves.
"""

from candy_monai.optuna.forecast_pruner import HORIZON, ForecastPruner

__all__ = ["HORIZON", "ForecastPruner"]
