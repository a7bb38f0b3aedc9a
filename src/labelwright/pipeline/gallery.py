"""What a report shows of single images: pictures, five best classes, labelled neighbours, what each stage answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.data.prepare import Source
from labelwright.methods.method import Images
from labelwright.metrics.classification import calibration_error
from labelwright.metrics.scores import truth_beyond
from labelwright.pipeline.job import Job
from labelwright.pipeline.novel import feats_of_views
from labelwright.pipeline.references import Contender
from labelwright.reporting.checks import PER_TAB, rows_of, to_check
from labelwright.reporting.gallery import LARGE_CHARS, LARGE_PX, SMALL_CHARS, SMALL_PX, pictures
from labelwright.train.predict import Answers

N_NEIGHBOURS = 4
N_SAMPLES = 3  # pictures of a class; one each of more than `MANY` classes
MANY = 40
MATRIX_MAX = 50  # classes
AMONG, AMONG_PIXELS = 4_000, 1_000  # labelled images that neighbours are looked for among


def gallery_of(
    contenders: Sequence[Contender],
    *,
    labelling: Contender,
    rows: pa.Table,
    summary: Mapping[str, Any],
    own: Answers,
    first: Tensor | None,
    tested: Answers | None,
    checked: Checked | None,
) -> dict[str, Any]:
    """The content of gallery.json; see `reporting.gallery.write_gallery`.

    Args:
      contenders: what the images are shown to, the answer of the run first.
      labelling: what the training images are shown to in its place: the same, or fitted on more images.
      first: [N] int64, the first guess of each training image, -1 = none; None where there was none.
      tested: answers on the test images; None without such.
      checked: trust beside what was right; None where nothing shows it.
    """
    kept = contenders[0]
    job, prepared, names = kept.job, kept.job.prepared, kept.job.prepared.train.table.class_names
    train, test = prepared.train, prepared.test
    mark = "test/" if prepared.test_is == "given" else ""  # ids of two tables may be the same
    changed = {}
    if first is not None:
        moved = (first >= 0) & (first != own.predicted) & torch.from_numpy(train.table.labels < 0)
        at = moved.nonzero().flatten()
        ids = train.table.ids.take(pa.array(at.numpy())).to_pylist()
        changed = {key: names[c] for key, c in zip(ids, first[at].tolist(), strict=True)}
    mistakes: dict[str, dict[str, Any]] = {}
    matrix = None
    if test is not None and tested is not None:
        found = _test_answers(job, tested, summary.get("test"))
        mistakes = _mistakes(found, [f"{mark}{key}" for key in test.table.ids.to_pylist()], tested)
        matrix = None if job.task.n_novel else _matrix(found, names)
    tabs = to_check(rows, summary, changed=changed, mistakes=list(mistakes))
    chosen = list(dict.fromkeys(key for tab in tabs.values() for key in tab))

    def places(keys: Sequence[str]) -> dict[str, tuple[Source, int]]:
        """Source and row of images."""
        found = _rows_of(train.table.ids, keys)
        place = {key: (train, row) for key, row in found.items()}
        if test is not None and tested is not None:
            own = [key.removeprefix(mark) for key in keys if key.startswith(mark)]
            place |= {f"{mark}{key}": (test, row) for key, row in _rows_of(test.table.ids, own).items()}
        return place

    place = places(chosen)
    chosen = [key for key in chosen if key in place]
    items: dict[str, dict[str, Any]] = {key: dict(mistakes.get(key, {})) for key in chosen}
    neighbours: list[str] = []
    for source in (train, test):
        mine = [key for key in chosen if place[key][0] is source]
        if source is None or not mine:
            continue
        at = torch.tensor([place[key][1] for key in mine])
        if source is train:
            described = _described([labelling, *contenders[1:]], "train", at)
        else:
            described = _described(contenders, "test", at)
        beside = _neighbours(kept, rows, source, at)
        for key, facts, near in zip(mine, described, beside, strict=True):
            items[key] |= facts | {"neighbours": near}
            neighbours += [other for other, *_ in near]
    for key, name in changed.items():
        if key in items:
            items[key]["history"].insert(0, ["first guess", name])
    samples = samples_of(rows)
    clusters = (summary.get("novel") or {}).get("clusters") or []
    central = [key for cluster in clusters for key in cluster["central"]]
    small = [*central, *(key for some in samples.values() for key in some), *neighbours]
    return {
        "items": items,
        "samples": samples,
        "matrix": matrix,
        "trust": None if checked is None else trust_against(*checked),
        "large": _pictures(place, chosen, LARGE_PX, LARGE_CHARS) if train.pixels is not None else {},
        "small": _pictures(places(small), small, SMALL_PX, SMALL_CHARS) if train.pixels is not None else {},
    }


def first_guesses(job: Job, asked: Answers | None) -> Tensor | None:
    """Class of each training image before learning, [N] int64: by the text model, or the likeliest candidate.

    Args:
      asked: what the text model answers; None without one.
    """
    if job.task.n_novel:
        return None  # names of some classes alone say nothing of the others
    if asked is not None:
        return asked.predicted
    sets = job.prepared.train.table.candidates
    if sets is None or sets.weights is None:
        return None
    chunks = []
    for rows in torch.split(torch.arange(len(sets)), 8192):
        best, classes = sets.shares(rows, len(job.task.class_names)).topk(2, dim=1)
        chunks.append(torch.where(best[:, 0] > best[:, 1], classes[:, 0], -1))  # of equals none comes first
    return torch.cat(chunks)


class Checked(NamedTuple):
    """Trust beside what was right."""

    trust: Tensor  # [n] float32, of labels that the map behind it was not fitted to
    right: Tensor  # [n] bool
    basis: str  # what the images are
    is_crossed: bool  # whether the map of each is from the half of them that it is not in
    wrong: float = (
        0.0  # share of these labels that is taken for wrong: trust is lowered to how often it agrees with them
    )


def trust_against(
    trust: Tensor, right: Tensor, basis: str, is_crossed: bool = False, wrong: float = 0.0
) -> dict[str, Any] | None:
    """Trust held against what was right: by tenths of trust, and of the surest tenth, fifth and so on of the images.

    Images of equal trust are accepted together.

    Args: see `Checked`.

    Example:
      >>> found = trust_against(torch.tensor([0.95, 0.9, 0.3, 0.2]), torch.tensor([1, 1, 0, 1]) > 0, "test images")
      >>> found["bins"][0], found["surest"][1]
      ({'n': 1, 'trust': 0.2, 'right': 1}, {'share': 0.5, 'n': 2, 'right': 2})
      >>> trust_against(torch.ones(4), torch.tensor([1, 1, 0, 0]) > 0, "test images")["surest"]
      [{'share': 1.0, 'n': 4, 'right': 2}]
    """
    if not len(trust):
        return None
    bins = []
    tenth = (trust * 10).long().clamp(0, 9)
    for i in range(10):
        mine = tenth == i
        if mine.any():
            bins.append(
                {"n": int(mine.sum()), "trust": round(float(trust[mine].mean()), 4), "right": int(right[mine].sum())}
            )
    falling, surest = trust.sort(descending=True).values, {}
    for i in range(1, 11):
        mine = trust >= falling[max(1, round(len(trust) * i / 10)) - 1]  # with all that are as sure as the last
        n = int(mine.sum())
        surest[n] = {"share": round(n / len(trust), 4), "n": n, "right": int(right[mine].sum())}
    off = round(calibration_error(trust, right), 4)
    facts = {"basis": basis, "is_crossed": is_crossed, "wrong": round(wrong, 4), "off": off}
    return {**facts, "bins": bins, "surest": list(surest.values())}


def right_of(job: Job, tested: Answers, scores: Mapping[str, Any] | None) -> tuple[Tensor, Tensor]:
    """Of which test images a class is known [n] bool, and of those whether the answer is right, bool.

    Args: scores: of these answers, which say what class each discovered one fits best.
    """
    found = _test_answers(job, tested, scores)
    known = torch.tensor([truth is not None for truth in found[0]], dtype=torch.bool)
    right = torch.tensor([truth == answer for truth, answer in zip(*found, strict=True)], dtype=torch.bool)
    return known, right[known]


def _pictures(
    place: Mapping[str, tuple[Source, int]], keys: Sequence[str], edge_px: int, chars_max: int
) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in dict.fromkeys(keys):
        if key in place:
            source, row = place[key]
            for url in pictures(source.table, [row], edge_px=edge_px, chars_max=chars_max).values():
                found[key] = url
            if sum(map(len, found.values())) > chars_max:
                break
    return found


def _test_answers(
    job: Job, tested: Answers, scores: Mapping[str, Any] | None
) -> tuple[list[str | None], list[str | None]]:
    """Names of the truth and of the answers on the test images; of a discovered class, the true one it fits best."""
    prepared, n_seen = job.prepared, len(job.task.class_names)
    assert prepared.test is not None
    truth, names = truth_beyond(prepared.test.table, n_seen)
    if job.task.n_novel:
        matched = (scores or {}).get("matched") or []
        answer = [matched[c] if c < len(matched) else None for c in tested.predicted.tolist()]
    else:
        truth, names = prepared.test.table.labels.astype(np.int64), prepared.train.table.class_names
        answer = [names[c] for c in tested.predicted.tolist()]
    return [names[c] if c >= 0 else None for c in truth.tolist()], answer


def _mistakes(
    found: tuple[list[str | None], list[str | None]], keys: Sequence[str], tested: Answers
) -> dict[str, dict[str, Any]]:
    """Key -> label, rather, probability of test images that were got wrong.

    The surest image of each of the eight most frequent mistakes, then the second, the third; then the surest others.
    """
    wrong = [i for i, (truth, answer) in enumerate(zip(*found, strict=True)) if truth is not None and answer != truth]
    sure = sorted(wrong, key=lambda i: -float(tested.probability[i]))
    kinds = Counter((found[0][i], found[1][i]) for i in sure)
    frequent = [[i for i in sure if (found[0][i], found[1][i]) == kind][:3] for kind, _ in kinds.most_common(8)]
    often = [i for place in range(3) for some in frequent for i in some[place : place + 1]]
    order = list(dict.fromkeys([*often, *sure]))[:PER_TAB]
    return {
        keys[i]: {
            "label": found[0][i],
            "rather": found[1][i] or "no class",
            "probability": round(float(tested.probability[i]), 4),
        }
        for i in order
    }


def _matrix(found: tuple[list[str | None], list[str | None]], names: Sequence[str]) -> list[list[int]] | None:
    if len(names) > MATRIX_MAX:
        return None
    at = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    for truth, answer in zip(*found, strict=True):
        if truth in at and answer in at:
            counts[at[truth], at[answer]] += 1
    return [[int(n) for n in row] for row in counts]


def _described(contenders: Sequence[Contender], images: Images, rows: Tensor) -> list[dict[str, Any]]:
    """For each row: the five best classes of the answer, and what every contender answers."""
    kept, probs = contenders[0], list[Tensor]()

    def collect(_: Tensor, found: Tensor) -> Tensor:
        probs.append(found.float().cpu())
        return found

    kept.answers(images, rows=rows, adapt=collect)
    names = kept.job.prepared.train.table.class_names
    best, classes = torch.cat(probs).topk(min(5, len(names)), dim=1)
    # the answer of the run last
    answers = [(each.title, each.answers(images, rows=rows).predicted) for each in reversed(contenders)]
    return [
        {
            "top": [[names[c], round(p, 4)] for c, p in zip(classes[i].tolist(), best[i].tolist(), strict=True)],
            "history": [[title, names[int(answer[i])]] for title, answer in answers if int(answer[i]) < len(names)],
        }
        for i in range(len(rows))
    ]


def _neighbours(kept: Contender, labels: pa.Table, source: Source, rows: Tensor) -> list[list[list[Any]]]:
    """For each row the nearest labelled training images, (id, label, given or predicted); where hardly any is labelled,
    the nearest of all.
    """
    plan, prepared = kept.plan, kept.job.prepared
    train, table, views = prepared.train, prepared.train.table, prepared.train.views(prepared.view)
    among = np.flatnonzero(table.labels >= 0)
    among = among if len(among) > N_NEIGHBOURS else np.arange(len(table))
    most = AMONG if train.stored is not None else AMONG_PIXELS
    among = among[np.linspace(0, len(among) - 1, min(len(among), most)).round().astype(np.int64)]
    net, precision, device = kept.state.nets["main"], plan.settings.precision, plan.accelerator.device
    others = feats_of_views(net, views, device, precision, rows=torch.from_numpy(among))
    own = feats_of_views(net, source.views(prepared.view), device, precision, rows=rows)
    middle = others.mean(0)
    sims = F.normalize(own - middle, dim=1) @ F.normalize(others - middle, dim=1).T  # [n, A]
    if source is train:
        sims[rows[:, None] == torch.from_numpy(among)[None]] = -2.0  # not itself
    near = sims.topk(min(N_NEIGHBOURS, sims.shape[1]), dim=1).indices
    ids = [table.ids[int(row)].as_py() for row in among]
    known = rows_of(labels, ids)
    return [
        [[ids[j], known[ids[j]]["label"], known[ids[j]]["source"]] for j in row if ids[j] in known]
        for row in near.tolist()
    ]


def _rows_of(ids: pa.Array, keys: Sequence[str]) -> dict[str, int]:
    """Key -> its row in a table's ids, of those that are there."""
    rows = np.flatnonzero(np.asarray(pc.is_in(ids, pa.array(keys, ids.type))))
    return dict(zip(ids.take(pa.array(rows)).to_pylist(), rows.tolist(), strict=True))


def samples_of(labels: pa.Table) -> dict[str, list[str]]:
    """Class -> ids of the images whose label is the surest; the class that has the surest of all comes first."""
    encoded = labels["label"].combine_chunks().dictionary_encode()
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    doubt = -np.asarray(labels["trust"].to_numpy(zero_copy_only=False))
    n_each = N_SAMPLES if len(names) <= MANY else 1
    by_class = np.lexsort((doubt, codes))  # stable: the first of equals comes first
    starts = np.searchsorted(codes, np.arange(len(names) + 1), sorter=by_class)
    some = [by_class[first : min(first + n_each, end)] for first, end in pairwise(starts.tolist()) if end > first]
    some.sort(key=lambda rows: (doubt[rows[0]], rows[0]))
    return {names[codes[rows[0]]]: labels["id"].take(pa.array(rows)).to_pylist() for rows in some}
