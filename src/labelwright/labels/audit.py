"""Labels and images that deserve a look: labels that are probably wrong, copies, classes that look like one, outliers.

Pure functions of features, labels and small grey pictures. No images x images table is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.chunks import evenly_spread, slices_of
from labelwright.labels.kmeans import assign, lloyd
from labelwright.train.convex import Problem, solve
from labelwright.train.cross_validation import PENALTIES, TRIED_GRADIENT, cross_validate, folds_of
from labelwright.train.scaling import scaled

N_NEIGHBOURS = 10
BLOCK_NUMBERS = 1 << 24  # similarities held at a time: 64 MiB of float32
ALL_PAIRS_ROWS = 16_384  # up to so many every pair is compared; of more, rows of the same and of nearby cells
CELLS_LOOKED_AT = 8
ROWS_THAT_MAKE_CELLS = 20_000
WEIGHED_ROWS = 20_000  # labelled rows by which head and neighbours are weighed
NOISE_ROWS, NOISE_SQUARE = (25.0, 100.0), 1500.0
"""Rows by which the noise of a class is taken to be even before its own n are looked at: the last over n, within the
two others; chosen on CIFAR-10 and GTSRB, 3 to 800 labels a class, right ones and with 10 or 20% wrong, evenly or one
way."""
PENALTY = 100.0  # of heads that judge labels; chosen on CIFAR-10 and GTSRB, where `labelwright audit` tries several
N_ROUNDS, N_NOISE_STEPS = 5, 10  # of weights and noise in turn; of the noise in a round
FIRST_NOISE = 0.1  # share of wrong labels that the estimate starts from
SAME_PICTURE = 0.95  # agreement of whole pictures from which on they are taken for one
SAME_CROP = 0.97  # the same where one of many cuts of a picture fits
USUAL_DISTANCE = 0.25  # 1 - cosine from a small grey picture to the fifth nearest; the nearer, as of digits, the better
# copies have to agree
WORTH_CUTTING = 0.3  # agreement of whole pictures below which no cut is tried
CUTS = (0.95, 0.9)  # sides of these cuts, as shares of the picture's
LIKE_ONE = 0.75  # share of a class's own probability that rows of another get, both ways
LEAST_ALIKE = 10  # judged rows of a class from which that says something
LEAST_OF_BOTH = 0.75  # probability of either class that rows of the one and of the other get, as means
DARK_GREY = 40  # of 255: nearly all of a dark image is below
BLANK_SPREAD = 2.0  # of 255: standard deviation of an image that shows nothing
FAR_OUT = 3.0  # interquartile ranges beyond the quartiles


@dataclass(frozen=True)
class Neighbours:
    """The nearest other rows of each of N rows."""

    rows: Tensor  # [N, K] int64, nearest first; -1 where fewer were compared
    sims: Tensor  # [N, K] float32 cosine similarity, -1 to 1; -1 there


def nearest(z: Tensor, *, k: int) -> Neighbours:
    """The k most similar other rows: of all up to `ALL_PAIRS_ROWS` rows, else of cells of rows around k-means centres.

    With cells a row is compared with those whose cell is one of the `CELLS_LOOKED_AT` nearest to it, so that equal rows
    always meet and nearly all near ones do; time and memory grow as N^1.5, not N^2.

    Args:
      z: [N, D] float32, unit norm.   k: >= 1.

    Source: inverted files, Jegou et al. 2011 (TPAMI 33).

    Example:
      >>> nearest(F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])), k=1).rows.tolist()
      [[1], [0], [1]]
    """
    n, k = len(z), max(1, min(k, len(z) - 1))
    found = Neighbours(torch.full((n, k), -1), torch.full((n, k), -1.0))
    every = torch.arange(n)
    if n < 2:
        return found
    if n <= ALL_PAIRS_ROWS:
        _compare(found, z, every, every)
        return found
    seen = evenly_spread(z, ROWS_THAT_MAKE_CELLS)
    unknown = torch.full((len(seen),), -1)
    centres = lloyd(seen, unknown, evenly_spread(seen, round(n**0.5)), n_iter=3).centroids
    own, _ = assign(z, torch.full((n,), -1), centres)
    half, wanted = 0.5 * centres.square().sum(1), min(CELLS_LOOKED_AT, len(centres))
    looked = torch.cat([(z[s] @ centres.T - half).topk(wanted, 1).indices for s in slices_of(n, len(centres))])
    looked[:, -1] = torch.where((looked == own[:, None]).any(1), looked[:, -1], own)
    order, places = looked.flatten().sort()
    cells, lengths = torch.unique_consecutive(order, return_counts=True)
    for cell, at in zip(cells.tolist(), torch.split(places, lengths.tolist()), strict=True):
        members = (own == cell).nonzero().flatten()
        if len(members):
            _compare(found, z, at // wanted, members)
    return found


def _compare(found: Neighbours, z: Tensor, asked: Tensor, members: Tensor) -> None:
    """Put the nearest of ``members`` [m] into what was found of ``asked`` [n], in place."""
    k, others = found.rows.shape[1], z[members]
    for some in torch.split(asked, max(1, BLOCK_NUMBERS // len(members))):
        sims = z[some] @ others.T
        sims[some[:, None] == members] = -2.0  # itself
        new, at = sims.topk(min(k, len(members)), 1)
        sims = torch.cat([found.sims[some], new.clamp(-1, 1)], 1)
        rows = torch.cat([found.rows[some], torch.where(new > -2, members[at], -1)], 1)
        # Of equally similar rows the first; where there was none before, any row comes first.
        best = torch.where(rows >= 0, sims, -2.0).topk(k, 1).indices
        found.sims[some], found.rows[some] = sims.gather(1, best), rows.gather(1, best)


# ---- labels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What the other images say of the labels of N rows."""

    # [N] float32, estimated chance that the label given is right; NaN of rows without a label and of those whose class
    # has no other labelled row (or group) to learn from
    score: Tensor
    suggested: Tensor  # [N] int64, the most probable other class; -1 where there is no score
    probability: Tensor  # [N] float32 of that class; NaN where there is no score
    wrong_frac: float  # estimated share of wrong labels among those that were judged, 0 to 1
    alike: Tensor  # [C, C] float32, see `alike_of`
    agreement: float = 1.0  # share of the judged rows whose label is what the others alone say, 0 to 1

    @property
    def is_suspected(self) -> Tensor:
        """[N] bool: another class is more probable than the label given."""
        return self.probability > self.score


def judge_labels(
    feats: Tensor,
    labels: Tensor,
    neighbours: Neighbours,
    *,
    n_classes: int,
    groups: Tensor | None = None,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> Judged | None:
    """How probable each label is, by a linear head that did not see it, the labels of its neighbours, and the noise.

    1. Two opinions on each row: a convex head on the other folds, and the shares of the nearest rows' labels.
    2. p(true c | features) = softmax of the weighted sum of their logs, p(given y | true c) = T[c, y]. The two weights
       and T are those under which the given labels are most likely, found in turn; T by expectation-maximisation. T
       starts, and with few rows stays, even.
    3. The score is p(true = given | features, given), by Bayes' rule.

    Args:
      feats: [N, D] float.   labels: [N] int64, -1 = unknown.   neighbours: of the same rows.   n_classes: C.
      groups: [N] int, rows of one group fall into one fold; or None.   seed: of the folds.
      penalties: to be tried for the head, strongest first.

    Returns: None where fewer than two classes have two labelled rows, all rows are one group, or each class is one.

    Source: out-of-sample probabilities and class-conditional noise as in Northcutt et al. 2021 (arXiv 1911.00068);
      differs: the noise is estimated by Dawid and Skene's 1979 (JRSS C 28) iteration, not by counts over thresholds.

    Example: eight of one kind on either side, one of them with the label of the others.
      >>> z = torch.cat([torch.eye(2)[[0] * 8 + [1] * 8], torch.linspace(0, 0.1, 16)[:, None]], 1)
      >>> labels = torch.tensor([0] * 7 + [1] * 9)
      >>> judged = judge_labels(z, labels, nearest(F.normalize(z), k=5), n_classes=2)
      >>> int(judged.score.argmin()), int(judged.suggested[7])
      (7, 0)
    """
    known = (labels >= 0).nonzero().flatten()
    y, of = labels[known], None if groups is None else groups[known]
    rows, fold = folds_of(y, of, seed=seed, limit=len(y))
    if not len(rows):
        return None
    z = scaled(feats[known]).z
    log_head, is_scored = _left_out(z, y, of, fold, n_classes=n_classes, seed=seed, penalties=penalties)
    if not is_scored.any():
        return None
    prior = torch.bincount(y, minlength=n_classes).float() / len(y)
    beside = torch.where(neighbours.rows[known] >= 0, labels[neighbours.rows[known]], -1)  # [n, K]
    votes = torch.zeros(len(y), n_classes)
    for column in beside.T:
        votes[(column >= 0).nonzero().flatten(), column[column >= 0]] += 1
    log_votes = ((votes + prior) / (1 + votes.sum(1, keepdim=True))).clamp(min=1e-9).log()
    parts, seen = torch.stack([log_head, log_votes]), evenly_spread(is_scored.nonzero().flatten(), WEIGHED_ROWS)
    weights, noise = believed(parts[:, seen], y[seen], n_rounds=N_ROUNDS)
    probs = (weights @ parts.flatten(1)).view(parts.shape[1:]).softmax(1)
    q = probs * noise.T[y]
    q = q / q.sum(1, keepdim=True)
    own = q.gather(1, y[:, None])[:, 0]
    other, suggested = q.scatter(1, y[:, None], -1.0).max(1)
    none = torch.full((len(labels),), torch.nan)
    at = known[is_scored]
    return Judged(
        none.index_put((at,), own[is_scored]),
        torch.full((len(labels),), -1).index_put((at,), suggested[is_scored]),
        none.index_put((at,), other[is_scored]),
        float(1 - own[is_scored].mean()),
        alike_of(probs[is_scored], y[is_scored]),
        float((probs.argmax(1) == y)[is_scored].float().mean()),
    )


def _left_out(
    z: Tensor,
    y: Tensor,
    groups: Tensor | None,
    fold: Tensor,
    *,
    n_classes: int,
    seed: int,
    penalties: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n, C] by heads that did not see a row's fold; for which rows [n] one could be learned."""
    tried, tried_fold = folds_of(y, groups, seed=seed)
    found = cross_validate(
        z, y, lambda counts: Problem(), n_classes=n_classes, rows=tried, fold=tried_fold, penalties=penalties
    )
    log_probs, is_scored = torch.empty(len(y), n_classes), torch.zeros(len(y), dtype=torch.bool)
    for k in range(int(fold.max()) + 1):
        seen, out = (fold != k).nonzero().flatten(), (fold == k).nonzero().flatten()
        is_scored[out] = torch.bincount(y[seen], minlength=n_classes)[y[out]] > 0
        if len(tried) == len(y):  # the same folds, of which the heads have answered already
            log_probs[out] = found.logits[out].log_softmax(1)
            continue
        head = solve(
            z[seen],
            y[seen],
            Problem(),
            n_classes=n_classes,
            penalty=found.penalty * len(seen) / len(y),
            start=found.head,
            least_gradient=TRIED_GRADIENT,
        )
        log_probs[out] = head(z[out]).log_softmax(1)
    return log_probs, is_scored


def believed(parts: Tensor, y: Tensor, *, n_rounds: int) -> tuple[Tensor, Tensor]:
    """Weights [P] of log-probabilities [P, n, C], and the noise [C, C], under which labels y [n] are most likely.

    Example: certain of four rows, and one of them has the other label.
      >>> parts = torch.tensor([[[0.0, -9.0], [0.0, -9.0], [-9.0, 0.0], [-9.0, 0.0]]])
      >>> weights, noise = believed(parts, torch.tensor([0, 0, 1, 0]), n_rounds=2)
      >>> [round(float(x), 1) for x in noise.sum(1)], bool(noise.diagonal().min() > 0.5)
      ([1.0, 1.0], True)
    """
    n_classes = parts.shape[2]
    weights = torch.full((len(parts),), 1 / len(parts))
    noise = _even(FIRST_NOISE, n_classes)
    for _ in range(n_rounds):
        weights = _likeliest(weights, parts, noise.T.contiguous().log(), y)
        probs = (weights @ parts.flatten(1)).view(parts.shape[1:]).softmax(1)
        for _ in range(N_NOISE_STEPS):
            of_given, counts = noise.T.contiguous(), torch.zeros_like(noise)
            for some in slices_of(len(y), n_classes):
                q = probs[some] * of_given[y[some]]
                counts.index_add_(0, y[some], q / q.sum(1, keepdim=True))
            noise = counts.T  # true x given
            even_rows = (NOISE_SQUARE / noise.sum(1, keepdim=True).clamp(min=1)).clamp(*NOISE_ROWS)
            noise = noise + even_rows * _even(float(1 - noise.diagonal().sum() / noise.sum()), n_classes)
            noise = noise / noise.sum(1, keepdim=True)
    return weights, noise


def _even(rate: float, n_classes: int) -> Tensor:
    """[C, C] of wrong labels that are all as frequent."""
    return torch.full((n_classes, n_classes), rate / (n_classes - 1)).fill_diagonal_(1 - rate)


def _likeliest(weights: Tensor, parts: Tensor, log_given: Tensor, y: Tensor) -> Tensor:
    """Likeliest weights [P], from ``weights`` on; log_given [C, C]: log p(given | true), a row per given label."""
    from scipy.optimize import minimize

    n_classes = parts.shape[2]

    def loss_of(at: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        x, loss, gradient = torch.from_numpy(at).float(), 0.0, np.zeros(len(at))
        for some in slices_of(len(y), n_classes):
            own = parts[:, some].flatten(1)
            log_probs = (x @ own).view(-1, n_classes).log_softmax(1)
            both = log_probs + log_given[y[some]]
            total = both.logsumexp(1, keepdim=True)
            surer = both.sub_(total).exp_() - log_probs.exp_()  # of the true class, once the given label is known
            loss -= float(total.sum()) / len(y)
            gradient -= (own @ surer.flatten()).double().numpy() / len(y)
        return loss, gradient

    found = minimize(loss_of, weights.double().numpy(), jac=True, method="BFGS", options={"maxiter": 20})
    return torch.from_numpy(found.x).float()


def alike_of(probs: Tensor, y: Tensor) -> Tensor:
    """How alike classes are [C, C]: mean probability of class j over rows of class i, over that of rows of class j.

    It is 0 where that would say little: of classes of which one has fewer than `LEAST_ALIKE` rows, and where rows of
    the two get less than `LEAST_OF_BOTH` of their probability for them: weak features mistake them for others, too.

    Args: probs [n, C] float, by classifiers that did not see the row; y [n] int64.

    Example:
      >>> y = torch.arange(2).repeat_interleave(10)
      >>> alike_of(torch.tensor([[0.8, 0.2], [0.4, 0.5]])[y], y)
      tensor([[1.0000, 0.4000],
              [0.5000, 1.0000]])
    """
    n_classes = probs.shape[1]
    counts = torch.bincount(y, minlength=n_classes)
    mean = torch.zeros(n_classes, n_classes).index_add_(0, y, probs) / counts.clamp(min=1)[:, None]
    few, both = counts < LEAST_ALIKE, mean + mean.diagonal()[:, None]
    unsure = few | few[:, None] | (torch.minimum(both, both.T) < LEAST_OF_BOTH)
    return (mean / mean.diagonal().clamp(min=1e-9)).masked_fill(unsure, 0.0).fill_diagonal_(1.0)


def like_one(alike: Tensor) -> list[tuple[int, int, float]]:
    """Pairs of classes that the images do not tell apart: (i, j, how much alike both ways), the most alike first.

    Args:
      alike: [C, C] of `Judged`; 1 both ways = not distinguishable at all.

    Example:
      >>> like_one(torch.tensor([[1.0, 0.9, 0.1], [0.8, 1.0, 0.0], [0.6, 0.0, 1.0]]))
      [(0, 1, 0.8)]
    """
    both = torch.minimum(alike, alike.T).triu(1)
    pairs = [(i, j, round(float(both[i, j]), 3)) for i, j in (both >= LIKE_ONE).nonzero().tolist()]
    return sorted(pairs, key=lambda pair: -pair[2])


def named_pairs(alike: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """`like_one` as it stands in summaries.

    Example:
      >>> named_pairs(torch.ones(2, 2), ("cat", "kitten"))
      [{'classes': ['cat', 'kitten'], 'alike': 1.0}]
    """
    return [{"classes": [class_names[i], class_names[j]], "alike": a} for i, j, a in like_one(alike)]


# ---- images ---------------------------------------------------------------------------------------------------------


def near_pairs(
    thumbs: npt.NDArray[np.uint8], candidates: list[Neighbours], *, cuts: bool = True
) -> tuple[Tensor, Tensor]:
    """Which candidate pairs show one picture: re-saved, resized, or cropped by a twentieth of its sides.

    Two pictures agree by Lin's concordance of their grey values at 16 px, which asks for the same brightness and
    contrast besides correlation; a cut of either may take its place.

    Args:
      thumbs: [N, 32, 32] uint8, see data.looks.   candidates: neighbours of each row, first those in `grey_feats`.
      cuts: whether crops are looked for, which takes most of the time.

    Returns: rows [P] and rows [P] int64, the first smaller than the second.

    Source: concordance correlation, Lin 1989 (Biometrics 45), Eq. (1).

    Example: a picture and the same a little brighter; another one.
      >>> one = np.random.default_rng(0).integers(0, 250, (32, 32))
      >>> thumbs = np.stack([one, one + 2, one.T]).astype(np.uint8)
      >>> all_of_them = Neighbours(torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.zeros(3, 2))
      >>> [rows.tolist() for rows in near_pairs(thumbs, [all_of_them])]
      [[0], [1]]
    """
    n = len(thumbs)
    keys = [torch.zeros(0, dtype=torch.int64)]
    for found in candidates:
        first = torch.arange(n)[:, None].expand_as(found.rows)[found.rows >= 0]
        second = found.rows[found.rows >= 0]
        keys.append(torch.minimum(first, second) * n + torch.maximum(first, second))
    unique = torch.unique(torch.cat(keys))
    is_same = torch.zeros(len(unique), dtype=torch.bool)
    pictures = torch.from_numpy(thumbs)
    strictness = 1.0
    if n > 2 * candidates[0].rows.shape[1]:
        strictness = min(1.0, float((1 - candidates[0].sims[:, -1]).median()) / USUAL_DISTANCE)
    same_picture, same_crop = 1 - (1 - SAME_PICTURE) * strictness, 1 - (1 - SAME_CROP) * strictness
    for some in torch.split(torch.arange(len(unique)), 8192):
        a, b = pictures[unique[some] // n], pictures[unique[some] % n]
        whole = _agreement(_seen(a), _seen(b))
        is_same[some] = whole >= same_picture
        if not cuts:
            continue
        close = ((whole < same_picture) & (whole > WORTH_CUTTING)).nonzero().flatten()
        a, b = a[close], b[close]
        best = torch.zeros(len(close))
        for cut, x, y in [(cut, *sides) for cut in _cuts() for sides in ((a, b), (b, a))]:
            best = torch.maximum(best, _agreement(_seen(x, *cut), _seen(y)))
        is_same[some[close]] = best >= same_crop
    return unique[is_same] // n, unique[is_same] % n


def _cuts() -> list[tuple[float, float, float]]:
    """Side of each cut as a share of the picture's, and its place across and down, -1 to 1."""
    return [(side, x, y) for side in CUTS for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)]


def _seen(pictures: Tensor, side: float = 1.0, x: float = 0.0, y: float = 0.0) -> Tensor:
    """[n, 16 * 16] float32 of a cut of pictures [n, 32, 32] uint8."""
    grey = pictures[:, None].float()
    if side < 1:
        place = torch.tensor([[[side, 0, x * (1 - side)], [0, side, y * (1 - side)]]])
        grid = F.affine_grid(place, [1, 1, *grey.shape[2:]], align_corners=False)
        grey = F.grid_sample(grey, grid.expand(len(grey), -1, -1, -1), padding_mode="border", align_corners=False)
    return F.avg_pool2d(grey, 2).flatten(1)


def _agreement(a: Tensor, b: Tensor) -> Tensor:
    """Concordance [n] of rows [n, D], -1 to 1."""
    mean_a, mean_b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    off_a, off_b = a - mean_a, b - mean_b
    spread = (off_a.square() + off_b.square()).mean(1) + (mean_a - mean_b).square()[:, 0]
    return 2 * (off_a * off_b).mean(1) / spread.clamp(min=1e-3)


def grey_feats(thumbs: npt.NDArray[np.uint8]) -> Tensor:
    """Small grey pictures as features: unit [N, 256] float32, the mean of each taken off; 0 where it is all one grey.

    Args:
      thumbs: [N, 32, 32] uint8.

    Example:
      >>> grey_feats(np.zeros((2, 32, 32), np.uint8)).abs().sum().item()
      0.0
    """
    seen = torch.cat([_seen(torch.from_numpy(thumbs[some])) for some in slices_of(len(thumbs), 1024)])
    return F.normalize(seen - seen.mean(1, keepdim=True), dim=1)


def sharpness(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Root mean square of the Laplacian over the standard deviation, [N] float64: low where edges are soft.

    Args:
      thumbs: [N, 32, 32] uint8.

    Example: a sharp edge, and a slope.
      >>> edge = np.repeat([[0, 255]], 16, axis=1).repeat(32, axis=0)
      >>> slope = np.linspace(0, 255, 32).round()[None].repeat(32, axis=0)
      >>> sharp, soft = sharpness(np.stack([edge, slope]).astype(np.uint8))
      >>> bool(sharp > 10 * soft)
      True
    """
    grey = thumbs.astype(np.float32)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    edges = np.sqrt(np.square(around - 4 * inner).mean(axis=(1, 2)))
    return np.asarray((edges + 1e-3) / (grey.std(axis=(1, 2)) + 1e-3), dtype=np.float64)


def joined(n: int, first: Tensor, second: Tensor) -> npt.NDArray[np.int64]:
    """Groups of rows that pairs join: [n] int64, a number from 0 for rows with a partner, -1 for others.

    Example:
      >>> joined(5, torch.tensor([0, 2]), torch.tensor([2, 4])).tolist()
      [0, -1, 0, -1, 0]
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = coo_matrix((np.ones(len(first)), (first.numpy(), second.numpy())), shape=(n, n))
    _, group = connected_components(pairs, directed=False)
    sizes = np.bincount(group)
    number = np.where(sizes > 1, np.cumsum(sizes > 1) - 1, -1)
    return np.asarray(number[group], dtype=np.int64)


def far_out(values: npt.NDArray[np.floating], *, low: bool = False) -> npt.NDArray[np.bool_]:
    """Which values [N] lie beyond the upper quartile by three interquartile ranges; with ``low`` below the lower one.

    NaN is no value: it is not far out, and the others are judged without it.

    Source: Tukey 1977, Exploratory Data Analysis, "far out".

    Example:
      >>> far_out(np.array([1.0, 2, 3, 4, 5, 6, 7, 30])).nonzero()[0].tolist()
      [7]
    """
    signed = -values if low else values
    if np.isnan(signed).all():
        return np.zeros(len(signed), dtype=bool)
    quarter, three = np.nanquantile(signed, [0.25, 0.75])
    return np.asarray(signed > three + FAR_OUT * max(three - quarter, 1e-9), dtype=bool)
