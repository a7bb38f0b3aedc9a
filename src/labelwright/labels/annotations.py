"""Annotations of each image, answers of annotators or a candidate set, as evidence beside what a classifier sees.

Nobody has to be right: how often an annotator, or the sets, name a wrong class is estimated from all images together,
with the classifier's temperature, by the likelihood of the annotations. No label is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.chunks import evenly_spread
from labelwright.labels.dawid_skene import (
    SMOOTHING,
    Silence,
    confusion_of,
    silence_evidence,
    silence_of,
    smoothed,
    telling,
    vote_evidence,
)
from labelwright.types import Task

Kind = Literal["answers", "votes", "sets", "shares"]
"""Answers of annotators; weights that are shares of votes, or about one guess an image; larger sets without weights;
weights of any other kind."""

FEW_ANSWERS = 10.0  # per class and annotator, below which annotators who answered about other images are taken as alike
MOST_VOTES = 20  # votes per image up to which weights are taken for shares of votes
NEARLY_ALL = 0.95  # of the sets whose weights must look like shares of votes
FEW_GUESSES = 1.5  # per image that has any, below which they are guesses, and no sets that were made to hold the class
TEMPERATURES = (0.25, 16.0)  # lowest and highest factor of the logits
TEMPERATURE_ROWS = 4000  # that it is found on, evenly spread
N_ITER = 30  # of EM, at most
N_OF_PAIRS = 3  # of EM where candidates look like the class; chosen on CIFAR-10, GTSRB, RSSCN7, letters and flowers12
N_TRUNCATED = 20  # repetitions towards the rates of sets that might be empty
STILL = 1e-3  # largest change of a probability at which it ends
N_OWN = 10  # repetitions towards what an image's answers say by the other images, at most


class Rates(NamedTuple):
    """How often annotations name a class, by the true one."""

    # answers: confusion [A, C, C]; else [C, C], what a candidate adds to the log-likelihood of each class
    weight: Tensor
    bias: Tensor  # [C] float64, what a set adds whatever it holds
    counted: Tensor | None = None  # [A, C] how many answers to each class they are from, smoothing included
    silence: Silence | None = None  # of annotators whose answers are of some classes


@dataclass(frozen=True)
class AnnotationModel:
    """What annotations are worth: fitted by `fit_annotations`."""

    rates: Rates
    log_prior: Tensor  # [C] float64, log share of each class
    temperature: float  # factor of the classifier's logits, > 0
    inside: float  # estimated share of the images whose class is among those named, 0 to 1
    likelihood: float  # mean log-likelihood of an image's annotations, given the classifier's logits


@dataclass(frozen=True)
class Annotations:
    """Answers or candidate sets of a task, as evidence.

    Example: see `fit_annotations`.
    """

    task: Task
    smoothing: float = field(default=SMOOTHING)

    @cached_property
    def kind(self) -> Kind | None:
        """What kind of annotations there are; None without any."""
        if self.task.votes is not None:
            return "answers"
        sets = self.task.candidates
        if sets is None or not len(sets.classes):
            return None
        if self._are_even:
            return "votes" if self.has_one_guess else "sets"
        several = sets.offsets.diff() > 1
        n = self._counted[several]
        return "votes" if float((n > 0).double().mean()) >= NEARLY_ALL and several.any() else "shares"

    @cached_property
    def _are_even(self) -> bool:
        """Whether no candidate of a set weighs more than another."""
        sets = self.task.candidates
        assert sets is not None
        return sets.weights is None or bool((self._least == self._largest)[sets.offsets.diff() > 0].all())

    @cached_property
    def has_one_guess(self) -> bool:
        """Whether an image has about one answer or candidate, of those that have any."""
        if self.task.votes is not None:
            n = (self.task.votes >= 0).sum(1)
        elif self.task.candidates is not None and self._are_even:
            n = self.task.candidates.offsets.diff()
        else:
            return False
        return bool((n > 0).any()) and float(n[n > 0].double().mean()) < FEW_GUESSES

    @cached_property
    def _are_alike(self) -> bool:
        """Whether annotators are not kept apart: an image has one answer, and each annotator gave few."""
        votes = self.task.votes
        if votes is None or not self.has_one_guess:
            return False
        return float((votes >= 0).sum()) < FEW_ANSWERS * self.task.n_classes * votes.shape[1]

    @cached_property
    def _uneven(self) -> Tensor:
        assert self.task.votes is not None
        return telling(self.task.votes, self.task.n_classes)

    @property
    def answers(self) -> Tensor | None:
        """[N, A] int64 classes answered, -1 = none; None where candidates say no single one."""
        sets = self.task.candidates
        if self.task.votes is not None or sets is None or not self.has_one_guess:
            return self.task.votes
        sizes = sets.offsets.diff()
        first = sets.classes[sets.offsets[:-1].clamp(max=len(sets.classes) - 1)].long()
        return torch.where(sizes == 1, first, -1)[:, None]

    @cached_property
    def _row_of(self) -> Tensor:
        assert self.task.candidates is not None
        sizes = self.task.candidates.offsets.diff()
        return torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)

    def _extreme(self, how: Literal["amin", "amax"]) -> Tensor:
        """[N] least or largest weight of each set, of those above 0."""
        sets = self.task.candidates
        assert sets is not None
        assert sets.weights is not None
        is_some = sets.weights > 0
        out = torch.ones(len(sets), device=sets.weights.device)
        return out.scatter_reduce(0, self._row_of[is_some], sets.weights[is_some], how, include_self=False)

    @cached_property
    def _least(self) -> Tensor:
        return self._extreme("amin")

    @cached_property
    def _largest(self) -> Tensor:
        return self._extreme("amax")

    @property
    def confidence(self) -> float:
        """Mean over the sets with weights of the largest one: how sure whoever named them was, 0 to 1."""
        assert self.task.candidates is not None
        return float(self._largest[self.task.candidates.offsets.diff() > 0].mean())

    @cached_property
    def _counted(self) -> Tensor:
        """[N] votes that would make a set's weights, 0 where none up to `MOST_VOTES` do."""
        sets = self.task.candidates
        assert sets is not None
        assert sets.weights is not None
        found = torch.zeros(len(sets), device=sets.weights.device)
        for n in range(MOST_VOTES, 0, -1):  # the fewest that do
            off = (n * sets.weights - (n * sets.weights).round()).abs()
            worst = torch.zeros_like(found).scatter_reduce(0, self._row_of, off, "amax")
            found = torch.where((worst < 0.02) & (n * self._least > 0.5), float(n), found)
        return found

    @cached_property
    def n_votes(self) -> Tensor:
        """[N] float: how many votes a set's weights are shares of; of a single candidate as many as is usual."""
        assert self.task.candidates is not None
        sizes = self.task.candidates.offsets.diff()
        if self.kind != "votes" or self.has_one_guess:
            return torch.ones(len(sizes), device=sizes.device)
        n = self._counted
        return torch.where(sizes > 1, n.clamp(min=1), n[sizes > 1].median())

    def is_annotated(self, rows: Tensor) -> Tensor:
        """[B] bool: something is known of the image."""
        known = self.task.labels[rows] >= 0
        if self.task.votes is not None:
            return known | (self.task.votes[rows] >= 0).any(1)
        guesses = self.task.guesses(rows)
        return known | (guesses.amax(1) > guesses.amin(1))

    def members(self, rows: Tensor) -> Tensor:
        """[B, C] float64: votes for each class; of sets without weights 1 for a candidate."""
        sets = self.task.candidates
        if sets is None:
            return torch.zeros(len(rows), self.task.n_classes, dtype=torch.float64, device=rows.device)
        if self.kind == "sets":
            return sets.mask(rows, self.task.n_classes).double()
        return sets.shares(rows, self.task.n_classes).double() * self.n_votes[rows].double()[:, None]

    def fit(self, rows: Tensor, probs: Tensor, *, by_class: bool = True, holds: bool = False) -> Rates:
        """Rates for images of which the classes are known by their probabilities.

        Args:
          rows: [n] int64.   probs: [n, C] float64, rows sum to 1.
          by_class: of sets: how often a wrong class is in a set depends on the true one; False: it does not, and sets
            that came out empty are not there.
          holds: of the latter: they always hold the true class.
        """
        zeros = probs.new_zeros(probs.shape[1])
        if self.task.votes is not None:
            votes = self.task.votes[rows]
            counted = torch.stack([probs[answers >= 0].sum(0) for answers in votes.T])
            counted = counted.sum(0).expand_as(counted) if self._are_alike else counted
            confusion = confusion_of(probs, votes, smoothing=self.smoothing, are_alike=self._are_alike)
            if self.has_one_guess:  # nothing but the classifier could contradict it, its own or not
                return Rates(confusion, zeros)
            silence = silence_of(probs, votes, self._uneven) if len(self._uneven) else None
            return Rates(confusion, zeros, counted + self.smoothing, silence)
        given = self.members(rows)
        has_set = given.sum(1) > 0
        given, probs = given[has_set], probs[has_set]
        counts, n = probs.T @ given, probs.sum(0)  # [C, C] class, candidate
        if self.kind != "sets":
            return Rates(smoothed(counts, self.smoothing).log().T, zeros)
        # Each class is in a set or not, by itself: the right one equally often whichever it is, a wrong one drawn
        # towards how often it is in sets of any other class.
        usual = (counts.sum(0) - counts.diagonal() + 0.5) / (n.sum() - n + 1)
        rate = (counts + self.smoothing * usual) / (n[:, None] + self.smoothing)
        right = (counts.trace() + 0.5) / (n.sum() + 1)
        if not by_class:
            return Rates(*_of_sets_not_empty(usual, torch.ones_like(right) if holds else right))
        rate.diagonal().fill_(right)
        rate = rate.clamp(1e-6, 1 - 1e-6)
        return Rates((rate.log() - (1 - rate).log()).T, (1 - rate).log().sum(1))

    def evidence(self, rates: Rates, rows: Tensor, own: Tensor | None = None) -> Tensor:
        """Log-likelihood [B, C] float64 of the annotations of some rows; 0 where there are none.

        Args:
          own: [B, C] probabilities with which the rows are counted in the rates of answers: each is judged by the
            others alone.
        """
        if self.task.votes is not None:
            votes = self.task.votes[rows]
            found = vote_evidence(votes, rates.weight, rates.counted, own)
            return found if rates.silence is None else found + silence_evidence(votes, rates.silence, own)
        given = self.members(rows)
        return torch.where(given.sum(1, keepdim=True) > 0, given @ rates.weight + rates.bias, 0.0)

    def named(self, rows: Tensor) -> Tensor:
        """[B, C] bool: classes that somebody named for the image; every class where nobody named any."""
        if self.task.votes is None:
            return self.task.possible(rows)
        found = torch.zeros(len(rows), self.task.n_classes, dtype=torch.bool, device=rows.device)
        for votes in self.task.votes[rows].T:
            answered = (votes >= 0).nonzero().flatten()
            found[answered, votes[answered]] = True
        labels = self.task.labels[rows]
        known = (labels >= 0).nonzero().flatten()
        found[known] = F.one_hot(labels[known], self.task.n_classes).bool()
        return torch.where(found.any(1, keepdim=True), found, torch.ones_like(found))

    def posterior(self, fitted: AnnotationModel, logits: Tensor, rows: Tensor) -> Tensor:
        """Probabilities [B, C] float64 of a classifier's logits [B, C] and the annotations of the rows together.

        What an answer is worth is what the other images say: one that is counted with itself confirms itself where
        classes have few images. A verified label has all of the probability.
        """
        seen = fitted.temperature * logits.double() + fitted.log_prior
        probs = (seen + self.evidence(fitted.rates, rows)).softmax(1)
        for _ in range(0 if fitted.rates.counted is None else N_OWN):
            last, probs = probs, (seen + self.evidence(fitted.rates, rows, probs)).softmax(1)
            if len(probs) and float((probs - last).abs().max()) < STILL:
                break
        return self.with_labels(probs, rows)

    def with_labels(self, probs: Tensor, rows: Tensor) -> Tensor:
        """Probabilities [B, C] of some rows, changed in place: a verified label has all of it."""
        labels = self.task.labels[rows].to(probs.device)
        known = (labels >= 0).nonzero().flatten()
        probs[known] = F.one_hot(labels[known], probs.shape[1]).to(probs)
        return probs


def fit_annotations(annotations: Annotations, logits: Tensor, rows: Tensor) -> AnnotationModel:
    """Estimate what annotations are worth, given a classifier's logits, by EM.

    E-step: the posterior of each image's class, its own answers not counted in what they are worth; M-step: confusions,
    class shares, and the temperature under which the annotations are most likely. Logits of heads that did not see the
    image keep this honest, too.

    Sets without weights: whether they always hold the class is asked first, of rates that depend on no pair of classes.
    If these are likelier by more than a standard error where sets may miss it, they are taken; otherwise rates depend
    on the pair. Where pairs clearly matter, wrong candidates look like the right one, and EM is stopped early: it would
    go on to other classes than the classifier's.

    Args:
      annotations: of a task.
      logits: [n, C] float of some rows.
      rows: [n] int64 of them.

    Source: Raykar et al. 2010 (JMLR 11), section 2, for a classifier that is given.

    Example: of three annotators one is wrong every other time.
      >>> truth, turn = torch.arange(400) % 2, torch.arange(400) // 2
      >>> votes = torch.stack([truth, (truth + (turn % 10 == 0)) % 2, (truth + turn % 2) % 2], dim=1)
      >>> annotations = Annotations(Task(torch.full((400,), -1), ("cat", "dog"), votes=votes))
      >>> fitted = fit_annotations(annotations, 2.0 * F.one_hot(truth, 2), torch.arange(400))
      >>> [round(float(confusion.diagonal().mean()), 1) for confusion in fitted.rates.weight]
      [1.0, 0.9, 0.5]
    """
    seen = logits.double()
    probs = seen.softmax(1)
    if annotations.kind == "sets" and len(rows) > 1:
        inside = probs * annotations.named(rows)
        inside = inside / inside.sum(1, keepdim=True).clamp(min=1e-12)
        holds = _by_em(annotations, seen, rows, inside, by_class=False, holds=True)[0]
        misses, found = _by_em(annotations, seen, rows, probs, by_class=False)
        gain = misses - holds
        if float(gain.mean()) > float(gain.std()) / len(gain) ** 0.5:
            return found
        pairs, of_pairs = _by_em(annotations, seen, rows, probs, by_class=True, n_iter=N_OF_PAIRS)
        if float((pairs - holds).sum()) > probs.shape[1] ** 2 / 2:  # that so many rates gain by chance
            return of_pairs
    return _by_em(annotations, seen, rows, probs, by_class=True)[1]


def _by_em(
    annotations: Annotations,
    seen: Tensor,
    rows: Tensor,
    probs: Tensor,
    *,
    by_class: bool,
    holds: bool = False,
    n_iter: int = N_ITER,
) -> tuple[Tensor, AnnotationModel]:
    """Log-likelihood [n] of the annotations, and what EM finds from probabilities [n, C] of the classes on."""
    temperature = 1.0
    some = evenly_spread(torch.arange(len(rows), device=rows.device), TEMPERATURE_ROWS)
    probs = annotations.with_labels(probs, rows)
    log_prior, evidence = seen.new_zeros(seen.shape[1]), torch.zeros_like(seen)
    fitted = annotations.fit(rows, probs, by_class=by_class, holds=holds)
    for _ in range(n_iter):
        fitted = annotations.fit(rows, probs, by_class=by_class, holds=holds)
        evidence = annotations.evidence(fitted, rows, probs)
        log_prior = ((probs.sum(0) + 1) / (len(probs) + probs.shape[1])).log()
        temperature = _temperature(seen[some], evidence[some], log_prior)
        new = annotations.with_labels((temperature * seen + log_prior + evidence).softmax(1), rows)
        moved, probs = float((new - probs).abs().max()) if len(new) else 0.0, new
        if moved < STILL:
            break
    annotated = annotations.is_annotated(rows)
    inside = float((probs * annotations.named(rows))[annotated].sum() / annotated.sum().clamp(min=1))
    likelihood = ((temperature * seen + log_prior).log_softmax(1) + evidence).logsumexp(1)
    return likelihood, AnnotationModel(fitted, log_prior, temperature, inside, float(likelihood.mean()))


def _of_sets_not_empty(wrong: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [C, C] and bias [C] of sets that hold a class with one probability if it is wrong, another if it is right.

    Args: wrong [C], right []: shares of the sets that are there. Empty ones would be beside them: with e the chance of
      one, a share s is that of a probability s (1 - e), which is found by repetition.
    """
    share = wrong.expand(len(wrong), -1).clone()
    share.fill_diagonal_(float(right))
    rate, empty = share.clamp(1e-6, 1 - 1e-6), torch.zeros_like(wrong)
    for _ in range(N_TRUNCATED):
        empty = (1 - rate).log().sum(1)  # the logarithm of e
        rate = (share * -torch.expm1(empty)[:, None]).clamp(1e-6, 1 - 1e-6)
    empty = (1 - rate).log().sum(1)
    return (rate.log() - (1 - rate).log()).T, empty - torch.log(-torch.expm1(empty))


def temperature_of(annotations: Annotations, fitted: AnnotationModel, logits: Tensor, rows: Tensor) -> float:
    """The factor of other logits [n, C] of the rows [n] under which annotations are likeliest, worth what they are.

    Example: logits that are wrong for a quarter of the rows weigh less, four times as large ones less again.
      >>> rows, truth = torch.arange(400), torch.arange(400) % 2
      >>> annotations = Annotations(Task(rows - rows - 1, ("cat", "dog"), votes=truth[:, None].expand(-1, 3)))
      >>> logits = 2.0 * F.one_hot(truth, 2)
      >>> fitted = fit_annotations(annotations, logits, rows)
      >>> worse = torch.where(rows[:, None] % 4 == 0, 2 - logits, logits)
      >>> [round(temperature_of(annotations, fitted, factor * worse, rows), 1) for factor in (1, 4)]
      [0.5, 0.3]
    """
    some = evenly_spread(torch.arange(len(rows), device=rows.device), TEMPERATURE_ROWS)
    evidence = annotations.evidence(fitted.rates, rows[some], annotations.posterior(fitted, logits[some], rows[some]))
    return _temperature(logits[some].double(), evidence, fitted.log_prior)


def _temperature(seen: Tensor, evidence: Tensor, log_prior: Tensor, n_steps: int = 12) -> float:
    """The factor of the logits under which the evidence is most likely, by golden section on its logarithm."""

    def likelihood(log_factor: float) -> float:
        alone = (2.0**log_factor * seen + log_prior).log_softmax(1)
        return float((alone + evidence).logsumexp(1).mean())

    low, high = (float(torch.tensor(t).log2()) for t in TEMPERATURES)
    share = (5**0.5 - 1) / 2
    inner = [high - share * (high - low), low + share * (high - low)]
    values = [likelihood(x) for x in inner]
    for _ in range(n_steps):
        if values[0] >= values[1]:
            high, inner = inner[1], [inner[1] - share * (inner[1] - low), inner[0]]
            values = [likelihood(inner[0]), values[0]]
        else:
            low, inner = inner[0], [inner[1], inner[0] + share * (high - inner[0])]
            values = [values[1], likelihood(inner[1])]
    return float(2.0 ** ((low + high) / 2))
