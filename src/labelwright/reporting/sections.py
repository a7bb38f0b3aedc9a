"""What a method adds to the report that every run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labelwright.reporting.charts import Figure


@dataclass(frozen=True)
class Sections:
    """Charts and tables of a method, and how it words what all reports say.

    Attributes:
      figures: name of a place in the template -> charts; in place of those that every report has there.
      content: variables of the template.
      found: sentences under "What was found".
      before: how the score of the text model alone is introduced.
      after: what follows it.
    """

    figures: Mapping[str, Sequence[Figure]] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    before: str = "zero-shot it was"
    after: str = ""
