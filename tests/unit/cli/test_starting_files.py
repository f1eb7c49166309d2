import pytest

from candy_monai.cli.starting_files import camel_case, check_class_name, check_module_name, snake_case, write_new
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
        ("statistics", "another package has a module"),
        ("monai", "another package has a module"),
    ],
)
def test_another_name_for_a_module_is_refused_with_one_that_can_be(name, said):
    with pytest.raises(BadInputError, match=said):
        check_module_name(name, bundles=["unet", "vnet"])


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
