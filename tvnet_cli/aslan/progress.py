"""What people see while an evaluation goes on, on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tvnet_cli.console import PrintableConsole
from tvnet_cli.writing import saying


class StageProgress:
    """The stages of a run: a bar on a terminal, else a line for each that is done.

    Parameters
    ----------
    quiet : bool
        Say nothing but errors.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = PrintableConsole(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=self.console,
            redirect_stdout=False,  # results are no progress
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self._stage, self._started = "", 0.0
        self._task = self._bar.add_task("", total=1)

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """So much of a stage is done."""
        if stage != self._stage:
            self._stage, self._started = stage, time.monotonic()
        self._bar.update(self._task, description=escape(stage), completed=done, total=total)
        if done >= total:
            self._say(f"{escape(stage)}: {time.monotonic() - self._started:.1f} s")
            self._stage = ""

    def notes(self, notes: Iterable[str]) -> None:
        """Say what people should know about the run."""
        for note in notes:
            self._say(f"[yellow]note[/yellow] {escape(note)}")

    def _say(self, line: str) -> None:
        if not self.quiet:
            with saying():
                self.console.print(line)
