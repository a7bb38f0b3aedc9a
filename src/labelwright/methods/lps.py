"""LPS: a label for classes that some images are labelled with, a cluster for those that nobody labelled or named.

"Bridging the Gap: Learning Pace Synchronization for Open-World Semi-Supervised Learning" (2024), arXiv 2309.11930.

 1  one step: labelled and unlabelled images in proportion; f1, f2 of weak views and f3 of a strong one, in one pass
 2  p = softmax(f2); target = the label, or argmax p where there is none                                     Sec. 3.1
 3  sure: labelled; or max p >= 0.95 if the target is a seen class, >= 0.4 + 0.4 t if it is a novel one      Sec. 3.1
 4  pi_hat = normalised sum of p over the sure ones                                                          Sec. 3.2
 5  D = KL(pi || pi_hat); margin_j = D C pi_hat_j / max pi_hat: who is ahead gains less                        Eq. (3)
 6  L_AM = -log softmax(f1 + margin of y)_y on labelled, the same of f3 and targets on sure unlabelled ones  Eq. (4-5)
 7  L_PC: f2 and f3 of sure ones, cosines over 0.4: rows of one target attract as a group                      Eq. (7)
 8  L_UC: NT-Xent of f2 and f3 for those that are not sure                                                     Eq. (8)
 9  L_ent = -entropy of the mean of softmax(f1)                                                                Eq. (9)
10  L = L_AM + L_PC + L_UC + L_ent
11  predict with plain logits: margins act in training only

Symbols: pi=prior, pi_hat=estimate, C=margin_scale, t=share of the epochs that is over, eta=*_weight.
Departures: (1) D as in the authors' run, `direction` has the printed one; (2) on frozen features, where nothing but a
last layer learns, or if `start` asks for it, that layer starts from beliefs whose evidence are the clusters of
semi-supervised k-means (cluster_start.beliefs_from), and p of line 2 is shifted so that labelled and unlabelled images
together have the prior's shares (`use_balance`); (3) several processes compute lines 4 to 9 over the whole batch.
Command: labelwright fit photos/ --classes seen.txt --novel auto --method lps --model openai/clip-vit-base-patch32
Measured: docs/benchmarks.md, `labelwright bench --table lps-cifar10` and `lps-gtsrb`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.adjust import fixed, named
from labelwright.adjust import slopes as calibration
from labelwright.adjust.adjustment import Adjustment
from labelwright.adjust.pace import Direction, class_distribution, divergence, pace_margin
from labelwright.encoders.heads import put_in
from labelwright.labels.purify import confident
from labelwright.losses.candidates import negative_entropy_of_mean
from labelwright.losses.classification import adjusted_cross_entropy
from labelwright.losses.contrastive import nt_xent, pseudolabel_contrastive
from labelwright.methods.cluster_start import from_clusters, starts_by_clusters
from labelwright.methods.families import novel
from labelwright.methods.method import Budget
from labelwright.methods.open_world import (
    STILL_EPOCHS,
    TrainedSettings,
    balance,
    expected_unlabelled,
    gathered,
    moved_answers,
    n_seen,
    new_net,
    pace,
    plan_of_both,
    rows_of_both,
    state_of,
)
from labelwright.methods.recipe import Begun, plain_logits
from labelwright.metrics.diagnostics import pace_warnings
from labelwright.train.processes import gather_rows, sum_gradients
from labelwright.train.settings import AtLeast0, Positive, Share, require
from labelwright.types import Batch, BuildNet, Clock, EpochPlan, Passes, State, StepResult, Task

START_LR = 0.001  # of a run without `lr` whose last layer starts from clusters
KAPPA_CLAMP = (0.1, 10.0)  # margin="cvs": slopes far from 1 come from a handful of rows


@dataclass(frozen=True, kw_only=True)
class Config(TrainedSettings):
    """Settings of LPS."""

    start: Literal["auto", "beliefs", "clusters", "none"] = "auto"  # last layer; auto: from beliefs on frozen features
    seen_confidence: Share = 0.95  # line 3, of targets that are seen classes (Sec. 4.1)
    novel_confidence: tuple[float, float] = (0.4, 0.8)  # line 3, of novel ones, at the first epoch and at the end
    margin: Literal["pace", "none", "ldam", "la", "cvs"] = "pace"  # line 5, or what else the counts ask for
    margin_scale: AtLeast0 = 10.0  # C (Sec. 4.1)
    adjust: named.Names | None = None  # adjustments added to that of line 5, e.g. la: names of adjust.named
    direction: Direction = "prior_to_estimate"  # of D in line 5
    temperature: Positive = 0.4  # of lines 7 and 8, divides the cosines (Sec. 4.1)
    positives: Literal["many", "single"] = "many"  # line 7: rows of one target, or the other view alone (ablation)
    clustering_weight: AtLeast0 = 1.0  # eta_1; 0 = no line 7 (ablation)
    contrastive_weight: AtLeast0 = 1.0  # eta_2; 0 = no line 8 (ablation)
    entropy_weight: AtLeast0 = 1.0  # eta_3; 0 = no line 9 (ablation)
    use_balance: Literal["auto", "on", "off"] = "auto"  # targets scaled to the prior; auto: from clusters on

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = self.novel_confidence
        fine = len(ends) == 2 and all(0 <= c <= 1 for c in ends)
        require(fine, "novel_confidence", ends, "two numbers in [0, 1]")


PRESETS: Mapping[str, Mapping[str, object]] = {
    "paper": {  # Sec. 4.1: from pixels, the last stage and the classifier learn
        "epochs": 200,
        "lr": 0.1,
        "train_layers": "last_stage",
        "prior": "even",
        "start": "none",
        "use_balance": "off",
    }
}


def schedule(cfg: Config, budget: Budget, given: Container[str]) -> Any:
    """That of its family, at `START_LR` where the last layer starts near where it ends."""
    starts_close = cfg.start != "clusters" and starts_by_clusters(cfg.start, is_frozen=budget.is_stored)
    if "lr" not in given and starts_close:
        cfg = dataclasses.replace(cfg, lr=START_LR)
    return novel.schedule(cfg, budget, given)


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One classifier with an output for every seen and every novel class."""
    net, device = new_net(cfg, task, build_net), task.labels.device
    offset, sums = torch.zeros(task.n_classes, device=device), torch.zeros(2, device=device)
    state = state_of(cfg, task, build_net, net, "lps", offset=offset, divergences=[], epoch_sums=sums)
    ones = torch.ones(task.n_classes, device=device)
    adjust: dict[str, Any] = {"kappa": ones}
    if cfg.adjust:
        adjust["named"] = named.init(ones, state.memory["prior"])
    return dataclasses.replace(state, adjust=adjust)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Departure (2): the last layer from k-means, the balance of what it says."""
    logs: dict[str, Any] = {}
    if starts_by_clusters(cfg.start, is_frozen=state.memory["is_frozen"]):
        layer, _, state, logs = from_clusters(cfg, task, state, passes, with_beliefs=cfg.start != "clusters")
        put_in(state.nets["main"], *layer)
        logs["prior"] = [round(float(p), 5) for p in state.memory["prior"]]
    state, facts = _looked(cfg, task, state, passes)
    return state, logs | facts


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Labelled and unlabelled images in proportion, two weak views and a strong one of each."""
    return plan_of_both(cfg, task, state, epoch, ("weak", "weak", "strong"))


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Lines 1 to 10."""
    views, own = rows_of_both(batches)
    f = state.nets["main"](torch.cat(views)).float().view(3, len(own), -1)  # 1: one pass for the three views
    logits = gathered(f)
    labels = gather_rows(own)
    probs = (logits[1].detach() + state.memory["offset"]).softmax(1)
    targets, is_sure = confident(
        probs,
        labels,
        n_seen=n_seen(task),
        seen_confidence=cfg.seen_confidence,
        novel_confidence=novel_confidence(cfg, clock.epoch / clock.n_epochs),
    )
    prior = state.memory["prior"]
    estimate = class_distribution(probs, where=is_sure)  # 4
    apart = divergence(estimate, prior, direction=cfg.direction)
    adjustment = own_adjustment(cfg, estimate, prior, state.adjust["kappa"], n_rows=is_sure.sum())  # 5
    if cfg.adjust:
        counts = estimate * is_sure.sum()
        found = named.update(state.adjust["named"], predicted=counts, counts=counts, prior=prior, decay=0.0)
        state = dataclasses.replace(state, adjust={**state.adjust, "named": found})
        adjustment += named.adjustment(cfg.adjust, found)
    each = terms(cfg, logits, targets, is_sure, labels, adjustment)
    loss = sum(each.values(), torch.zeros((), device=labels.device))  # 10
    hidden = labels < 0
    sums = state.memory["epoch_sums"] + torch.stack([apart, torch.ones_like(apart)])
    state = dataclasses.replace(state, memory={**state.memory, "epoch_sums": sums})
    logs: dict[str, Tensor | float] = {name: value.detach() for name, value in each.items()}
    margin = adjustment.target_margin
    logs |= {"divergence": apart, "sure_frac": is_sure[hidden].float().mean()}
    logs["margin_max"] = 0.0 if margin is None else margin.max()
    return StepResult(sum_gradients(loss), len(own), state, logs)


def novel_confidence(cfg: Config, done_frac: float) -> float:
    """Line 3: the bar of novel targets, which rises while training goes on.

    Example:
      >>> round(novel_confidence(Config(), 0.5), 3)
      0.6
    """
    low, high = cfg.novel_confidence
    return low + (high - low) * done_frac


def own_adjustment(cfg: Config, estimate: Tensor, prior: Tensor, kappa: Tensor, *, n_rows: Tensor) -> Adjustment:
    """Line 5, or for comparison what LDAM, logit adjustment or CVS make of the counts that the estimate stands for.

    Example: see adjust.pace.pace_margin.
      >>> even = torch.tensor([0.5, 0.5])
      >>> own_adjustment(Config(), even, even, torch.ones(2), n_rows=torch.tensor(8)).target_margin.tolist()
      [0.0, 0.0]
    """
    counts = estimate * n_rows
    if cfg.margin == "pace":
        return pace_margin(estimate, prior, scale=cfg.margin_scale, direction=cfg.direction)
    if cfg.margin == "ldam":
        return fixed.ldam(counts, scale=1.0)
    if cfg.margin == "la":
        return fixed.logit_adjustment(counts)
    if cfg.margin == "cvs":
        return fixed.additive_adjustment(fixed.prior(counts), kappa, strength=1.0)
    return Adjustment()


def terms(
    cfg: Config,
    logits: Sequence[Tensor],
    targets: Tensor,
    is_sure: Tensor,
    labels: Tensor,
    adjustment: Adjustment,
) -> dict[str, Tensor]:
    """Lines 6 to 9, weighted.

    Args:
      logits: f1, f2 and f3, each [B, C].
      targets, is_sure: of `confident`.
      labels: [B] int64, -1 = unknown.
      adjustment: of the logits in line 6.
    """
    f1, f2, f3 = logits
    hidden = labels < 0
    on_hidden = adjusted_cross_entropy(f3, targets, adjustment, where=hidden & is_sure, reduce="sum")
    found = {
        "loss_labelled": adjusted_cross_entropy(f1, labels, adjustment),
        "loss_unlabelled": on_hidden / hidden.sum().clamp(min=1),  # 6
    }
    z2, z3 = F.normalize(f2, dim=1), F.normalize(f3, dim=1)
    if cfg.clustering_weight > 0:
        if cfg.positives == "many":
            near = pseudolabel_contrastive(
                torch.cat([z2, z3]), targets.repeat(2), temperature=cfg.temperature, where=is_sure.repeat(2)
            )
        else:
            near = nt_xent(z2[is_sure], z3[is_sure], temperature=cfg.temperature)
        found["loss_clustering"] = cfg.clustering_weight * near  # 7
    if cfg.contrastive_weight > 0:
        apart = nt_xent(z2, z3, temperature=cfg.temperature, where=~is_sure, reduce="sum") / len(z2)
        found["loss_contrastive"] = cfg.contrastive_weight * apart  # 8
    if cfg.entropy_weight > 0:
        found["loss_entropy"] = cfg.entropy_weight * negative_entropy_of_mean(f1)  # 9
    return found


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """How far the classes are, the failure signs, the balance of the next epoch, and whether there is to be one."""
    total, n_steps = state.memory["epoch_sums"].tolist()
    memory = {**state.memory, "divergences": [*state.memory["divergences"], total / max(n_steps, 1)]}
    memory["epoch_sums"] = torch.zeros_like(memory["epoch_sums"])
    state = dataclasses.replace(state, memory=memory)
    if cfg.margin == "cvs":
        state = dataclasses.replace(state, adjust={**state.adjust, "kappa": _kappa(task, state, passes)})
    state, facts = _looked(cfg, task, state, passes)
    starts_close = starts_by_clusters(cfg.start, is_frozen=state.memory["is_frozen"])
    facts["stop"] = starts_close and state.memory["n_still"] >= STILL_EPOCHS
    n_epochs = epoch + 1 if facts["stop"] else cfg.epochs
    facts["warnings"] = pace_warnings(
        facts, memory["divergences"], epoch=epoch, n_epochs=n_epochs, n_named=n_seen(task)
    )
    return state, facts


predict = plain_logits  # margins and balance act in training only


def _looked(cfg: Config, task: Task, state: State, passes: Passes) -> tuple[State, dict[str, Any]]:
    """The pace of the classes on unlabelled images, and the balance of the targets if there is one."""
    logits, facts = pace(task, state, passes)
    memory = {**state.memory, **moved_answers(state.memory, logits)}
    starts_close = starts_by_clusters(cfg.start, is_frozen=memory["is_frozen"])
    if cfg.use_balance == "on" or (cfg.use_balance == "auto" and starts_close):
        expected = expected_unlabelled(memory["prior"], task.counts, len(task.labels))
        memory["offset"] = balance(logits, expected, memory["offset"])
    return dataclasses.replace(state, memory=memory), facts


def _kappa(task: Task, state: State, passes: Passes) -> Tensor:
    """Slopes of the labelled images, for margin="cvs"; classes without any keep 1."""
    rows = (task.labels >= 0).nonzero().flatten()
    scored = [calibration.score_rows(logits) for _, logits in passes("main", rows.cpu())]
    predicted, confidence, _ = (torch.cat(column) for column in zip(*scored, strict=True))
    return calibration.slopes_from_rows(
        predicted, confidence, predicted == task.labels[rows], n_classes=task.n_classes, clamp=KAPPA_CLAMP
    )
