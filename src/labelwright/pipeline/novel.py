"""Classes beyond the named ones in a run: how many, what they are called until they are named, how they look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelwright.data.prepare import Prepared
from labelwright.data.situation import novel_range
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError
from labelwright.labels.n_novel import describe_clusters, estimate_n_novel
from labelwright.run_folder import Run
from labelwright.train.predict import BATCH, Answers
from labelwright.train.processes import autocast_dtype
from labelwright.train.progress import track


def novel_names(n: int, taken: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of discovered classes until the user gives them others.

    Example:
      >>> novel_names(2)
      ('novel-1', 'novel-2')
    """
    names = tuple(f"novel-{i + 1}" for i in range(n))
    clash = set(names) & set(taken)
    if clash:
        raise ConfigError(f"a class is named {min(clash)!r}, as discovered ones will be", fix="rename that class")
    return names


def count_novel(
    run: Run,
    table: LabelTable,
    asked: int | str | None,
    feats: Callable[[], Tensor],
    *,
    seed: int,
    writes: bool = True,
) -> tuple[int, dict[str, Any] | None]:
    """How many novel classes a run learns, and the evidence: None where the user said how many.

    Args:
      run: its folder; an estimate is kept there, and read from there by a run that goes on.
      table: training images.
      asked: a number, "auto", a range such as "3-12", or None.
      feats: makes the features [N, D] of the training images; called only where there is something to estimate.
      seed: of the estimate.
      writes: whether this process writes the file.

    Raises: DataError, ConfigError: see labels.n_novel.estimate_n_novel.
    """
    found = novel_range(asked)
    if found is None or found[0] == found[1]:
        return (0 if found is None else found[0]), None
    path = run.path / EVIDENCE_FILE
    if path.exists():
        told = run.read_json(EVIDENCE_FILE)
        return int(told["n_novel"]), told
    labels = torch.from_numpy(table.labels.astype(np.int64))
    told = estimate_n_novel(
        feats(), labels, n_seen=len(table.class_names), fewest=found[0], most=found[1], seed=seed
    ).to_dict()
    if writes:
        run.write_json(EVIDENCE_FILE, told)
    return int(told["n_novel"]), told


def with_novel(prepared: Prepared, n_novel: int) -> Prepared:
    """The same images with ``n_novel`` more classes in their tables, which no label has."""
    names = prepared.train.table.class_names
    names = (*names, *novel_names(n_novel, names))
    sources = (prepared.train, prepared.test)
    train, test = (s and replace(s, table=replace(s.table, class_names=names)) for s in sources)
    assert train is not None
    return replace(prepared, train=train, test=test)


def feats_of(net: Any, prepared: Prepared, device: torch.device, precision: str) -> Tensor:
    """Backbone features [N, D] float32 of the training images, un-augmented, on the CPU."""
    net = net.to(device).eval()
    views, dtype, found = prepared.train.views(prepared.view), autocast_dtype(device, precision), []
    for rows in track(torch.split(torch.arange(views.n_rows), BATCH), "features"):
        x = views.batch(rows, "clean", seed=0, device=device)
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            found.append(net.features(x).float().cpu())
    return torch.cat(found)


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
    told: list[dict[str, Any]] = []
    found = describe_clusters(feats[rows], of_cluster[rows], n_clusters=n_novel, n_central=N_CENTRAL) if n_novel else []
    proposals = _proposals(feats, of_cluster, n_novel, words) if words else None
    for i, cluster in enumerate(found):
        central = rows[torch.tensor(cluster.rows, dtype=torch.int64)].tolist() if cluster.rows else []
        others = torch.bincount(answers.runner_up[of_cluster == i], minlength=len(table.class_names))
        often = others.argsort(descending=True)[:3].tolist()
        told.append(
            {
                "name": table.class_names[n_seen + i],
                "n_images": cluster.size,
                "tightness": round(cluster.tightness, 4) if cluster.size else None,
                "central": [table.ids[row].as_py() for row in central],
                "central_rows": central,
                "taken_for": [
                    [table.class_names[c], round(int(others[c]) / cluster.size, 4)] for c in often if others[c] > 0
                ],
            }
        )
        if proposals is not None:
            told[-1]["proposed"] = proposals[i] if cluster.size else []
    return told


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


EVIDENCE_FILE = "novel.json"  # of a run folder: the estimate, so that a resumed run does not make it again


N_CENTRAL = 9  # images that show a discovered class
