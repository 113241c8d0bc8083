from __future__ import annotations

import numpy as np
import pytest
from pair_files import class_features
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.metrics.pairwise import cosine_similarity

from tvnet_cli.errors import FeatureFileError
from tvnet_cli.features import table as tables
from tvnet_cli.features.table import Source, VideoTable
from tvnet_cli.visualize import feature_map as module
from tvnet_cli.visualize.feature_map import cosines, embed_neighbours, map_layer, matrix, nearest, principal_components
from tvnet_cli.visualize.grouping import Grouping

CLASSES = np.arange(42) // 6
GROUPING = Grouping("label", tuple("abcdefg"), CLASSES)
VALUES = class_features(42, 90, strength=0.8)


def no_progress(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def table_of(folder, values: np.ndarray, rows: list[int] | None = None) -> VideoTable:
    np.save(folder / "f.npy", values)
    ids = tuple(f"{number}.mp4" for number in range(len(values)))
    chosen = np.arange(len(values)) if rows is None else np.array(rows)
    source = Source("f", folder / "f.npy", "", ids, values.shape)
    return VideoTable("f", tuple(ids[row] for row in chosen), ((source, chosen, np.arange(len(chosen))),))


@pytest.mark.parametrize("block_bytes", [1, 3000, 2**20])
def test_cosines_are_those_of_scikit_learn(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(tables, "BLOCK_BYTES", block_bytes)
    values = (VALUES * np.linspace(0.1, 9, 42, dtype=np.float32)[:, None]).reshape(42, 10, 3, 3)
    found = cosines(table_of(tmp_path, values, rows=[3, 4, 9, 41]), no_progress)
    np.testing.assert_allclose(
        found, cosine_similarity(values.reshape(42, -1)[[3, 4, 9, 41]].astype(float)), atol=1e-12
    )


def test_features_that_are_zero_are_like_nothing(tmp_path):
    found = cosines(table_of(tmp_path, np.eye(3, 5, dtype=np.float32) * [[1], [1], [0]]), no_progress)
    np.testing.assert_array_equal(found, np.diag([1, 1, 0]))


def test_features_that_are_no_numbers_are_named(tmp_path):
    values = VALUES.copy()
    values[7, 80] = np.nan
    with pytest.raises(FeatureFileError, match=r"f of the video 7\.mp4 has NaN or infinite values"):
        cosines(table_of(tmp_path, values), no_progress)


def test_principal_components_are_those_of_the_features(tmp_path):
    found, explained = principal_components(cosines(table_of(tmp_path, VALUES), no_progress))
    pca = PCA(2)
    wanted = pca.fit_transform(VALUES.astype(np.float64))
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-6)
    np.testing.assert_allclose(explained, pca.explained_variance_ratio_, atol=1e-6)


def test_tsne_keeps_classes_together_and_repeats(tmp_path):
    similarity = cosines(table_of(tmp_path, VALUES), no_progress)
    pca, _ = principal_components(similarity)
    found = embed_neighbours(similarity, pca)
    assert trustworthiness(VALUES, found, n_neighbors=5) > 0.85
    np.testing.assert_array_equal(found, embed_neighbours(similarity, pca))


@pytest.mark.parametrize("count", [2, 9])
def test_few_videos_have_no_tsne(tmp_path, count):
    found = map_layer(table_of(tmp_path, VALUES[:count]), None, 12, no_progress)
    assert found.tsne is None
    assert found.pca.shape == (count, 2)
    assert found.neighbours.shape == (count, count - 1)
    assert list(found.matrices) == ["likeness"]
    assert found.agreement is None


def test_videos_that_do_not_differ_lie_on_one_point(tmp_path):
    found = map_layer(table_of(tmp_path, np.tile(VALUES[:1], (12, 1))), None, 3, no_progress)
    assert found.tsne is None
    np.testing.assert_array_equal(found.pca, 0)
    assert found.explained == (0, 0)
    assert found.similarities.min() > 1 - 1e-6


def test_the_nearest_are_the_most_similar_others():
    similarity = np.array([[1, 0.2, 0.9, 0.5], [0.2, 1, 0.1, 0.2], [0.9, 0.1, 1, 0.9], [0.5, 0.2, 0.9, 1]])
    assert nearest(similarity, 2).tolist() == [[2, 3], [0, 3], [0, 3], [2, 0]]


def test_a_copy_of_a_video_is_its_neighbour():
    assert nearest(np.ones((3, 3)), 1).tolist() == [[1], [0], [0]]


def test_a_matrix_shows_all_similarities(tmp_path):
    similarity = cosines(table_of(tmp_path, VALUES), no_progress)
    order = np.random.default_rng(0).permutation(42)
    found = matrix(similarity, order)
    shown = found.low + (found.high - found.low) * found.levels / 255
    others = ~np.eye(42, dtype=bool)
    assert np.abs(shown - similarity[order][:, order])[others].max() <= (found.high - found.low) / 510 + 1e-9
    assert (found.low, found.high) == (similarity[others].min(), similarity[others].max())
    assert (found.levels.diagonal() == 255).all()


def test_cells_of_a_large_matrix_are_means(monkeypatch):
    monkeypatch.setattr(module, "MATRIX_SIDE", 3)
    random = np.random.default_rng(0).random((5, 5))
    similarity = (random + random.T) / 2
    np.fill_diagonal(similarity, 1)
    found = matrix(similarity, np.arange(5)[::-1].copy())
    turned = similarity[::-1, ::-1]
    cells = [slice(0, 1), slice(1, 3), slice(3, 5)]  # of the first one video, of the others two
    means = np.array([[turned[rows, columns].mean() for columns in cells] for rows in cells])
    means[1, 1], means[2, 2] = turned[1, 2], turned[3, 4]  # without a video with itself
    means[0, 0] = np.delete(means, 0).max()
    wanted = 255 * (means - means.min()) / (means.max() - means.min())
    np.testing.assert_allclose(found.levels, wanted, atol=0.51)


def test_two_videos_make_a_matrix():
    found = matrix(np.array([[1, 0.25], [0.25, 1]]), np.arange(2))
    assert (found.low, found.high) == (0.25, 0.25)
    assert found.levels.tolist() == [[255, 0], [0, 255]]


def test_orders_are_by_group_and_by_likeness(tmp_path):
    shuffled = np.random.default_rng(0).permutation(42)
    grouping = Grouping("label", GROUPING.names, np.where(CLASSES == 6, -1, CLASSES)[shuffled])
    found = map_layer(table_of(tmp_path, VALUES[shuffled]), grouping, 5, no_progress).matrices
    by_label = grouping.of[found["label"].order].tolist()
    assert by_label == sorted(by_label, key=lambda group: (group < 0, group))
    for one in found.values():
        assert sorted(one.order.tolist()) == list(range(42))
    # Neighbouring cells are alike: the picture is smoother than in an order of chance.
    rough = {
        name: np.abs(np.diff(one.levels.astype(int), axis=0)).mean()
        for name, one in (found | {"chance": matrix(VALUES[shuffled] @ VALUES[shuffled].T, np.arange(42))}).items()
    }
    assert rough["likeness"] < 0.8 * rough["chance"]


def test_agreement_is_the_accuracy_of_the_nearest_neighbour(tmp_path):
    groups = np.where(np.arange(42) % 9 == 8, -1, CLASSES)
    values = class_features(42, 90, strength=0.3)
    found = map_layer(table_of(tmp_path, values), Grouping("label", GROUPING.names, groups), 5, no_progress)
    known = np.flatnonzero(groups >= 0)
    right, pairs = 0, 0
    for video in known:
        others = known[known != video]
        closest = others[np.argmax(values[others] @ values[video])]
        right += groups[closest] == groups[video]
        pairs += (groups[others] == groups[video]).sum()
    assert found.agreement == pytest.approx(right / len(known))
    assert found.chance == pytest.approx(pairs / (len(known) * (len(known) - 1)))
    assert found.chance + 0.1 < found.agreement < 0.95
