import nibabel
import pytest
from PIL import Image

from candy_monai.demo.run import run_demo


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
