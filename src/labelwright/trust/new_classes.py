"""Trust in an open world: images of new classes that are called named ones, and how many there must be.

    pi     share of the unlabelled images that is of new classes, by what looks unlike every labelled image, and at
           least (q - b) / (1 - b)
    q      share of them that the run calls new, b of those of named classes
    named  of what is called named, right are (1 - pi) r / (1 - q), r the share of images of named classes
    new    of what is called new, right are (q - (1 - pi) b) / q  h / a, a the share of images of hidden classes that is
           called new, and h that is found with its class

r and b are seen on labels that were left out, a and h on named classes of which a fit knew nothing. Such classes are
found more often than others where the number of new ones is too small, and then a is not what it is among the
unlabelled images: q is.

Source: own; post-stratification (Holt & Smith 1979, JRSS A 142) of what was left out to the shares of pi and q.
"""

from __future__ import annotations

from typing import NamedTuple


class Rates(NamedTuple):
    """Shares of the images whose labels were left out, 0 to 1."""

    named_right: float  # r
    named_new: float  # b
    hidden_right: float  # h
    hidden_new: float  # a


def share_new(unlike: float, called_new: float, rates: Rates) -> float:
    """pi, 0.01 to 0.99.

    Args: unlike: share of the unlabelled images that look unlike every labelled one.   called_new: q.

    Example:
      >>> round(share_new(0.6, 0.25, Rates(0.9, 0.05, 0.8, 0.9)), 2), round(share_new(0, 0.43, Rates(1, 0.05, 1, 1)), 2)
      (0.6, 0.4)
    """
    least = (called_new - rates.named_new) / max(1 - rates.named_new, 1e-6)
    return min(max(unlike, least, 0.01), 0.99)


def right_shares(rates: Rates, *, new: float, called_new: float) -> tuple[float, float]:
    """Of what is called named, and of what is called new, the share that is right.

    Args: new: pi, of `share_new`.   called_new: q.

    Example: six in ten are of new classes, but three are called new.
      >>> rates = Rates(named_right=0.9, named_new=0.05, hidden_right=0.8, hidden_new=0.9)
      >>> [round(share, 2) for share in right_shares(rates, new=0.6, called_new=0.3)]
      [0.51, 0.83]
      >>> [round(share, 2) for share in right_shares(rates, new=0.6, called_new=0.6)]
      [0.9, 0.86]
    """
    most_named = rates.named_right / max(1 - rates.named_new, 1e-6)
    most_new = rates.hidden_right / max(rates.hidden_new, 1e-6)
    named = (1 - new) * rates.named_right / max(1 - called_new, 1e-6)
    of_new = max(called_new - (1 - new) * rates.named_new, 0.0) / max(called_new, 1e-6)
    return min(named, most_named, 1.0), min(of_new * most_new, 1.0)
