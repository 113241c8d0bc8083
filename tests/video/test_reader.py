from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from films import write_film

from tvnet_cli.errors import VideoReadError
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.video import reader
from tvnet_cli.video.decode import read_clips
from tvnet_cli.video.reader import ClipReader

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ExtractOptions(num_clips=2, short_side=64, crop_size=64)
FEW = (2, 6, 64, 64)  # the same for read_clips

# What a decoder may do, by the name of the film; all others are read.
ODD_DECODER = """
import ctypes, os, signal, sys, time
from tvnet_cli.video import decode

def odd(path, *clips):
    if path.name == "crash.mp4":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(0)
    if path.name == "hang.mp4":
        time.sleep(1000)
    if path.name == "stop.mp4":
        os.kill(os.getpid(), signal.SIGSTOP)
    if path.name == "swell.mp4":
        return [bytearray(1 << 20) for _ in range(1000)]
    if path.name == "absurd.mp4":
        return bytearray(1 << 60)
    if path.name == "exit.mp4":
        os._exit(3)
    if path.name == "garbage.mp4":
        os.write(3, b"{no answer")
        os._exit(0)
    if path.name == "surprise.mp4":
        raise RuntimeError("the decoder tripped")
    if path.name == "late crash.mp4":
        decode.read_clips = lambda path, *clips: os.abort()
    print("a library says something", flush=True)
    os.write(1, b"and so does one written in C\\n")
    return whole(path, *clips)

whole, decode.read_clips = decode.read_clips, odd
"""


@pytest.fixture
def odd_decoder(monkeypatch):
    start = reader.START.replace("from tvnet_cli", f"exec({ODD_DECODER!r}); from tvnet_cli").replace("{path!a}", "@")
    monkeypatch.setattr(reader, "START", start.replace("{", "{{").replace("}", "}}").replace("@", "{path!a}"))


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", 30)


def same(one, other) -> bool:
    arrays = all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("frames", "frame_index", "pts_seconds")
    )
    return arrays and (one.num_frames, one.padded, one.notes) == (other.num_frames, other.padded, other.notes)


def test_another_process_reads_the_same_clips(film, tmp_path):
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(film.read_bytes()[:-200])
    short = write_film(tmp_path / "caf\udce9 \n'\".mkv", 3)
    with ClipReader(SMALL, DecodeLimits()) as clips:
        for path in (film, short):
            assert same(clips.read(path), read_clips(path, *FEW))
        with pytest.raises(VideoReadError) as there:
            clips.read(broken)
    with pytest.raises(VideoReadError) as here:
        read_clips(broken, *FEW)
    assert (str(there.value), there.value.code) == (str(here.value), here.value.code)
    assert "Traceback" in str(there.value.__cause__)


@pytest.mark.usefixtures("odd_decoder")
@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("crash.mp4", "decoder_crashed", r"the decoder crashed \(SIGSEGV\)"),
        ("hang.mp4", "timeout", r"decoding took longer than 4 s: --timeout allows more"),
        ("stop.mp4", "timeout", r"decoding took longer than 4 s: --timeout allows more"),
        ("swell.mp4", "out_of_memory", r"decoding needs more than 300 MiB: --decoder-memory allows more"),
        ("absurd.mp4", "out_of_memory", r"decoding needs more memory than there is"),
        ("exit.mp4", "decoder_crashed", r"the decoder ended \(exit code 3\)"),
        ("garbage.mp4", "decoder_crashed", r"the decoder .*"),
        ("surprise.mp4", "unexpected", "RuntimeError: the decoder tripped"),
    ],
)
def test_whatever_a_decoder_does_costs_one_video(film, name, code, reason):
    limits = DecodeLimits(timeout=4 if code == "timeout" else 600, memory=300)
    with ClipReader(SMALL, limits) as clips, ThreadPoolExecutor(3) as threads:
        before, broken, beside = (threads.submit(clips.read, path) for path in (film, Path(name), film))
        with pytest.raises(VideoReadError, match=f"^{reason}$") as caught:
            broken.result()
        assert caught.value.code == code
        whole = read_clips(film, *FEW)
        assert same(before.result(), whole)
        assert same(beside.result(), whole)
        assert same(clips.read(film), whole)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a system with /proc")
def test_memory_is_bounded_and_a_film_that_needs_less_is_read_after_it(film, tmp_path):
    grey = np.zeros((4096, 4096), np.uint8)
    large = write_film(tmp_path / "large.mkv", 4, options={"preset": "ultrafast"}, picture=lambda _: grey)
    limits = DecodeLimits()
    object.__setattr__(limits, "memory", 120)  # less than may be asked for, and enough for a small film
    with ClipReader(SMALL, limits) as clips:
        assert clips.read(film).num_frames == 30
        with pytest.raises(VideoReadError, match="decoding needs more than 120 MiB") as caught:
            clips.read(large)
        assert caught.value.code == "out_of_memory"
        assert clips.read(film).num_frames == 30
    with ClipReader(SMALL, DecodeLimits(memory=0)) as clips:
        assert clips.read(large).num_frames == 4


def test_a_process_that_was_killed_while_it_waited_is_replaced(film):
    with ClipReader(SMALL, DecodeLimits()) as clips:
        clips.read(film)
        (waiting,) = clips._idle
        waiting._process.kill()
        assert clips.read(film).num_frames == 30


@pytest.mark.usefixtures("odd_decoder")
def test_a_film_is_not_blamed_for_what_an_earlier_one_did_to_the_process(film, tmp_path):
    shutil.copy(film, tmp_path / "late crash.mp4")
    with ClipReader(SMALL, DecodeLimits()) as clips:
        clips.read(tmp_path / "late crash.mp4")
        assert same(clips.read(film), read_clips(film, *FEW))


def test_there_are_as_many_processes_as_videos_being_read_and_none_afterwards(film):
    with ClipReader(SMALL, DecodeLimits()) as clips:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(clips.read, [film] * 12))
        processes = [worker._process for worker in clips._workers]
        assert 1 <= len(processes) <= 3
    assert all(process.returncode is not None for process in processes)
    assert all(process.stdin.closed and process.stdout.closed for process in processes)


@pytest.mark.usefixtures("odd_decoder")
def test_closing_ends_what_is_being_read_and_blames_no_video():
    with ThreadPoolExecutor(1) as threads:
        with ClipReader(SMALL, DecodeLimits()) as clips:
            hanging = threads.submit(clips.read, Path("hang.mp4"))
            time.sleep(0.2)
        with pytest.raises(RuntimeError, match="was closed"):
            hanging.result()


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="timeout must be 0 or more, not -1"):
        DecodeLimits(timeout=-1)
    with pytest.raises(ValueError, match="at least 256 MiB, not 100"):
        DecodeLimits(memory=100)


# A program without `if __name__ == "__main__"`, in a folder with modules of unlucky names.
PROGRAM = """
import sys
from pathlib import Path
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.video import reader
{before}
clips = reader.ClipReader(ExtractOptions(num_clips=1), DecodeLimits()).__enter__()
print(clips._idle[0]._process.pid, flush=True)
print(clips.read(Path({film!r})).num_frames, flush=True)
{after}
"""


def program(folder: Path, film: Path, before: str = "", after: str = "clips.__exit__(None, None, None)"):
    script = folder / "script.py"
    script.write_text(PROGRAM.format(film=str(film), before=before, after=after))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=folder, env=environment, start_new_session=True
    )


def ended(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # Nobody may be there to take note of its end.
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_any_script_can_read(tmp_path, film):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise SystemExit('this is not the module that was meant')")
    with program(tmp_path, film, before=f"import os; os.chdir({str(elsewhere)!r})") as running:
        worker, frames = running.stdout.read().split()
    assert frames == "30"
    assert ended(int(worker))


def test_ctrl_c_does_not_reach_the_decoder_and_a_killed_program_leaves_none_behind(tmp_path, film):
    hang = f"reader.START = reader.START.replace('from tvnet', {f'exec({ODD_DECODER!r}); from tvnet'!r})"
    hang = hang.replace("{", "{{{{").replace("}", "}}}}").replace("{{{{path!a}}}}", "{path!a}")
    ignore = "import signal; signal.signal(signal.SIGINT, lambda *_: None)"  # which no other program inherits
    for after in ("clips.read(Path('hang.mp4'))", "import time; time.sleep(1000)"):
        with program(tmp_path, film, before=f"{ignore}\n{hang}", after=after) as running:
            try:
                worker = int(running.stdout.readline())
                assert running.stdout.readline() == "30\n"
                os.killpg(running.pid, signal.SIGINT)
                time.sleep(0.2)
                os.kill(worker, 0)
            finally:
                running.kill()
        assert ended(worker)
