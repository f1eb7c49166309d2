from __future__ import annotations

import copy
import json

import pytest
import torch

from candy_monai.errors import ExperimentError
from candy_monai.incoming.nnunet import NNUNetPredictor, load_nnunet_network
from tests.nnunet_folders import plans, write_folder

pytest.importorskip("dynamic_network_architectures", reason="the networks of nnU-Net come with the extra nnunet")


@pytest.fixture
def model(tmp_path):
    """A trained folder, whose plans a test rewrites."""
    write_folder(tmp_path / "m", plans())
    return tmp_path / "m"


def rewrite(model, change):
    content = json.loads((model / "plans.json").read_text())
    change(content, content["configurations"]["3d_fullres"])
    (model / "plans.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, c: c.update(previous_stage="3d_lowres"), "second stage of a cascade"),
        (lambda p, c: c.update(preprocessor_name="Mine"), "preprocessor_name is 'Mine', expected DefaultPreprocessor"),
        (lambda p, c: p.update(label_manager="Mine"), "label_manager is 'Mine', expected LabelManager"),
        (lambda p, c: p.update(image_reader_writer="Mine"), "images were read by Mine, .* known are SimpleITKIO"),
        (
            lambda p, c: p.update(transpose_forward=[0, 0, 1]),
            r"transpose_forward is \[0, 0, 1\], expected a permutation of the axes",
        ),
        (lambda p, c: c.update(resampling_fn_data="resample_torch_fornnunet"), "resampling_fn_data is 'resample_torch"),
        (
            lambda p, c: c["resampling_fn_probabilities_kwargs"].update(order=3),
            "resampling_fn_probabilities_kwargs has order=3, expected .*order=1",
        ),
        (lambda p, c: c.update(normalization_schemes=["Mine"]), "channel 0 is normalised by 'Mine', expected one of"),
        (lambda p, c: c.update(use_mask_for_norm=[]), "expected one per channel"),
        (lambda p, c: c.update(patch_size=[8, "16", 12]), "patch_size is .*, expected 2 or 3 whole numbers above 0"),
        (lambda p, c: c.update(patch_size=[9, 16, 12]), "3d_fullres cannot be used: patch_shape .* not a multiple"),
        (lambda p, c: c.update(spacing=[1.0, 0.0, 1.0]), "spacing is .*, expected 3 numbers above 0"),
        (lambda p, c: c.pop("architecture"), "the configuration has no architecture, and none can be made"),
        (lambda p, c: p.update(configurations={"2d": c}), "found no configuration '3d_fullres', expected one of '2d'"),
        (lambda p, c: c.update(inherits_from="3d_fullres"), "inherits from itself"),
        (
            lambda p, c: c["architecture"].update(network_class_name="os.system"),
            "the network is os.system, which is not imported, .* PlainConvUNet",
        ),
        (
            lambda p, c: c["architecture"].update(network_class_name="dynamic_network_architectures.x.Primus"),
            "the network is dynamic_network_architectures.x.Primus",
        ),
        (lambda p, c: c["architecture"]["arch_kwargs"].update(conv_op="os.system"), "conv_op is 'os.system', which"),
        (lambda p, c: c["architecture"]["arch_kwargs"].update(n_stages=10**9), "n_stages is 1000000000, expected"),
        (lambda p, c: c["architecture"]["arch_kwargs"].update(mine=3), "PlainConvUNet cannot be built .*'mine'"),
        (lambda p, c: c["architecture"]["arch_kwargs"].update(strides=[[1, 1, 1]]), "strides is .* for each of 3"),
        (
            lambda p, c: c["architecture"]["arch_kwargs"].update(features_per_stage=[4, 8, 10**9]),
            r"does not fit the network PlainConvUNet .*expected .*1000000000.* trained by nnUNetTrainer",
        ),
        (lambda p, c: c["architecture"]["arch_kwargs"].update(features_per_stage=["a"]), "features_per_stage is"),
    ],
)
def test_what_is_not_reproduced_or_damaged_is_refused_by_name(model, change, said):
    rewrite(model, change)
    with pytest.raises(ExperimentError, match=said):
        NNUNetPredictor(model)


def test_a_missing_or_damaged_description_is_named(model):
    (model / "plans.json").write_text("{")
    with pytest.raises(ExperimentError, match=r"plans\.json: not readable as JSON"):
        NNUNetPredictor(model)
    (model / "plans.json").write_text("[]")
    with pytest.raises(ExperimentError, match=r"plans\.json: found a list"):
        NNUNetPredictor(model)
    (model / "dataset.json").write_text('{"labels": {}}')
    (model / "plans.json").write_text(json.dumps(plans()))
    with pytest.raises(ExperimentError, match=r"dataset\.json: .*'channel_names' is missing"):
        NNUNetPredictor(model)
    (model / "dataset.json").unlink()
    with pytest.raises(ExperimentError, match=r"has no dataset\.json"):
        NNUNetPredictor(model)


def test_the_plan_has_the_axes_of_the_file(tmp_path):
    kernels = [[1, 3, 5], [3, 3, 3], [3, 3, 3]]
    written = plans(patch=(8, 16, 12), spacing=(1.0, 2.0, 3.0), transpose=(1, 0, 2))
    written["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["kernel_sizes"] = kernels
    write_folder(tmp_path / "m", written, mirror=(0,))
    plan = NNUNetPredictor(tmp_path / "m").plan
    # nnU-Net's transposed axes are y, z, x.
    assert (plan.patch_shape, plan.spacing_mm) == ((12, 8, 16), (3.0, 1.0, 2.0))
    assert (plan.kernel_sizes[0], plan.mirror_axes, plan.orientation) == ((5, 1, 3), (1,), None)


def test_a_reader_that_turns_images_to_ras_is_reproduced(tmp_path):
    write_folder(tmp_path / "m", plans(reader="NibabelIOWithReorient"))
    assert NNUNetPredictor(tmp_path / "m").plan.orientation == ("R", "A", "S")


def test_a_configuration_that_inherits_is_put_together(model):
    def derive(content, configuration):
        content["configurations"]["base"] = copy.deepcopy(configuration)
        configuration.clear()
        configuration.update(inherits_from="base", batch_size=7)

    rewrite(model, derive)
    assert NNUNetPredictor(model).plan.batch_size == 7


def test_plans_of_versions_before_architectures_were_written_down_are_read(model):
    before, _ = load_nnunet_network(model)

    def rewritten(content, configuration):
        arguments = configuration.pop("architecture")["arch_kwargs"]
        configuration.update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=4,
            unet_max_num_features=8,
            n_conv_per_stage_encoder=arguments["n_conv_per_stage"],
            n_conv_per_stage_decoder=arguments["n_conv_per_stage_decoder"],
            conv_kernel_sizes=arguments["kernel_sizes"],
            pool_op_kernel_sizes=arguments["strides"],
        )
        content["foreground_intensity_properties_by_modality"] = content.pop(
            "foreground_intensity_properties_per_channel"
        )

    rewrite(model, rewritten)
    after, _ = load_nnunet_network(model)
    image = torch.rand(1, 1, 12, 16, 8)
    with torch.no_grad():
        assert torch.equal(before(image), after(image))
