"""``tvnet features --dry-run``: what would be done, and what is said of it, against what is then done."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from films import write_film

from tvnet_cli.cli import main
from tvnet_cli.errors import FeatureFileError
from tvnet_cli.features import plan as planning
from tvnet_cli.features.extract import extract_features
from tvnet_cli.features.extractor import Extractor
from tvnet_cli.features.plan import Costs, Plan, plan_run, run_seconds
from tvnet_cli.features.store import FeatureStore
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video.files import find_videos

SMALL = ExtractOptions(num_clips=2, short_side=96, crop_size=96)
COSTS = Costs(compute_seconds=2.0, alone_seconds=3.0, clips=10, read_seconds=1.0, read=2, row_bytes=1000)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(planning, "TIMED_SECONDS", 0)


@pytest.fixture
def films(tmp_path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for number, name in enumerate("abc"):
        write_film(folder / f"{name}.mp4", 10 + 10 * number)
    return folder


def extractor(options: ExtractOptions = SMALL) -> Extractor:
    return Extractor(load_models(["untrained"], options.streams), options)


def plan(films: Path, output: Path, options: ExtractOptions = SMALL, **arguments) -> Plan:
    return plan_run(find_videos([films]), output, extractor(options), **arguments)


def extract(films: Path, output: Path) -> None:
    list(extract_features(find_videos([films]), output, load_models(["untrained"], ["flow"]), options=SMALL))


@pytest.fixture
def no_measuring(monkeypatch):
    """Costs that are known; the videos that they were asked for."""
    asked = []

    def measure(todo, *_):
        asked.extend(video.video_id for video in todo)
        return COSTS

    monkeypatch.setattr(planning, "measure", measure)
    return asked


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def test_a_plan_tells_the_size_of_the_file_and_writes_nothing(films, tmp_path):
    output, before = tmp_path / "f.h5", everything(tmp_path)
    found = plan(films, output)
    assert everything(tmp_path) == before
    assert (found.todo, found.done, found.failed_before) == (3, 0, 0)
    assert found.costs.read == 3
    assert found.costs.compute_seconds > 0
    assert found.costs.read_seconds > 0
    assert found.seconds >= 3 * found.costs.compute_seconds
    extract(films, output)
    assert 0 <= output.stat().st_size - found.new_bytes < 32_000 + 0.02 * found.new_bytes  # the tables of the file


def test_both_streams_are_more(films, tmp_path):
    sizes = {}
    for streams in (("flow",), ("flow", "rgb"), ("rgb",)):
        sizes[streams] = plan(films, tmp_path / "f.h5", dataclasses.replace(SMALL, streams=streams)).costs.row_bytes
    assert sizes["flow", "rgb"] == sizes["flow",] + 4 * 1024


def test_what_is_there_is_not_done_again(films, tmp_path, no_measuring):
    output = tmp_path / "f.h5"
    recipe = extractor().recipe
    with FeatureStore(output, recipe) as store:
        store.add("a.mp4", {"num_frames": 1})
        store.add_failure("b.mp4", "no video stream", "no_video_stream")
    found = plan(films, output)
    assert (found.todo, found.done, found.failed_before) == (1, 1, 1)
    assert no_measuring == ["c.mp4"]
    assert found.old_bytes == output.stat().st_size
    assert found.new_bytes == COSTS.row_bytes + planning.ID_BYTES + len("c.mp4")
    assert found.needed_bytes == 2 * found.new_bytes + found.old_bytes
    assert "1 failed before (--retry-failed tries them again)" in str(found)

    again = plan(films, output, retry_failed=True)
    assert (again.todo, again.done, again.failed_before) == (2, 1, 0)
    anew = plan(films, output, overwrite=True)
    assert (anew.todo, anew.done, anew.failed_before, anew.old_bytes) == (3, 0, 0, 0)


def test_rows_that_wait_in_parts_count_and_stay(films, tmp_path, no_measuring):
    output = tmp_path / "f.h5"
    with FeatureStore(output, extractor().recipe) as store:
        store.add("a.mp4", {"num_frames": 1})
        (tmp_path / "f.h5.parts" / "000000009.h5").write_bytes(b"damaged")
        before = everything(tmp_path)
        found = plan(films, output)  # another run is at work, which is no obstacle
        assert everything(tmp_path) == before
        (tmp_path / "f.h5.parts" / "000000009.h5").unlink()
    assert (found.todo, found.done) == (2, 1)
    assert no_measuring == ["b.mp4", "c.mp4"]


def test_where_all_is_done_nothing_is_measured(films, tmp_path, no_measuring):
    with FeatureStore(tmp_path / "f.h5", extractor().recipe) as store:
        for name in "abc":
            store.add(f"{name}.mp4", {"num_frames": 1})
    found = plan(films, tmp_path / "f.h5")
    assert str(found) == "0 videos to do, 3 done already; nothing was written"
    assert (found.seconds, found.new_bytes, found.needed_bytes) == (0, 0, 0)
    assert no_measuring == []


@pytest.mark.usefixtures("no_measuring")
def test_another_recipe_is_the_error_that_the_run_would_meet(films, tmp_path):
    with FeatureStore(tmp_path / "f.h5", extractor().recipe) as store:
        store.add("a.mp4", {"num_frames": 1})
    other = dataclasses.replace(SMALL, num_clips=3)
    with pytest.raises(FeatureFileError, match=r"options\.num_clips was 2, now 3"):
        plan(films, tmp_path / "f.h5", other)
    assert plan(films, tmp_path / "f.h5", other, overwrite=True).todo == 3


def test_videos_that_cannot_be_read_are_named(films, tmp_path):
    (films / "broken.mp4").write_text("no film")
    found = plan(films, tmp_path / "f.h5")
    assert found.todo == 4
    assert list(found.costs.unreadable) == ["broken.mp4"]
    assert "note  cannot be read: broken.mp4: cannot open: not a video, or damaged" in str(found)


def test_the_sample_spans_all_sizes_and_begins_in_the_middle(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.mp4").write_bytes(b"x" * (100 - number))
    sample = [int(video.video_id[:2]) for video in planning._sample(find_videos([tmp_path]))]
    assert len(sample) == planning.SAMPLE
    assert np.diff(sorted(sample)).tolist() == [4, 4, 4, 4]
    assert sample[0] in (9, 10)


@pytest.mark.parametrize(
    ("videos", "jobs", "cores", "shared", "seconds"),
    [
        (10, 3, 2, True, 25),  # cores that compute read too
        (10, 3, 2, False, 20),  # a GPU computes while cores read; one of both is busiest
        (10, 100, 1, False, 20),
        (1, 3, 2, True, 4),  # a lone video is first read, then computed
        (10, 1, 8, True, 40),  # one by one
    ],
)
def test_a_run_takes_as_long_as_what_is_busiest(videos, jobs, cores, shared, seconds):
    assert run_seconds(videos, COSTS, jobs, cores, shared=shared) == seconds


def test_a_gpu_that_waits_for_films_takes_as_long_as_reading(tmp_path):
    costs = dataclasses.replace(COSTS, compute_seconds=0.01, alone_seconds=0.01, read_seconds=4)
    assert run_seconds(100, costs, 16, 4, shared=False) == 100


def test_several_gpus_share_the_videos():
    assert run_seconds(10, dataclasses.replace(COSTS, read_seconds=0.1), 100, 2, devices=4, shared=False) == 5


@pytest.mark.usefixtures("no_measuring")
def test_a_disk_that_is_too_small_is_noted(films, tmp_path):
    found = plan(films, tmp_path / "f.h5")
    assert "too small" not in str(found)
    full = dataclasses.replace(found, free_bytes=found.needed_bytes - 1)
    assert "note  the disk is too small for all of it" in str(full)


def dry_run(*arguments: object) -> Result:
    words = ["features", *map(str, arguments), "--weights", "untrained", "--dry-run"]
    return CliRunner().invoke(main, words)


@pytest.mark.usefixtures("no_measuring")
def test_the_command_prints_the_plan_and_writes_nothing(films, tmp_path):
    before = everything(tmp_path)
    result = dry_run(films, "-o", tmp_path / "f.h5")
    assert result.exit_code == 0, result.output
    assert re.match(r"3 videos to do, 0 done already; nothing was written\ntime  about \d+ s on ", result.stdout)
    result = dry_run(films, "-o", tmp_path / "f.h5", "--json")
    found = json.loads(result.stdout)
    assert (found["todo"], found["done"], found["failed_before"]) == (3, 0, 0)
    assert found["measured"]["row_bytes"] == 1000
    assert found["new_bytes"] == 3 * (1000 + planning.ID_BYTES + 5)
    assert everything(tmp_path) == before


@pytest.mark.usefixtures("no_measuring")
def test_the_command_plans_with_the_options_of_the_run(films, tmp_path):
    (films / "broken.mp4").write_text("no film")
    CliRunner().invoke(main, ["features", f"{films}/broken.mp4", "-o", f"{tmp_path}/f.h5", "--weights", "untrained"])
    arguments = (films, "-o", tmp_path / "f.h5", "--json")
    found = json.loads(dry_run(*arguments).stdout)
    assert (found["todo"], found["failed_before"]) == (3, 1)
    found = json.loads(dry_run(*arguments, "--retry-failed").stdout)
    assert (found["todo"], found["failed_before"]) == (4, 0)
    found = json.loads(dry_run(*arguments, "--overwrite").stdout)
    assert (found["todo"], found["failed_before"], found["old_bytes"]) == (4, 0, 0)
    shards = [json.loads(dry_run(*arguments, "--shard", f"{number}/2").stdout) for number in range(2)]
    assert sum(shard["todo"] for shard in shards) == 4


@pytest.mark.usefixtures("no_measuring")
def test_the_command_says_what_would_stop_the_run(films, tmp_path):
    result = dry_run(films, "-o", films / "a.mp4")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: ")
