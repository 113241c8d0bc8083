"""What the commands have in common."""

from __future__ import annotations

import functools
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from tvnet_cli.errors import OutputError, TVNetError, lacks_memory, printable
from tvnet_cli.log import EventLog
from tvnet_cli.options import DecodeLimits
from tvnet_cli.writing import require_replaceable, saying

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
FAILED, INTERRUPTED = 1, 130
SHOWN = 3  # arguments in an error
LEAST_MEMORY = 700 << 20  # bytes; below it torch ends the process when it is imported


class PathType(click.Path):
    """A path; what a variable of the shell that is not set leaves is none, least of all that of this folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("", b""):
            self.fail("an empty path", param, ctx)
        return super().convert(value, param, ctx)


PATH = PathType(path_type=Path)


def with_clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Errors as one line and exit code 1, Ctrl-C as exit code 130; tracebacks only with -vv."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        try:
            _require_memory()
            command(**arguments)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except OutputError as error:
            raise click.UsageError(printable(str(error))) from error
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                sys.exit(FAILED)
            if arguments["verbose"] >= 2:
                traceback.print_exc()
            with saying():
                click.echo(f"Error: {printable(_one_line(error))}", err=True)
            sys.exit(FAILED)

    return wrapped


def _require_memory() -> None:
    """That the system lets this process have what its libraries take (``ulimit -v``)."""
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_MEMORY:
        raise MemoryError(f"it may have {limit >> 20} MiB, and needs at least {LEAST_MEMORY >> 20}")


def _nobody_reads() -> bool:
    """Whether what reads the output, such as ``head``, has gone, and wants no message either."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    if not watch.poll(0):  # some other pipe is broken
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python itself writes at the end
    return True


def with_log(command: Callable[..., None]) -> Callable[..., None]:
    """The log that ``LOG_FILE`` asks for, which the command gets as ``log`` and need not end."""

    @functools.wraps(command)
    def wrapped(log_file: Path | None, **arguments: Any) -> None:
        log = EventLog(log_file)
        try:
            command(log=log, **arguments)
        except BaseException as error:
            stopped = isinstance(error, (SystemExit, KeyboardInterrupt))
            log.ended(_exit_code(error), None if stopped else error)
            raise
        log.ended(0)

    return wrapped


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """All of these click options, in this order in the help."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def with_decode_limits(command: Callable[..., None]) -> Callable[..., None]:
    """What decoding a video or an image may take, which the command gets as ``limits``."""

    @click.option(
        "--timeout",
        type=click.FloatRange(0),
        default=DecodeLimits.timeout,
        show_default=True,
        metavar="SECONDS",
        help="Give up a video whose decoding takes longer; 0: never. Where frames are read one by one, that of each.",
    )
    @click.option(
        "--decoder-memory",
        type=int,
        default=DecodeLimits.memory,
        show_default=True,
        metavar="MIB",
        help="Give up a video whose decoding needs more, on Linux; 0: never.",
    )
    @functools.wraps(command)
    def wrapped(timeout: float, decoder_memory: int, **arguments: Any) -> None:
        try:
            limits = DecodeLimits(timeout=timeout, memory=decoder_memory)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        command(limits=limits, **arguments)

    return wrapped


def check_writable(path: Path, *suffixes: str, overwrite: bool) -> None:
    """Before minutes of work, that a file with one of these suffixes can be written after it.

    Raises
    ------
    click.UsageError
    OutputError
        If the file is there, this program did not write it, and ``overwrite`` is false.
    """
    if path.suffix.lower() not in suffixes:
        raise click.UsageError(f"{path} should end in {' or '.join(suffixes)}")
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise click.UsageError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'no such folder'}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise click.UsageError(f"{path} cannot be written: permission denied")
    require_replaceable(path, overwrite=overwrite)


def complete(*words: str) -> Completer:
    """What a shell offers for a value: those of the words that begin as it does, else files."""
    return lambda context, parameter, begun: _that_begin(words, begun)


def complete_weights(*more: str, here: bool = True, published: bool = False) -> Completer:
    """The same with the names of the weights that are here, and of published ones."""

    def names(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        from tvnet_cli.network.cards import known_weights
        from tvnet_cli.network.registry import PUBLISHED

        words = [*(known_weights() if here else ()), *(PUBLISHED if published else ()), *more]
        return _that_begin(dict.fromkeys(words), begun)

    return names


def _that_begin(words: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(begun)] or [CompletionItem(begun, type="file")]


DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu or cuda[:i].",
    shell_complete=complete("auto", "cpu", "cuda"),
)


LOG_FILE = click.option(
    "--log-file", type=PATH, metavar="FILE", help="Append what happens to this file, as JSON lines."
)


def _exit_code(error: BaseException) -> int:
    """The code that a command ends with which raises this."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, click.ClickException):
        return error.exit_code
    usual = {KeyboardInterrupt: INTERRUPTED, OutputError: click.UsageError.exit_code}
    return next((code for kind, code in usual.items() if isinstance(error, kind)), FAILED)


def _command() -> str:
    """The command that runs and the first of its arguments, as on the command line."""
    context = click.get_current_context()
    names = [parameter.name for parameter in context.command.params if isinstance(parameter, click.Argument)]
    values = [context.params.get(name or "") for name in names]
    words = [str(word) for value in values for word in (value if isinstance(value, tuple) else [value]) if word]
    return " ".join([context.command_path, *words[:SHOWN], *(["..."] if len(words) > SHOWN else [])])


def _one_line(error: Exception) -> str:
    if isinstance(error, TVNetError):
        return str(error)
    first = (str(error).splitlines() or [""])[0]
    if lacks_memory(error):
        return f"there is not enough memory for {_command()}: free some, or raise the limit (ulimit -v) ({first[:200]})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {first} (-vv shows where)"
