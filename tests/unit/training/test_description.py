from torch import nn
from torch.utils.data import DataLoader

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.experiment.description import ExperimentDescription
from candy_monai.experiment.events import RunStarted
from candy_monai.observers.base import Observer
from candy_monai.training.description import describe_loader, summary_of
from tests.toys import small_trainer


def test_a_summary_names_each_part_with_its_class_and_what_is_trained_of_it():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1000, 1))
    for parameter in network[0].parameters():
        parameter.requires_grad = False
    assert summary_of(network).splitlines() == [
        "part  class       parameters",
        "0     Conv2d               0",
        "1     ReLU                 0",
        "2     Conv2d           5,000",
        "all   Sequential       5,000",
    ]


def test_an_event_says_how_many_epochs_are_done_already(tmp_path):
    started = []

    class Listening(Observer):
        def on_run_started(self, event: RunStarted) -> None:
            started.append(event)

    trainer = small_trainer(tmp_path, observers=[Listening()])
    trainer.train(1, save_preview=False)
    trainer.resume(trainer.experiment_folder(), 2, schedule="keep")
    assert [event.epoch for event in started] == [0, 1]
    assert "Conv2d" in started[0].summary


def test_the_labels_of_a_dataset_are_described_and_not_compared_since_earlier_versions_did_not_write_them(tmp_path):
    dataset = NNUNetDataset(write_phantom_dataset(tmp_path / "phantom", num_cases=2, num_dims=2))
    described = describe_loader(DataLoader(dataset))
    assert described["labels"] == dataset.description.labels
    earlier = {name: value for name, value in described.items() if name != "labels"}
    saved, present = (ExperimentDescription(data={"training": loader}) for loader in (earlier, described))
    assert saved.differences(present) == []
