"""Dashboards that a run reports to.

The inputs are the events of a run, received by an observer on a separate thread; the outputs are files and calls of a
dashboard's web API. A failing dashboard never ends a run. A new frontend implements ``base.Frontend``, or
``dashboard.Dashboard`` if its client takes metrics by epoch, pictures and settings.
"""

FRONTENDS = {
    "tensorboard": "candy_monai.frontends.tensorboard:TensorBoardFrontend",
    "mlflow": "candy_monai.frontends.mlflow:MLflowFrontend",
    "wandb": "candy_monai.frontends.wandb:WandBFrontend",
    "notion": "candy_monai.frontends.notion:NotionFrontend",
}
"""The class of each name on the command line, imported when chosen, since a dashboard may need an extra package."""
