"""What an offline run of Weights & Biases holds, by the client's own protocol buffers.

The file is a log of LevelDB's: blocks of 32 KiB with records that are whole or in parts.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

_BLOCK, _HEADER = 1 << 15, 7


def offline_run(folder):
    """Return what an offline run's folder holds, as plain values: ``history`` by row, ``config``, ``summary``, more."""
    from wandb.proto import wandb_internal_pb2

    (file,) = Path(folder).glob("*.wandb")
    found = {"history": [], "config": {}, "summary": {}, "run": {}, "exit_code": None, "metrics": []}
    for content in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        match record.WhichOneof("record_type"):
            case "history":
                found["history"].append(_items(record.history.item))
            case "config":
                found["config"] |= _items(record.config.update)
            case "summary":
                found["summary"] |= _items(record.summary.update)
            case "run":
                run = record.run
                found["run"] = {"id": run.run_id, "name": run.display_name, "project": run.project, "notes": run.notes}
                found["config"] |= _items(run.config.update)
            case "exit":
                found["exit_code"] = record.exit.exit_code
            case "metric":
                metric = record.metric
                found["metrics"].append((metric.name or metric.glob_name, metric.step_metric))
    return found


def _items(items):
    values = {}
    for item in items:
        values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return values


def _records(content):
    assert content.startswith(b":W&B")
    place, parts = _HEADER, []
    while place + _HEADER <= len(content):
        if _BLOCK - place % _BLOCK < _HEADER:
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + _HEADER])
        if kind == 0:
            break
        parts.append(content[place + _HEADER : place + _HEADER + length])
        place += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []
