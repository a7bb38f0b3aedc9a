"""CVS on frozen features: both phases as the convex problems that they are there, slopes from rows left out.

 1  MLA: -log softmax(f * pi^gamma)_y, its penalty by cross-validation                   Sec. 6, multiplicative
 2  kappa_c = slope of accuracy on confidence of left-out rows predicted as c, shrunk towards the pooled slope
 3  CLA: -log softmax(f + tau log(pi / kappa))_y, weighted by pi_y^(-rho), likewise      Sec. 6, additive

Symbols: f logits, pi class prior, gamma, tau, rho, kappa.
Departures: of phase 1 nothing but the slopes is left in a convex problem, so that MLA runs once, with kappa = 1. The
slopes of line 3's own left-out rows were tried in place of line 2's: a point worse on CIFAR-10, level on GTSRB.
Source: arXiv 2310.04752; methods/cvs.py learns from pixels.
Command: labelwright fit feats.npz --method cvs --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from labelwright.adjust import fixed, slopes
from labelwright.methods.cvs import Strengths
from labelwright.methods.frozen_heads import Fit, FrozenRecipe, FrozenSettings, Labelled, fitted
from labelwright.train.convex import Problem


@dataclass(frozen=True, kw_only=True)
class Config(Strengths, FrozenSettings):
    """Settings of CVS on frozen features."""

    kappa_from: Literal["heldout", "none"] = "heldout"  # rows that the slopes are fitted on; none: kappa stays 1


def fit(cfg: Config, data: Labelled) -> Fit:
    """Lines 1 to 3."""
    kappa = torch.ones(data.n_classes, device=data.z.device)
    if cfg.kappa_from == "heldout" and len(data.rows):
        kappa = slopes_of(cfg, data)

    def additive(counts: Tensor) -> Problem:  # 3
        return Problem(
            fixed.additive_adjustment(fixed.prior(counts), kappa, strength=cfg.tau),
            fixed.inverse_prior_weights(counts, power=cfg.rho),
        )

    return replace(fitted(additive, cfg.penalty, data), logs={"kappa": [round(k, 4) for k in kappa.tolist()]})


def slopes_of(cfg: Config, data: Labelled) -> Tensor:
    """Lines 1 and 2: kappa [C]."""
    ones = torch.ones(data.n_classes, device=data.z.device)

    def multiplicative(counts: Tensor) -> Problem:
        return Problem(fixed.multiplicative_adjustment(fixed.prior(counts), ones, power=cfg.gamma))

    left_out = fitted(multiplicative, cfg.penalty, data).validated
    assert left_out is not None, "rows can be left out"
    predicted, confidence, _ = slopes.score_rows(left_out.logits)
    found = slopes.slopes_from_rows(
        predicted,
        confidence,
        predicted == data.labels[left_out.rows],
        n_classes=data.n_classes,
        shrink=cfg.kappa_shrink,
        clamp=cfg.kappa_clamp,
    )
    return 1 / found  # the slope itself, as the paper's text has it


RECIPE = FrozenRecipe(Config, fit)
