import nibabel
import pytest
from PIL import Image

from candy_monai.demo.run import run_demo
from candy_monai.errors import BadInputError


@pytest.mark.slow
def test_the_demo_ends_with_a_picture_of_unseen_cases_and_their_label_maps(tmp_path):
    messages = []
    picture = run_demo(tmp_path / "demo", budget_s=45, device="cpu", on_progress=messages.append)
    assert Image.open(picture).size[0] > 800
    predictions = sorted((tmp_path / "demo" / "predictions").glob("*.nii.gz"))
    images = sorted((tmp_path / "demo" / "Dataset001_Phantom" / "imagesTs").iterdir())
    assert len(predictions) == len(images) == 4
    for prediction, image in zip(predictions, images, strict=True):
        assert nibabel.load(prediction).shape == nibabel.load(image).shape
    assert any(message.startswith("Mean Dice on 4 unseen cases") for message in messages)


@pytest.mark.parametrize(
    ("out", "device", "said"),
    [("demo", "cpux", "unknown device 'cpux'"), ("file", "cpu", "is a file"), ("file/demo", "cpu", "is a file")],
)
def test_a_device_or_folder_that_cannot_be_used_is_refused_before_anything_is_written(tmp_path, out, device, said):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInputError, match=said):
        run_demo(tmp_path / out, device=device, on_progress=pytest.fail)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
