"""Co-Reg on frozen features: one head, started from Gaussians, that corrects the guesses it learns from.

What is left of "Bridging Weakly-Supervised Learning and VLM Distillation: Noisy Partial Label Learning for Efficient
Downstream Adaptation" (2025), arXiv 2506.03229, where the features do not learn; methods/coreg.py is the whole of it.

 1  q = softmax(log evidence of the guesses + s log N(z; mu_c, W) pi_c), by EM; the head starts as its linear part
 2  a = softmax(logits + log evidence), scaled until its mean is the class prior                            Sec. 4.2
 3  division loss -log max_{j in S} a_j, stretched to 0..1, mean of 5 epochs
 4  w = probability of the lower of two Gaussians fitted to it; P = {w > 1/2}, U the others
 5  targets on P: sharpen(w a + (1 - w) p); on U: sharpen(p), p the head's own softmax                      Sec. 4.3
 6  L = cross-entropy on P + squared error on U; then lines 2 to 4 again
 7  stop as soon as the answers stand still
 8  keep the head if it agrees better with clusters of the features than the guesses, else the annotator's classifier

Symbols: q, mu, W, pi=labels.candidate_beliefs, a=beliefs, w=clean, p=probs, S=Task.possible.
Left out of the paper, since it changes nothing where the features are frozen (docs/results/coreg_parts.csv): the second
network, mixing, prototypes, the contrastive loss with its queue and momentum networks. Added: line 1, the evidence in
line 2, line 7, line 8.
Command: labelwright fit photos/ --classes names.txt --method coreg_frozen --model MODEL --out RUN
Measured: docs/benchmarks.md, `labelwright bench --table coreg-cifar10 --cells coreg_frozen`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labelwright.encoders.heads import put_in
from labelwright.errors import ConfigError
from labelwright.labels import purify
from labelwright.labels.candidate_beliefs import candidate_beliefs, describe_guesses
from labelwright.labels.codivide import CoDivision, aligned_division, describe_divisions, read_beliefs
from labelwright.labels.first_guess import first_guesses
from labelwright.losses.classification import soft_cross_entropy
from labelwright.losses.soft_targets import squared_error_of_probs
from labelwright.methods.baselines.candidate_sets import (
    CandidateSettings,
    check_task,
    new_net,
    plan_of_all,
    put_annotator_in,
)
from labelwright.methods.recipe import Begun, feats_of, plain_logits
from labelwright.metrics.agreement import Watch
from labelwright.metrics.diagnostics import division_warnings
from labelwright.metrics.student import judge_student
from labelwright.train.processes import mean_share
from labelwright.train.settings import AtLeast0
from labelwright.types import Batch, BuildNet, Clock, Passes, State, StepResult, Task

DIVIDED_EPOCHS = 5  # whose losses line 3 averages
START_STRENGTH = 0.15  # logits of the start over the log densities of the Gaussians
TEMPERATURE = 0.5  # of the sharpening (Sec. 5.1)
MOVED_FRAC = 0.002  # of the answers, below which an epoch counts as having changed nothing
STILL_EPOCHS = 2  # such epochs in a row end the training
REMEDY = "change guess_strength, or verify a few labels"  # where no guess is trusted, or every one


@dataclass(frozen=True, kw_only=True)
class Config(CandidateSettings):
    """Settings of Co-Reg on frozen features."""

    epochs: int = 8  # passes over all images, at most
    batch_size: int = 1024  # rows per step
    lr: float = 0.2  # peak learning rate
    guess_strength: AtLeast0 = 1.0  # how much the guesses weigh in line 2; 0 = the head alone
    use_alignment: bool = True  # line 2; False: not scaled to the class prior (ablation)


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """A head with a residual layer."""
    check_task(task, "coreg_frozen")
    if not build_net.is_frozen:
        raise ConfigError(
            "coreg_frozen learns on frozen features, and this backbone is trained",
            fix="use --method coreg, or freeze it: --freeze 'backbone.*'",
        )
    history = purify.init_history(len(task.labels), DIVIDED_EPOCHS, task.labels.device)
    memory = {"is_frozen": True, "division": {"history": history}, "n_still": 0}
    return State(nets={"main": new_net(cfg, task, build_net)}, memory=memory)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Line 1, the clusters of line 8, and the first division."""
    everything = torch.arange(len(task.labels))
    # Half precision, as a store keeps them: all features are held at once.
    feats = feats_of(passes, everything, dtype=torch.float16)
    start = candidate_beliefs(feats, task)
    put_in(state.nets["main"], START_STRENGTH * start.beliefs.weight, START_STRENGTH * start.beliefs.bias)
    watch = Watch.start(feats, task.n_classes, first_guesses(task))
    memory = {**state.memory, "watch": watch.to_dict(), "prior": start.beliefs.prior, "miss": start.miss}
    memory |= {"is_prior_known": start.is_rebalanced}
    state, divided = _divided(cfg, task, dataclasses.replace(state, memory=memory), passes, epoch=-1)
    logs = describe_guesses(task, start.beliefs.prior, start.rarely_guessed, is_rebalanced=start.is_rebalanced)
    logs |= {"annotator_agreement": watch.zero_shot_agreement, "miss": [round(float(miss), 4) for miss in start.miss]}
    return state, logs | {key: divided[key] for key in ("reliable_frac", "in_set_frac")}


plan = plan_of_all  # every image once


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Lines 5 and 6."""
    batch, division = batches["train"], state.memory["division"]
    logits: Tensor = state.nets["main"](batch.x)
    probs = logits.detach().float().softmax(1)
    clean = division["clean"][batch.rows]
    is_reliable = clean > 0.5
    beliefs = read_beliefs(division["beliefs"], batch.rows, task.n_classes)
    on_p = purify.reliable_targets(probs, beliefs, clean, temperature=TEMPERATURE)
    targets = torch.where(is_reliable[:, None], on_p, purify.sharpen(probs, temperature=TEMPERATURE))  # 5
    share_p, share_u = (mean_share(rows.sum().float()) for rows in (is_reliable, ~is_reliable))
    loss_p = share_p * soft_cross_entropy(logits, targets, where=is_reliable)
    loss_u = share_u * squared_error_of_probs(logits, targets, where=~is_reliable)
    logs = {"loss_p": loss_p.detach(), "loss_u": loss_u.detach(), "reliable_frac": is_reliable.float().mean()}
    return StepResult(loss_p + loss_u, len(batch.rows), state, logs)  # 6


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Divide anew and look whether the answers still move; line 8 once they do not, or at the end."""
    state, logs = _divided(cfg, task, state, passes, epoch=epoch)
    logs["stop"] = state.memory["n_still"] >= STILL_EPOCHS  # 7
    if logs["stop"] or epoch + 1 == cfg.epochs:
        logs |= _kept(task, state, logs)
    return state, logs


predict = plain_logits  # the guesses and the class prior act in training only


def _divided(cfg: Config, task: Task, state: State, passes: Passes, *, epoch: int) -> tuple[State, dict[str, Any]]:
    """Lines 2 to 4, how many answers have moved, and what to report of them."""
    memory, before = dict(state.memory), state.memory["division"]
    found: CoDivision = aligned_division(
        "main",
        task,
        passes,
        before["history"],
        prior=memory["prior"],
        miss=memory["miss"],
        guess_strength=cfg.guess_strength,
        ratio=before.get("ratio") if memory["is_prior_known"] else None,
        use_alignment=cfg.use_alignment,
        seed=epoch + 1,
    )
    fields = ("beliefs", "clean", "ratio", "history", "predicted")
    memory["division"] = {key: getattr(found, key) for key in fields}
    logs = describe_divisions([found], collapse=0.0)
    logs["cluster_agreement"] = Watch.from_dict(memory["watch"]).agreement(found.predicted)
    if "predicted" in before:
        logs["moved_frac"] = float((found.predicted != before["predicted"]).float().mean())
        memory["n_still"] = memory["n_still"] + 1 if logs["moved_frac"] < MOVED_FRAC else 0
    memory.setdefault("first_divided", {key: logs[key] for key in ("reliable_frac", "in_set_frac")})
    logs["warnings"] = division_warnings(
        logs, memory["first_divided"], epoch=epoch, has_guesses=found.n_divided > 0, remedy=REMEDY
    )
    return dataclasses.replace(state, memory=memory), logs


def _kept(task: Task, state: State, logs: Mapping[str, Any]) -> dict[str, Any]:
    """Line 8: what is kept, and why; the annotator's classifier is put into the head where that agrees less."""
    found, sentences = judge_student(task, state.memory["division"]["predicted"], state.memory["watch"])
    kept = {**found, "deployed": "one", "warnings": [*logs["warnings"], *sentences]}
    if found["score_deployed"] >= found["score_guesses"]:
        return kept
    if not put_annotator_in([state.nets["main"]], task):
        kept["warnings"][-1] += "; compare before you use it"
        return kept
    kept["warnings"][-1] += "; the annotator's own classifier is kept instead"
    return kept | {"deployed": "annotator"}
