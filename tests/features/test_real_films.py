from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from films import write_film

from tvnet_cli.cli import main
from tvnet_cli.features import extract
from tvnet_cli.features.extract import extract_features
from tvnet_cli.options import ExtractOptions

REPOSITORY = Path(__file__).resolve().parents[2]

# What of ../shared/data/bad_media gives no row. The encrypted film holds only its beginning, which is clear.
NO_ROW = {
    "io__gs-16b-2c-44100hz.mp4": "no_video_stream",
    "torchcodec__sine_mono_s16.wav": "no_video_stream",
    "moviepy__result.webm": "empty",
    "mp4parse-rust__bipbop_nonfragment_header.mp4": "no_decodable_frame",
    "mp4parse-rust__zero_empty_stsc.mp4": "no_decodable_frame",
    "small__AudioVideoInterleave.avi": "no_decodable_frame",
    "small__WindowsMediaVideo.wmv": "no_decodable_frame",
    "small__FlashVideo.flv": "cannot_open",
    "streamio-ffmpeg__empty.flv": "cannot_open",
    "-video-with-dash-.mp4": "too_small",
    "mp4parse-rust__video_colr_nclx_rgb.mp4": "too_small",
}


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


def test_all_bad_media_give_a_row_or_the_right_reason(shared_data, tmp_path, monkeypatch):
    def fewer(*arguments, options: ExtractOptions, **more):
        return extract_features(*arguments, options=replace(options, num_clips=2), **more)

    monkeypatch.setattr(extract, "extract_features", fewer)
    files = sorted(path for path in (shared_data / "bad_media").rglob("*") if path.is_file())
    result = tvnet(*files, "-o", tmp_path / "f.h5", "--json")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {one["video_id"]: one["code"] for one in found if one["status"] == "failed"} == NO_ROW
    with h5py.File(tmp_path / "f.h5") as file:
        assert set(file["video_id"].asstr()[:]) == {path.name for path in files} - NO_ROW.keys()
        assert all(np.isfinite(file[name][:]).all() for name in ("flow/global_pool", "flow/inception_4e_output"))
        assert not file["bad_packets"][:].any()


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
