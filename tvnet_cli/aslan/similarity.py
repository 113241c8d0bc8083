"""The 12 measures of similarity of the ASLAN benchmark, on blocks of coordinates.

Sources: Kliper-Gross, Hassner, Wolf, The Action Similarity Labeling Challenge, TPAMI 34(3), 2012, Table 3. The paper
leaves open how the vectors of the last four measures were normalised (here: L2, with which its numbers for measures 5
and 9 agree) and what 0/0 and log 0 give; see ``pair_measures``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numba
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from numpy.typing import NDArray

from tvnet_cli.options import DEFAULT_JOBS, EvalOptions

# In the order of the paper's table; u and v are x and y divided by their L2 norms.
MEASURES = (
    "sum(x*y)",
    "sqrt(sum(x*y))",
    "sqrt(sum(sqrt(x)*sqrt(y)))",
    "sqrt(sum(x*y/(x+y)))",
    "sum(x*y)/(|x||y|)",
    "sqrt(sum((x-y)^2/(x+y)))",
    "sum|x-y|",
    "sqrt(sum((sqrt(x)-sqrt(y))^2))",
    "sqrt(sum((u-v)^2))",
    "sum((u-v)*log(u/v))/2",
    "sum(sqrt(max(u,v)/(u+v)))",
    "sum(min(u,v))/(sum(u)*sum(v))",
)

NUM_SUMS = 10  # that run over the coordinates of a pair
# Coordinates worked on at once: four rows of this length for each of two videos stay in the first cache of a core.
BLOCK = 512
REGULARISATION = 0.1  # of the covariance of the background, relative to its largest eigenvalue

LEAST_SQUARE = 1e-280

# For logarithms out of the bits of float64.
ONE_BITS = np.float64(1).view(np.uint64)
TO_ROOT_HALF = ONE_BITS - np.float64(0.5**0.5).view(np.uint64)
MAGIC = 2.0**52  # its last bits count by ones
MAGIC_BITS = np.float64(MAGIC).view(np.uint64)
SHIFT = np.uint64(52)  # bits of a mantissa
LOG_2_HIGH = float.fromhex("0x1.62e42fefa38p-1")  # log 2 to 42 bits, so that its multiples are exact
LOG_2_LOW = float.fromhex("0x1.ef35793c7673p-45")  # what is left of it

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def pair_measures(
    features: NDArray[np.floating],
    first: Rows,
    second: Rows,
    *,
    eps: float = EvalOptions.eps,
    jobs: int = DEFAULT_JOBS,
) -> Floats:
    """The 12 measures of pairs of feature vectors.

    A quotient with denominator 0 counts as 0, so a zero vector is at distance 0 from itself and its cosine with any
    other is 0. Measure 10 is ``sum((u - v) * (log(u + eps) - log(v + eps))) / 2``, finite where only one of two
    coordinates is 0; it alone depends on ``eps``.

    Parameters
    ----------
    features : ndarray, (V, D), float, any unit
        A feature vector a video, finite and not negative.
    first, second : ndarray, (P,), int64
        Rows of ``features``: the two videos of each pair.
    eps : float
        Added inside the logarithms of measure 10.
    jobs : int
        Threads. They change speed, not results.

    Returns
    -------
    ndarray, (P, 12), float64
        In the order of ``MEASURES``; the same, to the last bit, with ``first`` and ``second`` swapped.

    Raises
    ------
    ValueError
        If a feature is negative, NaN or infinite.

    Examples
    --------
    >>> measures = pair_measures(np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 4.0]]), np.array([0]), np.array([1]))
    >>> measures[0, [0, 1, 6]].tolist()
    [16.0, 4.0, 3.0]
    """
    norms, totals = norms_and_totals(features)
    if not np.isfinite(totals).all() or features.min(initial=0) < 0:
        raise ValueError("features must be finite and not negative")
    sums = PairSums(norms, totals, first, second, eps=eps, jobs=jobs)
    sums.add(features)
    return sums.measures()


def norms_and_totals(features: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """The L2 norm and the sum of each row.

    Parameters
    ----------
    features : ndarray, (V, D), float

    Returns
    -------
    norms, totals : ndarray, (V,), float64
    """
    totals, squares = np.empty(len(features)), np.empty(len(features))
    _add_up(_as_float(features), totals, squares)
    norms = np.sqrt(squares)
    # Squares of tiny and huge numbers leave the range of float64: there once more, divided by the largest value.
    odd = ~((squares > LEAST_SQUARE) & (squares < 1 / LEAST_SQUARE)) & (totals != 0) & np.isfinite(totals)
    for row in np.flatnonzero(odd):
        x = features[row].astype(np.float64)
        norms[row] = np.abs(x).max() * np.linalg.norm(x / np.abs(x).max())
    return norms, totals


def one_shot_similarity(gram: Floats, background: Rows, first: Rows, second: Rows) -> Floats:
    """Symmetric one-shot similarity of pairs, with linear discriminant analysis as the classifier.

    A classifier tells one video from the background, and scores the other video of the pair; the two ways round are
    averaged. With mean m and covariance S of the background, S' = S + 0.1 (largest eigenvalue of S) I, and
    ``w = S'^-1 (x - m)``, it scores y with ``w . (y - (x + m) / 2) / |w|``. Only inner products of videos are needed.

    Sources: L. Wolf, T. Hassner, Y. Taigman, The One-Shot Similarity Kernel, ICCV 2009, and the authors' code beside
    it, from which come the division by the length of w and the factor 0.1.

    Parameters
    ----------
    gram : ndarray, (V, V), float64
        Inner products of the features of all videos.
    background : ndarray, (B,), int64
        Videos that belong to neither class, at least 2.
    first, second : ndarray, (P,), int64
        The two videos of each pair.

    Returns
    -------
    ndarray, (P,), float64
        Larger: more similar. 0 for a video that equals the mean of the background.
    """
    videos, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, other = places[: len(first)], places[len(first) :]
    inner = gram[np.ix_(background, background)]
    to_mean, mean_square = gram[:, background].mean(axis=1), inner.mean()
    # Inner products after the mean of the background is taken from every video.
    known = inner - to_mean[background, None] - to_mean[background] + mean_square  # (B, B)
    mixed = gram[np.ix_(background, videos)] - to_mean[background, None] - to_mean[videos] + mean_square  # (B, N)
    own = gram[np.ix_(videos, videos)] - to_mean[videos, None] - to_mean[videos] + mean_square  # (N, N)

    degrees = len(background) - 1
    ridge = REGULARISATION * _largest_eigenvalue(known) / degrees or 1.0
    # Woodbury: S'^-1 z = (z - X' K^-1 X z) / ridge with K = X X' + degrees * ridge I, X the centred background.
    known[np.diag_indices_from(known)] += degrees * ridge
    factor = scipy.linalg.cho_factor(known, overwrite_a=True, check_finite=False)
    solved = scipy.linalg.cho_solve(factor, mixed, check_finite=False)
    weighted = (own - mixed.T @ solved) / ridge  # z . S'^-1 z
    # |z - X' solved|^2, where X X' solved = mixed - degrees * ridge * solved
    square = own.diagonal() - (solved * (mixed + degrees * ridge * solved)).sum(axis=0)
    lengths = np.sqrt(np.maximum(square, 0)) / ridge  # |S'^-1 z|

    def one_sided(model: Rows, probe: Rows) -> Floats:
        score = weighted[model, probe] - weighted[model, model] / 2
        ratio: Floats = np.divide(score, lengths[model], out=np.zeros_like(score), where=lengths[model] > 0)
        return ratio

    both: Floats = (one_sided(one, other) + one_sided(other, one)) / 2
    return both


class PairSums:
    """Sums over coordinates for many pairs of videos, which can be fed block by block.

    Parameters
    ----------
    norms, totals : ndarray, (V,), float64
        L2 norm and sum of each video's whole feature vector.
    first, second : ndarray, (P,), int64
        The two videos of each pair.
    eps : float
        Added inside the logarithms of measure 10.
    jobs : int
        Threads.

    Examples
    --------
    >>> features = np.arange(1.0, 13.0).reshape(2, 6)
    >>> sums = PairSums(*norms_and_totals(features), np.array([0]), np.array([1]))
    >>> sums.add(features[:, :4])
    >>> sums.add(features[:, 4:])
    >>> sums.measures()[0, [0, 6]].tolist()
    [217.0, 36.0]
    """

    def __init__(
        self,
        norms: Floats,
        totals: Floats,
        first: Rows,
        second: Rows,
        *,
        eps: float = EvalOptions.eps,
        jobs: int = DEFAULT_JOBS,
    ) -> None:
        self.norms, self.totals, self.eps, self.jobs = norms, totals, eps, jobs
        # Always the same way round, and pairs of one video together while its row is in the cache.
        low, high = np.minimum(first, second), np.maximum(first, second)
        self._order = np.lexsort((high, low))
        self.first, self.second = low[self._order], high[self._order]
        self._sums = np.zeros((len(first), NUM_SUMS))

    def add(self, block: NDArray[np.floating]) -> None:
        """Add some coordinates.

        Parameters
        ----------
        block : ndarray, (V, W), float, not negative
            W coordinates of all videos; each coordinate is added once, in whatever blocks.
        """
        block = _as_float(block)
        tables = np.empty((4, len(block), BLOCK))
        with ThreadPoolExecutor(self.jobs) as pool:
            for start in range(0, block.shape[1], BLOCK):
                part = tables[:, :, : min(BLOCK, block.shape[1] - start)]
                list(pool.map(partial(self._prepare, block, start, part), _shares(len(block), self.jobs)))
                list(pool.map(partial(self._add, part), _shares(len(self.first), self.jobs)))

    def _prepare(self, block: NDArray[np.floating], start: int, tables: Floats, rows: slice) -> None:
        x, root, unit, log = tables[:, rows]
        _tabulate(block[rows], start, self.norms[rows], self.eps, x, root, unit, log)

    def _add(self, tables: Floats, pairs: slice) -> None:
        x, root, unit, log = tables
        _add_pairs(x, root, unit, log, self.first[pairs], self.second[pairs], self._sums[pairs])

    def measures(self) -> Floats:
        """The 12 measures of each pair, from the sums so far, (P, 12) float64."""
        dot, roots, harmonic, chi2, l1, hellinger, unit_l2, jeffreys, ratio, least = self._sums.T
        norms = self.norms[self.first] * self.norms[self.second]
        # sum(u) = sum(x) / |x|
        totals = self.totals[self.first] * self.totals[self.second]
        columns = (
            dot,
            np.sqrt(dot),
            np.sqrt(roots),
            np.sqrt(harmonic),
            _quotient(dot, norms),
            np.sqrt(chi2),
            l1,
            np.sqrt(hellinger),
            np.sqrt(unit_l2),
            jeffreys / 2,
            ratio,
            _quotient(least * norms, totals),
        )
        measures = np.empty((len(self._order), len(columns)))
        measures[self._order] = np.stack(columns, axis=1)
        return measures


def _largest_eigenvalue(matrix: Floats) -> float:
    """Of a matrix without negative eigenvalues, whose rows may sum to 0."""
    if not matrix.any() or len(matrix) < 3:  # too small for Lanczos iterations
        return float(max(np.linalg.eigvalsh(matrix)[-1], 0))
    start = np.arange(1.0, len(matrix) + 1)  # the same each time, and not the constant vector, which gives 0
    return float(scipy.sparse.linalg.eigsh(matrix, k=1, v0=start, return_eigenvectors=False)[0])


def _quotient(above: Floats, below: Floats) -> Floats:
    quotient: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient


def _shares(count: int, jobs: int) -> Iterator[slice]:
    """Equal shares of so many rows, one a thread."""
    for start, stop in pairwise(np.linspace(0, count, jobs + 1).astype(int)):
        yield slice(start, stop)


def _as_float(features: NDArray[np.floating]) -> NDArray[np.floating]:
    """As float32 or float64 with rows in one piece, which the compiled loops are made for."""
    kept = features.dtype in (np.float32, np.float64)
    return np.ascontiguousarray(features, features.dtype if kept else np.float64)


# Sums may be taken in any order, so that they run on vector units. No fused multiplications: x*y - y*x must be 0.
@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def _add_up(features, totals, squares):  # type: ignore[no-untyped-def]
    """Sum and sum of squares of each row."""
    for row in range(len(features)):
        total = square = 0.0
        for value in features[row]:
            x = np.float64(value)
            total += x
            square += x * x
        totals[row], squares[row] = total, square


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _tabulate(block, start, norms, eps, xs, roots, units, logs):  # type: ignore[no-untyped-def]
    """All that depends on one video alone: x, sqrt(x), u = x / norm and log(u + eps).

    The logarithm is written out, because that of the C library takes one number at a time. With u + eps = m 2^k and m
    between sqrt(1/2) and sqrt(2) it is k log 2 + 2 artanh((m - 1) / (m + 1)), summed to full precision.
    """
    width = xs.shape[1]
    mantissas, powers = np.empty(width), np.empty(width)
    mantissa_bits, power_bits = mantissas.view(np.uint64), powers.view(np.uint64)
    for row in range(len(block)):
        values, x, root, unit, log = block[row, start : start + width], xs[row], roots[row], units[row], logs[row]
        norm = norms[row] if norms[row] > 0.0 else 1.0
        for k in range(width):
            x[k] = values[k]
            root[k] = np.sqrt(x[k])
            unit[k] = x[k] / norm
            mantissas[k] = unit[k] + eps
        for k in range(width):
            power = (mantissa_bits[k] + TO_ROOT_HALF) >> SHIFT  # 1023 too large, so that it is never negative
            mantissa_bits[k] -= (power << SHIFT) - ONE_BITS
            power_bits[k] = power + MAGIC_BITS  # MAGIC + power, when read as float64
        for k in range(width):
            s = (mantissas[k] - 1.0) / (mantissas[k] + 1.0)
            z = s * s
            low = 1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11))))
            high = 1 / 13 + z * (1 / 15 + z * (1 / 17 + z * (1 / 19)))
            series = z * (low + z * z * z * z * z * high)
            power_of_two = powers[k] - (MAGIC + 1023.0)
            log[k] = power_of_two * LOG_2_HIGH + (2.0 * s + (2.0 * s * series + power_of_two * LOG_2_LOW))


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _add_pairs(x, root, unit, log, first, second, sums):  # type: ignore[no-untyped-def]
    """Add the sums of each pair over the coordinates of a block. Short loops, because long ones are not vectorised."""
    for pair in range(len(first)):
        x1, x2 = x[first[pair]], x[second[pair]]
        r1, r2 = root[first[pair]], root[second[pair]]
        u1, u2 = unit[first[pair]], unit[second[pair]]
        l1, l2 = log[first[pair]], log[second[pair]]
        dot = roots = l1norm = hellinger = 0.0
        for k in range(len(x1)):
            dot += x1[k] * x2[k]
            roots += r1[k] * r2[k]
            l1norm += abs(x1[k] - x2[k])
            hellinger += (r1[k] - r2[k]) * (r1[k] - r2[k])
        harmonic = chi2 = 0.0
        for k in range(len(x1)):
            both = x1[k] + x2[k]
            inverse = 1.0 / (both if both > 0.0 else 1.0)
            harmonic += x1[k] * x2[k] * inverse
            chi2 += (x1[k] - x2[k]) * (x1[k] - x2[k]) * inverse
        unit_l2 = jeffreys = least = 0.0
        for k in range(len(x1)):
            unit_l2 += (u1[k] - u2[k]) * (u1[k] - u2[k])
            jeffreys += (u1[k] - u2[k]) * (l1[k] - l2[k])
            least += u1[k] if u1[k] < u2[k] else u2[k]
        ratio = 0.0
        for k in range(len(x1)):
            both = u1[k] + u2[k]
            largest = u1[k] if u1[k] > u2[k] else u2[k]
            ratio += np.sqrt(largest / (both if both > 0.0 else 1.0))
        row = sums[pair]
        row[0] += dot
        row[1] += roots
        row[2] += harmonic
        row[3] += chi2
        row[4] += l1norm
        row[5] += hellinger
        row[6] += unit_l2
        row[7] += jeffreys
        row[8] += ratio
        row[9] += least
