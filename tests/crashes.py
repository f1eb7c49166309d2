"""Runs that are made to crash, and whether two runs are the same to the bit."""

import csv

import torch

from candy_monai.experiment.state import load_state

QUIET = {"early_stop_tolerance": None, "save_preview": False, "seed": 5}


class Crash(Exception):
    pass


def crashing(trainer, *, step=None, case=None):
    """Let a trainer raise before a step, or in a validation, both counted over all epochs from 1."""
    counts = {"step": 0, "case": 0}
    backward, validate_case = trainer.backward, trainer.validate_case

    def train(*arguments):
        counts["step"] += 1
        if counts["step"] == step:
            raise Crash
        return backward(*arguments)

    def validate(*arguments):
        counts["case"] += 1
        if counts["case"] == case:
            raise Crash
        return validate_case(*arguments)

    trainer.backward, trainer.validate_case = train, validate
    return trainer


def assert_same_run(first, second):
    """Compare every file of weights, the state and the metrics of two folders, but for what the clock decides."""
    names = [sorted(path.name for path in folder.glob("checkpoint*")) for folder in (first, second)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert_same(comparable(load_state(first).to_dict()), comparable(load_state(second).to_dict()))
    assert _rows(first) == _rows(second)


def _rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    duration = rows[0].index("epoch duration")
    return [row[:duration] + row[duration + 1 :] for row in rows]


def comparable(state):
    for row in state["history"]["rows"]:
        row.pop("epoch duration")
    state["progress"].pop("total_s")
    state["settings"].pop("save_every")
    return state


def assert_same(first, second, where="state"):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for name in first:
            assert_same(first[name], second[name], f"{where}.{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    else:
        assert first == second or (first != first and second != second), where
