from __future__ import annotations

import numpy as np
import pytest
import torch

from tvnet_cli.aslan.similarity import pair_measures
from tvnet_cli.bench.flow import LONGEST, as_batch, prepared, reference
from tvnet_cli.bench.pairs import drawn_pair, read_pairs
from tvnet_cli.bench.peers import inplace_tvl1, numpy_measures, numpy_tvl1, opencv_same_work
from tvnet_cli.errors import DatasetError
from tvnet_cli.flow.files import write_flo
from tvnet_cli.flow.operators import warp
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.options import TVNetOptions

OPTIONS = TVNetOptions(num_iterations=37, tau=0.2, lambda_=0.1, theta=0.25)


@pytest.fixture(scope="module")
def frames():
    """Two pairs (2, 1, 46, 61) as the solver gets them."""
    return prepared(*as_batch([drawn_pair(46, 61, LONGEST, seed) for seed in range(2)]))


@pytest.fixture(params=[TVNetOptions(), OPTIONS], ids=["tvnet-50", "other numbers"])
def options(request):
    return request.param


@pytest.fixture
def expected(frames, options):
    with torch.inference_mode():
        flow = reference(TVNet.from_options(options)).solve(*frames)
    assert flow.abs().max() > 1
    return flow.numpy()


def test_numpy_gives_the_flow_of_the_reference(frames, options, expected):
    found = [numpy_tvl1(one[0], other[0], options) for one, other in zip(*(x.numpy() for x in frames), strict=True)]
    assert found[0].dtype == np.float32
    assert np.abs(np.stack(found) - expected).max() < 1e-4


def test_in_place_torch_gives_the_flow_of_the_reference(frames, options, expected):
    assert np.abs(inplace_tvl1(*frames, options).numpy() - expected).max() < 1e-4


def test_opencv_set_to_the_same_updates_gives_the_flow_of_the_reference(frames, options, expected):
    solve = opencv_same_work(pytest.importorskip("cv2"), options)
    found = [solve(one[0], other[0]) for one, other in zip(*(x.numpy() for x in frames), strict=True)]
    assert np.abs(np.stack(found) - expected).max() < 1e-4


def test_the_peers_leave_their_frames_as_they_are(frames):
    before = [frame.clone() for frame in frames]
    inplace_tvl1(*frames)
    numpy_tvl1(frames[0][0, 0].numpy(), frames[1][0, 0].numpy())
    assert all(torch.equal(frame, old) for frame, old in zip(frames, before, strict=True))


@pytest.mark.parametrize(("dtype", "precision"), [(np.float32, 1e-4), (np.float64, 1e-12)])
def test_numpy_gives_the_12_measures(dtype, precision):
    features = np.random.default_rng(0).random((6, 700), np.float32) + np.float32(1e-3)
    first, second = np.array([0, 1, 5]), np.array([3, 4, 0])
    np.testing.assert_allclose(
        numpy_measures(features, first, second, dtype), pair_measures(features, first, second), rtol=precision
    )


def test_a_drawn_pair_moves_as_its_flow_says():
    pair = drawn_pair(80, 100, 3.0, seed=1)
    assert pair.first.dtype == pair.second.dtype == np.uint8
    assert np.hypot(*pair.truth).max() == pytest.approx(3, abs=1e-5)
    second, truth = torch.from_numpy(pair.second)[None, None].float(), torch.from_numpy(pair.truth)[None]
    difference = np.abs(warp(second, truth, "bicubic")[0, 0].numpy() - pair.first)[4:-4, 4:-4]
    still = np.abs(pair.second.astype(float) - pair.first)[4:-4, 4:-4]
    assert difference.mean() < 0.5
    assert still.mean() > 10 * difference.mean()


def test_pairs_are_read_as_middlebury_lays_them_out(tmp_path):
    cv2 = pytest.importorskip("cv2")
    pair = drawn_pair(20, 30, 1.0)
    for name in ("b", "a", "without frames"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "flow10.flo").write_bytes(write_flo(pair.truth + (name == "b")))
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / name / "frame10.png"), pair.first)
        cv2.imwrite(str(tmp_path / name / "frame11.png"), pair.second)
    found = read_pairs(tmp_path)
    assert len(found) == 2
    np.testing.assert_array_equal(found[0].first, pair.first)
    np.testing.assert_array_equal(found[0].second, pair.second)
    np.testing.assert_array_equal(found[1].truth, pair.truth + 1)


def test_a_folder_without_pairs_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match=r"no folder in .* holds frame10\.png"):
        read_pairs(tmp_path)
