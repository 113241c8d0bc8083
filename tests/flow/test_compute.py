from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from films import write_film
from PIL import Image

from tvnet_cli import TVNet, optical_flow
from tvnet_cli.errors import DeviceError, FlowFileError, VideoReadError
from tvnet_cli.flow.accuracy import occlusion
from tvnet_cli.flow.compute import compute_fields, sample_fields, solve_pairs, write_flow
from tvnet_cli.flow.store import FlowStore
from tvnet_cli.options import PRESETS, FieldOptions, FrameOptions, TVNetOptions
from tvnet_cli.video.sequence import FrameSequence, open_sequence

RNG = np.random.default_rng(0)
SMALL = TVNetOptions(num_scales=3, num_warps=2, num_iterations=4, sampler="exact")


@pytest.fixture
def tvnet() -> TVNet:
    return TVNet.from_options(SMALL)


def pictures(folder: Path, count: int) -> FrameSequence:
    """A texture that moves, as a folder of pictures."""
    folder.mkdir(exist_ok=True)
    texture = RNG.integers(0, 256, (40, 50 + count, 3)).astype(np.uint8)
    for number in range(count):
        Image.fromarray(texture[:, number : number + 48]).save(folder / f"{number}.png")
    return open_sequence([folder], FrameOptions())


def store(path: Path, num_fields: int) -> FlowStore:
    return FlowStore(path, num_fields, {}, half=False, overwrite=False)


def test_each_field_is_the_flow_of_its_pair(tmp_path, tvnet):
    sequence = pictures(tmp_path / "frames", 5)
    frames = [torch.from_numpy(picture).movedim(-1, 0)[None] for picture in sequence.read()]
    options = FieldOptions(backward=True, occlusion=True, scales=True)
    fields = list(compute_fields(sequence, tvnet, options))
    assert [field.position for field in fields] == [0, 1, 2, 3]
    for field, first, second in zip(fields, frames[:-1], frames[1:], strict=True):
        with torch.no_grad():
            levels, backward = tvnet.flow_scales(first, second), tvnet(second, first)
        np.testing.assert_array_equal(field.flow, levels[-1][0])
        np.testing.assert_array_equal(field.arrays["backward"], backward[0])
        np.testing.assert_array_equal(field.arrays["occlusion"], occlusion(levels[-1], backward)[0])
        np.testing.assert_array_equal(field.arrays["flow_scale_1"], levels[-2][0])
        np.testing.assert_array_equal(field.arrays["flow_scale_2"], levels[-3][0])
        assert [level.shape for level in field.scales] == [tuple(level.shape[1:]) for level in levels]
        assert field.frame_index == (field.position, field.position + 1)
        assert field.pts_seconds == (field.position / 25, (field.position + 1) / 25)


def test_only_what_was_asked_for_is_there(tmp_path, tvnet):
    sequence = pictures(tmp_path / "frames", 2)
    for options, names in (
        (FieldOptions(), {"flow"}),
        (FieldOptions(backward=True), {"flow", "backward"}),
        (FieldOptions(occlusion=True), {"flow", "occlusion"}),
    ):
        (field,) = compute_fields(sequence, tvnet, options)
        assert set(field.arrays) == names


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_changes_nothing(tmp_path, tvnet, batch_size):
    sequence = pictures(tmp_path / "frames", 8)
    options = FieldOptions(backward=True)
    expected = list(compute_fields(sequence, tvnet, options))
    fields = list(compute_fields(sequence, tvnet, options, batch_size=batch_size))
    assert [field.position for field in fields] == list(range(7))
    for field, other in zip(fields, expected, strict=True):
        np.testing.assert_array_equal(field.flow, other.flow)
        np.testing.assert_array_equal(field.arrays["backward"], other.arrays["backward"])


def test_sampled_fields_lie_over_the_whole_film_and_are_not_computed_again(tmp_path, tvnet, monkeypatch):
    sequence = open_sequence([write_film(tmp_path / "a.mp4", 61)], FrameOptions(every=2))
    sampled = sample_fields(sequence, tvnet, FieldOptions())
    assert len(sampled) == 10
    assert min(sampled) <= 2
    assert max(sampled) >= 27
    expected = {field.position: field.flow for field in compute_fields(sequence, tvnet, FieldOptions())}
    for position, arrays in sampled.items():
        np.testing.assert_array_equal(arrays["flow"], expected[position])
    from tvnet_cli.flow import compute

    solved = []

    def counted(net, pairs, options):
        solved.extend(pairs)
        return solve_pairs(net, pairs, options)

    monkeypatch.setattr(compute, "solve_pairs", counted)
    fields = list(compute_fields(sequence, tvnet, FieldOptions(), batch_size=4, sampled=sampled))
    assert len(solved) == 20
    assert [field.position for field in fields] == list(range(30))
    for field in fields:
        np.testing.assert_array_equal(field.flow, expected[field.position])


def test_a_run_goes_on_behind_the_fields_that_are_there(tmp_path, tvnet):
    sequence = pictures(tmp_path / "frames", 6)
    run = write_flow(sequence, tvnet, [store(tmp_path / "a.h5", 5)], FieldOptions())
    assert [next(run).position for _ in range(3)] == [0, 1, 2]
    run.close()  # as an interruption does
    with h5py.File(tmp_path / "a.h5", "r") as file:
        first = file["flow"][:]
        assert len(first) == 3
    fields = list(write_flow(sequence, tvnet, [store(tmp_path / "a.h5", 5)], FieldOptions()))
    assert [field.position for field in fields] == [3, 4]
    list(write_flow(sequence, tvnet, [store(tmp_path / "whole.h5", 5)], FieldOptions()))
    with h5py.File(tmp_path / "a.h5", "r") as file, h5py.File(tmp_path / "whole.h5", "r") as whole:
        for name in whole:
            np.testing.assert_array_equal(file[name][:], whole[name][:])


def test_fields_in_the_file_serve_the_other_outputs(tmp_path, tvnet, monkeypatch):
    sequence = pictures(tmp_path / "frames", 4)
    list(write_flow(sequence, tvnet, [store(tmp_path / "a.h5", 3)], FieldOptions()))
    from tvnet_cli.flow import compute

    monkeypatch.setattr(compute, "solve_pairs", lambda *_: pytest.fail("was computed before"))

    written: list[int] = []

    class Other:
        num_done, path = 0, tmp_path / "other"

        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...
        def write(self, field) -> None:
            written.append(field.position)

    fields = list(write_flow(sequence, tvnet, [store(tmp_path / "a.h5", 3), Other()], FieldOptions()))
    assert written == [0, 1, 2]
    with h5py.File(tmp_path / "a.h5", "r") as file:
        np.testing.assert_array_equal(np.stack([field.flow for field in fields]), file["flow"][:])


def test_fields_of_other_times_are_not_gone_on_with(tmp_path, tvnet):
    sequence = pictures(tmp_path / "frames", 4)
    list(write_flow(sequence, tvnet, [store(tmp_path / "a.h5", 3)], FieldOptions()))
    other = open_sequence([tmp_path / "frames"], FrameOptions(fps=10))
    with pytest.raises(FlowFileError, match=r"a\.h5 holds fields at other times than frames"):
        list(write_flow(other, tvnet, [store(tmp_path / "a.h5", 3)], FieldOptions()))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_all_pairs_before_a_broken_frame_are_kept(tmp_path, tvnet, batch_size):
    sequence = pictures(tmp_path / "frames", 6)
    (tmp_path / "frames" / "4.png").write_bytes(b"broken")
    run = write_flow(sequence, tvnet, [store(tmp_path / "a.h5", 5)], FieldOptions(), batch_size=batch_size)
    with pytest.raises(VideoReadError, match=r"4\.png: not an image"):
        list(run)
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert len(file["flow"]) == 3
        assert not file.attrs["complete"]


def test_optical_flow_takes_and_gives_numpy():
    first, second = RNG.integers(0, 256, (2, 32, 40, 3)).astype(np.uint8)
    flow = optical_flow(first, second, "tvnet-10")
    assert flow.shape == (2, 32, 40)
    assert flow.dtype == np.float32
    net = TVNet(num_iterations=10)
    with torch.no_grad():
        expected = net(*(torch.from_numpy(frame).movedim(-1, 0)[None] for frame in (first, second)))[0]
    np.testing.assert_array_equal(flow, expected)
    np.testing.assert_array_equal(optical_flow(first, second, PRESETS["tvnet-10"]), flow)
    np.testing.assert_array_equal(optical_flow(first.astype(np.float64), second.astype(np.int32), "tvnet-10"), flow)
    np.testing.assert_array_equal(optical_flow(first, second), optical_flow(first, second, "tvnet-50"))
    grey = optical_flow(first[..., 0], second[..., 0], "tvnet-10")
    np.testing.assert_array_equal(grey, optical_flow(first[..., :1], second[..., :1], "tvnet-10"))
    np.testing.assert_array_equal(optical_flow(first[..., ::-1], second[:, :, ::-1], "tvnet-10").shape, flow.shape)


def test_optical_flow_names_what_is_wrong():
    image = np.zeros((32, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="no preset is called 'tvnet-51': tvnet-10, tvnet-30, tvnet-50, tv-l1"):
        optical_flow(image, image, "tvnet-51")
    with pytest.raises(ValueError, match="differ in shape"):
        optical_flow(image, image[:30])
    with pytest.raises(ValueError, match="must be"):
        optical_flow(image[..., :2], image[..., :2])
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) or \(H, W\), not \(40,\)"):
        optical_flow(image[0, :, 0], image[0, :, 0])
    with pytest.raises(ValueError, match="at least 16 x 16"):
        optical_flow(image[:8], image[:8])
    with pytest.raises(DeviceError, match="cuda:99"):
        optical_flow(image, image, device="cuda:99")


@pytest.mark.cuda
def test_a_gpu_gives_the_same_flow():
    first, second = RNG.integers(0, 256, (2, 120, 160, 3)).astype(np.uint8)
    for preset in ("tvnet-50", "tv-l1"):
        difference = optical_flow(first, second, preset, "cuda") - optical_flow(first, second, preset)
        assert np.abs(difference).mean() < 1e-3
