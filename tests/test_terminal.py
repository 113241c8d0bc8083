"""What leaves the program: no name, card or message of others steers the terminal that shows it."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys

import click
import pytest
from click.testing import CliRunner

from tvnet_cli.aslan.progress import StageProgress
from tvnet_cli.cli import main
from tvnet_cli.console import PrintableConsole
from tvnet_cli.errors import printable, printable_lines
from tvnet_cli.network.cards import as_toml, tomllib
from tvnet_cli.terminal import PrintableStream, printable_streams

HOSTILE = {
    "an escape sequence": "\x1b[2J",
    "a title of the window": "\x1b]0;owned\x07",
    "C1 control": "\x9b31m",
    "carriage return": "\rgood",
    "backspace": "a\bb",
    "delete": "\x7f",
    "bidi override": "\u202egnp.exe",
    "bidi isolate": "\u2066a\u2069",
    "mark of direction": "\u200f\u061c",
    "line separator": "a\u2028b\u2029c",
    "no width": "a\u200bb\ufeff",
    "a joiner between Latin letters": "pay\u200dpal",
    "tags": "\U000e0041",
    "half a pair": "\udcff",
}
HARMLESS = [
    "é",
    "漢字",
    "🎬",
    "👩\u200d🔬",
    "❤\ufe0f\u200d🔥",
    "می\u200cخواهم",  # noqa: RUF001
    "a\u3000b\xa0c\u202fd",
    "[red]",
    "e\u0301",
]
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_steers_a_terminal_is_shown_as_escapes(text):
    shown = printable(text)
    assert shown != text
    assert not STEERS.search(shown)
    assert re.search(r"\\(x|u|U000)[0-9a-f]{2}|\\r", shown)


@pytest.mark.parametrize("text", HARMLESS)
def test_text_of_all_languages_stays_as_it_is(text):
    assert printable(text) == text
    assert printable_lines(f"{text}\n\t{text}") == f"{text}\n\t{text}"


def test_a_name_of_two_lines_is_shown_on_one():
    assert printable("bad\ngood") == r"bad\ngood"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_streams_let_nothing_steer_a_terminal(text, capsys):
    with printable_streams():
        print(text)
        print(f"[red]{text}", file=sys.stderr)
    said = capsys.readouterr()
    assert said.out == f"{printable(text)}\n"
    assert said.err == f"[red]{printable(text)}\n"


def test_what_an_encoding_cannot_say_is_an_escape():
    behind = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("é", file=PrintableStream(behind), flush=True)
    assert behind.buffer.getvalue() == b"\\xe9\n"


def test_rich_text_is_printable_and_its_own_colours_stay(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    written = io.StringIO()
    console = PrintableConsole(file=written, force_terminal=True, color_system="standard", highlight=False)
    console.print("[red]note[/red] \x1b[2J\x9b")
    assert written.getvalue() == "\x1b[31mnote\x1b[0m \\x1b[2J\\x9b\n"


def test_stages_show_names_as_they_are_and_printable(capsys):
    StageProgress()("checking [red]\x1b[2J\u202e", 1, 1)
    assert capsys.readouterr().err.startswith(r"checking [red]\x1b[2J\u202e: 0.")


@pytest.mark.parametrize(
    "words",
    [["\x1b[2Jx"], ["weights", "show", "--\x1b[2Jx"], ["weights", "show", "\x1b[2Jx"], ["verify", "\x1b[2Jx"]],
)
def test_arguments_are_quoted_printable_with_and_without_a_terminal(words):
    def said(color: bool) -> str:
        return CliRunner().invoke(main, words, color=color).output

    assert said(True) == said(False)
    assert r"\x1b[2Jx" in said(True)
    assert not STEERS.search(said(True))


@pytest.mark.parametrize("color", [True, False])
def test_results_are_the_same_with_and_without_a_terminal(tmp_path, color):
    path = tmp_path / "\x1b[2Jx.safetensors"
    path.touch()
    result = CliRunner().invoke(main, ["weights", "path", str(path)], color=color)
    assert result.stdout == f"{tmp_path}/\\x1b[2Jx.safetensors\n"


def test_bytes_are_printable_too(capsys):
    with printable_streams():
        click.echo("é\x1b[2J".encode() + b"\xff")
    assert capsys.readouterr().out == "é\\x1b[2J\\udcff\n"


def test_a_traceback_is_printable(tmp_path):
    result = CliRunner().invoke(main, ["weights", "show", "\x1b[2J\u202ex.safetensors", "-vv"])
    assert "Traceback" in result.stderr
    assert r"\x1b[2J\u202ex" in result.stderr
    assert not STEERS.search(result.stderr)


def test_a_hostile_card_is_listed_shown_and_verified_printable(cache_folder):
    (cache_folder / "weights").mkdir()
    path = cache_folder / "weights" / "mine\x1b[2J\n\x9b.safetensors"
    path.write_bytes(b"")
    text = "\\u001b]0;t\\u0007\\u009b\\u202e\\u007f é"
    input_table = '[input]\nscale = 6.375\nclip_pixels = 20.0\norder = "interleaved"\n'
    entries = dict.fromkeys(("source", "licence", "training_data", "sha256"), text)
    lines = [
        f'{key} = "{value}"' for key, value in {"architecture": "bn_inception", "stream": "flow", **entries}.items()
    ]
    path.with_suffix(".toml").write_text("\n".join([*lines, input_table]), "utf-8")
    for words in (["list"], ["list", "--json"], ["show", path.stem], ["show", path.stem, "--json"], ["verify"]):
        result = CliRunner().invoke(main, ["weights", *words])
        assert not STEERS.search(result.output), words
        if "--json" in words:
            assert json.loads(result.stdout)
        elif words == ["show", path.stem]:
            assert tomllib.loads(result.stdout)["source"] == json.loads(f'"{text}"')
        else:
            assert r"mine\x1b[2J\n\x9b" in result.output


def test_a_card_keeps_letters_and_escapes_what_steers():
    text = "é漢\x1b\x85\u202e\U000e0041\x7f"
    table = as_toml({"source": text})
    assert table == 'source = "é漢\\u001b\\u0085\\u202e\\U000e0041\\u007f"\n'
    assert tomllib.loads(table)["source"] == text


def test_json_is_valid_and_printable_whatever_the_names():
    stream = io.StringIO()
    names = [*HOSTILE.values(), *HARMLESS]
    print(json.dumps(names), file=PrintableStream(stream))
    assert json.loads(stream.getvalue()) == names
    assert not STEERS.search(stream.getvalue())


def test_results_stay_on_stdout_while_a_bar_is_on_the_terminal(monkeypatch, capsys):
    terminal, other = pty.openpty()
    with os.fdopen(other, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setenv("TERM", "xterm")
        with printable_streams(), StageProgress():
            print("a result")
    os.close(terminal)
    assert capsys.readouterr().out == "a result\n"
