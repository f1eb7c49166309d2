import csv

import pytest

from candy_monai.errors import BadInputError
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.notion import NotionFrontend
from tests.toys import SmallTrainer, small_trainer


def test_what_is_logged_while_the_parts_are_built_is_written_into_the_run(tmp_path, capsys):
    class Chatty(SmallTrainer):
        def build_optimizer(self, params):
            self.log("building the optimizer")
            return super().build_optimizer(params)

    trainer = small_trainer(tmp_path, cls=Chatty, console=True)
    for _ in range(2):
        trainer.train(1)
        log = (trainer.experiment_folder() / "logs.txt").read_text()
        assert log.count("building the optimizer") == 1
    assert capsys.readouterr().out.count("building the optimizer") == 2


def test_metrics_that_are_called_like_columns_of_the_run_stand_beside_them(tmp_path):
    class Colliding(SmallTrainer):
        def backward(self, images, labels, toolbox):
            self.record("learning rate", 1.0)
            self.record_all({"epoch": 7.0, "epoch duration": 8.0, "val score": 9.0})
            loss, _ = super().backward(images, labels, toolbox)
            return loss, {"combined loss": 100.0}

        def validate_case(self, image, label, toolbox):
            return -0.3, {"score": 0.8, "combined loss": 0.4}, image

    trainer = small_trainer(tmp_path, cls=Colliding)
    trainer.train(2, seed=0, save_preview=False)
    folder = trainer.experiment_folder()
    with (folder / "metrics.csv").open() as file:
        header, first, second = csv.reader(file)
    assert len(set(header)) == len(header)
    row = dict(zip(header, map(float, second), strict=True))
    assert (first[0], row["epoch"], row["epoch (metric)"], row["epoch duration (metric)"]) == ("1", 2.0, 7.0, 8.0)
    assert (row["learning rate"], row["learning rate (metric)"]) == (0.01, 1.0)
    assert row["combined loss"] < 10
    assert row["combined loss (metric)"] == 100.0
    assert row["val combined loss"] == pytest.approx(0.4)
    assert trainer.metrics()["val score"] == [-0.3, -0.3]
    assert trainer.metrics()["val score (metric)"] == pytest.approx([(2 * 9.0 + 4 * 0.8) / 6] * 2)
    log = (folder / "logs.txt").read_text()
    assert log.count("The metric 'learning rate' is recorded as 'learning rate (metric)'") == 1


def test_a_dashboard_can_be_chosen_by_its_name(tmp_path):
    trainer = small_trainer(tmp_path)
    file = tmp_path / "dashboard.py"
    file.write_text(
        "from pathlib import Path\nfrom candy_monai.frontends.base import Frontend\nclass Mine(Frontend):\n"
        "    def on_experiment_completed(self, experiment_id):\n"
        "        Path(__file__).with_suffix('.txt').write_text(experiment_id)\n"
    )
    trainer.set_frontend(f"{file}:Mine")
    trainer.train(1, save_preview=False)
    assert (tmp_path / "dashboard.txt").read_text() == trainer.experiment_folder().name
    secrets = tmp_path / "secrets.yml"
    secrets.write_text("{}")
    secrets.chmod(0o600)
    with pytest.raises(BadInputError, match=f"{NotionFrontend.__name__} needs the secret"):
        trainer.set_frontend("notion", path_to_secrets=secrets)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("zzz", "set_frontend 'zzz' is unknown. Known: tensorboard, mlflow, wandb, notion, or FILE:Class"),
        ("Notion", "Did you mean 'notion'"),
        (None, "was given None, expected a subclass of Frontend, or a name: tensorboard"),
        (Frontend({}), "expected a subclass of Frontend"),
    ],
)
def test_what_is_no_dashboard_is_refused_with_those_there_are(tmp_path, given, said):
    with pytest.raises(BadInputError, match=said):
        small_trainer(tmp_path).set_frontend(given)
