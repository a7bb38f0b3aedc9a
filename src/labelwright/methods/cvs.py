"""CVS: consistent vector-scaling for long-tailed labels, in two phases with localised calibration.

Source: "A Unified Perspective for Loss-Oriented Imbalanced Learning via Localization" (arXiv 2310.04752).

Algorithm
 1  pi_k = n_k / sum n                                                             class prior
 2  hold a slice of every class out of phase 1 (groups never straddle it)          departure 1
 3  epochs [0, 5%): plain cross-entropy                                            reference run
 4  epochs [5%, T0): MLA, -log softmax(f * pi^gamma / kappa*)_y                     Sec. 6, multiplicative
 5  after each epoch: kappa_c = slope of accuracy on confidence, rows predicted as c, 20 bins
 6  shrink kappa_c toward the pooled slope by how many rows c has                  departure 2
 7  exponential moving average over epochs
 8  epochs [T0, end): CLA, -log softmax(f + tau * log(pi / kappa+))_y               Sec. 6, additive
 9  ... weighted by pi_y^(-rho), the held-out slice back in                        deferred re-weighting
10  predict with f alone: the prior is in the loss, nothing is subtracted

Symbols: gamma=gamma, tau=tau, rho=rho, kappa*=kappa_multiplicative, kappa+=kappa_additive, T0=switch_frac * epochs.

Departures from the paper, each a setting
 1  kappa_from="heldout": the slopes come from images phase 1 has not fitted; "batches" is the reference run (the newest
    predictions on the training images themselves), "none" keeps kappa = 1. The reference run also takes 1 / slope
    (kappa_is="inverse_slope") and clamps it to [0.05, 0.2]; a run of 80 epochs and more does as well (schedule).
 2  kappa_shrink: empirical-Bayes shrinkage; None switches it off.
 3  warm-up, T0 and the moving average are shares of the training, so that a short run has the same shape as 200 epochs.

Command: labelwright fit DATA --method cvs --out RUN
Results: docs/benchmarks.md; docs/results, tables cifar10-lt-100 and kappa.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from labelwright.adjust import fixed, named
from labelwright.adjust import slopes as calibration
from labelwright.adjust.adjustment import Adjustment
from labelwright.data import splits
from labelwright.losses.classification import adjusted_cross_entropy
from labelwright.losses.mixup import mixup
from labelwright.methods.adjusting import added
from labelwright.methods.balanced_start import balanced_start, starts_balanced
from labelwright.methods.families import labels as family
from labelwright.methods.method import Budget
from labelwright.methods.recipe import Begun, plain_logits
from labelwright.train.plans import steps_for
from labelwright.train.processes import gather_rows, mean_share
from labelwright.train.seeds import generator
from labelwright.train.settings import AtLeast0, CountOr0, Share, ShareBelow1, ShareInside, TrainSettings, require
from labelwright.types import Average, Batch, BuildNet, Clock, EpochPlan, Passes, State, StepResult, Stream, Task

PLAIN_FRAC = 0.05  # share of the epochs with plain cross-entropy at the start (reference: 10 of 200)
LONG = 80  # epochs from which a run is no short one: its network comes to answer nearly all training images as labelled
SAMPLES_PER_CLASS = 1000  # kappa_from="batches": newest rows kept per true class (reference)


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Of CVS, from pixels and on features. "reference" marks the published command for CIFAR-100-LT, ratio 100."""

    gamma: AtLeast0 = 0.15  # power of the prior in the multiplier (reference)
    tau: AtLeast0 = 0.9  # strength of the log prior in the offset (reference)
    rho: AtLeast0 = 0.15  # power of the inverse prior in the weights (reference)
    kappa_shrink: AtLeast0 | None = 1.0  # strength of the shrinkage toward the pooled slope; None = off
    kappa_clamp: tuple[float, float] = (0.3, 3.0)  # of 1 / slope: the slope is 1/3 to 3.33 (reference: 0.05,0.2)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        low_high = self.kappa_clamp
        fine = len(low_high) == 2 and 0 < low_high[0] <= low_high[1]
        require(fine, "kappa_clamp", low_high, "two numbers, 0 < least <= greatest")


@dataclass(frozen=True, kw_only=True)
class Config(Strengths, TrainSettings):
    """Settings of CVS."""

    # T0: share of the epochs after which CLA + re-weighting replace MLA. None = 0.8 from 80 epochs on (reference: 160
    # of 200) and 0.5 below: phase 2 of a short run is over before it has moved anything (docs/results, switch).
    switch_frac: Share | None = None
    # Rows that the slopes are fitted on. If no setting of the slopes is given, `fit` takes all five of the preset paper
    # in a run of 80 epochs and more: better there, worse in a short run (docs/results, cifar10-lt-16px and kappa).
    kappa_from: Literal["heldout", "batches", "none"] = "heldout"
    heldout_frac: ShareInside = 0.1  # share of each class held out of phase 1; none of a class that loses twice that
    heldout_min_rows: CountOr0 = 10  # per class on average; else nothing is held out and kappa stays 1 (reference: 10)
    # kappa is the slope, as the paper's text has it, or 1 / slope, as the reference run takes it. Only the slope makes
    # an overconfident class harder to predict; with its inverse it feeds on itself (docs/results, kappa).
    kappa_is: Literal["slope", "inverse_slope"] = "slope"
    kappa_net_decay: ShareBelow1 = 0.99  # slopes come from weights averaged with this decay per step; 0 = the weights
    kappa_decay: Share = 0.9  # moving average per 1/200 of the training (reference: per epoch of 200)
    view: Literal["weak", "strong"] = "weak"  # augmentation of the training images
    mixup_alpha: AtLeast0 = 0.0  # Beta(alpha, alpha) mixing of images; 0 = off
    adjust: named.Names | None = None  # adjustments added to those of lines 4 and 8, as pace+la: names of adjust.named


REFERENCE_SLOPES: Mapping[str, Any] = {
    "kappa_from": "batches",
    "kappa_is": "inverse_slope",
    "kappa_net_decay": 0.0,
    "kappa_shrink": None,
    "kappa_clamp": (0.05, 0.2),
}

PRESETS: Mapping[str, Mapping[str, object]] = {
    # the published command for CIFAR-100-LT, ratio 100, and the schedule of Sec. 7
    "paper": {"epochs": 200, "schedule": "step", "switch_frac": 0.8, **REFERENCE_SLOPES}
}


def schedule(cfg: Config, budget: Budget, given: Container[str]) -> Any:
    """That of its family; in a long run the slopes of the reference run, unless a setting of theirs is given.

    Example:
      >>> pixels = Budget(1000, 1000, is_stored=False, is_cpu=True)
      >>> [schedule(Config(epochs=n), pixels, {"epochs"}).kappa_from for n in (79, 80)]
      ['heldout', 'batches']
      >>> schedule(Config(epochs=80, kappa_from="none"), pixels, {"epochs", "kappa_from"}).kappa_from
      'none'
    """
    cfg = family.schedule(cfg, budget, given)
    if cfg.epochs < LONG or any(name in given for name in REFERENCE_SLOPES):
        return cfg
    return dataclasses.replace(cfg, **REFERENCE_SLOPES)


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network; slopes start at 1."""
    ones = torch.ones(task.n_classes, device=task.labels.device)
    adjust: dict[str, Any] = {"kappa_multiplicative": ones, "kappa_additive": ones.clone()}
    if cfg.adjust:
        adjust["named"] = named.init(task.counts, fixed.prior(task.counts))
    counts = task.counts if bool(task.counts.any()) else torch.ones_like(task.counts)  # of none, the plan is refused
    memory: dict[str, Any] = {
        "heldout": _heldout(cfg, task),
        "starts": starts_balanced(build_net),
        "tally": torch.zeros(4, device=ones.device),
        "losses": [],
        "prior": fixed.prior(counts),
        "class_weight": fixed.inverse_prior_weights(counts, power=cfg.rho),
        "is_rare": counts.argsort(stable=True).argsort(stable=True) < max(1, task.n_classes // 3),
    }
    if cfg.kappa_from == "batches":
        memory["rows"] = calibration.init_memory(task.counts, samples_per_class=SAMPLES_PER_CLASS)
    nets, averages = {"main": build_net(task.n_classes)}, {}
    if cfg.kappa_from == "heldout" and cfg.kappa_net_decay > 0:
        nets["average"] = copy.deepcopy(nets["main"])
        # Over two thirds of an epoch at most: with few steps an epoch, older weights are another network's.
        n_steps = steps_for(int(task.counts.sum()), cfg.batch_size)
        averages["average"] = Average("main", min(cfg.kappa_net_decay, max(0.0, 1 - 1.5 / n_steps)))
    return State(nets=nets, adjust=adjust, memory=memory, averages=averages)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """On a pretrained network that goes on learning, a balanced head; see methods/balanced_start.py."""
    nets = tuple(name for name in ("main", "average") if name in state.nets)
    return balanced_start(task, state, passes, nets=nets) if state.memory["starts"] else (state, {})


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Every labelled image once; in phase 1 as many steps without the held-out slice."""
    use = (task.labels >= 0).cpu()
    n_steps = steps_for(int(use.sum()), cfg.batch_size)
    if epoch < switch_epoch(cfg):
        use[state.memory["heldout"].cpu()] = False
    rows = torch.nonzero(use).flatten()
    return EpochPlan({"train": Stream(rows, cfg.batch_size, (cfg.view,))}, n_steps)


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """One term: the cross-entropy with the adjustment of the phase."""
    x, labels = batches["train"].x, batches["train"].labels
    mixed = mixup(x, labels, alpha=cfg.mixup_alpha, generator=generator(clock.seed, "mixup", clock.epoch, clock.step))
    logits = state.nets["main"](mixed.x)
    prior, adjust = state.memory["prior"], state.adjust
    adjustment, weight = Adjustment(), None
    if clock.epoch >= switch_epoch(cfg):
        adjustment = fixed.additive_adjustment(prior, adjust["kappa_additive"], strength=cfg.tau)  # 8
        weight = state.memory["class_weight"]  # 9
    elif clock.epoch_frac >= PLAIN_FRAC * cfg.epochs:
        adjustment = fixed.multiplicative_adjustment(prior, adjust["kappa_multiplicative"], power=cfg.gamma)  # 4
    if cfg.adjust:
        more, state = added(cfg.adjust, state, logits.detach().float().softmax(1))
        adjustment += more
    loss = adjusted_cross_entropy(logits, labels, adjustment, class_weight=weight)
    if mixed.lam < 1:
        other = adjusted_cross_entropy(logits, labels[mixed.permutation], adjustment, class_weight=weight)
        loss = mixed.lam * loss + (1 - mixed.lam) * other
    right = (logits.detach().argmax(1) == labels).float()
    if weight is not None:
        loss = loss * mean_share(weight[labels].sum())  # several processes: one weighted mean
    memory = _remember(cfg, state, logits.detach().float(), labels, right, loss.detach())
    new_state = dataclasses.replace(state, memory=memory)
    return StepResult(loss, len(labels), new_state, {"train_accuracy": right.mean()})


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Re-estimate both slopes; in phase 2 those of the held-out slice stay as they were: it is being fitted now."""
    logs: dict[str, Any] = {"phase": 2 if epoch >= switch_epoch(cfg) else 1}
    state = _watch(cfg, task, state, epoch, logs)
    nothing_held = len(state.memory["heldout"]) == 0  # phase 2 from the start, or every class has one image
    if cfg.kappa_from == "none" or (cfg.kappa_from == "heldout" and (nothing_held or epoch >= switch_epoch(cfg))):
        return state, logs
    scored = (
        calibration.rows_of(state.memory["rows"])
        if cfg.kappa_from == "batches"
        else _score_heldout(task, state, passes)
    )
    decay = cfg.kappa_decay ** (200 / cfg.epochs)
    adjust = dict(state.adjust)
    clamped = calibration.slopes_from_rows(
        scored["predicted"],
        scored["confidence"],
        scored["correct"],
        n_classes=task.n_classes,
        shrink=cfg.kappa_shrink,
        clamp=cfg.kappa_clamp,
    )
    kappa = clamped if cfg.kappa_is == "inverse_slope" else 1 / clamped
    for name in ("kappa_additive", "kappa_multiplicative"):
        adjust[name] = calibration.ema(adjust[name], kappa, decay=decay)
        logs[name] = [round(value, 4) for value in adjust[name].tolist()]
    return dataclasses.replace(state, adjust=adjust), logs


predict = plain_logits  # the prior went into the loss, so nothing is subtracted at test time


def switch_epoch(cfg: Config) -> int:
    """T0: first epoch of phase 2.

    Example:
      >>> switch_epoch(Config(epochs=200)), switch_epoch(Config(epochs=12))
      (160, 6)
    """
    frac = cfg.switch_frac if cfg.switch_frac is not None else 0.8 if cfg.epochs >= LONG else 0.5
    return round(frac * cfg.epochs)


def _heldout(cfg: Config, task: Task) -> Tensor:
    """Rows [H] int64 kept out of phase 1, in proportion to the classes; no group on both sides.

    A class that would give up more than twice its share (one of its three images, one of its two groups) gives none:
    phase 1 needs its images more than the slopes do, and shrinkage lends it the pooled slope.
    """
    if cfg.kappa_from != "heldout" or switch_epoch(cfg) == 0:
        return torch.empty(0, dtype=torch.int64)
    groups = None if task.groups is None else task.groups.cpu().numpy()
    labels = task.labels.cpu()
    _, rows = splits.holdout(labels.numpy(), frac=cfg.heldout_frac, seed=0, groups=groups)
    held = torch.from_numpy(rows)
    held = held[labels[held] >= 0]  # unlabelled images of a held-out group have no class to speak of
    given = torch.bincount(labels[held], minlength=task.n_classes)
    held = held[given[labels[held]] <= 2 * cfg.heldout_frac * task.counts.cpu()[labels[held]]]
    return held if len(held) >= cfg.heldout_min_rows * task.n_classes else held[:0]


def _remember(
    cfg: Config, state: State, logits: Tensor, labels: Tensor, right: Tensor, loss: Tensor
) -> Mapping[str, Any]:
    """The memory with this batch in it: rows for the slopes, and the tally that `_watch` reads."""
    rare = state.memory["is_rare"][labels]
    batch = torch.stack(
        [loss * len(labels), rare.new_tensor(len(labels), dtype=loss.dtype), right[rare].sum(), rare.sum()]
    )
    memory = {**state.memory, "tally": state.memory["tally"] + gather_rows(batch[None]).sum(0)}
    if cfg.kappa_from == "batches":
        memory["rows"] = calibration.push(
            memory["rows"], gather_rows(labels), *calibration.score_rows(gather_rows(logits))
        )
    return memory


def _watch(cfg: Config, task: Task, state: State, epoch: int, logs: dict[str, Any]) -> State:
    """Say the method's two failure signs, and start the next epoch's tally."""
    loss_sum, n, rare_right, n_rare = state.memory["tally"].tolist()
    losses = [*state.memory["losses"], loss_sum / max(n, 1)]
    logs["rare_accuracy"], logs["warnings"] = rare_right / max(n_rare, 1), []
    switch = switch_epoch(cfg)
    if epoch >= switch + 2 and losses[-1] > losses[-2] > losses[-3]:
        logs["warnings"].append(
            f"the loss rises in phase 2 (epochs {epoch - 1} to {epoch + 1}): gamma={cfg.gamma} works against "
            f"rho={cfg.rho}; lower one of them"
        )
    if epoch == switch - 1 and epoch >= 9 and logs["rare_accuracy"] <= 1 / task.n_classes:
        logs["warnings"].append(
            f"after phase 1 the rarest third of the classes is right on {logs['rare_accuracy']:.1%} of its training "
            "images, no more than by chance: their slopes stand on nothing; raise gamma or train longer"
        )
    memory = {**state.memory, "tally": torch.zeros_like(state.memory["tally"]), "losses": losses}
    return dataclasses.replace(state, memory=memory)


def _score_heldout(task: Task, state: State, passes: Passes) -> dict[str, Tensor]:
    """Of the held-out slice: predicted, confidence and correct, each [H]."""
    parts: list[tuple[Tensor, ...]] = []
    for rows, logits in passes("average" if "average" in state.nets else "main", state.memory["heldout"]):
        predicted, confidence, _ = calibration.score_rows(logits)
        parts.append((predicted, confidence, predicted == task.labels[rows]))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return dict(zip(("predicted", "confidence", "correct"), columns, strict=True))
