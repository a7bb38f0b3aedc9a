"""Cross-entropy, -log softmax(f)_y: any balance between classes comes from the data alone.

Command: labelwright fit DATA --method ce --out RUN
"""

from __future__ import annotations

from labelwright.methods.baselines import labelled_frozen
from labelwright.methods.baselines.labelled import DeferredSettings, LabelledRecipe

Config = DeferredSettings
RECIPE = LabelledRecipe(Config)
FROZEN = labelled_frozen.frozen(labelled_frozen.DeferredSettings)
