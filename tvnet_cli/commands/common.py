"""What the commands have in common."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from tvnet_cli.errors import OutputError, TVNetError

PATH = click.Path(path_type=Path)
FAILED, INTERRUPTED = 1, 130


def with_clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Errors as one line and exit code 1, Ctrl-C as exit code 130; tracebacks only with -vv."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        try:
            command(**arguments)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except OutputError as error:
            raise click.UsageError(str(error)) from error
        except Exception as error:
            if arguments["verbose"] >= 2:
                traceback.print_exc()
            click.echo(f"Error: {_one_line(error)}", err=True)
            sys.exit(FAILED)

    return wrapped


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """All of these click options, in this order in the help."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _one_line(error: Exception) -> str:
    if isinstance(error, TVNetError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (-vv shows where)"
