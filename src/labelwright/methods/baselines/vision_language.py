"""Published ways to classify with a vision-language model and few labels or none, one short function each.

Name           What it does                                                             Source
zero_shot      class names against images, as the model is                              Radford 2021 (arXiv 2103.00020)
pseudo_probe   linear probe on the zero-shot labels of all unlabelled images            Lee 2013, on frozen features
fpl            linear probe on the k images of each class that zero-shot is surest of   Menghini 2023 (2306.01669)
fixmatch       adapters; strong views learn what the model is sure of on weak ones      Sohn 2020 (arXiv 2001.07685)
transclip      no training: Gaussians and neighbours of all images at once, and text    Zanella 2024 (2406.01837)

Images with a label keep it, and teach beside the pseudolabels; `zero_shot` alone ignores them. Other prompts, or
several at once (the prompt ensemble), are a setting of the class features, not of the recipe.
Departures: pseudo_probe and fpl train a linear classifier where their papers train a network or prompts; fixmatch
trains a visual and a text adapter, and takes as many labelled images a step as unlabelled ones.
Without labels fixmatch feeds on its own mistakes, and warns when one class takes over.
Measured: docs/benchmarks.md, `labelwright bench --table cap-cifar10` and `cap-gtsrb`.
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method fpl --out RUN
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from labelwright.encoders.aligned import AlignedNet
from labelwright.encoders.residual import ResidualAdapter
from labelwright.errors import ConfigError
from labelwright.labels import transduce
from labelwright.losses import classification
from labelwright.methods.baselines.probe import Probe
from labelwright.train.settings import TrainSettings, require
from labelwright.types import (
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

BaselineName = Literal["zero_shot", "pseudo_probe", "fpl", "fixmatch", "transclip"]
Begun = tuple[State, Mapping[str, Any]]
View = Literal["clean", "weak", "strong"]

PRESETS: Mapping[BaselineName, Mapping[str, object]] = {
    "zero_shot": {"baseline": "zero_shot", "epochs": 1},
    "pseudo_probe": {"baseline": "pseudo_probe"},
    "fpl": {"baseline": "fpl"},
    # Rates of adapters (arXiv 2505.02056, Sec. 4.1): those of a probe would let its own mistakes run away with it.
    "fixmatch": {"baseline": "fixmatch", "view": "weak", "optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4},
    "transclip": {"baseline": "transclip", "epochs": 1},
}
"""Name -> the settings of `Config` that make it this baseline."""

TAKEN_OVER_FRAC = 0.25  # of the unlabelled images, by which one class may grow in training before we warn


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    """Settings of every baseline; each reads its own. The defaults are for a probe on stored features: see PRESETS."""

    baseline: BaselineName = "zero_shot"  # which of the above
    epochs: int = 20  # of steps_per_epoch steps; those that do not train need 1
    steps_per_epoch: int = 50  # 1,000 steps in all: enough for a probe on 25,000 images of CIFAR-10 to settle
    batch_size: int = 128  # rows per stream and step
    optimizer: Literal["sgd", "adamw"] = "adamw"  # its steps do not grow with the model's logit scale
    lr: float = 3e-3  # peak learning rate
    weight_decay: float = 0.0  # of every trained parameter
    warmup_epochs: float = 1.0  # linear from 0 to lr
    view: View = "clean"  # pseudo_probe, fpl: view trained on; fixmatch: view that labels strong ones
    k: int = 16  # fpl: images per class (Menghini 2023)
    confidence: float = 0.85  # fixmatch: probability from which a prediction teaches (Sohn 2020: 0.95)
    residual_weight: float | None = None  # fixmatch: share of the adapters' correction; None = 1 / logit_scale
    pool: Literal["any", "unseen"] = "any"  # classes of unlabelled images: any, or only those without labels (TRZSL)
    n_neighbours: int = 3  # transclip: neighbours of an image (Zanella 2024)
    text_strength: float | None = None  # transclip: lambda; None = 1 without labels, 0.5 with some (Zanella 2024)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("steps_per_epoch", "k"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(0 <= self.confidence < 1, "confidence", self.confidence, "in [0, 1)")
        weight, strength = self.residual_weight, self.text_strength
        require(weight is None or weight > 0, "residual_weight", weight, "above 0, or none")
        require(self.n_neighbours >= 0, "n_neighbours", self.n_neighbours, "0 or more")
        require(strength is None or strength >= 0, "text_strength", strength, "0 or more, or none")


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network on the frozen towers: a probe, or the class features with or without adapters."""
    if task.concepts is None:
        raise ConfigError(
            f"{cfg.baseline} needs a vision-language model, to read the class names",
            fix="name one with --model openai/clip-vit-base-patch32, or another CLIP",
        )
    if task.n_novel:
        raise ConfigError(
            f"{cfg.baseline} needs the names of all classes, {task.n_novel} are unknown",
            fix="list every class with --classes, and leave --novel out",
        )
    towers = build_net.towers()
    if cfg.baseline in ("pseudo_probe", "fpl"):
        return State(nets={"main": Probe(towers)}, memory={"pseudolabels": task.labels.clone()})
    if cfg.baseline == "fixmatch":
        n_features = int(towers.text_feats().shape[1])
        weight = cfg.residual_weight or 1 / towers.logit_scale
        visual, textual = (ResidualAdapter(n_features, weight=weight) for _ in range(2))
        return State(nets={"main": AlignedNet(towers, visual=visual, textual=textual)})
    return State(nets={"main": AlignedNet(towers)})


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Pseudolabels, or the whole classifier, of those that make them once and for all."""
    return BEGIN[cfg.baseline](cfg, task, state, passes)


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Images with a (pseudo)label; for fixmatch labelled images, and unlabelled ones in two views; else nothing."""
    streams = {}
    if cfg.baseline in ("pseudo_probe", "fpl"):
        rows = (state.memory["pseudolabels"] >= 0).nonzero().flatten()
        return EpochPlan({"train": Stream(rows.cpu(), cfg.batch_size, (cfg.view,))}, cfg.steps_per_epoch)
    if cfg.baseline == "fixmatch":
        labelled, unlabelled = (where.nonzero().flatten().cpu() for where in (task.labels >= 0, task.labels < 0))
        if len(labelled):
            streams["labelled"] = Stream(labelled, cfg.batch_size, (cfg.view,))
        if len(unlabelled):
            streams["unlabelled"] = Stream(unlabelled, cfg.batch_size, (cfg.view, "strong"))
    return EpochPlan(streams, cfg.steps_per_epoch if streams else 0)


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """One or two cross-entropies."""
    if cfg.baseline == "fixmatch":
        return _fixmatch_step(cfg, task, state, batches)
    batch = batches["train"]
    labels = state.memory["pseudolabels"][batch.rows]
    logits = state.nets["main"](batch.x)
    accuracy = (logits.detach().argmax(1) == labels).float().mean()
    return StepResult(
        classification.cross_entropy(logits, labels), len(labels), state, {"pseudolabel_agreement": accuracy}
    )


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Nothing to re-estimate; at its end fixmatch says whether a class has run away with the images."""
    first = state.memory.get("first_counts")
    if first is None or epoch + 1 < cfg.epochs or not int(first.sum()):
        return state, {}
    now = _predicted_counts(cfg, task, passes)
    shares, first_shares = now / now.sum(), first / first.sum()
    c = int((shares - first_shares).argmax())
    logs: dict[str, Any] = {"pseudolabel_counts": now.tolist()}
    if shares[c] - first_shares[c] > TAKEN_OVER_FRAC:
        logs["warnings"] = [
            f"{task.class_names[c]} has taken over: it is the answer to {shares[c]:.0%} of the unlabelled images, "
            f"{first_shares[c]:.0%} before training; label a few images per class, or lower lr or epochs"
        ]
    return state, logs


def predict(cfg: Config, state: State, x: Tensor) -> Prediction:
    """Plain logits."""
    return Prediction(state.nets["main"](x))


# ---- what each does before the first epoch: (cfg, task, state, passes) -> state, logs --------------------------------


def _nothing(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    return state, {}


def _pseudo_probe(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Every unlabelled image takes the class whose text is nearest."""
    pseudolabels, classes = task.labels.clone(), _allowed(cfg, task).nonzero().flatten()
    text_feats = cast(Probe, state.nets["main"]).towers.text_feats()[classes]
    for rows, z in passes("main", _unlabelled(task), output="feats"):
        pseudolabels[rows] = classes[(z @ text_feats.T).argmax(1)]
    return _with_pseudolabels(task, state, pseudolabels)


def _fpl(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """The k surest images of each class take its label, the others none."""
    pseudolabels, classes, unlabelled = task.labels.clone(), _allowed(cfg, task).nonzero().flatten(), _unlabelled(task)
    if len(unlabelled):
        towers = cast(Probe, state.nets["main"]).towers
        chunks = (z for _, z in passes("main", unlabelled, output="feats"))
        places, chosen = transduce.fpl_pseudolabels(
            chunks, towers.text_feats()[classes], logit_scale=towers.logit_scale, k=cfg.k
        )
        pseudolabels[unlabelled[places]] = classes[chosen]
    return _with_pseudolabels(task, state, pseudolabels)


def _fixmatch(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Answers per class before training, to compare with those at its end."""
    counts = _predicted_counts(cfg, task, passes)
    memory = {**state.memory, "first_counts": counts}
    return dataclasses.replace(state, memory=memory), {"pseudolabel_counts": counts.tolist()}


def _transclip(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Label the pool as a whole; what that says of the classes is a linear classifier, and becomes the network's."""
    net = cast(AlignedNet, state.nets["main"])
    # Half precision, as a store keeps them: all features are held at once.
    feats = torch.cat([z.half() for _, z in passes("main", torch.arange(len(task.labels)), output="feats")])
    strength = cfg.text_strength
    if strength is None:
        strength = 0.5 if bool((task.labels >= 0).any()) else 1.0
    found = transduce.transclip(
        feats,
        net.towers.text_feats(),
        logit_scale=net.towers.logit_scale,
        labels=task.labels,
        n_neighbours=cfg.n_neighbours,
        lam=strength,
    )
    net.linear_weight.copy_(found.weight - net.towers.logit_scale * net.class_feats())  # the net adds the text itself
    net.linear_bias.copy_(found.bias)
    counts = torch.bincount(found.labels[task.labels < 0], minlength=task.n_classes)
    return state, {"pseudolabel_counts": counts.tolist()}


BEGIN: Mapping[BaselineName, Callable[[Config, Task, State, Passes], Begun]] = {
    "zero_shot": _nothing,
    "pseudo_probe": _pseudo_probe,
    "fpl": _fpl,
    "fixmatch": _fixmatch,
    "transclip": _transclip,
}


# ---- pieces ----------------------------------------------------------------------------------------------------------


def _fixmatch_step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch]) -> StepResult:
    """Cross-entropy on labelled images + on strong views of which the other view is sure (Sohn 2020, Eq. 3 and 4)."""
    net = cast(AlignedNet, state.nets["main"])
    t = net.class_feats()
    loss, n_rows = t.sum() * 0.0, 0
    logs: dict[str, Tensor | float] = {}
    if "labelled" in batches:
        batch = batches["labelled"]
        logits = net.logits(net.adapted(net.features(batch.x)), t)
        loss, n_rows = loss + classification.cross_entropy(logits, batch.labels), len(batch.rows)
    if "unlabelled" in batches:
        easy, strong = batches["unlabelled"].views
        with torch.no_grad():
            logits = net.logits(net.adapted(net.features(easy)), t).masked_fill(~_allowed(cfg, task), -torch.inf)
            sure, labels = logits.softmax(1).max(1)
            is_sure = (sure > cfg.confidence).float()
        each = classification.cross_entropy(net.logits(net.adapted(net.features(strong)), t), labels, reduce="none")
        loss, n_rows = loss + (each * is_sure).mean(), n_rows + len(labels)  # mean over all, as published
        logs["confident_frac"] = is_sure.mean()
    return StepResult(loss, n_rows, state, logs)


def _unlabelled(task: Task) -> Tensor:
    return (task.labels < 0).nonzero().flatten()


def _allowed(cfg: Config, task: Task) -> Tensor:
    """[C] bool: classes that an unlabelled image may have."""
    unseen = task.counts == 0
    return unseen if cfg.pool == "unseen" and bool(unseen.any()) else torch.ones_like(unseen)


def _predicted_counts(cfg: Config, task: Task, passes: Passes) -> Tensor:
    """[C] int64 unlabelled images that the network gives to each class."""
    counts, is_barred = torch.zeros_like(task.counts), ~_allowed(cfg, task)
    for _, logits in passes("main", _unlabelled(task)):
        counts += torch.bincount(logits.masked_fill(is_barred, -torch.inf).argmax(1), minlength=task.n_classes)
    return counts


def _with_pseudolabels(task: Task, state: State, pseudolabels: Tensor) -> Begun:
    """The state with labels [N] int64 to train on, -1 = left out; labels that were given are among them."""
    counts = torch.bincount(pseudolabels[(task.labels < 0) & (pseudolabels >= 0)], minlength=task.n_classes)
    memory = {**state.memory, "pseudolabels": pseudolabels}
    return dataclasses.replace(state, memory=memory), {"pseudolabel_counts": counts.tolist()}
