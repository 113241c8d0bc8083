"""Where text leaves the program: no name, card or message of others steers the terminal that shows it.

No rich in this module: ``tvnet --help`` does without it. What rich writes is made printable in
``tvnet_cli.console``, for it has escape sequences of its own.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from tvnet_cli.errors import printable_lines


class PrintableStream:
    """A text stream that shows characters that steer a terminal as escapes; all else is that of the stream behind it.

    Parameters
    ----------
    stream : TextIO
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.buffer = _PrintableBytes(self)
        self.rich_proxied_file = stream  # where rich looks for the stream that takes its own escape sequences

    def write(self, text: str) -> int:
        """Write text; what the encoding of the stream cannot say becomes an escape too."""
        shown, encoding = printable_lines(text), self._stream.encoding or "utf-8"
        self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _PrintableBytes(io.RawIOBase):
    """The way for bytes, which click takes for completions and where the encoding of the stream is ASCII."""

    def __init__(self, text: PrintableStream) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._text.write(bytes(data).decode("utf-8", "surrogateescape"))
        return len(data)

    def flush(self) -> None:
        self._text.flush()


@contextmanager
def printable_streams() -> Iterator[None]:
    """Inside it all that is written to stdout and stderr is printable."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    ours = {name: cast(TextIO, PrintableStream(stream)) for name, stream in before.items() if stream is not None}
    for name, stream in ours.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in ours.items():
            if getattr(sys, name) is stream:  # else something else has taken its place meanwhile
                setattr(sys, name, before[name])
