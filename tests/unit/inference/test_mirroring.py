import torch

from candy_monai.inference.mirroring import mirrored


def test_scores_are_the_mean_over_all_combinations_of_flips():
    def last_column_of_last_row(windows):
        return windows * torch.tensor([[0.0, 0.0], [0.0, 1.0]])

    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    scores = mirrored(last_column_of_last_row, (0, 1))(image)
    assert torch.equal(scores, image / 4)  # each voxel is in that corner in one of the four flips


def test_a_network_that_commutes_with_flips_is_left_as_it_is():
    image = torch.randn(2, 1, 4, 5, 3)
    assert torch.allclose(mirrored(torch.relu, (0, 2))(image), torch.relu(image))


def test_a_call_is_made_for_each_combination_and_the_input_is_kept():
    calls = []
    image = torch.randn(1, 1, 3, 3, 3)
    before = image.clone()
    mirrored(lambda windows: calls.append(1) or windows, (0, 1, 2))(image)
    assert len(calls) == 8
    assert torch.equal(image, before)


def test_without_axes_the_network_is_the_same():
    assert mirrored(torch.relu, ()) is torch.relu
