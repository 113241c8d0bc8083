"""Runs that share the work, are killed, and go on, by the command itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import one_clip
import pytest
from click.testing import CliRunner
from feature_files import assert_same_content
from films import write_film

from tvnet_cli.cli import main
from tvnet_cli.features.format import read_contents

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**inherited, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **more}


def tvnet(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, one_clip.__file__, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment(**more))


def films(folder: Path, count: int) -> Path:
    """Short films of some lengths, and one that is none."""
    folder.mkdir()
    lengths = [write_film(folder / f"{number:03}.mp4", 4 + number, picture=small).read_bytes() for number in range(3)]
    for number in range(3, count):
        (folder / f"{number:03}.mp4").write_bytes(lengths[number % 3])
    (folder / "001.mp4").write_text("no film")
    return folder


def small(number: int) -> np.ndarray:
    return np.full((32, 32), 40 * number % 256, np.uint8)


@pytest.fixture
def slurm(tmp_path) -> Path:
    """A folder with the programs that the script of an array needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "tvnet": f'exec "{sys.executable}" "{one_clip.__file__}" "$@"',
        "srun": 'exec "$@"',
        "scontrol": f'echo "$@" >> "{tmp_path}/scontrol.txt"',
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def task(slurm: Path, number: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = f"{slurm}{os.pathsep}{os.environ['PATH']}"
    ids = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_JOB_ID": f"77{number}"}
    return subprocess.run(
        [EXAMPLES / "slurm_array.sh", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=environment(PATH=path, SHARDS="2", **ids),
    )


def test_the_tasks_of_an_array_make_what_one_run_makes(slurm, tmp_path):
    videos = films(tmp_path / "films", 4)
    tasks = [task(slurm, number, videos, tmp_path / "f.h5") for number in range(2)]
    assert sorted(one.returncode for one in tasks) == [0, 1]  # one film of the four is none
    for number, one in enumerate(tasks):
        assert re.search(rf"shard {number}/2 \(--shard\): \d of 4 videos", one.stderr)
    assert not (tmp_path / "scontrol.txt").exists()
    merged = tvnet("merge", *sorted(tmp_path.glob("f.shard-*.h5")), "-o", tmp_path / "f.h5")
    assert merged.returncode == 0, merged.stderr
    whole = tvnet("features", videos, "-o", tmp_path / "whole.h5", "--shard", "0/1")
    assert "3 done, 0 skipped, 1 failed" in whole.stderr
    assert_same_content(tmp_path / "f.h5", tmp_path / "whole.h5")


def test_a_task_that_was_told_to_stop_is_submitted_again(slurm, tmp_path):
    (slurm / "tvnet").write_text("#!/bin/sh\nexit $CODE\n")
    codes = {}
    for code in ("0", "1", "130"):
        os.environ["CODE"] = code
        codes[code] = task(slurm, int(code) % 7, tmp_path, "f.h5").returncode
    del os.environ["CODE"]
    assert codes == {"0": 0, "1": 1, "130": 130}
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 774\n"


def test_the_page_for_clusters_names_what_there_is():
    page = (EXAMPLES / "cluster.md").read_text()
    helps = {name: CliRunner().invoke(main, [name, "--help"]).output for name in ("features", "merge", "verify")}
    for name, text in helps.items():
        assert f"tvnet {name}" in page
        assert text
    of_others = {"--array", "--head", "--port", "--address", "--videos"}  # Slurm, Ray, tvnet bench
    options = set(re.findall(r"--[a-z][a-z-]+", page)) - of_others
    assert options
    for option in options:
        assert any(option in text for text in helps.values()), option


@pytest.mark.parametrize(("count", "kills"), [(8, 1), pytest.param(300, 100, marks=pytest.mark.slow)])
def test_the_command_killed_at_any_moment_loses_no_video(tmp_path, count, kills):
    videos, output = films(tmp_path / "films", count), tmp_path / "f.h5"
    random = np.random.default_rng(count)
    command = [sys.executable, one_clip.__file__, "features", str(videos), "-o", str(output), "--json"]
    finished: set[str] = set()
    for _ in range(kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as running:
            finished |= set(re.findall(r'"video_id": "(\w+\.mp4)"', running.stdout.readline()))
            time.sleep(random.uniform(0, 0.5))
            running.kill()
            finished |= set(re.findall(r'"video_id": "(\w+\.mp4)"', running.stdout.read()))
        if output.exists():
            with h5py.File(output) as file:
                assert len(file["checksum"]) == len(file["video_id"])
        parts = sorted(tmp_path.glob("f.h5.parts/*.h5"))
        known = [read_contents(path) for path in ([output] if output.exists() else []) + parts]
        assert finished <= {name for one in known for name in (*one.rows, *one.failures)}
    resumed, whole = tvnet("features", videos, "-o", output), tvnet("features", videos, "-o", tmp_path / "whole.h5")
    assert (resumed.returncode, whole.returncode) == (1, 1)
    assert_same_content(output, tmp_path / "whole.h5")
    assert not (tmp_path / "f.h5.parts").exists()


@pytest.mark.parametrize("runs", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_two_commands_on_one_file_do_each_video_once(tmp_path, runs):
    videos = films(tmp_path / "films", 5)
    for number in range(runs):
        output = tmp_path / f"{number}.h5"
        command = [sys.executable, one_clip.__file__, "features", str(videos), "-o", str(output), "--wait", "-v"]
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
        said = "".join(one.communicate()[1] for one in both)
        assert [one.returncode for one in both] == [1, 1]
        assert len(re.findall(r"^\[\d/5\] \d+\.mp4: \d frames", said, re.MULTILINE)) == 4
        assert "4 done, 0 skipped, 1 failed" in said
        assert "0 done, 4 skipped, 1 failed" in said
        assert tvnet("verify", output).returncode == 0
        assert_same_content(output, tmp_path / "0.h5")
