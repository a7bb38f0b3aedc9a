"""What the trust of a run's labels rests on, in words."""

from __future__ import annotations

import pyarrow.compute as pc

from labelwright.run_folder import Run
from labelwright.wording import counted, percent

BASIS = {
    "left-out labels": "calibrated on {n} that the classifier had not seen",
    "text model": "from how sure the text model was before anything was learned; no label confirms it",
    "candidates": "from how sure those were who named the candidates; no label confirms it",
    "none": "the classifier's own probabilities: no label was left out to hold them against",
}
SURE = 0.95


def trust_words(run: Run) -> list[str]:
    """Sentences on how many labels are likely to be right, what that rests on, and how many to look at first.

    Example:
      >>> trust = {"source": "text model", "n": 0, "estimated": 0.7, "interval": [0.45, 0.85]}
      >>> trust_words(Run("run", summary={"trust": trust}, labels=None))[0][:74]
      'Of the predicted labels about 70.0% are right, between 45.0% and 85.0% (tr'
    """
    found, words = run.summary.get("trust") or {}, []
    if not found:
        return []
    basis = BASIS[found["source"]].format(n=counted(found["n"], "label"))
    if "estimated" in found and found["source"] != "none":
        low, high = found["interval"]
        words.append(
            f"Of the predicted labels about {percent(found['estimated'])} are right, between {percent(low)} and "
            f"{percent(high)} (trust is {basis})."
        )
    else:
        words.append(f"Trust is {basis}.")
    if run.labels is not None and run.labels.num_rows:
        sure = pc.sum(pc.greater_equal(run.labels["trust"], SURE)).as_py() or 0
        low = pc.sum(pc.less(run.labels["trust"], 0.5)).as_py() or 0
        words.append(
            f"{sure:,} of {run.labels.num_rows:,} labels have a trust of {SURE:g} or more, {low:,} one under 0.5: look "
            "at these first (listed below)."
        )
    return words
