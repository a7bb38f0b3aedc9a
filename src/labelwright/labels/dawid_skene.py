"""How well each annotator answers, and what the answers say together: a confusion matrix per annotator, by EM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from labelwright.errors import DataError

SMOOTHING = 20.0  # answers that an annotator's usual behaviour counts for in each row of the confusion matrix
N_ITER = 100  # of EM, at most
STILL = 1e-4  # probability that goes to other classes, mean of the images, at which it ends
LEAST_ANSWERS = 2.0  # answers per class and annotator, on average; below, the confusions are no better than a majority
N_BALANCED = 200  # repetitions towards rows and columns that sum to 1
LEAST = 1e-9  # answers that are left where an image's own are not counted
NEVER = 5.0  # answers a class, on average, from which one that is never answered is not known to the annotator
TELLS = 1e-6  # chance of so uneven silence, below which it says something of the class
CLEARLY = 3.0  # nats by which other names of the classes must be more probable: twenty times


@dataclass(frozen=True)
class DawidSkene:
    """What the answers of A annotators say of N images and C classes."""

    probs: Tensor  # [N, C] float64, probability of each class; even where nobody answered
    confusion: Tensor  # [A, C, C] float64, probability that annotator a answers j where c is true; rows sum to 1
    prior: Tensor  # [C] float64, share of each class
    reliability: Tensor  # [A] float64, estimated share of the annotator's answers that are right
    n_answers: Tensor  # [A] int64
    # whether there were too few answers to tell annotators apart: ``probs`` are then shares of the votes
    is_majority: bool


def vote_shares(votes: Tensor, n_classes: int) -> Tensor:
    """Majority vote: the share of the answers that each class gets, even where nobody answered.

    Args:
      votes: [N, A] int64, -1 = no answer.   n_classes: C.

    Returns: [N, C] float64, rows sum to 1.

    Example:
      >>> vote_shares(torch.tensor([[0, 0, 1], [-1, -1, -1]]), 2).tolist()
      [[0.6666666666666666, 0.3333333333333333], [0.5, 0.5]]
    """
    counts = _votes_for(votes, n_classes)
    counts[counts.sum(1) == 0] = 1
    return counts / counts.sum(1, keepdim=True)


def _votes_for(votes: Tensor, n_classes: int) -> Tensor:
    """[N, C] float64: how many answers name each class."""
    counts = torch.zeros(len(votes), n_classes, dtype=torch.float64, device=votes.device)
    for answers in votes.T:
        answered = (answers >= 0).nonzero().flatten()
        counts[answered, answers[answered]] += 1
    return counts


def majority(votes: Tensor, n_classes: int, labels: Tensor | None) -> Tensor:
    """`vote_shares`, with all of the probability on a verified label [N] int64, -1 or None = unknown."""
    probs = vote_shares(votes, n_classes)
    if labels is not None:
        known = labels >= 0
        probs[known] = torch.eye(n_classes, dtype=probs.dtype)[labels[known]]
    return probs


def confusion_of(probs: Tensor, votes: Tensor, *, smoothing: float = SMOOTHING, are_alike: bool = False) -> Tensor:
    """Confusion matrices under class probabilities, drawn towards each annotator's usual behaviour.

    Usual is to be right as often as over all classes together, and else to answer as its wrong answers are spread over
    all classes together. So a class with few images does not make an annotator perfect or hopeless on it. An annotator
    of `NEVER` answers a class or more is never right on one that others answer, and this one never does.

    Args:
      probs: [N, C] float64, rows sum to 1.
      votes: [N, A] int64, -1 = no answer.
      smoothing: how many answers the usual behaviour counts for in each row, > 0.
      are_alike: whether all annotators are taken to behave alike.

    Returns: [A, C, C] float64, above 0, rows sum to 1.

    Example: three right answers of four; a row holds its own answers and twenty usual ones.
      >>> probs, votes = torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1]], torch.tensor([[0], [0], [1], [0]])
      >>> [[round(p, 3) for p in row] for row in confusion_of(probs, votes)[0].tolist()]
      [[0.727, 0.273], [0.318, 0.682]]
    """
    counts = torch.stack([_counts(probs, answers) for answers in votes.T])
    counts = counts.sum(0).expand_as(counts) if are_alike else counts
    answers = counts.sum(1)  # [A, C]
    is_unknown = (answers == 0) & (answers.sum(0) > 0) & (answers.sum(1, keepdim=True) >= NEVER * probs.shape[1])
    return torch.stack([smoothed(each, smoothing, some) for each, some in zip(counts, is_unknown, strict=True)])


def _counts(probs: Tensor, answers: Tensor) -> Tensor:
    """[C, C]: how often an answer j [N] falls to class c."""
    counts = probs.new_zeros(probs.shape[1], probs.shape[1])
    answered = (answers >= 0).nonzero().flatten()
    if len(answered) < len(answers):  # else nothing of that size is copied
        answers, probs = answers[answered], probs[answered]
    return counts.index_add_(0, answers, probs).T


def smoothed(counts: Tensor, smoothing: float = SMOOTHING, is_unknown: Tensor | None = None) -> Tensor:
    """Rows of counts [C, C] as distributions, with ``smoothing`` more counts each spread as is usual over all rows.

    Args: is_unknown [C] bool, classes that usually are not answered right.

    Example: nothing counted: right half of the time.
      >>> smoothed(torch.zeros(3, 3, dtype=torch.float64))[0].tolist()
      [0.5, 0.25, 0.25]
    """
    right = (counts.diagonal().sum() + 0.5) / (counts.sum() + 1)
    usual = (counts.sum(0) - counts.diagonal() + 1).expand_as(counts).clone()  # wrong answers, whatever the class
    usual.fill_diagonal_(0)
    right = right.expand(len(counts)) if is_unknown is None else torch.where(is_unknown, LEAST, right)
    usual = (1 - right[:, None]) * usual / usual.sum(1, keepdim=True).clamp(min=1e-12)
    usual.diagonal().copy_(right)
    return (counts + smoothing * usual) / (counts.sum(1, keepdim=True) + smoothing * usual.sum(1, keepdim=True))


def vote_evidence(votes: Tensor, confusion: Tensor, counted: Tensor | None = None, own: Tensor | None = None) -> Tensor:
    """What the answers say of each class: the log-likelihood, sum over annotators of log confusion[a, c, vote].

    Args:
      votes: [N, A] int64, -1 = no answer.   confusion: [A, C, C] float, above 0.
      counted: [A, C] how many answers each row of ``confusion`` is from, `SMOOTHING` included; with ``own``.
      own: [N, C] probabilities with which the images are counted there; each is judged by the others alone then.

    Returns: [N, C], 0 where nobody answered.

    Example:
      >>> confusion = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
      >>> vote_evidence(torch.tensor([[0], [-1]]), confusion).exp().tolist()
      [[0.75, 0.5], [1.0, 1.0]]
    """
    table = confusion.mT.log() if own is None or counted is None else confusion.mT  # [A, answers, class]
    found = table.new_zeros(len(votes), table.shape[2])
    for a, answers in enumerate(votes.T):
        answered = (answers >= 0).nonzero().flatten()
        is_some = len(answered) < len(answers)  # else nothing of that size is copied
        of = table[a][answers[answered] if is_some else answers]
        if own is not None and counted is not None:
            of = less_own(of, own[answered] if is_some else own, counted[a]).log_()
        found = found.index_add_(0, answered, of) if is_some else found.add_(of)
    return found


class Silence(NamedTuple):
    """Which classes the images are of that annotators answered about, of those whose silence says something."""

    annotators: Tensor  # [S] int64
    answered: Tensor  # [C, S] images with an answer, and [C, 1] all that anybody answered about, `SMOOTHING` included
    images: Tensor


def telling(votes: Tensor, n_classes: int) -> Tensor:
    """The annotators [S] int64 who answer about some classes more often than about others, as those do who know some.

    The classes of images are what the other annotators answered about them most often.

    Args: votes [N, A] int64, -1 = no answer.

    Source: the chi-square test of independence (Pearson 1900).

    Example: two answer about everything, the third about dogs alone.
      >>> truth = torch.arange(100) % 2
      >>> telling(torch.stack([truth, truth, torch.where(truth == 1, 1, -1)], dim=1), 2).tolist()
      [2]
    """
    from scipy.stats import chi2

    counts, found = _votes_for(votes, n_classes), []
    for a, answers in enumerate(votes.T):
        is_there = answers >= 0
        own = is_there.nonzero().flatten(), answers[is_there]
        counts[own] -= 1  # those of the others alone, until below
        most, classes = counts.max(1)
        counts[own] += 1
        heard = most > 0
        classes, there = classes[heard], is_there[heard].double()
        if bool(there.all()):
            continue
        n, rate = torch.bincount(classes, minlength=n_classes).double(), there.mean()
        of_class = torch.bincount(classes, there, minlength=n_classes) / n.clamp(min=1)
        odd = float((n * (of_class - rate).square()).sum() / (rate * (1 - rate)).clamp(min=1e-12))
        if chi2.sf(odd, max(1, int((n > 0).sum()) - 1)) < TELLS:
            found.append(a)
    return torch.tensor(found, dtype=torch.int64, device=votes.device)


def silence_of(probs: Tensor, votes: Tensor, annotators: Tensor) -> Silence:
    """How often these annotators [S] answered about images of each class, drawn towards how often they did about any.

    Args: probs [N, C] float64, rows sum to 1; votes [N, A] int64, -1 = no answer: images nobody answered about are not
      counted.
    """
    there = (votes[:, annotators] >= 0).to(probs)
    heard = (votes >= 0).any(1)
    own, usual = probs * heard[:, None], there[heard].mean(0).clamp(1e-3, 1 - 1e-3)
    return Silence(annotators, own.T @ there + SMOOTHING * usual, own.sum(0)[:, None] + SMOOTHING)


def silence_evidence(votes: Tensor, silence: Silence, own: Tensor | None = None) -> Tensor:
    """What it says of each class who answered and who did not: log-likelihood [N, C]; 0 where nobody answered.

    Args: votes, own: see `vote_evidence`.

    Example: one answers about every image of class 0, and never about the other.
      >>> probs, votes = torch.eye(2, dtype=torch.float64)[[0, 1] * 180], torch.tensor([[0, 0], [-1, 0]] * 180)
      >>> silence = silence_of(probs, votes, torch.tensor([0]))
      >>> silence_evidence(torch.tensor([[-1, 0]]), silence).exp().mul(100).round().tolist()
      [[5.0, 95.0]]
    """
    there, heard = (votes[:, silence.annotators] >= 0).to(silence.answered), (votes >= 0).any(1)
    found = silence.images.new_zeros(len(votes), len(silence.images))
    for s in range(len(silence.annotators)):
        is_there, less = there[:, s : s + 1], 0.0 if own is None else own
        rate = (silence.answered[:, s] - less * is_there) / (silence.images[:, 0] - less)
        found += torch.where(is_there > 0, rate, 1 - rate).clamp_(min=LEAST).log_()
    return torch.where(heard[:, None], found, 0.0)


def less_own(shares: Tensor, own: Tensor, counted: Tensor) -> Tensor:
    """Shares [N, C] of what is ``counted`` [C] as they are without the ``own`` [N, C] that is in both.

    Example: three of four, and two of three without one.
      >>> round(less_own(torch.tensor([[0.75]]), torch.tensor([[1.0]]), torch.tensor([4.0])).item(), 3)
      0.667
    """
    return (shares * counted).sub_(own).clamp_(min=LEAST).div_((counted - own).clamp_(min=LEAST))


def better_names(probs: Tensor, votes: Tensor, labels: Tensor) -> Tensor | None:
    """The order of the columns under which the answers speak most clearly for each column's class.

    Answers are as likely whatever the columns are called. Annotators are rather right than wrong, though, and whoever
    is wrong on a class mostly errs towards one other: a column is the more probable to be a class the larger the
    product over the annotators of the share of their answers that name it.

    Args:
      probs: [N, C] float64, rows sum to 1.
      votes: [N, A] int64, -1 = no answer.
      labels: [N] int64 verified classes, as answers of one more annotator; -1 = unknown.

    Returns: [C] int64, the column of each class; None where no order is better than theirs by `CLEARLY`.

    Example: two of three annotators take cats for dogs half of the time, and nobody takes dogs for cats.
      >>> truth, turn = torch.arange(400) % 2, torch.arange(400) // 2
      >>> votes = torch.stack([truth, truth | (turn % 2), truth | (turn // 2 % 2)], dim=1)
      >>> swapped = torch.eye(2, dtype=torch.float64)[1 - truth]
      >>> better_names(swapped, votes, torch.full((400,), -1)).tolist()
      [1, 0]
    """
    from scipy.optimize import linear_sum_assignment

    score = _score_of_names([_counts(probs, answers) for answers in (*votes.T, labels)])
    columns = torch.from_numpy(linear_sum_assignment(-score.T.cpu().numpy())[1]).to(probs.device)
    gain = float(score[columns, torch.arange(len(columns), device=probs.device)].sum() - score.trace())
    return columns if gain > CLEARLY else None


def doubt_of_names(predicted: Tensor, votes: Tensor, labels: Tensor, n_classes: int) -> float:
    """The share of the images whose class may have another's name, by what the answers say of every name.

    Of all one-to-one namings each counts as in `better_names`; how probable a class's own name is among them is taken
    from the matrix with rows and columns that sum to 1. It errs towards doubt.

    Args:
      predicted: [N] int64 classes, N >= 1.
      votes: [N, A] int64, -1 = no answer.
      labels: [N] int64 verified classes, -1 = unknown.
      n_classes: C.

    Source: of the matrix Sinkhorn and Knopp 1967 (Pacific J. Math. 21).

    Example: of three annotators each is right more often than not, or says whatever comes.
      >>> truth, turn = torch.arange(400) % 2, torch.arange(400) // 2
      >>> for often in (5, 2):
      ...     votes = torch.stack([(truth + (turn // each % often == 0)) % 2 for each in (1, 5, 25)], dim=1)
      ...     print(round(doubt_of_names(truth, votes, torch.full((400,), -1), 2), 2))
      0.03
      0.5
    """
    counts = []
    for answers in (*votes.T, labels):
        answered = answers >= 0
        pairs = predicted[answered] * n_classes + answers[answered]
        counts.append(torch.bincount(pairs, minlength=n_classes**2).double().view(n_classes, n_classes))
    log = _score_of_names(counts)
    for _ in range(N_BALANCED):
        log = log.log_softmax(1).log_softmax(0)
    return 1 - float(log.diagonal().exp()[predicted].mean())


def _score_of_names(counts: Sequence[Tensor]) -> Tensor:
    """[class, name]: how clearly the answers name each class, in nats; counts [C, C] of each annotator's answers."""
    score = torch.zeros_like(counts[0])
    for each in counts:
        usual = (each.sum(0) + 1) / (each.sum() + len(each))
        score += ((each + SMOOTHING * usual) / (each.sum(1, keepdim=True) + SMOOTHING)).log()
    return score


def dawid_skene(votes: Tensor, n_classes: int, *, labels: Tensor | None = None) -> DawidSkene:
    """Estimate true classes and confusion matrices from nothing but answers.

    Starts from the majority vote. E-step: class probabilities from shares and confusions; M-step: both from these.
    With fewer than `LEAST_ANSWERS` answers per class and annotator it stays with the majority vote.

    Args:
      votes: [N, A] of any integer type, classes that A annotators answered, -1 = no answer.
      labels: [N] int64 verified classes, which stay; -1 or None = unknown.

    Raises: DataError without an annotator.

    Source: Dawid and Skene 1979 (Applied Statistics 28), Eq. (2.3) to (2.5). Differs: rows of a confusion matrix are
      drawn towards the annotator's usual behaviour (`confusion_of`); where an annotator answers about some classes more
      often than about others, silence speaks, too: answers of annotators for other classes can be of one class else.

    Example: two good annotators against one who always says 0.
      >>> truth = torch.arange(60) % 2
      >>> votes = torch.stack([truth, truth, torch.zeros_like(truth)], dim=1)
      >>> found = dawid_skene(votes, 2)
      >>> bool((found.probs.argmax(1) == truth).all()), [round(r, 2) for r in found.reliability.tolist()]
      (True, [1.0, 1.0, 0.5])
    """
    if votes.ndim != 2 or not votes.shape[1]:
        raise DataError(f"votes are {list(votes.shape)}: nobody answered", fix="give a column for each annotator")
    votes = votes.long()
    n_answers = (votes >= 0).sum(0)
    known = torch.zeros(len(votes), dtype=torch.bool) if labels is None else labels >= 0
    probs = majority(votes, n_classes, labels)
    is_majority = float(n_answers.sum()) < LEAST_ANSWERS * n_classes * max(1, votes.shape[1])
    heard = (votes >= 0).any(1) | known
    prior = (probs[heard].sum(0) + 1) / (heard.sum() + n_classes)
    uneven = telling(votes, n_classes) if not is_majority else n_answers[:0]
    for _ in range(0 if is_majority else N_ITER):
        evidence = vote_evidence(votes, confusion_of(probs, votes))
        evidence += silence_evidence(votes, silence_of(probs, votes, uneven)) if len(uneven) else 0.0
        new = (evidence + prior.log()).softmax(1)
        if labels is not None:
            new[known] = probs[known]
        moved = (new - probs).abs_().sum() / 2 / max(1, len(new))
        probs, prior = new, (new[heard].sum(0) + 1) / (heard.sum() + n_classes)
        if float(moved) < STILL:
            break
    right = torch.stack([_share_right(probs, answers) for answers in votes.T])
    return DawidSkene(probs, confusion_of(probs, votes), prior, right, n_answers, is_majority)


def _share_right(probs: Tensor, answers: Tensor) -> Tensor:
    """Mean probability of an annotator's answers; 0 without any."""
    answered = (answers >= 0).nonzero().flatten()
    return probs[answered, answers[answered]].mean() if len(answered) else probs.new_zeros(())
