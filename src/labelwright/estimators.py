"""Methods on embeddings as scikit-learn classifiers: `fit`, `predict`, `predict_proba`, pipelines, cross-validation.

Each runs the closed-form or convex part of the recipe of the same name: nothing is trained by gradient steps, and what
comes out is a head on the features. Unlabelled rows are labelled -1 in integer labels, None or "" in others, NaN in
either, or are passed as ``X_unlabelled``; integer labels -1 and one other are two classes, as scikit-learn has them,
but where some were NaN, or new classes are asked for by number.
Columns in units of their own are divided by their deviation where `fit` does, see `train.column_scales.column_scales`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from numbers import Integral
from typing import Any, Literal, get_type_hints

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from labelwright.arguments import fits, of_python, words_of
from labelwright.encoders.nets import EncoderNets
from labelwright.errors import ConfigError
from labelwright.labels.chunks import known_and_unknown
from labelwright.labels.n_novel import estimate_n_novel
from labelwright.methods.baselines.majority import votes
from labelwright.methods.registry import method_named
from labelwright.train.column_scales import SCALED_ROWS, column_scales
from labelwright.types import Candidates, Output, State, Task

CHUNK = 8192


class _Embeddings(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What the four share: rows to tensors, a recipe's head, probabilities."""

    classes_: np.ndarray[Any, Any]
    n_features_in_: int

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Probabilities [N, C] of rows [N, D]; columns as in ``classes_``."""
        check_is_fitted(self)
        feats = torch.from_numpy(validate_data(self, X, reset=False, dtype=np.float32))
        with torch.inference_mode():
            parts = [self._net(_lifted(some / self._scales, *self._space)) for some in torch.split(feats, CHUNK)]
        found: np.ndarray[Any, Any] = torch.cat(parts).double().softmax(1).numpy()
        return found

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """The most probable class of each row."""
        places = self.predict_proba(X).argmax(1)
        found: np.ndarray[Any, Any] = self.classes_[places]
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags

    def _features(self, X: Any, y: Any, X_unlabelled: Any, *, multi_output: bool = False) -> tuple[Any, Any]:
        """Checked rows [N, D] float32, those of ``X_unlabelled`` last, and labels of the first of them.

        Raises: ConfigError naming a setting of another type, or none of its choices.
        """
        for name, hint in get_type_hints(type(self).__init__).items():
            if name != "return" and not fits(of_python(value := getattr(self, name)), hint):
                raise ConfigError(f"{name}={value!r} is not possible", fix=f"{name} must be {words_of(hint)}")
        y = y if multi_output else _without_nan(y)
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=multi_output)
        if len(X) < 2:
            raise ValueError("n_samples=1: there is nothing to tell apart")
        if X_unlabelled is not None:
            X = np.concatenate([X, validate_data(self, X_unlabelled, reset=False, dtype=np.float32)])
        return X, y

    def _divided(self, X: Any, task: Task) -> Tensor:
        """Rows [N, D] with columns in units of their own divided by their deviation, as `fit` does; scales are kept."""
        feats, labels = torch.from_numpy(X), task.labels if task.candidates is None else votes(task)
        rows = known_and_unknown(labels, SCALED_ROWS)
        scales = column_scales(feats[rows], labels[rows])
        self._scales = torch.ones(feats.shape[1]) if scales is None else scales
        return feats if scales is None else feats / scales

    def _solve(self, name: str, feats: Tensor, task: Task, settings: dict[str, Any], *, is_unit: bool) -> None:
        """Run the part of a recipe before its first step; the head is kept."""
        centre, scale = feats.mean(0), (feats - feats.mean(0)).square().mean().sqrt()
        self._space = (centre, torch.where(scale > 0, scale, 1.0), is_unit)
        feats = _lifted(feats, *self._space)
        recipe: Any = method_named(name).on_features().recipe
        cfg = recipe.Config(**settings)
        nets = EncoderNets(feats.shape[1], None, None, True, task.class_names, "", seed=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(getattr(self, "random_state", None) or 0)
            state = recipe.setup(cfg, task, nets)
            state, _ = recipe.begin(cfg, task, state, _Passes(state, feats))
        self._net = state.nets["main"].eval().requires_grad_(False)


class _Passes:
    """A `types.Passes` over an array."""

    def __init__(self, state: State, feats: Tensor) -> None:
        self.state, self.feats = state, feats

    def __call__(
        self, net: str, rows: Tensor, view: str = "clean", output: Output = "logits"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        model: Any = self.state.nets[net]
        for some in torch.split(rows, CHUNK):
            x = self.feats[some]
            with torch.no_grad():
                yield some, x if output == "feats" else model(x)


def _lifted(feats: Tensor, centre: Tensor, scale: Tensor, is_unit: bool) -> Tensor:
    """Rows as they are, or centred, scaled, with a constant beside, on the unit sphere: so near and far stay apart."""
    if not is_unit:
        return feats
    z = (feats - centre) / scale
    return torch.nn.functional.normalize(torch.cat([z, torch.ones(len(z), 1)], dim=1), dim=1)


def _without_nan(y: Any) -> Any:
    """Labels with None where some were NaN or pandas' NA, and of -1 among them; as they are if none or all were NaN."""
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.dtype.kind not in "fO":
        return y
    if labels.dtype.kind == "f":
        is_nan = np.isnan(labels)
    else:
        is_nan = np.array([v != v if isinstance(v, float) else type(v).__name__ == "NAType" for v in labels])
    if is_nan.all() or not is_nan.any():
        return y
    if labels.dtype.kind == "f" and (labels[~is_nan] % 1 == 0).all():
        labels = np.where(is_nan, -1, labels).astype(np.int64).astype(object)
    is_open = is_nan | np.array([isinstance(label, Integral) and label == -1 for label in labels])
    return np.array([None if none else label for none, label in zip(is_open, labels, strict=True)], dtype=object)


def _encoded(y: Any, *, is_open: bool = False) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Classes, and the position of each label among them, -1 = unlabelled.

    Args: is_open: whether a row labelled -1 is unlabelled beside a single other label, too.
    """
    y = column_or_1d(y, warn=True)
    if y.dtype == object:
        known = np.array([label is not None and label != "" for label in y])
        numbers = np.array(y[known].tolist())
        if numbers.dtype.kind in "iu":
            y = np.where(known, y, -1).astype(numbers.dtype)
    elif y.dtype.kind in "US":
        known = y != ""
    else:
        check_classification_targets(y)
        known = y != -1
        if len(np.unique(y[known])) < 2 and not known.all() and not is_open:  # -1 and one other are two classes
            known = np.ones(len(y), dtype=bool)
    classes = np.unique(y[known])
    if not len(classes):
        raise ValueError("no row has a label: give some labels other than -1")
    labels = np.full(len(y), -1, dtype=np.int64)
    labels[known] = np.searchsorted(classes, y[known])
    return classes, labels


def _task(labels: np.ndarray[Any, Any], n_rows: int, n_classes: int, **more: Any) -> Task:
    """A recipe's task of labels, of which rows without one come last."""
    every = np.full(n_rows, -1, dtype=np.int64)
    every[: len(labels)] = labels
    return Task(torch.from_numpy(every), tuple(str(c) for c in range(n_classes)), **more)


class LogitAdjustedClassifier(_Embeddings):
    """A linear classifier for uneven classes: the log prior enters the loss, the penalty is cross-validated.

    Columns in units of their own are divided by their deviation, as `fit` divides them.

    Args:
      loss: "la" (logit adjustment), "ce" (plain), "class_balanced", "balanced_softmax", "ldam", "vs", or
        "cross_validated": the one of the long-tail family that does best on rows left out.
      tau: strength of the log prior, >= 0; of "la" alone.
      penalty: L2 of the weights, summed over rows, > 0; None = chosen by cross-validation.

    Attributes: classes_ [C], n_features_in_.

    Source: Menon et al. 2021 (arXiv 2007.07314); solved as a convex problem, see train/convex.py.

    Example: ninety rows against ten; the border is the one of even classes.
      >>> draws = np.random.default_rng(0)
      >>> X = np.concatenate([draws.normal(-1, 1, (90, 1)), draws.normal(1, 1, (10, 1))])
      >>> model = LogitAdjustedClassifier().fit(X, ["many"] * 90 + ["few"] * 10)
      >>> model.predict([[-0.4], [0.4]]).tolist()
      ['many', 'few']
    """

    def __init__(
        self,
        *,
        loss: Literal["la", "ce", "class_balanced", "balanced_softmax", "ldam", "vs", "cross_validated"] = "la",
        tau: float = 1.0,
        penalty: float | None = None,
    ) -> None:
        self.loss = loss
        self.tau = tau
        self.penalty = penalty

    def fit(self, X: Any, y: Any) -> LogitAdjustedClassifier:
        """Learn from rows X [N, D] with labels y [N]; rows labelled -1 count for the columns' units alone."""
        X, y = self._features(X, y, None)
        self.classes_, labels = _encoded(y)
        settings: dict[str, Any] = {"penalty": self.penalty} | ({"tau": self.tau} if self.loss == "la" else {})
        task = _task(labels, len(X), len(self.classes_))
        self._solve(self.loss, self._divided(X, task), task, settings, is_unit=False)
        return self


class BeliefClassifier(_Embeddings):
    """A few labels and many unlabelled rows: Gaussians of one covariance by EM, a regression on the labels as evidence.

    Columns in units of their own are divided by their deviation, as `fit` divides them.

    Args:
      strength: of the Gaussians against the regression, >= 0; None = 0.3.
      label_weight: rows that a labelled one counts for, > 0.
      prior: "estimated" from all rows, or "even".

    Attributes: classes_ [C], n_features_in_.

    Source: ours, see methods/beliefs.py.

    Example: one label in each of two moons of rows.
      >>> draws = np.random.default_rng(0)
      >>> X = np.concatenate([draws.normal(-2, 1, (50, 4)), draws.normal(2, 1, (50, 4))])
      >>> y = np.full(100, -1)
      >>> y[0], y[99] = 0, 1
      >>> (BeliefClassifier().fit(X, y).predict(X) == np.repeat([0, 1], 50)).mean().item()
      1.0
    """

    def __init__(
        self,
        *,
        strength: float | None = None,
        label_weight: float = 10.0,
        prior: Literal["estimated", "even"] = "estimated",
    ) -> None:
        self.strength = strength
        self.label_weight = label_weight
        self.prior = prior

    def fit(self, X: Any, y: Any, X_unlabelled: Any = None) -> BeliefClassifier:
        """Learn from rows X [N, D] with labels y [N], and from unlabelled ones: -1 in y, and X_unlabelled [M, D]."""
        X, y = self._features(X, y, X_unlabelled)
        self.classes_, labels = _encoded(y)
        settings = {"strength": self.strength, "label_weight": self.label_weight, "prior": self.prior}
        task = _task(labels, len(X), len(self.classes_))
        self._solve("beliefs", self._divided(X, task), task, settings, is_unit=False)
        return self


class PartialLabelClassifier(_Embeddings):
    """Rows with several candidate labels each, all of which may be wrong: the start of Co-Reg on stored features.

    Columns in units of their own are divided by their deviation, as `fit` divides them.

    Attributes: classes_ [C], n_features_in_.

    Source: see labels/candidate_beliefs.py.

    Example: every row has a wrong candidate beside the right one.
      >>> draws = np.random.default_rng(0)
      >>> X = np.concatenate([draws.normal(3 * c, 1, (40, 3)) for c in range(3)])
      >>> truth = np.repeat(np.arange(3), 40)
      >>> candidates = np.eye(3)[truth] + np.eye(3)[draws.integers(0, 3, 120)] > 0
      >>> (PartialLabelClassifier().fit(X, candidates).predict(X) == truth).mean().item() > 0.95
      True
    """

    def fit(self, X: Any, y: Any, X_unlabelled: Any = None) -> PartialLabelClassifier:
        """Learn from rows X [N, D].

        Args:
          X: [N, D] numbers.
          y: [N, C] candidates, true where a class is possible, or weights >= 0; a row of zeros says nothing, and the
            classes are 0 to C - 1. Or labels [N], each the one candidate of its row.
          X_unlabelled: [M, D] rows without candidates.
        """
        X, y = self._features(X, y, X_unlabelled, multi_output=True)
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] > 1:
            weights = np.asarray(y, dtype=np.float64)
            if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
                raise ValueError("candidates are weights of 0 or more, and some row has one")
            self.classes_ = np.arange(y.shape[1])
        else:
            self.classes_, labels = _encoded(y)
            weights = np.zeros((len(labels), len(self.classes_)))
            weights[labels >= 0, labels[labels >= 0]] = 1.0
        rows, columns = np.nonzero(weights)
        sizes = np.zeros(len(X), dtype=np.int64)
        np.add.at(sizes, rows, 1)
        sets = Candidates(
            torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)])),
            torch.from_numpy(columns.astype(np.int32)),
            torch.from_numpy(weights[rows, columns].astype(np.float32)),
        )
        task = _task(np.empty(0, dtype=np.int64), len(X), weights.shape[1], candidates=sets)
        self._solve("coreg_frozen", self._divided(X, task), task, {}, is_unit=True)
        return self


class NovelClassifier(_Embeddings):
    """Labels for some classes, and unlabelled rows that may be of classes nobody named: the start of LPS.

    Columns in units of their own are divided by their deviation, as `fit` divides them.

    Args:
      n_novel: classes beyond the labelled ones, >= 0; "auto" = estimated (labels/n_novel.py), roughly where classes
        have a handful of labels: give the number there.
      random_state: of the clustering, an int >= 0.

    Attributes: classes_ [C]: the labelled classes, then what was found: numbers after the largest label, or "novel-1",
      "novel-2", ...; n_novel_, n_features_in_.

    Source: see methods/baselines/novel_beliefs.py.

    Example: two labelled classes, and a third among the unlabelled rows.
      >>> draws = np.random.default_rng(0)
      >>> X = np.concatenate([draws.normal(size=(40, 5)) + 9 * np.eye(5)[c] for c in range(3)])
      >>> y = np.repeat([0, 1, -1], 40)
      >>> y[20:60] = -1
      >>> model = NovelClassifier(n_novel=1).fit(X, y)
      >>> model.classes_.tolist(), model.predict(X[[0, 79, 119]]).tolist()
      ([0, 1, 2], [0, 1, 2])
    """

    def __init__(self, *, n_novel: int | Literal["auto"] = "auto", random_state: int = 0) -> None:
        self.n_novel = n_novel
        self.random_state = random_state

    def fit(self, X: Any, y: Any, X_unlabelled: Any = None) -> NovelClassifier:
        """Learn from rows X [N, D] with labels y [N], and from unlabelled ones: -1 in y, and X_unlabelled [M, D]."""
        if self.n_novel != "auto" and self.n_novel < 0:
            raise ConfigError(f"n_novel={self.n_novel} is not possible", fix="n_novel must be at least 0, or 'auto'")
        X, y = self._features(X, y, X_unlabelled)
        named, labels = _encoded(y, is_open=self.n_novel not in ("auto", 0))
        task = _task(labels, len(X), len(named))
        feats = self._divided(X, task)
        n_open = int((task.labels < 0).sum())
        n_novel: Any = self.n_novel
        if n_novel == "auto":
            found = (
                estimate_n_novel(feats, task.labels, n_seen=len(named), seed=self.random_state)
                if n_open
                else {"n_novel": 0}
            )
            n_novel = found["n_novel"]
        self.n_novel_ = min(int(n_novel), n_open)
        more: np.ndarray[Any, Any]
        if named.dtype.kind in "iuf":
            more = named.max().item() + 1 + np.arange(self.n_novel_)
        else:
            free = (name for i in itertools.count(1) if (name := f"novel-{i}") not in named)
            more = np.array(list(itertools.islice(free, self.n_novel_)))
        self.classes_ = np.concatenate([named, more]) if self.n_novel_ else named
        if not self.n_novel_:
            self._solve("beliefs", feats, task, {}, is_unit=True)
            return self
        task = _task(labels, len(X), len(named), n_novel=self.n_novel_)
        self._solve("novel_beliefs", feats, task, {}, is_unit=True)
        return self
