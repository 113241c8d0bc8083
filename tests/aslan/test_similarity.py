from __future__ import annotations

import json

import numpy as np
import pytest
from pair_files import twelve_measures

from tvnet_cli.aslan.similarity import PairSums, norms_and_totals, one_shot_similarity, pair_measures

ONE, TWO = np.array([0]), np.array([1])


def of_two(x, y, **options) -> np.ndarray:
    return pair_measures(np.array([x, y], np.float64), ONE, TWO, **options)[0]


def test_measures_equal_the_golden_values(shared_data):
    cases = json.loads((shared_data / "aslan/golden_distances.json").read_text())["cases"]
    assert len(cases) >= 4
    for case in cases:
        np.testing.assert_allclose(
            of_two(case["x"], case["y"]), case["d"], rtol=1e-12, atol=1e-13, err_msg=case["case"]
        )


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("num_values", [1, 7, 512, 513, 5000])
def test_measures_equal_the_formulas(num_values, kind):
    random = np.random.default_rng(0)
    features = np.maximum(random.normal(size=(8, num_values)) + 0.3, 0).astype(kind) * 3
    features[0] = 0
    first, second = (side.ravel() for side in np.meshgrid(np.arange(8), np.arange(8)))
    expected = [twelve_measures(features[a], features[b]) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(pair_measures(features, first, second), expected, rtol=1e-12, atol=1e-13)


def test_a_written_out_pair():
    x, y = [3.0, 4.0], [0.0, 5.0]
    ratio = np.sqrt(1.0) + np.sqrt(1.0 / 1.8)
    expected = [20, 20**0.5, 20**0.25, (20 / 9) ** 0.5, 0.8, (3 + 1 / 9) ** 0.5, 4, (3 + (5**0.5 - 2) ** 2) ** 0.5]
    expected += [0.4**0.5, (0.6 * np.log(0.6 / 2.0**-52) + 0.2 * np.log(1 / 0.8)) / 2, ratio, 0.8 / 1.4]
    np.testing.assert_allclose(of_two(x, y), expected, rtol=1e-12)


def test_zero_vectors_give_finite_measures():
    both, one = of_two([0, 0, 0], [0, 0, 0]), of_two([0, 0, 0], [1, 2, 2])
    assert both.tolist() == [0.0] * 12
    assert np.isfinite(one).all()
    assert one[[0, 1, 2, 3, 4, 11]].tolist() == [0.0] * 6
    np.testing.assert_allclose(one[[6, 8, 10]], [5, 1, 3], rtol=1e-15)


def test_equal_vectors_are_at_distance_nothing():
    x = np.random.default_rng(0).random(1000)
    assert of_two(x, x)[[5, 6, 7, 8, 9]].tolist() == [0.0] * 5
    np.testing.assert_allclose(of_two(x, 3 * x)[[4, 8, 9]], [1, 0, 0], atol=1e-13)


def test_close_vectors_keep_their_distance():
    x = np.array([0.6, 0.8, 1e-3])
    y = x + np.array([1e-9, -1e-9, 1e-10])
    expected = twelve_measures(x, y)
    assert 0 < expected[8] < 1e-8
    found = of_two(x, y)
    np.testing.assert_allclose(np.delete(found, 9), np.delete(expected, 9), rtol=1e-12)
    assert found[9] == pytest.approx(expected[9], abs=1e-24)  # logarithms of almost the same number are subtracted


def test_tiny_and_huge_vectors_are_normalised_all_the_same():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 4.0])
    for factor in (1e-170, 1e-300, 1e160):
        np.testing.assert_allclose(of_two(x * factor, y * 1.0)[8:11], of_two(x, y)[8:11], rtol=1e-12)


def test_swapping_the_videos_changes_no_bit():
    features = np.random.default_rng(0).random((20, 3001)).astype(np.float32)
    first, second = np.arange(19), np.arange(1, 20)
    one, other = pair_measures(features, first, second), pair_measures(features, second, first)
    assert np.array_equal(one, other)
    turned = pair_measures(features[::-1], 19 - first, 19 - second)
    assert np.array_equal(one, turned)


def test_threads_change_no_bit():
    features = np.random.default_rng(0).random((20, 3001))
    first, second = np.arange(19), np.arange(1, 20)
    expected = pair_measures(features, first, second, jobs=1)
    assert np.array_equal(pair_measures(features, first, second, jobs=3), expected)


def test_blocks_of_any_width_give_the_same_measures():
    features = np.random.default_rng(0).random((5, 1300))
    first, second = np.array([0, 1, 4]), np.array([3, 2, 0])
    whole = pair_measures(features, first, second)
    for width in (1, 100, 700):
        sums = PairSums(*norms_and_totals(features), first, second)
        for start in range(0, 1300, width):
            sums.add(features[:, start : start + width])
        np.testing.assert_allclose(sums.measures(), whole, rtol=1e-13)


def test_eps_moves_measure_10_alone():
    plain, other = of_two([1, 0, 2], [0, 3, 1]), of_two([1, 0, 2], [0, 3, 1], eps=1e-4)
    assert np.flatnonzero(plain != other).tolist() == [9]
    np.testing.assert_allclose(other, twelve_measures([1, 0, 2], [0, 3, 1], eps=1e-4), rtol=1e-12)


def test_logarithms_are_right_to_the_last_bits():
    """Measure 10 of unit vectors (c, s) and (s, c) is (c - s) log(c / s) at all sizes of s."""
    sines = 10.0 ** np.random.default_rng(0).uniform(-12, -0.2, 2000)
    cosines = np.sqrt((1 - sines) * (1 + sines))
    features = np.stack([np.stack([cosines, sines], 1), np.stack([sines, cosines], 1)]).reshape(-1, 2)
    found = pair_measures(features, np.arange(2000), np.arange(2000, 4000), eps=1e-300)[:, 9]
    np.testing.assert_allclose(found, (cosines - sines) * np.log(cosines / sines), rtol=1e-13)


@pytest.mark.parametrize("bad", [-1e-12, np.nan, np.inf])
def test_impossible_features_are_refused(bad):
    with pytest.raises(ValueError, match="finite and not negative"):
        of_two([1, bad], [1, 1])


def one_sided(x, y, background):
    """One-shot similarity written out with the covariance matrix itself."""
    mean, covariance = background.mean(axis=0), np.cov(background.T)
    covariance = covariance + 0.1 * np.linalg.eigvalsh(covariance)[-1] * np.eye(len(covariance))
    direction = np.linalg.inv(covariance) @ (x - mean)
    direction /= np.linalg.norm(direction)
    return direction @ (y - (x + mean) / 2)


@pytest.mark.parametrize("num_values", [4, 60])
def test_one_shot_similarity_equals_its_definition(num_values):
    videos = np.random.default_rng(0).normal(size=(32, num_values))
    background, first, second = np.arange(8, 32), np.array([0, 2, 5]), np.array([1, 3, 0])
    found = one_shot_similarity(videos @ videos.T, background, first, second)
    for score, a, b in zip(found, videos[first], videos[second], strict=True):
        expected = one_sided(a, b, videos[background]) + one_sided(b, a, videos[background])
        assert score == pytest.approx(expected / 2, rel=1e-9)


def test_one_shot_similarity_survives_degenerate_videos():
    videos = np.ones((6, 3))
    scores = one_shot_similarity(videos @ videos.T, np.arange(2, 6), ONE, TWO)
    assert scores.tolist() == [0.0]
