import json
import math

import pytest

from candy_monai.report.script import as_script, read_script

HOSTILE = "</script><script>alert(1)</script><!-- & \u2028 \ud800"


def test_nothing_in_json_ends_its_element_and_it_is_read_back_as_it_was():
    text = as_script({"name": HOSTILE})
    assert not set("<>&") & set(text)
    assert text.isascii()
    page = f'<p>x</p><script type="application/json" id="data">{text}</script><script>1</script>'
    assert read_script(page, "data") == {"name": HOSTILE}


def test_numbers_that_json_lacks_are_null():
    assert json.loads(as_script({"a": [1.5, math.nan], "b": (math.inf,), 3: {"c": -math.inf}})) == {
        "a": [1.5, None], "b": [None], "3": {"c": None},
    }  # fmt: skip


def test_a_missing_or_damaged_element_is_an_error():
    with pytest.raises(LookupError):
        read_script("<p></p>", "data")
    with pytest.raises(ValueError, match="Expecting"):
        read_script('<script type="application/json" id="data">{"a":</script>', "data")
