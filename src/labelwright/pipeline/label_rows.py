"""Rows of labels: which label, how likely it is right, what else it could be, where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from labelwright.data.table import LabelTable
from labelwright.pipeline.saved_model import Strange
from labelwright.run_folder import plain_schema
from labelwright.train.predict import Answers
from labelwright.trust.calibration import Calibration

LABEL_COLUMNS = ("id", "label", "probability", "runner_up", "source", "trust", "softmax", "strangeness", "decision")
DECISIONS = ("review", "accept", "unknown")


def strange_facts(strange: Strange | None) -> dict[str, Any]:
    """What `label_rows` wants to know of images of no class."""
    if strange is None:
        return {}
    return {
        "strangeness": strange.strangers.strangeness(strange.scores),
        "threshold": strange.strangers.threshold,
    }


def label_rows(
    table: LabelTable,
    answers: Answers,
    class_names: tuple[str, ...],
    calibration: Calibration,
    *,
    keep_given: bool,
    given_chance: torch.Tensor | None = None,
    accepted: torch.Tensor | None = None,
    strangeness: torch.Tensor | None = None,
    threshold: float | None = None,
) -> pa.Table:
    """One row per image: which label, how likely it is right, what else it could be, where from, how far to trust it.

    Args:
      answers: of the classifier, with ``given`` = the labels the table holds.
      class_names: C names the answers refer to.
      calibration: of the classifier.
      keep_given: a given label stays ("given"); False puts the classifier's own answer everywhere ("predicted").
      given_chance: [N] float, the chance that the given label is right by classifiers that did not see it; NaN or None
        where there is none.
      accepted: [N] bool, labels that may be used as they are; None: none.
      strangeness: [N] float, 0 to 1, see `trust.strangers`; None: nothing is known of it.
      threshold: of the strangeness, 0 to 1; above it an image is of no class, unless its label was given.

    Returns: Arrow table of LABEL_COLUMNS, its texts but the ids as numbers into a dictionary, see `plain`. ``trust``,
      and ``probability``, its other name, is the estimated chance that the label is right: of a predicted one the
      calibrated probability; of a given one ``given_chance``, or else the same where the classifier agrees, and what it
      leaves where it prefers another class (under 0.5: a label to look at). Of an image of no class it is that times
      (1 - strangeness) / (1 - threshold). ``softmax`` is what the classifier itself says of the label; ``strangeness``
      may be null; ``decision`` is "unknown", "accept" or "review".
    """
    known = (answers.given >= 0) & keep_given
    label = torch.where(known, answers.given, answers.predicted)
    # The best class that is not the label: the prediction itself where a given label disagrees with it.
    runner_up = torch.where(label == answers.predicted, answers.runner_up, answers.predicted)
    chance = calibration.chance(answers.odds)
    agreed = label == answers.predicted
    chance = torch.where(agreed, chance, (1 - chance).clamp(max=0.5))
    if given_chance is not None:
        chance = torch.where(known & ~given_chance.isnan(), given_chance, chance)
    kind = torch.zeros(len(table), dtype=torch.int64) if accepted is None else accepted.long()
    if strangeness is not None and threshold is not None:
        unknown = (strangeness > threshold) & ~known
        kind[unknown] = 2
        chance = torch.where(unknown, chance * (1 - strangeness) / (1 - threshold), chance)
    trust = pa.array(chance.float().numpy())
    return pa.table(
        {
            "id": table.ids,
            "label": coded(label.int(), class_names),
            "probability": trust,
            "runner_up": coded(runner_up.int(), class_names),
            "source": coded(known.int(), ("predicted", "given")),
            "trust": trust,
            "softmax": pa.array(torch.where(known, answers.given_probability, answers.probability).float().numpy()),
            "strangeness": pa.nulls(len(table), pa.float32()) if strangeness is None else pa.array(strangeness.numpy()),
            "decision": coded(kind.int(), DECISIONS),
        }
    )


def of_no_class(rows: pa.Table) -> NDArray[np.bool_]:
    """Which rows [N] are images of no class, whose label is only the class that is nearest.

    Args: rows with the columns decision, or not, and source; those of a cluster (`strange.with_new`) have a class.

    Example:
      >>> of_no_class(pa.table({"decision": ["unknown", "unknown", None], "source": ["predicted", "cluster", "given"]}))
      array([ True, False, False])
    """
    if "decision" not in rows.column_names:
        return np.zeros(len(rows), dtype=bool)
    unknown = pc.and_(pc.equal(rows["decision"], "unknown"), pc.not_equal(rows["source"], "cluster"))
    return np.array(pc.fill_null(unknown, False), dtype=bool)


def coded(numbers: torch.Tensor, words: Sequence[str]) -> pa.DictionaryArray:
    """Words [N] by their numbers [N] int32, 0 to W - 1: four bytes a row, however long the words are.

    Example:
      >>> coded(torch.tensor([1, 1, 0], dtype=torch.int32), ("cat", "dog")).to_pylist()
      ['dog', 'dog', 'cat']
    """
    return pa.DictionaryArray.from_arrays(pa.array(numbers.numpy()), pa.array(words, pa.string()))


def plain(rows: pa.Table) -> pa.Table:
    """Labels as they are written and returned: with texts in place of numbers into a dictionary.

    Example:
      >>> plain(pa.table({"label": coded(torch.tensor([0, 0], dtype=torch.int32), ("cat",))})).schema.types
      [DataType(string)]
    """
    return rows.cast(plain_schema(rows.schema))
