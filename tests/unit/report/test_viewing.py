import base64
import math
import zlib

import numpy as np
import pytest

from candy_monai.report.document import REPORT
from candy_monai.report.observer import write_report
from candy_monai.report.script import read_script
from candy_monai.report.viewing import NOTHING, encoded_case, kept_of, read_kept, validated_cases
from tests.events import epoch_finished
from tests.pages import box_case, made_up_run, validated

NAMES = {1: "kidney", 2: "tumour"}


def unpacked(text, dtype=np.uint8):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def encoded(**facts):
    return encoded_case(validated(cases=[box_case(**facts)] * 3).views[0], NAMES, epoch=3)


def test_an_image_is_unpacked_by_adding_along_its_rows():
    case = validated().views[0]
    one = encoded_case(case, NAMES, epoch=3)
    rows = unpacked(one["image"][0]).reshape(-1, one["size"][0])
    image = np.cumsum(rows, axis=1, dtype=np.uint8)
    assert np.array_equal(image.ravel(), case.view.image[0].ravel())


def test_ids_are_a_byte_each_or_two_where_they_are_larger():
    image, label, prediction = box_case()
    one = encoded_case(validated(cases=[(image, label * 200, prediction)] * 3).views[0], {}, epoch=None)
    assert set(unpacked(one["label"], "<u2").tolist()) == {0, 200, 400}
    assert set(unpacked(one["prediction"]).tolist()) == {0, 1, 2}


def test_classes_say_their_dice_and_which_were_missed():
    classes = encoded(miss=(2,))["classes"]
    assert [(one["name"], one["where"]) for one in classes] == [("kidney", "both"), ("tumour", "label")]
    assert classes[1]["dice"] == 0.0
    assert 0 < classes[0]["dice"] < 1


def test_what_a_page_keeps_is_read_from_it_again(tmp_path):
    made_up_run(tmp_path / "run")
    kept, views = read_kept(tmp_path / "run" / "report.html")
    assert kept["epoch"] == 10
    assert len(kept["cases"]) == 4
    assert [one["role"] for one in views] == ["worst", "median", "best"]


def test_a_missing_page_keeps_nothing(tmp_path):
    assert read_kept(tmp_path / "none.html") == (NOTHING, [])


@pytest.mark.parametrize(
    ("kept", "views"),
    [
        ('{"epo', "[]"),
        ('{"epoch":1,"cases":3}', "[]"),
        ('{"epoch":1,"cases":[{"id":"a"}]}', "[]"),
        ('{"epoch":1,"cases":[3]}', "[]"),
        ('{"epoch":1,"cases":[]}', "[3]"),
        ("[]", "[]"),
    ],
)
def test_a_damaged_page_keeps_nothing_and_says_so(tmp_path, kept, views):
    elements = {"page-kept": kept, "page-views": views}
    text = "".join(f'<script type="application/json" id="{name}">{one}</script>' for name, one in elements.items())
    (tmp_path / "page.html").write_text(text)
    assert read_kept(tmp_path / "page.html") == ({**NOTHING, "lost": True}, [])


def test_that_cases_were_lost_is_on_the_page_until_others_come(tmp_path):
    folder = tmp_path / "run"
    observer = made_up_run(folder)
    (folder / REPORT).write_text("cut")
    for _ in range(2):
        write_report(folder)
        (sentence,) = read_script((folder / REPORT).read_text(), "page-data")["damaged"]
        assert sentence.startswith("An earlier report.html of this run was damaged")
    observer.on_epoch_finished(epoch_finished(11, validated=validated()))
    assert read_script((folder / REPORT).read_text(), "page-data")["damaged"] == []


def test_metrics_of_classes_are_told_from_others_whether_they_go_by_id_or_by_name():
    kept = kept_of(validated(1, num_classes=3), 5)
    kept["cases"][0]["metrics"]["soft dice tumour"] = None
    (case,) = validated_cases(kept, NAMES)
    assert set(case.metrics) == {"dice", "combined loss"}
    assert set(case.classes["dice"]) == {1, 2}
    assert math.isnan(case.classes["soft dice"][2])
