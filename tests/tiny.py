"""The smallest things a recipe can be run on: random pixels or unit features, nets to match, and a recorder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.encoders.backbones import Classifier, Stored
from labelwright.encoders.heads import CosineHead, MlpHead
from labelwright.encoders.towers import EmbeddedTowers
from labelwright.errors import ConfigError
from labelwright.methods import simclr
from labelwright.methods.families.labels import of_labels
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.run_folder import Run
from labelwright.train.loop import LoopOptions, Trained, train
from labelwright.train.parts import in_parts
from labelwright.train.seeds import generator
from labelwright.types import BuildNet, Candidates, Concepts, Head, Recipe, State, Task, ViewSource

CPU = torch.device("cpu")
SIZE_PX = 8
N_FEATURES = 16
LOGIT_SCALE = 12.0
SOLVED = {f"{name} on features": each.on_features() for name, each in METHODS.items() if each.frozen is not None}
# What sees features of a frozen network, always.
FROZEN = ("beliefs", "cross_validated", "kernel", "majority", "nearest_mean", *SOLVED)
SEMI_SUPERVISED = ("fixmatch", "softmatch")  # learn from unlabelled images, too
EVERY = {**METHODS, **SOLVED}
TRAINED = {**EVERY, "simclr": of_labels("SimCLR", cast(Recipe, simclr))}  # what is no method of `fit`, too


def family_of(name: str) -> str:
    """What a method learns from, by what it requires."""
    needs = TRAINED[name].requires
    return "open_world" if needs.novel else "text" if needs.text else "candidates" if needs.candidates else "labels"


class TinyViews:
    """N images that say a little of their class; "weak" and "strong" add noise that hangs on (seed, view, row)."""

    def __init__(self, classes: Sequence[int], *, size_px: int = SIZE_PX, seed: int = 0) -> None:
        g = generator(seed, "tiny pixels")
        centres = torch.randn(max(classes) + 1, 3, size_px, size_px, generator=g)
        noise = torch.randn(len(classes), 3, size_px, size_px, generator=g)
        self.x = 0.5 * centres[torch.tensor(classes)] + noise
        self.prefetched: list[Tensor] = []

    @property
    def n_rows(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        x = self.x[rows]
        if view != "clean":
            size = {"weak": 0.1, "strong": 0.3}[view]
            draws = [torch.randn(self.x.shape[1:], generator=generator(seed, view, row)) for row in rows.tolist()]
            x = x + size * torch.stack(draws)
        return x.to(device)

    def prefetch(self, rows: Tensor) -> None:
        self.prefetched.append(rows)


def centres_of(n_classes: int) -> Tensor:
    """[C, D] orthonormal: where the features of each class lie."""
    return torch.linalg.qr(torch.randn(N_FEATURES, n_classes, generator=generator(0, "tiny centres"))).Q.T


class TinyFeats:
    """Unit features of N images around the centres of their classes; "weak" and "strong" add noise as above."""

    def __init__(self, classes: Sequence[int], *, n_classes: int | None = None, noise: float = 0.2) -> None:
        centres = centres_of(n_classes or max(classes) + 1)
        drawn = torch.randn(len(classes), N_FEATURES, generator=generator(0, "tiny feats"))
        self.x = F.normalize(centres[torch.tensor(classes)] + noise * drawn, dim=1)

    @property
    def n_rows(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        size = {"clean": 0.0, "weak": 0.03, "strong": 0.1}[view]
        draws = [torch.randn(self.x.shape[1], generator=generator(seed, view, row)) for row in rows.tolist()]
        return F.normalize(self.x[rows] + size * torch.stack(draws), dim=1).to(device)

    def prefetch(self, rows: Tensor) -> None:
        pass


def concepts_of(n_classes: int, *, off: float = 0.15, mismatched: Sequence[int] = ()) -> Concepts:
    """Class features ``off`` their centres; those of ``mismatched`` classes point away from every image."""
    centres = centres_of(n_classes)
    feats = centres + off * torch.randn(n_classes, N_FEATURES, generator=generator(0, "tiny texts"))
    for c in mismatched:
        feats[c] = 0.3 * torch.randn(N_FEATURES, generator=generator(c, "tiny mismatch")) - 2 * centres.sum(0)
    return Concepts(F.normalize(feats, dim=1), LOGIT_SCALE)


@dataclass
class BuildTowers:
    """A `types.BuildNet` of recipes that read class names: stored features beside those of the names."""

    concepts: Concepts
    is_frozen: bool = True
    is_pretrained: bool = True
    n_features: int = N_FEATURES

    def __call__(self, n_outputs: int, *, head: Head = "linear", hidden: int = 256) -> nn.Module:
        raise AssertionError("these recipes are built on towers")

    def towers(self, tune: str = "none") -> Any:
        assert tune == "none"
        return EmbeddedTowers(self.concepts.feats, logit_scale=self.concepts.logit_scale)


@dataclass
class BuildHead:
    """A `types.BuildNet` of heads on stored features; weights from the global generator, which the loop seeds."""

    concepts: Concepts | None = None
    is_frozen: bool = True
    is_pretrained: bool = True
    n_features: int = N_FEATURES

    def __call__(self, n_outputs: int, *, head: Head = "linear", hidden: int = 256) -> nn.Module:
        return Classifier(
            Stored(),
            name="stored",
            n_features=self.n_features,
            n_outputs=n_outputs,
            head=head,
            hidden=hidden,
            image_size_px=0,
            freeze=(),
        )

    def towers(self, tune: str = "none") -> Any:
        if self.concepts is None:
            raise ConfigError("there are no text features of the classes", fix="use a model with a text side")
        assert tune == "none"
        return EmbeddedTowers(self.concepts.feats, logit_scale=self.concepts.logit_scale)


class TinyNet(nn.Module):
    """One convolution, batch norm if wanted, mean over places, head."""

    def __init__(self, n_outputs: int, *, head: Literal["linear", "cosine", "mlp"], norm: bool, width: int = 8) -> None:
        super().__init__()
        self.n_features = width
        self.n_parts = 1
        self.backbone = nn.Conv2d(3, width, 3, stride=2)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.head = {"linear": nn.Linear, "cosine": CosineHead, "mlp": MlpHead}[head](width, n_outputs)

    def features(self, x: Tensor) -> Tensor:
        return in_parts(
            self, lambda part: torch.relu(self.norm(self.backbone(part))).mean((2, 3)), x, n_parts=self.n_parts
        )

    def head_logits(self, feats: Tensor) -> Tensor:
        logits: Tensor = self.head(feats)
        return logits

    def penultimate(self, x: Tensor) -> Tensor:
        feats = self.features(x)
        return self.head.trunk(feats) if isinstance(self.head, MlpHead) else feats

    def from_penultimate(self, h: Tensor) -> Tensor:
        logits: Tensor = self.head.linear(h) if isinstance(self.head, MlpHead) else self.head(h)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.head_logits(self.features(x))

    def exported(self) -> TinyNet:
        return self


@dataclass
class BuildTiny:
    """A `types.BuildNet`; weights from the global generator, which the loop seeds."""

    norm: bool = True
    is_frozen: bool = False
    is_pretrained: bool = False

    def __call__(
        self, n_outputs: int, *, head: Literal["linear", "cosine", "mlp"] = "linear", hidden: int = 256
    ) -> nn.Module:
        return TinyNet(n_outputs, head=head, norm=self.norm)

    def towers(self, tune: str = "none") -> Any:
        raise AssertionError("this network reads no words")


def from_random_weights(build: Any) -> Any:
    """A function that makes networks, as a `types.BuildNet`."""
    build.is_frozen = build.is_pretrained = False
    return build


ON_FEATURES = {"coreg_frozen", "crowd"}  # methods that refuse a backbone that learns


@contextmanager
def nothing_read() -> Iterator[None]:
    """Nothing in the block may read a number off a tensor: on an accelerator the host would wait for it."""

    def refused(tensor: Tensor, *_: Any) -> Any:
        raise AssertionError(f"a number is read off a tensor of shape {list(tensor.shape)}")

    with pytest.MonkeyPatch.context() as patched:
        for name in ("item", "tolist", "__float__", "__int__", "__bool__"):
            patched.setattr(Tensor, name, refused)
        yield


@dataclass
class Recorded:
    """A recipe that does what another does, notes each loss, and may rest in each step to be caught in it."""

    recipe: Recipe
    rest_s: float = 0.0
    began: Path | None = None  # touched when the first step begins
    losses: list[float] = field(default_factory=list)
    around: ClassVar[Callable[[], AbstractContextManager[None]]] = staticmethod(nullcontext)  # of each step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recipe, name)

    def step(self, *args: Any) -> Any:
        if self.began is not None:
            self.began.touch()
        with self.around():
            result = self.recipe.step(*args)
        self.losses.append(float(result.loss.detach()))
        time.sleep(self.rest_s)
        return result


def classes_of(counts: Sequence[int]) -> list[int]:
    """Class of each row, class 0 first."""
    return [c for c, n in enumerate(counts) for _ in range(n)]


def task_of(counts: Sequence[int], *, n_unlabelled: int = 0, groups: Tensor | None = None) -> Task:
    labels = torch.tensor([*classes_of(counts), *[-1] * n_unlabelled])
    return Task(labels, tuple(f"class {c}" for c in range(len(counts))), groups=groups)


def text_task_of(counts: Sequence[int], *, every: int = 3) -> Task:
    """Every third image keeps its label (``every`` = 0: none does), and the classes have features of their names."""
    truth = torch.tensor(classes_of(counts))
    known = torch.arange(len(truth)) % every == 0 if every else torch.zeros(len(truth), dtype=torch.bool)
    names = tuple(f"class {c}" for c in range(len(counts)))
    return Task(torch.where(known, truth, -1), names, concepts=concepts_of(len(counts)))


def sets_of(mask: Tensor, weights: Tensor | None = None) -> Candidates:
    """Candidate sets out of [N, C] bool and, with weights [N, C], their shares of them."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    if weights is not None:
        weights = (weights * mask / (weights * mask).sum(1, keepdim=True))[mask]
    return Candidates(offsets, mask.nonzero()[:, 1].int(), weights)


def candidate_task_of(counts: Sequence[int]) -> Task:
    """Sets around the truth, weighted by chance: one in eight misses it, one in nine is empty, one image in six has
    its label.
    """
    truth, n_classes = torch.tensor(classes_of(counts)), len(counts)
    g = generator(0, "tiny candidates")
    rows = torch.arange(len(truth))
    mask = torch.rand(len(truth), n_classes, generator=g) < 0.25
    mask[rows, truth] = True
    if n_classes > 1:
        misses = rows % 8 == 3
        mask[misses, truth[misses]] = False
        mask[misses, (truth[misses] + 1) % n_classes] = True
    mask[rows % 9 == 4] = False
    sets = sets_of(mask, torch.rand(len(truth), n_classes, generator=g) + 0.01)
    labels = torch.where(rows % 6 == 0, truth, -1)
    return Task(labels, tuple(f"class {c}" for c in range(n_classes)), sets)


def half_task_of(counts: Sequence[int]) -> Task:
    """Every other image of a class is labelled, its first one always; there are no classes without a name."""
    labels = torch.tensor(classes_of(counts))
    hidden = torch.cat([torch.arange(n) % 2 == 1 for n in counts])
    return Task(labels.masked_fill(hidden, -1), tuple(f"class{c}" for c in range(len(counts))))


def options_of(seed: int = 0, **changed: Any) -> LoopOptions:
    return LoopOptions(**{"seed": seed, "device": "cpu", "precision": "fp32", "show_progress": False, **changed})


def run_method(
    name: str,
    counts: Sequence[int],
    *,
    settings: Mapping[str, object],
    seed: int = 0,
    norm: bool = True,
    run: Run | None = None,
    rest_s: float = 0.0,
    began: str | None = None,
    checkpoint_minutes: float = 5.0,
    stored: bool = False,
    accumulate: int = 1,
) -> tuple[Trained, list[float]]:
    """Train a registered method on tiny images of these class counts; its result and the loss of each forward.

    Methods that read class names see features, and a label on every third image only; those that learn from candidate
    sets see pixels, or features with ``stored`` and if they are `ON_FEATURES`.
    """
    recorded = Recorded(TRAINED[name].recipe, rest_s, None if began is None else Path(began))
    cfg = resolve_config(TRAINED[name], settings)
    options = options_of(seed, checkpoint_minutes=checkpoint_minutes, accumulate=accumulate)
    task, views, build = inputs_of(name, counts, norm=norm, stored=stored)
    trained = train(recorded, cfg, task, views, build, options=options, run=run)
    return trained, recorded.losses


def inputs_of(
    name: str, counts: Sequence[int], *, norm: bool = True, stored: bool = False
) -> tuple[Task, ViewSource, BuildNet]:
    """What a registered method is trained on."""
    if family_of(name) == "text":
        task = text_task_of(counts)
        assert task.concepts is not None
        return task, TinyFeats(classes_of(counts), n_classes=len(counts)), BuildTowers(task.concepts)
    makes = {"candidates": candidate_task_of, "open_world": half_task_of}
    task = (half_task_of if name in (*FROZEN, *SEMI_SUPERVISED) else makes.get(family_of(name), task_of))(counts)
    if stored or name in (*FROZEN, *ON_FEATURES):
        return task, TinyFeats(classes_of(counts), n_classes=len(counts)), BuildHead()
    return task, TinyViews(classes_of(counts)), BuildTiny(norm)


class Told(nn.Module):
    """Logits that are its only parameter, one row per image and view; x holds the place."""

    def __init__(self, n_places: int, n_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.table = nn.Parameter(2 * torch.randn(n_places, n_classes, generator=generator(seed, "told")))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.long()]

    def probs(self, place: int) -> list[float]:
        exps = [math.exp(v) for v in self.table[place].tolist()]
        return [e / sum(exps) for e in exps]


def passes_of(state: State, x: Tensor) -> Any:
    """types.Passes over views that are all the same, in chunks of seven."""

    @torch.no_grad()
    def passes(net: str, rows: Tensor, view: str = "clean", output: str = "logits") -> Iterator[tuple[Tensor, Tensor]]:
        module: Any = state.nets[net]
        for some in rows.split(7):
            yield some, module.features(x[some]) if output == "feats" else module(x[some])

    return passes


def tensors_of(state: State) -> dict[str, Tensor]:
    """Every tensor and number of a state, by its path."""
    found: dict[str, Tensor] = {}

    def walk(path: str, tree: Any) -> None:
        if isinstance(tree, Mapping):
            for key, value in tree.items():
                walk(f"{path}.{key}", value)
        else:
            found[path] = tree if isinstance(tree, Tensor) else torch.tensor(tree)

    walk("adjust", state.adjust)
    walk("memory", state.memory)
    for name, net in state.nets.items():
        walk(f"nets.{name}", net.state_dict())
    return found


def differing(a: State, b: State) -> list[str]:
    """Paths at which two states are not bit for bit the same."""
    first, second = tensors_of(a), tensors_of(b)
    assert first.keys() == second.keys()
    return [path for path in first if not torch.equal(first[path], second[path])]
