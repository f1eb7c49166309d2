"""Plans to test with: a made-up one of small cubes, and that of a phantom dataset."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.normalization import ChannelNormalization
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.rules import plan
from candy_monai.demo.phantom import write_phantom_dataset

PLAN = Plan(
    dataset_name="Made up",
    num_dims=3,
    orientation=("R", "A", "S"),
    spacing_mm=(1.0, 1.0, 1.0),
    median_shape=(8, 8, 8),
    channel_names=("MRI",),
    normalization=(ChannelNormalization(scheme="nonorm"),),
    class_names=("background", "a", "b"),
    num_classes=3,
    ignore_label=None,
    regions=(),
    patch_shape=(8, 8, 8),
    batch_size=2,
    filters=(4, 8),
    kernel_sizes=((3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 2)),
    deep_supervision=False,
    mirror_axes=(0, 1, 2),
    foreground_share=0.33,
    learning_rate=1e-3,
    weight_decay=0.0,
    iterations_per_epoch=1,
    num_epochs=1,
    validate_every=1,
    num_validation_cases=None,
)


def unet_plan(side, filters, *, num_classes=3):
    """Return the made-up plan with a cube of a patch and a U-Net of these widths, which is deeply supervised."""
    return dataclasses.replace(
        PLAN,
        patch_shape=(side,) * 3,
        filters=filters,
        kernel_sizes=((3, 3, 3),) * len(filters),
        strides=((1, 1, 1), *((2, 2, 2),) * (len(filters) - 1)),
        num_classes=num_classes,
        class_names=tuple(map(str, range(num_classes))),
        deep_supervision=True,
    )


@functools.cache
def small_plan() -> Plan:
    """Return the plan of a small phantom of volumes."""
    with tempfile.TemporaryDirectory() as folder:
        return plan(inspect(write_phantom_dataset(Path(folder) / "d", num_cases=3, shape=(24, 24, 16))))
