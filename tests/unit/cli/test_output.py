import io
import sys

from candy_monai.cli.output import output_that_may_be_closed


class _Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


def test_a_command_goes_on_when_nobody_reads_its_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", _Closed())
    done = []
    with output_that_may_be_closed():
        print("a line", flush=True)
        done.append(1)
    assert done == [1]


def test_what_is_printed_arrives(capsys):
    with output_that_may_be_closed():
        print("a line")
    assert capsys.readouterr().out == "a line\n"


def test_characters_that_the_encoding_lacks_are_escaped(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="cp1252"))
    with output_that_may_be_closed():
        print("b\u00fcl \u809d \udcff")
    assert content.getvalue().decode("cp1252").rstrip() == "b\u00fcl \\u809d \\udcff"
