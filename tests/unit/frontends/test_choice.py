import pytest

from candy_monai.errors import BadInputError
from candy_monai.frontends import FRONTENDS
from candy_monai.frontends.choice import choose_frontend
from candy_monai.frontends.notion import NotionFrontend

OWN = """
from candy_monai import Frontend

class Mine(Frontend):
    pass

other = 3
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    return file


def test_no_name_is_no_frontend():
    assert choose_frontend([]) is None


def test_a_name_becomes_its_class():
    assert choose_frontend(["notion"]) is NotionFrontend


@pytest.mark.parametrize("name", FRONTENDS)
def test_every_name_leads_to_a_frontend(name):
    assert choose_frontend([name]) is not None


def test_a_class_of_the_user_s_own_is_read_from_its_file(own):
    assert choose_frontend([f"{own}:Mine"]).__name__ == "Mine"


def test_several_names_become_one_class(own):
    both = choose_frontend(["notion", f"{own}:Mine"])
    secrets = {"notion_api_key": "x", "notion_database_id": "0" * 32}
    assert [type(part).__name__ for part in both(secrets).parts()] == ["NotionFrontend", "Mine"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["notin"], r"'notin' is unknown\. Did you mean 'notion'\?"),
        (["notion", "notion"], "same name twice"),
        (["none.py:Mine"], "--frontend none.py:Mine: expected FILE:Class"),
    ],
)
def test_what_cannot_be_chosen_is_an_error(names, said):
    with pytest.raises(BadInputError, match=said):
        choose_frontend(names)


@pytest.mark.parametrize(
    ("name", "said"), [("other", "this is not a subclass of Frontend"), ("Absent", "does not define 'Absent'")]
)
def test_what_a_file_holds_must_be_a_frontend(own, name, said):
    with pytest.raises(BadInputError, match=said):
        choose_frontend([f"{own}:{name}"])
