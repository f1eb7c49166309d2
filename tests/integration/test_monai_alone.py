"""MONAI without candy_monai builds what an experiment's pipelines describe, and gets the same."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.pipelines.description import describe_pipelines
from candy_monai.data.pipelines.preprocessing import Preprocessor
from candy_monai.data.planning.rules import plan

ALONE = """
import json, sys
sys.modules["candy_monai"] = None  # an import of it, of any kind, fails
from pathlib import Path
import numpy as np, torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

folder = Path(sys.argv[1])
parser = ConfigParser(json.loads((folder / "pipelines.json").read_text()))
preprocess, postprocess = (Compose(parser.get_parsed_content(name)) for name in ("preprocessing", "postprocessing"))
for index, image in enumerate(json.loads((folder / "images.json").read_text())):
    case = preprocess({"image": image})
    done = postprocess({"image": case["image"], "pred": torch.from_numpy(np.load(folder / f"{index}.logits.npy"))})
    np.savez(folder / f"{index}.npz", image=case["image"].numpy(), ids=done["pred"].numpy())
"""


@pytest.mark.realdata
def test_monai_alone_preprocesses_and_postprocesses_hippocampus_as_we_do(real_dataset, tmp_path):
    dataset = NNUNetDataset(real_dataset("Dataset004_Hippocampus"))
    chosen = dataset.subset(dataset.case_ids[::60])
    made = plan(inspect(chosen))
    described = describe_pipelines(made)
    preprocessor, expected = Preprocessor(made), []
    for index, (image, label) in enumerate(chosen):
        case = preprocessor.apply(image, label)
        noise = torch.randn(case.label.shape[1:], generator=torch.Generator().manual_seed(index))
        logits = F.one_hot(case.label[0].long(), made.num_classes).movedim(-1, 0) + noise
        np.save(tmp_path / f"{index}.logits.npy", logits.numpy())
        expected.append((case.image.numpy(), preprocessor.restore_labels(logits, case).numpy(), label.numpy()))
    files = [str(case.images[0]) for case in chosen.cases]
    (tmp_path / "images.json").write_text(json.dumps(files))
    (tmp_path / "pipelines.json").write_text(
        json.dumps({name: described[name] for name in ("preprocessing", "postprocessing")})
    )
    subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], check=True, cwd=tmp_path)
    for index, (image, ids, label) in enumerate(expected):
        alone = np.load(tmp_path / f"{index}.npz")
        assert np.allclose(alone["image"], image, atol=1e-5)
        assert np.array_equal(ids, label)  # the same noise for every class changes no winner
        foreground = (alone["ids"] > 0) | (ids > 0)
        assert (alone["ids"] == ids)[foreground].mean() >= 0.999
