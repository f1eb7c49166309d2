"""A folder in nnU-Net's format in MONAI's own datasets and loaders, under a trainer of ours."""

import pytest
import torch
from monai.data import (
    CacheDataset,
    DataLoader,
    PersistentDataset,
    SmartCacheDataset,
    ThreadDataLoader,
    list_data_collate,
)
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandCropByPosNegLabeld,
    ResizeWithPadOrCropd,
)

from candy_monai import NNUNetDataset, write_phantom_dataset
from tests.toys import SmallTrainer

BOTH = ["image", "label"]
WHOLE = (LoadImaged(BOTH), EnsureChannelFirstd(BOTH), NormalizeIntensityd("image"))
CROPS = RandCropByPosNegLabeld(BOTH, "label", spatial_size=(16, 16), num_samples=2)
ONE_SIZE = ResizeWithPadOrCropd(BOTH, (24, 24))


class Recording(SmallTrainer):
    num_classes = 3

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seen = []

    def _train_batch(self, batch, toolbox):
        loss, metrics, case_ids, num_samples = super()._train_batch(batch, toolbox)
        self.seen.append((tuple(batch["image"].shape), case_ids))
        return loss, metrics, case_ids, num_samples


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantom"
    return NNUNetDataset(write_phantom_dataset(folder, num_cases=5, num_test_cases=0, num_dims=2)).fold()


def _trained(folder, train, validation, epochs=1, loader=DataLoader):
    whole = CacheDataset(validation.dicts(), Compose(WHOLE), progress=False)
    trainer = Recording(folder, train, loader(whole, batch_size=1), console=False)
    trainer.train(epochs, seed=0, save_preview=False)
    assert torch.isfinite(torch.tensor(trainer.metrics()["val score"])).all()
    return trainer.seen


def test_crops_of_cached_cases_come_in_batches_with_the_ids_of_their_cases(tmp_path, sides):
    train, validation = sides
    cached = CacheDataset(train.dicts(), Compose([*WHOLE, CROPS]), progress=False)
    seen = _trained(tmp_path, DataLoader(cached, batch_size=2, shuffle=True, collate_fn=list_data_collate), validation)
    assert [shape for shape, _ in seen] == [(4, 1, 16, 16)] * 2
    assert sorted(case_id for _, ids in seen for case_id in ids) == sorted(2 * train.case_ids)


def test_cases_kept_on_disk_are_trained_on_by_threads(tmp_path, sides):
    train, validation = sides
    kept = PersistentDataset(train.dicts(), Compose([*WHOLE, ONE_SIZE]), tmp_path / "cache")
    seen = _trained(tmp_path, ThreadDataLoader(kept, batch_size=4), validation, loader=ThreadDataLoader)
    assert seen == [((4, 1, 24, 24), train.case_ids)]
    assert len(list((tmp_path / "cache").glob("*.pt"))) == len(train)


def test_the_cases_that_a_smart_cache_holds_move_on_from_epoch_to_epoch(tmp_path, sides):
    train, validation = sides
    loaded = Compose([*WHOLE, ONE_SIZE])
    dataset = SmartCacheDataset(
        train.dicts(), loaded, replace_rate=0.5, cache_num=2, shuffle=False, progress=False, num_replace_workers=1
    )
    seen = _trained(tmp_path, DataLoader(dataset, batch_size=2), validation, epochs=3)
    a, b, c, d = train.case_ids
    assert [set(ids) for _, ids in seen] == [{a, b}, {b, c}, {c, d}]
    assert not dataset.is_started()
