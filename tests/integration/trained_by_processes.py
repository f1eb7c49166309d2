"""Run by the tests under torchrun: trains a small network, fails or goes on as it is told to."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from candy_monai import SeededSampler
from tests.toys import SmallTrainer, Squares

RANK = int(os.environ.get("RANK", "0"))


class Named(Squares):
    """Tells each sample's name beside it."""

    def __init__(self, count, letter):
        super().__init__(count)
        self.letter = letter

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return {"image": image, "label": label, "case_id": f"{self.letter}{int(index)}"}


class ByProcesses(SmallTrainer):
    """No batch statistics, and a loss that is a mean over samples."""

    how = ""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seen = {"training": [], "validation": []}
        self._model = None

    def build_optimizer(self, params):
        return torch.optim.SGD(params, lr=0.1, momentum=0.9)

    def build_criterion(self):
        return nn.MSELoss()

    def _check_batch(self, batch):
        if self._model is not None:  # what is checked before the run is not seen by its loops
            self.seen["training" if self._model.training else "validation"] += batch.case_ids

    def train_epoch(self, toolbox):
        self._model = toolbox.model
        own = getattr(toolbox.optimizer, "optim", toolbox.optimizer).param_groups  # of this process's share, if sharded
        self.seen["optimized"] = sum(weight.numel() for group in own for weight in group["params"])
        super().train_epoch(toolbox)

    def check_sample(self, image, label):
        pass

    def backward(self, images, labels, toolbox):
        if self.how == "slowly":
            time.sleep(0.2)
        if RANK == 1 and self._current().progress.epoch == 1 and self.how in ("raise", "kill"):
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("told to")
        loss = toolbox.criterion(toolbox.model(images), labels.float())
        loss.backward()
        return loss.detach(), {}

    def validate_case(self, image, label, toolbox):
        output = (toolbox.ema or toolbox.model)(image[None])
        score = -float(toolbox.criterion(output, label[None].float()))
        return score, {"brightness": image.mean()}, output[0]


def main(out, batch_size, how="", experiment=""):
    training, validation = Named(8, "t"), Named(3, "v")
    trainer = ByProcesses(
        out,
        DataLoader(training, batch_size=int(batch_size), sampler=SeededSampler(training, seed=1)),
        DataLoader(validation, batch_size=1),
        console=False,
        device=os.environ.get("CANDY_MONAI_TEST_DEVICE", "cpu"),
    )
    trainer.how = how.removeprefix("sharded ")
    if how == "resume":
        trainer.resume(experiment)
    else:
        options = {"seed": 4, "save_preview": False, "early_stop_tolerance": None}
        trainer.train(60 if how == "slowly" else 3, shard_optimizer=how.startswith("sharded"), **options)
    Path(out, f"seen {RANK}.json").write_text(json.dumps(trainer.seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
