from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from training_films import write_films

from tvnet_cli.errors import DatasetError, FrameListError, VideoReadError
from tvnet_cli.options import ActionOptions
from tvnet_cli.training.clips import TrainingClips, refuse_unreadable, validation_clips
from tvnet_cli.training.datasets import LabelledVideo, read_dataset
from tvnet_cli.video.reader import Decoders

OPTIONS = ActionOptions(size=32, short_side=36, num_segments=2, batch_size=6)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return read_dataset(write_films(tmp_path_factory.mktemp("films") / "set"), validation_share=0).train


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_a_batch_depends_on_its_step_alone(videos, pool):
    one, other = TrainingClips(videos, OPTIONS, pool), TrainingClips(videos, OPTIONS, pool)
    later = one(3)
    for step in range(4):
        batch = other(step)
    assert later.frames.shape == (6, 2, 6, 3, 32, 32)
    assert later.frames.dtype == torch.uint8
    assert torch.equal(batch.frames, later.frames)
    assert torch.equal(batch.labels, later.labels)
    for changed in (TrainingClips(videos, replace(OPTIONS, seed=1), pool)(3), one(4)):
        assert not torch.equal(changed.frames, later.frames)


def test_a_video_is_seen_otherwise_with_each_seed_step_and_place(videos, pool):
    one_video = [TrainingClips(videos[:1], replace(OPTIONS, batch_size=2, seed=seed), pool) for seed in range(2)]
    seen = torch.cat([clips(step).frames for clips in one_video for step in range(2)])
    assert not any(torch.equal(seen[a], seen[b]) for a in range(8) for b in range(a))


def test_an_epoch_shows_each_video_once_in_another_order(videos, pool):
    clips = TrainingClips(videos, replace(OPTIONS, batch_size=4, size=16), pool)
    epochs = [torch.cat([clips(step).labels for step in (first, first + 1)]).tolist() for first in (0, 2, 4)]
    assert all(sorted(epoch) == [0, 0, 1, 1, 2, 2, 3, 3] for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_processes_share_a_batch(videos, pool):
    whole = TrainingClips(videos, OPTIONS, pool)(1)
    parts = [TrainingClips(videos, OPTIONS, pool, rank, 3)(1) for rank in range(3)]
    assert torch.equal(torch.stack([part.frames for part in parts], 1).flatten(0, 1), whole.frames)
    assert torch.equal(torch.stack([part.labels for part in parts], 1).flatten(), whole.labels)


def test_the_frames_of_the_rgb_stream_are_single(videos, pool):
    options = replace(OPTIONS, stream="rgb")
    assert TrainingClips(videos, options, pool)(0).frames.shape == (6, 2, 1, 3, 32, 32)
    assert validation_clips(videos[0], options).shape == (25, 1, 1, 3, 32, 32)
    assert validation_clips(videos[0], OPTIONS).shape == (25, 1, 6, 3, 32, 32)


def test_packets_that_promise_other_frames_are_decoded(videos, pool, monkeypatch):
    frames, refused = Decoders.frames, []

    def refuse_the_promise(self, video, *wanted, **more):
        if video.pts is not None:
            refused.append(video)
            raise FrameListError("not the frame that the packets promise")
        return frames(self, video, *wanted, **more)

    expected = TrainingClips(videos, OPTIONS, pool)(0)
    monkeypatch.setattr(Decoders, "frames", refuse_the_promise)
    assert torch.equal(TrainingClips(videos, OPTIONS, pool)(0).frames, expected.frames)
    assert len(refused) == 6


def test_what_cannot_be_read_is_named(videos, pool, tmp_path):
    broken = LabelledVideo("b.avi", tmp_path / "b.avi", 0)
    broken.path.write_bytes(b"no film")
    refuse_unreadable(videos, pool)
    with pytest.raises(DatasetError, match=r"1 of 9 videos cannot be read: .*b.avi: cannot open"):
        refuse_unreadable([*videos, broken], pool)
    with pytest.raises(VideoReadError, match=r"b.avi: cannot open"):
        TrainingClips([broken], OPTIONS, pool)(0)
    with pytest.raises(VideoReadError, match=r"b.avi: cannot open"):
        validation_clips(broken, OPTIONS)


def test_all_videos_that_cannot_be_read_are_named_ten_of_many(tmp_path, pool):
    broken = []
    for number in range(12):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(b"no film")
        broken.append(LabelledVideo(path.name, path, 0))
    with pytest.raises(DatasetError, match=r"2 of 2 videos cannot be read: .*/0\.mp4: .*; .*/1\.mp4: [^;]*$"):
        refuse_unreadable(broken[:2], pool)
    with pytest.raises(DatasetError, match=r"12 of 12 videos cannot be read: .*/9\.mp4: .*; and 2 more$") as caught:
        refuse_unreadable(broken, pool)
    assert "10.mp4" not in str(caught.value)
