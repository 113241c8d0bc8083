"""What people see while a run goes on, on stderr."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING

from rich import markup
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tvnet_cli.console import PrintableConsole
from tvnet_cli.errors import printable
from tvnet_cli.features.extract import VideoResult
from tvnet_cli.features.lock import has_own_parts, parts_folder
from tvnet_cli.flow.compute import SAMPLED_FIELDS
from tvnet_cli.flow.field import FlowField
from tvnet_cli.flow.outputs import Target
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.network.weights import UNTRAINED, StreamModel
from tvnet_cli.video.sequence import FrameSequence
from tvnet_cli.writing import saying

if TYPE_CHECKING:
    from typing_extensions import Self

SECONDS_BETWEEN_LINES = 30  # of a long run without a terminal


def escape(text: str) -> str:
    """Text of others as it is shown: without markup, and without characters that steer a terminal."""
    return markup.escape(printable(text))


class _Screen:
    """A bar on a terminal and lines of text, on stderr, inside a ``with`` block."""

    counts_in: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))

    def __init__(self, label: str, total: int | None, quiet: bool) -> None:
        self.quiet = quiet
        self.console = PrintableConsole(stderr=True, highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *self.counts_in,
            TimeRemainingColumn(),
            console=self.console,
            redirect_stdout=False,  # results are no progress
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(label, total=total, rate="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _say(self, line: str, always: bool = False) -> None:
        if always or not self.quiet:
            with saying():
                self.console.print(line)


class VideoProgress(_Screen):
    """Videos done, failed and left, their rate and the time left; a bar on a terminal, else a line a video.

    Parameters
    ----------
    total : int
        Videos to work on.
    quiet : bool
        Say only what failed.
    verbosity : int
        1: a line for each video also on a terminal; 2: tracebacks of failures.
    """

    def __init__(self, total: int, quiet: bool = False, verbosity: int = 0) -> None:
        super().__init__("videos", total, quiet)
        self.total, self.verbosity = total, verbosity
        self.counts = {"done": 0, "skipped": 0, "failed": 0}
        self._said = self._started
        self.failures: list[VideoResult] = []

    def announce(self, model: StreamModel, device: object) -> None:
        """Say which weights serve a stream and where, and aloud if they were never trained."""
        stream, card = model.card.stream, model.card
        if model.name == UNTRAINED:
            self._say(
                f"[yellow]untrained weights[/yellow] ({card.source}) for the {stream} stream: good for trying out, "
                "the features hold no learned motion"
            )
        if self.verbosity:
            flow = f", flow by {model.tvnet.solver_in_use()}" if model.tvnet is not None else ""
            self._say(f"{stream} stream on {device}{flow}: {escape(model.name)}, sha256 {card.sha256}")

    def show(self, result: VideoResult) -> None:
        """Count one video, and say what there is to say about it."""
        self.counts[result.status] += 1
        if result.status == "failed":
            self.failures.append(result)
            when = " (in an earlier run)" if result.earlier else ""
            self._say(f"[red]failed[/red] {escape(result.video_id)}: {escape(result.reason)}{when}", always=True)
            if self.verbosity >= 2 and result.error is not None:
                self.console.print("".join(traceback.format_exception(result.error)), markup=False)
        for note in result.notes:
            self._say(f"[yellow]note[/yellow] {escape(result.video_id)}: {escape(note)}")
        if result.status == "done" and (self.verbosity or not self.console.is_terminal):
            padded = ", padded" if result.padded else ""
            self._say(
                f"[{sum(self.counts.values())}/{self.total}] {escape(result.video_id)}: "
                f"{result.num_frames} frames{padded}, {result.seconds:.1f} s"
            )
        failed = f" [red]{self.counts['failed']} failed[/red]" if self.counts["failed"] else ""
        self._bar.update(self._task, advance=1, description=f"videos{failed}", rate=self._rate())

    def note(self, line: str) -> None:
        """Say what people should know about the run as a whole."""
        self._say(f"[yellow]note[/yellow] {escape(line)}", always=True)

    def checking(self, done: int, total: int) -> None:
        """So many videos of those with a row were compared with what their rows were made of."""
        self._stage("checking", done, total, "videos with a row")
        if done == total:
            self._bar.update(self._task, description="videos", completed=sum(self.counts.values()), total=self.total)

    def packing(self, done: int, total: int) -> None:
        """So many rows of all are in the file that is written at the end."""
        self._stage("packing", done, total, "rows")

    def _stage(self, name: str, done: int, total: int, what: str) -> None:
        self._bar.update(self._task, description=name, completed=done, total=total, rate="")
        now = time.monotonic()
        if now - self._said > SECONDS_BETWEEN_LINES and not self.console.is_terminal:
            self._say(f"{name}: {done} of {total} {what}")
            self._said = now

    def close(self, output: Path, interrupted: bool = False) -> None:
        """The closing line, and the names and reasons of what failed."""
        if self.failures:
            earlier = sum(result.earlier is True for result in self.failures)
            again = f" ({earlier} in earlier runs: --retry-failed tries them again)" if earlier else ""
            self._say(f"{len(self.failures)} of {self.total} videos failed{again}:", always=True)
            for result in self.failures:
                self._say(f"  {escape(result.video_id)}: {escape(result.reason)}", always=True)
        left = self.total - sum(self.counts.values())
        waiting = f", {left} left" if left else ""
        kept = any(result.code == "source_changed" for result in self.failures)  # whose rows stay
        none = "" if self.counts["done"] or self.counts["skipped"] or kept else "no "
        where = f"{none}features in {escape(str(output))}" if output.exists() else "nothing to write"
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        self._say(f"{counts}{waiting} in {time.monotonic() - self._started:.0f} s; {where}")
        if interrupted:
            parts = parts_folder(output)
            where = f" in {escape(str(parts))}" if has_own_parts(parts) else ""
            self._say(f"interrupted: finished videos are kept{where}, the same command goes on from here", always=True)

    def _rate(self) -> str:
        worked = self.counts["done"] + self.counts["failed"]
        return f"{worked / max(time.monotonic() - self._started, 1e-3) * 60:.1f}/min" if worked else ""


class FlowProgress(_Screen):
    """Fields done and left, their rate and the time left; a bar on a terminal, else a line now and then.

    Parameters
    ----------
    sequence : FrameSequence
    quiet : bool
        Say only what failed.
    """

    def __init__(self, sequence: FrameSequence, quiet: bool = False) -> None:
        self.sequence = sequence
        super().__init__("fields", self.num_fields, quiet)
        self.last: FlowField | None = None
        self._computed = 0
        self._said = self._started

    @property
    def num_fields(self) -> int:
        """Fields that there are to be, as far as is known."""
        return len(self.sequence.frame_index) - 1

    def announce(self, tvnet: TVNet, device: object) -> None:
        """Say what computes and where."""
        self._say(f"flow on {device} by {tvnet.solver_in_use()}: {escape(tvnet.extra_repr())}")

    def notes(self, lines: Sequence[str]) -> None:
        """Say what people should know about outputs that are resumed."""
        for line in lines:
            self._say(f"[yellow]note[/yellow] {escape(line)}")

    def announce_sampling(self) -> None:
        """Say what happens before the first field, where it takes long."""
        if self.num_fields > 1:
            some = f"{SAMPLED_FIELDS} of" if self.num_fields > SAMPLED_FIELDS else "all"
            self._say(f"looking at {some} {self.num_fields} fields for the scale of the colours")

    def show(self, field: FlowField) -> None:
        """Count one field."""
        self.last = field
        self._computed += 1
        now = time.monotonic()
        rate = f"{self._computed / max(now - self._started, 1e-3):.1f}/s"
        self._bar.update(self._task, completed=field.position + 1, total=self.num_fields, rate=rate)
        if now - self._said > SECONDS_BETWEEN_LINES and not self.console.is_terminal:
            self._say(f"[{field.position + 1}/{self.num_fields}] {rate}")
            self._said = now

    def close(
        self, targets: Sequence[Target], max_flow: float | None, interrupted: bool = False, failed: bool = False
    ) -> None:
        """The closing lines: what was written, and how to read its colours."""
        for note in self.sequence.notes:
            self._say(f"[yellow]note[/yellow] {escape(self.sequence.name)}: {escape(note)}")
        written = ", ".join(_written(targets))
        if self.last is not None:
            height, width = self.last.first.shape[:2]
            before = self.last.position + 1 - self._computed
            earlier = f" ({before} were there already)" if before else ""
            self._say(
                f"{self.last.position + 1} of {self.num_fields} fields of {width} x {height} pixels{earlier} "
                f"in {time.monotonic() - self._started:.1f} s" + (f"; wrote {escape(written)}" if written else "")
            )
        elif not interrupted and not failed and written:
            self._say(f"nothing to do: all {self.num_fields} fields are in {escape(written)}")
        if max_flow is not None and any(target.coloured for target in targets):
            self._say(f"colours: full at {max_flow:.3g} pixels, darker beyond; --max-flow changes it")
        if interrupted:
            again = "; the same command goes on from here" if _resumes(targets) else ""
            self._say(f"interrupted: {self.kept()}{again}", always=True)

    def kept(self) -> str:
        """What is left of a run that ended early."""
        return f"{self.last.position + 1} fields are kept" if self.last else "no field was written"

    def once_there_is_room(self, targets: Sequence[Target]) -> str:
        """What to do about a disk that is full."""
        if _resumes(targets):
            return f"{self.kept()}; once there is room the same command goes on from here"
        return "make room, or choose another output"

    def summary(self, targets: Sequence[Target], max_flow: float | None) -> dict[str, object]:
        """The run as plain values, ready for JSON."""
        return {
            "input": [str(path) for path in self.sequence.files],
            "outputs": _written(targets),
            "fields": self.last.position + 1 if self.last else self.num_fields,
            "size": list(self.last.first.shape[:2]) if self.last else None,
            "max_flow_pixels": max_flow,
            "notes": list(self.sequence.notes),
            "seconds": round(time.monotonic() - self._started, 3),
        }


class TrainingProgress(_Screen):
    """Steps done and left, the loss, their rate and the time left; a bar on a terminal, else a line now and then.

    Parameters
    ----------
    total : int
        Steps.
    quiet : bool
        Say nothing but errors.
    """

    def __init__(self, total: int, quiet: bool = False) -> None:
        super().__init__("steps", total, quiet)
        self.total = total
        self._said = self._started
        self._before: int | None = None  # steps that an earlier run did

    def announce(self, line: str) -> None:
        """Say what is trained, on what."""
        self._say(escape(line))

    def notes(self, notes: Sequence[str]) -> None:
        """Say what people should know about the data."""
        for note in notes:
            self._say(f"[yellow]note[/yellow] {escape(note)}")

    def show(self, step: int, values: dict[str, float]) -> None:
        """Say what was logged of a step."""
        now = time.monotonic()
        if self._before is None:
            self._before, self._started = step - 1, now
            if self._before:
                self._say(f"going on after step {self._before}")
        done_since = step - 1 - self._before  # the first step, which waits for much, is not timed
        rate = f"{done_since / max(now - self._started, 1e-3) * 60:.1f}/min" if done_since else ""
        self._bar.update(self._task, completed=step, description=f"steps, loss {values['loss']:.4f}", rate=rate)
        validation = {name: value for name, value in values.items() if name.startswith("validation_")}
        often = now - self._said > SECONDS_BETWEEN_LINES and not self.console.is_terminal
        if validation or often:
            shown = {"loss": values["loss"], **validation}
            said = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in shown.items())
            left = (
                f", {(self.total - step) / done_since * (now - self._started) / 60:.0f} min left" if done_since else ""
            )
            self._say(f"[{step}/{self.total}] {said}" + (f" ({rate}{left})" if rate and step < self.total else ""))
            self._said = now

    def interrupted(self, folder: Path) -> None:
        """The closing line of a run that was stopped."""
        self._say(f"interrupted: the same command goes on from the checkpoint in {escape(str(folder))}", always=True)


class DrawingProgress(_Screen):
    """Steps of gradient ascents done and left, and the time left; a bar on a terminal, else a line now and then.

    Parameters
    ----------
    total : int
        Steps of all units.
    quiet : bool
        Say nothing but errors.
    """

    def __init__(self, total: int, quiet: bool = False) -> None:
        super().__init__("steps", total, quiet)
        self.total = total
        self._said = self._started
        self._lock = Lock()

    def step(self, steps: int) -> None:
        """So many steps more are done; threads may say so at once."""
        with self._lock:
            self._bar.advance(self._task, steps)
            now = time.monotonic()
            if now - self._said > SECONDS_BETWEEN_LINES and not self.console.is_terminal:
                done = int(self._bar.tasks[0].completed)
                left = (self.total - done) / done * (now - self._started)
                self._say(f"[{done}/{self.total}] steps, {left:.0f} s left")
                self._said = now

    def note(self, line: str) -> None:
        """What people should know about the drawing."""
        self._say(f"[yellow]note[/yellow] {escape(line)}")

    def close(self, outputs: Sequence[Path]) -> None:
        """The closing line."""
        written = ", ".join(map(str, outputs))
        self._say(f"wrote {escape(written)} in {time.monotonic() - self._started:.0f} s")


class DownloadProgress(_Screen):
    """Bytes of one file that are there, as a bar on a terminal; then what became of it.

    Parameters
    ----------
    name : str
    quiet : bool
        Say nothing but errors.
    """

    counts_in = (DownloadColumn(), TransferSpeedColumn())

    def __init__(self, name: str, quiet: bool = False) -> None:
        super().__init__(escape(name), None, quiet)
        self.name = name

    def show(self, done: int, total: int | None) -> None:
        """So many bytes are there, of so many or of nobody knows how many."""
        self._bar.update(self._task, completed=done, total=total)

    def close(self, path: Path, notes: Sequence[str]) -> None:
        """What was made of it, and what people should know about that."""
        for note in notes:
            self._say(f"[yellow]note[/yellow] {escape(note)}")
        self._say(f"{escape(self.name)} is in {escape(str(path))}; --weights {escape(self.name)} takes it")


def _resumes(targets: Sequence[Target]) -> bool:
    return any(target.resumes for target in targets)


def _written(targets: Sequence[Target]) -> list[str]:
    return list(dict.fromkeys(str(target.path) for target in targets if target.path.exists()))
