from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import click
import h5py
import numpy as np
import one_clip
import pytest
from click.testing import CliRunner, Result
from feature_files import assert_same_content
from films import without_privileges, write_film

from tvnet_cli import __version__
from tvnet_cli.cli import main
from tvnet_cli.features import extract, extractor
from tvnet_cli.features.extract import extract_features
from tvnet_cli.features.lock import locked
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video import reader

REPOSITORY = Path(__file__).resolve().parents[1]


def tvnet(*arguments: object, **more: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **more)


def features(*arguments: object, **more: object) -> Result:
    return tvnet("features", *arguments, "--weights", "untrained", **more)


@pytest.fixture
def two_clips(monkeypatch):
    """Two clips a video in place of 25, for tests of everything else."""

    def fewer(*arguments, options: ExtractOptions, **more):
        return extract_features(*arguments, options=dataclasses.replace(options, num_clips=2), **more)

    monkeypatch.setattr(extract, "extract_features", fewer)


@pytest.fixture
def films(tmp_path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "a.mp4", 30)
    write_film(folder / "b.mp4", 4)
    return folder


@pytest.mark.usefixtures("two_clips")
def test_features_writes_a_file_and_says_what_it_did(films, tmp_path):
    result = features(films, "-o", tmp_path / "f.h5")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "untrained weights" in result.stderr
    assert "[1/2] a.mp4: 30 frames" in result.stderr
    assert "[2/2] b.mp4: 4 frames, padded" in result.stderr
    assert re.search(r"2 done, 0 skipped, 0 failed in \d+ s; features in .*f\.h5\n$", result.stderr)
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["video_id"].asstr()[:].tolist() == ["a.mp4", "b.mp4"]
        recipe = json.loads(file.attrs["recipe"])
    assert recipe["weights"]["flow"]["name"] == "untrained"
    assert recipe["tvnet"]["flow"]["num_iterations"] == 50
    assert recipe["software"]["tvnet"] == __version__
    assert recipe["software"]["device"]


@pytest.mark.usefixtures("two_clips")
def test_verbose_names_device_and_weights(films, tmp_path):
    result = features(films, "-o", tmp_path / "f.h5", "-v", "--device", "cpu")
    assert re.search(r"flow stream on cpu, flow by numba: untrained, sha256 [0-9a-f]{64}\n", result.stderr)


@pytest.mark.usefixtures("two_clips")
def test_a_second_run_skips_what_is_done(films, tmp_path):
    features(films, "-o", tmp_path / "f.h5")
    result = features(films, "-o", tmp_path / "f.h5")
    assert result.exit_code == 0
    assert "0 done, 2 skipped, 0 failed" in result.stderr
    result = features(films, "-o", tmp_path / "f.h5", "--overwrite")
    assert "2 done, 0 skipped, 0 failed" in result.stderr


@pytest.mark.usefixtures("two_clips")
def test_one_broken_film_is_named_at_the_end_and_the_exit_code_is_1(films, tmp_path):
    (films / "broken.mp4").write_text("no film")
    result = features(films, tmp_path / "gone.mp4", "-o", tmp_path / "f.h5")
    assert result.exit_code == 1
    assert "2 of 4 videos failed:" in result.stderr
    assert "  broken.mp4: cannot open: not a video, or damaged" in result.stderr
    assert "  gone.mp4: no such file" in result.stderr
    assert "2 done, 0 skipped, 2 failed" in result.stderr
    assert "Traceback" not in result.stderr
    with h5py.File(tmp_path / "f.h5") as file:
        assert len(file["video_id"]) == 2


@pytest.mark.usefixtures("two_clips")
def test_a_folder_full_of_traps_costs_its_good_films_nothing(films, tmp_path, monkeypatch):
    names = ["-o.mp4", "new\nline.mp4", "\x1b[2Jclear.mp4", '[bold]it\'s "odd".mp4', "file:x%03d.mp4", "http:.mp4"]
    try:
        Path(os.fsdecode(os.fsencode(films) + b"/caf\xe9.mp4")).write_bytes((films / "b.mp4").read_bytes())
        names.append("caf\\xe9.mp4")
    except OSError:
        pass  # this file system takes UTF-8 names only
    for name in names[:6]:
        (films / name).write_bytes((films / "b.mp4").read_bytes())
    os.mkfifo(films / "pipe.mp4")
    (films / "loop.mp4").symlink_to("loop.mp4")
    (films / "folder.mp4").symlink_to(".")
    (films / "gone\n.mp4").symlink_to("nowhere")
    (films / "shut").mkdir(mode=0)
    with without_privileges(tmp_path, monkeypatch) if os.geteuid() else nullcontext():  # root can read any folder
        result = features(films, "-o", tmp_path / "f.h5", "--json")
    (films / "shut").chmod(0o755)
    assert result.exit_code == 1, result.stderr
    found = {one["video_id"]: one for one in map(json.loads, result.stdout.splitlines())}
    failed = {name: one["code"] for name, one in found.items() if one["status"] == "failed"}
    expected = {"pipe.mp4": "not_a_file", "loop.mp4": "unreadable", "gone\n.mp4": "no_such_file"}
    assert failed == expected | ({"shut/": "unreadable"} if os.geteuid() else {})
    assert found.keys() - failed.keys() == {"a.mp4", "b.mp4", *names}
    with h5py.File(tmp_path / "f.h5") as file:
        assert len(file["video_id"]) == 2 + len(names)
    assert "\x1b" not in result.stderr
    for told in (r"failed gone\n.mp4: no such file", r"new\nline.mp4: 4 frames", r"[bold]it's", r"\x1b[2Jclear.mp4"):
        assert told in result.stderr


@pytest.mark.usefixtures("two_clips")
def test_a_video_whose_decoding_takes_too_long_is_given_up(films, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "START", "import time; time.sleep(1000)")
    result = features(films, "-o", tmp_path / "f.h5", "--timeout", "0.1", "--json")
    assert result.exit_code == 1
    assert {json.loads(line)["code"] for line in result.stdout.splitlines()} == {"timeout"}
    assert "a.mp4: decoding took longer than 0.1 s: --timeout allows more" in result.stderr


@pytest.mark.usefixtures("two_clips")
def test_tracebacks_come_with_vv_only(films, tmp_path):
    (films / "broken.mp4").write_text("no film")
    assert "Traceback" in features(films, "-o", tmp_path / "f.h5", "-vv").stderr


@pytest.mark.usefixtures("two_clips")
def test_when_all_fail_only_their_reasons_are_written(tmp_path):
    (tmp_path / "broken.mp4").write_text("no film")
    result = features(tmp_path, "-o", tmp_path / "f.h5")
    assert result.exit_code == 1
    assert "no features in " in result.stderr
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["failures/video_id"].asstr()[:].tolist() == ["broken.mp4"]
        assert file["failures/reason"].asstr()[0].startswith("cannot open")
        assert file["failures/code"].asstr()[0] == "cannot_open"


@pytest.mark.usefixtures("two_clips")
def test_a_video_that_failed_is_named_again_and_tried_again_on_request_only(films, tmp_path):
    good = (films / "a.mp4").read_bytes()
    (films / "a.mp4").write_text("no film")
    assert features(films, "-o", tmp_path / "f.h5").exit_code == 1
    (films / "a.mp4").write_bytes(good)
    result = features(films, "-o", tmp_path / "f.h5", "--json")
    assert result.exit_code == 1
    assert "0 done, 1 skipped, 1 failed" in result.stderr
    assert "1 of 2 videos failed (1 in earlier runs: --retry-failed tries them again):" in result.stderr
    first = json.loads(result.stdout.splitlines()[0])
    assert f"failed a.mp4: {first['reason']} (in an earlier run)\n" in result.stderr
    assert (first["video_id"], first["status"], first["code"], first["earlier"]) == (
        *("a.mp4", "failed", "cannot_open"),
        True,
    )
    result = features(films, "-o", tmp_path / "f.h5", "--retry-failed")
    assert result.exit_code == 0
    assert "1 done, 1 skipped, 0 failed" in result.stderr
    with h5py.File(tmp_path / "f.h5") as file:
        assert len(file["failures/video_id"]) == 0


def part_of_the_videos(result: Result) -> str:
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("shard "))
    return line


@pytest.mark.usefixtures("two_clips")
def test_shards_together_are_what_one_run_writes(films, tmp_path, monkeypatch):
    (films / "broken.mp4").write_text("no film")
    (films / "c.mp4").write_bytes((films / "b.mp4").read_bytes())
    features(films, "-o", tmp_path / "whole.h5", "--shard", "0/1")
    assert features(films, "-o", tmp_path / "f.h5", "--shard", "0/3").exit_code in (0, 1)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    result = features(films, "-o", tmp_path / "f.h5", "-q")
    output = tmp_path / "f.shard-0001-of-0003.h5"
    assert re.fullmatch(
        rf"shard 1/3 \(SLURM_ARRAY_TASK_ID=2\): \d of 4 videos, into {output}; --shard 0/1 takes all",
        part_of_the_videos(result),
    )
    monkeypatch.setenv("RANK", "0")  # the task of the array goes first
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "shard 1/3" in part_of_the_videos(features(films, "-o", tmp_path / "f.h5"))
    features(films, "-o", tmp_path / "f.h5", "--shard", "2/3")
    shards = sorted(tmp_path.glob("f.shard-*.h5"))
    assert len(shards) == 3
    merged = tvnet("merge", *shards, "-o", tmp_path / "merged.h5")
    assert merged.exit_code == 0
    assert "3 rows and 1 failures" in merged.stderr
    assert_same_content(tmp_path / "merged.h5", tmp_path / "whole.h5")
    result = features(films, "-o", tmp_path / "merged.h5", "--shard", "0/1")
    assert "0 done, 3 skipped, 1 failed" in result.stderr


@pytest.mark.usefixtures("two_clips")
def test_a_shard_without_videos_is_an_empty_file_that_merges(films, tmp_path):
    (films / "a.mp4").unlink()
    for index in range(3):
        result = features(films, "-o", tmp_path / "f.h5", "--shard", f"{index}/3")
        assert result.exit_code == 0
    assert tvnet("verify", *tmp_path.glob("*.h5")).exit_code == 0
    assert "1 rows" in tvnet("merge", *tmp_path.glob("*.h5"), "-o", tmp_path / "all.h5").stderr


@pytest.mark.usefixtures("two_clips")
def test_a_second_run_on_the_same_file_is_told_who_writes_it(films, tmp_path):
    with locked(tmp_path / "f.h5"):
        result = features(films, "-o", tmp_path / "f.h5")
    assert result.exit_code == 1
    assert f"another run is writing {tmp_path / 'f.h5'} (process {os.getpid()} on " in result.stderr
    assert "--wait" in result.stderr


@pytest.mark.usefixtures("two_clips")
def test_json_gives_one_object_a_video_on_stdout(films, tmp_path):
    (films / "broken.mp4").write_text("no film")
    result = features(films, "-o", tmp_path / "f.h5", "--json", "-q")
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["video_id"], one["status"]) for one in objects] == [
        ("a.mp4", "done"),
        ("b.mp4", "done"),
        ("broken.mp4", "failed"),
    ]
    assert objects[0]["num_frames"] == 30
    assert objects[1]["padded"] is True
    assert "not a video" in objects[2]["reason"]


@pytest.mark.usefixtures("two_clips")
def test_quiet_says_nothing_unless_something_failed(films, tmp_path):
    assert features(films, "-o", tmp_path / "f.h5", "-q").output == ""
    (films / "broken.mp4").write_text("no film")
    assert "broken.mp4" in features(films, "-o", tmp_path / "f.h5", "-q").stderr


@pytest.mark.usefixtures("two_clips")
def test_paths_come_from_a_list_or_from_stdin_too(films, tmp_path):
    (tmp_path / "list.txt").write_text(f"{films / 'a.mp4'}\n\n{films / 'b.mp4'}\r\n")
    assert "2 done" in features("--from-file", tmp_path / "list.txt", "-o", tmp_path / "f.h5").stderr
    result = features("--from-file", "-", "-o", tmp_path / "g.h5", input=f"{films}\n")
    assert "2 done" in result.stderr


@pytest.mark.usefixtures("two_clips")
def test_both_streams_are_written(films, tmp_path):
    assert features(films, "-o", tmp_path / "f.h5", "--streams", "rgb,flow").exit_code == 0
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["rgb/global_pool"].shape == file["flow/global_pool"].shape == (2, 1024)


@pytest.mark.usefixtures("two_clips")
def test_the_recipe_guards_the_file(films, tmp_path):
    features(films, "-o", tmp_path / "f.h5")
    result = features(films, "-o", tmp_path / "f.h5", "--streams", "rgb")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "options.streams was" in result.stderr
    assert "--overwrite" in result.stderr


def test_without_weights_the_command_says_what_to_do(films, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tvnet_cli.network.weights.weights_folder", lambda: films)
    result = tvnet("features", films)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "--weights untrained" in result.stderr
    assert not Path("features.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ([], 2, "give folders or video files"),
        (["{films}", "--streams", "sound"], 2, "no stream is called 'sound'"),
        (["{films}", "--batch-size", "0"], 2, "--batch-size"),
        (["{films}", "--timeout", "-1"], 2, "--timeout"),
        (["{films}", "--decoder-memory", "1"], 2, "at least 256 MiB"),
        (["--from-file", "nowhere.txt"], 2, "nowhere.txt"),
        (["{films}", "--shard", "2/2"], 2, "there is no shard 2/2"),
        (["{films}", "--shard", "first"], 2, "a shard is given as i/n"),
        (["{films}", "--device", "cuda:77"], 1, "cuda:77 was asked for"),
        (["{films}", "--device", "tpu"], 1, "no device is called 'tpu'"),
        (["{films}", "--weights", "best"], 1, "no weights called 'best'"),
        (["{films}/.."], 0, ""),
        (["{tmp}/empty"], 1, "no videos in"),
        (["{films}", "-o", "{films}/a.mp4"], 1, "not a readable feature file"),
        (["{films}", "-o", "{films}/a.mp4/f.h5"], 1, "a.mp4"),
        (["{films}", "-o", "{tmp}"], 1, "is a folder: name a file in it"),
        (["{films}", "-o", "."], 1, ". is a folder: name a file in it"),
        (["{films}", "-o", "/"], 1, "/ is a folder: name a file in it"),
        (["{films}", "-o", ""], 2, "an empty path"),
        ([""], 2, "an empty path"),
        (["{films}", "-o", "{films}/a.mp4", "--overwrite"], 1, "not a readable feature file"),
        (["{films}", "--log-file", "{films}/a.mp4"], 2, "a.mp4 is there, and no log of tvnet"),
    ],
)
@pytest.mark.usefixtures("two_clips")
def test_each_mistake_has_one_clear_line(films, tmp_path, monkeypatch, arguments, exit_code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = features(*(argument.format(films=films, tmp=tmp_path) for argument in arguments))
    assert result.exit_code == exit_code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    if exit_code == 1:
        assert result.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.usefixtures("two_clips")
def test_a_list_may_come_from_other_systems(films, tmp_path):
    (tmp_path / "list.txt").write_bytes(f"\ufeff{films}/a.mp4\r\n  \r\n{films}/b.mp4\r\n".encode())
    result = features("--from-file", tmp_path / "list.txt", "-o", tmp_path / "f.h5")
    assert "2 done, 0 skipped, 0 failed" in result.stderr
    (tmp_path / "list.txt").write_bytes("first\nsecond".encode("utf-16-le"))
    result = features("--from-file", tmp_path / "list.txt", "-o", tmp_path / "f.h5")
    assert result.exit_code == 1
    assert re.search(r"Error: line 1 of .*list\.txt holds a NUL byte", result.stderr)


@pytest.mark.usefixtures("two_clips")
def test_features_that_are_no_numbers_are_a_failure_and_no_row(films, tmp_path, monkeypatch):
    unit_norm = extractor._unit_norm
    monkeypatch.setattr(extractor, "_unit_norm", lambda values: unit_norm(values) * np.float32(np.nan))
    result = features(films, "-o", tmp_path / "f.h5")
    assert result.exit_code == 1
    assert "a.mp4: flow/global_pool holds numbers that are not finite: the weights are too large" in result.stderr
    with h5py.File(tmp_path / "f.h5") as file:
        assert len(file["video_id"]) == 0
        assert set(file["failures/code"].asstr()[:]) == {"unexpected"}


def test_who_reads_no_more_gets_no_message():
    command = f"{sys.executable} -m tvnet_cli weights list | head -c 1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, cwd=REPOSITORY)
    assert (ended.returncode, ended.stderr) in {(1, ""), (0, "")}  # 0: all of it was written by then


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_full_of_what_is_said_stops_no_run(films, tmp_path):
    command = [sys.executable, one_clip.__file__, "features", films, "-o", tmp_path / "f.h5", "--weights", "untrained"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(command, check=False, stderr=full, env=env).returncode == 0
    with h5py.File(tmp_path / "f.h5") as file:
        assert len(file["video_id"]) == 2


def test_an_error_nobody_thought_of_is_one_line_too(films, monkeypatch):
    def broken(*arguments, **more):
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(extract, "extract_features", broken)
    result = features(films)
    assert result.exit_code == 1
    assert "Error: ZeroDivisionError: first (-vv shows where)" in result.stderr
    assert "Traceback" in features(films, "-vv").stderr


def commands(group: click.Group, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, those of groups too, by their words."""
    for name, command in group.commands.items():
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))


def test_every_command_and_option_has_help():
    for names, command in commands(main):
        assert command.help, names
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, (names, parameter.name)


def test_help_and_version_answer_without_heavy_imports():
    heavy = "{'torch', 'numpy', 'av', 'h5py', 'rich', 'safetensors', 'scipy', 'sklearn', 'numba'}"
    words = [["--help"], ["--version"], *([*names, "--help"] for names, _ in commands(main))]
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom tvnet_cli.cli import main\n"
        f"for words in {words}:\n"
        "    assert CliRunner().invoke(main, words).exit_code == 0\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert found.stdout == "[]\n"


def test_python_m_runs_the_program():
    command = [sys.executable, "-m", "tvnet_cli", "--version"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert found.stdout == f"tvnet, version {__version__}\n"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_is_done_and_exits_130(films, tmp_path, how):
    for number in range(8):
        (films / f"c{number}.mp4").write_bytes((films / "a.mp4").read_bytes())
    command = [sys.executable, "-m", "tvnet_cli", "features", str(films), "-o", str(tmp_path / "f.h5")]
    command += ["--weights", "untrained", "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    done = json.loads(running.stdout.readline())["video_id"]
    time.sleep(0.5)
    os.kill(running.pid, how)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in said
    assert "interrupted: finished videos are kept" in said
    with h5py.File(tmp_path / "f.h5") as file:
        assert done in file["video_id"].asstr()[:].tolist()
        assert len(file["video_id"]) < 10


@pytest.mark.usefixtures("two_clips")
def test_a_log_file_tells_of_each_run_and_each_video(films, tmp_path):
    (films / "broken.mp4").write_text("no film")
    path = tmp_path / "log.jsonl"
    arguments = (films, "-o", tmp_path / "f.h5", "-q", "--json", "--log-file", path)
    said = [json.loads(line) for line in features(*arguments).stdout.splitlines()]
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["event"] for one in found] == ["started", "video", "video", "video", "ended"]
    assert found[0]["videos"] == 3
    assert found[0]["recipe"]["weights"]["flow"]["name"] == "untrained"
    assert found[0]["device"]
    for one, summary in zip(found[1:-1], said, strict=True):
        assert summary.items() <= one.items()
    assert found[-1]["counts"] == {"done": 2, "failed": 1}
    assert found[-1]["exit_code"] == 1

    features(*arguments)
    again = [json.loads(line) for line in path.read_text().splitlines()][len(found) :]
    assert [one.get("status") for one in again].count("skipped") == 2
    assert again[0]["run"] != found[0]["run"]


def test_a_log_file_that_cannot_be_written_stops_a_run_before_it_works(films, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "extract_features", None)  # it is not asked
    result = features(films, "-o", tmp_path / "f.h5", "--log-file", tmp_path)
    assert result.exit_code == 2
    assert "cannot write the log file" in result.stderr
    assert not (tmp_path / "f.h5").exists()
