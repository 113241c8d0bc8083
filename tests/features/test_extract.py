from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_files import assert_same_content, content, damage
from films import write_film

from tvnet_cli import TVNet
from tvnet_cli.device import choose_device
from tvnet_cli.errors import DamagedError, DeviceError, FeatureFileError, VideoReadError
from tvnet_cli.features import extractor, store
from tvnet_cli.features.extract import extract_features
from tvnet_cli.features.extractor import Extractor
from tvnet_cli.features.format import read_contents
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video.decode import VideoClips, read_clips
from tvnet_cli.video.files import find_videos
from tvnet_cli.video.reader import ClipReader
from tvnet_cli.writing import ENOTSUPP

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FLOW_LAYERS = ("global_pool", "inception_5b_output", "inception_5a_output", "inception_4e_output")
RUN_ONE = """
import sys
from pathlib import Path
from tvnet_cli.features.extract import extract_features
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video.files import find_videos
videos, options = find_videos([Path(sys.argv[1])]), ExtractOptions(num_clips=1, short_side=96, crop_size=96)
for result in extract_features(
    videos, Path(sys.argv[2]), load_models(["untrained"], ("flow",)), options=options, note=print
):
    print(result.status)
"""
SMALL = ExtractOptions(num_clips=6)  # one more than a pass of the network takes


def models(*streams: str):
    return load_models(["untrained"], streams or ("flow",))


def run(folder: Path, output: Path, *streams: str, **arguments):
    options = ExtractOptions(streams=streams or ("flow",), num_clips=6)
    return list(extract_features(find_videos([folder]), output, models(*streams), options=options, **arguments))


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "a.mp4", 40)
    write_film(folder / "b.mkv", 3)
    (folder / "c.mp4").write_bytes((EXAMPLES / "wheel_turns.mp4").read_bytes())
    return folder


def test_features_equal_each_step_done_by_hand(tmp_path):
    film = EXAMPLES / "ball_bounces.mp4"
    loaded = models("flow", "rgb")
    results = list(extract_features(find_videos([film]), tmp_path / "f.h5", loaded))
    assert [(result.video_id, result.status, result.num_frames) for result in results] == [
        ("ball_bounces.mp4", "done", 100)
    ]
    found = content(tmp_path / "f.h5")

    clips, tvnet = read_clips(film), TVNet()
    sums = dict.fromkeys(FLOW_LAYERS, 0.0)
    rgb_sum = 0.0
    with torch.inference_mode():
        for clip in clips.frames:
            frames = torch.from_numpy(clip).permute(0, 3, 1, 2)
            channels = []
            for before, after in itertools.pairwise(frames):
                x, y = tvnet(before[None], after[None])[0]
                channels += [6.375 * x.clamp(-20, 20), 6.375 * y.clamp(-20, 20)]
            layers = loaded["flow"].network.features(torch.stack(channels)[None])
            sums = {layer: sums[layer] + layers[layer][0].double() for layer in FLOW_LAYERS}
            blue_first = frames[3].flip(0) - torch.tensor([104.0, 117, 123])[:, None, None]
            rgb_sum = rgb_sum + loaded["rgb"].network.features(blue_first[None])["global_pool"][0].double()
    for layer in FLOW_LAYERS:
        expected = sums[layer] / sums[layer].norm()
        assert np.abs(found[f"flow/{layer}"][0] - expected.numpy()).max() < 1e-5 * expected.abs().max(), layer
        assert np.linalg.norm(found[f"flow/{layer}"][0].astype(np.float64)) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found["rgb/global_pool"][0], rgb_sum / rgb_sum.norm(), atol=1e-6)
    assert np.array_equal(found["frame_index"][0], clips.frame_index)
    assert np.array_equal(found["pts_seconds"][0], clips.pts_seconds)
    assert found["num_frames"].tolist() == [100]
    assert found["padded"].tolist() == [False]
    assert found["bad_packets"].tolist() == [0]
    assert set(found) == {
        *(f"flow/{layer}" for layer in FLOW_LAYERS),
        *("rgb/global_pool", "video_id", "frame_index", "pts_seconds", "num_frames", "padded", "bad_packets"),
        *("checksum", "failures/video_id", "failures/reason", "failures/code"),
        *("source_bytes", "source_mtime_ns", "source_hash", "notes", "written_by"),
    }
    shapes = {name: found[name].shape[1:] for name in found}
    assert shapes["flow/inception_4e_output"] == (1056, 7, 7)
    assert shapes["flow/inception_5a_output"] == shapes["flow/inception_5b_output"] == (1024, 7, 7)
    assert shapes["frame_index"] == shapes["pts_seconds"] == (25, 6)


@pytest.fixture
def three_threads():
    """Torch with three threads, however many cores there are; afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_features_do_not_depend_on_batch_size_jobs_threads_or_neighbours(tmp_path, films):
    torch.set_num_threads(1)
    run(films, tmp_path / "0.h5", "flow", "rgb", batch_size=1, jobs=1)
    reference = content(tmp_path / "0.h5")
    for number, (batch_size, jobs) in enumerate([(1, 1), (4, 3), (25, 8)], 1):
        torch.set_num_threads(number)
        run(films, tmp_path / f"{number}.h5", "flow", "rgb", batch_size=batch_size, jobs=jobs)
        found = content(tmp_path / f"{number}.h5")
        assert found.keys() == reference.keys()
        for name in reference:
            assert np.array_equal(found[name], reference[name], equal_nan=name == "pts_seconds"), (
                name,
                batch_size,
                jobs,
            )
    run(films / "c.mp4", tmp_path / "c.h5", "flow")
    assert np.array_equal(content(tmp_path / "c.h5")["flow/global_pool"][0], reference["flow/global_pool"][2])


def test_films_of_different_motion_have_different_features(tmp_path, films):
    run(films, tmp_path / "f.h5")
    pooled = content(tmp_path / "f.h5")["flow/global_pool"]
    products = pooled @ pooled.T
    assert products[np.triu_indices(3, 1)].max() < 0.9999


def test_a_short_film_is_marked_padded(tmp_path, films):
    results = run(films, tmp_path / "f.h5")
    assert [result.padded for result in results] == [False, True, False]
    assert content(tmp_path / "f.h5")["padded"].tolist() == [False, True, False]


def test_a_broken_film_fails_alone_and_is_tried_again_on_request(tmp_path, films):
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "a.mp4").write_text("no film")
    (folder / "b.mp4").write_bytes((films / "a.mp4").read_bytes())
    results = run(folder, tmp_path / "f.h5")
    assert [result.status for result in results] == ["failed", "done"]
    assert "not a video" in results[0].reason
    (folder / "a.mp4").write_bytes((films / "a.mp4").read_bytes())
    again = run(folder, tmp_path / "f.h5")
    assert [(result.status, result.earlier) for result in again] == [("failed", True), ("skipped", None)]
    assert (again[0].reason, again[0].code) == (results[0].reason, results[0].code)
    results = run(folder, tmp_path / "f.h5", retry_failed=True)
    assert [(result.video_id, result.status) for result in results] == [("b.mp4", "skipped"), ("a.mp4", "done")]
    found = content(tmp_path / "f.h5")
    assert found["video_id"].tolist() == [b"a.mp4", b"b.mp4"]
    assert np.array_equal(found["flow/global_pool"][0], found["flow/global_pool"][1])


def test_a_run_that_is_stopped_keeps_its_rows_and_goes_on(tmp_path, films):
    running = extract_features(find_videos([films]), tmp_path / "f.h5", models(), options=SMALL)
    assert next(running).video_id == "a.mp4"
    running.close()
    kept = [video_id.decode() for video_id in content(tmp_path / "f.h5")["video_id"]]
    assert "a.mp4" in kept
    assert not (tmp_path / "f.h5.parts").exists()
    results = run(films, tmp_path / "f.h5")
    assert [result.video_id for result in results if result.status == "skipped"] == kept
    assert sum(result.status == "done" for result in results) == 3 - len(kept)
    run(films, tmp_path / "whole.h5")
    whole, resumed = content(tmp_path / "whole.h5"), content(tmp_path / "f.h5")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_a_run_that_is_to_end_drops_what_it_has_not_finished_and_blames_no_video(tmp_path, films, monkeypatch):
    stop, read = threading.Event(), ClipReader.read

    def slow_but_for_the_first(self: ClipReader, path: Path):
        if path.name != "a.mp4":
            assert stop.wait(60)
            raise VideoReadError("the decoder was killed")
        return read(self, path)

    monkeypatch.setattr(ClipReader, "read", slow_but_for_the_first)
    running = extract_features(find_videos([films]), tmp_path / "f.h5", models(), options=SMALL, stop=stop, jobs=2)
    assert next(running).video_id == "a.mp4"
    stop.set()
    assert list(running) == []
    monkeypatch.undo()
    results = run(films, tmp_path / "f.h5")
    assert [result.status for result in results] == ["skipped", "done", "done"]


def test_rows_that_turn_out_damaged_are_made_again_in_the_same_run(tmp_path, films, monkeypatch):
    monkeypatch.setattr(store, "QUICK_BYTES", 0)
    monkeypatch.setattr(store, "BUNDLE_FILES", 2)
    stop = threading.Event()
    for result in extract_features(find_videos([films]), tmp_path / "f.h5", models(), options=SMALL, stop=stop, jobs=1):
        if result.video_id == "c.mp4":
            stop.set()
    (bundle,) = (tmp_path / "f.h5.parts").glob("*2.h5")
    ids = list(read_contents(bundle).rows)
    damage(bundle, "flow/global_pool", 0)
    notes: list[str] = []
    results = run(films, tmp_path / "f.h5", note=notes.append)
    assert [result.status for result in results] == ["skipped", "skipped", "skipped", "done"]
    assert results[-1].video_id == ids[0]
    assert "is damaged" in notes[0]
    run(films, tmp_path / "whole.h5")
    assert_same_content(tmp_path / "f.h5", tmp_path / "whole.h5")


def test_a_row_that_turns_out_damaged_twice_ends_the_run(tmp_path, films, monkeypatch):
    computed: list[Path] = []
    row = Extractor.row

    def counted(self: Extractor, place: Path):
        computed.append(place)
        return row(self, place)

    def damaged(output: Path, recipe: object, sources: list, *more: object) -> None:
        raise DamagedError(sources[-1].path, "bits fell over")

    monkeypatch.setattr(Extractor, "row", counted)
    monkeypatch.setattr(store, "join", damaged)
    with pytest.raises(FeatureFileError, match=r"the rows of b\.mkv were damaged twice.*f\.h5"):
        run(films / "b.mkv", tmp_path / "f.h5")
    assert len(computed) == 2
    aside = [path.name for path in (tmp_path / "f.h5.parts").glob("*.damaged*")]
    assert sorted(aside) == ["000000001.h5.damaged", "000000001.h5.damaged2"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, ENOTSUPP])
def test_on_a_disk_without_locks_each_video_is_computed_once(tmp_path, films, number):
    if not (compiler := shutil.which("gcc")):
        pytest.skip("needs gcc")
    (tmp_path / "nolock.c").write_text(
        f"#include <errno.h>\nint flock(int f, int o) {{ errno = {number}; return -1; }}"
    )
    library = tmp_path / "nolock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "nolock.c"], check=True)
    command = [sys.executable, "-c", RUN_ONE, films / "b.mkv", tmp_path / "f.h5"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LD_PRELOAD": str(library)}
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")
    assert content(tmp_path / "f.h5")["video_id"].tolist() == [b"b.mkv"]
    assert not (tmp_path / "f.h5.parts").exists()


def test_an_error_in_the_network_ends_the_run_and_loses_no_finished_video(tmp_path, films, monkeypatch):
    finished = threading.Event()
    compute = Extractor.features

    def broken_for_the_first(self: Extractor, clips: VideoClips):
        if clips.num_frames != 40:
            features = compute(self, clips)
            finished.set()
            return features
        finished.wait(60)
        raise MemoryError("no memory for the network")

    monkeypatch.setattr(Extractor, "features", broken_for_the_first)
    with pytest.raises(MemoryError, match="no memory"):
        run(films, tmp_path / "f.h5", jobs=2)
    kept = content(tmp_path / "f.h5")["video_id"].tolist()
    assert b"b.mkv" in kept
    assert b"a.mp4" not in kept
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]


def test_as_many_videos_are_in_memory_as_are_at_work(tmp_path, films, monkeypatch):
    count = threading.Lock()
    in_memory, most = set(), []

    read = ClipReader.read

    def counted(self: ClipReader, path: Path) -> VideoClips:
        clips = read(self, path)
        with count:
            in_memory.add(path)
            most.append(len(in_memory))
        weakref.finalize(clips, in_memory.discard, path)
        return clips

    monkeypatch.setattr(ClipReader, "read", counted)
    many = tmp_path / "many"
    many.mkdir()
    for number in range(9):
        (many / f"{number}.mkv").write_bytes((films / "b.mkv").read_bytes())
    options = ExtractOptions(num_clips=1)
    results = list(extract_features(find_videos([many]), tmp_path / "f.h5", models(), options=options, jobs=3))
    assert [result.video_id for result in results] == [f"{number}.mkv" for number in range(9)]
    assert len(most) == 9
    assert max(most) in (2, 3)
    assert not in_memory


def test_by_default_each_core_has_a_pass_while_one_more_video_is_read():
    for cores in (1, 2, 5, 16, 64):
        computed = extractor.default_jobs(torch.device("cpu"), cores, num_clips=25) - 1
        assert 5 * computed >= cores
        assert 5 * (computed - 1) <= cores


@pytest.mark.usefixtures("three_threads")
def test_torch_computes_in_one_thread_a_pass_and_has_its_threads_again_behind(tmp_path, films, monkeypatch):
    threads, passes = set(), []
    compute = extractor._pass_layers

    def watched(*arguments: object):
        threads.add(threading.current_thread())
        passes.append(torch.get_num_threads())
        return compute(*arguments)

    monkeypatch.setattr(extractor, "_pass_layers", watched)
    run(films, tmp_path / "f.h5")
    assert passes == [1] * 6  # two for each of three films
    assert 2 <= len(threads) <= 3
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as another:
        assert another.submit(torch.get_num_threads).result() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_extractor_gives_the_same_row_to_any_thread(films, monkeypatch):
    used = []
    over_clips = extractor._over_clips

    def watched(*arguments: object):
        used.append(torch.get_num_threads())
        return over_clips(*arguments)

    monkeypatch.setattr(extractor, "_over_clips", watched)
    with Extractor(models(), SMALL) as ready:
        here = ready.row(films / "a.mp4")
        with ThreadPoolExecutor(3) as threads:
            others = list(threads.map(ready.row, [films / "a.mp4"] * 3))
    assert here.num_frames == 40
    for other in others:
        assert all(np.array_equal(here.values[name], other.values[name]) for name in here.values)
    assert used == [1] * 4  # the sums of several threads are other sums


def test_going_on_with_other_streams_is_refused_before_any_work(tmp_path, films):
    run(films / "b.mkv", tmp_path / "f.h5", "flow")
    with pytest.raises(FeatureFileError, match=r"options\.streams"):
        run(films, tmp_path / "f.h5", "flow", "rgb")


def test_bfloat16_is_another_recipe_and_gives_nearly_the_same_features(tmp_path, films):
    run(films / "b.mkv", tmp_path / "f.h5")
    found = find_videos([films / "b.mkv"])
    options = ExtractOptions(num_clips=6, dtype="bfloat16")
    with pytest.raises(FeatureFileError, match=r'options\.dtype was "float32", now "bfloat16"'):
        next(extract_features(found, tmp_path / "f.h5", models(), options=options))
    list(extract_features(found, tmp_path / "half.h5", models(), options=options))
    full, half = content(tmp_path / "f.h5"), content(tmp_path / "half.h5")
    for layer in FLOW_LAYERS:
        assert half[f"flow/{layer}"].dtype == np.float32
        assert 1e-4 < np.linalg.norm(half[f"flow/{layer}"] - full[f"flow/{layer}"]) < 2e-2


def test_a_device_that_is_not_there_is_an_error():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(DeviceError, match="cuda:99 was asked for"):
        choose_device("cuda:99")
    with pytest.raises(DeviceError, match="'tpu'"):
        choose_device("tpu")
    with pytest.raises(DeviceError, match="'meta'"):
        choose_device("meta")


def test_options_that_contradict_each_other_are_refused(tmp_path, films):
    for wrong in (
        {"streams": ("sound",)},
        {"num_clips": 0},
        {"clip_length": 1},
        {"crop_size": 300},
        {"dtype": "float16"},
    ):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))[:3].strip("(")):
            ExtractOptions(**wrong)
    options = ExtractOptions(streams=("rgb",))
    with pytest.raises(ValueError, match=r"ask for the streams \('rgb',\)"):
        next(extract_features(find_videos([films]), tmp_path / "f.h5", models("flow"), options=options))


@pytest.mark.cuda
def test_a_gpu_gives_the_same_features_and_the_same_every_time(tmp_path, films):
    run(films, tmp_path / "cpu.h5", "flow", "rgb")
    for number in (1, 2):
        run(films, tmp_path / f"{number}.h5", "flow", "rgb", device="cuda")
    cpu, one, two = (content(tmp_path / f"{name}.h5") for name in ("cpu", 1, 2))
    for name in cpu:
        assert np.array_equal(one[name], two[name])
        if cpu[name].dtype == np.float32:
            assert np.abs(one[name] - cpu[name]).max() <= 1e-3 * np.abs(cpu[name]).max()
