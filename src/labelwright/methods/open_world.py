"""What LPS and its baselines share: settings, the network, streams in proportion, what is expected of each class.

So that losses are compared and not schedules, all have one sampler, optimizer and schedule, one prior (even as
published, or the sizes of clusters where classes are uneven), and on frozen features one start, from semi-supervised
k-means. Several processes compute the losses over the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from labelwright.data.situation import LONG_TAILED_RATIO
from labelwright.encoders.layers import freeze_below
from labelwright.errors import ConfigError
from labelwright.labels.chunks import evenly_spread
from labelwright.train.plans import steps_for
from labelwright.train.processes import gather_queries
from labelwright.train.settings import Count, TrainSettings, require
from labelwright.types import Batch, BuildNet, EpochPlan, Passes, State, Stream, Task

STILL_FRAC = 0.005  # of the answers on unlabelled images, below which an epoch counts as having moved none
STILL_EPOCHS = 2  # such epochs in a row that end a training which starts close to its end
SAMPLE_ROWS = 16_384  # unlabelled images among which the balance of the predictions is found
EVEN_RATIO = LONG_TAILED_RATIO  # largest over smallest count of labelled images, from which classes are not even
EVEN_CLUSTERS = 5.0  # the same of clusters: of even classes they are uneven as well, up to 3.3 to 1 where we looked
BALANCE_ROUNDS = 50  # of rescaling, at most
BALANCED = 1e-3  # relative error of the shares at which it ends


@dataclass(frozen=True, kw_only=True)
class OpenWorldSettings(TrainSettings):
    """What all methods for classes that nobody named share."""

    epochs: int = 200  # passes over all images (paper: 200; 90 on ImageNet-100)
    batch_size: int = 512  # rows per step, labelled and unlabelled in the proportion of their counts
    lr: float = 0.1  # peak learning rate
    weight_decay: float = 5e-4  # of every trained parameter
    warmup_epochs: float = 0.0  # linear from 0 to lr
    prior: Literal["auto", "even"] = "auto"  # shares the classes are expected to have: even (paper), or see `prior_of`
    prior_shares: tuple[float, ...] | None = None  # the shares themselves, seen classes first, where they are known
    n_init: Count = 20  # starts of k-means, of which the tightest end is kept

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.prior_shares
        fine = shares is None or (len(shares) > 0 and all(p >= 0 for p in shares) and sum(shares) > 0)
        require(fine, "prior_shares", shares, "shares of 0 or more, one per class")


@dataclass(frozen=True, kw_only=True)
class TrainedSettings(OpenWorldSettings):
    """What those that train a network share."""

    train_layers: Literal["head", "last_stage", "all"] = "last_stage"  # what of a pretrained backbone learns


def n_seen(task: Task) -> int:
    """Classes that have a name; the outputs after them are clusters.

    Example:
      >>> n_seen(Task(torch.tensor([0, 1, -1]), ("cat", "dog"), n_novel=3))
      2
    """
    return len(task.class_names)


def check_task(cfg: OpenWorldSettings, task: Task, name: str) -> None:
    """Refuse what no method can sort: a named class without an image, nothing unlabelled, a prior that does not fit.

    Raises: ConfigError naming the class.

    Example:
      >>> check_task(OpenWorldSettings(), Task(torch.tensor([0, -1]), ("cat", "dog"), n_novel=3), "lps")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: no image is labelled 'dog', so nothing says which cluster it is
        fix: label an image of it, or leave its name out and count it among --novel
    """
    empty = [name for name, n in zip(task.class_names, task.counts.tolist(), strict=False) if n == 0]
    if empty:
        others = f" (nor {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise ConfigError(
            f"no image is labelled {empty[0]!r}{others}, so nothing says which cluster it is",
            fix="label an image of it, or leave its name out and count it among --novel",
        )
    if not (task.labels < 0).any():
        raise ConfigError(f"{name} finds classes in unlabelled images, and there are none", fix="add some, or use ce")
    if cfg.prior_shares is not None and len(cfg.prior_shares) != task.n_classes:
        raise ConfigError(
            f"prior_shares has {len(cfg.prior_shares)} shares for {task.n_classes} classes",
            fix="give one per class, the seen ones first and then one per novel class",
        )


def new_net(
    cfg: TrainedSettings, task: Task, build_net: BuildNet, *, head: Literal["linear", "cosine"] = "linear"
) -> nn.Module:
    """A classifier on the backbone, of which ``cfg.train_layers`` learn; all of it if it is not pretrained."""
    net = build_net(task.n_classes, head=head)
    if cfg.train_layers != "all" and build_net.is_pretrained and not build_net.is_frozen:
        freeze_below(net, cfg.train_layers)
    return net


def prior_of(cfg: OpenWorldSettings, task: Task, sizes: Tensor | None = None) -> Tensor:
    """[C] float32 shares that the classes are expected to have among all images, sum 1.

    Those that were given; else even, unless labelled counts are as uneven as in a long tail (`EVEN_RATIO`), or clusters
    more so (`EVEN_CLUSTERS`): then the sizes of the clusters say more, though k-means makes small classes larger.

    Args:
      sizes: [C] int images per cluster, or None: not looked at.

    Example:
      >>> task = Task(torch.tensor([0, 0, 0, 0, 1, -1, -1]), ("cat", "dog"), n_novel=1)
      >>> [round(v, 2) for v in prior_of(OpenWorldSettings(), task, torch.tensor([4, 1, 2])).tolist()]
      [0.57, 0.14, 0.29]
    """
    shares = torch.ones(task.n_classes)
    if cfg.prior_shares is not None:
        shares = torch.tensor(cfg.prior_shares)
    elif cfg.prior == "auto" and sizes is not None:
        counts, sizes = task.counts[: n_seen(task)], sizes.clamp(min=1)
        if counts.max() >= EVEN_RATIO * counts.min() or sizes.max() >= EVEN_CLUSTERS * sizes.min():
            shares = sizes.float()
    return (shares / shares.sum()).to(task.labels.device)


def expected_unlabelled(prior: Tensor, counts: Tensor, n_rows: int) -> Tensor:
    """Shares of the classes among the unlabelled images, if labelled and unlabelled ones together have the prior's.

    Args: prior [C], sums to 1; counts [C] of the labelled images; n_rows, labelled and unlabelled images.
    Returns: [C] float32, sums to 1; 0 for a class that has more labelled images than are expected.

    Example: 8 images, 4 of each class; two of the first class are labelled.
      >>> [round(v, 4) for v in expected_unlabelled(torch.tensor([0.5, 0.5]), torch.tensor([2, 0]), 8).tolist()]
      [0.3333, 0.6667]
    """
    left = (prior * n_rows - counts).clamp(min=0)
    return (left / left.sum().clamp(min=1e-12)).float()


def plan_of_both(
    cfg: OpenWorldSettings, task: Task, state: State, epoch: int, views: tuple[str, ...] = ("weak", "weak")
) -> EpochPlan:
    """Labelled and unlabelled images in every step, in the proportion of their counts."""
    labelled, unlabelled = ((task.labels >= 0), (task.labels < 0))
    rows = {"labelled": labelled.nonzero().flatten().cpu(), "unlabelled": unlabelled.nonzero().flatten().cpu()}
    n_rows, n_labelled = len(task.labels), len(rows["labelled"])
    size = min(max(1, round(cfg.batch_size * n_labelled / n_rows)), max(1, cfg.batch_size - 1))
    sizes = {"labelled": size, "unlabelled": max(1, cfg.batch_size - size)}
    streams = {name: Stream(of, sizes[name], views) for name, of in rows.items()}
    return EpochPlan(streams, steps_for(n_rows, cfg.batch_size))


def rows_of_both(batches: Mapping[str, Batch]) -> tuple[list[Tensor], Tensor]:
    """Views [B, ...] of labelled and unlabelled rows in one, and their labels [B], of a step by `plan_of_both`."""
    parts = [batches["labelled"], batches["unlabelled"]]
    views = [torch.cat(each) for each in zip(*(part.views for part in parts), strict=True)]
    return views, torch.cat([part.labels for part in parts])


def gathered(views: Tensor) -> list[Tensor]:
    """[V, B / processes, D] -> V tensors [B, D] of the whole batch, with gradients of this process's rows.

    Example:
      >>> [view.tolist() for view in gathered(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]))]
      [[[1.0], [2.0]], [[3.0], [4.0]]]
    """
    n_views, _, width = views.shape
    return list(gather_queries(views.transpose(0, 1).flatten(1)).view(-1, n_views, width).unbind(1))


@torch.no_grad()
def unlabelled_logits(task: Task, passes: Passes) -> Tensor:
    """Logits [n, C] float32 of at most `SAMPLE_ROWS` unlabelled images, evenly spread over the table."""
    rows = (task.labels < 0).nonzero().flatten()
    return torch.cat([logits.float() for _, logits in passes("main", evenly_spread(rows, SAMPLE_ROWS).cpu())])


def balance(logits: Tensor, expected: Tensor, offset: Tensor | None = None) -> Tensor:
    """What to add to the logits for the mean prediction to be the expected one.

    Args:
      logits: [n, C] float.
      expected: [C] float >= 0, sums to 1; a class with an expected share of 0 is pushed out by 20 nats at most.
      offset: [C] to start from, or None.

    Returns: [C] float32, mean 0.

    Source: distribution alignment as in Berthelot et al. 2020 (arXiv 1911.09785), repeated until it holds.

    Example:
      >>> logits = torch.tensor([[2.0, 0.0], [2.0, 1.0], [0.5, 0.0], [0.0, 1.0]])
      >>> offset = balance(logits, torch.tensor([0.5, 0.5]))
      >>> [round(v, 3) for v in (logits + offset).softmax(1).mean(0).tolist()]
      [0.5, 0.5]
    """
    found = torch.zeros_like(expected) if offset is None else offset
    for _ in range(BALANCE_ROUNDS):
        mean = (logits + found).softmax(1).mean(0)
        if bool(((mean - expected).abs() < BALANCED * expected.clamp(min=1e-6)).all()):
            break
        found = found + (expected.clamp(min=1e-6) / mean.clamp(min=1e-6)).log()
        found = (found - found.mean()).clamp(-20, 20)
    return found


def pace(task: Task, state: State, passes: Passes) -> tuple[Tensor, dict[str, Any]]:
    """`unlabelled_logits`, and their `pace_logs`."""
    expected = expected_unlabelled(state.memory["prior"], task.counts, len(task.labels))
    logits = unlabelled_logits(task, passes)
    return logits, pace_logs(logits, expected, n_seen(task))


def moved_answers(memory: Mapping[str, Any], logits: Tensor) -> dict[str, Any]:
    """Memory of the answers on unlabelled images, and of the epochs in which next to none of them moved.

    The memory has "answers" [n] and "n_still" of the last look, if any; logits [n, C] are of the same images.

    Example:
      >>> memory = moved_answers({}, torch.eye(2))
      >>> [moved_answers(memory, logits)["n_still"] for logits in (torch.eye(2), -torch.eye(2))]
      [1, 0]
    """
    answers = logits.argmax(1)
    is_still = "answers" in memory and bool((answers != memory["answers"]).float().mean() < STILL_FRAC)
    return {"answers": answers, "n_still": memory.get("n_still", 0) + 1 if is_still else 0}


def pace_logs(logits: Tensor, expected: Tensor, n_named: int) -> dict[str, Any]:
    """How far seen and novel classes are, as far as unlabelled images tell: JSON-ready numbers.

    Args:
      logits: [n, C] of unlabelled images.
      expected: [C] shares they should have.
      n_named: seen classes.

    Returns: novel_frac (share predicted novel), novel_expected (share that should be), confidence_seen,
      confidence_novel (mean highest probability of images predicted so; None if there are none), n_used (classes
      predicted at least once), class_frac (share of each class).
    """
    sure, best = logits.softmax(1).max(1)
    is_novel = best >= n_named
    shares = torch.bincount(best, minlength=len(expected)).float() / max(len(best), 1)

    def mean(where: Tensor) -> float | None:
        return round(float(sure[where].mean()), 5) if where.any() else None

    return {
        "novel_frac": round(float(is_novel.float().mean()), 5),
        "novel_expected": round(float(expected[n_named:].sum()), 5),
        "confidence_seen": mean(~is_novel),
        "confidence_novel": mean(is_novel),
        "n_used": int((shares > 0).sum()),
        "class_frac": [round(float(share), 5) for share in shares],
    }


def state_of(
    cfg: OpenWorldSettings, task: Task, build_net: BuildNet, net: nn.Module, name: str, **memory: Any
) -> State:
    """One network, the prior, and whatever else a method remembers; refuses what `check_task` refuses."""
    check_task(cfg, task, name)
    return State(nets={"main": net}, memory={"is_frozen": build_net.is_frozen, "prior": prior_of(cfg, task), **memory})
