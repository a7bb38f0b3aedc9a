"""Co-Reg: a classifier from sets of guessed labels, all of which may be wrong, by two networks that correct each other.

"Bridging Weakly-Supervised Learning and VLM Distillation: Noisy Partial Label Learning for Efficient Downstream
Adaptation" (2025), arXiv 2506.03229.

 1  first epochs: -log sum_{j in S} p_j + sum_j p_j log p_j, on both networks; S the candidate set              Sec. 4.1
 2  then after each epoch, per network: a = softmax on clean images * class prior / mean prediction, renormalised;
    the mean runs over the last 50 batches                                                                      Sec. 4.2
 3     division loss -log max_{j in S} a_j, stretched to 0..1, mean of 5 epochs
 4     w = probability of the lower of two Gaussians fitted to it; P = {w > tau}, U the others
 5  each network learns on the *other's* P, U, w and a                                            co-pseudo-labels
 6  batches of U: targets sharpen(mean of both networks on the weak views)                                   Sec. 4.3
 7  batches of P: targets sharpen(w a_other + (1 - w) mean of its own weak views)
 8  L_cr = cross-entropy on P + lambda_u(t) squared error on U, on mixed strong views, Beta(4, 4), lambda >= 1/2
 9  prototypes of both networks move towards the projections of P under their argmax                         Sec. 4.4
10  L_prot = KL on P + squared error on U of softmax(z . mu / 0.3) against the mixed targets
11  L_ncont: positives = own key; same pseudo-label if both are reliable; same label otherwise is ignored    Sec. 4.5
12  L = L_cr + 0.1 L_prot + 0.1 L_ncont, the last two from 10 epochs after line 1; keys are copied anew each epoch
13  predict with the sum of both networks' logits; both are saved. On frozen features the annotator's own classifier is,
    where its guesses agree better with clusters of these than what was learned

Symbols: a=beliefs, w=clean, tau=threshold, T=temperature, mu=prototypes, S=Task.possible.
Departures: a step has half a batch of P and half of U (of both networks at once), and an epoch as many steps as all
images make batches; the rate falls to 0, not to 1e-5; of an image the 64 most probable classes are remembered; lines 1
and 12 and the ramp of lambda_u are cut short in short runs. `PRESETS["paper"]` is the rest as published; the defaults
are those of our runs from pixels (docs/results/coreg_pixels.csv, which compares the length of line 1 and T alone).
On frozen features use methods/coreg_frozen.py: line 1 ends below its annotator there (docs/results/coreg_parts.csv).
Command: labelwright fit photos/ --classes names.txt --method coreg --annotator openai/clip-vit-base-patch32 --out RUN
Measured: docs/benchmarks.md, `labelwright bench --table coreg-pixels-40`; numbers there are of an earlier form.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from labelwright.encoders.projection import ProjectedNet
from labelwright.labels import purify
from labelwright.labels.candidate_beliefs import describe_guesses, estimate_prior, guessed_shares, information
from labelwright.labels.codivide import CoDivision, aligned_division, describe_divisions, read_beliefs
from labelwright.labels.first_guess import first_guesses
from labelwright.losses.candidates import informative_rows, negative_entropy, partial_cross_entropy
from labelwright.losses.contrastive import init_queue
from labelwright.losses.prototypes import prototype_collapse
from labelwright.losses.soft_targets import linear_ramp
from labelwright.methods.baselines.candidate_sets import check_task, first_view, new_net, plan_of_all, put_annotator_in
from labelwright.methods.coreg_losses import Learned, classification_losses, representation_losses
from labelwright.methods.coreg_settings import PARTNERS, partial_epochs, ramp_epochs, representation_epoch
from labelwright.methods.coreg_settings import PRESETS as PRESETS
from labelwright.methods.coreg_settings import Config as Config
from labelwright.methods.recipe import Begun
from labelwright.metrics.agreement import Watch, clusters_of
from labelwright.metrics.diagnostics import division_warnings
from labelwright.metrics.student import judge_student
from labelwright.train.plans import steps_for
from labelwright.train.processes import gather_rows, mean_share
from labelwright.train.seeds import generator
from labelwright.types import (
    Average,
    Batch,
    BuildNet,
    Clock,
    EpochPlan,
    Passes,
    Prediction,
    State,
    StepResult,
    Stream,
    Task,
)

N_DIMS = 128  # of the projections (Sec. 5.1)
DIVIDED_EPOCHS = 5  # whose losses line 3 averages
ALIGNED_BATCHES = 50  # that the mean prediction of line 2 runs over
KEY_DECAY = 0.999  # share of the old weights that a momentum network keeps per step


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """Two networks with projectors, their momentum copies, empty queues and prototypes."""
    check_task(task, "coreg")
    device, n, n_classes, names = task.labels.device, len(task.labels), task.n_classes, PARTNERS[cfg.networks]
    nets = {name: ProjectedNet(cast(Any, new_net(cfg, task, build_net)), n_dims=N_DIMS) for name in names}
    averages = {f"{name}_key": Average(name, KEY_DECAY) for name in names if cfg.contrastive_weight > 0}
    nets |= {key: copy.deepcopy(nets[average.source]) for key, average in averages.items()}
    nets["main"].summed_with = tuple(nets[name] for name in names if name != "main")  # 13
    memory: dict[str, Any] = {
        "is_frozen": build_net.is_frozen,
        "prior": torch.full((n_classes,), 1 / n_classes, device=device),
        "entropy_weight": information(task) ** 4 if cfg.entropy_weight is None else cfg.entropy_weight,
        "prototypes": torch.zeros(n_classes, N_DIMS, device=device),
        "recent": {name: purify.init_history(n_classes, ALIGNED_BATCHES, device) for name in names},
        "divisions": {name: {"history": purify.init_history(n, DIVIDED_EPOCHS, device)} for name in names},
    }
    if averages:
        memory["queues"] = {name: init_queue(cfg.queue_size, N_DIMS, device) for name in names}
    return State(nets=nets, averages=averages, memory=memory)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """The class prior, from the guesses; clusters to hold the answers against, where there are any."""
    prior, rarely_guessed, is_rebalanced = estimate_prior(guessed_shares(task))
    memory = dict(state.memory)
    if cfg.prior == "auto":
        memory["prior"] = prior
    logs = describe_guesses(task, memory["prior"], rarely_guessed, is_rebalanced=is_rebalanced)
    clusters = task.clusters
    if clusters is None and state.memory["is_frozen"]:
        feats = [z.half() for _, z in passes("main", torch.arange(len(task.labels)), output="feats")]
        clusters = clusters_of(torch.cat(feats), task.n_classes)
    if clusters is not None:
        watch = Watch.of_clusters(clusters, first_guesses(task))
        memory["watch"] = watch.to_dict()
        logs["annotator_agreement"] = watch.zero_shot_agreement
    state = dataclasses.replace(state, memory=memory)
    if partial_epochs(cfg) == 0:
        state, divided = _divided(cfg, task, state, passes, epoch=-1)
        logs |= {"reliable_frac": divided["reliable_frac"], "in_set_frac": divided["in_set_frac"]}
    return state, logs


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """At first every image once in one view; then, for each network, P and U apart, to look at and to learn on."""
    if epoch < partial_epochs(cfg):
        return plan_of_all(cfg, task, state, epoch)
    weak, strong = _views(cfg, state)
    views = weak if weak == strong == ("clean",) else (*weak, *strong)
    streams = dict[str, Stream]()
    for name, partner in PARTNERS[cfg.networks].items():
        is_reliable = state.memory["divisions"][partner]["clean"].cpu() > cfg.threshold
        groups = {"p": is_reliable.nonzero().flatten(), "u": (~is_reliable).nonzero().flatten()}
        size = max(1, cfg.batch_size // sum(len(rows) > 0 for rows in groups.values()))
        streams |= {f"{name}_{key}": Stream(rows, size, views) for key, rows in groups.items() if len(rows)}
    return EpochPlan(streams, steps_for(len(task.labels), cfg.batch_size))


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """The losses of both networks, each from its own batches."""
    if clock.epoch < partial_epochs(cfg):
        return _warm_up(task, state, batches["train"])
    memory, (weak, strong) = dict(state.memory), _views(cfg, state)
    losses, logs = [], dict[str, Tensor | float]()
    for name, partner in PARTNERS[cfg.networks].items():
        word = memory["divisions"][partner]  # 5
        targets, mean = [], torch.zeros_like(memory["prior"])
        groups = {key: batches[f"{name}_{key}"] for key in ("p", "u") if f"{name}_{key}" in batches}
        reliable_frac = (word["clean"] > cfg.threshold).double().mean()
        for key, batch in groups.items():
            with torch.no_grad():
                own = _looks(state, name, batch.views[: len(weak)])  # views of [B, C]
                both = own if partner == name or key == "p" else own + _looks(state, partner, batch.views[: len(weak)])
            mean += (reliable_frac if key == "p" else 1 - reliable_frac) * torch.cat(own).mean(0)
            if key == "u":
                targets.append(purify.sharpen(torch.stack(both).mean(0), temperature=cfg.temperature))  # 6
                continue
            beliefs, clean = read_beliefs(word["beliefs"], batch.rows, task.n_classes), word["clean"][batch.rows]
            own_mean = torch.stack(own).mean(0)
            targets.append(purify.reliable_targets(own_mean, beliefs, clean, temperature=cfg.temperature))  # 7
        memory["recent"] = _pushed(memory["recent"], name, mean)
        views = tuple(map(torch.cat, zip(*(batch.views[-len(strong) :] for batch in groups.values()), strict=True)))
        is_reliable = torch.cat([torch.full_like(batch.rows, key == "p").bool() for key, batch in groups.items()])
        learned = Learned(views, torch.cat(targets), is_reliable)
        each = _losses(cfg, state, memory, name, learned, clock)
        losses.append(sum(each.values(), torch.zeros(())))  # 12
        logs |= {f"{term}_{name}": value.detach() for term, value in each.items()}
    n_kept = sum(len(batch.rows) for batch in batches.values()) // len(losses)
    return StepResult(sum(losses, torch.zeros(())), n_kept, dataclasses.replace(state, memory=memory), logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Divide anew, start the keys from the queries again, and at the end look at what both networks say together."""
    if epoch + 1 < partial_epochs(cfg):
        return state, {}
    state, logs = _divided(cfg, task, state, passes, epoch=epoch)
    for name, average in state.averages.items():
        state.nets[name].load_state_dict(state.nets[average.source].state_dict())
    return state, logs | (_scored(task, state, passes, logs) if epoch + 1 == cfg.epochs else {})


def predict(cfg: Config, state: State, x: Tensor) -> Prediction:
    """The sum of both networks' plain logits: alignment acts in training only."""
    logits = [cast(Tensor, state.nets[name](x)) for name in PARTNERS[cfg.networks]]
    return Prediction(sum(logits[1:], logits[0]))  # 13


def _views(cfg: Config, state: State) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Views to look at and views to learn on; the un-augmented one is there once only."""
    weak, strong = first_view(cfg, state), cfg.strong_view
    if strong == "auto":
        strong = "clean" if state.memory["is_frozen"] else "weak"
    return (weak,) * (1 if weak == "clean" else 2), (strong,) * (1 if strong == "clean" else 2)


def _warm_up(task: Task, state: State, batch: Batch) -> StepResult:
    """Line 1. With large sets a weight of 1 leaves the even prediction the best one, and nothing would be learned."""
    possible, memory = task.possible(batch.rows), dict(state.memory)
    n_informative = informative_rows(possible).sum()
    losses = []
    for name in memory["recent"]:
        logits = state.nets[name](batch.x)
        partial = partial_cross_entropy(logits, possible) * mean_share(n_informative.float())
        losses.append(partial + memory["entropy_weight"] * negative_entropy(logits))
        memory["recent"] = _pushed(memory["recent"], name, logits.detach().float().softmax(1).mean(0))
    loss, logs = sum(losses, torch.zeros(())), {"partial_loss": losses[0].detach()}
    return StepResult(loss, len(batch.rows), dataclasses.replace(state, memory=memory), logs)


def _looks(state: State, name: str, views: tuple[Tensor, ...]) -> list[Tensor]:
    """Probabilities [B, C] of each view, all in one pass."""
    return list(cast(Tensor, state.nets[name](torch.cat(views))).float().softmax(1).chunk(len(views)))


def _pushed(recent: Mapping[str, Any], name: str, mean: Tensor) -> dict[str, Any]:
    """The mean predictions of line 2 with a batch's mean [C] added to those of one network."""
    return {**recent, name: purify.push_history(recent[name], gather_rows(mean[None]))}


def _losses(
    cfg: Config, state: State, memory: dict[str, Any], name: str, learned: Learned, clock: Clock
) -> dict[str, Tensor]:
    """Lines 8 to 11 of one network; prototypes and its queue are renewed in ``memory``."""
    since, is_late = clock.epoch_frac - partial_epochs(cfg), clock.epoch >= representation_epoch(cfg)
    losses, passed = classification_losses(
        cast(ProjectedNet, state.nets[name]),
        learned,
        mixup_alpha=cfg.mixup_alpha,
        draws=generator(clock.seed, "mixup", name, clock.epoch, clock.step),
        unlabelled_weight=cfg.unlabelled_weight * linear_ramp(since, length_epochs=ramp_epochs(cfg)),
        is_projected=is_late,
    )
    if not is_late:
        return losses
    more, memory["prototypes"], queue = representation_losses(
        learned,
        passed,
        cast(ProjectedNet | None, state.nets.get(f"{name}_key")),
        prototypes=memory["prototypes"],
        queue=memory["queues"][name] if "queues" in memory else None,
        rule=cfg.contrastive_rule,
        weights=(cfg.prototype_weight, cfg.contrastive_weight),
    )
    if queue is not None:
        memory["queues"] = {**memory["queues"], name: queue}
    return losses | more


def _divided(cfg: Config, task: Task, state: State, passes: Passes, *, epoch: int) -> tuple[State, dict[str, Any]]:
    """Lines 2 to 4 for each network, and what there is to report of them."""
    memory, found = dict(state.memory), dict[str, CoDivision]()
    for name, before in memory["divisions"].items():
        found[name] = aligned_division(
            name,
            task,
            passes,
            before["history"],
            prior=memory["prior"],
            ratio=memory["prior"] / purify.mean_of(memory["recent"][name]).clamp(min=purify.RUNNING_MIN),
            n_rounds=0,
            use_alignment=cfg.use_alignment,
            threshold=cfg.threshold,
            seed=epoch + 1,
        )
    fields = ("beliefs", "clean", "history")
    memory["divisions"] = {name: {key: getattr(word, key) for key in fields} for name, word in found.items()}
    collapse = float(prototype_collapse(memory["prototypes"])) if cfg.prototype_weight > 0 else 0.0
    logs = describe_divisions(list(found.values()), collapse=collapse)
    if "watch" in memory:
        logs["cluster_agreement"] = Watch.from_dict(memory["watch"]).agreement(found["main"].predicted)
    memory.setdefault("first_divided", {key: logs[key] for key in ("reliable_frac", "in_set_frac")})
    known = {"has_guesses": found["main"].n_divided > 0, "cosine_before": memory.get("prototype_cosine", 0.0)}
    logs["warnings"] = division_warnings(logs, memory["first_divided"], epoch=epoch, **known)
    return dataclasses.replace(state, memory=memory | {"prototype_cosine": collapse}), logs


def _scored(task: Task, state: State, passes: Passes, logs: Mapping[str, Any]) -> dict[str, Any]:
    """How well the answers of line 13 fit, without labels."""
    names, answers = tuple(state.memory["recent"]), torch.zeros_like(task.labels)
    for each in zip(*(passes(name, torch.arange(len(answers))) for name in names), strict=True):
        answers[each[0][0]] = torch.stack([logits for _, logits in each]).sum(0).argmax(1)
    found, sentences = judge_student(task, answers, state.memory.get("watch"))
    deployed = "sum" if len(names) > 1 else "one"
    if found["score_deployed"] < found.get("score_guesses", 0.0):
        nets = [cast(ProjectedNet, state.nets[name]).classifier for name in ("main", *(set(names) - {"main"}))]
        is_kept = state.memory["is_frozen"] and put_annotator_in(cast(Any, nets), task)
        deployed = "annotator" if is_kept else deployed
        what = "the annotator's own classifier is kept instead" if is_kept else "compare before you use it"
        sentences = [f"{sentences[0]}; {what}"]
    return {**found, "deployed": deployed, "warnings": [*logs["warnings"], *sentences]}
