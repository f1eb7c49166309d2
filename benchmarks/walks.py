"""Measure how often a reader goes back to a module that they had already left; print one line per walk.

A walk follows the interpreter on the main thread, like a reader who reads each function once:

* A *visit* is the first call of a function of `candy_monai` or of its bundles that receives the subject of the walk, as
  an argument or as a member of a list, tuple or dictionary among them. Later calls are not read again. Lambdas,
  comprehensions and generator expressions are read in place, so they do not count as functions; properties and methods
  such as ``__len__`` count as data; and calls during the import of a module are left out.
* A *return* is a visit in another module than the visit before it, to a module that had been visited earlier. Coming
  back from a call to continue in the caller is not a return.
* A *re-entry* is a return by a call from another module. The other returns are calls of a function within the caller's
  own module, to which the reader has come back in any case.

There are three walks:

* ``dataset``: `train_dataset` of a phantom, from the call to the first optimizer step: functions that receive a path of
  the dataset, or an object that describes it (of a class of ``candy_monai.data``: dataset, fingerprint, plan, store and
  so on);
* ``settings``: `Trainer.train` of two convolutions for two epochs: functions that receive the `TrainSettings`, or take
  them from an attribute ``settings``;
* ``scan``: `Predictor.predict_to_files` of one image, with the weights of that run of `train_dataset`: functions that
  receive its path, or a tensor, an array, or a case of ``candy_monai.inference``.

With ``--all`` the walks include all functions. With ``--modules`` each walk is printed, too: a line for each stay in a
module, with the functions that were read there; ``!`` marks a re-entry, ``<`` another return. To walk through another
version, run this file with that version's folder and its ``bundles`` as ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import candy_monai
import candy_monai_bundles

ROOTS = tuple(str(Path(folder)) + "/" for package in (candy_monai, candy_monai_bundles) for folder in package.__path__)
TINY = {"filters": "4,8,8", "patch_shape": "16,16,16", "batch_size": "2", "iterations_per_epoch": "2"}


class Visit(NamedTuple):
    """The first call of a function.

    Attributes:
        module: The file of its module.
        function: Its name.
        caller: The file of the calling module, possibly through a library; None for the first.
    """

    module: str
    function: str
    caller: str | None


class ArrivedError(Exception):
    """The walk has reached its end."""


class Walk:
    """The first visits of functions, in order.

    Args:
        until: The name of the function at which the walk ends; None for a walk to the end.
        about: Returns whether a value is the subject of the walk.
        named: The attribute name of the subject; a function that uses this name need not receive it as an argument.
    """

    def __init__(self, about: Callable[[object], bool], *, until: str | None = None, named: str | None = None) -> None:
        self.visits: list[Visit] = []
        self._seen: set[object] = set()
        self._importing: list[FrameType] = []
        self._until = until
        self._about, self._named = about, named

    def through(self, do: Callable[[], object]) -> None:
        """Call a function and record what it visits."""
        sys.setprofile(self._notice)
        try:
            do()
        except ArrivedError:
            pass
        finally:
            sys.setprofile(None)

    def stays(self) -> list[list[Visit]]:
        """Return the visits, grouped into consecutive visits in one module."""
        return [list(visits) for _, visits in itertools.groupby(self.visits, key=lambda visit: visit.module)]

    def returns(self) -> list[Visit]:
        """Return the visits that begin a stay in a module that was left before."""
        left, returns = set(), []
        for first, *_ in self.stays():
            if first.module in left:
                returns.append(first)
            left.add(first.module)
        return returns

    def re_entries(self) -> list[Visit]:
        """Return those of the returns that are calls from another module."""
        return [visit for visit in self.returns() if visit.caller != visit.module]

    def _notice(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if code.co_name == "<module>":
            if event == "call":
                self._importing.append(frame)
            elif event == "return" and self._importing and self._importing[-1] is frame:
                self._importing.pop()
            return
        if event != "call" or self._importing or code in self._seen or code.co_name.startswith("<"):
            return
        module = module_of(frame)
        if module is None or stands_for_data(frame):
            return
        if code.co_qualname == self._until:
            raise ArrivedError
        if not self._is_handed(frame):
            return
        self._seen.add(code)
        outer = frame.f_back
        while outer is not None and module_of(outer) is None:
            outer = outer.f_back
        self.visits.append(Visit(module, code.co_qualname, None if outer is None else module_of(outer)))

    def _is_handed(self, frame: FrameType) -> bool:
        code = frame.f_code
        if self._named in code.co_names:
            return True
        num_arguments = code.co_argcount + code.co_kwonlyargcount
        num_arguments += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
        for name in code.co_varnames[:num_arguments]:
            value = frame.f_locals.get(name)
            members = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
            if any(map(self._about, (value, *members))):
                return True
        return False


def module_of(frame: FrameType) -> str | None:
    """Return the file of a frame's module, if it is in the package or the bundles; None otherwise."""
    name = frame.f_code.co_filename
    return next((name.removeprefix(root) for root in ROOTS if name.startswith(root)), None)


def stands_for_data(frame: FrameType) -> bool:
    """Return whether a function is a property, or called by Python for an operator or built-in function."""
    name, first = frame.f_code.co_name, frame.f_code.co_varnames[:1]
    if name.startswith("__") and name not in ("__init__", "__post_init__", "__call__"):
        return True
    present = (
        inspect.getattr_static(type(frame.f_locals[first[0]]), name, None) if first in (("self",), ("cls",)) else None
    )
    return isinstance(present, property | functools.cached_property)


class Convolutions(candy_monai.SegmentationTrainer):
    """Trains two convolutions."""

    def build_network(self, example_shape: tuple[int, ...]) -> nn.Module:
        """Build the network."""
        return nn.Sequential(nn.Conv2d(example_shape[0], 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))


def is_of(value: object, package: str) -> bool:
    """Return whether a value is an instance of a class of a package."""
    return type(value).__module__.startswith(package)


def is_within(value: object, folder: Path) -> bool:
    """Return whether a value is the path of a folder or of something inside it."""
    return isinstance(value, str | Path) and (str(value) == str(folder) or str(value).startswith(f"{folder}/"))


def walk_through_a_dataset(dataset: Path, out: Path, *, everything: bool) -> Walk:
    """Return the walk from a dataset folder to the first step."""
    from candy_monai.recipes.train import train_dataset

    walk = Walk(
        lambda value: everything or is_within(value, dataset) or is_of(value, "candy_monai.data"), until="Trainer.step"
    )
    keywords = {"num_epochs": 1, "overrides": TINY, "device": "cpu", "seed": 1}
    walk.through(lambda: train_dataset(dataset, **keywords, out=out, on_progress=lambda _message: None))
    return walk


def walk_through_a_run(out: Path, *, everything: bool) -> Walk:
    """Return the walk from the keywords of ``train`` to the end of a run."""
    samples = [(torch.rand(1, 16, 16), (torch.rand(1, 16, 16) > 0.5).long()) for _ in range(4)]
    trainer = Convolutions(out, DataLoader(samples, batch_size=2), DataLoader(samples[:2]), console=False)
    walk = Walk(lambda value: everything or type(value).__name__ == "TrainSettings", named="settings")
    walk.through(lambda: trainer.train(2, seed=1, save_preview=False, save_every="10m", time_limit_s=600))
    return walk


def walk_of_a_scan(dataset: Path, out: Path, *, everything: bool) -> Walk:
    """Return the walk of an image from prediction to its file."""
    from candy_monai.recipes.train import train_dataset

    keywords = {"num_epochs": 1, "overrides": TINY, "device": "cpu", "seed": 1}
    folder = train_dataset(dataset, **keywords, out=out, on_progress=lambda _message: None)
    predictor = candy_monai.Predictor(folder, device="cpu")
    image = min((dataset / "imagesTr").iterdir())

    def is_the_scan(value: object) -> bool:
        is_case = is_of(value, "candy_monai.inference") and "Case" in type(value).__name__
        return is_within(value, image) or isinstance(value, torch.Tensor | np.ndarray) or is_case

    walk = Walk(lambda value: everything or is_the_scan(value))
    walk.through(lambda: predictor.predict_to_files(image, out / "predicted"))
    return walk


def main() -> None:
    """Print the number of returns of each walk."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="visit functions whatever they receive")
    parser.add_argument("--modules", action="store_true", help="also print each walk")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        dataset = candy_monai.write_phantom_dataset(out / "phantom", num_cases=4, shape=(24, 24, 20))
        walks = {
            "dataset": walk_through_a_dataset(dataset, out / "first", everything=arguments.all),
            "settings": walk_through_a_run(out / "second", everything=arguments.all),
            "scan": walk_of_a_scan(dataset, out / "third", everything=arguments.all),
        }
    for name, walk in walks.items():
        returns, re_entries = walk.returns(), walk.re_entries()
        extent = f"{len(walk.visits)} functions in {len({visit.module for visit in walk.visits})} modules"
        print(f"{name}: {len(re_entries)} re-entries, {len(returns)} returns, {extent}")
        for first, *others in walk.stays() if arguments.modules else ():
            mark = "!" if first in re_entries else "<" if first in returns else " "
            print(f"  {mark} {first.module}: {', '.join(visit.function for visit in (first, *others))}")


if __name__ == "__main__":
    main()
