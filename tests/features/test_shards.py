from __future__ import annotations

from pathlib import Path

import pytest

from tvnet_cli.features.shards import Shard, missing_shards, parse_shard, shard_of_this_job

IDS = [f"class{number % 7}/film {number}.mp4" for number in range(2000)]


def slurm(task: int, first: int, last: int, step: int = 1, count: int | None = None) -> dict[str, str]:
    count = len(range(first, last + 1, step)) if count is None else count
    names = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


def test_each_video_is_in_one_shard_whatever_its_neighbours_and_shards_are_alike_in_size():
    shards = [Shard(number, 8) for number in range(8)]
    homes = [[shard.index for shard in shards if shard.holds(video_id)] for video_id in IDS]
    assert all(len(home) == 1 for home in homes)
    sizes = [homes.count([number]) for number in range(8)]
    assert min(sizes) > 200
    assert max(sizes) < 300
    assert [home[0] for home in homes[:6]] == [0, 1, 6, 3, 0, 3]  # for good: files on disk depend on it


@pytest.mark.parametrize("text", ["", "1", "8/8", "-1/8", "0/0", "1/2/3", "a/b", "1.5/2", " 1/2", "½/2"])
def test_other_words_are_no_shard(text):
    with pytest.raises(ValueError, match="shard"):
        parse_shard(text)


def test_each_shard_has_a_file_and_the_only_one_has_that_of_all():
    assert parse_shard("3/8").output(Path("a/f.x.h5")) == Path("a/f.x.shard-0003-of-0008.h5")
    assert parse_shard("0/1").output(Path("f.h5")) == Path("f.h5")


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, None),
        (slurm(0, 0, 7), Shard(0, 8)),
        (slurm(7, 0, 7), Shard(7, 8)),
        (slurm(3, 1, 8), Shard(2, 8)),
        (slurm(30, 10, 50, step=20), Shard(1, 3)),
        (slurm(5, 5, 5), Shard(0, 1)),
        ({"SLURM_ARRAY_TASK_ID": "4"}, Shard(0, 1)),
        ({**slurm(1, 0, 1), "RANK": "5", "WORLD_SIZE": "9"}, Shard(1, 2)),
        ({"RANK": "5", "WORLD_SIZE": "9"}, Shard(5, 9)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "5"}, None),
    ],
)
def test_jobs_find_their_shard(environment, shard):
    found = shard_of_this_job(environment)
    assert (found and found[0]) == shard


@pytest.mark.parametrize(
    "environment",
    [
        slurm(3, 1, 9, count=3),  # --array=1,3,9
        slurm(4, 1, 9, step=2),
        {"RANK": "9", "WORLD_SIZE": "9"},
        {"RANK": "one", "WORLD_SIZE": "9"},
        {"SLURM_ARRAY_TASK_ID": "x"},
    ],
)
def test_variables_that_make_no_sense_are_an_error_that_names_shard(environment):
    with pytest.raises(ValueError, match="shard"):
        shard_of_this_job(environment)


def test_missing_shards_are_found_by_name():
    names = ["f.shard-0000-of-0003.h5", "f.shard-0002-of-0003.h5", "other.h5"]
    assert missing_shards(map(Path, names)) == ["1/3"]
    assert missing_shards([Path("f.h5")]) == []
