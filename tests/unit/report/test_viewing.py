import base64
import math
import zlib

import numpy as np

from candy_monai.report.viewing import encoded_case, kept_of, read_kept, validated_cases
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


def test_a_missing_or_damaged_page_keeps_nothing(tmp_path):
    assert read_kept(tmp_path / "none.html") == ({"epoch": None, "cases": []}, [])
    (tmp_path / "cut.html").write_text('<script type="application/json" id="page-kept">{"epo')
    assert read_kept(tmp_path / "cut.html") == ({"epoch": None, "cases": []}, [])


def test_metrics_of_classes_are_told_from_others_whether_they_go_by_id_or_by_name():
    kept = kept_of(validated(1, num_classes=3), 5)
    kept["cases"][0]["metrics"]["soft dice tumour"] = None
    (case,) = validated_cases(kept, NAMES)
    assert set(case.metrics) == {"dice", "combined loss"}
    assert set(case.classes["dice"]) == {1, 2}
    assert math.isnan(case.classes["soft dice"][2])
