"""The failure signs of Co-Reg, in numbers and in words: prototype collapse, label collapse, confirmation bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labelwright.labels.codivide import CoDivision

COLLAPSED_COSINE = 0.95  # mean cosine of the prototypes from which they no longer tell classes apart
COLLAPSED_FRAC = 0.005  # share of the images below which P or U is as good as empty
BIAS_FALL = 0.05  # fall of the share of answers inside the candidate sets that no falling loss excuses


def told_of(divisions: Sequence[CoDivision], *, collapse: float) -> dict[str, Any]:
    """What to log of an epoch's divisions, one per network.

    Args:
      divisions: of the networks.
      collapse: mean cosine of the prototypes (losses.prototypes.prototype_collapse).

    Returns: reliable_frac, in_set_frac, network_agreement, division_gap, prototype_cosine and largest_class_frac,
      means over the networks where there are two.
    """
    n = len(divisions)
    first = divisions[0].predicted
    counts = first.bincount()
    return {
        "reliable_frac": sum(d.reliable_frac for d in divisions) / n,
        "in_set_frac": sum(d.in_set_frac for d in divisions) / n,
        "network_agreement": float((first == divisions[-1].predicted).float().mean()),
        "division_gap": sum(d.means[1] - d.means[0] for d in divisions) / n,
        "prototype_cosine": collapse,
        "largest_class_frac": float(counts.max() / counts.sum()),
    }


def signs_of(
    logs: Mapping[str, Any],
    first: Mapping[str, Any],
    *,
    epoch: int,
    has_guesses: bool = True,
    cosine_before: float = 1.0,
) -> list[str]:
    """The failure signs in an epoch's logs, in words.

    Args:
      logs: of `told_of`.
      first: the same after the first division.
      epoch: zero-based.
      cosine_before: mean cosine of the prototypes an epoch ago: they start alike, and have collapsed if they stay so.
      has_guesses: False where every label is verified and there is nothing to divide.

    Example:
      >>> fine = {"reliable_frac": 0.7, "in_set_frac": 0.8, "prototype_cosine": 0.1}
      >>> signs_of(fine, fine, epoch=3)
      []
      >>> signs_of({**fine, "in_set_frac": 0.6}, fine, epoch=3)[0][:60]
      'the answers leave the candidate sets (80% inside after the f'
    """
    found = []
    if min(logs["prototype_cosine"], cosine_before) > COLLAPSED_COSINE:
        found.append(
            f"prototype collapse: the class prototypes have become alike (mean cosine {logs['prototype_cosine']:.2f} "
            f"in epoch {epoch + 1}); --set prototype_weight=0, or a longer warm-up (partial_epochs)"
        )
    for share, all_or_none in ((logs["reliable_frac"], "none"), (1 - logs["reliable_frac"], "all")):
        if has_guesses and share < COLLAPSED_FRAC:
            found.append(
                f"label collapse: {all_or_none} of the guesses are trusted in epoch {epoch + 1} "
                f"({logs['reliable_frac']:.1%}); change threshold, or warm up longer (partial_epochs)"
            )
    if logs["in_set_frac"] < first["in_set_frac"] - BIAS_FALL:
        found.append(
            f"the answers leave the candidate sets ({first['in_set_frac']:.0%} inside after the first division, "
            f"{logs['in_set_frac']:.0%} now) while the loss falls: either the guesses are being corrected or the "
            "networks confirm each other's mistakes; verify a few labels to tell"
        )
    return found
