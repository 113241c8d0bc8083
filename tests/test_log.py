"""``--log-file``: what is written, when, and that many runs can share a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tvnet_cli import __version__
from tvnet_cli.commands.common import LOG_FILE, with_clear_errors, with_log
from tvnet_cli.errors import DatasetError, OutputError
from tvnet_cli.log import EventLog

REPOSITORY = Path(__file__).resolve().parents[1]


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_has_a_beginning_its_videos_and_an_end(tmp_path):
    path = tmp_path / "log.jsonl"
    before = datetime.now(timezone.utc)
    log = EventLog(path)
    log.started(videos=3, device="cpu")
    for status in ("done", "done", "failed"):
        log.video({"video_id": "a.mp4", "status": status})
    log.ended(1)
    started, *videos, ended = events(path)
    assert started["event"] == "started"
    assert started["version"] == __version__
    assert started["command"] == ["tvnet", *sys.argv[1:]]
    assert started["pid"] == os.getpid()
    assert started["host"]
    assert (started["videos"], started["device"]) == (3, "cpu")
    assert [(one["event"], one["video_id"], one["status"]) for one in videos] == [
        ("video", "a.mp4", "done"),
        ("video", "a.mp4", "done"),
        ("video", "a.mp4", "failed"),
    ]
    assert ended["event"] == "ended"
    assert ended["exit_code"] == 1
    assert ended["counts"] == {"done": 2, "failed": 1}
    assert ended["seconds"] >= 0
    assert len({one["run"] for one in events(path)}) == 1
    for one in events(path):
        time = datetime.fromisoformat(one["time"])
        assert time.utcoffset().total_seconds() == 0
        assert abs((time - before).total_seconds()) < 60


def test_no_address_tells_its_secrets(tmp_path, monkeypatch):
    words = ["features", "a b.mp4?", "https://me:secret@host/a.mp4?signature=secret"]
    monkeypatch.setattr("sys.argv", ["tvnet", *words])
    EventLog(tmp_path / "log.jsonl").started()
    assert events(tmp_path / "log.jsonl")[0]["command"] == ["tvnet", *words[:2], "https://host/a.mp4"]


def test_runs_are_appended_and_told_apart(tmp_path):
    for _ in range(2):
        EventLog(tmp_path / "log.jsonl").ended(0)
    assert [one["event"] for one in events(tmp_path / "log.jsonl")] == ["started", "ended"] * 2
    assert len({one["run"] for one in events(tmp_path / "log.jsonl")}) == 2


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = EventLog(None)
    log.started()
    log.ended(0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_wrong_usage(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere" / "log.jsonl"):
        with pytest.raises(OutputError, match="cannot write the log file"):
            EventLog(path)


def test_each_event_is_one_write_at_the_end(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(os, "write", lambda file, content: written.append(content) or len(content))
    log = EventLog(tmp_path / "log.jsonl")
    log.write("video", reason="two\nlines", name="\udcff")
    assert len(written) == 1
    assert written[0].count(b"\n") == 1
    assert written[0].endswith(b"}\n")


def test_many_runs_can_share_a_file(tmp_path):
    """Lines of several processes never mix, long ones neither."""
    path = tmp_path / "log.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\nfrom tvnet_cli.log import EventLog\n"
        "log = EventLog(Path(sys.argv[1]))\n"
        "for number in range(300): log.write('video', number=number, text=sys.argv[2] * (number * 40))\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen([*command, letter], cwd=REPOSITORY) for letter in "abc"]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    found = events(path)
    assert len(found) == 900
    for run in {one["run"] for one in found}:
        own = [one for one in found if one["run"] == run]
        assert [one["number"] for one in own] == list(range(300))
        assert len(set("".join(one["text"] for one in own))) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_told_of_once_and_stops_nothing(capsys):
    log = EventLog(Path("/dev/full"))
    for _ in range(3):
        log.write("video")
    assert capsys.readouterr().err == "warning: events are missing in the log file /dev/full: No space left on device\n"


def test_what_was_written_half_spoils_no_other_line(tmp_path, monkeypatch, capsys):
    path, write = tmp_path / "log.jsonl", os.write
    log = EventLog(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, content: write(file, content[:20]))
        log.write("lost")
    log.write("video")
    log.write("video")
    half, *whole = path.read_text().splitlines()
    assert len(half) == 20
    assert [json.loads(line)["event"] for line in whole] == ["video", "video"]
    assert "a part of a line" in capsys.readouterr().err


def _raise(error: BaseException) -> None:
    raise error


ENDS: list[tuple[BaseException | None, int, str | None]] = [
    (None, 0, None),
    (SystemExit(1), 1, None),
    (SystemExit(130), 130, None),
    (KeyboardInterrupt(), 130, None),
    (DatasetError("no videos"), 1, "DatasetError"),
    (OutputError("two outputs"), 2, "OutputError"),
    (click.UsageError("no such stream"), 2, "UsageError"),
    (ZeroDivisionError("oh"), 1, "ZeroDivisionError"),
]


@pytest.mark.parametrize(("error", "exit_code", "kind"), ENDS)
def test_every_end_of_a_command_is_logged_with_its_exit_code(tmp_path, error, exit_code, kind):
    @click.command()
    @LOG_FILE
    @click.option("-v", "--verbose", count=True)
    @with_clear_errors
    @with_log
    def command(verbose: int, log: EventLog) -> None:
        if error is not None:
            _raise(error)

    path = tmp_path / "log.jsonl"
    result = CliRunner().invoke(command, ["--log-file", str(path)])
    assert result.exit_code == exit_code
    started, *errors, ended = events(path)
    assert (started["event"], ended["event"]) == ("started", "ended")
    assert ended["exit_code"] == exit_code
    assert [one["type"] for one in errors] == ([kind] if kind else [])
    assert all(one["event"] == "error" and one["message"] == str(error) for one in errors)
    assert [("_raise(error)" in one.get("traceback", "")) for one in errors] == (
        [kind in ("ZeroDivisionError", "UsageError")] if kind else []
    )


OTHERS = {
    "package.json": '{"name":"my package.json"}\n',
    "lines of others": '{"time": "2026-01-01", "level": "info"}\n' * 2,
    "a log and more": "LOG{}\n",
    "text": "my notes",
    "many lines and notes": "LOG" * 500 + "my notes\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_only_a_log_is_appended_to(tmp_path, name):
    path = tmp_path / "log.jsonl"
    EventLog(path).ended(0)
    path.write_text(content := OTHERS[name].replace("LOG", path.read_text()))
    with pytest.raises(OutputError, match="is there, and no log of tvnet: choose another --log-file"):
        EventLog(path)
    assert path.read_text() == content


def test_long_logs_are_appended_to(tmp_path):
    for _ in range(2):
        log = EventLog(tmp_path / "log.jsonl")
        for number in range(100):
            log.write("video", text="x" * 100 * number)
    assert len(events(tmp_path / "log.jsonl")) == 200


@pytest.mark.parametrize("size", [1, 20, 60, 90])
def test_a_log_that_was_written_half_stays_a_log(tmp_path, size):
    path = tmp_path / "log.jsonl"
    EventLog(path).ended(0)
    path.write_bytes(path.read_bytes()[:size])
    for _ in range(3):
        EventLog(path).ended(0)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()[1:]] == ["ended", "started"] * 2 + [
        "ended"
    ]


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=r"cannot write the log file .*pipe"):
        EventLog(tmp_path / "pipe")


def test_a_pipe_that_is_read_gets_the_events(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    EventLog(tmp_path / "pipe").ended(0)
    assert [json.loads(line)["event"] for line in os.read(reader, 2**16).splitlines()] == ["started", "ended"]
    os.close(reader)
