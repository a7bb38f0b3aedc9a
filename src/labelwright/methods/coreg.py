"""Co-Reg: a classifier from sets of guessed labels, all of which may be wrong, by two networks that correct each other.

"Bridging Weakly-Supervised Learning and VLM Distillation: Noisy Partial Label Learning for Efficient Downstream
Adaptation" (2025), arXiv 2506.03229.

 1  first epochs: -log sum_{j in S} p_j + sum_j p_j log p_j, on both networks; S the candidate set              Sec. 4.1
 2  then after each epoch, per network: a = softmax on clean images, scaled until its mean is the prior         Sec. 4.2
 3     division loss -log max_{j in S} a_j, stretched to 0..1, mean of 5 epochs
 4     w = probability of the lower of two Gaussians fitted to it; P = {w > tau}, U the others
 5  each network learns on the *other's* P, w and a                                                co-pseudo-labels
 6  targets on U: sharpen(mean of both networks on the weak views)                                           Sec. 4.3
 7  targets on P: sharpen(w a_other + (1 - w) mean of its own weak views)
 8  L_cr = cross-entropy on P + lambda_u(t) squared error on U, on mixed strong views, Beta(4, 4), lambda >= 1/2
 9  prototypes of both networks move towards the projections of P under their argmax                         Sec. 4.4
10  L_prot = KL on P + squared error on U of softmax(z . mu / 0.3) against the mixed targets
11  L_ncont: positives = own key; same pseudo-label if both are reliable; same label otherwise is ignored    Sec. 4.5
12  L = L_cr + 0.1 L_prot + 0.1 L_ncont, the last two some epochs after line 1 is over
13  one network of two at the end: the better, their average, or distilled from both

Symbols: a=beliefs, w=clean, tau=threshold, T=temperature, mu=prototypes, S=Task.possible.
Departures: (1) one stream of all images, of which each network sees some as P and some as U, where the paper draws
batches of P and of U; (2) the mean of all predictions of an epoch in line 2, where the paper keeps a running mean of
batches, and three rounds of scaling; the mean predictions of line 6 and 7 are scaled as well, by a running mean of
batches that starts from it (`align_targets`), and so is what line 13 distils;
(3) on frozen features line 1 gives way to Gaussians with the guesses as evidence (labels/gaussians.py), line 2 weighs
in what the guesses say (`guess_strength`), views are not augmented or mixed, and the prior is estimated: line 1 alone
ends below its own annotator there; (4) sparse beliefs: the `keep` likeliest classes of an image; (5) prediction by
one network, the one that is saved.
Command: labelwright fit photos/ --classes names.txt --method coreg --model openai/clip-vit-base-patch32 --out RUN
Measured: docs/benchmarks.md, `labelwright bench --table coreg-cifar10` and `coreg-gtsrb`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from labelwright.encoders.projection import ProjectedNet
from labelwright.labels import purify
from labelwright.labels.candidate_beliefs import (
    MISS,
    bootstrap,
    candidate_beliefs,
    estimate_prior,
    information,
    rarely_guessed_warning,
)
from labelwright.labels.codivide import CoDivision, aligned_division, describe_divisions, read_beliefs
from labelwright.labels.first_guess import first_guess
from labelwright.labels.gaussians import chunks_of
from labelwright.labels.purify import init_loss_history
from labelwright.losses.candidates import informative_rows, negative_entropy, partial_cross_entropy
from labelwright.losses.classification import soft_cross_entropy
from labelwright.losses.contrastive import Rule, init_queue, noisy_contrastive, push_queue
from labelwright.losses.mixup import mixup
from labelwright.losses.prototypes import prototype_collapse, prototype_loss, update_prototypes
from labelwright.losses.soft_targets import linear_ramp, squared_error_of_probs
from labelwright.methods.baselines.candidate_sets import (
    CandidateSettings,
    check_task,
    first_view,
    new_net,
    plan_of_all,
)
from labelwright.methods.coreg_deploy import distil, finish, put_in
from labelwright.metrics.agreement import Watch
from labelwright.metrics.diagnostics import division_warnings
from labelwright.train.processes import gather_queries, gather_rows, mean_share, sum_gradients
from labelwright.train.seeds import generator
from labelwright.train.settings import require
from labelwright.types import Average, Batch, BuildNet, Clock, EpochPlan, Passes, Prediction, State, StepResult, Task

N_DIMS = 128  # of the projections (Sec. 5.1)


@dataclass(frozen=True, kw_only=True)
class Config(CandidateSettings):
    """Settings of Co-Reg. None = what suits pixels (the paper's) or frozen features, in that order."""

    epochs: int = 800  # passes over all images (Sec. 5.1)
    n_networks: int = 2  # 1 learns on its own word
    use_co_labels: bool = True  # line 5; False: each network on its own P, w and a (ablation)
    partial_epochs: int | None = None  # line 1: 50 (100 to 200 for CIFAR-100), never more than a third; or 0
    entropy_weight: float | None = None  # line 1: 1, or less the larger the sets are (_warm_up)
    start: Literal["auto", "shape", "none"] = "auto"  # shape: Gaussians fitted to the guesses; auto: on frozen features
    start_strength: float = 0.15  # start="shape": logits of the networks over the log densities
    use_alignment: bool = True  # line 2; False: the softmax as it is (ablation)
    align_targets: bool = True  # lines 6, 7 and 13 scaled as well
    mean_decay: float = 0.98  # of the running mean that they are scaled by, per step: some 50 batches (Sec. 4.2)
    prior: Literal["auto", "uniform"] = "auto"  # shares that line 2 aligns with: estimated (estimate_prior), or even
    guess_strength: float = 1.0  # how much the guesses weigh in line 2 (paper: 0)
    threshold: float = 0.5  # tau, probability above which the guesses are trusted (Sec. 5.1)
    history_epochs: int = 5  # division losses averaged (Sec. 4.2)
    keep: int = 64  # classes of each image that the table of beliefs holds; with that many or fewer it is exact
    temperature: float = 0.5  # T of the sharpening (Sec. 5.1)
    mixup_alpha: float | None = None  # Beta(alpha, alpha): 4, or 0 = no mixing
    strong_view: Literal["auto", "clean", "weak", "strong"] = "auto"  # view learned on: strong, or clean
    unlabelled_weight: float = 1.0  # lambda_u at the end of its ramp
    ramp_epochs: float = 16.0  # epochs over which lambda_u grows from 0
    prototype_weight: float = 0.1  # 0 = no prototypes (ablation)
    prototype_decay: float = 0.999  # share of the old prototype kept by one image
    prototype_temperature: float = 0.3  # divides the cosines with the prototypes
    contrastive_weight: float = 0.1  # 0 = no contrastive loss (ablation)
    contrastive_temperature: float = 0.07  # divides the cosines
    rule: Rule = "cautious"  # who attracts and who is ignored, see losses.contrastive
    queue_size: int = 8192  # keys
    key_decay: float = 0.999  # share of the old weights that a momentum network keeps per step
    representation_after_epochs: int = 10  # after line 1, before lines 10 and 11 begin; never more than a quarter
    deploy: Literal["auto", "better", "average", "distil"] = "auto"  # line 13; auto: distil, better if alone
    distil_frac: float = 0.2  # deploy="distil": share of the epochs in which one network learns from both

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = ("unlabelled_weight", "prototype_weight", "contrastive_weight")
        for key in ("ramp_epochs", "start_strength", "guess_strength", *weights):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        for key in ("partial_epochs", "mixup_alpha", "entropy_weight"):
            value = getattr(self, key)
            require(value is None or value >= 0, key, value, "0 or more, or none")
        for key in ("temperature", "prototype_temperature", "contrastive_temperature"):
            require(getattr(self, key) > 0, key, getattr(self, key), "above 0")
        for key in ("prototype_decay", "key_decay", "mean_decay"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        for key in ("history_epochs", "keep", "queue_size"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(0 <= self.threshold < 1, "threshold", self.threshold, "in [0, 1)")
        require(0 < self.distil_frac < 1, "distil_frac", self.distil_frac, "in (0, 1)")
        require(self.n_networks in (1, 2), "n_networks", self.n_networks, "1 or 2")
        if self.n_networks == 1:
            require(self.deploy in ("auto", "better"), "deploy", self.deploy, "auto or better with one network")


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """Two networks with projectors, their momentum copies, empty queues and prototypes."""
    check_task(task, "coreg")
    is_alike = _starts_by_shape(cfg, build_net.is_frozen)
    require(
        is_alike or cfg.deploy != "average",
        "deploy",
        cfg.deploy,
        "better or distil where the networks do not start alike",
    )
    device, n, n_classes = task.labels.device, len(task.labels), task.n_classes
    names = ("main", "peer")[: cfg.n_networks]
    nets = {name: ProjectedNet(cast(Any, new_net(cfg, task, build_net)), n_dims=N_DIMS) for name in names}
    if is_alike and cfg.n_networks == 2:
        nets["peer"] = copy.deepcopy(nets["main"])  # their starts will differ by the bootstrap
    wants_keys = cfg.contrastive_weight > 0
    averages = {f"{name}_key": Average(name, cfg.key_decay) for name in names if wants_keys}
    nets |= {key: copy.deepcopy(nets[average.source]) for key, average in averages.items()}
    if _deploys_by(cfg) == "distil":
        nets["teacher"] = copy.deepcopy(nets["main"]).requires_grad_(False)
    memory: dict[str, Any] = {
        "is_frozen": build_net.is_frozen,
        "prior": torch.full((n_classes,), 1 / n_classes, device=device),
        "miss": torch.full((n_classes,), MISS, device=device),
        "is_prior_known": True,
        "entropy_weight": information(task) ** 4 if cfg.entropy_weight is None else cfg.entropy_weight,
        "prototypes": torch.zeros(n_classes, N_DIMS, device=device),
        "divisions": {name: {"history": init_loss_history(n, cfg.history_epochs, device)} for name in names},
    }
    if averages:
        memory["queues"] = {name: init_queue(cfg.queue_size, N_DIMS, device) for name in names}
    return State(nets=nets, averages=averages, memory=memory)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> tuple[State, Mapping[str, Any]]:
    """Line 3 of the departures: on frozen features both networks start from Gaussians, each from its own bootstrap."""
    everything = torch.arange(len(task.labels))
    guessed, shares = [], torch.zeros(task.n_classes, device=task.labels.device)
    for rows in chunks_of(everything.to(task.labels.device), task.n_classes):
        guesses = task.guesses(rows)
        guessed.append(first_guess(guesses, rows))
        shares += guesses.sum(0)
    known = torch.full_like(shares, 1 / task.n_classes) if cfg.prior == "uniform" else None
    prior, rarely_guessed, is_rebalanced = estimate_prior(shares)
    memory, watch = dict(state.memory), None
    logs: dict[str, Any] = {"guessed_frac": [round(float(s), 5) for s in shares / shares.sum()]}
    if _starts_by_shape(cfg, memory["is_frozen"]):
        # Half precision, as a store keeps them: all features are held at once.
        feats = torch.cat([z.half() for _, z in passes("main", everything, output="feats")])
        whole = candidate_beliefs(feats, task, prior=known)
        prior, rarely_guessed, is_rebalanced = whole.beliefs.prior, whole.rarely_guessed, whole.is_rebalanced
        memory["miss"] = whole.miss
        for name in state.memory["divisions"]:
            drawn = bootstrap(task) if cfg.n_networks == 2 else everything
            wanted = prior if is_rebalanced else known
            own = candidate_beliefs(feats, task, rows=drawn, prior=wanted).beliefs
            put_in(state, name, cfg.start_strength * own.weight, cfg.start_strength * own.bias)
        watch = Watch.start(feats, task.n_classes, torch.cat(guessed))
        logs["miss"] = [round(float(m), 4) for m in whole.miss]
    elif task.clusters is not None:
        watch = Watch.of_clusters(task.clusters, torch.cat(guessed))
    if watch is not None:
        memory["watch"] = watch.to_dict()
        logs["annotator_agreement"] = watch.zero_shot_agreement
    memory |= {"prior": prior if known is None else known, "is_prior_known": is_rebalanced or known is not None}
    logs |= {"prior": [round(float(p), 5) for p in memory["prior"]], "class_names": list(task.class_names)}
    logs["rarely_guessed"] = [task.class_names[c] for c in rarely_guessed]
    logs["warnings"] = rarely_guessed_warning(task.class_names, rarely_guessed, is_rebalanced=is_rebalanced)
    state = dataclasses.replace(state, memory=memory)
    if partial_epochs(cfg, state) == 0:
        state, told = _divided(cfg, task, state, passes, epoch=-1)
        logs |= {"reliable_frac": told["reliable_frac"], "in_set_frac": told["in_set_frac"]}
    return state, logs


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Every image once: in one view at first and at the end, else in two to look at and two to learn on."""
    if epoch < partial_epochs(cfg, state) or epoch >= distil_epoch(cfg, state):
        return plan_of_all(cfg, task, state, epoch)
    weak, strong = _views(cfg, state)
    return plan_of_all(cfg, task, state, epoch, (*weak[1:], *(() if weak == strong == ("clean",) else strong)))


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """The losses of both networks, from one batch that each of them divides its own way."""
    batch, memory = batches["train"], dict(state.memory)
    if clock.epoch < partial_epochs(cfg, state):
        return _warm_up(task, state, batch)
    if clock.epoch >= distil_epoch(cfg, state):
        return distil(state, batch, functools.partial(_scaled, cfg, state))
    names, (n_weak, n_strong) = tuple(memory["divisions"]), map(len, _views(cfg, state))
    with torch.no_grad():
        seen = {name: _look(cfg, state, memory, name, batch.views[:n_weak]) for name in names}  # views of [B, C]
    since = clock.epoch_frac - partial_epochs(cfg, state)
    is_late = clock.epoch - partial_epochs(cfg, state) >= representation_epoch(cfg, state)
    losses, logs = [], dict[str, Tensor | float]()
    for name in names:
        word = memory["divisions"][names[names.index(name) - 1] if cfg.use_co_labels else name]  # 5
        clean = word["clean"][batch.rows]
        is_reliable = clean > cfg.threshold
        own = torch.stack(seen[name]).mean(0)
        everyone = [p for views in (seen.values() if cfg.use_co_labels else [seen[name]]) for p in views]
        beliefs = read_beliefs(word["beliefs"], batch.rows, task.n_classes)
        on_p = purify.reliable_targets(own, beliefs, clean, temperature=cfg.temperature)  # 7
        on_u = purify.unreliable_targets(everyone, temperature=cfg.temperature)  # 6
        targets = torch.where(is_reliable[:, None], on_p, on_u)
        draws = generator(clock.seed, "mixup", name, clock.epoch, clock.step)
        ramp = cfg.unlabelled_weight * linear_ramp(since, length_epochs=cfg.ramp_epochs)
        each = _terms(
            cfg, state, memory, name, batch.views[-n_strong:], targets, is_reliable, draws, ramp, is_late=is_late
        )
        losses.append(sum(each.values(), torch.zeros(())))  # 12
        logs |= {f"{term}_{name}": value.detach() for term, value in each.items()}
        logs[f"reliable_frac_{name}"] = is_reliable.float().mean()
    return StepResult(sum(losses, torch.zeros(())), len(batch.rows), dataclasses.replace(state, memory=memory), logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> tuple[State, Mapping[str, Any]]:
    """Divide anew, look for the failure signs, and at the end make one network of two."""
    if epoch + 1 < partial_epochs(cfg, state):
        return state, {}
    logs: dict[str, Any] = {"warnings": []}
    distils_from = max(distil_epoch(cfg, state), partial_epochs(cfg, state))  # no sooner than line 1 is over
    if epoch < distils_from:
        state, logs = _divided(cfg, task, state, passes, epoch=epoch)
        for name, average in state.averages.items():
            state.nets[name].load_state_dict(state.nets[average.source].state_dict())
    if epoch + 1 == distils_from and "teacher" in state.nets:
        state.nets["teacher"].load_state_dict(state.nets["main"].state_dict())
    if epoch + 1 == cfg.epochs:
        by = _deploys_by(cfg)
        by = "better" if by == "distil" and distils_from >= cfg.epochs else by  # there was no epoch for it
        logs |= finish(by, task, state, passes, logs["warnings"])
    return state, logs


def predict(cfg: Config, state: State, x: Tensor) -> Prediction:
    """Plain logits of the first network: alignment acts in training only."""
    return Prediction(state.nets["main"](x))


def partial_epochs(cfg: Config, state: State) -> int:
    """Epochs of line 1.

    Example:
      >>> partial_epochs(Config(epochs=800), State({}, memory={"is_frozen": False}))
      50
    """
    if cfg.partial_epochs is not None:
        return min(cfg.partial_epochs, cfg.epochs)
    return 0 if _starts_by_shape(cfg, state.memory["is_frozen"]) else max(1, min(50, round(cfg.epochs / 3)))


def representation_epoch(cfg: Config, state: State) -> int:
    """Epochs after line 1 from which lines 10 and 11 count.

    Example:
      >>> representation_epoch(Config(epochs=20, partial_epochs=4), State({}))
      4
    """
    return min(cfg.representation_after_epochs, (cfg.epochs - partial_epochs(cfg, state)) // 4)


def distil_epoch(cfg: Config, state: State) -> int:
    """First epoch in which one network learns from both; the number of epochs if none does.

    Example: the first epoch of all is never one, there is nothing to learn from yet.
      >>> state = State({"teacher": torch.nn.Identity()})
      >>> [distil_epoch(Config(epochs=n), state) for n in (1, 2, 10)]
      [1, 1, 8]
    """
    n_epochs = max(1, round(cfg.distil_frac * cfg.epochs))
    return max(1, cfg.epochs - n_epochs) if "teacher" in state.nets else cfg.epochs


def _starts_by_shape(cfg: Config, is_frozen: bool) -> bool:
    return cfg.start == "shape" or (cfg.start == "auto" and is_frozen)


def _deploys_by(cfg: Config) -> str:
    return cfg.deploy if cfg.deploy != "auto" else "distil" if cfg.n_networks == 2 else "better"


def _views(cfg: Config, state: State) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Views to look at and views to learn on; the un-augmented one is there once only."""
    weak, strong = first_view(cfg, state), cfg.strong_view
    if strong == "auto":
        strong = "clean" if state.memory["is_frozen"] else "strong"
    return (weak,) * (1 if weak == "clean" else 2), (strong,) * (1 if strong == "clean" else 2)


def _warm_up(task: Task, state: State, batch: Batch) -> StepResult:
    """Line 1. With large sets a weight of 1 leaves the even prediction the best one, and nothing would be learned."""
    possible = task.possible(batch.rows)
    n_told = informative_rows(possible).sum()
    losses = []
    for name in state.memory["divisions"]:
        logits = state.nets[name](batch.x)
        partial = partial_cross_entropy(logits, possible) * mean_share(n_told.float())
        losses.append(partial + state.memory["entropy_weight"] * negative_entropy(logits))
    return StepResult(sum(losses, torch.zeros(())), len(batch.rows), state, {"partial_loss": losses[0].detach()})


def _look(cfg: Config, state: State, memory: dict[str, Any], name: str, views: tuple[Tensor, ...]) -> list[Tensor]:
    """Probabilities [B, C] of each view, all in one pass, scaled by their running mean, which moves in ``memory``."""
    # A mean as old as the last division would let a class that gains in between feed on its own targets.
    probs = cast(Tensor, state.nets[name](torch.cat(views))).float().softmax(1)
    word = memory["divisions"][name]
    mean = word["mean"].lerp(gather_rows(probs.mean(0, keepdim=True)).mean(0), 1 - cfg.mean_decay)
    memory["divisions"] = {**memory["divisions"], name: {**word, "mean": mean}}
    return list(_scaled(cfg, state, probs, mean).chunk(len(views)))


def _scaled(cfg: Config, state: State, probs: Tensor, mean: Tensor) -> Tensor:
    """Probabilities [B, C] of a network with that mean [C], scaled to the prior."""
    if not (cfg.align_targets and cfg.use_alignment):
        return probs
    return purify.align(probs, running=mean, prior=state.memory["prior"])


def _terms(
    cfg: Config,
    state: State,
    memory: dict[str, Any],
    name: str,
    views: tuple[Tensor, ...],
    targets: Tensor,
    is_reliable: Tensor,
    draws: torch.Generator,
    ramp: float,
    *,
    is_late: bool,
) -> dict[str, Tensor]:
    """The weighted losses of one network; prototypes and its queue are renewed in ``memory``."""
    net = cast(ProjectedNet, state.nets[name])
    n, repeated, on_p = len(views[0]), targets.repeat(len(views), 1), is_reliable.repeat(len(views))
    alpha = cfg.mixup_alpha if cfg.mixup_alpha is not None else 0.0 if memory["is_frozen"] else 4.0
    mixed = mixup(torch.cat(views), repeated, alpha=alpha, generator=draws, at_least_half=True)
    wants_plain = is_late and mixed.lam < 1  # projections of views that are not mixed, in the same pass
    logits, z = net.both(torch.cat([mixed.x, views[0]]) if wants_plain else mixed.x)
    query, logits, z = z[-n:] if wants_plain else z[:n], logits[: len(on_p)], z[: len(on_p)]
    share_p, share_u = (mean_share(rows.sum().float()) for rows in (on_p, ~on_p))
    terms = {
        "loss_p": share_p * soft_cross_entropy(logits, mixed.targets, where=on_p),
        "loss_u": ramp * share_u * squared_error_of_probs(logits, mixed.targets, where=~on_p),  # 8
    }
    if not is_late:
        return terms
    labels = targets.argmax(1)
    memory["prototypes"] = update_prototypes(
        memory["prototypes"],
        gather_rows(query.detach()),
        gather_rows(labels),
        decay=cfg.prototype_decay,
        where=gather_rows(is_reliable),
    )  # 9
    if cfg.prototype_weight > 0:
        near = {
            rows: prototype_loss(
                z,
                memory["prototypes"],
                repeated,
                is_reliable=on_p,
                permutation=mixed.permutation,
                lam=mixed.lam,
                temperature=cfg.prototype_temperature,
                weights=(on_p if rows == "p" else ~on_p).float(),  # no `where`: it would blank partners' targets
            )
            for rows in ("p", "u")
        }
        terms["loss_prototypes"] = cfg.prototype_weight * (share_p * near["p"] + share_u * near["u"])  # 10
    if cfg.contrastive_weight > 0:
        with torch.no_grad():
            _, key = cast(ProjectedNet, state.nets[f"{name}_key"]).both(views[-1])
        keys, labels, is_trusted = gather_rows(key), gather_rows(labels), gather_rows(is_reliable)
        apart = noisy_contrastive(
            gather_queries(query),
            keys,
            labels=labels,
            is_reliable=is_trusted,
            queue=memory["queues"][name],
            rule=cfg.rule,
            temperature=cfg.contrastive_temperature,
        )
        terms["loss_contrastive"] = cfg.contrastive_weight * sum_gradients(apart)  # 11
        queue = push_queue(memory["queues"][name], keys, labels, is_trusted)
        memory["queues"] = {**memory["queues"], name: queue}
    return terms


def _divided(cfg: Config, task: Task, state: State, passes: Passes, *, epoch: int) -> tuple[State, dict[str, Any]]:
    """Lines 2 to 4 for each network, and what there is to say of them."""
    memory, found = dict(state.memory), dict[str, CoDivision]()
    for name, before in memory["divisions"].items():
        found[name] = aligned_division(
            name,
            task,
            passes,
            before["history"],
            prior=memory["prior"],
            miss=memory["miss"],
            guess_strength=cfg.guess_strength,
            ratio=before["ratio"] if memory["is_prior_known"] and "ratio" in before else None,
            use_alignment=cfg.use_alignment,
            threshold=cfg.threshold,
            keep=cfg.keep,
            seed=epoch + 1,
        )
    fields = ("beliefs", "clean", "ratio", "mean", "history")
    memory["divisions"] = {name: {key: getattr(word, key) for key in fields} for name, word in found.items()}
    collapse = float(prototype_collapse(memory["prototypes"])) if cfg.prototype_weight > 0 else 0.0
    logs = describe_divisions(list(found.values()), collapse=collapse)
    if "watch" in memory:
        logs["cluster_agreement"] = Watch.from_dict(memory["watch"]).agreement(found["main"].predicted)
    memory.setdefault("first_told", {key: logs[key] for key in ("reliable_frac", "in_set_frac")})
    told = {"has_guesses": found["main"].n_divided > 0, "cosine_before": memory.get("prototype_cosine", 0.0)}
    logs["warnings"] = division_warnings(logs, memory["first_told"], epoch=epoch, **told)
    return dataclasses.replace(state, memory=memory | {"prototype_cosine": collapse}), logs
