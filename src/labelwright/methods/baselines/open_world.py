"""Published ways to sort images of classes that nobody named, one short function each.

Name               What it does                                                            Source
ss_kmeans          k-means in which labelled images keep their class; trains nothing       Vaze 2022 (arXiv 2201.02609)
orca               adaptive margin, pairs of neighbours, even mean prediction              Cao 2022 (arXiv 2102.03526)
simgcd             self-distillation between two views, even mean prediction               Wen 2023 (arXiv 2211.11727)
fixmatch_clusters  FixMatch on the seen classes; k-means on what it is unsure about        Sohn 2020 (arXiv 2001.07685)

Algorithm
 1  ss_kmeans: the last layer is the nearest centroid of semi-supervised k-means on the features  (GCD, Sec. 3.2)
 2  orca: s = scale * cosines with the class weights, of two weak views 1 and 2
 3    u = 1 - mean highest probability of the unlabelled images, after every epoch, 0.5 at most
 4    L = CE(s1 + scale u at the label, label) on labelled images
 5      - mean log(p1 . p2 of the partner): one of the same label, or the nearest in the batch
 6      + KL(mean p1 || prior)
 7  simgcd: cosines of two weak views; student p = softmax(cos / 0.1), teacher q = softmax(cos / t), no gradient
 8    L = (1 - w) (CE(q of the other view, p) + e KL(mean p || prior)) + w CE(p, label)
 9      + (1 - w) NT-Xent of the views' projections + w SupCon of the labelled ones
10  fixmatch_clusters: on the seen outputs alone, L = CE(weak, label) on labelled images
11      + mean over unlabelled of [max p(weak) >= 0.95] CE(strong, argmax p(weak))  (FixMatch, Eq. 3-4)
12    at the end, k-means of the unlabelled images least sure of a seen class makes the novel classes
13  predict with plain logits; orca and simgcd with scaled cosines

Symbols: u=memory["uncertainty"], t=teacher_temperature, w=supervised_weight, e=prior_weight.

Departures from the papers: one sampler, optimizer and schedule for all of them, to compare losses and not schedules;
(1) the prior of lines 6, 8 and 12 is that of LPS: even as published, or the sizes of clusters where classes are uneven;
(2) on frozen features cosine layers start at the centroids of line 1 (`start`), as LPS does, the prior counts more, and
line 9 is left out: a projector beside the last layer teaches it nothing; (3) the teacher cools over
the published share of the epochs, and the projector has two layers, not three; (4) line 12 takes as many images as are
due to be novel, where ORCA's comparison takes the true number; then the last layer is refitted to what every image is,
so that one linear classifier says it; (5) FixMatch without its running average of the weights; (6) line 1 is exact for
features of unit norm, which those of a backbone are scaled to; stored features of uneven norm are taken as they are;
(7) several processes compute lines 3 to 9 over the whole batch; (8) a saved model has the cosines of line 13 unscaled.

Command: labelwright fit photos/ --classes seen.txt --novel auto --method simgcd --model openai/clip-vit-base-patch32
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.adjust.adjustment import Adjustment
from labelwright.encoders.backbones import Classifier, Stored, UnitBackbone
from labelwright.encoders.projection import ProjectedNet
from labelwright.labels.kmeans import semi_supervised_kmeans
from labelwright.labels.settle import settle
from labelwright.losses.candidates import negative_entropy_of_mean
from labelwright.losses.classification import adjusted_cross_entropy, cross_entropy, soft_cross_entropy
from labelwright.losses.contrastive import noisy_contrastive, nt_xent
from labelwright.losses.soft_targets import linear_ramp
from labelwright.methods.open_world import (
    OpenWorldSettings,
    check_task,
    due_unlabelled,
    gathered,
    n_seen,
    new_net,
    pace_logs,
    plan_of_both,
    prior_of,
    put_in,
    rows_of_both,
    start_of,
    starts_by_clusters,
    unlabelled_logits,
)
from labelwright.train.processes import gather_rows, sum_gradients
from labelwright.train.settings import require
from labelwright.types import Batch, BuildNet, Clock, EpochPlan, Network, Passes, Prediction, State, StepResult, Task

BaselineName = Literal["ss_kmeans", "orca", "simgcd", "fixmatch_clusters"]
Stepped = tuple[Tensor, int, dict[str, Tensor | float]]  # loss, rows that it counted, logs

MAX_UNCERTAINTY = 0.5  # line 3 (the authors' code): early on everything is uncertain
NEVER = -100.0  # bias of outputs that have no class yet

PRESETS: Mapping[BaselineName, Mapping[str, object]] = {
    "ss_kmeans": {"baseline": "ss_kmeans", "epochs": 1},
    "orca": {"baseline": "orca"},
    "simgcd": {"baseline": "simgcd"},
    "fixmatch_clusters": {"baseline": "fixmatch_clusters"},
}
"""Name -> the settings of `Config` that make it this baseline."""


@dataclass(frozen=True, kw_only=True)
class Config(OpenWorldSettings):
    """Settings of every baseline; each reads its own."""

    baseline: BaselineName = "ss_kmeans"  # which of the above
    prior_weight: float | None = None  # orca: of line 6, None = 1 (Cao 2022), or 3 on frozen features; simgcd: e,
    # None = 2 (authors' code; 1 to 4 from data set to data set), or 4 on frozen features
    scale: float = 10.0  # orca: multiplies the cosines (authors' code)
    margin_weight: float = 1.0  # orca: of the uncertainty in line 4 (Cao 2022)
    pair_weight: float = 1.0  # orca: of line 5 (Cao 2022)
    student_temperature: float = 0.1  # simgcd: divides the cosines (Wen 2023)
    teacher_temperatures: tuple[float, float] = (0.07, 0.04)  # simgcd: t at first and from its ramp's end on
    teacher_ramp_frac: float = 0.15  # simgcd: share of the epochs over which t falls (Wen 2023: 30 of 200)
    supervised_weight: float = 0.35  # simgcd: w (Wen 2023)
    contrastive_weight: float = 1.0  # simgcd: of line 9; 0 = none, as on frozen features
    temperature: float = 1.0  # simgcd: of NT-Xent in line 9, divides the cosines (authors' code)
    supervised_temperature: float = 0.07  # simgcd: of SupCon in line 9 (authors' code)
    confidence: float = 0.95  # fixmatch_clusters: probability from which a prediction teaches (Sohn 2020)
    novel_below: float | None = None  # fixmatch_clusters: highest probability of a novel image; None = departure (4)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("margin_weight", "pair_weight", "contrastive_weight"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        for key in ("scale", "student_temperature", "temperature", "supervised_temperature"):
            require(getattr(self, key) > 0, key, getattr(self, key), "above 0")
        weight, below = self.prior_weight, self.novel_below
        require(weight is None or weight >= 0, "prior_weight", weight, "0 or more, or none")
        require(below is None or 0 <= below <= 1, "novel_below", below, "in [0, 1], or none")
        ends = self.teacher_temperatures
        require(len(ends) == 2 and min(ends) > 0, "teacher_temperatures", ends, "two numbers above 0")
        for key in ("teacher_ramp_frac", "supervised_weight", "confidence"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network with an output for every class: linear, or of cosines for orca and simgcd."""
    check_task(cfg, task, cfg.baseline)
    memory: dict[str, Any] = {"is_frozen": build_net.is_frozen, "prior": prior_of(cfg, task)}
    if cfg.baseline in ("orca", "simgcd"):
        net = _cosine_net(cfg, task, build_net)
        if cfg.baseline == "simgcd" and cfg.contrastive_weight > 0 and not build_net.is_frozen:
            net = ProjectedNet(cast(Network, net))
        return State(nets={"main": net}, memory=memory)
    net = new_net(cfg, task, build_net)
    if cfg.baseline == "ss_kmeans":
        return State(nets={"main": _unit_net(net)}, memory=memory)
    weight, bias = (part.detach().clone() for part in (_head_of(net).weight, _head_of(net).bias))
    weight[n_seen(task) :], bias[n_seen(task) :] = 0.0, NEVER
    put_in(net, weight, bias)
    return State(nets={"main": net}, memory=memory)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> tuple[State, Mapping[str, Any]]:
    """Line 1, for ss_kmeans and for cosine layers on frozen features; the first uncertainty of orca."""
    logs: dict[str, Any] = {}
    if cfg.baseline == "ss_kmeans" or starts_by_clusters(cfg, is_frozen=state.memory["is_frozen"]):
        found = start_of(cfg, task, passes, n_rounds=0)  # 1
        if cfg.baseline == "ss_kmeans":
            put_in(state.nets["main"], found.weight, found.bias)
        elif cfg.baseline != "fixmatch_clusters":  # which has no use for novel classes yet, but for their prior
            _head_of(state.nets["main"]).weight.data.copy_(F.normalize(found.clusters.centroids, dim=1))
        state = dataclasses.replace(state, memory={**state.memory, "prior": found.prior})
        logs = {"start_inertia": found.clusters.inertia, "n_kmeans_steps": found.clusters.n_steps}
    state, told = _looked(cfg, task, state, passes)
    return state, logs | told


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Labelled and unlabelled images in proportion, in the views that the baseline wants; nothing for ss_kmeans."""
    if cfg.baseline == "ss_kmeans":
        return EpochPlan({}, 0)
    if cfg.baseline != "fixmatch_clusters":
        return plan_of_both(cfg, task, ("weak", "weak"))
    both = plan_of_both(cfg, task, ("weak", "strong"))
    labelled = dataclasses.replace(both.streams["labelled"], views=("weak",))
    return EpochPlan({**both.streams, "labelled": labelled}, both.n_steps)


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """The loss named by ``cfg.baseline``."""
    loss, n_kept, logs = STEPS[cfg.baseline](cfg, task, state, batches, clock)
    return StepResult(loss, n_kept, state, logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> tuple[State, Mapping[str, Any]]:
    """The pace of the classes, orca's uncertainty; at the very end the novel classes of fixmatch_clusters."""
    logs: dict[str, Any] = {}
    if cfg.baseline == "fixmatch_clusters" and task.n_novel and epoch + 1 == cfg.epochs:
        logs = _add_clusters(cfg, task, state, passes)  # 12
    state, told = _looked(cfg, task, state, passes)
    return state, logs | told


def predict(cfg: Config, state: State, x: Tensor) -> Prediction:
    """Plain logits; cosines are scaled as in training."""
    return Prediction(_scale(cfg) * state.nets["main"](x))


# ---- losses: (cfg, task, state, batches, clock) -> loss, rows that it counted, logs ----------------------------------


def _orca(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> Stepped:
    """Lines 2 to 6."""
    net = cast(Network, state.nets["main"])
    views, own = rows_of_both(batches)
    h = net.penultimate(torch.cat(views))
    cosines = net.from_penultimate(h).float().view(2, len(own), -1)
    s1, s2 = gathered(cfg.scale * cosines)  # 2
    labels, feats = gather_rows(own), gather_rows(h.detach().float()[: len(own)])
    margin = torch.full_like(s1[0], cfg.scale * cfg.margin_weight) * state.memory["uncertainty"]
    supervised = adjusted_cross_entropy(s1, labels, Adjustment(target_margin=margin))  # 4
    pairs = pair_loss(s1.softmax(1), s2.softmax(1)[partners(feats, labels)])  # 5
    regular = divergence_of_mean(s1, state.memory["prior"])  # 6
    loss = supervised + cfg.pair_weight * pairs + _prior_weight(cfg, state) * regular
    logs: dict[str, Tensor | float] = {
        "loss_labelled": supervised.detach(),
        "loss_pairs": pairs.detach(),
        "loss_prior": regular.detach(),
    }
    return sum_gradients(loss), len(own), logs


def _simgcd(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> Stepped:
    """Lines 7 to 9."""
    net: Any = state.nets["main"]
    views, own = rows_of_both(batches)
    is_projected = isinstance(net, ProjectedNet)
    out, z = net.both(torch.cat(views)) if is_projected else (net(torch.cat(views)), None)
    cosines, labels = gathered(out.float().view(2, len(own), -1)), gather_rows(own)
    students = [cos / cfg.student_temperature for cos in cosines]
    teachers = [(cos.detach() / teacher_temperature(cfg, clock)).softmax(1) for cos in cosines]
    w, both = cfg.supervised_weight, torch.cat(students)
    distilled = (soft_cross_entropy(students[0], teachers[1]) + soft_cross_entropy(students[1], teachers[0])) / 2
    spread = divergence_of_mean(both, state.memory["prior"])
    supervised = cross_entropy(both, labels.repeat(2))
    loss = (1 - w) * (distilled + _prior_weight(cfg, state) * spread) + w * supervised  # 8
    logs = {"loss_distilled": distilled.detach(), "loss_prior": spread.detach(), "loss_labelled": supervised.detach()}
    if z is not None:
        z1, z2 = gathered(z.view(2, len(own), -1))
        apart = nt_xent(z1, z2, temperature=cfg.temperature)
        grouped = supervised_contrastive(z1, z2, labels, temperature=cfg.supervised_temperature)
        loss = loss + cfg.contrastive_weight * ((1 - w) * apart + w * grouped)  # 9
        logs |= {"loss_contrastive": apart.detach(), "loss_supcon": grouped.detach()}
    return sum_gradients(loss), len(own), dict(logs)


def _fixmatch(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> Stepped:
    """Lines 10 and 11; every mean is over as many rows in every process."""
    labelled, unlabelled = batches["labelled"], batches["unlabelled"]
    x = torch.cat([labelled.x, *unlabelled.views])
    logits = state.nets["main"](x)[:, : n_seen(task)].float()
    n_hidden = len(unlabelled.rows)
    known, weak, strong = logits.split([len(labelled.rows), n_hidden, n_hidden])
    sure, best = weak.detach().softmax(1).max(1)
    is_sure = sure >= cfg.confidence
    supervised = cross_entropy(known, labelled.labels)  # 10
    taught = cross_entropy(strong, best, where=is_sure, reduce="sum") / n_hidden  # 11
    logs = {
        "loss_labelled": supervised.detach(),
        "loss_unlabelled": taught.detach(),
        "sure_frac": is_sure.float().mean(),
    }
    return supervised + taught, len(known) + n_hidden, dict(logs)


STEPS: Mapping[BaselineName, Callable[[Config, Task, State, Mapping[str, Batch], Clock], Stepped]] = {
    "orca": _orca,
    "simgcd": _simgcd,
    "fixmatch_clusters": _fixmatch,
}


# ---- pieces ----------------------------------------------------------------------------------------------------------


def partners(feats: Tensor, labels: Tensor) -> Tensor:
    """Line 5: the row that each is paired with, [B] int64.

    A labelled row is paired with another of its label, drawn by chance, or with itself if there is none; an unlabelled
    one with the nearest other row.

    Args:
      feats: [B, D] float, any norm.
      labels: [B] int64, -1 = unknown.

    Example:
      >>> feats = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0.9, 0.1]])
      >>> partners(feats, torch.tensor([0, 0, -1, 1])).tolist()
      [1, 0, 1, 3]
    """
    z = F.normalize(feats.float(), dim=1)
    rows = torch.arange(len(z), device=z.device)
    is_itself = rows[:, None] == rows
    is_same = (labels[:, None] == labels) & (labels >= 0) & ~is_itself
    drawn = torch.rand(is_same.shape, device=z.device).masked_fill(~is_same, -1.0).argmax(1)
    nearest = (z @ z.T).masked_fill(is_itself, -torch.inf).argmax(1)
    return torch.where(labels < 0, nearest, torch.where(is_same.any(1), drawn, rows))


def pair_loss(probs: Tensor, others: Tensor) -> Tensor:
    """Line 5: binary cross-entropy of the inner products of predictions that should be one class, scalar in nats.

    Args:
      probs, others: [B, C], rows sum to 1.

    Source: Cao et al. 2022 (arXiv 2102.03526), pairwise objective; 1e-7 as in the authors' code.

    Example: log 2, where a pair agrees half of the time.
      >>> round(pair_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])).item(), 4)
      0.6931
    """
    return -((probs * others).sum(1) + 1e-7).log().mean()


def divergence_of_mean(logits: Tensor, prior: Tensor) -> Tensor:
    """Line 6: KL(mean prediction || prior), scalar >= 0 in nats.

    Args:
      logits: [B, C] float.
      prior: [C] float, sums to 1; a share of 0 counts as 1e-6.

    Example: one class only, of two that are due alike.
      >>> round(divergence_of_mean(torch.tensor([[50.0, 0.0]]), torch.tensor([0.5, 0.5])).item(), 4)
      0.6931
    """
    mean = logits.float().softmax(1).mean(0)
    return negative_entropy_of_mean(logits) - (mean * prior.clamp(min=1e-6).log()).sum()


def teacher_temperature(cfg: Config, clock: Clock) -> float:
    """Line 7: t falls at first, then stays.

    Example:
      >>> round(teacher_temperature(Config(), Clock(epoch=15, n_epochs=200, step=0, steps_per_epoch=1, seed=0)), 4)
      0.055
    """
    first, last = cfg.teacher_temperatures
    return first + (last - first) * linear_ramp(clock.epoch, length_epochs=cfg.teacher_ramp_frac * clock.n_epochs)


def supervised_contrastive(z1: Tensor, z2: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Line 9: SupCon of two views, both of them anchors; scalar in nats.

    Args:
      z1, z2: [B, D] float, unit norm.
      labels: [B] int64; rows with -1 take no part.
      temperature: > 0, divides the cosines.

    Example: as `nt_xent` where no two rows share a label.
      >>> round(supervised_contrastive(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), temperature=1.0).item(), 4)
      0.5514
    """
    where = labels >= 0
    sides = [
        noisy_contrastive(
            a, b, labels=labels, is_reliable=where, rule="supervised", temperature=temperature, where=where
        )
        for a, b in ((z1, z2), (z2, z1))
    ]
    return torch.stack(sides).mean()


def _add_clusters(cfg: Config, task: Task, state: State, passes: Passes) -> dict[str, Any]:
    """Line 12: cluster the images least sure of a seen class, and refit the last layer to what all images are."""
    named, every = n_seen(task), torch.arange(len(task.labels))
    feats = torch.cat([some.float() for _, some in passes("main", every, output="feats")])
    norm, z = feats.norm(dim=1).mean(), F.normalize(feats, dim=1)
    seen = [logits[:, :named].softmax(1).max(1) for _, logits in passes("main", every)]
    sure, best = (torch.cat(column) for column in zip(*seen, strict=True))
    answer = torch.where(task.labels >= 0, task.labels, best)
    hidden = (task.labels < 0).nonzero().flatten()
    due = due_unlabelled(state.memory["prior"], task.counts, len(task.labels))
    n_novel_rows = round(float(due[named:].sum()) * len(hidden))
    if cfg.novel_below is not None:
        n_novel_rows = int((sure[hidden] < cfg.novel_below).sum())
    n_novel_rows = min(max(n_novel_rows, task.n_novel), len(hidden))
    rows = hidden[sure[hidden].argsort(stable=True)[:n_novel_rows]]
    found = semi_supervised_kmeans(
        z[rows],
        torch.full_like(rows, -1),
        n_classes=task.n_novel,
        n_seen=0,
        n_init=cfg.n_init,
        seed=int(torch.randint(2**31, (1,))),
    )
    answer[rows] = named + found.assigned
    zeros = torch.zeros(task.n_classes, device=z.device)
    weight = torch.zeros(task.n_classes, z.shape[1], device=z.device)
    weight, bias = settle(z, answer, weight, zeros, balanced=lambda logits: zeros, n_rounds=1)
    put_in(state.nets["main"], weight / norm, bias)
    fitted = (z @ weight.T + bias).argmax(1)
    return {"cluster_inertia": found.inertia, "fitted_frac": round(float((fitted == answer).float().mean()), 5)}


def _looked(cfg: Config, task: Task, state: State, passes: Passes) -> tuple[State, dict[str, Any]]:
    """The pace of the classes on unlabelled images; for orca how uncertain these are (line 3)."""
    due = due_unlabelled(state.memory["prior"], task.counts, len(task.labels))
    logits = _scale(cfg) * unlabelled_logits(task, passes)
    told = pace_logs(logits, due, n_seen(task))
    if cfg.baseline == "orca":
        uncertainty = (1 - logits.softmax(1).amax(1).mean()).clamp(max=MAX_UNCERTAINTY)
        state = dataclasses.replace(state, memory={**state.memory, "uncertainty": uncertainty})
        told["uncertainty"] = round(float(uncertainty), 5)
    return state, told


def _prior_weight(cfg: Config, state: State) -> float:
    """Weight of the loss that spreads the predictions over all classes."""
    if cfg.prior_weight is not None:
        return cfg.prior_weight
    of_pixels, of_frozen = {"orca": (1.0, 3.0), "simgcd": (2.0, 4.0)}[cfg.baseline]
    return of_frozen if state.memory["is_frozen"] else of_pixels


def _scale(cfg: Config) -> float:
    """What the network's outputs are multiplied by."""
    return {"orca": cfg.scale, "simgcd": 1 / cfg.student_temperature}.get(cfg.baseline, 1.0)


def _head_of(net: nn.Module) -> Any:
    """The last layer of a `types.Network`."""
    inner: Any = net.classifier if isinstance(net, ProjectedNet) else net
    return inner.head


def _cosine_net(cfg: Config, task: Task, build_net: BuildNet) -> nn.Module:
    """As `open_world.new_net` with a cosine layer; its weights start at norm 1, which is what the rates are for."""
    net = new_net(cfg, task, build_net, head="cosine")
    weight = _head_of(net).weight
    weight.data.copy_(F.normalize(weight.data, dim=1))
    return net


def _unit_net(net: nn.Module) -> nn.Module:
    """The network with features of unit norm, for which a linear layer can be the nearest centroid; nothing learns."""
    if isinstance(net, Classifier) and not isinstance(net.backbone, (Stored, UnitBackbone)):
        net = net.with_backbone(UnitBackbone(net.backbone), name=net.name, image_size_px=net.image_size_px)
    return net.requires_grad_(False)
