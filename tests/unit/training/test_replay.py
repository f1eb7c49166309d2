from monai.data import CacheDataset, SmartCacheDataset
from torch.utils.data import DataLoader

from candy_monai.training.replay import why_not_exact


def test_a_cache_that_moves_on_from_epoch_to_epoch_is_why_a_resumed_run_may_differ():
    data = [{"image": number} for number in range(4)]
    moving = SmartCacheDataset(data, lambda item: item, replace_rate=0.5, cache_num=2, progress=False)
    assert "SmartCacheDataset" in why_not_exact(DataLoader(moving))
    assert why_not_exact(DataLoader(CacheDataset(data, lambda item: item, progress=False))) is None
