import pytest

from candy_monai.errors import SettingsError
from candy_monai.training.names import check_attribute, similar_names
from candy_monai.training.planned import add_to_folder
from tests.toys import SmallTrainer, small_trainer


@pytest.mark.parametrize("name", ["step", "metrics", "device", "log", "_validate"])
@pytest.mark.parametrize("before", [True, False])
def test_an_attribute_that_has_the_name_of_a_method_is_refused_when_it_is_set(tmp_path, name, before):
    class Mine(SmallTrainer):
        def __init__(self, *arguments, **keywords):
            if before:
                setattr(self, name, 0)
            super().__init__(*arguments, **keywords)
            setattr(self, name, 0)

    with pytest.raises(
        SettingsError, match=rf"Mine sets self\.{name} to 0, but '{name}' is a method of \w+: call your"
    ):
        small_trainer(tmp_path, cls=Mine)


@pytest.mark.parametrize("name", ["_run", "_loaders", "_facts"])
def test_an_attribute_that_trainers_use_themselves_is_refused_when_it_is_set(tmp_path, name):
    trainer = small_trainer(tmp_path)
    with pytest.raises(SettingsError, match=f"'{name}' is an attribute that trainers use themselves"):
        setattr(trainer, name, 0)


def test_an_attribute_that_trainers_use_themselves_is_refused_when_it_was_set_before_theirs(tmp_path):
    class Mine(SmallTrainer):
        def __init__(self, *arguments, **keywords):
            self._facts = 0
            super().__init__(*arguments, **keywords)

    with pytest.raises(SettingsError, match=r"Mine sets self\._facts, but '_facts' is an attribute"):
        small_trainer(tmp_path, cls=Mine)


def test_a_name_that_a_trainer_of_another_kind_uses_is_free(tmp_path):
    trainer = small_trainer(tmp_path)
    check_attribute(small_trainer(tmp_path), "_of_another", 0, module="candy_monai.training.other")
    trainer._of_another = 1
    assert trainer._of_another == 1


def test_a_class_attribute_that_has_the_name_of_a_method_is_refused_when_the_class_is_made():
    with pytest.raises(SettingsError, match=r"Mine\.step is True, but 'step' is a method of Trainer"):
        type("Mine", (SmallTrainer,), {"step": True})


def test_names_that_are_free_and_methods_that_replace_methods_are_the_user_s(tmp_path):
    class Mine(SmallTrainer):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            self.files, self.facts, self.epoch, self._mine, self.num_classes = [1], {"a": 2}, 3, 4, 1
            self.check_sample = lambda image, label: None
            self._dataloader = self._dataloader

    trainer = small_trainer(tmp_path, cls=Mine)
    trainer.train(1, save_preview=False)
    assert (trainer.files, trainer.facts, trainer.epoch, trainer._mine) == ([1], {"a": 2}, 3, 4)


@pytest.mark.parametrize(("name", "value"), [("validate", lambda self, toolbox: 0.0), ("label_fill", 7)])
def test_what_earlier_versions_called_is_refused_with_what_takes_its_place(tmp_path, name, value):
    with pytest.raises(SettingsError, match=rf"Mine\.{name}, which is no longer used: (override|set)"):
        type("Mine", (SmallTrainer,), {name: value})
    with pytest.raises(SettingsError, match="no longer used"):
        setattr(small_trainer(tmp_path), name, value)


def test_what_is_added_to_the_folder_is_in_it(tmp_path):
    trainer = small_trainer(tmp_path)
    add_to_folder(trainer, facts={"site": "north"}, files={"notes.txt": "text"})
    trainer.train(1, save_preview=False)
    assert '"site": "north"' in (trainer.experiment_folder() / "experiment.json").read_text()
    assert (trainer.experiment_folder() / "notes.txt").read_text() == "text"


def test_a_name_that_nearly_is_one_to_override_is_said_in_the_log(tmp_path):
    class Mine(SmallTrainer):
        num_class = 2
        width = 8
        steps = 0  # a number, where step is a method

        def build_optimiser(self, params):
            raise AssertionError

    trainer = small_trainer(tmp_path, cls=Mine)
    trainer.slice_axes = 1
    assert list(similar_names(trainer)) == [
        "Warning: candy_monai does not use Mine.slice_axes. Did you mean 'slice_axis'?",
        "Warning: candy_monai does not use Mine.num_class. Did you mean 'num_classes'?",
        "Warning: candy_monai does not use Mine.build_optimiser. Did you mean 'build_optimizer'?",
    ]
    trainer.train(1, save_preview=False, save_report=False)
    assert "Did you mean 'build_optimizer'?" in (trainer.experiment_folder() / "logs.txt").read_text()


def test_a_trainer_of_the_library_has_no_name_that_is_nearly_another(tmp_path):
    assert list(similar_names(small_trainer(tmp_path))) == []
