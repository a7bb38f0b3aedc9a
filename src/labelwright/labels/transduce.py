"""Labels for a whole pool at once, from its features and the text features of its class names, without training.

`transclip` lets the pool itself say where its classes lie; `top_confident` and `fpl_pseudolabels` pick the few images
per class that a model is surest of. All three work through the pool in chunks: what they keep grows with the images
times a few classes (`transclip`) or not with the images at all (`top_confident`), never with images x classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from labelwright.errors import ConfigError
from labelwright.labels.chunks import evenly_spread, slices_of
from labelwright.labels.kmeans import assign, lloyd

KEY_BLOCK = 8192  # images that others are compared with at a time
EXACT_ROWS = 4096  # up to which every image is compared with every other
SEARCHED = 16  # times sqrt(N) images that an image is compared with above that
CLUSTER_SAMPLE, CLUSTER_STEPS = 32, 3  # images per cluster that k-means sees, and its updates
DENSE_NUMBERS = 1 << 24  # images x classes up to which assignments are multiplied as one dense table
KEPT_CLASSES = 16  # classes of one image whose probability is kept; exact when there are no more classes than that
N_NEIGHBOURS = 3  # per image; 0 leaves neighbours out
TEMPERATURE = 50.0  # divides the log-densities, which in D dimensions otherwise drown text and neighbours
LABELLED_MASS = 0.2  # of all labelled images against all unlabelled ones (gamma); of one at least that of another image
N_ITERATIONS = 10  # updates of the Gaussians
INNER_STEPS = 5  # updates of the assignments per update of the Gaussians
CONFIDENT = 8  # most confident images per class, whose mean starts its Gaussian (Sec. 3 of the paper)
VARIANCE_MIN = 1e-6
FIXED = 1e9  # lead of a known label over other classes, beyond what any number of neighbours can add


def transclip(
    feats: Tensor,
    text_feats: Tensor,
    *,
    logit_scale: float,
    labels: Tensor | None = None,
    lam: float = 1.0,
    anchor: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Label a pool by the Gaussians of its classes, by each image's neighbours and by the text, all at once.

    Minimises, over the assignments z_i (rows of probabilities), the means mu and the shared diagonal covariance,
    - sum_i z_i . log p_i / TEMPERATURE - 1/2 sum_ij w_ij z_i . z_j + sum_i z_i . (log z_i - lam log y_i),
    where p_i are the Gaussian densities, y_i the zero-shot probabilities and w_ij the cosine of nearest neighbours (the
    mean of both directions, zero elsewhere). With ``anchor`` the sum over the classes of anchor * KL(N(t, S) | N(mu,
    Sigma)) / TEMPERATURE is added, t the class texts and S how images spread around them by zero-shot probability: a
    class that no image shows stays with its text.

    Args:
      feats: [N, D] float16 to float32, unit norm.
      text_feats: [C, D] float, unit norm, on the same device.
      logit_scale: > 0, multiplies the cosines to text.
      labels: [N] int, -1 = unknown; known ones stay as they are and pull the Gaussians. None: all unknown.
      lam: >= 0, how strongly the text holds; the paper takes 1 without labels and 0.5 with a few.
      anchor: >= 0, how many images the text of a class counts for in its Gaussian; 0 is TransCLIP, StatA takes 1.

    Returns: labels [N] int64, the most probable class, a known label as it is; and weight [C, D] and bias [C] of a
      linear classifier: what text and Gaussians of one shared covariance say together, without neighbours.

    Source: Zanella et al. 2024 (arXiv 2406.01837), TransCLIP; the anchor Zanella et al. 2025 (arXiv 2501.03729), StatA.
    Differs: one covariance for all classes, also with an anchor; the log-densities are divided by 50 (a small
    CLIP on 25,000 images of CIFAR-10 and 19,319 of GTSRB: accuracy 0.655 and 0.520; undivided 0.623 and 0.448); of each
    image only 16 classes are kept, chosen anew at each update of the Gaussians (the same accuracy as with all 43).

    Cost: finding neighbours takes N^1.5 D multiplications, see `nearest_neighbours`; the rest N C D per iteration.

    Example: the text puts the fifth image into class 1, but it lies with the first four.
      >>> angles = torch.tensor([0.4, 0.5, 0.6, 0.7, 0.8, 1.3, 1.4, 1.5])
      >>> feats = torch.stack([angles.cos(), angles.sin()], dim=1)
      >>> (feats @ torch.eye(2)).argmax(dim=1).tolist()
      [0, 0, 0, 0, 1, 1, 1, 1]
      >>> transclip(feats, torch.eye(2), logit_scale=2.0)[0].tolist()
      [0, 0, 0, 0, 0, 1, 1, 1]
    """
    labels = torch.full((len(feats),), -1) if labels is None else labels
    labels = labels.to(feats.device, torch.int64)
    n_labelled = int((labels >= 0).sum())
    mass = max(1.0, LABELLED_MASS * (len(labels) - n_labelled) / max(n_labelled, 1))
    row_weights = torch.where(labels >= 0, mass, 1.0)
    text_weight = logit_scale * text_feats.float()
    graph = _graph(feats, N_NEIGHBOURS)
    classes, scores = _kept_scores(feats, labels, text_weight, torch.zeros_like(text_weight[:, 0]))
    probs = scores.softmax(dim=1)
    if anchor:
        means = text_feats.float()
        of_texts = variances = _spread(_moments(feats, classes, probs, row_weights, len(means)), means)
    else:
        means = _first_means(feats, labels, text_weight)
        variances = torch.full_like(means[0], 1 / feats.shape[1])

    def linear() -> tuple[Tensor, Tensor]:
        precision = 1 / (variances * TEMPERATURE)
        return lam * text_weight + means * precision, -0.5 * (means.square() * precision).sum(dim=1)

    for _ in range(N_ITERATIONS):
        kept, scores = _kept_scores(feats, labels, *linear())
        for _ in range(INNER_STEPS):
            probs = _smooth(kept, scores, classes, probs, graph, n_classes=len(text_feats))
            classes = kept
        sums, sizes, squares = _moments(feats, classes, probs, row_weights, len(means))
        if anchor:  # as many more images that lie around the texts
            text = text_feats.float()
            sums, sizes = sums + anchor * text, sizes + anchor
            squares = squares + anchor * (len(text) * of_texts + text.square().sum(dim=0))
        means, variances = _gaussians((sums, sizes, squares), means)
    best = probs.sort(dim=1, descending=True, stable=True).indices[:, :1]
    return classes.gather(1, best)[:, 0], *linear()


def nearest_neighbours(feats: Tensor, *, n_neighbours: int) -> tuple[Tensor, Tensor]:
    """The most similar other rows of each row: exact up to 4,096 rows, above among the clusters around its own.

    The sqrt(2 N) clusters are those of a few steps of k-means on a sample; a row is compared with the nearest ones that
    hold `SEARCHED` sqrt(N) rows together. No [N, N] matrix is made. Of the three nearest rows of 20,000 images
    of CIFAR-10 and of GTSRB, 95% and 99% are found.

    Args:
      feats: [N, D] float, unit norm.
      n_neighbours: >= 1; at most N - 1 are found.

    Returns: sims [N, K] float32 cosines, highest first, and rows [N, K] int64.

    Cost: N^1.5 D multiplications; the same where all rows are alike, N^2 D.

    Example:
      >>> sims, rows = nearest_neighbours(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), n_neighbours=1)
      >>> rows.flatten().tolist(), [round(v, 1) for v in sims.flatten().tolist()]
      ([2, 2, 1], [0.6, 0.8, 0.8])
    """
    n_rows, device = len(feats), feats.device
    n_neighbours = min(n_neighbours, n_rows - 1)
    if n_rows <= EXACT_ROWS:
        return _nearest(feats, n_rows, n_neighbours)
    n_clusters = round((2 * n_rows) ** 0.5)
    sample = evenly_spread(feats, CLUSTER_SAMPLE * n_clusters).float()
    unknown = torch.full((n_rows,), -1, device=device)
    first = evenly_spread(sample, n_clusters)
    centroids = lloyd(sample, unknown[: len(sample)], first, n_iter=CLUSTER_STEPS).centroids
    blocks = slices_of(n_rows, n_clusters, device)
    cluster = torch.cat([assign(feats[some].float(), unknown[some], centroids)[0] for some in blocks])
    members = cluster.argsort(stable=True)
    together = feats[members]  # a cluster's rows lie together: slices instead of single rows
    sizes = torch.bincount(cluster, minlength=n_clusters)
    ends = sizes.cumsum(0).tolist()
    parts = [slice(end - size, end) for end, size in zip(ends, sizes.tolist(), strict=True)]
    nearest = torch.cdist(centroids, centroids).fill_diagonal_(-1).argsort(dim=1, stable=True)  # its own first
    wanted = max(round(SEARCHED * n_rows**0.5), n_neighbours + 1)
    n_searched = ((sizes[nearest].cumsum(1) < wanted).sum(1) + 1).tolist()
    sims = torch.empty(n_rows, n_neighbours, device=device)
    rows = torch.empty(n_rows, n_neighbours, dtype=torch.int64, device=device)
    for own, others, n in zip(parts, nearest.tolist(), n_searched, strict=True):
        keys = [parts[c] for c in others[:n]]
        found = _nearest(torch.cat([together[part] for part in keys]), own.stop - own.start, n_neighbours)
        sims[members[own]] = found[0]
        rows[members[own]] = torch.cat([members[part] for part in keys])[found[1]]
    return sims, rows


def _nearest(keys: Tensor, n: int, n_neighbours: int) -> tuple[Tensor, Tensor]:
    """For each of the first ``n`` keys [M, D] the nearest others: sims [n, K] and places among the keys [n, K]."""
    sims = torch.full((n, n_neighbours), -torch.inf, device=keys.device)
    places = torch.zeros_like(sims, dtype=torch.int64)
    for some in slices_of(n, min(len(keys), KEY_BLOCK), keys.device):
        z = keys[some].float()
        for start in range(0, len(keys), KEY_BLOCK):
            block = z @ keys[start : start + KEY_BLOCK].float().T  # [B, keys]
            block.diagonal(some.start - start).fill_(-torch.inf)  # empty where these keys are not in the block
            top = block.topk(min(n_neighbours, block.shape[1]), dim=1)
            sims[some], order = torch.cat([sims[some], top.values], dim=1).topk(n_neighbours, dim=1)
            places[some] = torch.cat([places[some], top.indices + start], dim=1).gather(1, order)
    return sims, places


def _graph(feats: Tensor, n_neighbours: int) -> Tensor:
    """The affinity (W + W^T) / 2 as a sparse [N, N], W_ij = max(0, cosine) where j is among the neighbours of i."""
    sims, found = nearest_neighbours(feats, n_neighbours=n_neighbours)
    own = torch.arange(len(feats), device=feats.device)[:, None].expand_as(found)
    half = sims.clamp(min=0).flatten() / 2
    places = torch.stack([torch.cat([own, found]).flatten(), torch.cat([found, own]).flatten()])
    shape = (len(feats), len(feats))
    graph = torch.sparse_coo_tensor(places, half.repeat(2), shape, check_invariants=False).coalesce()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch calls the layout a beta, once
        return graph.to_sparse_csr()  # several times as fast to multiply with


def _first_means(feats: Tensor, labels: Tensor, text_weight: Tensor) -> Tensor:
    """Start of the means [C, D]: a class's labelled images, or where it has none its most confident ones."""
    n_classes, n_feats = text_weight.shape
    top = torch.empty(0, n_classes, device=feats.device)
    top_rows = torch.empty(0, n_classes, dtype=torch.int64, device=feats.device)
    sums, counts = torch.zeros_like(text_weight), torch.zeros_like(text_weight[:, 0])
    for some in slices_of(len(feats), max(n_classes, n_feats), feats.device):
        z = feats[some].float()
        best = log_odds(z @ text_weight.T).topk(min(CONFIDENT, len(z)), dim=0)
        both = torch.cat([top, best.values]), torch.cat([top_rows, best.indices + some.start])
        top, order = both[0].topk(min(CONFIDENT, len(both[0])), dim=0)
        top_rows = both[1].gather(0, order)
        is_known = labels[some] >= 0
        sums.index_add_(0, labels[some][is_known], z[is_known])
        counts.index_add_(0, labels[some][is_known], torch.ones_like(z[is_known, 0]))
    confident = torch.zeros_like(sums)
    for rows in top_rows:  # one row per class at a time: [C, D]
        confident += feats[rows].float() / len(top_rows)
    return torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], confident)


def _kept_scores(feats: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the KEPT_CLASSES best classes [N, K], in order if these are all, and their log-odds [N, K].

    A known label leads by FIXED.
    """
    n_classes = len(weight)
    n_kept = min(n_classes, KEPT_CLASSES)
    classes = torch.empty(len(feats), n_kept, dtype=torch.int64, device=feats.device)
    scores = torch.empty(len(feats), n_kept, device=feats.device)
    for some in slices_of(len(feats), max(weight.shape), feats.device):
        block = feats[some].float() @ weight.T + bias  # [B, C]
        known = (labels[some] >= 0).nonzero().squeeze(1)
        block[known] = -FIXED
        block[known, labels[some][known]] = 0
        if n_kept < n_classes:
            scores[some], classes[some] = block.topk(n_kept, dim=1)
        else:
            scores[some], classes[some] = block, torch.arange(n_classes, device=feats.device)
    return classes, scores


def _smooth(kept: Tensor, scores: Tensor, classes: Tensor, probs: Tensor, graph: Tensor, *, n_classes: int) -> Tensor:
    """One update of the assignments z on the kept classes [N, K], given the former z (classes, probs)."""
    if n_classes == kept.shape[1]:  # every class of every image, in order
        pull = scores + graph @ probs
        powers = (pull - pull.amax(dim=1, keepdim=True)).exp()  # torch's softmax takes 5 times as long on few columns
        return powers / powers.sum(dim=1, keepdim=True)
    if len(scores) * n_classes <= DENSE_NUMBERS:
        z = scores.new_zeros(len(scores), n_classes).scatter_(1, classes, probs)
        return (scores + (graph @ z).gather(1, kept)).softmax(dim=1)
    renewed = torch.empty_like(scores)
    offsets, neighbours, weights = graph.crow_indices(), graph.col_indices(), graph.values()
    n_pulls = -(-len(neighbours) // len(scores)) * classes.shape[1]  # numbers that reach an average image
    for some in slices_of(len(scores), max(n_classes, n_pulls), scores.device):
        at = slice(int(offsets[some.start]), int(offsets[some.stop]))
        to, n_rows = neighbours[at], some.stop - some.start
        own = torch.arange(n_rows, device=to.device).repeat_interleave(offsets[some.start : some.stop + 1].diff())
        pull = torch.zeros(n_rows, n_classes, device=scores.device)
        cells = own[:, None] * n_classes + classes[to]  # [edges, K]
        pull.view(-1).index_add_(0, cells.view(-1), (weights[at][:, None] * probs[to]).view(-1))
        renewed[some] = (scores[some] + pull.gather(1, kept[some])).softmax(dim=1)
    return renewed


def _moments(
    feats: Tensor, classes: Tensor, probs: Tensor, row_weights: Tensor, n_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the images assigned to each class their sum [C, D] and number [C], and of all images the squares [D]."""
    n_feats, device = feats.shape[1], feats.device
    sums, sizes = torch.zeros(n_classes, n_feats, device=device), torch.zeros(n_classes, device=device)
    squares = torch.zeros(n_feats, device=device)
    for some in slices_of(len(feats), max(n_classes, n_feats), feats.device):
        z = feats[some].float()
        assigned = torch.zeros(len(z), n_classes, device=feats.device)
        assigned.scatter_(1, classes[some], probs[some] * row_weights[some, None])
        sums += assigned.T @ z
        sizes += assigned.sum(dim=0)
        squares += row_weights[some] @ z.square()
    return sums, sizes, squares


def _gaussians(moments: tuple[Tensor, Tensor, Tensor], means: Tensor) -> tuple[Tensor, Tensor]:
    """Means [C, D] and shared variances [D] of what `_moments` counted; a class that has nothing stays put."""
    sums, sizes, _ = moments
    means = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1e-30)[:, None], means)
    return means, _spread(moments, means)


def _spread(moments: tuple[Tensor, Tensor, Tensor], means: Tensor) -> Tensor:
    """Variances [D] around means [C, D], shared by the classes, of what `_moments` counted."""
    sums, sizes, squares = (part.double() for part in moments)
    around = sizes[:, None] * means.double().square() - 2 * sums * means.double()
    return ((squares + around.sum(dim=0)) / sizes.sum()).clamp(min=VARIANCE_MIN).float()


def fpl_pseudolabels(
    chunks: Iterable[Tensor], text_feats: Tensor, *, logit_scale: float, k: int
) -> tuple[Tensor, Tensor]:
    """Pseudolabels for the images that zero-shot prediction is surest of, the same number per class.

    Args:
      chunks: [B, D] float blocks of the pool's features, unit norm, in order.
      text_feats: [C, D] float, unit norm, on the same device.
      logit_scale: > 0, multiplies the cosines.
      k: >= 1, images per class; see `top_confident`.

    Returns: rows [n] int64 and labels [n] int64, by class, most probable first.

    Source: Menghini et al. 2023 (arXiv 2306.01669), FPL; Huang et al. 2022 (arXiv 2204.03649), unsupervised prompts.

    Example:
      >>> feats = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
      >>> rows, labels = fpl_pseudolabels([feats[:2], feats[2:]], torch.eye(2), logit_scale=10.0, k=1)
      >>> rows.tolist(), labels.tolist()
      ([1, 3], [0, 1])
    """
    weight = logit_scale * text_feats.float()
    return top_confident((log_odds(chunk.float() @ weight.T) for chunk in chunks), k=k)


def log_odds(logits: Tensor) -> Tensor:
    """Log-odds log p / (1 - p) of the softmax p: ranks as p does, and still where p rounds to 1.

    Args:
      logits: [B, C] float.

    Returns: [B, C] float, any range; inf where there is one class only.

    Example: both probabilities are 1 in float32, and yet the second image is the surer one.
      >>> log_odds(torch.tensor([[40.0, 0.0], [50.0, 0.0]])).tolist()
      [[40.0, -40.0], [50.0, -50.0]]
    """
    log_probs = logits.log_softmax(dim=1)
    best, at = logits.max(dim=1, keepdim=True)
    rest = logits.scatter(1, at, -torch.inf)
    odds = log_probs - torch.log1p(-log_probs.exp().scatter(1, at, 0))
    return odds.scatter(1, at, best - rest.logsumexp(dim=1, keepdim=True))


def top_confident(chunks: Iterable[Tensor], *, k: int) -> tuple[Tensor, Tensor]:
    """The k most confident images of each class, no image under two classes.

    Images and classes are matched by falling confidence: the surest pair first, then the next whose image is still free
    and whose class has room. An image too weak for its best class so competes for its next. Classes get fewer than k
    only when there are fewer than k images per class in all.

    Args:
      chunks: one or more; [B, C] float scores of consecutive rows that compare across images and classes, such as
        `log_odds`; -inf = never.
      k: >= 1, images per class.

    Returns: rows [n] int64 positions in the stream and labels [n] int64, by class, most confident first.

    Raises: ConfigError: k < 1.

    Memory: the scores of the images held so far, k C x C, and of one chunk; nothing that grows with the pool.

    Example: image 0 is best for both classes; it goes to class 0, and class 1 takes its second.
      >>> scores = torch.tensor([[0.9, 0.8], [0.5, 0.4], [0.2, 0.7]])
      >>> rows, labels = top_confident([scores], k=1)
      >>> rows.tolist(), labels.tolist()
      ([0, 2], [0, 1])
    """
    if k < 1:
        raise ConfigError(f"k={k} leaves no image to a class", fix="give 1 or more images per class")
    held: tuple[Tensor, Tensor, Tensor] | None = None  # scores [n, C], labels [n], rows [n]: images that hold a place
    n_seen = 0
    for chunk in chunks:
        labels = torch.full((len(chunk),), -1, device=chunk.device)
        rows = torch.arange(n_seen, n_seen + len(chunk), device=chunk.device)
        n_seen += len(chunk)
        scores = chunk
        if held is not None:
            scores, labels, rows = torch.cat([held[0], chunk]), torch.cat([held[1], labels]), torch.cat([held[2], rows])
        places, labels = _match(scores, labels, k=k)
        held = scores[places], labels, rows[places]
    assert held is not None
    return held[2], held[1]


def _match(scores: Tensor, labels: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """Places [n] of the matching in ``scores`` [M, C], by class and falling score, and their labels [n].

    Images without a label ask the best class that would have them; a class with more than k keeps its best, and the
    others ask again. Labels held from earlier images stand until a better image comes: the result is the same in any
    order of asking.
    """
    n_classes = scores.shape[1]
    places, asking = (labels >= 0).nonzero().squeeze(1), (labels < 0).nonzero().squeeze(1)
    labels, cutoffs = labels[places], scores.new_full((n_classes,), -torch.inf)
    while True:
        own = scores[places, labels]
        order = own.argsort(descending=True, stable=True)
        order = order[labels[order].argsort(stable=True)]  # by class, then by falling score
        places, labels, own = places[order], labels[order], own[order]
        sizes = torch.bincount(labels, minlength=n_classes)
        rank = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[labels]
        is_last = rank == k - 1
        cutoffs[labels[is_last]] = own[is_last]  # of a full class: only a better image enters
        asking, places, labels = torch.cat([asking, places[rank >= k]]), places[rank < k], labels[rank < k]
        if len(asking) == 0:
            return places, labels
        offers = scores[asking]
        best, chosen = offers.masked_fill(offers <= cutoffs, -torch.inf).max(dim=1)
        has_place = best > -torch.inf
        places, labels = torch.cat([places, asking[has_place]]), torch.cat([labels, chosen[has_place]])
        asking = asking[:0]
