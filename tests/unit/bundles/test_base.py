import dataclasses
import json
import types

import pytest
import torch

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.rules import plan
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.incoming.opening import load_predictor
from candy_monai.inference.inputs import CaseFiles
from candy_monai.network import num_parameters
from candy_monai.recipes.train import train_dataset
from candy_monai.registry import bundle_names, find_bundle
from candy_monai.training.options import SegmentationOptions
from tests.contracts.trainer_contract import TrainerContract
from tests.toys import Squares, loaders

SMALLEST = {"segresnet": "S", "mednext": "S", "swin_unetr": "S", "unetr": "S", "unetpp": "S", "vnet": None}
FOLLOWING_THE_PLAN = ("unet", "dynunet", "attention_unet")
PARTS = {  # of real datasets: cases, pixels along the first two axes, and folds, of a case or two to score
    "Dataset004_Hippocampus": (8, None, 8),
    "Dataset027_ACDC": (8, 160, 4),
    "Dataset121_DRIVE": (6, 160, 6),
}
ALL = (*FOLLOWING_THE_PLAN, *SMALLEST, "cmunext")
NOT_OF_PICTURES = ("vnet", "unetr", "swin_unetr")  # V-Net takes no colour; the others take long
OF_SLICES = ("unet", "segresnet", "cmunext", "unetr")  # of volumes; the others do nothing else than these
PARAMETERS = [
    # of one channel and three classes
    ("unet", 2, "B", 7_763_404),
    ("unet", 3, "S", 5_646_860),
    ("dynunet", 2, "S", 1_987_292),
    ("dynunet", 3, "B", 16_671_596),
    ("attention_unet", 2, "B", 7_939_811),
    ("attention_unet", 3, "S", 5_909_147),
    ("segresnet", 2, "B", 6_643_145),
    ("segresnet", 3, "S", 4_980_745),
    ("mednext", 2, "S", 5_474_927),
    ("mednext", 3, "S", 5_553_839),
    ("mednext", 3, "B", 10_513_775),
    ("mednext", 3, "M", 17_536_431),
    ("swin_unetr", 2, "S", 7_183_533),
    ("unetr", 2, "S", 22_746_963),
    ("unetr", 3, "S", 26_249_331),
    ("unetpp", 2, "B", 2_410_444),
    ("unetpp", 3, "B", 6_980_108),
    ("vnet", 2, None, 9_359_538),
    ("vnet", 3, None, 45_601_906),
    ("cmunext", 3, "B", 7_258_979),
    ("mednext", 3, "L", 61_729_679),
    ("segresnet", 3, "L", 87_164_684),
    ("unetr", 3, "B", 92_685_555),
    pytest.param("swin_unetr", 3, "S", 18_346_869, marks=pytest.mark.slow),
    pytest.param("swin_unetr", 3, "B", 72_762_117, marks=pytest.mark.slow),
]


def _trainer(folder, name, size=(20, 28), *, data=None, network_size=None, **attributes):
    training, validation = loaders(Squares(2, size=size) if data is None else data)
    cls = find_bundle(name).trainer
    if (network_size := network_size or SMALLEST.get(name)) is not None:
        cls = cls.with_network({"size": network_size})
    trainer = cls(folder, training, validation, console=False)
    for attribute, value in {"num_dims": len(size), **attributes}.items():
        setattr(trainer, attribute, value)
    return trainer


@pytest.fixture(scope="module")
def volume_plan(tmp_path_factory):
    folder = write_phantom_dataset(tmp_path_factory.mktemp("d") / "v", num_cases=3, shape=(40, 58, 24))
    found = inspect(folder)
    return lambda configuration="3d", **overrides: plan(found, overrides=overrides, configuration=configuration)


def _contract_of(name):
    def make_trainer(self, folder):
        return _trainer(folder, name, (40, 60) if name == "swin_unetr" else (20, 28), num_classes=1)

    return pytest.mark.slow(type(f"Test{name}", (TrainerContract,), {"make_trainer": make_trainer}))


for _name in (*SMALLEST, "dynunet", "attention_unet"):
    globals()[f"TestContractOf_{_name}"] = _contract_of(_name)


def test_every_bundle_is_listed_here():
    assert {*ALL, "monai"} <= set(bundle_names())


@pytest.mark.parametrize(("name", "num_dims", "size", "count"), PARAMETERS)
def test_the_sizes_have_their_number_of_parameters(tmp_path, name, num_dims, size, count):
    trainer = _trainer(tmp_path, name, (32,) * num_dims, network_size=size, num_classes=3)
    trainer.options = SegmentationOptions(deep_supervision=trainer.supervises_deeply)
    with torch.device("cpu" if name == "swin_unetr" else "meta"):  # Swin UNETR reads numbers off tensors
        assert num_parameters(trainer.build_network((1, *(64,) * num_dims))) == count


@pytest.mark.parametrize("name", ["segresnet", "mednext", "unetpp", "dynunet"])
def test_deep_supervision_trains_on_more_than_one_output_and_predicts_with_the_main_one(tmp_path, name):
    trainer = _trainer(tmp_path, name, (20, 28), options=SegmentationOptions(deep_supervision=True))
    network = trainer.build_network((1, 32, 32))
    assert len(network(torch.randn(2, 1, 32, 32))) > 1
    assert network.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 1, 32, 32)


def test_the_main_output_of_unet_plus_plus_is_the_deepest_in_training_too(tmp_path):
    network = _trainer(tmp_path, "unetpp", options=SegmentationOptions(deep_supervision=True)).build_network(
        (1, 32, 32)
    )
    images = torch.randn(2, 1, 32, 32)
    trained = network(images)[0]  # instance normalisation does the same in both modes
    assert torch.equal(network.eval()(images), trained)


def test_an_unknown_size_is_refused_with_the_sizes(tmp_path):
    with pytest.raises(SettingsError, match="MedNeXt has no size 'XL'.*Sizes: S, B, M, L"):
        find_bundle("mednext").trainer.with_network({"size": "XL"})
    with pytest.raises(SettingsError, match="VNetTrainer has no such argument"):
        find_bundle("vnet").trainer.with_network({"size": "S"})
    trainer = _trainer(tmp_path, "segresnet")
    trainer.size = "huge"
    with pytest.raises(SettingsError, match="SegResNet has no size 'huge'"):
        trainer.train(1)
    assert not list(tmp_path.iterdir())


def test_an_argument_that_the_network_has_not_is_refused_with_the_closest():
    with pytest.raises(SettingsError, match="Did you mean 'kernel_size'"):
        find_bundle("mednext").trainer.with_network({"kernel_sice": 5})
    with pytest.raises(SettingsError, match="kernel_size must be 3 or 5, got 4"):
        find_bundle("mednext").trainer.with_network({"kernel_size": 4})


def test_a_size_brings_its_memory_factor_and_a_subclass_may_say_both():
    trainer = find_bundle("mednext").trainer
    assert trainer.with_network({"size": "L"}).options.memory_factor > trainer.options.memory_factor == 4.1
    assert (
        type("Own", (trainer,), {"size": "L", "options": SegmentationOptions(memory_factor=9.0)}).options.memory_factor
        == 9.0
    )


def test_a_network_has_an_input_for_each_class_of_the_first_stage_of_a_cascade(volume_plan, monkeypatch):
    cascade = volume_plan("3d_cascade")
    with pytest.raises(SettingsError, match="but its input has 3 here"):
        find_bundle("vnet").trainer.check_plan(cascade)
    asked = []
    network = find_bundle("monai").trainer.with_network({"network": "SegResNet"})
    monkeypatch.setattr(network, "_divisor", lambda *numbers: asked.append(numbers) or 8)
    assert network.divisors(cascade) == (8, 8, 8)
    assert asked == [(3, 3, 3)]


def test_a_size_of_a_network_that_follows_the_plan_decides_its_filters_and_no_budget_widens_it(volume_plan):
    wide = find_bundle("dynunet").trainer.with_network({"size": "B"})
    assert wide.adapt_plan(volume_plan()).filters[:3] == (32, 64, 128)
    assert (find_bundle("dynunet").trainer.options.follows_filters, wide.options.follows_filters) == (True, False)
    with pytest.raises(SettingsError, match=r"is fixed by its size \(S, B, L\): leave out filters"):
        wide.check_plan(volume_plan(filters=(4, 8, 8)))


@pytest.mark.parametrize(("name", "divisor"), [("mednext", 16), ("swin_unetr", 32), ("unetpp", 16)])
def test_a_plan_s_patch_is_brought_to_what_the_network_divides_by(volume_plan, name, divisor):
    cls = find_bundle(name).trainer
    made = volume_plan()
    adapted = cls.adapt_plan(made)
    assert adapted.divisor == (divisor,) * 3
    assert all(size % divisor == 0 for size in adapted.patch_shape)
    assert max(adapted.patch_shape) > divisor  # more than one voxel at the lowest level
    assert cls.adapt_plan(adapted) == adapted


def test_a_plan_of_slices_is_divided_along_the_slice_alone(volume_plan):
    adapted = find_bundle("mednext").trainer.adapt_plan(volume_plan("2d"))
    assert adapted.slice_axis is not None
    assert adapted.patch_shape[adapted.slice_axis] == adapted.divisor[adapted.slice_axis] == 1
    assert sorted(adapted.divisor) == [1, 16, 16]


def test_a_patch_of_the_user_s_stays_and_is_padded_where_it_does_not_fit(tmp_path, volume_plan):
    trainer = _trainer(tmp_path, "unetr", (8, 8, 8))
    trainer.use_plan(volume_plan(patch_shape=(40, 56, 24)))
    assert trainer.plan.patch_shape == (40, 56, 24)
    assert trainer.build_padding_module().min_factor == trainer.image_size == (48, 64, 32)


def test_rates_are_the_network_s_own_unless_the_user_chose_them(volume_plan):
    cls = find_bundle("mednext").trainer
    adapted = cls.adapt_plan(volume_plan(weight_decay=0.5))
    assert (adapted.learning_rate, adapted.weight_decay) == (1e-3, 0.5)
    assert find_bundle("unet").trainer.adapt_plan(volume_plan()) == volume_plan()


def test_a_layout_or_deep_supervision_that_a_network_has_not_is_refused(volume_plan):
    with pytest.raises(SettingsError, match=r"Swin UNETR is fixed by its size \(S, B\): leave out filters"):
        find_bundle("swin_unetr").trainer.check_plan(volume_plan(filters=(4, 8, 8)))
    with pytest.raises(SettingsError, match="Swin UNETR has no outputs at lower resolutions"):
        find_bundle("swin_unetr").trainer.check_plan(volume_plan(deep_supervision=True))


@pytest.mark.parametrize("patch", ["24,24,24", "32,32,32"])
def test_a_patch_that_leaves_a_single_voxel_is_refused_before_anything_starts(volume_plan, patch):
    small = volume_plan(patch_shape=tuple(map(int, patch.split(","))))
    with pytest.raises(SettingsError, match="is too small: Swin UNETR downsamples each axis by 32.*more than 32 along"):
        find_bundle("swin_unetr").trainer.adapt_plan(small)
    assert find_bundle("unetr").trainer.adapt_plan(small).patch_shape == small.patch_shape


def test_batch_normalisation_takes_a_single_voxel_of_several_cases(volume_plan):
    trainer, small = find_bundle("vnet").trainer, {"patch_shape": (16, 16, 16)}
    with pytest.raises(SettingsError, match=r"V-Net downsamples each axis by 16, which leaves .*a batch_size of 2, or"):
        trainer.adapt_plan(volume_plan(**small, batch_size=1))
    assert trainer.adapt_plan(volume_plan(**small, batch_size=2)).patch_shape == small["patch_shape"]


def test_a_network_for_volumes_alone_refuses_pictures_by_name(tmp_path, volume_plan):
    only_3d = types.new_class(
        "Only", (find_bundle("mednext").trainer,), exec_body=lambda body: body.update(only_dims=3)
    )
    with pytest.raises(BadInputError, match="MedNeXt is a 3-D network for volumes.*--configuration 3d"):
        only_3d.check_plan(volume_plan("2d"))
    trainer = only_3d(tmp_path, *loaders(Squares(2)), console=False)
    with pytest.raises(BadInputError, match="MedNeXt is 3-D only: set num_dims = 3"):
        trainer.train(1)


def test_v_net_refuses_colour_pictures_by_name(tmp_path):
    with pytest.raises(SettingsError, match="1, 2, 4, 8 or 16 channels, but its input has 3"):
        _trainer(tmp_path, "vnet", data=Squares(2, size=(20, 28), channels=3)).train(1)


def test_anisotropic_voxels_are_not_halved_along_the_long_axis_by_segresnet(volume_plan):
    thick = dataclasses.replace(volume_plan(), spacing_mm=(1.0, 1.0, 5.0))
    assert find_bundle("segresnet").trainer.adapt_plan(thick).divisor == (8, 8, 2)


@pytest.mark.slow
def test_unetr_predicts_whole_images_in_windows_of_the_size_that_it_was_trained_on(tmp_path):
    trainer = _trainer(tmp_path, "unetr", (16, 40))
    trainer.train(1, save_preview=False, ema=False)
    described = json.loads((trainer.experiment_folder() / "experiment.json").read_text())
    assert described["network"]["arguments"]["image_size"] == [16, 48]
    assert described["inferer"]["roi_size"] == [16, 48]
    predictor = load_predictor(trainer.experiment_folder())
    assert predictor.logits(torch.randn(1, 33, 70)).shape == (1, 33, 70)


@pytest.mark.parametrize("name", ["segresnet", pytest.param("mednext", marks=pytest.mark.slow), "unetpp"])
def test_the_best_checkpoint_in_a_predictor_reproduces_the_validation_s_output(tmp_path, name):
    trainer = _trainer(tmp_path, name, (20, 28))
    outputs, validate_case = [], trainer.validate_case

    def looking(image, label, toolbox):
        result = validate_case(image, label, toolbox)
        outputs.append((image, result[2]))
        return result

    trainer.validate_case = looking
    trainer.train(1, save_preview=False)
    predictor = load_predictor(trainer.experiment_folder())
    assert type(predictor) is find_bundle(name).predictor
    for image, logits in outputs:
        assert torch.equal(predictor.logits(image), logits)


@pytest.fixture(scope="module")
def real_store(tmp_path_factory):
    """Return a folder in which each dataset is checked once and preprocessed once for each plan."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("dataset", "configuration", "name"),
    [
        *(("Dataset004_Hippocampus", "3d", name) for name in ALL),
        *(("Dataset121_DRIVE", "auto", name) for name in ALL if name not in NOT_OF_PICTURES),
        *(("Dataset027_ACDC", "2d", name) for name in OF_SLICES),
    ],
)
def test_a_bundle_trains_on_real_data_and_its_predictor_scores_what_was_recorded(
    real_part, real_store, tmp_path, name, dataset, configuration
):
    num_cases, size, num_folds = PARTS[dataset]
    folder = real_part(dataset, num_cases, size)
    patch = {"patch_shape": "96,96"} if dataset == "Dataset121_DRIVE" else {}
    experiment = train_dataset(
        folder,
        bundle=name,
        network_args={"size": SMALLEST[name]} if SMALLEST.get(name) else {},
        num_epochs=1,
        seed=0,
        num_folds=num_folds,
        configuration=configuration,
        overrides={"iterations_per_epoch": "1", "batch_size": "2", "num_validation_cases": "1", **patch},
        device="cpu",
        out=tmp_path,
        store=real_store,
        no_report=True,
        on_progress=lambda message: None,
    )
    recorded = json.loads((experiment / "validation.json").read_text())["metric_per_case"][0]
    cases = {case.case_id: case for case in NNUNetDataset(folder).cases}
    case = cases[recorded["case"]]
    predictor = load_predictor(experiment)
    (again,) = Evaluator().predict_and_evaluate(
        {case.case_id: CaseFiles(case.images)}, {case.case_id: case.label}, predictor
    )
    assert isinstance(predictor, find_bundle(name).predictor)
    dice = [entry["Dice"] for entry in recorded["metrics"].values() if entry["Dice"] is not None]
    assert again.metrics["dice"] == pytest.approx(sum(dice) / len(dice), abs=1e-12)
