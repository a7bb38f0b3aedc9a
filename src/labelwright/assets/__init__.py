"""Files that come with the package: a small CLIP that has seen drawn digits, and descriptions of digits."""

from __future__ import annotations

from pathlib import Path

DIGITS_CLIP = Path(__file__).parent / "digits-clip"
"""A model folder in transformers' format; README.md in it is the model card."""
DIGITS_DESCRIPTIONS = Path(__file__).parent / "digits-descriptions.json"
"""Class name -> list of texts, some of them good, some of them no use."""
