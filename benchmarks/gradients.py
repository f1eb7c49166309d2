"""Compare a training step of two processes with the same step in a plain script; print one JSON line.

``ours`` is a `Trainer`, ``plain`` a loop with ``DistributedDataParallel``: forward, backward, clipping and AdamW of a
network with 30 million parameters, on Gloo. They run alternately; the results are the medians over the steps of all
turns, in seconds of wall-clock time, so that the machine must be idle. ``ratio`` is ours divided by plain.

With ``--gbit 1`` the two processes are on two hosts: network namespaces with a link of this rate between them (root,
Linux, ``ip`` and ``tc`` of iproute2). With ``--speedup``, two processes of ``ours`` are compared with one, each with
one thread: ``speedup`` is the ratio of the numbers of batches trained in the same time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from candy_monai import SegmentationTrainer

WARMING_UP = 4
"""Steps at the start that are not counted: in the first two both lay out what they send."""


class Volumes(Dataset[tuple[Tensor, Tensor]]):
    """One noise volume, repeated."""

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        image = torch.randn(1, size, size, size, generator=torch.Generator().manual_seed(0))
        self._sample = image, (image > 0).long()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._sample


def network() -> nn.Module:
    """Build a network with 30 million parameters, most of them at the lowest resolution, as in a U-Net."""
    widths = (1, 32, 64, 128, 256, 512, 512, 512, 512, 320)
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        stride = 2 if 1 <= index <= 4 else 1
        layers += [
            nn.Conv3d(before, after, 3, stride, padding=1),
            nn.InstanceNorm3d(after, affine=True),
            nn.LeakyReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv3d(widths[-1], 1, 1), nn.Upsample(scale_factor=16))


class Timed(SegmentationTrainer):
    """Records when each step ends."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.moments: list[float] = []

    def build_network(self, example_shape: Any) -> nn.Module:  # noqa: D102
        return network()

    def build_criterion(self) -> nn.Module:  # noqa: D102
        return nn.MSELoss()

    def backward(self, images: Tensor, labels: Tensor, toolbox: Any) -> Any:  # noqa: D102
        loss = toolbox.criterion(toolbox.model(images), labels.float())
        loss.backward()
        return loss.detach(), {}

    def step(self, toolbox: Any, *, num_batches: int = 1) -> None:  # noqa: D102
        super().step(toolbox, num_batches=num_batches)
        self.moments.append(time.perf_counter())


def ours(data: Dataset[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the times at which the steps of a `Trainer` end."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(folder, DataLoader(data, batch_size=1, shuffle=True), None, console=False)
        trainer.train(1, ema=False, num_checkpoints=0, save_preview=False, save_report=False)
    return trainer.moments


def plain(data: Dataset[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the times at which the steps of a plain loop end; a single process uses the first half of the data."""
    distributed.init_process_group("gloo")
    model = DistributedDataParallel(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    criterion, moments = nn.MSELoss(), []
    share = torch.utils.data.Subset(data, range(len(data) // distributed.get_world_size()))  # type: ignore[arg-type]
    for image, label in DataLoader(share, batch_size=1, shuffle=True):
        optimizer.zero_grad()
        criterion(model(image), label.float()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12.0)
        optimizer.step()
        moments.append(time.perf_counter())
    distributed.destroy_process_group()
    return moments


def work(role: str, arguments: argparse.Namespace) -> None:
    """Run one of the processes: print the durations of its steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count = int(os.environ.get("WORLD_SIZE", "1")) * (WARMING_UP + arguments.steps + 1)
    moments = {"ours": ours, "plain": plain}[role](Volumes(count, arguments.size))
    print(json.dumps([after - before for before, after in itertools.pairwise(moments)][WARMING_UP:]))


@contextmanager
def hosts(gbit: float | None) -> Iterator[list[tuple[list[str], dict[str, str]]]]:
    """Yield, for each of two processes, the prefix of its command and its own environment variables."""
    if gbit is None:
        yield [([], {"MASTER_ADDR": "127.0.0.1"})] * 2
        return
    names = [f"gradients{number}-{os.getpid()}" for number in (0, 1)]
    links = [f"gr{number}{os.getpid()}" for number in (0, 1)]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for number, (name, link) in enumerate(zip(names, links, strict=True)):
            _ip("link", "set", link, "netns", name)
            _ip("-n", name, "addr", "add", f"10.213.0.{number + 1}/24", "dev", link)
            _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            rate = ["rate", f"{gbit}gbit", "burst", "1mb", "latency", "50ms"]
            command = ["tc", "-n", name, "qdisc", "add", "dev", link, "root", "tbf", *rate]
            subprocess.run(command, check=True)
        yield [
            (["ip", "netns", "exec", name], {"MASTER_ADDR": "10.213.0.1", "GLOO_SOCKET_IFNAME": link})
            for name, link in zip(names, links, strict=True)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def launched(role: str, count: int, places: list[tuple[list[str], dict[str, str]]]) -> list[float]:
    """Run so many processes and return the durations of the steps, for each step that of the slower process."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    started = []
    for rank, (before, own) in enumerate(places[:count]):
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **own, "MASTER_PORT": str(port)}
        if count > 1 or role == "plain":
            variables |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
        command = [*before, sys.executable, __file__, "--role", role, *sys.argv[1:]]
        started.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{role}: a process failed")
    steps = [json.loads(output.splitlines()[-1]) for output in outputs]
    return [max(times) for times in zip(*steps, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="measured steps of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="voxels along each axis of a volume, a multiple of 16")
    parser.add_argument("--gbit", type=float, help="two hosts with a link of this rate between them")
    parser.add_argument("--speedup", action="store_true", help="compare two processes with one")
    parser.add_argument("--role", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        work(arguments.role, arguments)
        return
    kinds = (
        {"two": ("ours", 2), "one": ("ours", 1)} if arguments.speedup else {"ours": ("ours", 2), "plain": ("plain", 2)}
    )
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with hosts(arguments.gbit) as places:
        for _ in range(arguments.turns):
            for name, (role, count) in kinds.items():
                found[name] += launched(role, count, places)
    step_s = {name: statistics.median(seconds) for name, seconds in found.items()}
    result = {"benchmark": "gradients", "gbit": arguments.gbit, "num_parameters": _size(), "steps": arguments.steps}
    result |= {f"{name}_step_s": round(seconds, 4) for name, seconds in step_s.items()}
    if arguments.speedup:
        result["speedup"] = round(2 * step_s["one"] / step_s["two"], 3)
    else:
        result["ratio"] = round(step_s["ours"] / step_s["plain"], 3)
    print(json.dumps(result))


def _size() -> int:
    return sum(parameter.numel() for parameter in network().parameters())


if __name__ == "__main__":
    main()
