"""What to learn from where no pretrained model is at hand: colours and edges, or a network that learns to see."""

from __future__ import annotations

from labelwright.data.situation import detect
from labelwright.data.table import LabelTable
from labelwright.encoders import descriptor
from labelwright.encoders.at_hand import AtHand
from labelwright.methods.registry import METHODS

COLOURS = AtHand(descriptor.NAME, descriptor.NAME, "colours and edges")


def without_network(table: LabelTable, *, novel: int | str | None = None) -> AtHand | None:
    """Colours and edges, of few images that a method can learn from; None where a network is trained.

    Args:
      table: of the images, as read.   novel: as for `fit`.

    Source: ours; a network learns from labels, and of 2,000 traffic signs more than colours and edges say.
    """
    is_few = len(table) <= descriptor.FEW_IMAGES and (table.labels >= 0).sum() <= descriptor.FEW_LABELLED
    if not is_few or not table.class_names:
        return None
    reads_names = METHODS[detect(table, novel=novel).method(has_text=False)].requires.text
    return None if reads_names else COLOURS
