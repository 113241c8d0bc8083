from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tvnet_cli.errors import FlowFileError
from tvnet_cli.locks import LOCK, lock_folder, locked
from tvnet_cli.writing import ENOTSUPP

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, ENOTSUPP, errno.EINVAL]
HOLD = """
import sys
from pathlib import Path
from tvnet_cli.errors import FlowFileError
from tvnet_cli.locks import lock_folder, locked
with locked(Path(sys.argv[1]), lock_folder(Path(sys.argv[1])), FlowFileError):
    print("here", flush=True)
    sys.stdin.read()
"""


def lock(output: Path, **how):
    return locked(output, lock_folder(output), FlowFileError, **how)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def without_flock(monkeypatch, number: int) -> None:
    def unsupported(file: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", unsupported)


@pytest.mark.parametrize("name", ["x.mp4", "x.npz", "x.h5", "a_folder"])
def test_a_second_process_learns_who_holds_the_lock_of_an_output(tmp_path: Path, name: str):
    output = tmp_path / name
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as other:
        assert other.stdout.readline() == "here\n"
        message = rf"another run is writing .*{name} \(process {other.pid} on {os.uname().nodename}, since "
        with pytest.raises(FlowFileError, match=message), lock(output):
            pass
        other.communicate()
    with lock(output):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", NO_LOCKS)
def test_where_flock_fails_the_existence_of_a_file_is_the_lock(tmp_path: Path, monkeypatch, number: int):
    without_flock(monkeypatch, number)
    with lock(tmp_path / "x.mp4"):
        with (
            pytest.raises(FlowFileError, match=r"another run.*if it is dead, delete .*lock\.file"),
            lock(tmp_path / "x.mp4"),
        ):
            pass
        assert "x.mp4.tvnet-lock/lock.file" in " ".join(names(tmp_path))
    assert names(tmp_path) == []


def test_the_lock_of_a_link_is_that_of_the_file_behind_it(tmp_path: Path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "x.mp4")
    with lock(tmp_path / "x.mp4"), pytest.raises(FlowFileError, match="another run"), lock(tmp_path / "link.mp4"):
        pass


def test_what_others_put_beside_a_lock_stays(tmp_path: Path):
    with lock(tmp_path / "x.mp4"):
        (lock_folder(tmp_path / "x.mp4") / "notes.txt").write_text("precious")
    assert (lock_folder(tmp_path / "x.mp4") / "notes.txt").read_text() == "precious"
    with lock(tmp_path / "x.mp4"):  # the folder is still known to be ours
        pass


@pytest.mark.parametrize(
    ("name", "content"), [("notes.txt", ""), (LOCK, "mine"), ("lock.file", "mine"), ("holder.json", "{}")]
)
def test_a_folder_of_others_with_the_name_of_a_lock_is_named_and_not_touched(tmp_path: Path, name: str, content: str):
    folder = lock_folder(tmp_path / "x.mp4")
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(FlowFileError, match=rf"{folder.name} is in the way.*move it away"), lock(tmp_path / "x.mp4"):
        pass
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: content}


@pytest.mark.parametrize(
    "left", [{}, {LOCK: ""}, {LOCK: "", "holder.json": json.dumps({"host": "h", "pid": 1, "since": "s"})}]
)
def test_what_a_run_leaves_that_was_killed_as_it_began_is_ours(tmp_path: Path, left: dict[str, str]):
    folder = lock_folder(tmp_path / "x.mp4")
    folder.mkdir()
    for name, content in left.items():
        (folder / name).write_text(content)
    with lock(tmp_path / "x.mp4"):
        pass
    assert names(tmp_path) == []


def test_other_trouble_with_the_lock_is_an_error_of_the_system(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(FileLock, "_acquire", lambda lock: (_ for _ in ()).throw(OSError(errno.EIO, "broken disk")))
    with pytest.raises(OSError, match="broken disk"), lock(tmp_path / "x.mp4"):
        pass
