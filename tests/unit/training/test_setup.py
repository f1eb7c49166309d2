import pytest
import torch
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset
from torch.utils.data import DataLoader, IterableDataset

from candy_monai.errors import BadInputError
from candy_monai.training.setup import batches, check_loaders, length, num_cases
from tests.toys import Squares


class _Stream(IterableDataset):
    def __iter__(self):
        yield from Squares()


def test_a_loader_s_length_is_known_unless_it_reads_a_stream():
    assert length(DataLoader(Squares(5), batch_size=2)) == 3
    assert length(DataLoader(_Stream())) is None


def test_the_cases_are_counted_not_the_batches():
    assert num_cases(DataLoader(Squares(5), batch_size=2)) == 5
    assert num_cases(DataLoader(_Stream())) is None


def test_an_empty_training_set_is_refused_with_what_was_found():
    with pytest.raises(BadInputError, match="1 samples, batch_size is 2 and drop_last is True"):
        check_loaders(DataLoader(Squares(1), batch_size=2, drop_last=True), None)


def test_samples_of_different_sizes_are_refused_with_what_to_do():
    class Varied(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image[:, : 16 - index], label[:, : 16 - index]

    with pytest.raises(BadInputError, match=r"different sizes.*batch of 2.*batch_size=1"):
        list(batches(DataLoader(Varied(2), batch_size=2)))


def test_hints_that_monai_appends_are_left_out_of_the_message():
    sizes = Dataset([{"image": torch.zeros(1, size)} for size in (4, 5)])
    with pytest.raises(BadInputError, match=r"\[1, 5\] at entry 1\): bring them") as caught:
        list(batches(MonaiLoader(sizes, batch_size=2)))
    assert "hint" not in str(caught.value)


def test_an_error_of_the_user_s_dataset_stays_what_it_is():
    class Broken(Squares):
        def __getitem__(self, index):
            raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        list(batches(DataLoader(Broken(2))))
