"""Standard output that its reader may close, as in ``candy-monai train DATASET | head``, and of any encoding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast


@contextmanager
def output_that_may_be_closed() -> Iterator[None]:
    """Yield to a command, which runs to its end even if its standard output is closed meanwhile.

    Characters that the encoding of the output lacks are written as escapes of Python.
    """
    if sys.stdout is None:  # closed before the program began
        yield
        return
    output = _Output(sys.stdout)
    with redirect_stdout(cast("TextIO", output)):
        try:
            yield
        finally:
            output.flush()


class _Output:
    """Passes all output on to a stream, until that is closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError as error:  # a name that the terminal's encoding lacks
                return self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except BrokenPipeError:
            _print_no_more()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _print_no_more()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _print_no_more() -> None:
    from candy_monai.files import discard_standard_output  # it imports PyTorch, which few commands need at once

    discard_standard_output()
