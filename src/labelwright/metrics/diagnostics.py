"""Signs that seen and novel classes do not learn at one pace, in words, from numbers that need no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STEADY_FRAC = 0.5  # of the epochs, before which no sign is given: novel classes begin late
TOO_FEW_FRAC = 0.5  # share of their expected images, below which they have been taken over by seen ones
SURENESS_GAP = 0.25  # mean confidence of seen over that of novel classes
STALE_RATIO = 0.9  # divergence at the end over the divergence in the first tenth, above which it did not fall
NOTICEABLE = 0.05  # nats of divergence that matter
COLLAPSED_COSINE = 0.95  # mean cosine of the prototypes from which they no longer tell classes apart
COLLAPSED_FRAC = 0.005  # share of the images below which P or U is as good as empty
BIAS_FALL = 0.05  # fall of the share of answers inside the candidate sets that no falling loss excuses


def pace_warnings(
    facts: Mapping[str, Any], divergences: Sequence[float], *, epoch: int, n_epochs: int, n_named: int
) -> list[str]:
    """Failure signs of an epoch.

    Args:
      facts: of methods.open_world.pace_logs.
      divergences: mean KL divergence of every epoch so far, nats.
      n_named: seen classes.

    Returns: sentences; none in the first half, and none without novel classes.

    Example:
      >>> facts = {"novel_frac": 0.1, "novel_expected": 0.6, "confidence_seen": 0.9, "confidence_novel": 0.8,
      ...         "class_frac": [0.9, 0.1, 0.0]}
      >>> for sign in pace_warnings(facts, [0.5, 0.1], epoch=1, n_epochs=2, n_named=1):
      ...     print(sign)
      novel classes hold 10% of the unlabelled images where 60% are expected: seen classes take theirs
      1 of 2 novel classes hold no image: fewer are there, or try --novel auto
    """
    signs: list[str] = []
    n_novel = len(facts["class_frac"]) - n_named
    if epoch + 1 < STEADY_FRAC * n_epochs or n_novel == 0:
        return signs
    if facts["novel_frac"] < TOO_FEW_FRAC * facts["novel_expected"]:
        signs.append(
            f"novel classes hold {facts['novel_frac']:.0%} of the unlabelled images where "
            f"{facts['novel_expected']:.0%} are expected: seen classes take theirs"
        )
    sure = facts["confidence_seen"], facts["confidence_novel"]
    if None not in sure and sure[0] - sure[1] > SURENESS_GAP:
        signs.append(
            f"images of novel classes are far less sure ({sure[1]:.2f}) than those of seen ones ({sure[0]:.2f}): "
            "their pace is not the same; raise margin_scale or train longer"
        )
    first = divergences[: max(1, n_epochs // 10)]
    began = sum(first) / max(len(first), 1)
    if epoch + 1 == n_epochs and divergences[-1] > max(NOTICEABLE, STALE_RATIO * began):
        signs.append(
            f"class sizes did not move towards the expected ones ({began:.2f} away from them at first, "
            f"{divergences[-1]:.2f} at the end; 0 would be equal): give their shares with --set prior_shares, or "
            "another --novel"
        )
    n_empty = sum(share == 0 for share in facts["class_frac"][n_named:])
    if n_empty:
        signs.append(f"{n_empty} of {n_novel} novel classes hold no image: fewer are there, or try --novel auto")
    return signs


def division_warnings(
    logs: Mapping[str, Any],
    first: Mapping[str, Any],
    *,
    epoch: int,
    has_guesses: bool = True,
    cosine_before: float = 1.0,
    remedy: str = "change threshold, or warm up longer (partial_epochs)",
) -> list[str]:
    """The failure signs in an epoch's logs, in words.

    Args:
      logs: of labels.codivide.describe_divisions.
      first: the same after the first division.
      cosine_before: mean cosine of the prototypes an epoch ago: they start alike, and have collapsed if they stay so.
      has_guesses: False where every label is verified and there is nothing to divide.
      remedy: against a label collapse, by settings of the method.

    Example:
      >>> fine = {"reliable_frac": 0.7, "in_set_frac": 0.8, "prototype_cosine": 0.1}
      >>> division_warnings(fine, fine, epoch=3)
      []
      >>> division_warnings({**fine, "in_set_frac": 0.6}, fine, epoch=3)[0][:60]
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
                f"({logs['reliable_frac']:.1%}); {remedy}"
            )
    if logs["in_set_frac"] < first["in_set_frac"] - BIAS_FALL:
        found.append(
            f"the answers leave the candidate sets ({first['in_set_frac']:.0%} inside after the first division, "
            f"{logs['in_set_frac']:.0%} now) while the loss falls: either the guesses are being corrected or the "
            "networks confirm each other's mistakes; verify a few labels to tell"
        )
    return found
