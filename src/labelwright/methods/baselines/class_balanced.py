"""Cross-entropy weighted by the effective number of images, alpha_k ~ (1 - b) / (1 - b^n_k), mean 1.

Source: Cui et al. 2019 (arXiv 1901.05555), b = effective_beta.
Command: labelwright fit DATA --method class_balanced --out RUN
"""

from __future__ import annotations

from labelwright.methods.baselines.labelled import LabelledRecipe, LabelledSettings
from labelwright.methods.baselines.labelled_frozen import WeightedSettings, frozen

Config = LabelledSettings
RECIPE = LabelledRecipe(Config, weighted_from_frac=lambda cfg: 0.0)
FROZEN = frozen(WeightedSettings)
