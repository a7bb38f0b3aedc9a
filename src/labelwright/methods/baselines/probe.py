"""A linear classifier on the unit features of a vision-language model, and how pseudo_probe and fpl train it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from labelwright.adjust import fixed, named
from labelwright.encoders.aligned import AlignedNet
from labelwright.encoders.backbones import Classifier
from labelwright.encoders.heads import TextHead
from labelwright.encoders.towers import Towers
from labelwright.losses.classification import adjusted_cross_entropy
from labelwright.methods.adjusting import added
from labelwright.methods.class_names import PoolSettings, check_task
from labelwright.methods.recipe import Begun
from labelwright.types import Batch, BuildNet, Clock, EpochPlan, State, StepResult, Stream, Task


class Probe(nn.Module):
    """logits = logit_scale * z . w + b: weights as large as class features serve models of any logit scale.

    Both start at zero; nothing else learns. The same learning rate therefore suits a small CLIP (logit scale 16) and
    a large one (100), whose features differ from one another far less.

    Args:
      towers: image features, see encoders.towers; of their class features only the shape is used.

    Example:
      >>> from labelwright.encoders.towers import EmbeddedTowers
      >>> net = Probe(EmbeddedTowers(torch.eye(2), logit_scale=10.0))
      >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
      >>> net(torch.tensor([[3.0, 4.0]])).tolist()
      [[6.0, 0.0]]
    """

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers
        n_classes, n_features = towers.text_feats().shape
        self.weight = nn.Parameter(torch.zeros(n_classes, n_features))
        self.bias = nn.Parameter(torch.zeros(n_classes))

    def features(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of views, without gradients: the encoder stays as it is."""
        with torch.no_grad():
            return self.towers.features(x)

    def head_logits(self, feats: Tensor) -> Tensor:
        """Logits [B, C] float32 of unit features [B, D]."""
        with torch.autocast(feats.device.type, enabled=False):
            return self.towers.logit_scale * feats.float() @ self.weight.T + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] float32 of views."""
        return self.head_logits(self.features(x))

    @torch.no_grad()
    def exported(self) -> Classifier:
        """The same answers as a plain classifier that needs no text tower: what a saved model holds."""
        classifier = AlignedNet(self.towers).exported()
        classifier.head = copy.deepcopy(TextHead(self.towers.logit_scale * self.weight, self.bias)).cpu()
        return classifier


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(PoolSettings):
    """How a probe is trained."""

    optimizer: Literal["sgd", "adamw"] = "adamw"  # its steps do not grow with the model's logit scale
    lr: float = 3e-3  # peak learning rate
    weight_decay: float = 0.0  # of every trained parameter
    adjust: named.Names | None = None  # adjustments of the logits, e.g. pace+la: names of adjust.named


def setup(cfg: ProbeSettings, task: Task, build_net: BuildNet, *, name: str) -> State:
    """A probe on the towers; no image has a pseudolabel yet."""
    check_task(task, name)
    return State(nets={"main": Probe(build_net.towers())}, memory={"pseudolabels": task.labels.clone()})


def with_pseudolabels(cfg: ProbeSettings, task: Task, state: State, pseudolabels: Tensor) -> Begun:
    """The state with labels [N] int64 to train on, given ones among them, -1 = left out; and the counts of new ones."""
    counts = torch.bincount(pseudolabels[(task.labels < 0) & (pseudolabels >= 0)], minlength=task.n_classes)
    every = torch.bincount(pseudolabels[pseudolabels >= 0], minlength=task.n_classes)
    adjust = {"named": named.init(every, fixed.prior(every))} if cfg.adjust else {}
    state = dataclasses.replace(state, adjust=adjust, memory={**state.memory, "pseudolabels": pseudolabels})
    return state, {"pseudolabel_counts": counts.tolist()}


def plan(cfg: ProbeSettings, task: Task, state: State, epoch: int) -> EpochPlan:
    """Images with a label or a pseudolabel."""
    rows = (state.memory["pseudolabels"] >= 0).nonzero().flatten().cpu()
    return EpochPlan({"train": Stream(rows, cfg.batch_size, ("clean",))}, cfg.steps_per_epoch)


def step(cfg: ProbeSettings, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Cross-entropy."""
    batch = batches["train"]
    labels, logits = state.memory["pseudolabels"][batch.rows], state.nets["main"](batch.x)
    accuracy = (logits.detach().argmax(1) == labels).float().mean()
    adjustment, state = added(cfg.adjust, state, logits.detach().softmax(1))
    loss = adjusted_cross_entropy(logits, labels, adjustment)
    return StepResult(loss, len(labels), state, {"pseudolabel_agreement": accuracy})
