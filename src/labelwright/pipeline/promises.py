"""`verify-sample`, and `--error`: which labels of a table may be accepted, by labels that somebody verified.

Given labels are no part of a promise: they are accepted where their trust is at least one half, else for review.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from labelwright.arguments import check_arguments
from labelwright.data.class_names import class_of, index_of
from labelwright.data.columns import ROLES
from labelwright.data.sheets import read_sheet
from labelwright.errors import ConfigError, DataError, LabelwrightError
from labelwright.pipeline.images import images_of, to_look_at
from labelwright.pipeline.label_rows import DECISIONS, coded
from labelwright.pipeline.saved_model import SavedModel
from labelwright.pipeline.settings import is_in_memory
from labelwright.replacing import new_output
from labelwright.run_folder import Run, write_parquet_atomically
from labelwright.spreadsheet import write_csv
from labelwright.trust.calibration import Calibration, from_verified, levelled
from labelwright.trust.guarantee import Promise, draw, enough, promise
from labelwright.wording import counted, percent

NO_CLASS = ("none", "unknown")
"""What a verified image is that belongs to no class; names of classes go before."""

HELD_OUT_ALIKE = 0.01  # least p-value at which held-out images pass for ones like the others
DRAWN = ("n", "error", "confidence", "seed")  # what a file of `verify_sample` says of how it was drawn


@dataclass(frozen=True)
class ToVerify:
    """What `verify_sample` wrote.

    Attributes:
      path: of the file.
      n: images in it.
      n_predicted: labels that they were drawn from.
      note: why its column ``path`` is empty; empty if it is not.
    """

    path: Path
    n: int
    n_predicted: int
    note: str = ""


@dataclass(frozen=True)
class Verified:
    """Labels that somebody verified.

    Attributes:
      labels: id -> index of the class, -1 = of no class.
      n_blank: rows without one.
      drawn: how `verify_sample` drew these rows; empty where it did not, and any image was as likely as any other.
      path: of the file.
    """

    labels: Mapping[str, int]
    n_blank: int
    drawn: Mapping[str, float]
    path: Path


@check_arguments
def verify_sample(
    run: str | Path,
    *,
    data: Any = None,
    n: int = 200,
    out: str | Path = "to-verify.csv",
    error: float = 0.05,
    confidence: float = 0.95,
    seed: int = 0,
) -> ToVerify:
    """Draw images of a run whose labels somebody should look at; the file filled in is what ``verified`` reads.

    Args:
      run: a finished run folder.
      data: its images, if they are no longer where config.yaml has them, were in memory, or are those that its
        embeddings are of.
      n: how many images; all of them if there are fewer.
      out: .csv or .parquet file, which must not exist. Columns: id, path (of the image, or of a picture in a folder
        beside the table where the image is not a file), label, trust, verified (to be filled in with the true class, or
        with ``none`` where it is of no class), drawn (how the rows were drawn; to be left as it is). Rows are in random
        order: the first half alone is a random sample, too.
      error, confidence: of the promise that you want to make.
      seed: of the draw.

    Raises: DataError or ConfigError, with nothing written.
    """
    folder = Run(run)
    check_shares(error, confidence)
    if n < 1:
        raise ConfigError(f"n={n} is not possible", fix="n must be at least 1")
    target = new_output(out, ".csv", ".parquet")
    pictures = new_output(target.with_name(f"{target.stem.replace('.', '-')}-images"), "")
    rows = _labels_of(folder)
    rows = rows.filter(pa.array(is_predicted(rows)))
    if not len(rows):
        raise DataError(
            f"every label of {folder.path} was given: there is none to verify",
            fix="of new images take a random sample: any file with the columns id and verified: labelwright label RUN "
            "NEW --error 0.05 --verified FILE; labelwright audit finds given labels that are probably wrong",
        )
    sample = draw(_trust(rows), n, error=error, confidence=confidence, seed=seed)
    chosen = rows.take(pa.array(sample.rows))
    ids = chosen["id"].cast(pa.string())
    drawn = f"n={n} error={error!r} confidence={confidence!r} seed={seed}"
    paths, note = [""] * len(chosen), ""
    try:
        paths = to_look_at(images_of(folder, data), ids.to_pylist(), pictures)
    except LabelwrightError as error:
        if data is not None:
            raise
        fix = "if they moved, say where with --data" if error.fix == "check the path" else error.fix
        note = f"{error.message} ({fix}); the column `id` says which image it is"
        note += ": its row from 0, where the data have no ids" if is_in_memory(folder.config.get("data")) else ""
    if data is not None and not any(paths):
        raise DataError("none of the images that were drawn is in these data", fix="give what the run learned from")
    table = pa.table(
        {
            "id": ids,
            "path": pa.array(paths, pa.string()),
            "label": chosen["label"],
            "trust": pa.array([round(value, 4) for value in chosen["trust"].to_pylist()]),
            "verified": pa.array([""] * len(chosen), pa.string()),
            "drawn": pa.array([drawn] * len(chosen), pa.string()),
        }
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".csv":
        write_csv(table, target)
    else:
        write_parquet_atomically(table, target)
    return ToVerify(target, len(table), len(rows), note)


def check_shares(error: float | None, confidence: float) -> None:
    """Refuse an error or a confidence that is not between 0 and 1.

    Raises: ConfigError.
    """
    for name, value in (("error", error), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"{name}={value} is not possible", fix=f"{name} is a share: above 0 and below 1")


def read_verified(path: str | Path, class_names: Sequence[str]) -> Verified:
    """Verified labels of a .csv, .jsonl or .parquet file: a column of ids, and one called verified, label or truth.

    Args:
      class_names: C names that may occur, besides `NO_CLASS`.

    Raises: DataError naming the row: no such file or column, an unknown class, one image under two classes; and for
      labels that labelwright wrote, which are what is to be verified.
    """
    path = Path(path).expanduser()
    fix = "give a column id and a column verified, with the true class of each image, as verify-sample writes them"
    by_hand = ("verified", *ROLES["truth"])
    wanted = {"id": ROLES["id"], "class": (*by_hand, *ROLES["label"]), "drawn": ("drawn",)}
    wanted |= {name: (name,) for name in ("probability", "decision")} | {"by_hand": by_hand}
    rows = read_sheet(path, wanted, fix=fix, optional=("drawn", "probability", "decision", "by_hand"))
    if rows and {"probability", "decision"} <= set(rows[0][1]) and "by_hand" not in rows[0][1]:
        raise DataError(f"{path} holds labels that labelwright wrote, and nobody verified them", fix=fix)
    of_name = dict.fromkeys(NO_CLASS, -1) | index_of(class_names)
    labels, n_blank = dict[str, int](), 0
    for where, texts in rows:
        one, text = texts["id"], texts["class"]
        if text is None:
            n_blank += 1
            continue
        if one is None:
            raise DataError(f"{where}: no id", fix="give every verified row the id of its image")
        at = class_of(text, of_name)
        if at is None:
            close = difflib.get_close_matches(text, of_name, n=1)
            hint = f"did you mean {close[0]}?" if close else f"classes: {', '.join(class_names[:12])}"
            raise DataError(f"{where}: {text!r} is not a class", fix=f"{hint} An image of no class: none")
        if labels.setdefault(one, at) != at:
            raise DataError(
                f"{where}: {one!r} was verified before, as another class", fix="keep one row of every image"
            )
    tokens = {text for _, texts in rows if (text := texts.get("drawn")) is not None}
    if len(tokens) > 1:
        raise DataError(
            f"{path}: its rows were drawn in {len(tokens)} different ways", fix="use the rows of one verify-sample"
        )
    return Verified(labels, n_blank, _drawn(tokens.pop(), path) if tokens else {}, path)


def _drawn(text: str, path: Path) -> dict[str, float]:
    try:
        pairs = dict(part.split("=", 1) for part in text.split())
        found = {key: float(pairs[key]) for key in DRAWN}
        if int(pairs["n"]) < 1 or int(pairs["seed"]) < 0:
            raise ValueError("a number below 0")
        check_shares(found["error"], found["confidence"])
        return found
    except (ValueError, KeyError, ConfigError) as error:
        raise DataError(
            f"{path}: the column drawn cannot be read: {text!r}", fix="leave it as verify-sample wrote it"
        ) from error


def strata(rows: pa.Table, verified: Verified, *, of: pa.Table | None = None) -> NDArray[np.int64]:
    """The stratum [N] that each label was drawn from, -1 where it could not have been drawn.

    Args:
      rows: labels that a promise is wanted of.
      verified: labels.
      of: the labels of the run that a sample was drawn from; None: ``rows``.

    Raises: DataError where the sample is not one of these labels.
    """
    is_open = is_predicted(rows) & ~_is(rows, "decision", "unknown")
    if not verified.drawn:
        return np.where(is_open, 0, -1)
    of = rows if of is None else of
    of = of.filter(pa.array(is_predicted(of)))
    n, error, confidence, seed = (verified.drawn[key] for key in DRAWN)
    sample = draw(_trust(of), int(n), error=error, confidence=confidence, seed=int(seed))
    ids = of["id"].cast(pa.string()).to_pylist()
    if not set(verified.labels) <= {ids[row] for row in sample.rows.tolist()}:
        raise DataError(
            f"{verified.path} was not drawn from these labels",
            fix="give the run that verify-sample drew it from: labelwright label RUN DATA --verified FILE",
        )
    of_id = dict(zip(ids, sample.stratum.tolist(), strict=True))
    found = [of_id.get(name, -1) for name in rows["id"].cast(pa.string()).to_pylist()]
    return np.where(is_open, np.array(found, np.int64), -1)


def is_predicted(rows: pa.Table) -> NDArray[np.bool_]:
    """[N] whether a label of a table is a prediction."""
    return _is(rows, "source", "predicted")


def _is(rows: pa.Table, column: str, word: str) -> NDArray[np.bool_]:
    """[N] whether a column holds a word."""
    return np.asarray(pc.fill_null(pc.equal(rows[column], word), False), bool)


def check_ids(verified: Verified, ids: Set[str]) -> None:
    """Refuse verified labels none of which is of these images.

    Raises: DataError.
    """
    if verified.labels and not verified.labels.keys() & ids:
        example = next(iter(verified.labels))
        raise DataError(
            f"{verified.path}: no id is of one of the {counted(len(ids), 'image')}, {example!r} for example",
            fix="ids must be those of labels.parquet, and the images those that were verified",
        )


def truths(rows: pa.Table, verified: Verified) -> NDArray[np.int64]:
    """What each predicted label should be: a class, -1 = no class, -2 = nobody looked.

    Raises: DataError where none of the images was verified.
    """
    ids = rows["id"].cast(pa.string()).to_pylist()
    check_ids(verified, set(ids))
    found = np.array([verified.labels.get(name, -2) for name in ids], np.int64)
    return np.where(is_predicted(rows), found, -2)


def recalibrated(
    calibration: Calibration, odds: torch.Tensor, rows: pa.Table, truth: NDArray[np.int64], class_names: Sequence[str]
) -> Calibration:
    """A calibration by verified labels, and by those that it rested on before.

    Args:
      odds: [N, T] that ``calibration`` was applied to, or [N, T + 1] with evidence.
      rows: what came of it.
      truth: [N], see `truths`.
    """
    seen = np.flatnonzero(truth > -2)
    right = _index(rows, class_names)[seen] == truth[seen]
    found = from_verified(calibration, odds, torch.from_numpy(seen), torch.from_numpy(right))
    return calibration if found is calibration else levelled(found, odds)


def promised_by(
    verified: Verified,
    rows: pa.Table,
    shown: pa.Table,
    truth: NDArray[np.int64],
    class_names: Sequence[str],
    shares: Mapping[str, float] | None,
    *,
    of: pa.Table | None = None,
) -> tuple[pa.Table, dict[str, Any] | None]:
    """Labels with the decisions that verified ones allow, and the block ``promise`` of summary.json.

    Args:
      rows: labels with the trust that they had before any was verified: it orders them.
      shown: the same with the trust that is to be shown.
      truth: [N], see `truths`.
      shares: error and confidence; None: nothing is to be promised.
      of: see `strata`.
    """
    accepted, block = np.zeros(len(rows), bool), None
    if shares is not None:
        labels, seen = _index(rows, class_names), truth > -2
        wrong = seen & (labels != truth)
        stratum = strata(rows, verified, of=of)
        error, confidence = shares["error"], shares["confidence"]
        found = promise(_trust(rows), labels, stratum, seen, wrong, error=error, confidence=confidence)
        accepted = found.accepted
        block = facts(found, shown, class_names, basis="verified labels", n_wrong=int(wrong.sum()), seen=seen, **shares)
        block = assumes(block, verified, int(seen.sum()))
    return decided(shown, accepted, truth, class_names), block


def by_place(block: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """The block as a saved model keeps it: thresholds [C] in class order, None where no label is accepted."""
    return {**block, "thresholds": [block["thresholds"].get(name) for name in class_names]}


def check_promised(model: SavedModel, run: Path, error: float, confidence: float) -> None:
    """Refuse a promise that a run does not make.

    Raises: ConfigError.
    """
    made = model.info.get("promise")
    if made is None or not made["n_accepted"] or made["error"] > error or made["confidence"] < confidence:
        raise ConfigError(
            f"{run} does not promise an error of {error:g} at a confidence of {confidence:g}",
            fix=f"verify some of these labels: labelwright verify-sample {run}; then add --verified to-verify.csv",
        )


def by_thresholds(
    rows: pa.Table, made: Mapping[str, Any], class_names: Sequence[str]
) -> tuple[pa.Table, dict[str, Any]]:
    """Labels decided by the thresholds of a run's promise, and what that is worth.

    Args:
      made: the promise that a model keeps, see `by_place`.
    """
    least = np.array([np.inf if value is None else value for value in made["thresholds"]])
    accepted = _trust(rows) >= least[_index(rows, class_names)]
    accepted &= ~_is(rows, "decision", "unknown")
    n = int(accepted.sum())
    named = {name: value for name, value in zip(class_names, made["thresholds"], strict=True) if value is not None}
    block = {
        **made,
        "thresholds": named,
        "n_predicted": len(rows),
        "n_accepted": n,
        "share_accepted": round(n / max(1, len(rows)), 4),
    }
    says = (
        f"{n:,} of {counted(len(rows), 'label')} may be accepted, if these images are like those of the run: its "
        f"thresholds promise at most {percent(made['error'])} wrong there, at a confidence of "
        f"{percent(made['confidence'])}."
    )
    block |= {"says": says, "assumes": "these images are like those of the run"}
    return decided(rows, accepted, None, class_names), block


def by_held_out(
    rows: pa.Table, held: pa.Table, truth: NDArray[np.int64], class_names: Sequence[str], **shares: float
) -> Promise | str:
    """What labelled images that were held back promise of the predicted labels; a text: why nothing.

    Args:
      rows: the predicted labels, and others, of which nothing is promised.
      held: predictions of the images held back [n].
      truth: [n] their labels.
    """
    apart = np.flatnonzero(is_predicted(rows))
    if not len(apart):
        return "there are no predicted labels"
    trust, trust_held = _trust(rows)[apart], _trust(held)
    from scipy.stats import ks_2samp  # takes a second to load

    if ks_2samp(trust, trust_held).pvalue < HELD_OUT_ALIKE:
        return f"the {counted(len(held), 'labelled image')} held back are not like the others: their trust is another"
    both = np.concatenate([_index(rows, class_names)[apart], _index(held, class_names)])
    seen = np.arange(len(both)) >= len(apart)
    wrong = np.concatenate([np.zeros(len(apart), bool), both[len(apart) :] != truth])
    every, stratum = np.concatenate([trust, trust_held]), np.zeros(len(both), np.int64)
    found = promise(every, both, stratum, seen, wrong, n_apart=len(held), **shares)
    accepted = np.zeros(len(rows), bool)
    accepted[apart] = found.accepted[: len(apart)]
    return dataclasses.replace(found, accepted=accepted)


def decided(
    rows: pa.Table, accepted: NDArray[np.bool_], truth: NDArray[np.int64] | None, class_names: Sequence[str]
) -> pa.Table:
    """Labels with their decision, and with the class that somebody saw in place of the predicted one.

    Args:
      rows: with the trust that is to be shown.
      accepted: [N] of predicted labels.
      truth: [N], see `truths`; None: nobody looked.

    Returns: ``source`` is "verified" where somebody looked, ``trust`` 1 there; of an image of no class the label stays,
      with trust 0, and the decision is "unknown".
    """
    seen = np.zeros(len(rows), bool) if truth is None else truth > -2
    trust = _trust(rows)
    is_accepted = np.where(_is(rows, "source", "given"), trust >= 0.5, accepted) | seen
    decision = np.where(_is(rows, "decision", "unknown"), 2, is_accepted.astype(np.int8))
    found = dict[str, Any]()
    if truth is not None:
        known, none = truth >= 0, truth == -1
        right = pa.array(class_names, pa.string()).take(pa.array(truth.clip(0)))
        found["label"] = pc.if_else(pa.array(known), right, rows["label"])
        same = pc.fill_null(pc.equal(rows["runner_up"], found["label"]), False)
        found["runner_up"] = pc.if_else(pc.and_(same, pa.array(known)), rows["label"], rows["runner_up"])
        found["source"] = pc.if_else(pa.array(seen), "verified", rows["source"])
        decision = np.where(known, 1, np.where(none, 2, decision))
        trust = np.where(known, 1.0, np.where(none, 0.0, trust))
    found["decision"] = coded(torch.from_numpy(decision.astype(np.int32)), DECISIONS)
    for key, values in found.items():
        rows = rows.set_column(rows.schema.get_field_index(key), key, values)
    for key in ("trust", "probability"):
        rows = rows.set_column(rows.schema.get_field_index(key), key, pa.array(trust.astype(np.float32)))
    return rows


def facts(
    found: Promise | str,
    rows: pa.Table,
    class_names: Sequence[str],
    *,
    basis: str,
    n_wrong: int,
    seen: NDArray[np.bool_] | None = None,
    **shares: float,
) -> dict[str, Any]:
    """The block ``promise`` of summary.json.

    Args:
      found: the promise, or why there is none.
      rows: labels with the trust that is shown, before any was corrected.
      basis: "verified labels" or "held-out labels".
      n_wrong: of the labels that it rests on.
      seen: [N], rows whose label was verified.
      shares: error and confidence.
    """
    n = int(is_predicted(rows).sum())
    block: dict[str, Any] = {**shares, "basis": basis, "n_verified": 0, "n_wrong": n_wrong, "n_predicted": n}
    block |= {"threshold": None, "thresholds": {}, "n_accepted": 0, "share_accepted": 0.0, "more": None}
    error, sure = percent(shares["error"]), percent(shares["confidence"])
    if isinstance(found, str):
        return block | {"says": f"Nothing is promised: {found}."}
    trust, labels, accepted = _trust(rows), _index(rows, class_names), found.accepted
    n_accepted = int(accepted.sum())
    block |= {
        "n_verified": found.n_verified,
        "n_accepted": n_accepted,
        "share_accepted": round(n_accepted / max(1, n), 4),
    }
    by = f"{counted(found.n_verified, basis.removesuffix('s'))}, {n_wrong:,} of them wrong"
    more = enough(trust[is_predicted(rows)], max(1, found.n_verified), **shares)
    if more is not None and more[1] > n_accepted / max(1, n):
        block["more"] = {"n": more[0], "share": round(more[1], 4)}
    if n_accepted:
        least = {c: float(trust[accepted & (labels == c)].min()) for c in np.unique(labels[accepted])}
        block["threshold"] = min(least.values())
        block["thresholds"] = {class_names[c]: value for c, value in least.items()}
        left = [class_names[c] for c in np.setdiff1d(labels[is_predicted(rows)], list(least))]
        but = f" Left to review: all labels of {', '.join(left[:5])}{' …' * (len(left) > 5)}." if left else ""
        n_seen = 0 if seen is None else int((accepted & seen).sum())
        known = f", {'all' if n_seen == n_accepted else f'{n_seen:,}'} of them verified ones" if n_seen else ""
        says = (
            f"{n_accepted:,} of {counted(n, 'predicted label')} ({percent(n_accepted / n)}) may be accepted{known}: "
            f"with a confidence of {sure} at most {error} of them are wrong, by {by}.{but}"
        )
    else:
        says = f"No label may be accepted: {by}, do not show that at most {error} are wrong, at a confidence of {sure}."
        says += (
            " No number of verified labels would, if trust is right."
            if more is None
            else f" About {more[0]:,} could, for {percent(more[1])} of the labels, if trust is right."
        )
    return block | {"says": says}


def assumes(block: dict[str, Any], verified: Verified | None, n_known: int) -> dict[str, Any]:
    """The block with what the promise takes for granted, and what of the file was not used.

    Args:
      verified: None: labels held out.
      n_known: verified labels that are of these images.
    """
    if verified is None:
        return block | {
            "assumes": "labelled images were drawn at random from all images: not evenly per class, not the easy ones"
        }
    drawn = "as verify-sample drew them" if verified.drawn else "as any others: a random sample of the predicted labels"
    words = [f"the verified images are {drawn}"]
    if verified.n_blank:
        words.append(f"the {counted(verified.n_blank, 'row')} left blank were not left for being hard")
    counts = {"n_blank": verified.n_blank, "n_elsewhere": len(verified.labels) - n_known}
    return block | {"assumes": "; ".join(words), **counts}


def _labels_of(run: Run) -> pa.Table:
    run.summary  # noqa: B018 - says so of a run that has not finished
    if run.labels is None:
        raise DataError(f"no labels.parquet in {run.path}", fix="give the folder of a finished fit")
    return run.labels


def _trust(rows: pa.Table) -> NDArray[np.float64]:
    return np.asarray(rows["trust"]).astype(np.float64)


def _index(rows: pa.Table, class_names: Sequence[str]) -> NDArray[np.int64]:
    of_name = {name: c for c, name in enumerate(class_names)}
    return np.array([of_name[name] for name in rows["label"].to_pylist()], np.int64)
