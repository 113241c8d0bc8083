"""What the features of one layer say about videos: maps, nearest neighbours, and a matrix of similarities.

All of it follows from the cosines between the videos, which one pass over the features gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.decomposition import KernelPCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from tvnet_cli.features.table import VideoTable
from tvnet_cli.visualize.grouping import NO_GROUP, Grouping

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Progress = Callable[[str, int, int], None]  # what goes on, steps done, all steps

# Below, t-SNE keeps neighbours together worse than PCA does: trustworthiness 0.84 against 0.94 of 8 videos in three
# groups, 0.95 against 0.98 of 10.
LEAST_FOR_TSNE = 10
PERPLEXITY = 30  # and never more than a third of the other videos
MATRIX_SIDE = 1000  # cells at most; the videos of a cell are averaged
OPTIMAL_ORDER = 300  # videos up to which leaves are turned so that alike ones touch: its time grows with the cube
SAME = 1e-12  # a spread below this is rounding


@dataclass(frozen=True)
class Matrix:
    """Similarities in an order that shows their blocks.

    Attributes
    ----------
    order : ndarray, (N,), int64
        The videos along each side.
    levels : ndarray, (S, S), uint8
        Mean similarity of the videos of a cell, a video with itself left out: from ``low``, 0, to ``high``, 255. Cell i
        stands for the places ``i * N // S`` up to ``(i + 1) * N // S`` in the order. One video with itself is 255.
    low, high : float
    """

    order: Places = field(repr=False)
    levels: NDArray[np.uint8] = field(repr=False)
    low: float
    high: float


@dataclass(frozen=True)
class LayerMap:
    """One layer.

    Attributes
    ----------
    name : str
    num_values : int
        Length of a feature vector.
    pca : ndarray, (N, 2), float64
        First two principal components.
    explained : tuple of float
        Their shares of the variance.
    tsne : ndarray, (N, 2), float64, or None
        None for fewer than ``LEAST_FOR_TSNE`` videos, and if all are the same.
    neighbours : ndarray, (N, k), int64
        The nearest other videos of each, the nearest first.
    similarities : ndarray, (N, k), float64
        Their cosines.
    matrices : dict of str to Matrix
        By ``"likeness"``: neighbouring branches of a hierarchical clustering. By ``"label"`` or ``"folder"``: by group,
        and by likeness inside a group.
    agreement, chance : float or None
        Share of the videos with a group whose nearest one is of the same group; and of a random one.
    """

    name: str
    num_values: int
    pca: Floats = field(repr=False)
    explained: tuple[float, float]
    tsne: Floats | None = field(repr=False)
    neighbours: Places = field(repr=False)
    similarities: Floats = field(repr=False)
    matrices: dict[str, Matrix] = field(repr=False)
    agreement: float | None
    chance: float | None


def map_layer(table: VideoTable, grouping: Grouping | None, num_neighbours: int, progress: Progress) -> LayerMap:
    """Everything about one layer.

    Parameters
    ----------
    table : VideoTable
        Of at least two videos.
    grouping : Grouping, optional
    num_neighbours : int
        Kept for each video, as far as there are so many others.
    progress : callable
        Hears of each stage, the steps that are done, and all steps.

    Raises
    ------
    FeatureFileError
        If a feature is no number, or cannot be read.
    """
    similarity = cosines(table, progress)
    progress(f"{table.name}: map", 0, 1)
    pca, explained = principal_components(similarity)
    tsne = embed_neighbours(similarity, pca)
    progress(f"{table.name}: map", 1, 1)
    neighbours = nearest(similarity, num_neighbours)
    orders = _orders(similarity, grouping)
    agreement, chance = _agreement(similarity, grouping) if grouping else (None, None)
    return LayerMap(
        table.name,
        table.num_values,
        pca,
        explained,
        tsne,
        neighbours,
        np.take_along_axis(similarity, neighbours, axis=1),
        {name: matrix(similarity, order) for name, order in orders.items()},
        agreement,
        chance,
    )


def cosines(table: VideoTable, progress: Progress) -> Floats:
    """Similarity of all videos, (N, N), in [-1, 1]; features that are all zero are like nothing."""
    done, total = 0, len(table.videos) * table.num_values

    def report(count: int) -> None:
        nonlocal done
        done += count
        progress(f"{table.name}: similarities", done, total)

    products = table.inner_products(report)
    lengths = np.sqrt(products.diagonal())
    lengths[lengths == 0] = np.inf
    products /= lengths[:, None]
    products /= lengths
    return np.clip(products, -1, 1, out=products)


def principal_components(similarity: Floats) -> tuple[Floats, tuple[float, float]]:
    """The first two principal components of features of length 1, (N, 2), and their shares of the variance."""
    # With the inner products as kernel this is the PCA of the features, without their many columns.
    pca = KernelPCA(2, kernel="precomputed", random_state=0)
    components = np.asarray(pca.fit_transform(similarity), np.float64)
    variance = float(similarity.trace() - similarity.sum() / len(similarity))
    if variance < SAME:
        return np.zeros((len(similarity), 2)), (0.0, 0.0)
    first, second = (float(value / variance) for value in pca.eigenvalues_)
    return components, (first, second)


def embed_neighbours(similarity: Floats, pca: Floats) -> Floats | None:
    """The t-SNE of features of length 1, (N, 2), the same in each run; None where it would say nothing.

    Starts from the principal components: so far groups keep their places (Kobak and Berens, The art of using t-SNE for
    single-cell transcriptomics, 2019).
    """
    spread = pca[:, 0].std()
    if len(similarity) < LEAST_FOR_TSNE or spread < SAME:
        return None
    distances = np.sqrt(np.maximum(2 - 2 * similarity, 0))
    np.fill_diagonal(distances, 0)
    tsne = TSNE(
        2,
        perplexity=min(PERPLEXITY, (len(similarity) - 1) / 3),
        metric="precomputed",
        init=(1e-4 / spread * pca).astype(np.float32),
        random_state=0,
    )
    with threadpool_limits(1):  # sums of several threads come in any order, and t-SNE blows up the last bit
        return np.asarray(tsne.fit_transform(distances), np.float64)


def nearest(similarity: Floats, count: int) -> Places:
    """The other videos that are most similar to each, (N, count or all others), the most similar first."""
    others = min(count, len(similarity) - 1)
    found = np.empty((len(similarity), others), np.int64)
    for place, row in enumerate(similarity):
        order = np.argsort(-row, kind="stable")
        found[place] = order[order != place][:others]
    return found


def matrix(similarity: Floats, order: Places) -> Matrix:
    """The similarities in this order, as a picture of at most ``MATRIX_SIDE`` cells a side."""
    side = min(len(order), MATRIX_SIDE)
    starts = np.arange(side) * len(order) // side
    sizes = np.diff(starts, append=len(order)).astype(np.float64)
    others = similarity[np.ix_(order, order)]
    np.fill_diagonal(others, 0)
    sums = np.add.reduceat(np.add.reduceat(others, starts, axis=0), starts, axis=1)
    counts = np.outer(sizes, sizes) - np.diag(sizes)
    means = np.divide(sums, counts, out=np.full_like(sums, np.inf), where=counts > 0)
    known = means[np.isfinite(means)]
    low, high = float(known.min()), float(known.max())
    levels = np.rint(255 * np.clip((means - low) / max(high - low, SAME), 0, 1)).astype(np.uint8)
    return Matrix(order, levels, low, high)


def _orders(similarity: Floats, grouping: Grouping | None) -> dict[str, Places]:
    distances = squareform(1 - similarity, checks=False)
    alike = leaves_list(linkage(distances, "average", optimal_ordering=len(similarity) <= OPTIMAL_ORDER))
    orders = {"likeness": alike.astype(np.int64)}
    if grouping:
        groups = np.where(grouping.of == NO_GROUP, len(grouping.names), grouping.of)
        orders = {grouping.kind: alike[np.argsort(groups[alike], kind="stable")], **orders}
    return orders


def _agreement(similarity: Floats, grouping: Grouping) -> tuple[float, float] | tuple[None, None]:
    """How often the nearest video with a group is of the same group, and how often a random one would be."""
    known = np.flatnonzero(grouping.of != NO_GROUP)
    if len(known) < 2:
        return None, None
    groups = grouping.of[known]
    closest = nearest(similarity[np.ix_(known, known)], 1)[:, 0]
    sizes = np.bincount(groups)
    chance = (sizes * (sizes - 1)).sum() / (len(known) * (len(known) - 1))
    return float((groups == groups[closest]).mean()), float(chance)
