"""Run by the tests under torchrun: trains trainers of several kinds twice, by gradients sent early and sent late."""

import functools
import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader

from candy_monai import SeededSampler
from candy_monai.training import early_gradients
from tests.toys import SmallTrainer, Squares

RANK = int(os.environ["RANK"])
SAID = "Gradients", "averages the gradients", "left out"
FROM_STEP = 3
"""From which the trainers are what they are called."""


class Branched(nn.Module):
    """Can leave out a part of itself."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1))
        self.head, self.side = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 1, 1)

    def forward(self, images, side=True, head_first=True):
        features = self.body(images)
        before = self.side(features).tanh() if side and not head_first else 0
        head = self.head(features)
        return head + (self.side(features).tanh() if side and head_first else before)


class Averaged(SmallTrainer):
    """One pass, with all parameters."""

    def build_network(self, example_shape):
        self.trained = Branched(example_shape[0])
        return self.trained

    def build_criterion(self):
        return nn.MSELoss()

    def backward(self, images, labels, toolbox):
        return self.one(images, labels, toolbox)

    def one(self, images, labels, toolbox, *, side=True, head_first=True, factor=1.0):
        loss = factor * toolbox.criterion(toolbox.model(images, side, head_first), labels.float())
        loss.backward()
        return loss.detach(), {}

    def is_different(self):
        return self._current().progress.step >= FROM_STEP

    def validate_case(self, image, label, toolbox):
        output = toolbox.ema(image[None])
        return -float(toolbox.criterion(output, label[None].float())), {}, output[0]


class Reordered(Averaged):
    """Calls parts of the network in another order in one process, which reaches parameters of one shape otherwise."""

    def backward(self, images, labels, toolbox):
        return self.one(images, labels, toolbox, head_first=RANK == 0)


class LeftOut(Averaged):
    """Leaves out parameters in one process."""

    def backward(self, images, labels, toolbox):
        return self.one(images, labels, toolbox, side=not (self.is_different() and RANK == 1))


class Twice(Averaged):
    """Makes a second pass in one process."""

    def backward(self, images, labels, toolbox):
        result = self.one(images, labels, toolbox)
        if self.is_different() and RANK == 0:
            self.one(images.flip(-1), labels.flip(-1), toolbox)
        return result


class Clipped(Averaged):
    """Clips what each process has by itself."""

    def backward(self, images, labels, toolbox):
        result = self.one(images, labels, toolbox)
        if self.is_different():
            nn.utils.clip_grad_norm_(toolbox.model.parameters(), 1e-3)
        return result


class NotFinite(Averaged):
    """Has a loss of NaN in one process and step."""

    def backward(self, images, labels, toolbox):
        bad = self._current().progress.batch == 2 and RANK == 1
        return self.one(images, labels, toolbox, factor=float("nan") if bad else 1.0)


class OwnLoop(Averaged):
    """Has a loop that does not know of other processes."""

    def train_epoch(self, toolbox):
        pass


KINDS = (
    (Averaged, {}),
    (Averaged, {"accumulate": 2}),
    (Averaged, {"amp": "fp16"}),
    (Reordered, {}),
    (LeftOut, {}),
    (Twice, {}),
    (Clipped, {}),
    (NotFinite, {"non_finite": "skip"}),
    (OwnLoop, {}),
)


def train(kind, out, *, one_pass, keywords):
    data = Squares(16)
    training = DataLoader(data, batch_size=2, sampler=SeededSampler(data, seed=1))
    trainer = kind(out, training, DataLoader(Squares(1), batch_size=1), console=False)
    trainer._one_pass = one_pass
    trainer.train(2, seed=4, save_preview=False, save_report=False, early_stop_tolerance=None, **keywords)
    lines = (trainer.experiment_folder() / "logs.txt").read_text().splitlines()
    return trainer.trained.state_dict(), [line for line in lines if any(said in line for said in SAID)]


def counted(sent):
    """Note every message that the processes send to each other, by the function that sends it."""

    def noted(name, send):
        def note(*arguments, **keywords):
            sent.append(name)
            return send(*arguments, **keywords)

        return note

    for name in ("all_reduce", "broadcast", "all_gather_object", "broadcast_object_list", "barrier"):
        setattr(distributed, name, noted(name, getattr(distributed, name)))


def main(out):
    small = functools.partial(early_gradients.DistributedDataParallel, bucket_cap_mb=1e-4)
    early_gradients.DistributedDataParallel = small
    distributed._DEFAULT_FIRST_BUCKET_BYTES = 64
    distributed.init_process_group("gloo")
    found, sent, in_steps, step = [], [], [], Averaged.step

    def counting_step(self, toolbox, **keywords):
        in_steps.append(sent.copy())
        step(self, toolbox, **keywords)
        sent.clear()

    counted(sent)
    Averaged.step = counting_step
    for number, (kind, keywords) in enumerate(KINDS):
        results = []
        for one_pass in (True, False):
            in_steps.clear()
            folder = Path(out, f"{number} {one_pass}")
            weights, said = train(kind, folder, one_pass=one_pass, keywords=keywords)
            results.append({"weights": weights, "said": said, "sent": in_steps.copy()})
        early, late = results
        same = all(torch.equal(early["weights"][name], late["weights"][name]) for name in early["weights"])
        found.append({"kind": kind.__name__, **keywords, "same": same, "said": early["said"], "sent": early["sent"]})
    distributed.destroy_process_group()
    Path(out, f"found {RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
