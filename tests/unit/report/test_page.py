import re

from candy_monai.report.document import Document
from candy_monai.report.page import page_of, write_page

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">{{script}}'


def page(**content):
    return page_of(Document(title=HOSTILE, status=HOSTILE, content={"kind": "run", "text": HOSTILE, **content}))


def test_texts_of_a_document_are_no_markup():
    text = page()
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 4
    assert "alert(1)</script>" not in text


def test_the_policy_names_the_style_and_the_script_and_nothing_from_elsewhere():
    import base64
    import hashlib

    text = page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'")
    for element in (
        re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1],
        text.rsplit("<script>", 1)[1].split("</script>")[0],
    ):
        digest = base64.b64encode(hashlib.sha256(element.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_no_address_stands_in_the_page_but_the_name_space_of_its_drawings():
    assert set(re.findall(r"https?://[^\s\"'<]+", page())) == {"http://www.w3.org/2000/svg"}


def test_a_page_is_written_in_one_step(tmp_path):
    document = Document(title="a", status="b", content={})
    assert write_page(document, tmp_path / "page.html").read_text(encoding="utf-8") == page_of(document)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_name_that_is_no_utf_8_does_not_keep_a_page_from_being_written(tmp_path):
    name = b"run \xff".decode(errors="surrogateescape")
    written = write_page(Document(title=name, status=name, content={"folder": name}), tmp_path / "page.html")
    assert "<title>run ?" in written.read_text(encoding="utf-8")
