"""Trust by class under label shift: where the unlabelled images show the classes in other shares than the labels do.

Labels are often a few of every class, and the images mostly of one. A map from log-odds to trust, found on labels that
were left out, is then too high for a class that is rare among the images, and too low for a common one.

    R_kc   share of the left-out labels of class k that are answered c, towards the mean share of right answers
    p      shares of the classes under which the unlabelled images are most likely answered as they are, by EM:
           q_c = sum_k p_k R_kc
    e_c    log-odds of p_c R_cc in q_c, less those of l_c R_cc in sum_k l_k R_kc, l the shares of the labels
    what is added to the log-odds of trust of an image that is answered c: weight times e_c, of a size of MOST at most
    weight WEIGHT (1 - NOISE (C - 1) / X)+, X the sum of ((q_c - sum_k l_k R_kc) / its deviation)^2: few labels say
           little of R, and shares that differ by no more than that leave trust as it is

Source: Saerens, Latinne & Decaestecker 2002 (Neural Computation 14:1), with counts of answers in place of
  probabilities; the weight is the positive-part shrinkage of James & Stein 1961.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_CLASSES = 1_000  # a table of classes x classes is held
ROWS_OF_MEAN = 5.0  # left-out labels of each class that the mean counts for in R
N_ITER = 200
WEIGHT, NOISE, MOST = 0.7, 1.5, 3.0
"""Of the shift, of its noise, and the largest; chosen on CIFAR-10, GTSRB, clothes, digits and emoji, with 2, 5 and 20
labels a class of pools that are even, long-tailed or of two classes with one in twenty."""


def by_class(truth: Tensor, answered: Tensor, predicted: Tensor, *, n_classes: int, worth: float = 1.0) -> Tensor:
    """What to add to the log-odds of trust of each predicted class.

    Args:
      truth: [n] int64 labels that were left out.
      answered: [n] int64, to these images, by fits that did not see their labels.
      predicted: [N] int64 labels of the unlabelled images.
      n_classes: C.
      worth: how many labels by themselves one of the left-out ones counts for, 0 to 1: fewer in groups.

    Returns: [C] float64, -3 to 3; zero for what is as common as the labels say, without labels or images, and of more
      classes than `MOST_CLASSES`.

    Example: ten labels of each of two classes, one in ten of them answered wrong; 16% of the images are called rare.
      >>> truth = torch.arange(20) % 2
      >>> answered = torch.where(torch.arange(20) < 2, 1 - truth, truth)
      >>> predicted = (torch.arange(1000) < 160).long()
      >>> [round(v, 1) for v in by_class(truth, answered, predicted, n_classes=2).tolist()]
      [1.8, -1.8]
      >>> by_class(truth, answered, torch.arange(1000) % 2, n_classes=2).tolist()
      [0.0, 0.0]
    """
    nothing = torch.zeros(n_classes, dtype=torch.float64)
    if not len(truth) or not len(predicted) or not 1 < n_classes <= MOST_CLASSES:
        return nothing
    pairs = torch.bincount(truth * n_classes + answered, minlength=n_classes**2).view(n_classes, n_classes).double()
    of_labels, counts = pairs.sum(1) / len(truth), pairs.sum(1)
    found = torch.bincount(predicted, minlength=n_classes).double() / len(predicted)
    right = (float(pairs.diagonal().sum()) + 1) / (len(truth) + 2)
    usual = ((found + 1 / n_classes) / 2).expand_as(pairs).clone().fill_diagonal_(0)
    usual = (1 - right) * usual / usual.sum(1, keepdim=True) + right * torch.eye(n_classes, dtype=torch.float64)
    rates = (pairs + ROWS_OF_MEAN * usual) / (counts[:, None] + ROWS_OF_MEAN)

    expected = of_labels @ rates
    noise = (of_labels.square()[:, None] * rates * (1 - rates) / (worth * counts.clamp(min=1))[:, None]).sum(0)
    noise = noise + expected * (1 - expected) / len(predicted)
    clear = float(((found - expected).square() / noise).sum()) * (n_classes - 1) / n_classes
    weight = WEIGHT * max(0.0, 1 - NOISE * (n_classes - 1) / max(clear, 1e-9))
    if not weight:
        return nothing
    shares = of_labels
    for _ in range(N_ITER):
        joint = shares[:, None] * rates
        shares = (joint / joint.sum(0)) @ found
    before, after = (_own_share(p, rates).logit(eps=1e-6) for p in (of_labels, shares))
    return (weight * (after - before).clamp(-MOST, MOST)).nan_to_num(0.0)


def _own_share(shares: Tensor, rates: Tensor) -> Tensor:
    """[C] how often an answer is right, of classes of these shares [C]."""
    joint = shares[:, None] * rates
    return joint.diagonal() / joint.sum(0).clamp(min=1e-12)
