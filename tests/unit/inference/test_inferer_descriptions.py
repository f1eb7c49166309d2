import pytest
import torch
from monai.inferers import (
    AvgMerger,
    PatchInferer,
    SaliencyInferer,
    SimpleInferer,
    SliceInferer,
    SlidingWindowInferer,
    SlidingWindowInfererAdapt,
    SlidingWindowSplitter,
)
from monai.utils import BlendMode

from candy_monai.errors import SettingsError
from candy_monai.experiment.description import FORMAT, ExperimentDescription
from candy_monai.inference.inferer_descriptions import describe_inferer, describe_windows, inferer_from_description
from candy_monai.inference.inferers import (
    WholeOrWindowsInferer,
    WindowInferer,
    build_inferer,
)
from tests.plans import small_plan


@pytest.mark.parametrize(
    ("inferer", "expected"),
    [
        (SimpleInferer(), {"_target_": "monai.inferers.SimpleInferer"}),
        (
            SlidingWindowInferer((8, 8), 3, 0.5, BlendMode.GAUSSIAN, device="cpu"),
            {
                "_target_": "monai.inferers.SlidingWindowInferer",
                "roi_size": [8, 8],
                "sw_batch_size": 3,
                "overlap": 0.5,
                "mode": "gaussian",
            },
        ),
        (
            SlidingWindowInfererAdapt(8, overlap=(0.25, 0.5)),
            {"_target_": "monai.inferers.SlidingWindowInfererAdapt", "roi_size": 8, "overlap": [0.25, 0.5]},
        ),
        (
            SliceInferer(spatial_dim=2, roi_size=(8, 8), padding_mode="reflect"),
            {
                "_target_": "monai.inferers.SliceInferer",
                "roi_size": [8, 8],
                "padding_mode": "reflect",
                "spatial_dim": 2,
            },
        ),
        (
            SaliencyInferer("GradCAM", "2", class_idx=1),
            {
                "_target_": "monai.inferers.SaliencyInferer",
                "cam_name": "gradcam",
                "target_layers": "2",
                "class_idx": 1,
            },
        ),
        (
            PatchInferer(SlidingWindowSplitter((8, 8), overlap=0.5), AvgMerger, batch_size=2),
            {
                "_target_": "monai.inferers.PatchInferer",
                "splitter": {
                    "_target_": "monai.inferers.SlidingWindowSplitter",
                    "patch_size": [8, 8],
                    "overlap": 0.5,
                },
                "merger_cls": "AvgMerger",
                "batch_size": 2,
            },
        ),
        (
            WindowInferer((8, 8), mode="constant"),
            {"_target_": "candy_monai.WindowInferer", "roi_size": [8, 8], "mode": "constant"},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_inferer_is_described_as_monai_s_configurations_do_and_built_again(inferer, expected):
    assert describe_inferer(inferer) == expected
    again = inferer_from_description(expected)
    assert type(again) is type(inferer)
    assert describe_inferer(again) == expected


class _Own(SimpleInferer):
    pass


@pytest.mark.parametrize(
    "inferer",
    [
        _Own(),
        PatchInferer(SlidingWindowSplitter((8, 8), filter_fn=lambda patch, place: True)),
        PatchInferer(SlidingWindowSplitter((8, 8)), postprocessing=torch.sigmoid),
        SaliencyInferer("CAM", "2", None, "last"),
        WholeOrWindowsInferer((8, 8), divisor=(4, 4)),
    ],
    ids=["a class", "a function", "a step", "an argument without a name", "a plan's"],
)
def test_what_is_no_plain_data_is_custom_and_cannot_be_built(inferer):
    assert describe_inferer(inferer) == "custom"
    with pytest.raises(SettingsError, match="custom"):
        inferer_from_description("custom")


def test_an_inferer_of_a_plan_is_named_as_that_and_another_of_its_kind_is_not():
    plan = small_plan()
    assert describe_inferer(build_inferer(plan), plan) == "plan"
    assert describe_windows(inferer_from_description("plan", plan)) == describe_windows(build_inferer(plan))
    other = WholeOrWindowsInferer([side + 8 for side in plan.patch_shape], divisor=plan.divisor)
    assert describe_inferer(other, plan) == "custom"
    assert describe_inferer(None, plan) is None
    assert inferer_from_description(None, plan) is None


def test_experiments_of_before_describe_windows_in_another_way():
    old = {"kind": "windows", "window_shape": [8, 12], "overlap": 0.25, "batch_size": None}
    described = ExperimentDescription.from_dict({"format": FORMAT, "inferer": old})
    assert describe_inferer(inferer_from_description(described.inferer)) == {
        "_target_": "candy_monai.WindowInferer",
        "roi_size": [8, 12],
        "overlap": 0.25,
    }


@pytest.mark.parametrize(
    "description",
    [
        "plan",
        {"_target_": "os.system", "command": "true"},
        {"_target_": "monai.inferers.SlidingWindowSplitter", "patch_size": [8, 8]},
        {"_target_": "monai.inferers.SimpleInferer", "splitter": {"_target_": "os.system", "command": "true"}},
        {"_target_": "monai.inferers.PatchInferer", "merger_cls": "os.path.join"},
        {"_target_": "candy_monai.WindowInferer"},
        {"_target_": "candy_monai.WindowInferer", "roi_size": [8, 8], "new_room": "os.system"},
        {"_target_": "candy_monai.WindowInferer", "roi_size": [8, 8], "new_buffer": "os.system"},
        {"_target_": "monai.inferers.PatchInferer", "preprocessing": "os.system"},
        {"kind": "windows", "window_shape": None},
    ],
    ids=str,
)
def test_nothing_but_inferers_is_built_from_a_file(description):
    with pytest.raises(SettingsError, match="cannot be built from its description"):
        inferer_from_description(description)
