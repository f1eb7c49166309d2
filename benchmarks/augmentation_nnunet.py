"""Measure the rate of nnU-Net's training loader for ``augmentation.py``. Needs nnunetv2, but not candy_monai.

Prints two numbers: patches per second of wall-clock time, and per second of CPU time of this process.

    python augmentation_nnunet.py FOLDER DATASET WORKERS BATCH COUNT WARM_UP PATCH...

Preprocesses into FOLDER if it is empty. The loader, its transforms and their probabilities are nnU-Net's defaults for
training; only patch and batch size are given, and labels are not downsampled for deep supervision.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

folder, dataset = Path(sys.argv[1]), Path(sys.argv[2])
workers, batch, count, warm_up, *patch = map(int, sys.argv[3:])
os.environ |= {
    "nnUNet_raw": str(dataset.parent),
    "nnUNet_preprocessed": str(folder),
    "nnUNet_results": str(folder / "results"),
}
PREPROCESS = """
from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry
plan_and_preprocess_entry()
"""


def main() -> None:
    if not folder.exists():
        number = dataset.name.removeprefix("Dataset").partition("_")[0]
        options = ["-d", number, "-c", "3d_fullres", "-np", "2", "-npfp", "2"]
        subprocess.run([sys.executable, "-c", PREPROCESS, *options], check=True, stdout=sys.stderr)

    import torch
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    plans = json.loads((folder / dataset.name / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"] |= {"patch_size": patch, "batch_size": batch}
    plans["continue_training"] = False
    description = json.loads((folder / dataset.name / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, description, device=torch.device("cpu"))
    turns, flat, read_shape, mirrors = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transforms = trainer.get_training_transforms(
        patch, turns, None, mirrors, flat, use_mask_for_norm=trainer.configuration_manager.use_mask_for_norm
    )
    cases = infer_dataset_class(trainer.preprocessed_dataset_folder)(trainer.preprocessed_dataset_folder)
    loader = nnUNetDataLoader(
        cases,
        batch,
        read_shape,
        patch,
        trainer.label_manager,
        oversample_foreground_percent=0.33,
        transforms=transforms,
    )
    if workers:
        batches = NonDetMultiThreadedAugmenter(loader, None, workers, num_cached=6, wait_time=0.002)
    else:
        batches = SingleThreadedAugmenter(loader, None)
    for _ in range(warm_up):
        next(batches)
    started, started_cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        found = next(batches)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    assert tuple(found["data"].shape) == (batch, 1, *patch)
    print(batch * count / seconds, batch * count / cpu_s, flush=True)
    for worker in multiprocessing.active_children():  # they would outlive this process and keep its output open
        worker.kill()
    os._exit(0)  # the augmenter waits for them when it ends


if __name__ == "__main__":
    main()
