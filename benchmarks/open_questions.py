"""The open questions that the four papers name, each by an experiment on features that takes minutes.

    python benchmarks/open_questions.py MODEL DATA [QUESTION …] [--feats FOLDER] [--csv docs/results/open_questions.csv]

MODEL is a small vision-language model by folder or id, with descriptions.json beside its folder; DATA the folder of
`labelwright bench`, for `lps-2` with RSSCN7 and flowers12 (`NAME-train.parquet`, `NAME-train-efficientnet.npz`).
A question is a paper and a number, as docs/open-questions.md has them. Images are the target pools of the tables of
CAP; the seed draws images, labels and weights. Seeds whose rows stand in the file are not run again. The truth of
unlabelled images is used for scoring only. --feats keeps the features (`cifar10-train.npz` and so on), which are
embedded once.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from labelwright.adjust import fixed, slopes
from labelwright.adjust.adjustment import Adjustment
from labelwright.annotators.annotator import views_of
from labelwright.benchmarking.pools import descriptions_of, with_nonsense
from labelwright.benchmarking.results import add_rows, read_rows
from labelwright.benchmarking.runner import table_data
from labelwright.benchmarking.tables import TABLES
from labelwright.data.embeddings import GivenFeats
from labelwright.data.prepare import open_source
from labelwright.data.splits import few_shot, seen_novel
from labelwright.data.stored import EmbeddingViews
from labelwright.encoders.embed import Encoder, concepts_of, load_encoder
from labelwright.encoders.nets import EncoderNets
from labelwright.labels.alignment import align
from labelwright.labels.concepts import LEAST_FOUND, detect_by_clustering, detect_mismatched, found_by_name
from labelwright.labels.n_novel import estimate_n_novel
from labelwright.methods import cap_margin, cvs_frozen, lps
from labelwright.methods.baselines import la
from labelwright.methods.frozen_heads import Labelled, fitted
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.metrics.classification import calibration_error
from labelwright.metrics.open_world import seen_novel_all
from labelwright.train.convex import Linear, Problem
from labelwright.train.cross_validation import folds_of
from labelwright.train.environment import source_commit
from labelwright.train.loop import LoopOptions, train
from labelwright.train.scaling import centre_and_scale
from labelwright.types import Candidates, Concepts, Task
from long_tailed_features import long_tail
from mismatch import pool_feats
from n_novel import case

CPU = torch.device("cpu")
HARDWARE = "cpu (AMD EPYC, 1 thread), float32"
Found = Iterator[tuple[str, str, str, float | int]]
"""What a question finds for one seed: cell, its title, metric and value, in percent where the name says nothing."""

TITLES = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB", "rsscn7": "RSSCN7", "flowers12": "flowers12"}
GROUPS = ("many", "medium", "few")  # of classes: more than 100 images to learn from, 20 to 100, fewer than 20
BASELINE = {"epochs": 100, "lr": 0.2}  # of methods for candidates on small sets: about 1,500 steps, Co-Reg's rate
PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "sympy", "networkx", "torch", "transformers")
N_DOCUMENTS, N_SOUNDS = 300, 250  # of each class
TRIED, PENALTY = (100.0, 30.0, 10.0, 3.0), 10.0  # penalties of linear heads; the one where none is chosen


@dataclasses.dataclass(frozen=True)
class Images:
    """Unit features [N, D], labels [N], groups [N] or None, class names."""

    z: Tensor
    y: Tensor
    groups: Tensor | None
    names: tuple[str, ...]


class Material:
    """What the questions work on."""

    def __init__(self, model: str, data: str, encoder: Encoder, feats: Path | None) -> None:
        self.model, self.data, self.encoder, self.feats = model, data, encoder, feats
        self.images = cache(self._images)

    def _images(self, dataset: str, is_test: bool = False) -> Images:
        """A target pool, or test images."""
        kept = None if self.feats is None else self.feats / f"{dataset}-{'test' if is_test else 'train'}.npz"
        if kept is None or not kept.exists():
            z, y, names = pool_feats(dataset, self.data, self.encoder, is_test=is_test)
            groups = None if is_test else table_data(TABLES[f"cap-{dataset}"], self.data)[0].groups
            found = {"embeddings": z.float().numpy(), "labels": y.numpy(), "class_names": np.array(names)}
            found |= {} if groups is None else {"groups": np.asarray(groups)}
            if kept is not None:
                np.savez(kept, **found)
        else:
            with np.load(kept) as file:
                found = dict(file)
        z, y = torch.from_numpy(found["embeddings"]).float(), torch.from_numpy(found["labels"]).long()
        groups = torch.from_numpy(found["groups"]) if "groups" in found else None
        return Images(F.normalize(z, dim=1), y, groups, tuple(map(str, found["class_names"])))

    def some(self, dataset: str, n: int, seed: int) -> Images:
        """Images of a target pool, at random."""
        every = self.images(dataset)
        rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(every.y))[:n])
        return Images(every.z[rows], every.y[rows], None, every.names)

    def photographs(self, dataset: str, what: str) -> tuple[Tensor, Tensor]:
        """Features [N, D] of photographs, by a network or their pixels, and labels [N]."""
        path = f"{self.data}/{dataset}-train.parquet"
        with np.load(f"{self.data}/{dataset}-train-efficientnet.npz") as file:
            feats = torch.from_numpy(file["embeddings"]).float()
            labels = torch.from_numpy(np.unique(file["labels"], return_inverse=True)[1])
        if what == "clip":
            source = open_source(path, classes=None, size_px=self.encoder.stats.size_px)
            feats = torch.cat(list(views_of(source, self.encoder, CPU).feats()))
        elif what == "pixels":
            cells = pq.read_table(path)["image"].to_pylist()
            small = [Image.open(io.BytesIO(cell["bytes"])).convert("RGB").resize((16, 16)) for cell in cells]
            feats = torch.from_numpy(np.stack([np.asarray(image, np.float32).ravel() / 255 for image in small]))
        return feats, labels

    def texts(self, names: Sequence[str], looks: Mapping[str, Sequence[str]] | None = None) -> Concepts:
        """Of class names, and of descriptions."""
        assert self.encoder.tower is not None
        return concepts_of(self.encoder.tower, names, templates="{}", descriptions=looks)

    def looks(self, dataset: str, names: Sequence[str] | None = None) -> dict[str, list[str]]:
        """Descriptions, under other names where these are given."""
        official = self.images(dataset).names
        return descriptions_of(None, self.model, dataset, official, names or official)

    def described(self, dataset: str) -> Concepts:
        """The mean of the descriptions in place of each name."""
        there = self.texts(self.images(dataset).names, self.looks(dataset))
        return Concepts(in_place(there, lambda texts: texts.mean(0)), there.logit_scale)


def in_place(there: Concepts, of: Callable[[Tensor], Tensor]) -> Tensor:
    """[C, D] unit norm: what is made of the descriptions of a class, or its name where there are none."""
    pairs = zip(there.description_feats, there.feats, strict=True)
    return torch.stack([F.normalize(of(texts.float()) if len(texts) else name.float(), dim=0) for texts, name in pairs])


def right(predicted: Tensor, truth: Tensor) -> float:
    """Accuracy in percent."""
    return 100 * float((predicted == truth).double().mean())


def trained(method: str, task: Task, z: Tensor, seed: int, preset: str = "practical", **settings: Any) -> tuple:
    """The network that a method leaves on features [N, D], and its settings."""
    cfg: Any = resolve_config(METHODS[method], settings, preset=preset)
    views = EmbeddingViews(GivenFeats(z.numpy()))
    build = EncoderNets(z.shape[1], task.concepts, None, True, task.class_names, "{}", seed)
    options = LoopOptions(seed=seed, device="cpu", precision="fp32", n_evaluations=0, show_progress=False)
    if method == "cap":
        cfg = cap_margin.with_chosen_margin(cfg, task, views, build, options=options)
    state = train(METHODS[method].recipe, cfg, task, views, build, options=options).state
    return state.nets["main"].eval(), cfg


@torch.no_grad()
def answers(net: Any, z: Tensor) -> Tensor:
    """[N] int64."""
    return torch.cat([net(some).argmax(1) for some in z.split(8192)])


def regression(x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """What plain logistic regression answers, [N] int64."""
    return torch.from_numpy(LogisticRegression(C=10.0, max_iter=300).fit(x.numpy(), y.numpy()).predict(test.numpy()))


# CAP


def cap_1(m: Material, seed: int) -> Found:
    """Wrong descriptions, with the guard and without."""
    for dataset, other in (("cifar10", "gtsrb"), ("gtsrb", "cifar10")):
        pool, lead, rng = m.some(dataset, 5000, seed), TITLES[dataset], np.random.default_rng(seed)
        names, own = pool.names, m.looks(dataset)
        order = rng.permutation(len(names))
        next_of = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
        swapped = {name: own.get(names[next_of[c]], []) for c, name in enumerate(names)}
        some = {names[c] for c in order[: len(names) // 2]}
        foreign = [text for texts in m.looks(other).values() for text in texts]
        versions = {
            "given": ("as given", own),
            "half": ("half of them another class's", own | {name: swapped[name] for name in some}),
            "swapped": ("all another class's", swapped),
            "foreign": (f"all of {TITLES[other]}", {name: [str(rng.choice(foreign))] for name in names}),
        }
        plain = m.texts(names)
        t, scale = plain.feats.float(), plain.logit_scale
        task = Task(torch.full((len(pool.y),), -1), names, concepts=plain)

        def zero_shot(texts: Tensor, pool: Images = pool) -> float:
            return right((pool.z @ texts.T).argmax(1), pool.y)

        yield f"{dataset}-names", f"{lead}: names alone, zero-shot", "pseudolabels", zero_shot(t)
        found, _ = align(pool.z, task, t, logit_scale=scale)
        yield f"{dataset}-cap", f"{lead}: names alone, CAP", "pseudolabels", right(found.predicted, pool.y)
        suspect = detect_mismatched(pool.z, t, logit_scale=scale).is_mismatched | (found_by_name(pool.z, t) <= 0.02)
        for key, (words, looks) in versions.items():
            there, title = m.texts(names, looks), f"{lead}, descriptions {words}"
            every, first = in_place(there, lambda texts: texts.mean(0)), in_place(there, lambda texts: texts[0])
            yield f"{dataset}-{key}-every", f"{title}: in place of all names", "pseudolabels", zero_shot(every)
            mixed = torch.where(suspect[:, None], first, t)
            yield f"{dataset}-{key}-first", f"{title}: in place of detected names", "pseudolabels", zero_shot(mixed)
            found, logs = align(pool.z, dataclasses.replace(task, concepts=there), t, logit_scale=scale)
            cell, title = f"{dataset}-{key}-guard", f"{title}: guarded (CAP)"
            yield cell, title, "pseudolabels", right(found.predicted, pool.y)
            taken = logs["descriptions"]
            yield cell, title, "taken", len(taken)
            yield cell, title, "wrong_taken", sum(text not in own.get(name, []) for name, text in taken.items())


def cap_2(m: Material, seed: int) -> Found:
    """Some or all names replaced by made-up words: what is detected, and what CAP makes of it."""
    for dataset in ("cifar10", "gtsrb"):
        pool = m.some(dataset, 2500, seed)
        for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            names = with_nonsense(pool.names, round(share * len(pool.names)), seed=seed)
            is_made_up = torch.tensor([a != b for a, b in zip(names, pool.names, strict=True)])
            there = m.texts(names, m.looks(dataset, names))
            t, scale = there.feats.float(), there.logit_scale
            cell, title = f"{dataset}-{round(100 * share)}", f"{TITLES[dataset]}, {share:.0%} made up"
            detected = {
                "evidence": detect_mismatched(pool.z, t, logit_scale=scale).is_mismatched,
                "no_image": found_by_name(pool.z, t) <= LEAST_FOUND,
                "algorithm_1": detect_by_clustering(pool.z, t, logit_scale=scale, seed=seed),
            }
            for how, each in detected.items():
                for metric, of in ((f"{how}_made_up", is_made_up), (f"{how}_others", ~is_made_up)):
                    if of.any():
                        yield cell, title, metric, 100 * float(each[of].double().mean())
            kept, _ = few_shot(pool.y.numpy(), per_class=2, n_classes=len(names), seed=seed)
            labels = torch.full((len(pool.y),), -1)
            free = torch.ones(len(labels), dtype=torch.bool)
            free[kept] = False
            none, few = Task(labels, names), labels.where(free, pool.y)
            yield cell, title, "zero_shot", right((pool.z @ t.T).argmax(1)[free], pool.y[free])
            tasks = {
                "cap": none,
                "cap_described": Task(labels, names, concepts=there),
                "cap_2_labels": Task(few, names),
            }
            for metric, task in tasks.items():
                found, _ = align(pool.z, task, t, logit_scale=scale)
                yield cell, title, metric, right(found.predicted[free], pool.y[free])


def cap_3(m: Material, seed: int) -> Found:
    """Margin scales in the paper's training on balanced pools, and the one chosen without labels."""
    cases = {"cifar10": ("CIFAR-10, 200 a class, names", 200), "gtsrb": ("GTSRB, 60 a class, descriptions", 60)}
    how = {"tune": "adapters", "label_view": "clean", "residual_weight": None, "alignment": "none"}
    for dataset, (title, per_class) in cases.items():
        pool = m.images(dataset)
        kept, _ = few_shot(pool.y.numpy(), per_class=per_class, n_classes=len(pool.names), seed=seed)
        z, y = pool.z[kept], pool.y[kept]
        texts = m.texts(pool.names) if dataset == "cifar10" else m.described(dataset)
        task = Task(torch.full((len(y),), -1), pool.names, concepts=texts)
        zero = right((z @ texts.feats.float().T).argmax(1), y)
        yield f"{dataset}-zero", f"{title}: zero-shot", "pseudolabels", zero
        for scale in (0.0, 12.0, 200.0, "auto"):
            net, cfg = trained("cap", task, z, seed, "paper", margin_scale=scale, epochs=20, **how)
            score = right(answers(net, z), y)
            is_auto = isinstance(scale, str)
            cell = f"{dataset}-m-{scale if is_auto else round(scale)}"
            words = "m chosen without labels" if is_auto else f"m = {scale:g}"
            yield cell, f"{title}: {words}", "pseudolabels", score
            if is_auto:
                yield cell, f"{title}: {words}", "chosen", round(cfg.margin_scale)


# Co-Reg


def sets_of(probs: Tensor, k: int) -> Candidates:
    """The k most probable classes of every row, weighted."""
    top = probs.topk(k, 1).indices.sort(1).values
    weights = probs.gather(1, top)
    weights = (weights / weights.sum(1, keepdim=True)).flatten().float()
    return Candidates(torch.arange(len(probs) + 1) * k, top.flatten().int(), weights)


def students(task: Task, z: Tensor, probs: Tensor, test: Tensor, truth: Tensor, seed: int, methods: str) -> Found:
    """What learns from guesses, by their probabilities [N, C]: cell, title, metric, accuracy on test images."""
    first = torch.where(task.labels >= 0, task.labels, probs.argmax(1))
    if "regression" in methods:
        yield "regression", "regression on the first guess", "accuracy", right(regression(z, first, test), truth)
    for method, title in (("kd", "distillation"), ("proden", "PRODEN"), ("coreg_frozen", "Co-Reg")):
        if method in methods:
            net, _ = trained(method, task, z, seed, **({} if method == "coreg_frozen" else BASELINE))
            yield method, title, "accuracy", right(answers(net, test), truth)


@cache
def documents() -> tuple[Tensor, Tensor]:
    """Documentation strings of eight packages, the names of the packages taken out: features [N, 128], labels [N]."""
    texts, labels = [], []
    for c, package in enumerate(PACKAGES):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        own: list[str] = []
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            if "tests" in path.parts or len(own) >= 4 * N_DOCUMENTS:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
                if text and len(text) >= 200:
                    own.append(text)
        texts += own[:: max(1, len(own) // N_DOCUMENTS)][:N_DOCUMENTS]
        labels += [c] * min(N_DOCUMENTS, len(own))
    out = [*PACKAGES, "np", "pd", "nx", "scikit", "learn", "pytorch"]
    words = TfidfVectorizer(max_features=20_000, sublinear_tf=True, stop_words=out, min_df=2).fit_transform(texts)
    feats = TruncatedSVD(128, random_state=0).fit_transform(words)
    return F.normalize(torch.from_numpy(feats).float(), dim=1), torch.tensor(labels)


@cache
def sounds() -> tuple[Tensor, Tensor]:
    """Made-up tones of eight instruments, each with its own overtones: log spectra [N, 128], labels [N]."""
    rng, time_s = np.random.default_rng(0), np.arange(2048) / 8000
    overtones = rng.dirichlet(np.ones(8), size=8)  # of each instrument
    labels = np.repeat(np.arange(8), N_SOUNDS)
    rows = []
    for c in labels:
        loud = overtones[c] * rng.lognormal(0, 0.5, 8)
        waves = np.sin(
            2 * np.pi * rng.uniform(215, 225) * np.outer(np.arange(1, 9), time_s) + rng.uniform(0, 6, (8, 1))
        )
        spectrum = np.abs(np.fft.rfft(loud @ waves + 0.3 * rng.standard_normal(len(time_s))))[:1024]
        rows.append(np.log(spectrum.reshape(128, 8).sum(1)))
    return F.normalize(torch.from_numpy(np.stack(rows)).float(), dim=1), torch.from_numpy(labels)


def coreg_1(m: Material, seed: int) -> Found:
    """Other modalities: a classifier that has seen three labels a class guesses three candidates."""
    pen, digit = load_digits(return_X_y=True)
    corpora = {
        "text": ("Text, documentation of 8 packages", *documents()),
        "pen": ("Pen strokes, 64 counts, 10 digits", torch.from_numpy(pen).float() / 16, torch.from_numpy(digit)),
        "sound": ("Sound, MADE UP, 8 instruments", *sounds()),
    }
    for key, (title, x, y) in corpora.items():
        n_classes = int(y.max()) + 1
        kept, _ = few_shot(y.numpy(), per_class=3, n_classes=n_classes, seed=seed)
        rest = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(len(y)), kept))
        test, pool = rest[: len(rest) // 4], rest[len(rest) // 4 :]
        x = x - x[pool].mean(0)
        x = x / x[pool].norm(dim=1).mean()
        weak = LogisticRegression(C=10.0, max_iter=300).fit(x[kept].numpy(), y[kept].numpy())
        probs, on_test = (torch.from_numpy(weak.predict_proba(x[rows].numpy())).float() for rows in (pool, test))
        task = Task(torch.full((len(pool),), -1), tuple(map(str, range(n_classes))), sets_of(probs, 3))
        yield f"{key}-annotator", f"{title}: the annotator", "accuracy", right(on_test.argmax(1), y[test])
        for cell, *more in students(task, x[pool], probs, x[test], y[test], seed, "regression kd proden coreg_frozen"):
            yield f"{key}-{cell}", f"{title}: {more[0]}", more[1], more[2]
        bare = dataclasses.replace(task, candidates=dataclasses.replace(sets_of(probs, 3), weights=None))
        net, _ = trained("coreg_frozen", bare, x[pool], seed)
        yield f"{key}-bare", f"{title}: Co-Reg, sets without weights", "accuracy", right(answers(net, x[test]), y[test])
        ceiling = right(regression(x[pool], y[pool], x[test]), y[test])
        yield f"{key}-all", f"{title}: regression on all labels", "accuracy", ceiling


def coreg_2(m: Material, seed: int) -> Found:
    """A small share of the unlabelled images; what the annotator is, and what Co-Reg makes of its guesses."""
    annotators = {
        "cifar10": ("cifar10", "CIFAR-10, names", m.texts(m.images("cifar10").names)),
        "gtsrb": ("gtsrb", "GTSRB, names", m.texts(m.images("gtsrb").names)),
        "repaired": ("gtsrb", "GTSRB, descriptions", m.described("gtsrb")),
    }
    for key, (dataset, title, texts) in annotators.items():
        test = m.images(dataset, True)
        t = texts.feats.float()
        yield f"{key}-annotator", f"{title}: the annotator", "accuracy", right((test.z @ t.T).argmax(1), test.y)
        for share in (0.01, 0.02, 0.05, 0.1, 0.18):
            pool = m.some(dataset, round(share * len(m.images(dataset).y)), seed)
            probs = (texts.logit_scale * pool.z @ t.T).softmax(1)
            task = Task(torch.full((len(pool.y),), -1), pool.names, sets_of(probs, 5), concepts=texts)
            for cell, *more in students(task, pool.z, probs, test.z, test.y, seed, "coreg_frozen"):
                name = f"{title}, {share:.0%} of the images: {more[0]}"
                yield f"{key}-{round(100 * share)}-{cell}", name, more[1], more[2]


def coreg_3(m: Material, seed: int) -> Found:
    """An annotator trained on such images, which knows the names: what there is to gain, and what is gained."""
    for dataset, title, out in (("cifar10", "CIFAR-10 without deer", "deer"), ("gtsrb", "GTSRB, descriptions", "")):
        pool, test = m.some(dataset, 4000, seed), m.images(dataset, True)
        texts = m.described(dataset) if dataset == "gtsrb" else m.texts(pool.names)
        classes = torch.tensor([c for c, name in enumerate(pool.names) if name != out])
        place = torch.full((len(pool.names),), -1).index_copy(0, classes, torch.arange(len(classes)))
        x, y = pool.z[place[pool.y] >= 0], place[pool.y][place[pool.y] >= 0]
        x_test, y_test = test.z[place[test.y] >= 0], place[test.y][place[test.y] >= 0]
        texts = Concepts(texts.feats.float()[classes], texts.logit_scale)
        names = tuple(pool.names[c] for c in classes)
        probs = (texts.logit_scale * x @ texts.feats.T).softmax(1)
        yield (
            f"{dataset}-annotator",
            f"{title}: the annotator",
            "accuracy",
            right((x_test @ texts.feats.T).argmax(1), y_test),
        )
        for n in (0, 5):
            labels = torch.full((len(y),), -1)
            kept, _ = few_shot(y.numpy(), per_class=max(n, 1), n_classes=len(names), seed=seed)
            if n:
                labels[kept] = y[kept]
            task = Task(labels, names, sets_of(probs, 5), concepts=texts)
            words = f", {n} labels a class" if n else ""
            for cell, *more in students(task, x, probs, x_test, y_test, seed, "coreg_frozen"):
                yield f"{dataset}-{n}-{cell}", f"{title}{words}: {more[0]}", more[1], more[2]
            if n:
                alone = right(regression(x[kept], y[kept], x_test), y_test)
                yield f"{dataset}-{n}-alone", f"{title}{words}: regression on them alone", "accuracy", alone
        yield (
            f"{dataset}-all",
            f"{title}: regression on all labels",
            "accuracy",
            right(regression(x, y, x_test), y_test),
        )


# CVS


@dataclasses.dataclass(frozen=True)
class Tail:
    """Long-tailed images to learn from, those to score on, and those that are left, centred and of one scale."""

    title: str
    data: Labelled
    counts: Tensor
    test: Tensor
    truth: Tensor
    rest: Tensor
    rest_labels: Tensor

    def solved(self, problem: Problem, penalty: float, rows: Tensor | None = None) -> Linear:
        """A head on all rows, or on some, which may be listed twice."""
        data = self.data
        if rows is not None:
            data = dataclasses.replace(data, z=data.z[rows], labels=data.labels[rows])
        return data.solve(lambda counts: problem, penalty)

    def group_of(self) -> Tensor:
        """[C] int64, of `GROUPS`."""
        return torch.where(self.counts > 100, 0, torch.where(self.counts >= 20, 1, 2))


def tail(m: Material, dataset: str, seed: int, largest: int = 1000, ratio: float = 100.0) -> Tail:
    """CIFAR-10 cut to a long tail, or a fifth of the frames of GTSRB, which has one."""
    pool, test = m.images(dataset), m.images(dataset, True)
    rows = np.sort(np.random.default_rng(seed).permutation(len(pool.y))[: len(pool.y) // 5])
    if dataset == "cifar10":
        rows = long_tail(pool.y.numpy(), largest, ratio, seed)
    kept = torch.zeros(len(pool.y), dtype=torch.bool)
    kept[rows] = True
    x, y = pool.z[kept], pool.y[kept]
    mean, scale = centre_and_scale(x)
    of, fold = folds_of(y, None if pool.groups is None else pool.groups[kept], seed=0)
    data = Labelled((x - mean) / scale, y, len(pool.names), of, fold, None, TRIED)
    title = f"CIFAR-10, {largest:,} to {round(largest / ratio)}" if dataset == "cifar10" else "GTSRB"
    rest = (pool.z[~kept] - mean) / scale
    counts = torch.bincount(y, minlength=len(pool.names))
    return Tail(title, data, counts, (test.z - mean) / scale, test.y, rest, pool.y[~kept])


def graded(t: Tail, cell: str, title: str, probs: Tensor) -> Found:
    """Balanced accuracy and that of the groups, and calibration error, of probabilities [N, C] of the test images."""
    predicted, group = probs.argmax(1), t.group_of()
    hit = torch.bincount(t.truth[predicted == t.truth], minlength=len(group))
    recall = hit / torch.bincount(t.truth, minlength=len(group))
    yield cell, f"{t.title}: {title}", "balanced_accuracy", 100 * float(recall.mean())
    for g, name in enumerate(GROUPS):
        if (group == g).any():
            of = group[t.truth] == g
            error = calibration_error(probs.amax(1)[of], (predicted == t.truth)[of])
            yield cell, f"{t.title}: {title}", name, 100 * float(recall[group == g].mean())
            yield cell, f"{t.title}: {title}", f"ece_{name}", 100 * error


def additive(counts: Tensor, slope: Tensor, tau: float = 0.9) -> Problem:
    """The second phase of CVS, with its own weights of the classes."""
    return Problem(
        fixed.additive_adjustment(fixed.prior(counts), slope, strength=tau),
        fixed.inverse_prior_weights(counts, power=0.15),
    )


def cvs_1(m: Material, seed: int) -> Found:
    """Several heads and hard images, with CVS's offsets."""
    for dataset in ("cifar10", "gtsrb"):
        t = tail(m, dataset, seed)
        found = cvs_frozen.RECIPE.fit(cvs_frozen.Config(), t.data)
        slope, n = torch.tensor(found.logs["kappa"]), len(t.data.z)
        assert found.validated is not None
        for key, title, fit in (
            ("ce", "cross-entropy", fitted(lambda counts: Problem(), None, t.data)),
            ("la", "logit adjustment", la.FROZEN.fit(la.FrozenConfig(), t.data)),
        ):
            solved = t.data.solve(fit.problem_of, fit.penalty)
            yield from graded(t, f"{dataset}-{key}", title, solved(t.test).softmax(1))
        rng = torch.Generator().manual_seed(seed)
        sure = found.validated.logits.softmax(1).gather(1, t.data.labels[found.validated.rows][:, None])[:, 0]
        twice = torch.cat([torch.arange(n), found.validated.rows[sure.argsort()[: len(sure) // 3]]])
        bags = [torch.randint(n, (n,), generator=rng) for _ in range(3)]
        hard_bags = [twice[torch.randint(len(twice), (len(twice),), generator=rng)] for _ in range(3)]
        every = None
        heads: dict[str, tuple[str, list[tuple[Tensor, float, Tensor | None]]]] = {
            "flat": ("CVS, slopes of 1", [(torch.ones_like(slope), 0.9, every)]),
            "cvs": ("CVS", [(slope, 0.9, every)]),
            "experts": ("three experts, tau 0, 0.9, 1.8", [(slope, tau, every) for tau in (0.0, 0.9, 1.8)]),
            "bags": ("three bags, CVS each", [(slope, 0.9, bag) for bag in bags]),
            "hard": ("CVS, hard images twice", [(slope, 0.9, twice)]),
            "both": ("three bags with hard images twice", [(slope, 0.9, bag) for bag in hard_bags]),
        }
        for key, (title, parts) in heads.items():
            probs = [
                t.solved(additive(t.counts, of, tau), found.penalty, rows)(t.test).softmax(1) for of, tau, rows in parts
            ]
            yield from graded(t, f"{dataset}-{key}", title, torch.stack(probs).mean(0))


def average_precision(asked: Tensor, gallery: Tensor, y_asked: Tensor, y_gallery: Tensor) -> Tensor:
    """[Q] of the order of inner products, by class of the query."""
    order = (asked @ gallery.T).argsort(1, descending=True)
    hit = (y_gallery[order] == y_asked[:, None]).double()
    precision = hit.cumsum(1) / torch.arange(1, hit.shape[1] + 1)
    return (precision * hit).sum(1) / hit.sum(1)


def cvs_2(m: Material, seed: int) -> Found:
    """Retrieval: test images ask an even gallery, by features or by the probabilities of heads."""
    for dataset, n_asked, n_gallery in (("cifar10", 60, 240), ("gtsrb", 15, 45)):
        t = tail(m, dataset, seed)
        n_classes = len(t.counts)
        asked, _ = few_shot(t.truth.numpy(), per_class=n_asked, n_classes=n_classes, seed=seed)
        others = np.setdiff1d(np.arange(len(t.truth)), asked)
        rows, _ = few_shot(t.truth[others].numpy(), per_class=n_gallery, n_classes=n_classes, seed=seed)
        gallery = others[rows]
        heads = {
            "ce": ("cross-entropy", fitted(lambda counts: Problem(), PENALTY, t.data)),
            "la": ("logit adjustment", la.FROZEN.fit(la.FrozenConfig(penalty=PENALTY), t.data)),
            "cvs": ("CVS", cvs_frozen.RECIPE.fit(cvs_frozen.Config(penalty=PENALTY), t.data)),
        }
        spaces = {"feats": ("cosine of the features", F.normalize(t.test, dim=1))}
        for key, (title, fit) in heads.items():
            spaces[key] = (title, t.data.solve(fit.problem_of, PENALTY)(t.test).softmax(1).sqrt())
        group = t.group_of()
        for key, (title, space) in spaces.items():
            precision = average_precision(space[asked], space[gallery], t.truth[asked], t.truth[gallery])
            by_class = torch.zeros(n_classes).double().index_add_(0, t.truth[asked], precision) / n_asked
            yield f"{dataset}-{key}", f"{t.title}: {title}", "map", 100 * float(by_class.mean())
            for g, name in enumerate(GROUPS):
                if (group == g).any():
                    yield (
                        f"{dataset}-{key}",
                        f"{t.title}: {title}",
                        f"map_{name}",
                        100 * float(by_class[group == g].mean()),
                    )


ESTIMATORS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "least_squares": ("least squares (the paper)", {}),
    "huber": ("Huber", {"fit": "huber"}),
    "shrunk": ("shrunk (ours)", {"shrink": 1.0}),
    "huber_shrunk": ("Huber, shrunk", {"fit": "huber", "shrink": 1.0}),
    "bagged": ("least squares, mean of 20 bootstraps", {}),
    "pooled": ("one slope for all classes", {"shrink": 1e9}),
}


def slope_of(key: str, logits: Tensor, labels: Tensor, rng: torch.Generator, clamp: tuple[float, float]) -> Tensor:
    """The slope of accuracy on confidence of each class [C], by one of the estimators."""
    predicted, confidence, _ = slopes.score_rows(logits)
    correct = predicted == labels

    def of(rows: Tensor) -> Tensor:
        columns = (predicted[rows], confidence[rows], correct[rows])
        settings = dict(ESTIMATORS[key][1]) if key in ESTIMATORS else {}
        return 1 / slopes.slopes_from_rows(*columns, n_classes=logits.shape[1], clamp=clamp, **settings)

    if key != "bagged":
        return of(torch.arange(len(labels)))
    return torch.stack([of(torch.randint(len(labels), (len(labels),), generator=rng)) for _ in range(20)]).mean(0)


def cvs_3(m: Material, seed: int) -> Found:
    """Slopes of long-tailed draws of unseen images against those of many such images, and what they are worth."""
    for largest, ratio in ((1000, 100.0), (300, 60.0)):
        t, rng = tail(m, "cifar10", seed, largest, ratio), torch.Generator().manual_seed(seed)
        ones, wide = torch.ones(len(t.counts)), (0.3, 3.0)
        multiplicative = Problem(fixed.multiplicative_adjustment(fixed.prior(t.counts), ones, power=0.15))
        logits = t.solved(multiplicative, PENALTY)(t.rest)
        of_class = [(t.rest_labels == c).nonzero().flatten() for c in range(len(t.counts))]

        def drawn(times: int, rng: torch.Generator = rng, t: Tail = t, of_class: list[Tensor] = of_class) -> Tensor:
            pairs = zip(of_class, t.counts.tolist(), strict=True)
            return torch.cat([of[torch.randint(len(of), (times * n,), generator=rng)] for of, n in pairs])

        rows = drawn(200)
        exact = slope_of("least_squares", logits[rows], t.rest_labels[rows], rng, wide)
        draws = [drawn(1) for _ in range(40)]
        group = t.group_of()
        for key, title, slope in (("one", "slopes of 1", ones), ("exact", "slopes of 200 times the images", exact)):
            head = t.solved(additive(t.counts, slope), PENALTY)
            yield from graded(t, f"{largest}-{key}", title, head(t.test).softmax(1))
        for key, (title, _) in ESTIMATORS.items():
            found = torch.stack([slope_of(key, logits[rows], t.rest_labels[rows], rng, wide) for rows in draws])
            cell, words = f"{largest}-{key}", f"{t.title}: {title}"
            for g, name in enumerate(GROUPS):
                if (group == g).any():
                    off = (found - exact).square().mean(0).sqrt()[group == g]
                    yield cell, words, f"slope_error_{name}", float(off.mean())
                    yield cell, words, f"slope_sd_{name}", float(found.std(0)[group == g].mean())
            head = t.solved(additive(t.counts, found[0]), PENALTY)
            yield from graded(t, cell, title, head(t.test).softmax(1))


# LPS


def opened(y: Tensor, n_seen: int, seed: int) -> Task:
    """Half of the images of the first classes labelled, the others of no known class."""
    labelled, _ = seen_novel(y.numpy(), seen=n_seen, labelled_frac=0.5, seed=seed)
    labels = torch.full((len(y),), -1)
    labels[labelled] = y[labelled]
    return Task(labels, tuple(map(str, range(n_seen))), n_novel=int(y.max()) + 1 - n_seen)


def sorted_out(net: Any, z: Tensor, task: Task, y: Tensor, cell: str, title: str) -> Found:
    """Accuracy on the unlabelled images."""
    free = task.labels < 0
    scores = seen_novel_all(answers(net, z[free]), y[free], n_seen=len(task.class_names))
    for key in ("all", "seen", "novel"):
        yield cell, title, f"pool_{key}", 100 * scores[key]


def lps_1(m: Material, seed: int) -> Found:
    """The adaptive margin beside others, from random weights as in the paper, and from the start by clusters."""
    plain = {"start": "none", "use_balance": "off", "lr": 0.1, "epochs": 40}
    pool = m.some("gtsrb", 3000, seed)
    n_classes = len(pool.names)
    task = opened(pool.y, n_classes // 2, seed)
    everywhere = torch.full((n_classes,), -2.0)
    margins: dict[str, tuple[str, str, Tensor | None]] = {
        "pace": ("its own, by pace", "pace", None),
        "none": ("none", "none", None),
        "ldam": ("LDAM's, by count", "ldam", None),
        "la": ("logit adjustment", "la", None),
        "cvs": ("offsets of CVS", "cvs", None),
        "constant": ("constant, as in metric learning", "none", everywhere),
        "seen": ("constant, of seen classes", "none", everywhere * (torch.arange(n_classes) < n_classes // 2)),
    }
    for key, (title, margin, given) in margins.items():
        own = lps.own_adjustment if given is None else mock.Mock(return_value=Adjustment(target_margin=given))
        with mock.patch.object(lps, "own_adjustment", own):
            for start, how in {"random": plain, "clusters": {}}.items():
                if start == "random" or key in ("pace", "none"):
                    net, _ = trained("lps", task, pool.z, seed, margin=margin, **how)
                    lead = f"GTSRB, start {start}: margin {title}"
                    yield from sorted_out(net, pool.z, task, pool.y, f"gtsrb-{start}-{key}", lead)


def lps_2(m: Material, seed: int) -> Found:
    """The same photographs by three backbones: an ImageNet network, a small CLIP, and pixels."""
    backbones = {"efficientnet": "EfficientNet-Lite0", "clip": "small CLIP, 32 px", "pixels": "16 x 16 pixels"}
    for dataset in ("rsscn7", "flowers12"):
        for key, name in backbones.items():
            feats, y = m.photographs(dataset, key)
            z = F.normalize(feats - (feats.mean(0) if key == "pixels" else 0), dim=1)
            z = torch.from_numpy(PCA(128, random_state=0).fit_transform(z.numpy())).float()
            task = opened(y, (int(y.max()) + 2) // 2, seed)
            for method, title in (("ss_kmeans", "k-means"), ("lps", "LPS")):
                net, _ = trained(method, task, z, seed)
                lead = f"{TITLES[dataset]}, {name}: {title}"
                yield from sorted_out(net, z, task, y, f"{dataset}-{key}-{method}", lead)


def lps_3(m: Material, seed: int) -> Found:
    """Many hidden classes and uneven ones, their number unknown."""
    cases = [("cifar10", 5, 5, "even"), ("cifar10", 5, 5, "tail"), ("gtsrb", 10, 10, "even"), ("gtsrb", 10, 10, "tail")]
    for dataset, n_seen, n_hidden, shape in [*cases, ("gtsrb", 10, 33, "even"), ("gtsrb", 10, 33, "tail")]:
        pool = m.images(dataset)
        rows, labels = case(pool.y, n_seen=n_seen, n_hidden=n_hidden, shape=shape, frac=0.5, cap=200, seed=seed)
        order = torch.randperm(len(pool.names), generator=torch.Generator().manual_seed(1000 + seed))  # that of `case`
        z, y = pool.z[rows], order.argsort()[pool.y[rows]]
        found = estimate_n_novel(z, labels, n_seen=n_seen, seed=seed)["n_novel"]
        lead = f"{TITLES[dataset]}, {n_seen} seen and {n_hidden} hidden, {shape}"
        for key, title, n in (
            ("given", "number given", n_hidden),
            ("estimated", "number estimated", found),
            ("half", "half the number", n_hidden // 2),
            ("double", "twice the number", 2 * n_hidden),
        ):
            task = Task(labels, tuple(map(str, range(n_seen))), n_novel=n)
            net, _ = trained("novel_beliefs", task, z, seed)
            cell = f"{dataset}-{n_hidden}-{shape}-{key}"
            yield from sorted_out(net, z, task, y, cell, f"{lead}: {title}")
            if key == "estimated":
                yield cell, f"{lead}: {title}", "n_novel", n


QUESTIONS: Mapping[str, Callable[[Material, int], Found]] = {
    "cap-1": cap_1,
    "cap-2": cap_2,
    "cap-3": cap_3,
    "coreg-1": coreg_1,
    "coreg-2": coreg_2,
    "coreg-3": coreg_3,
    "cvs-1": cvs_1,
    "cvs-2": cvs_2,
    "cvs-3": cvs_3,
    "lps-1": lps_1,
    "lps-2": lps_2,
    "lps-3": lps_3,
}


def rows_of(question: str, found: Found, model: str, seed: int, began: float) -> list[dict[str, str]]:
    """Rows of the file of results, printed as they come."""
    rows = []
    for cell, title, metric, value in found:
        shown = str(value) if isinstance(value, int) else f"{value:.3f}" if "slope" in metric else f"{value:.2f}"
        print(f"{question} | {seed} | {title} | {metric} | {shown} | {time.perf_counter() - began:.0f} s", flush=True)
        row = {"table": f"open_questions.py {question}", "model": model, "cell": cell, "title": title}
        row |= {"metric": metric, "value": shown, "seed": str(seed), "hardware": HARDWARE}
        rows.append(row | {"commit": source_commit() or ""})
    return rows


def main() -> None:
    """Measure, print and write."""
    warnings.simplefilter("ignore")  # scikit-learn's, of folds without a rare class
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a small vision-language model")
    parser.add_argument("data", help="folder with the data sets")
    parser.add_argument("questions", nargs="*", default=list(QUESTIONS), help=", ".join(QUESTIONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--feats", type=Path, help="folder where features are kept")
    parser.add_argument("--csv", type=Path, help="file of results that rows are added to")
    options = parser.parse_args()
    encoder = load_encoder(options.model, device=CPU, precision="auto")
    material = Material(options.model, options.data, encoder, options.feats)
    there = read_rows(options.csv) if options.csv and options.csv.exists() else []
    finished = {(row["table"], row["seed"]) for row in there}
    for question in options.questions:
        for seed in range(options.seeds):
            if (f"open_questions.py {question}", str(seed)) in finished:
                continue
            torch.manual_seed(seed)
            found = QUESTIONS[question](material, seed)
            rows = rows_of(question, found, Path(options.model).name, seed, time.perf_counter())
            if options.csv:
                add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
