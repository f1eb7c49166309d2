"""candy_monai: from a folder of labelled medical images to a trained, checked and deployable MONAI model.

Every public name is listed here and imported from its module on first use, so that ``import candy_monai`` itself costs
nothing. The stub beside this file says the same to type checkers.
"""

from importlib import import_module as _import_module

_MODULE_OF = {
    "Device": "aliases",
    "Metrics": "aliases",
    "Params": "aliases",
    "Scalar": "aliases",
    "Shape": "aliases",
    "Shape2d": "aliases",
    "Shape3d": "aliases",
    "load_secrets": "config",
    "load_settings": "config",
    "collate_cases": "data.samples.batches",
    "SupervisedDataset": "data.datasets.bases",
    "UnsupervisedDataset": "data.datasets.bases",
    "BinarizedDataset": "data.datasets.files",
    "ComposeDataset": "data.datasets.files",
    "DatasetFromMemory": "data.datasets.files",
    "MergedDataset": "data.datasets.files",
    "SimpleDataset": "data.datasets.files",
    "explain": "data.planning.explanation",
    "CaseFingerprint": "data.inspection.fingerprint",
    "Fingerprint": "data.inspection.fingerprint",
    "crop": "data.geometric",
    "ensure_num_dimensions": "data.geometric",
    "inspect": "data.inspection.inspect",
    "CheckedReader": "data.images.checked",
    "CheckedWriter": "data.images.checked",
    "load_image": "data.images.reading",
    "save_image": "data.images.writing",
    "NNUNetDataset": "data.datasets.nnunet",
    "check_dataset": "data.inspection.checks",
    "write_phantom_dataset": "demo.phantom",
    "EpochSampler": "data.samples.patches",
    "Plan": "data.planning.plan",
    "plan": "data.planning.rules",
    "Preprocessor": "data.pipelines.preprocessing",
    "ROIDataset": "data.samples.roi",
    "RandomROIDataset": "data.samples.roi",
    "statistical_foreground_shape": "data.samples.roi",
    "SeededSampler": "data.sampling",
    "JointTransform": "data.datasets.joint",
    "HasDevice": "device",
    "auto_device": "device",
    "BadInputError": "errors",
    "CandyError": "errors",
    "DatasetError": "errors",
    "ExperimentError": "errors",
    "ImageReadError": "errors",
    "MissingExtraError": "errors",
    "NonFiniteLossError": "errors",
    "RunFailedError": "errors",
    "SettingsError": "errors",
    "Evaluator": "evaluation.evaluator",
    "EvalCase": "evaluation.results",
    "EvalResult": "evaluation.results",
    "EpochFinished": "experiment.events",
    "MessageLogged": "experiment.events",
    "Preview": "experiment.events",
    "RunFinished": "experiment.events",
    "RunInterrupted": "experiment.events",
    "RunStarted": "experiment.events",
    "StepFinished": "experiment.events",
    "export_experiments": "export.exporting",
    "Forecast": "forecasting.best_score",
    "forecast": "forecasting.best_score",
    "quotient_bounds": "forecasting.quotient",
    "quotient_derivative": "forecasting.quotient",
    "quotient_regression": "forecasting.quotient",
    "ScoreHistory": "forecasting.reading",
    "read_scores": "forecasting.reading",
    "Frontend": "frontends.base",
    "create_hybrid_frontend": "frontends.hybrid",
    "NotionFrontend": "frontends.notion",
    "PredictionError": "inference.outputs",
    "PredictionListener": "inference.outputs",
    "save_dicom_seg": "inference.dicom_seg",
    "EnsemblePredictor": "inference.ensemble",
    "WindowInferer": "inference.inferers",
    "NetworkPredictor": "inference.network_predictor",
    "BundleInspection": "incoming.bundle_inspection",
    "inspect_bundle": "incoming.bundle_inspection",
    "BundlePredictor": "incoming.monai_bundle",
    "load_bundle": "incoming.monai_bundle",
    "load_predictor": "incoming.opening",
    "Predictor": "inference.predictor",
    "SWMetadata": "inference.tiles",
    "Prediction": "inference.outputs",
    "OverlapMetric": "metrics.cumulative",
    "dice_per_class": "metrics.overlap",
    "dice_per_region": "metrics.overlap",
    "iou_per_class": "metrics.overlap",
    "labels_from_logits": "metrics.overlap",
    "mean_dice": "metrics.overlap",
    "surface_metrics": "metrics.surface",
    "DeepSupervisionLoss": "nn.deep_supervision",
    "ExponentialMovingAverage": "nn.ema",
    "DiceBCELossWithLogits": "nn.losses",
    "DiceCELossWithLogits": "nn.losses",
    "as_loss": "nn.losses",
    "Pad2d": "nn.padding",
    "Pad3d": "nn.padding",
    "RegionLoss": "nn.regions",
    "AbsoluteLinearLR": "nn.schedules",
    "PolyLRScheduler": "nn.schedules",
    "Observer": "observers.base",
    "overlay": "plotting.case.overlay",
    "visualize2d": "plotting.case.visualize",
    "visualize3d": "plotting.case.visualize",
    "cross_validate": "recipes.crossval",
    "TrainOptions": "recipes.options",
    "resume_training": "recipes.resume",
    "train_dataset": "recipes.train",
    "Bundle": "registry",
    "set_seed": "seeding",
    "SegmentationOptions": "training.options",
    "SegmentationTrainer": "training.segmentation",
    "SlidingTrainer": "training.sliding",
    "SlidingSegmentationTrainer": "training.sliding",
    "TrainerToolbox": "training.toolbox",
    "Trainer": "training.trainer",
}
"""Public name to the module that owns it, below this package."""

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("candy-monai")
    if name not in _MODULE_OF:
        from candy_monai.errors import did_you_mean

        hint = "" if name.startswith("_") else did_you_mean(name, _MODULE_OF)
        raise AttributeError(f"module 'candy_monai' has no attribute {name!r}.{hint}", name=name)
    value: object = getattr(_import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, "__version__"})
