"""CAP: a classifier from class names and unlabelled images, with a vision-language model.

"Handling Imbalanced Pseudolabels for Vision-Language Models with Concept Alignment and Confusion-Aware Calibrated
Margin" (2025), arXiv 2505.02056.

 1  features z of all images and t of all class names; a class is mismatched if its name fits no image   Alg. 1
 2  descriptions replace names where they explain the images better                                      Sec. 3.1
 3  mismatched classes that are left get the images that no other class explains                         -
 4  beliefs q = softmax(s z.t + shape term); prior pi = mean of q                                         -
 5  main set: the k surest images of each class by q                                                     Sec. 3.2
 6  each epoch: loss = CE(f + M[y, :], y) on labelled images
 7                   + CE(f + M[y, :], y) on the main set                                                Eq. (8)
 8                   + CE(f' + M[y', :], y') on strong views, y' = argmax f if its confidence > tau      Eq. (9)
 9     f = logits with the main adapter on images and the text adapter on classes, f' with the pseudo adapter
10  after each epoch: r = pseudolabels per class / (N pi), over the largest; S = max(t.t, prototype.prototype), rows
    to [min, 1]; a class without unlabelled images takes part in the largest with its labelled ones, and has r = 1
11     M[i, j] = (1 - r_i)/(1 + r_i) (max r - min r) m S[i, j], diagonal 0; M = 0 in the first epoch     Eq. (6)
12  every 5 epochs the main set grows, by the model's own surest pseudolabels
13  at the end: the state whose answers agree best with clusters of the images, a criterion without labels

Symbols: z feats, t class features, s logit_scale, f logits, M margin, r pace, S similarity, m margin_scale, tau
confidence.
Departures: (1) detection by evidence, not by one k-means per class (labels/concepts.py); (2) a guard against useless
descriptions; (3), (4) and (13) are ours, each with a setting; sizes and r are against estimated shares, not uniform;
m is given for logit_scale 100 and scaled with the model's; residual weight = 1 / logit_scale (0.01 at 100); lr 0.05
and weight decay 5e-4 instead of 0.01 and 0.1; a labelled image weighs as much as one of the main set; lines 6 and 7
use the un-augmented view, which a frozen encoder embeds as it knows images; where half of the names or more fit no
image and nothing repairs them, the answers stay those of the names.
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method cap --out RUN
Measured: docs/benchmarks.md, `labelwright bench --table cap-cifar10` and `cap-gtsrb`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.adjust import confusion, named
from labelwright.adjust.adjustment import Adjustment
from labelwright.adjust.pace import normalised
from labelwright.encoders.aligned import AlignedNet
from labelwright.encoders.residual import ResidualAdapter
from labelwright.labels.alignment import Aligned, align, main_set_size, surest_rows
from labelwright.losses.classification import adjusted_cross_entropy
from labelwright.methods.class_names import PoolSettings, allowed_classes, check_task
from labelwright.methods.method import Views
from labelwright.metrics.agreement import Watch, warnings_of
from labelwright.train.processes import mean_share
from labelwright.train.settings import require
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


@dataclass(frozen=True, kw_only=True)
class Config(PoolSettings):
    """Settings of CAP; the defaults are for stored features of a frozen encoder."""

    epochs: int = 50  # of 50 steps each; the first warms up (Sec. 4.1)
    batch_size: int = 32  # rows per stream and step (Sec. 4.1)
    lr: float = 0.05  # peak learning rate (paper: 0.01)
    weight_decay: float = 5e-4  # (paper: 0.1)
    tune: Literal["adapters", "coop", "vpt", "maple", "lora"] = "adapters"  # what learns besides the adapters
    residual_weight: float | None = None  # share of the adapters' correction; None = 1 / logit_scale (paper: 0.01)
    use_alignment: bool = True  # lines 1 to 3
    use_leftovers: bool = True  # line 3; False leaves classes without a good text as they are
    shape_strength: float = 0.2  # line 4, share of the Gaussian log density; 0 = off (paper)
    start_size: int = 16  # k, images per class in the first main set (Sec. 4.1; 6 on Flowers102)
    max_ratio: float = 0.8  # main set at the end, share of a class's estimated images (Sec. 3.2)
    max_size: int = 1000  # main set at the end, images per class at most (Sec. 3.2)
    grow_every_epochs: int = 5  # (Sec. 3.2)
    growth_frac: float = 0.7  # share of the epochs after which the main set grows no more (Sec. 3.2)
    share_from: Literal["beliefs", "uniform"] = "beliefs"  # expected shares of the classes; uniform = paper
    margin_scale: float | Literal["auto"] = 12.0  # m at logit_scale 100 (Sec. 4.1); "auto" chooses without labels
    adjust: str | None = None  # adjustments added to the margin of line 11, e.g. pace+la: names of adjust.named
    confidence: float = 0.85  # tau (Sec. 4.1; 0.5 on Aircraft)
    use_self_training: bool = True  # line 8
    shared_adapter: bool = False  # True trains one visual adapter with all losses (ablation)
    isolate_text: bool = False  # True keeps line 8 out of the text adapter too: then it moves the pseudo adapter alone
    label_view: Literal["clean", "weak"] = "clean"  # view of lines 6 and 7, and the one that makes pseudolabels
    keep_best: bool = True  # line 13; False keeps the last epoch
    predict_with: Literal["main", "base"] = "main"  # at test time: the main adapter, or the bare image features

    def __post_init__(self) -> None:
        super().__post_init__()
        named.names_of(self.adjust)
        for key in ("start_size", "max_size", "grow_every_epochs"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for key in ("max_ratio", "growth_frac"):
            require(0 < getattr(self, key) <= 1, key, getattr(self, key), "in (0, 1]")
        require(0 <= self.confidence < 1, "confidence", self.confidence, "in [0, 1)")
        require(self.shape_strength >= 0, "shape_strength", self.shape_strength, "0 or more")
        require(self.margin_scale == "auto" or self.margin_scale >= 0, "margin_scale", self.margin_scale, "0 or more")
        weight = self.residual_weight
        require(weight is None or weight > 0, "residual_weight", weight, "above 0, or none")


def default_views(cfg: Config, *, is_two_tower: bool) -> Views:
    """Embeddings, unless part of the encoder learns."""
    return "embeddings" if cfg.tune == "adapters" else "pixels"


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """The towers with a main and a text adapter, and a pseudo adapter beside them."""
    check_task(task, "cap")
    assert task.concepts is not None
    towers = build_net.towers("none" if cfg.tune == "adapters" else cfg.tune)
    n_features = int(task.concepts.feats.shape[1])
    weight = cfg.residual_weight or 1 / towers.logit_scale
    adapters = [ResidualAdapter(n_features, weight=weight) for _ in range(3)]
    main = AlignedNet(towers, visual=adapters[0], textual=adapters[1])
    n, device = task.n_classes, task.labels.device
    even = torch.full((n,), 1 / n, device=device)
    adjust: dict[str, Any] = {"margin": torch.zeros(n, n, device=device), "prior": even}
    if cfg.adjust:
        adjust["named"] = named.init(torch.ones_like(even), even)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return State(
        nets={"main": main} if cfg.shared_adapter else {"main": main, "pseudo": adapters[2]},
        adjust=adjust,
        memory={"main_rows": nothing, "main_labels": nothing},
    )


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> tuple[State, Mapping[str, Any]]:
    """Lines 1 to 5: align the classes with the images, believe, and pick the first main set."""
    assert task.concepts is not None
    main = _main(state)
    feats = torch.cat([z for _, z in passes("main", torch.arange(len(task.labels)), output="feats")])
    aligned, logs = align(
        feats,
        task,
        main.towers.text_feats().detach(),
        logit_scale=main.towers.logit_scale,
        use_alignment=cfg.use_alignment,
        use_leftovers=cfg.use_leftovers,
        shape_strength=cfg.shape_strength,
        allowed=allowed_classes(task, cfg.pool),
        seed=int(torch.randint(2**31, (1,))),
    )
    _take_alignment(main, aligned)
    prior = aligned.prior if cfg.share_from == "beliefs" else torch.full_like(aligned.prior, 1 / task.n_classes)
    sizes = main_set_size(0, unlabelled_per_class=_expected(task, prior), **_growth(cfg))
    main_rows, main_labels = surest_rows(
        aligned.predicted, aligned.confidence, sizes.clamp(min=1), where=_unlabelled(task)
    )
    watch = Watch.start(feats, task.n_classes, aligned.zero_shot)
    with torch.no_grad():  # what the state kept here answers: its fresh adapters add a little of their own
        t = main.class_feats()
        starts = range(0, len(feats), 8192)
        pieces = (torch.arange(i, min(i + 8192, len(feats)), device=feats.device) for i in starts)
        chunks = ((rows, main.logits(main.adapted(feats[rows]), t)) for rows in pieces)
        first, _ = _predict_all(task, chunks, allowed_classes(task, cfg.pool))
    agreement = watch.agreement(first)
    state = dataclasses.replace(
        state,
        adjust={**state.adjust, "prior": prior},
        memory={
            "main_rows": main_rows,
            "main_labels": main_labels,
            "pseudolabels": _by_row(task, main_rows, main_labels),
            "first_rows": main_rows,
            "first_labels": main_labels,
            "watch": watch.to_dict(),
            # Where most names mean nothing, training on them can only lose: then nothing is to beat the start.
            "best": {
                "score": 1.0 if logs.get("is_hopeless") else agreement,
                "epoch": -1,
                "nets": _trained_tensors(state),
            },
        },
    )
    told = {"cluster_agreement": agreement, "zero_shot_agreement": watch.zero_shot_agreement}
    return state, {**logs, **told, "main_set": len(main_rows)}


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Labelled images, the main set, and unlabelled ones in two views."""
    labelled, unlabelled = (task.labels >= 0).nonzero().flatten(), _unlabelled(task).nonzero().flatten()
    streams = {"main": Stream(state.memory["main_rows"].cpu(), cfg.batch_size, (cfg.label_view,))}
    if len(labelled):
        streams["labelled"] = Stream(labelled.cpu(), cfg.batch_size, (cfg.label_view,))
    if cfg.use_self_training and len(unlabelled):
        streams["unlabelled"] = Stream(unlabelled.cpu(), cfg.batch_size, (cfg.label_view, "strong"))
    return EpochPlan({k: s for k, s in streams.items() if len(s.rows)}, cfg.steps_per_epoch)


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Three cross-entropies, each with the margin of its (pseudo)label."""
    main, adjustment = _main(state), Adjustment(pair_margin=state.adjust["margin"])
    if cfg.adjust:
        adjustment += named.adjustment(cfg.adjust, state.adjust["named"])
    t = main.class_feats()
    logs: dict[str, Tensor | float] = {}
    loss = t.sum() * 0.0
    n_kept = 0
    if "main" in batches:
        batch = batches["main"]
        y = state.memory["pseudolabels"][batch.rows]
        f = main.logits(main.adapted(main.features(batch.x)), t)
        logs["loss_main"] = adjusted_cross_entropy(f, y, adjustment)  # Eq. (8)
        loss, n_kept = loss + logs["loss_main"], n_kept + len(y)
    if "labelled" in batches:
        batch = batches["labelled"]
        f = main.logits(main.adapted(main.features(batch.x)), t)
        logs["loss_labelled"] = adjusted_cross_entropy(f, batch.labels, adjustment)
        n_labelled = int((task.labels >= 0).sum())
        weight = min(1.0, n_labelled / max(len(state.memory["main_rows"]), 1))
        loss, n_kept = loss + weight * logs["loss_labelled"], n_kept + len(batch.rows)
    if "unlabelled" in batches:
        weak, strong = batches["unlabelled"].views
        with torch.no_grad():
            f = main.logits(main.adapted(main.features(weak)), t)
            sure, y = f.masked_fill(~allowed_classes(task, cfg.pool), -torch.inf).softmax(1).max(1)
            kept = sure > cfg.confidence
        logs["confident_frac"] = kept.float().mean()
        z = main.features(strong)
        z = main.adapted(z) if cfg.shared_adapter else state.nets["pseudo"](z)
        f = main.logits(z, t.detach() if cfg.isolate_text else t)
        n_sure = kept.sum()
        logs["loss_self"] = adjusted_cross_entropy(f, y, adjustment, where=kept) * mean_share(n_sure.float())  # Eq. (9)
        loss, n_kept = loss + logs["loss_self"], n_kept + int(n_sure)
    return StepResult(loss, max(n_kept, 1), state, {k: torch.as_tensor(v).detach() for k, v in logs.items()})


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> tuple[State, Mapping[str, Any]]:
    """Margin, main set, and a look at how things go; at the end the best state by cluster agreement comes back."""
    is_last = epoch + 1 == cfg.epochs
    every = 1 if cfg.tune == "adapters" else cfg.grow_every_epochs  # a pass through a tuned encoder is dear
    if not is_last and (epoch + 1) % every:
        return state, {}
    main, allowed = _main(state), allowed_classes(task, cfg.pool)
    predicted, confidence = _predict_all(task, passes("main", torch.arange(len(task.labels))), allowed)
    expected = _expected(task, state.adjust["prior"])
    counts = torch.bincount(predicted[_unlabelled(task)], minlength=task.n_classes)
    with torch.no_grad():
        t = main.class_feats()
        similarity = confusion.rescaled_similarity(t, _prototypes(state, passes, task.n_classes))
        scale = float(cfg.margin_scale if cfg.margin_scale != "auto" else 12.0) * main.towers.logit_scale / 100
        own = torch.where(allowed, counts, task.counts)  # a class without unlabelled images has its labelled ones
        paces = confusion.pace(own, expected, labelled_only=~allowed)
        margin = cast(Tensor, confusion.confusion_margin(similarity, paces, scale=scale).pair_margin)  # Eq. (6)
    adjust = {**state.adjust, "margin": margin}
    if cfg.adjust:
        known = torch.bincount(torch.where(_unlabelled(task), predicted, task.labels), minlength=task.n_classes).float()
        prior = normalised(expected * allowed + task.counts)
        adjust["named"] = named.update(adjust["named"], predicted=known, counts=known, prior=prior, decay=0.0)
    memory = dict(state.memory)
    watch = Watch.from_dict(memory["watch"])
    logs = watch.describe(predicted, confidence, t, expected, threshold=cfg.confidence)
    logs |= {"margin_max": float(margin.max()), "main_set": len(memory["main_rows"])}
    logs["warnings"] = warnings_of(logs, task.class_names, epoch) if _unlabelled(task).any() else []
    memory["last"] = {"agreement": logs["cluster_agreement"], "counts": counts, "expected": expected}
    if logs["cluster_agreement"] > memory["best"]["score"]:
        memory["best"] = {"score": logs["cluster_agreement"], "epoch": epoch, "nets": _trained_tensors(state)}
    if (epoch + 1) % cfg.grow_every_epochs == 0 and not is_last:
        memory |= _grown(cfg, task, memory, predicted, confidence, expected, epoch + 1)
    state = dataclasses.replace(state, adjust=adjust, memory=memory)
    if is_last:
        logs |= _finish(cfg, task, state, watch, margin, logs)
    return state, logs


def predict(cfg: Config, state: State, x: Tensor) -> Prediction:
    """Logits of the main path without margins, which act in training only; "base" leaves the visual adapter out."""
    main = _main(state)
    z = main.features(x)
    return Prediction(main.logits(main.adapted(z) if cfg.predict_with == "main" else z, main.class_feats()))


def _main(state: State) -> AlignedNet:
    return cast(AlignedNet, state.nets["main"])


def _unlabelled(task: Task) -> Tensor:
    return task.labels < 0


def _expected(task: Task, prior: Tensor) -> Tensor:
    """[C] unlabelled images that each class is thought to have."""
    return prior * _unlabelled(task).sum()


def _growth(cfg: Config) -> dict[str, Any]:
    return {
        "n_epochs": cfg.epochs,
        "start": cfg.start_size,
        "max_ratio": cfg.max_ratio,
        "max_size": cfg.max_size,
        "growth_frac": cfg.growth_frac,
    }


def _take_alignment(main: AlignedNet, aligned: Aligned) -> None:
    main.offset.copy_(aligned.class_feats - main.towers.text_feats().detach())
    main.linear_weight.copy_(aligned.weight)
    main.linear_bias.copy_(aligned.bias)


def _trained_tensors(state: State) -> dict[str, dict[str, Tensor]]:
    """A copy of everything that training changes, by network."""
    return {name: copy.deepcopy(net.state_dict()) for name, net in state.nets.items()}


def _by_row(task: Task, rows: Tensor, labels: Tensor) -> Tensor:
    """[N] int64 labels of the main set's rows, -1 elsewhere: every step looks them up."""
    table = torch.full_like(task.labels, -1)
    table[rows] = labels
    return table


def _predict_all(task: Task, chunks: Iterable[tuple[Tensor, Tensor]], allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Class and confidence [N] of every row from (rows, logits); of unlabelled ones among the classes they may have."""
    predicted, confidence = [], []
    for rows, logits in chunks:
        barred = ~allowed[None] & (task.labels[rows] < 0)[:, None]
        sure, best = logits.masked_fill(barred, -torch.inf).softmax(1).max(1)
        predicted.append(best)
        confidence.append(sure)
    return torch.cat(predicted), torch.cat(confidence)


def _prototypes(state: State, passes: Passes, n_classes: int) -> Tensor:
    """Unit mean [C, D] of the adapted features of each class's main set; zero for a class that has none."""
    main, rows = _main(state), state.memory["main_rows"]
    labels = state.memory["main_labels"]
    sums = torch.zeros_like(main.offset)
    place = 0
    for chunk, z in passes("main", rows.cpu(), output="feats"):
        sums.index_add_(0, labels[place : place + len(chunk)], main.adapted(z))
        place += len(chunk)
    return F.normalize(sums, dim=1)


def _grown(
    cfg: Config,
    task: Task,
    memory: Mapping[str, Any],
    predicted: Tensor,
    confidence: Tensor,
    expected: Tensor,
    epoch: int,
) -> dict[str, Tensor]:
    """The main set of an epoch: the first one, and the surest of the model's own pseudolabels beside it."""
    first_rows, first_labels = memory["first_rows"], memory["first_labels"]
    sizes = main_set_size(epoch, unlabelled_per_class=expected, **_growth(cfg))
    sizes = (sizes - torch.bincount(first_labels, minlength=task.n_classes)).clamp(min=0)
    free = _unlabelled(task).clone()
    free[first_rows] = False
    rows, labels = surest_rows(predicted, confidence, sizes, where=free)
    rows, labels = torch.cat([first_rows, rows]), torch.cat([first_labels, labels])
    return {"main_rows": rows, "main_labels": labels, "pseudolabels": _by_row(task, rows, labels)}


def _finish(
    cfg: Config, task: Task, state: State, watch: Watch, margin: Tensor, logs: Mapping[str, Any]
) -> dict[str, Any]:
    """Put the best state back in place, and say what the last margins were."""
    best = state.memory["best"]
    found: dict[str, Any] = {"warnings": list(logs["warnings"])}
    if cfg.keep_best:
        for name, tensors in best["nets"].items():
            state.nets[name].load_state_dict(tensors)
        found["kept_epoch"], found["kept_agreement"] = best["epoch"], best["score"]
    if cfg.keep_best and best["score"] < watch.zero_shot_agreement:
        found["warnings"].append(
            f"the result agrees less with the clusters of the images ({best['score']:.3f}) than the class names alone "
            f"did ({watch.zero_shot_agreement:.3f}): it may be worse than zero-shot; compare with --method zero_shot"
        )
    top = margin.flatten().topk(min(200, margin.numel()))
    found["margin_pairs"] = [
        [task.class_names[int(i) // task.n_classes], task.class_names[int(i) % task.n_classes], round(float(v), 6)]
        for v, i in zip(top.values, top.indices, strict=True)
    ]
    return found
