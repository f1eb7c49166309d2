import torch
from torch import nn, optim

from candy_monai.training.unsaved import unsaved_parts


def test_what_has_a_state_and_is_not_saved_is_named():
    teacher, critic = nn.Linear(2, 1), nn.Linear(2, 1)
    parts = {
        "self.teacher": teacher,
        "self.optimizers": {"critic": [optim.Adam(critic.parameters())]},
        "self.schedule": optim.lr_scheduler.ConstantLR(optim.SGD(critic.parameters())),
        "self.loss": nn.MSELoss(),  # nothing to save
        "self.names": ["a", "b"],
        "self.kind": nn.Linear,
    }
    named = unsaved_parts(parts, saved={"optimizer": optim.SGD(critic.parameters()).state_dict()}, extra={})
    assert named == ["self.teacher (Linear)", "self.optimizers['critic'][0] (Adam)", "self.schedule (ConstantLR)"]


def test_what_the_trainer_adds_counts_as_saved_however_it_is_kept():
    teacher, critic = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = optim.SGD(critic.parameters(), momentum=0.9)
    copied = {name: value.clone() for name, value in critic.state_dict().items()}
    extra = {"weights": list(teacher.parameters()), "critic": copied, "optimizer": optimizer.state_dict()}
    assert not unsaved_parts({"a": teacher, "b": critic, "c": optimizer}, saved={}, extra=extra)


def test_a_part_of_what_is_saved_anyway_is_not_named():
    network = nn.Sequential(nn.Linear(2, 1))
    assert not unsaved_parts({"self.head": network[0]}, saved=[network.state_dict()], extra={})


def test_a_list_that_holds_itself_ends():
    endless = []
    endless.append(endless)
    assert unsaved_parts({"a": endless, "b": torch.zeros(1)}, saved={}, extra={}) == []
