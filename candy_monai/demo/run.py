"""The whole workflow on synthetic data: write a dataset, train on it, predict unseen cases, and show the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.reading import load_image
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.device import auto_device, find_device
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.files import check_writable
from candy_monai.incoming.opening import load_predictor
from candy_monai.recipes.train import train_dataset

NUM_CASES = 24
NUM_TEST_CASES = 4


def run_demo(
    out: PathLike,
    *,
    budget_s: float = 120.0,
    device: str = "auto",
    seed: int = 0,
    on_progress: Callable[[str], None] = print,
) -> Path:
    """Run the main workflow on a synthetic dataset and write an image of the results.

    Args:
        out: The folder for the dataset, the experiment, the predictions and ``demo.png``.
        budget_s: Seconds for preparation and training.
        device: A PyTorch device, or ``auto``.
        seed: The seed of the dataset and of the training.
        on_progress: Called with a description of each step.

    Returns:
        The image of the unseen cases: image, reference and prediction side by side.

    Raises:
        BadInputError: If there is no such device, or the folder cannot be written to; nothing is written then.
    """
    find_device(device)
    out = Path(out)
    check_writable(out)
    on_progress(f"Writing a phantom dataset of {NUM_CASES} cases to {out}")
    dataset = write_phantom_dataset(
        out / "Dataset001_Phantom", num_cases=NUM_CASES, num_test_cases=NUM_TEST_CASES, seed=seed
    )
    experiment = train_dataset(
        dataset,
        budget_s=budget_s,
        seed=seed,
        device=device,
        out=out / "experiments",
        note="candy-monai demo",
        on_progress=on_progress,
    )
    predictor = load_predictor(experiment, device=auto_device() if device == "auto" else device)
    predictions = out / "predictions"
    written = predictor.predict_to_files(dataset / "imagesTs", predictions)
    unseen = NNUNetDataset(dataset, split="Ts")
    result = Evaluator("dice").evaluate(predictions, dataset / "labelsTs")
    on_progress(f"Mean Dice on {len(written)} unseen cases: {result.mean_metrics['dice']:.3f}")
    return _show(unseen, predictions, out / "demo.png")


def _show(unseen: NNUNetDataset, predictions: Path, path: Path) -> Path:
    from candy_monai.plotting.canvas.drawing import contact_sheet, save_png
    from candy_monai.plotting.case.panels import case_panel

    panels, captions = [], []
    for index, case in enumerate(unseen.cases):
        image, label = unseen.load(index)
        prediction = load_image(predictions / f"{case.case_id}{unseen.description.file_ending}", is_label=True)
        panels.append(case_panel(image, label, prediction))
        captions.append(case.case_id)
    return save_png(contact_sheet(panels, captions, columns=1), path)
