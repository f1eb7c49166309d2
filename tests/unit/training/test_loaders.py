import random

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, SmartCacheDataset, list_data_collate
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from monai.transforms import Compose, Lambda
from torch import optim
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, SubsetRandomSampler

from candy_monai.data.datasets.files import DatasetFromMemory
from candy_monai.data.samples.patches import EpochSampler
from candy_monai.errors import BadInputError, ImageReadError
from candy_monai.own_generators import OwnGenerators
from candy_monai.seeding import GeneratorStates
from candy_monai.training.loaders import (
    Loaders,
    batches,
    batches_from,
    first_case,
    first_sample,
    length,
    num_cases,
    why_not_exact,
)
from tests.toys import SmallTrainer, Squares

QUIET = {"save_preview": False, "val_score_prediction": False, "early_stop_tolerance": None}


class _Stream(IterableDataset):
    def __iter__(self):
        yield from Squares()


class _Seen(SmallTrainer):
    """Remembers the first voxel of every image that it is trained on."""

    def build_scheduler(self, optimizer, num_epochs):
        return optim.lr_scheduler.ConstantLR(optimizer, 1.0)  # a stream has no length to end a schedule by

    def backward(self, images, labels, toolbox):
        self.seen = [*getattr(self, "seen", []), *images[:, 0, 0, 0].tolist()]
        return super().backward(images, labels, toolbox)


def _first_voxels(indices):
    data = Squares(8)
    return [float(data[index][0][0, 0, 0]) for index in indices]


def _seen(tmp_path, loader, *, num_epochs=1):
    trainer = _Seen(tmp_path, loader, DataLoader(Squares(1)), console=False)
    trainer.train(num_epochs, seed=0, **QUIET)
    return trainer.seen


def test_it_is_read_without_starting_workers():
    data = Squares(2)
    loader = DataLoader(data, batch_size=2, num_workers=2, worker_init_fn=lambda _worker: pytest.fail("was started"))
    image, label, _ = first_sample(loader)
    assert torch.equal(image, data[0][0])
    assert torch.equal(label, data[0][1])


def test_it_goes_through_the_loader_s_own_collation():
    class Crops(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return [{"image": image.numpy(), "label": label.numpy()} for _ in range(2)]  # as MONAI's num_samples=2

    image, label, _ = first_sample(DataLoader(Crops(2), batch_size=2, collate_fn=list_data_collate))
    assert image.shape == label.shape == (1, 16, 16)


def test_that_of_a_stream_is_taken_from_its_first_batch():
    image, _, opened = first_sample(DataLoader(_Stream(), batch_size=3))
    assert image.shape == (1, 16, 16)
    assert torch.equal(next(iter(opened))[0][0], image)


def test_what_the_sampler_leaves_out_is_never_read(tmp_path):
    class Damaged(Squares):
        def __getitem__(self, index):
            if index == 0:
                raise OSError("damaged")
            return super().__getitem__(index)

    seen = _seen(tmp_path, DataLoader(Damaged(8), 2, sampler=SubsetRandomSampler([1, 2, 3])))
    assert sorted(seen) == sorted(_first_voxels([1, 2, 3]))


def test_keys_need_not_be_numbers(tmp_path):
    class Named(Dataset):
        def __getitem__(self, key):
            return Squares(8)[int(key[1])]

    keys = [("case", "3"), ("case", "1")]
    assert _seen(tmp_path, DataLoader(Named(), 2, sampler=keys)) == _first_voxels([3, 1])


def test_a_batch_sampler_and_a_dataset_that_makes_batches_are_read_by_their_own_indices(tmp_path):
    class Batches(Dataset):
        def __getitem__(self, index):
            return torch.utils.data.default_collate([Squares(8)[index], Squares(8)[index + 1]])

        def __len__(self):
            return 2

    assert _seen(tmp_path, DataLoader(Squares(8), batch_sampler=[[5, 6], [7]])) == _first_voxels([5, 6, 7])
    assert _seen(tmp_path, DataLoader(Batches(), batch_size=None, sampler=[2, 4])) == _first_voxels([2, 3, 4, 5])


def test_a_stream_that_can_be_read_once_loses_no_batch(tmp_path):
    samples = iter(Squares(8).samples)

    class Once(IterableDataset):
        def __iter__(self):
            return samples

    assert _seen(tmp_path, DataLoader(Once(), 2)) == pytest.approx(_first_voxels(range(8)))


def test_a_sampler_that_can_be_read_once_loses_no_index(tmp_path):
    loader = DataLoader(Squares(8), 2, sampler=(index for index in (3, 1, 2)))
    assert _seen(tmp_path, loader) == _first_voxels([3, 1, 2])
    before = torch.get_rng_state()
    first_sample(DataLoader(Squares(8), 2, sampler=(index for index in (3, 1, 2))))
    assert torch.equal(torch.get_rng_state(), before)  # from which a resumed run replays the epoch


def test_a_stream_that_begins_anew_yields_all_in_every_epoch(tmp_path):
    assert _seen(tmp_path, DataLoader(_Stream(), 2), num_epochs=2) == _first_voxels([0, 1, 2, 3] * 2)


def test_an_epoch_of_a_stream_that_is_used_up_is_an_error_not_an_epoch_without_training(tmp_path):
    samples = iter(Squares(4).samples)

    class Once(IterableDataset):
        def __iter__(self):
            return samples

    with pytest.raises(BadInputError, match="no batch in epoch 2"):
        _seen(tmp_path, DataLoader(Once(), 2), num_epochs=2)


def test_neither_generators_nor_a_sampler_are_moved_on():
    class Counting(Sampler):
        def __init__(self):
            self.epochs, self.order, self.random = 0, [3, 1, 2], random.Random(0)

        def __iter__(self):
            self.epochs += 1
            self.random.shuffle(self.order)
            return iter(self.order)

    class Augmented(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + torch.rand(()) + random.random() + np.random.rand(), label

    sampler, generator = Counting(), torch.Generator().manual_seed(0)
    loader = DataLoader(Augmented(), 2, sampler=sampler, generator=generator)
    expected = random.Random(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), generator.get_state()
    first_sample(loader)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), generator.get_state()
    assert torch.equal(before[0], after[0])
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])
    assert (sampler.epochs, sampler.order) == (0, [3, 1, 2])
    assert sampler.random.random() == expected.random()


def test_an_empty_stream_is_refused():
    class Empty(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(BadInputError, match="its stream is empty"):
        first_sample(DataLoader(Empty(), 2))


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
        Loaders(DataLoader(Squares(1), batch_size=2, drop_last=True)).check()


@pytest.mark.parametrize(
    ("loaders", "message"),
    [
        (Loaders(Squares(2)), "the training loader is a Squares, expected a torch.utils.data.DataLoader"),
        (Loaders(DataLoader(Squares(2)), [1]), "the validation loader is a list, expected a torch.utils.data"),
    ],
)
def test_what_is_no_loader_is_refused_with_how_to_make_one(loaders, message):
    with pytest.raises(BadInputError, match=message):
        loaders.check()


def test_a_validation_case_is_read_without_moving_generators_on():
    before = torch.get_rng_state()
    case = first_case(DataLoader(Squares(3), shuffle=True))
    assert case.images.shape[0] == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_no_validation_case_is_taken_from_a_stream_or_an_empty_share():
    assert first_case(DataLoader(_Stream())) is None
    assert first_case(DataLoader(Squares(2), sampler=SubsetRandomSampler([]))) is None


def test_samples_of_different_sizes_are_refused_with_what_to_do():
    class Varied(Squares):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image[:, : 16 - index], label[:, : 16 - index]

    with pytest.raises(BadInputError, match=r"different sizes.*batch of 2.*batch_size=1"):
        list(batches(DataLoader(Varied(2), batch_size=2)))


def test_hints_that_monai_appends_are_left_out_of_the_message():
    sizes = MonaiDataset([{"image": torch.zeros(1, size)} for size in (4, 5)])
    with pytest.raises(BadInputError, match=r"\[1, 5\] at entry 1\): bring them") as caught:
        list(batches(MonaiLoader(sizes, batch_size=2)))
    assert "hint" not in str(caught.value)


def _raised_in_a_worker(sample):
    """Yield nothing: raise what PyTorch raises if a worker fails for a sample."""
    try:
        sample()
    except Exception:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    wrapper.reraise()
    yield


def test_the_cause_of_a_failure_in_a_worker_is_in_a_note_with_the_case():
    data = DatasetFromMemory([torch.zeros(1, 4, 4)], transform=Compose([Lambda(lambda _: 1 / 0)]), case_ids=["case_7"])
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        list(batches(DataLoader(data), _raised_in_a_worker(lambda: data[0])))
    (note,) = caught.value.__notes__
    heading, cause, failure, case = note.splitlines()
    assert heading == "In the worker:"
    assert cause == "ZeroDivisionError: division by zero"
    assert failure.startswith("RuntimeError: applying transform")
    assert case == "Raised for the case case_7"


def test_bad_input_that_a_worker_finds_is_said_without_its_traceback():
    def sample():
        raise ImageReadError("a.nii: no such file\ncheck the path")

    with pytest.raises(ImageReadError, match=r"^a\.nii: no such file\ncheck the path$"):
        list(batches(DataLoader(Squares(1)), _raised_in_a_worker(sample)))


def test_an_error_of_the_user_s_dataset_stays_what_it_is():
    class Broken(Squares):
        def __getitem__(self, index):
            raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        list(batches(DataLoader(Broken(2))))


def test_a_cache_that_moves_on_from_epoch_to_epoch_is_why_a_resumed_run_may_differ():
    data = [{"image": number} for number in range(4)]
    moving = SmartCacheDataset(data, lambda item: item, replace_rate=0.5, cache_num=2, progress=False)
    assert "SmartCacheDataset" in why_not_exact(DataLoader(moving))
    assert why_not_exact(DataLoader(CacheDataset(data, lambda item: item, progress=False))) is None


class _DrawingDataset(Dataset):
    """Draws from the global generators, as a user's own transform may."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index + torch.rand(()).item() + np.random.rand() + random.random()


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("kind", [DataLoader, MonaiLoader])
def test_within_an_epoch_samples_that_draw_from_the_global_generators_go_on_where_they_were(epoch, kind):
    loader = kind(_DrawingDataset(), batch_size=2, sampler=EpochSampler(8), collate_fn=list)
    own = OwnGenerators.of(loader=loader)
    epoch_start = GeneratorStates.capture(own)
    uninterrupted = batches_from(loader, epoch=epoch, first=0, epoch_start=None, own=own)
    before = [next(uninterrupted) for _ in range(2)]
    saved = GeneratorStates.capture(own)
    after = list(uninterrupted)
    assert len(before) == len(after) == 2
    saved.restore(own)
    assert list(batches_from(loader, epoch=epoch, first=2, epoch_start=epoch_start, own=own)) == after
