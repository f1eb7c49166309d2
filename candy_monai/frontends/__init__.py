"""Dashboards that a run reports to.

The events of a run enter, through an observer that calls them on a thread of its own; files and calls of a dashboard's
web API leave. A failing dashboard never ends a run. ``base.Frontend`` is what a new one implements;
``dashboard.Dashboard`` is its base where a client takes metrics by epoch, pictures and settings.
"""

FRONTENDS = {
    "tensorboard": "candy_monai.frontends.tensorboard:TensorBoardFrontend",
    "mlflow": "candy_monai.frontends.mlflow:MLflowFrontend",
    "wandb": "candy_monai.frontends.wandb:WandBFrontend",
    "notion": "candy_monai.frontends.notion:NotionFrontend",
}
"""The class of each name on the command line; imported when chosen, since a dashboard may need a package of its own."""
