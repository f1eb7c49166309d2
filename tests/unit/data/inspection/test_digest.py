from __future__ import annotations

from candy_monai.data.inspection.digest import dataset_digest
from tests.memory import MemoryDataset


def test_the_digest_follows_content_and_not_the_folder(tmp_path):
    def digest(folder, content):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "a_0000.nii.gz"
        file.write_bytes(content)
        return dataset_digest(MemoryDataset({"a": None}, files={"a": [file]}))

    assert digest("one", b"same") == digest("two", b"same")
    assert digest("three", b"sama") != digest("four", b"same")


def test_the_digest_of_a_large_compressed_file_follows_its_checksum_at_the_end(tmp_path):
    file = tmp_path / "a_0000.nii.gz"
    dataset = MemoryDataset({"a": None}, files={"a": [file]})
    file.write_bytes(bytes(3 << 20))
    before = dataset_digest(dataset)
    file.write_bytes(bytes((3 << 20) - 1) + b"\x01")
    assert dataset_digest(dataset) != before


def test_the_digest_follows_the_labels_meaning():
    assert dataset_digest(MemoryDataset({})) != dataset_digest(MemoryDataset({}, labels={"background": 0, "b": 1}))
