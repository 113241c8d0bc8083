from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from films import write_film

from tvnet_cli.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]

REASONS = (
    "no such file",
    "the file is empty",
    "cannot open: ",
    "no video stream",
    "no decoder for its video stream",
    "no decodable frame",
    "damaged",
    "too small: ",
)


def tvnet(*arguments: object):
    return CliRunner().invoke(main, ["features", *map(str, arguments), "--weights", "untrained"])


def test_all_real_films_give_a_row(shared_data, tmp_path):
    result = tvnet(shared_data / "videos", "-o", tmp_path / "f.h5")
    assert result.exit_code == 0, result.stderr
    with (shared_data / "manifest.csv").open(newline="") as table:
        frames = {row["file"].removeprefix("videos/"): row["frames"] for row in csv.DictReader(table)}
    with h5py.File(tmp_path / "f.h5") as file:
        ids = file["video_id"].asstr()[:].tolist()
        assert ids == sorted(path.name for path in (shared_data / "videos").iterdir())
        assert len(ids) == 17
        assert file["num_frames"][:].tolist() == [int(frames[video_id]) for video_id in ids]
        for layer in ("global_pool", "inception_5b_output", "inception_5a_output", "inception_4e_output"):
            values = file[f"flow/{layer}"][:].reshape(17, -1).astype(np.float64)
            np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-6)


def test_all_bad_media_give_a_row_or_a_reason(shared_data, tmp_path):
    files = sorted(path for path in (shared_data / "bad_media").rglob("*") if path.is_file())
    result = tvnet(*files, "-o", tmp_path / "f.h5", "--json")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    with h5py.File(tmp_path / "f.h5") as file:
        rows = set(file["video_id"].asstr()[:])
        assert all(np.isfinite(file[name][:]).all() for name in ("flow/global_pool", "flow/inception_4e_output"))
    listed = [line.strip() for line in result.stderr.split("videos failed:")[1].splitlines()]
    failed = {line.split(": ")[0]: line.split(": ", 1)[1] for line in listed if ": " in line}
    assert rows | failed.keys() == {path.name for path in files}
    assert not rows & failed.keys()
    assert all(reason.startswith(REASONS) for reason in failed.values()), failed
    broken = {path.name for path in files if path.parent.name in ("corrupt", "audio_only", "tiny", "odd_name")}
    assert failed.keys() == broken


@pytest.mark.parametrize("num_frames", [250])
def test_a_long_film_needs_little_more_memory_than_a_short_one(tmp_path, num_frames):
    def peak_memory(film: Path) -> int:
        command = [
            sys.executable,
            "-m",
            "tvnet_cli",
            "features",
            str(film),
            "-o",
            f"{film}.h5",
            "--weights",
            "untrained",
        ]
        running = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        assert running.returncode == 0
        return usage.ru_maxrss

    quick = {"preset": "ultrafast", "g": "250"}
    short = write_film(tmp_path / "short.mp4", num_frames, options=quick)
    long = write_film(tmp_path / "long.mp4", 120 * num_frames, options=quick)  # 20 minutes
    assert peak_memory(long) <= 1.3 * peak_memory(short)
