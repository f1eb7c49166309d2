import math

import torch

from candy_monai.training.means import WeightedMeans


def test_values_count_by_their_weight():
    means = WeightedMeans()
    means.add({"dice": 1.0}, weight=3)
    means.add({"dice": 0.0}, weight=1)
    assert means.means() == {"dice": 0.75}


def test_what_is_not_measured_somewhere_is_left_out_of_the_mean():
    means = WeightedMeans()
    means.add({"dice": math.nan, "tensor": torch.tensor(math.nan)}, weight=5)
    means.add({"dice": 0.5, "tensor": torch.tensor(0.5)}, weight=1)
    assert means.means() == {"dice": 0.5, "tensor": torch.tensor(0.5)}


def test_what_is_measured_nowhere_has_no_mean():
    means = WeightedMeans()
    means.add({"dice": math.nan, "tensor": torch.tensor(math.nan)}, weight=2)
    assert all(math.isnan(value) for value in means.means().values())


def test_tensors_stay_tensors_and_lose_their_graph():
    means = WeightedMeans()
    means.add({"loss": torch.tensor(2.0, requires_grad=True)}, weight=1)
    means.add({"loss": 4.0}, weight=1)
    mean = means.means()["loss"]
    assert mean == torch.tensor(3.0)
    assert not mean.requires_grad
