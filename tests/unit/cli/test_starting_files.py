from pathlib import Path

import pytest

from candy_monai.cli.starting_files import (
    camel_case,
    check_class_name,
    check_module_name,
    check_trainer_file,
    snake_case,
    write_new,
)
from candy_monai.errors import BadInputError


@pytest.mark.parametrize("name", ["MyTrainer", "UNet3D", "A"])
def test_a_class_name_is_taken(name):
    check_class_name(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_trainer", "Did you mean 'MyTrainer'"),
        ("my-trainer.py", "Did you mean 'MyTrainerPy'"),
        ("3DTrainer", "Did you mean 'DTrainer'"),
        ("trainer", "Did you mean 'Trainer'"),
        ("None", "None"),
        ("", "expected a class name"),
        ("Réseau", "Did you mean 'Reseau'"),
        ("../Trainer", "Did you mean 'Trainer'"),
        ("SegmentationTrainer", "imports something of this name"),
        ("BasicUNet", "imports something of this name"),
    ],
)
def test_another_name_for_a_class_is_refused_with_one_that_can_be(name, said):
    with pytest.raises(BadInputError, match=said):
        check_class_name(name)


@pytest.mark.parametrize("name", ["my_network", "net2", "n"])
def test_a_module_name_is_taken(name):
    check_module_name(name, bundles=["unet"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("MyNetwork", "Did you mean 'my_network'"),
        ("my-network", "Did you mean 'my_network'"),
        ("3d_net", "Did you mean 'd_net'"),
        ("class", "expected a module name"),
        ("", "expected a module name"),
        ("unet", "'unet' is already installed.*Installed: unet, vnet"),
        ("statistics", "another package, or its module, has this name"),
        ("monai", "another package, or its module, has this name"),
        ("numpy", "another package, or its module, has this name"),
        ("pillow", "another package, or its module, has this name"),
        ("my_net_", "Did you mean 'my_net'"),
        ("été", "Did you mean 'ete'"),
        ("bundle", "imports a BundleTrainer"),
    ],
)
def test_another_name_for_a_module_is_refused_with_one_that_can_be(name, said):
    with pytest.raises(BadInputError, match=said):
        check_module_name(name, bundles=["unet", "vnet"])


@pytest.mark.parametrize("file", ["my_trainer.py", "my-trainer.v2.py", "x y/ü.py", "random_.py"])
def test_a_trainer_s_file_is_taken(file):
    check_trainer_file(Path(file))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("trainer", "ends in .py"),
        ("trainer.txt", "ends in .py"),
        ('a"""b.py', "such as 'my_trainer.py'"),
        ("a\\x.py", "such as 'my_trainer.py'"),
        ("my trainer.py", "such as 'my_trainer.py'"),
        ("random.py", "instead of the installed module 'random'"),
        ("ideas/torch.py", "instead of the installed module 'torch'"),
    ],
)
def test_a_trainer_s_file_that_cannot_be_used_or_hides_a_module_is_refused(file, said):
    with pytest.raises(BadInputError, match=said):
        check_trainer_file(Path(file))


@pytest.mark.parametrize(("camel", "snake"), [("MyTrainer", "my_trainer"), ("UNet3D", "u_net3_d"), ("X", "x")])
def test_a_class_s_file_is_named_as_modules_are(camel, snake):
    assert snake_case(camel) == snake


def test_a_module_s_class_is_named_as_classes_are():
    assert camel_case("my_network2") == "MyNetwork2"


def test_nothing_is_written_over(tmp_path):
    path = tmp_path / "new" / "file.py"
    write_new(path, "first\n")
    with pytest.raises(BadInputError, match="already exists and is not overwritten"):
        write_new(path, "second\n")
    assert path.read_text() == "first\n"


def test_a_file_that_the_system_refuses_is_bad_input(tmp_path):
    with pytest.raises(BadInputError, match="cannot be written: File name too long; give another"):
        write_new(tmp_path / f"{'a' * 300}.py", "text\n")
