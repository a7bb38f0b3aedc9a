"""Settings of Co-Reg, its presets, and the phases that they lead to; the recipe is in methods/coreg.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from labelwright.losses.contrastive import Rule
from labelwright.methods.baselines.candidate_sets import CandidateSettings
from labelwright.train.settings import AtLeast0, Count, CountOr0, Positive, ShareBelow1

RAMP_EPOCHS = 16  # over which lambda_u grows from 0; never more than a quarter of the epochs after line 1
REPRESENTATION_AFTER_EPOCHS = 10  # after line 1, before lines 10 and 11 begin; never more than a quarter

PARTNERS: Mapping[str, Mapping[str, str]] = {
    "together": {"main": "peer", "peer": "main"},
    "apart": {"main": "main", "peer": "peer"},
    "one": {"main": "main"},
}
"""`Config.networks` -> network -> whose P, U, w and a it learns on, line 5."""


@dataclass(frozen=True, kw_only=True)
class Config(CandidateSettings):
    """Settings of Co-Reg. None = what suits the number of epochs or the size of the sets."""

    batch_size: int = 64  # rows per step, of each network; half of them of P, half of U
    lr: float = 0.05  # peak learning rate
    networks: Literal["together", "apart", "one"] = "together"  # line 5; apart, one: on their own labels (ablations)
    partial_epochs: CountOr0 | None = None  # of line 1; None: 70% of the epochs, at most 50
    entropy_weight: AtLeast0 | None = None  # line 1; None: 1, or less the larger the sets are (_warm_up)
    use_alignment: bool = True  # line 2; False: the softmax as it is (ablation)
    prior: Literal["auto", "uniform"] = "auto"  # class prior of line 2: estimated (estimate_prior), or even
    threshold: ShareBelow1 = 0.5  # tau, probability above which the guesses are trusted (Sec. 5.1)
    temperature: Positive = 0.5  # T of the sharpening (Sec. 5.1)
    mixup_alpha: AtLeast0 = 0.0  # Beta(alpha, alpha); 0 = no mixing
    strong_view: Literal["auto", "clean", "weak", "strong"] = "auto"  # learned on; auto: weak, clean on frozen features
    unlabelled_weight: AtLeast0 = 10.0  # lambda_u at the end of its ramp
    prototype_weight: AtLeast0 = 0.1  # 0 = no prototypes (ablation)
    contrastive_weight: AtLeast0 = 0.1  # 0 = no contrastive loss (ablation)
    contrastive_rule: Rule = "cautious"  # who attracts and who is ignored, see losses.contrastive
    queue_size: Count = 8192  # keys


PRESETS: Mapping[str, Mapping[str, object]] = {
    "paper": {
        "epochs": 800,
        "batch_size": 256,
        "lr": 0.01,
        "weight_decay": 5e-4,
        "partial_epochs": 50,  # 100 to 200 for CIFAR-100
        "entropy_weight": 1.0,
        "prior": "uniform",
        "mixup_alpha": 4.0,
        "strong_view": "strong",
        "unlabelled_weight": 1.0,
    }
}
"""Name -> settings that differ from the defaults; the paper's are those of Sec. 5.1, on PreAct ResNet-18."""


def partial_epochs(cfg: Config) -> int:
    """Epochs of line 1.

    Example:
      >>> partial_epochs(Config(epochs=40)), partial_epochs(Config(epochs=800, partial_epochs=50))
      (28, 50)
    """
    return min(
        max(1, min(50, round(0.7 * cfg.epochs))) if cfg.partial_epochs is None else cfg.partial_epochs, cfg.epochs
    )


def representation_epoch(cfg: Config) -> int:
    """First epoch in which lines 10 and 11 count.

    Example:
      >>> representation_epoch(Config(epochs=20, partial_epochs=4)), representation_epoch(Config(epochs=800))
      (8, 60)
    """
    return partial_epochs(cfg) + min(REPRESENTATION_AFTER_EPOCHS, _quarter(cfg))


def ramp_epochs(cfg: Config) -> int:
    """Epochs after line 1 over which lambda_u grows from 0.

    Example:
      >>> ramp_epochs(Config(epochs=20, partial_epochs=4)), ramp_epochs(Config(epochs=800))
      (4, 16)
    """
    return min(RAMP_EPOCHS, _quarter(cfg))


def _quarter(cfg: Config) -> int:
    return (cfg.epochs - partial_epochs(cfg)) // 4
