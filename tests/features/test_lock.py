from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from tvnet_cli.errors import FeatureFileError
from tvnet_cli.features.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from tvnet_cli.features.lock import locked
with locked(Path(sys.argv[1])):
    print("here", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holding(output, seconds: float) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(output), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout.readline() == "here\n"
    return process


def test_a_second_run_is_told_who_is_at_work(tmp_path):
    with holding(tmp_path / "f.h5", 60) as other:
        who = (
            rf"another run is writing .*f\.h5 \(process {other.pid} on {re.escape(os.uname().nodename)}, since \d{{4}}-"
        )
        with pytest.raises(FeatureFileError, match=who), locked(tmp_path / "f.h5"):
            pass
        with locked(tmp_path / "g.h5"):
            pass
        other.kill()


def test_the_lock_of_a_process_that_was_killed_does_not_count(tmp_path):
    with holding(tmp_path / "f.h5", 60) as other:
        other.kill()
    assert (tmp_path / "f.h5.parts" / "holder.json").exists()
    with locked(tmp_path / "f.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_with_the_other_run_and_says_for_whom(tmp_path):
    notes: list[str] = []
    with holding(tmp_path / "f.h5", 1) as other, locked(tmp_path / "f.h5", wait=True, note=notes.append):
        assert other.wait(timeout=10) == 0
    assert len(notes) == 1
    assert f"process {other.pid}" in notes[0]


def test_waiting_ends_when_the_run_is_to_end(tmp_path):
    stop = threading.Event()
    with locked(tmp_path / "f.h5"):
        threading.Timer(0.1, stop.set).start()
        with pytest.raises(FeatureFileError), locked(tmp_path / "f.h5", wait=True, stop=stop):
            pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_a_disk_knows_no_locks_a_file_is_one(tmp_path, monkeypatch, number):
    def unsupported(*arguments, **more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "_acquire", unsupported)
    with locked(tmp_path / "f.h5") as folder:
        assert (folder / "lock.file").exists()
        message = r"another run .* if it is dead, delete .*lock\.file"
        with pytest.raises(FeatureFileError, match=message), locked(tmp_path / "f.h5"):
            pass
    with locked(tmp_path / "f.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_other_trouble_with_the_lock_is_an_error(tmp_path, monkeypatch):
    def broken(*arguments, **more):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(FileLock, "_acquire", broken)
    with pytest.raises(OSError, match="broken disk"), locked(tmp_path / "f.h5"):
        pass


def test_many_in_a_row_are_never_two_at_once(tmp_path):
    inside, most, failed = [], [], []

    def work() -> None:
        try:
            with locked(tmp_path / "f.h5", wait=True):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert most == [1] * 12
