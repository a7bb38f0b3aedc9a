"""The types that recipes, views and the loop exchange.

Shape letters, the same everywhere: B batch, V views, N images, C classes, D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Candidates:
    """Candidate label sets of N images, stored as compressed sparse rows.

    Example:
      >>> sets = Candidates(torch.tensor([0, 2, 2]), torch.tensor([0, 3], dtype=torch.int32))
      >>> sets.of(0).tolist(), sets.of(1).tolist()
      ([0, 3], [])
    """

    offsets: Tensor  # [N+1] int64; the set of row i is ``classes[offsets[i]:offsets[i+1]]``; empty = nothing known
    classes: Tensor  # [nnz] int32 class indices, ascending inside a row
    weights: Tensor | None = None  # [nnz] float32 (rows sum to 1), or None for sets without weights
    # of a vision-language model that named them, how well it knows the classes: `labels.concepts.knowledge`; of anyone
    # else, or where nobody looked, infinite
    knowledge: float = math.inf

    def of(self, row: int) -> Tensor:
        """Class indices of one row, [k] int32."""
        return self.classes[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def __len__(self) -> int:
        return int(self.offsets.numel()) - 1

    def mask(self, rows: Tensor, n_classes: int) -> Tensor:
        """The sets of some rows, dense: for one batch at a time.

        Args:
          rows: [B] int64, 0 to N - 1, in any order.
          n_classes: C, above every class of the sets.

        Returns: [B, C] bool on the device of ``rows``; all False where a set is empty.

        Example:
          >>> sets = Candidates(torch.tensor([0, 2, 2]), torch.tensor([0, 3], dtype=torch.int32))
          >>> sets.mask(torch.tensor([1, 0]), 4).int().tolist()
          [[0, 0, 0, 0], [1, 0, 0, 1]]
        """
        _, own, at = self._entries(rows)
        mask = torch.zeros(len(rows), n_classes, dtype=torch.bool, device=rows.device)
        mask[own.to(rows.device), self.classes[at].to(rows.device, torch.int64)] = True
        return mask

    def shares(self, rows: Tensor, n_classes: int) -> Tensor:
        """The weights of some rows, dense; without weights the members of a set share evenly.

        Args:
          rows: [B] int64, 0 to N - 1.
          n_classes: C, above every class of the sets.

        Returns: [B, C] float32 on the device of ``rows``; rows sum to 1, to 0 where a set is empty or weighs nothing.

        Example:
          >>> sets = Candidates(torch.tensor([0, 2, 2]), torch.tensor([0, 3], dtype=torch.int32))
          >>> sets.shares(torch.tensor([0, 1]), 4).tolist()
          [[0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]]
        """
        _, own, at = self._entries(rows)
        shares = torch.zeros(len(rows), n_classes, device=rows.device)
        weights = 1.0 if self.weights is None else self.weights[at].to(shares)
        shares[own.to(rows.device), self.classes[at].to(rows.device, torch.int64)] = weights
        return shares / shares.sum(1, keepdim=True).clamp(min=1e-12)

    def take(self, rows: Tensor) -> Candidates:
        """The sets of some rows, in their order.

        Args:
          rows: [n] int64, 0 to N - 1; a row may come twice.

        Returns: n sets, on the device of these.

        Example:
          >>> sets = Candidates(torch.tensor([0, 2, 2]), torch.tensor([0, 3], dtype=torch.int32))
          >>> taken = sets.take(torch.tensor([1, 0]))
          >>> taken.of(0).tolist(), taken.of(1).tolist()
          ([], [0, 3])
        """
        offsets, _, at = self._entries(rows)
        weights = None if self.weights is None else self.weights[at]
        return dataclasses.replace(self, offsets=offsets, classes=self.classes[at], weights=weights)

    def to(self, device: torch.device | str) -> Candidates:
        """The same sets on another device."""
        weights = None if self.weights is None else self.weights.to(device)
        return dataclasses.replace(
            self, offsets=self.offsets.to(device), classes=self.classes.to(device), weights=weights
        )

    def _entries(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of some rows [n]: their own offsets [n+1], and of each member of their sets the place of its row in ``rows``
        and its own place in ``classes``, [nnz] int64 both.
        """
        rows = rows.to(self.offsets.device)
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        own = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)
        at = (starts - offsets[:-1])[own] + torch.arange(len(own), device=rows.device)
        return offsets, own, at


@dataclass(frozen=True)
class Concepts:
    """What the text side of a vision-language model says of the classes, in the space of the image features."""

    feats: Tensor  # [C, D] float32 unit norm, of the class names
    logit_scale: float  # what cosines are multiplied by, > 0
    # texts that describe how a class looks, a tuple per class; empty where there is none
    descriptions: tuple[tuple[str, ...], ...] = ()
    description_feats: tuple[Tensor, ...] = ()  # [k, D] float32 unit norm of them, a tensor per class (k may be 0)


@dataclass(frozen=True)
class Task:
    """What a recipe may know of the training images: no hidden truth gets here."""

    labels: Tensor  # [N] int64, -1 = unknown
    class_names: tuple[str, ...]  # C names, in class order
    candidates: Candidates | None = None  # candidate sets, or None
    n_novel: int = 0  # how many classes beyond ``class_names`` may be present (0 = none)
    groups: Tensor | None = None  # [N] int64 images of one group are not independent (frames of one track), or None
    concepts: Concepts | None = None  # what a text tower says of the classes, or None without a vision-language model
    # [N] int64 cluster of each image in the features of the model that made the candidates, -1 = not looked at; or
    # None. Something to hold answers against where there are no labels.
    clusters: Tensor | None = None
    votes: Tensor | None = None  # [N, A] int64 class that each of A annotators answered, -1 = none; or None

    @property
    def n_classes(self) -> int:
        """C: listed plus novel classes."""
        return len(self.class_names) + self.n_novel

    @cached_property
    def counts(self) -> Tensor:
        """[C] int64 labelled images per class.

        Example:
          >>> Task(torch.tensor([0, 1, 1, -1]), ("cat", "dog", "owl")).counts.tolist()
          [1, 2, 0]
        """
        return torch.bincount(self.labels[self.labels >= 0], minlength=self.n_classes)

    def possible(self, rows: Tensor) -> Tensor:
        """What the classes of some rows may be: the label alone, the candidate set, or every class if there is neither.

        Args:
          rows: [B] int64.

        Returns: [B, C] bool on the device of ``rows``, no row all False.

        Example:
          >>> sets = Candidates(torch.tensor([0, 2, 4, 4]), torch.tensor([0, 1, 0, 2], dtype=torch.int32))
          >>> task = Task(torch.tensor([-1, 1, -1]), ("cat", "dog", "owl"), sets)
          >>> task.possible(torch.arange(3)).int().tolist()
          [[1, 1, 0], [0, 1, 0], [1, 1, 1]]
        """
        return self.guesses(rows) > 0

    def guesses(self, rows: Tensor) -> Tensor:
        """How the label or the weights of the candidate set share out each row: even where nothing is known.

        A candidate with weight 0 is no candidate.

        Args:
          rows: [B] int64.

        Returns: [B, C] float32 on the device of ``rows``, rows sum to 1.

        Example:
          >>> Task(torch.tensor([-1, 1]), ("cat", "dog")).guesses(torch.arange(2)).tolist()
          [[0.5, 0.5], [0.0, 1.0]]
        """
        labels = self.labels.to(rows.device)[rows]
        if self.candidates is None:
            shares = torch.zeros(len(rows), self.n_classes, device=rows.device)
        else:
            shares = self.candidates.shares(rows, self.n_classes)
        shares[labels >= 0] = 0.0
        shares[(labels >= 0).nonzero().flatten(), labels[labels >= 0]] = 1.0
        shares[shares.sum(1) == 0] = 1.0 / self.n_classes
        return shares


@dataclass(frozen=True)
class Stream:
    """Rows that a step wants together, visited in an order drawn anew each epoch."""

    rows: Tensor  # [n] int64 rows of the training table; a row listed twice is visited twice an epoch
    batch_size: int  # rows per step, over all processes
    # names of the views wanted of every row, from data.views.VIEWS: "clean", "weak", "strong"
    views: tuple[str, ...] = ("weak",)
    shuffle: bool = True  # False visits the rows as listed


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch visits. A stream shorter than ``n_steps`` batches starts over, reshuffled."""

    streams: Mapping[str, Stream]  # name -> stream; `step` gets one `Batch` under each name
    n_steps: int  # optimizer steps in the epoch


@dataclass(frozen=True)
class Batch:
    """One stream's share of one step, on the training device."""

    rows: Tensor  # [B] int64 rows of the training table
    # one tensor per view asked for, in that order: [B, 3, H, W] float pixels or [B, D] float embeddings
    views: tuple[Tensor, ...]
    labels: Tensor  # [B] int64, -1 = unknown

    @property
    def x(self) -> Tensor:
        """The first view."""
        return self.views[0]


@dataclass(frozen=True)
class Clock:
    """Where in training a step is. All zero-based; `epoch_frac` counts epochs with their fraction."""

    epoch: int
    n_epochs: int
    step: int
    steps_per_epoch: int
    seed: int

    @property
    def epoch_frac(self) -> float:
        """Epochs done so far, with the fraction of the one under way."""
        return self.epoch + self.step / self.steps_per_epoch


@dataclass(frozen=True)
class Average:
    """A network kept as the exponential moving average of another, updated by the loop after each step."""

    source: str  # name of the network followed
    decay: float  # share of the old value kept, 0 to 1


@dataclass(frozen=True)
class State:
    """Everything of a recipe that must survive a restart."""

    # name -> network. The loop trains every parameter with requires_grad of the networks not in `averages`.
    nets: Mapping[str, nn.Module]
    # logit-adjustment state: nested dicts of tensors and numbers
    adjust: Mapping[str, Any] = field(default_factory=dict)
    # queues, prototypes, tables of pseudolabels and the like: nested dicts of tensors and numbers
    memory: Mapping[str, Any] = field(default_factory=dict)
    averages: Mapping[str, Average] = field(default_factory=dict)  # name of a network -> which one it follows


@dataclass(frozen=True)
class StepResult:
    """What one step hands back: the loss to descend, and the state with everything but the networks renewed."""

    loss: Tensor  # scalar
    # rows that the loss counted, so that averages weigh rows and not batches; a tensor if counted there
    n_kept: Tensor | int
    state: State  # the new state
    # name -> number, averaged over the epoch weighted by `n_kept`
    logs: Mapping[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """Scores of a batch. `logits` [B, C] already hold the adjustments that apply at test time."""

    logits: Tensor

    @property
    def probs(self) -> Tensor:
        """[B, C] float32, rows sum to 1."""
        return self.logits.float().softmax(dim=1)


class ViewSource(Protocol):
    """Where the views of images come from: decoded pixels, streamed files, or stored embeddings."""

    @property
    def n_rows(self) -> int:
        """N images behind this source."""

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        """View of the given rows: [B, 3, H, W] or [B, D] float32 on ``device``; the same seed gives the same view."""

    def prefetch(self, rows: Tensor) -> None:
        """A hint that `batch` will be asked for these rows next; may do nothing."""


Output = Literal["logits", "feats"]


class Passes(Protocol):
    """Streams a network's predictions over any rows of the training set, in order, un-augmented by default."""

    def __call__(
        self, net: str, rows: Tensor, view: str = "clean", output: Output = "logits"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (rows [B] int64, logits [B, C] or feats [B, D] float32), on the training device, for every row."""


class Network(Protocol):
    """A classifier: backbone, then head; what `BuildNet` makes (encoders.backbones.Classifier)."""

    @property
    def n_features(self) -> int:
        """D: width of the features, and of what the last layer sees."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, C] of views."""

    def features(self, x: Tensor) -> Tensor:
        """Backbone features [B, D] of views."""

    def head_logits(self, feats: Tensor) -> Tensor:
        """Logits [B, C] of features."""

    def penultimate(self, x: Tensor) -> Tensor:
        """What the last layer sees of views, [B, D]: the features, or more where the head has more than one layer."""

    def from_penultimate(self, h: Tensor) -> Tensor:
        """Logits [B, C] of what `penultimate` gives."""


Head = Literal["linear", "centred", "cosine", "mlp", "projected", "lifted", "kernel"]
"""What turns features into logits; see encoders/heads.py."""


class BuildNet(Protocol):
    """Makes fresh networks of the user's backbone."""

    @property
    def is_frozen(self) -> bool:
        """Whether views go through nothing that learns before the head: stored embeddings, or a frozen encoder."""

    @property
    def is_pretrained(self) -> bool:
        """Whether the backbone has learned something before; False for random weights."""

    def __call__(self, n_outputs: int, *, head: Head = "linear", hidden: int = 256) -> nn.Module:
        """A `Network` of n_outputs classes.

        Head "linear", "centred" (linear on centred features of unit scale), "cosine" (unit-norm), "mlp" (a residual
        layer of width ``hidden`` first), "projected" (linear on unit projections to ``hidden`` numbers), "lifted"
        (the same, their length kept) or "kernel" (linear on the nearness to ``hidden`` images).
        """

    def towers(self, tune: str = "none") -> Any:
        """Image and text features of a vision-language model (encoders.towers.Towers); ``tune`` is what of it learns.

        "none" (nothing), "coop", "vpt", "maple" (prompts) or "lora".

        Raises: ConfigError: the model has no text side, or stored embeddings leave nothing to tune.
        """


class Recipe(Protocol):
    """A method: a module, or an object, with these seven names (see methods/cvs.py for how one reads)."""

    @property
    def Config(self) -> type[Any]: ...  # noqa: N802  (the recipe's frozen dataclass)

    def setup(self, cfg: Any, task: Task, build_net: BuildNet) -> State:
        """Networks, adjustments and memories before the first step."""

    def begin(self, cfg: Any, task: Task, state: State, passes: Passes) -> tuple[State, Mapping[str, Any]]:
        """What needs whole passes before the first epoch; returns the state and what to log."""

    def plan(self, cfg: Any, task: Task, state: State, epoch: int) -> EpochPlan:
        """What the epoch visits."""

    def step(self, cfg: Any, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
        """The method's equations."""

    def end_epoch(
        self, cfg: Any, task: Task, state: State, passes: Passes, epoch: int
    ) -> tuple[State, Mapping[str, Any]]:
        """Purify labels, re-estimate priors and slopes; returns the state and what to log (numbers or lists).

        ``"stop": True`` in the logs ends training after this epoch, before ``cfg.epochs``; a resumed run stays ended.
        """

    def predict(self, cfg: Any, state: State, x: Tensor) -> Prediction:
        """Scores of a batch of clean views."""
