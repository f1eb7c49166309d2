"""Count how often a dataset is looked at."""

from __future__ import annotations

from candy_monai.data.datasets import nnunet, nnunet_files
from candy_monai.data.images import reading
from candy_monai.data.inspection import checks, digest


def counted_parses(monkeypatch):
    """Return a list that grows by a folder whenever its ``dataset.json`` is parsed."""
    return _counted(monkeypatch, "parse_description", nnunet_files)


def counted_reads(monkeypatch):
    """Return a list that grows by a path whenever its file is decoded."""
    return _counted(monkeypatch, "read_scan", reading, nnunet, checks)


def counted_digests(monkeypatch):
    """Return a list that grows by a path whenever its file is digested."""
    return _counted(monkeypatch, "_parts_of", digest)


def _counted(monkeypatch, name, *modules):
    seen, function = [], getattr(modules[0], name)

    def counting(first, *args, **kwargs):
        seen.append(first)
        return function(first, *args, **kwargs)

    for module in modules:
        monkeypatch.setattr(module, name, counting)
    return seen
