"""What there is to say of discovered classes: size, typical images, what they are taken for, names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from labelwright.data.table import LabelTable
from labelwright.labels.n_novel import describe_clusters
from labelwright.train.predict import Answers


def about_clusters(
    table: LabelTable, answers: Answers, feats: Tensor, *, n_seen: int, words: Mapping[str, Tensor] | None = None
) -> list[dict[str, Any]]:
    """What there is to say of every discovered class: JSON-ready.

    Args:
      table: N training images, ``class_names`` of all outputs.
      answers: of the classifier for them.
      feats: [N, D] what the images are compared by.
      n_seen: named classes.
      words: name -> unit text feature [D] in the space of ``feats``; or None.

    Returns: per discovered class its name, n_images (unlabelled ones in it), tightness (mean cosine to their mean, None
      if it is empty), central (ids of the images nearest to it), taken_for (runner-up classes of its images and their
      share, the three most frequent), and with ``words`` proposed (the three words nearest to it, with cosines less the
      mean over all clusters: a word that fits every cluster names none).
    """
    hidden = torch.from_numpy(table.labels < 0)
    n_novel = len(table.class_names) - n_seen
    of_cluster = torch.where(hidden & (answers.predicted >= n_seen), answers.predicted - n_seen, -1)
    rows = (of_cluster >= 0).nonzero().flatten()
    facts: list[dict[str, Any]] = []
    found: list[tuple[list[int], int, float]] = [([], 0, 0.0)] * n_novel  # every image may have gone to a named class
    if n_novel and len(rows):
        found = describe_clusters(feats[rows], of_cluster[rows], n_clusters=n_novel, n_central=N_CENTRAL)
    proposals = _proposals(feats, of_cluster, n_novel, words) if words else None
    for i, (nearest, size, tightness) in enumerate(found):
        central = rows[torch.tensor(nearest, dtype=torch.int64)].tolist()
        others = torch.bincount(answers.runner_up[of_cluster == i], minlength=len(table.class_names))
        often = others.argsort(descending=True)[:3].tolist()
        facts.append(
            {
                "name": table.class_names[n_seen + i],
                "n_images": size,
                "tightness": round(tightness, 4) if size else None,
                "central": [table.ids[row].as_py() for row in central],
                "central_rows": central,
                "taken_for": [[table.class_names[c], round(int(others[c]) / size, 4)] for c in often if others[c] > 0],
            }
        )
        if proposals is not None:
            facts[-1]["proposed"] = proposals[i] if size else []
    return facts


def _proposals(feats: Tensor, of_cluster: Tensor, n_novel: int, words: Mapping[str, Tensor]) -> list[list[list[Any]]]:
    """The three words that fit each cluster more than they fit the others."""
    names, texts = list(words), torch.nn.functional.normalize(torch.stack(list(words.values())).float(), dim=1)
    means = torch.zeros(n_novel, feats.shape[1])
    kept = of_cluster >= 0
    means.index_add_(0, of_cluster[kept], torch.nn.functional.normalize(feats[kept].float(), dim=1))
    cosines = torch.nn.functional.normalize(means, dim=1) @ texts.T  # [K, W]
    lifts = cosines - cosines.mean(0)
    best = lifts.topk(min(3, len(names)), dim=1)
    return [
        [[names[w], round(float(v), 4)] for w, v in zip(at.tolist(), by.tolist(), strict=True)]
        for at, by in zip(best.indices, best.values, strict=True)
    ]


N_CENTRAL = 9  # images that show a discovered class
