"""CAP: a classifier from class names and unlabelled images, with a vision-language model.

"Handling Imbalanced Pseudolabels for Vision-Language Models with Concept Alignment and Confusion-Aware Calibrated
Margin" (2025), arXiv 2505.02056.

 1  features z of all images and t of all class names; a class is mismatched if its name finds no image  Alg. 1
 2  descriptions replace names where they explain the images better                                      Sec. 3.1
 3  mismatched classes with labelled images get the cluster around these; one that is the last without images gets
    what is left over, if that is as distinct as the other classes and no further cluster is              -
 4  beliefs q = softmax(z.w + b); prior pi = mean of q. w = s t, and b < 0 for classes that hardly any image shows;
    where every class has labels w, b are drawn from there to these as far as labels left out say so; where half have,
    a shape term, one Gaussian per class of one covariance, is added                                     -
 5  main set: the k surest images of each class by q; with uniform shares an image competes for its next  Sec. 3.2
 6  each epoch: loss = CE(f + M[y, :], y) on labelled images
 7                   + CE(f + M[y, :], y) on the main set                                                Eq. (8)
 8                   + CE(f' + M[y', :], y') on strong views, y' = argmax f if its confidence > tau      Eq. (9)
 9     f = logits with the main adapter on images and the text adapter on classes, f' with the pseudo adapter
10  after each epoch: r = pseudolabels per class / (N pi), over the largest; S = max(t.t, prototype.prototype), rows
    to [min, 1]; a class without unlabelled images takes part in the largest with its labelled ones, and has r = 1
11     M[i, j] = (1 - r_i)/(1 + r_i) (max r - min r) m S[i, j], diagonal 0; M = 0 in the first epoch     Eq. (6)
12  every 5 epochs the main set grows, by the model's own surest pseudolabels
13  training ends where the answers agree no better with clusters of the images, a criterion without labels, for
    patience_epochs; the best state is kept, the start among them

Symbols: z feats, t class features, s logit_scale, f logits, M margin, r pace, S similarity, m margin_scale.
PRESETS["paper"] is the published recipe. The defaults depart from it, each by a setting: detection without clustering,
with a guard against useless descriptions, (3) and (4); sizes and r against estimated shares, not uniform; (13), with at
most 10 epochs instead of 50; frozen encoders; residual weight 1 / logit_scale (0.01 at 100); lr 0.05 and weight decay
5e-4 instead of 0.01 and 0.1; lines 6 and 7 on the un-augmented view. In both, m is given for logit_scale 100 and scaled
with the model's. Where half of the names or more find no image, or the names say no more of the images than chance,
the start is kept and the run says so.
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method cap --out RUN
Measured: docs/benchmarks.md, `labelwright bench --table cap-cifar10` and `cap-gtsrb`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from labelwright.adjust import confusion, named, pace
from labelwright.adjust.adjustment import Adjustment
from labelwright.encoders.aligned import AlignedNet
from labelwright.encoders.residual import ResidualAdapter
from labelwright.labels.alignment import Alignment, align, most_probable
from labelwright.labels.main_set import competing_rows, grown, main_set_size, prototypes, surest_rows
from labelwright.losses.classification import adjusted_cross_entropy
from labelwright.methods.class_names import PoolSettings, allowed_classes, check_task
from labelwright.methods.method import Views
from labelwright.methods.recipe import Begun, feats_of, plain_logits
from labelwright.metrics.agreement import Watch, warnings_of, worse_than_names
from labelwright.train.processes import mean_share
from labelwright.train.settings import AtLeast0, Count, CountOr0, Positive, Share, require
from labelwright.types import (
    Batch,
    BuildNet,
    Clock,
    EpochPlan,
    Passes,
    State,
    StepResult,
    Stream,
    Task,
)

GROW_EVERY_EPOCHS = 5  # (Sec. 3.2)
GAIN = 0.02  # rise of the agreement that counts; smaller ones came without a rise of accuracy, or with a loss


@dataclass(frozen=True, kw_only=True)
class Config(PoolSettings):
    """Settings of CAP; the defaults are for stored features of a frozen encoder."""

    epochs: int = 10  # at most, of 50 steps each; the first warms up (paper: 50, Sec. 4.1)
    batch_size: int = 32  # rows per stream and step (Sec. 4.1)
    lr: float = 0.05  # peak learning rate (paper: 0.01)
    weight_decay: float = 5e-4  # (paper: 0.1)
    patience_epochs: CountOr0 = 2  # line 13; 0 trains all epochs and keeps the last state (paper)
    tune: Literal["adapters", "coop", "vpt", "maple", "lora"] = "adapters"  # what learns besides the adapters
    residual_weight: Positive | None = None  # share of the adapters' correction; None = 1 / logit_scale (paper: 0.01)
    alignment: Alignment = "evidence"  # lines 1 to 3; clustering = Algorithm 1 (paper), none = the names as they are
    use_leftovers: bool = True  # line 3; False leaves classes without a good text as they are
    shape_strength: AtLeast0 | None = None  # line 4; None = 0.2 if half of the classes have labels, else 0
    start_size: Count = 16  # k, images per class in the first main set (Sec. 4.1; 6 on Flowers102)
    share_from: Literal["beliefs", "uniform"] = "beliefs"  # expected shares of the classes; uniform = paper
    margin_scale: float | Literal["auto"] = 12.0  # m at logit_scale 100 (Sec. 4.1); "auto" chooses without labels
    adjust: named.Names | None = None  # adjustments added to the margin of line 11, e.g. pace+la: names of adjust.named
    confidence: Share = 0.85  # tau (Sec. 4.1; 0.5 on Aircraft); 1 leaves line 8 out
    shared_adapter: bool = False  # True trains one visual adapter with all losses (ablation)
    label_view: Literal["clean", "weak"] = "clean"  # view of lines 6 and 7, and the one that makes pseudolabels

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.margin_scale == "auto" or self.margin_scale >= 0, "margin_scale", self.margin_scale, "0 or more")


PRESETS: Mapping[str, Mapping[str, object]] = {
    "paper": {
        "epochs": 50,  # (Sec. 4.1), as the next two
        "lr": 0.01,
        "weight_decay": 0.1,
        "patience_epochs": 0,
        "tune": "maple",  # (Sec. 4.1); learns inside the encoder and sees pixels
        "residual_weight": 0.01,
        "alignment": "clustering",  # Alg. 1
        "shape_strength": 0.0,
        "share_from": "uniform",
        "label_view": "weak",
        "pool": "unseen",  # where some classes have labels and others none; the same as any elsewhere
    }
}


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
    return State({"main": main} if cfg.shared_adapter else {"main": main, "pseudo": adapters[2]}, adjust)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Lines 1 to 5: align the classes with the images, believe, and pick the first main set."""
    main, allowed, open_rows = _main(state), allowed_classes(task, cfg.pool), task.labels < 0
    scale, names = main.towers.logit_scale, main.towers.text_feats().detach()
    feats = feats_of(passes, torch.arange(len(task.labels)))
    aligned, logs = align(
        feats,
        task,
        names,
        logit_scale=scale,
        alignment=cfg.alignment,
        use_leftovers=cfg.use_leftovers,
        shape_strength=cfg.shape_strength,
        allowed=allowed,
        seed=int(torch.randint(2**31, (1,))),
    )
    main.offset.copy_(aligned.class_feats - names)
    main.linear_weight.copy_(aligned.weight)
    main.linear_bias.copy_(aligned.bias)
    prior = aligned.prior if cfg.share_from == "beliefs" else torch.full_like(aligned.prior, 1 / task.n_classes)
    sizes = _sizes(cfg, 0, prior * open_rows.sum()).clamp(min=1)
    if cfg.share_from == "beliefs":
        first = surest_rows(aligned.predicted, aligned.confidence, sizes, where=open_rows)
    else:
        first = competing_rows(feats, aligned, k=int(sizes.max()), logit_scale=scale, where=open_rows, allowed=allowed)
    watch = Watch.start(feats, task.n_classes, aligned.zero_shot)
    agreement = watch.agreement(aligned.predicted)
    # Where most names mean nothing, training on them can only lose: then nothing is to beat the start.
    score = 1.0 if logs.get("is_hopeless") else agreement
    memory = {**_main_set(task, first), "first_rows": first[0], "first_labels": first[1], "watch": watch.to_dict()}
    start = _tensors(state)
    for name, some in start["main"].items():  # without training the adapters add nothing
        if ".up." in name:
            some.zero_()
    memory["best"] = {"score": score, "epoch": -1, "nets": start}
    logs |= {"cluster_agreement": agreement, "zero_shot_agreement": watch.zero_shot_agreement}
    state = dataclasses.replace(state, adjust={**state.adjust, "prior": prior}, memory=memory)
    return state, {**logs, "main_set": len(first[0])}


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Labelled images, the main set, and unlabelled ones in two views."""
    labelled, unlabelled = ((task.labels >= 0) == known for known in (True, False))
    rows = {"main": state.memory["main_rows"], "labelled": labelled.nonzero().flatten()}
    streams = {name: Stream(some.cpu(), cfg.batch_size, (cfg.label_view,)) for name, some in rows.items()}
    if cfg.confidence < 1:
        rest = unlabelled.nonzero().flatten().cpu()
        streams["unlabelled"] = Stream(rest, cfg.batch_size, (cfg.label_view, "strong"))
    return EpochPlan({name: s for name, s in streams.items() if len(s.rows)}, cfg.steps_per_epoch)


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Three cross-entropies, each with the margin of its (pseudo)label."""
    main, adjustment = _main(state), Adjustment(pair_margin=state.adjust["margin"])
    if cfg.adjust:
        adjustment += named.adjustment(cfg.adjust, state.adjust["named"])
    t = main.class_feats()
    logs: dict[str, Tensor | float] = {}
    loss, n_kept = t.sum() * 0.0, torch.zeros((), dtype=torch.int64, device=t.device)
    for name in ("main", "labelled"):
        if name in batches:
            batch = batches[name]
            y = state.memory["pseudolabels"][batch.rows] if name == "main" else batch.labels
            f = main.logits(main.adapted(main.features(batch.x)), t)
            logs[f"loss_{name}"] = adjusted_cross_entropy(f, y, adjustment)  # Eq. (8)
            loss, n_kept = loss + logs[f"loss_{name}"], n_kept + len(y)
    if "unlabelled" in batches:
        weak, strong = batches["unlabelled"].views
        with torch.no_grad():
            f = main.logits(main.adapted(main.features(weak)), t).masked_fill(
                ~allowed_classes(task, cfg.pool), -torch.inf
            )
            sure, y = f.softmax(1).max(1)
            kept = sure > cfg.confidence
        z = main.features(strong)
        f = main.logits(main.adapted(z) if cfg.shared_adapter else state.nets["pseudo"](z), t)
        n_sure = kept.sum()
        logs["confident_frac"] = kept.float().mean()
        logs["loss_self"] = adjusted_cross_entropy(f, y, adjustment, where=kept) * mean_share(n_sure.float())  # Eq. (9)
        loss, n_kept = loss + logs["loss_self"], n_kept + n_sure
    return StepResult(loss, n_kept.clamp(min=1), state, {k: torch.as_tensor(v).detach() for k, v in logs.items()})


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Margin, a look at how things go, and the main set; at the end the best state by cluster agreement comes back."""
    main, allowed, open_rows = _main(state), allowed_classes(task, cfg.pool), task.labels < 0
    memory, adjust = dict(state.memory), dict(state.adjust)
    answers = passes("main", torch.arange(len(task.labels)))
    predicted, confidence = most_probable(answers, task.labels, allowed=allowed)
    expected = adjust["prior"] * open_rows.sum()
    counts = torch.bincount(predicted[open_rows], minlength=task.n_classes)
    with torch.no_grad():
        t = main.class_feats()
        chunks = passes("main", memory["main_rows"].cpu(), output="feats")
        adapted = torch.cat([t[:0], *(main.adapted(z) for _, z in chunks)])
        similarity = confusion.rescaled_similarity(t, prototypes(adapted, memory["main_labels"], task.n_classes))
        own = torch.where(allowed, counts, task.counts)  # a class without unlabelled images has its labelled ones
        paces = confusion.pace(own, expected, labelled_only=~allowed)
        scale = cast(float, cfg.margin_scale) * main.towers.logit_scale / 100  # "auto" was replaced before training
        margin = cast(Tensor, confusion.confusion_margin(similarity, paces, scale=scale).pair_margin)  # Eq. (6)
    adjust["margin"] = margin
    if cfg.adjust:
        known = torch.bincount(torch.where(open_rows, predicted, task.labels), minlength=task.n_classes).float()
        prior = pace.normalised(expected * allowed + task.counts)
        adjust["named"] = named.update(adjust["named"], predicted=known, counts=known, prior=prior, decay=0.0)
    watch = Watch.from_dict(memory["watch"])
    logs = watch.describe(predicted, confidence, t, expected, threshold=cfg.confidence)
    logs |= {"margin_max": float(margin.max()), "main_set": len(memory["main_rows"])}
    signs = warnings_of(logs, task.class_names, epoch, has_self_training=cfg.confidence < 1)
    logs["warnings"] = signs if open_rows.any() else []
    memory["last"] = {"agreement": logs["cluster_agreement"], "counts": counts, "expected": expected}
    if logs["cluster_agreement"] > memory["best"]["score"] + GAIN:
        memory["best"] = {"score": logs["cluster_agreement"], "epoch": epoch, "nets": _tensors(state)}
    best = memory["best"]
    logs["stop"] = epoch + 1 == cfg.epochs or 0 < cfg.patience_epochs <= epoch - best["epoch"]
    if logs["stop"]:
        logs["margin_pairs"] = confusion.largest_margins(margin, task.class_names)
        if cfg.patience_epochs:
            for name, tensors in best["nets"].items():
                state.nets[name].load_state_dict(tensors)
            logs |= {"kept_epoch": best["epoch"], "kept_agreement": best["score"]}
            logs["warnings"] += worse_than_names(best["score"], watch.zero_shot_agreement)
    elif (epoch + 1) % GROW_EVERY_EPOCHS == 0:
        first, sizes = (memory["first_rows"], memory["first_labels"]), _sizes(cfg, epoch + 1, expected)
        memory |= _main_set(task, grown(first, predicted, confidence, sizes, where=open_rows))
    return dataclasses.replace(state, adjust=adjust, memory=memory), logs


predict = plain_logits  # of the main path; margins act in training only


def _main(state: State) -> AlignedNet:
    return cast(AlignedNet, state.nets["main"])


def _sizes(cfg: Config, epoch: int, expected: Tensor) -> Tensor:
    """[C] images of each class in the main set of an epoch."""
    return main_set_size(epoch, n_epochs=cfg.epochs, unlabelled_per_class=expected, start=cfg.start_size)


def _main_set(task: Task, rows_and_labels: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The main set for the memory, with a table of its labels [N], -1 elsewhere, which every step looks up."""
    rows, labels = rows_and_labels
    table = torch.full_like(task.labels, -1)
    table[rows] = labels
    return {"main_rows": rows, "main_labels": labels, "pseudolabels": table}


def _tensors(state: State) -> dict[str, dict[str, Tensor]]:
    """A copy of everything that training changes, by network."""
    return {name: copy.deepcopy(net.state_dict()) for name, net in state.nets.items()}
