from candy_monai.data import workers
from candy_monai.evaluation.parallel import jobs_for


def test_memory_bounds_how_many_cases_are_measured_at_once(tmp_path, monkeypatch):
    import nibabel
    import numpy as np

    files = [tmp_path / f"{index}.nii.gz" for index in range(8)]
    for file in files:
        nibabel.save(nibabel.Nifti1Image(np.zeros((10, 10, 10), np.uint8), np.eye(4)), file)
    monkeypatch.setattr(workers, "usable_cores", lambda: 6)
    for free, jobs in ((10**9, 6), (250_000, 2), (1000, 1), (None, 6)):
        monkeypatch.setattr(workers, "free_memory_bytes", lambda free=free: free)
        assert jobs_for(files) == jobs
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: 10**9)
    files[0].unlink()
    assert jobs_for(files) == 1
