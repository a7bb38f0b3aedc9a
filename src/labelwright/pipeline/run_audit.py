"""What a run notices of the labels that it was given: those that look wrong, copies, and what they do to the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelwright.data.prepare import Source, contents, thumbs_of
from labelwright.labels import audit as pieces
from labelwright.labels.chunks import evenly_spread
from labelwright.pipeline.audit import clean_feats, groups_of, neighbours_of
from labelwright.pipeline.copies import has_two_labels, near_pairs
from labelwright.pipeline.job import Job
from labelwright.reporting.words import doubt_of
from labelwright.train.predict import Answers
from labelwright.wording import counted, percent

AUDITED_ROWS = 10_000  # of more, so many that are evenly spread: seconds, whatever the data
LISTED = 200  # of what was found, in summary.json


@dataclass(frozen=True)
class RunAudit:
    """What was found."""

    # block ``audit`` of summary.json: ``n_audited`` images; ``n_suspected`` given labels, ``estimated_wrong`` (share of
    # the given labels), ``agreement`` (share of the labels that what judges them says, too) and ``suspected``, worst
    # first, None each where labels could not be judged;
    # ``n_duplicates``, ``n_across_test``, ``n_two_labels`` and ``duplicates``, pairs of ids with "exact" or "near";
    # ``alike``, pairs of classes that look like one, as `audit` has them; ``test_noise``, see `noise_in_test`; ``says``
    facts: dict[str, Any]
    # of the training and of the test images, [N] float32: the chance that the given label is right, by classifiers that
    # did not see it; NaN where it was not judged
    chances: tuple[Tensor, ...]


def audit_of_run(job: Job, tested: Answers | None, *, seed: int) -> RunAudit:
    """Judge the given labels and look for copies, among training and test images together.

    Labels are judged by features that were stored, in folds: a network that learned from pixels has seen the labels
    that it would have to judge, and judges none.
    """
    prepared, n_classes = job.prepared, len(job.task.class_names)
    sources = [prepared.train, *([] if prepared.test is None else [prepared.test])]
    starts = np.cumsum([0, *(len(each.table) for each in sources)])
    places = evenly_spread(torch.arange(int(starts[-1])), AUDITED_ROWS).numpy()
    rows = [places[(places >= a) & (places < b)] - a for a, b in pairwise(starts)]
    parts = [source.take(some) for source, some in zip(sources, rows, strict=True)]
    labels = np.concatenate([each.table.labels for each in parts]).astype(np.int64)
    labels[labels >= n_classes] = -1  # of an open world
    ids = [name for each in parts for name in each.table.ids.to_pylist()]
    is_test = np.repeat([False, True][: len(parts)], [len(some) for some in rows])
    feats = None if prepared.train.stored is None else torch.cat([clean_feats(each) for each in parts])
    near = None if feats is None else neighbours_of(feats)
    judged = None
    if feats is not None and near is not None and (labels >= 0).any():
        groups = groups_of(parts)
        judged = pieces.judge_labels(
            feats,
            torch.from_numpy(labels),
            near,
            n_classes=n_classes,
            groups=None if groups is None else torch.from_numpy(groups),
            seed=seed,
            penalties=(pieces.PENALTY,),
        )
    names = job.task.class_names
    content = None if prepared.content is None else prepared.content[places]
    facts: dict[str, Any] = {"n_audited": len(places), **_copies(parts, content, feats, near, ids, labels, is_test)}
    facts |= dict.fromkeys(("n_suspected", "estimated_wrong", "agreement", "suspected", "alike", "test_noise"))
    chances = [torch.full((len(each.table),), torch.nan) for each in sources]
    if judged is not None:
        facts |= _suspected(judged, ids, labels, names)
        facts["alike"] = pieces.named_pairs(judged.alike, names)
        for chance, some, score in zip(chances, rows, torch.split(judged.score, [len(r) for r in rows]), strict=True):
            chance[torch.from_numpy(some)] = score
        if tested is not None and is_test.any():
            predicted = tested.predicted[torch.from_numpy(rows[1])].numpy()
            facts["test_noise"] = noise_in_test(judged, labels, is_test, predicted, ids)
    noun = "given label" if (labels[~is_test] >= 0).any() else "test label"
    facts["says"] = _says(facts, noun, has_labels=bool((labels >= 0).any()), has_feats=feats is not None)
    return RunAudit(facts, tuple(chances))


def _suspected(
    judged: pieces.Judged, ids: Sequence[str], labels: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    marked = judged.is_suspected.nonzero().flatten()
    worst = marked[judged.score[marked].argsort()][:LISTED].tolist()
    return {
        "n_suspected": len(marked),
        "estimated_wrong": round(judged.wrong_frac, 4),
        "agreement": round(judged.agreement, 4),
        "suspected": [
            {
                "id": ids[row],
                "given": names[labels[row]],
                "suggested": names[int(judged.suggested[row])],
                "score": round(float(judged.score[row]), 4),
            }
            for row in worst
        ],
    }


def _copies(
    parts: Sequence[Source],
    content: npt.NDArray[np.int64] | None,
    feats: Tensor | None,
    near: pieces.Neighbours | None,
    ids: Sequence[str],
    labels: npt.NDArray[np.int64],
    is_test: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """Pairs of copies; each image but the first of those that are equal stands beside the first."""
    seen = [found for found in map(thumbs_of, parts) if found is not None]
    thumbs = np.concatenate(seen) if len(seen) == len(parts) else None
    if thumbs is None and feats is None:
        return {"n_duplicates": None, "n_across_test": None, "n_two_labels": None, "duplicates": None}
    content = contents(parts) if content is None else content
    _, first_of, which = np.unique(content, return_index=True, return_inverse=True)
    leaders = first_of[which]
    pairs = {(int(a), int(b)): "exact" for a, b in enumerate(leaders) if a != b}
    for a, b in zip(*(rows.tolist() for rows in near_pairs(thumbs, near, cuts=False)), strict=True):
        if content[a] != content[b]:
            pairs.setdefault((max(a, b), min(a, b)), "near")
    first, second = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1))
    groups = pieces.joined(len(ids), first, second)
    return {
        "n_duplicates": len(pairs),
        "n_across_test": sum(bool(is_test[a] != is_test[b]) for a, b in pairs),
        "n_two_labels": int(has_two_labels(groups, labels).sum()),
        "duplicates": [[ids[b], ids[a], kind] for (a, b), kind in list(pairs.items())[:LISTED]],
    }


def noise_in_test(
    judged: pieces.Judged,
    labels: npt.NDArray[np.int64],
    is_test: npt.NDArray[np.bool_],
    predicted: npt.NDArray[np.int64],
    ids: Sequence[str],
) -> dict[str, Any] | None:
    """Test labels that look wrong, and what the accuracy would be if they were set right.

    Args:
      judged: N images, test images among them.   labels: [N] given, -1 = none.   is_test: [N].
      predicted: answers to the test images, in their order.   ids: of the N images.

    Returns: ``n`` suspected test labels and their ``ids``, the worst first, of ``n_judged``; their ``accuracy`` by the
      labels as they are, and ``corrected`` with each suspected one replaced by the class suggested. Suggestions come
      from the features that the answer comes from, and repeat its mistakes: the truth lies between the two, where other
      labels are right. None where no test label was judged.

    Example: the answer agrees with the suggestion.
      >>> score, other = torch.tensor([0.9, 0.1]), torch.tensor([1, 1])
      >>> judged = pieces.Judged(score, other, 1 - score, 0.5, torch.eye(2))
      >>> noise_in_test(judged, np.array([0, 0]), np.array([True, True]), np.array([0, 1]), ["a", "b"])
      {'n': 1, 'ids': ['b'], 'n_judged': 2, 'accuracy': 0.5, 'corrected': 1.0}
    """
    given, score = labels[is_test], judged.score.numpy()[is_test]
    known = (given >= 0) & ~np.isnan(score)
    if not known.any():
        return None
    marked = judged.is_suspected.numpy()[is_test]
    better = np.where(marked, judged.suggested.numpy()[is_test], given)
    worst = np.flatnonzero(marked)[np.argsort(score[marked], kind="stable")]
    names = [ids[place] for place in np.flatnonzero(is_test)[worst[:LISTED]]]
    return {
        "n": int(marked.sum()),
        "ids": names,
        "n_judged": int(known.sum()),
        "accuracy": round(float((predicted == given)[known].mean()), 4),
        "corrected": round(float((predicted == better)[known].mean()), 4),
    }


def _says(facts: Mapping[str, Any], noun: str, *, has_labels: bool, has_feats: bool) -> str:
    """One sentence for people, or a few; noun, what a label that was judged is called."""
    words = []
    if n := facts["n_suspected"]:
        n_of_test = 0 if facts["test_noise"] is None else facts["test_noise"]["n"]
        counts = {noun: n - n_of_test, "test label": n_of_test}
        who = " and ".join(counted(each, name) for name, each in counts.items() if each)
        looks = f"{who} look{'s' if n == 1 else ''} wrong"
        share = facts["estimated_wrong"]
        doubt = doubt_of(facts["agreement"], share)
        words.append(f"{looks} (by estimate about {percent(share)} of them are{doubt})")
    elif n == 0:
        words.append(f"No {noun} looks wrong")
    elif has_labels and has_feats:
        words.append(f"Too few {noun}s are there to judge them by one another")
    elif has_labels:
        words.append(
            "Given labels were not judged: this network has learned them; labelwright audit judges them by a "
            "pretrained model"
        )
    if n := facts["n_duplicates"]:
        across, two = facts["n_across_test"], facts["n_two_labels"]
        copies = "1 pair of images is a copy" if n == 1 else f"{n:,} pairs of images are copies"
        copies += f", {across:,} of them across training and test" if across else ""
        words.append(copies + (f"; {counted(two, 'image')} with copies under two labels" if two else ""))
    noise = facts["test_noise"]
    if noise is not None and noise["corrected"] > noise["accuracy"]:
        words.append(
            f"With {counted(noise['n'], 'suspected test label')} set as suggested the accuracy on the "
            f"{counted(noise['n_judged'], 'test image')} looked at would be at most {percent(noise['corrected'])} in "
            f"place of {percent(noise['accuracy'])}"
        )
    return ". ".join(words) + "." if words else ""
