"""`audit`: which labels and images deserve a look before anything is learned from them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from labelwright.arguments import check_arguments
from labelwright.data.cache import open_pixels
from labelwright.data.checks import OnBad
from labelwright.data.columns import named_columns
from labelwright.data.images import Decoding
from labelwright.data.looks import Looks, look_at, numbered
from labelwright.data.prepare import (
    Source,
    check_groups,
    class_list,
    for_scoring,
    is_embeddings,
    listed,
    open_embeddings,
    read,
    resolved_path,
)
from labelwright.data.stored import EmbeddingViews
from labelwright.data.table import SPLITS, LabelTable
from labelwright.data.views import ViewSettings
from labelwright.encoders import at_hand
from labelwright.encoders.embed import embed, load_encoder
from labelwright.encoders.resnets import OWN
from labelwright.errors import ConfigError, DataError
from labelwright.labels import audit as pieces
from labelwright.labels.chunks import evenly_spread
from labelwright.launch import rank
from labelwright.pipeline.audit_shards import audit_shards
from labelwright.pipeline.copies import copies_of, has_two_labels, near_pairs
from labelwright.pipeline.job import scales_notice
from labelwright.pipeline.no_network import COLOURS
from labelwright.pipeline.settings import check_values
from labelwright.replacing import disk_errors, new_output
from labelwright.run_folder import Run, write_parquet_atomically
from labelwright.scale.places import is_url
from labelwright.scale.shards import listed_once
from labelwright.scale.tables import Reading
from labelwright.scale.work import is_sharded
from labelwright.spreadsheet import write_csv
from labelwright.train.column_scales import SCALED_ROWS, column_scales
from labelwright.train.processes import accelerator_for
from labelwright.train.scaling import centre_and_scale

KINDS = {
    "wrong": ("wrong_label",),
    "duplicates": ("exact_copy", "near_copy"),
    "two_labels": ("two_labels",),
    "copies_in_test": ("copy_in_test",),
    "outliers": ("outlier",),
    "odd": ("dark", "blank", "blurred", "tiny", "odd_aspect"),
    "alike": (),
}
"""What ``--fail-on`` can name -> the flags of rows that it means; ``alike``: classes that look like one."""

WORST_SHOWN = 20
_NOT_JUDGED = "labels were not judged: that takes features, and labels of two classes"
TINY_FRAC = 0.25  # of the median shorter side
ODD_ASPECT = 2.5  # times wider or higher than the median image


@dataclass(frozen=True)
class Audit:
    """What `audit` found.

    Attributes:
      rows: one row per image, see `audit`.
      summary: counts, the worst labels, classes that look like one, notices; JSON-ready.
      failed: those of ``fail_on`` that were found.
    """

    rows: pa.Table
    summary: dict[str, Any]
    failed: tuple[str, ...]


class HasTable(Protocol):
    """A part of the data."""

    @property
    def table(self) -> LabelTable:
        """Of its images."""


@dataclass(frozen=True)
class _Part:
    """The images of one source; features and looks where there are any."""

    table: LabelTable
    feats: torch.Tensor | None
    looks: Looks | None


@check_arguments
def audit(
    data: Any,
    *,
    run: str | Path | None = None,
    test: Any = None,
    model: str = "auto",
    classes: Any = None,
    group: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    out: str | Path | None = None,
    fail_on: Sequence[str] | str = (),
    on_bad: OnBad = "stop",
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    largest_image: float = 179.0,
    engine: str = "local",
    shard_rows: int | None = None,
) -> Audit:
    """Find labels that are probably wrong, copies, classes that look like one, outliers and odd images.

    Args:
      data: images or embeddings with labels for all, some or none of them; see data.read.load.
      run: a finished run whose pretrained model is taken; what its classifier says is not: it may have learned these
        labels. Labels are judged by classifiers on the model's features that did not see them.
      test: images to score on, looked through for copies of the others; None = those that the data calls test.
      model: pretrained model whose features are compared; "auto" = one that is on this machine, else
        colours and edges (of shards none), "none" = none.
        Embeddings are compared as they are.
      image_column, label_column, split_column: columns of a table that are called otherwise.
      classes, group, on_bad, seed, device, precision, largest_image: see `fit`.
      out: .csv or .parquet file for the rows; must not exist. None writes nothing.
      engine, shard_rows: see `label`; ``out`` is then a folder. Labels are judged by heads on a sample, without
        neighbours, and copies are those of equal content; near copies, blurred, tiny and odd-shaped images are not
        looked for. ``rows`` are the worst labels alone.
      fail_on: kinds of KINDS, in a list or with commas; ``failed`` says which were found.

    Returns: rows with ``id``, ``path`` of files, ``split``, ``label``; ``label_score``, the estimated chance that the
      label is right, with ``suspected_label``, the most probable other class, and its ``suspected_probability``;
      ``duplicate_group``, the same number for copies of one picture; ``is_copy_in_test``; ``outlier_score``, the
      distance to the nearest images over its median; ``flags``.

    Raises: DataError or ConfigError, with nothing written.

    Example: an image and its copy under another label.
      >>> import tempfile
      >>> from PIL import Image
      >>> folder = Path(tempfile.mkdtemp())
      >>> for name, grey in (("cat", 90), ("dog", 90), ("dog", 200)):
      ...     (folder / name).mkdir(exist_ok=True)
      ...     _ = Image.new("L", (8, 8), grey).save(folder / name / f"{grey}.png")
      >>> found = audit(folder, model="none", fail_on="two_labels,odd")
      >>> found.rows["duplicate_group"].to_pylist(), found.failed
      ([0, None, 0], ('two_labels', 'odd'))
    """
    began = time.monotonic()
    check_values(group=group, image_column=image_column, label_column=label_column, split_column=split_column)
    check_values(seed=seed, device=device, precision=precision)
    wanted = _kinds(fail_on)
    if is_sharded(data, engine=engine, shard_rows=shard_rows):
        if out is None or test is not None:
            raise ConfigError(
                "an audit over shards writes a folder, and reads test images from the column split",
                fix="give --out a folder, and leave --test out",
            )
        model = model if run is None else _model_of(Run(run), model, is_stored=False)
        columns = named_columns(image=image_column, label=label_column, split=split_column, group=group)
        names = class_list(classes)
        decoding = Decoding.chosen(largest_image=largest_image)
        how = Reading(tuple(columns.items()), False, None if names is None else tuple(names), on_bad, decoding)
        return _over_shards(data, str(out), how, wanted, model, device, precision, engine, shard_rows)
    target = None if out is None else new_output(out, ".csv", ".parquet")
    model = model if run is None else _model_of(Run(run), model, is_stored=is_embeddings(data))
    notices: list[str] = []
    columns = named_columns(image=image_column, label=label_column, split=split_column)
    if is_embeddings(data):
        columns |= named_columns(group=group)
        parts, name = _embedded(data, test, model, classes, columns, on_bad, notices), "embeddings as given"
        check_groups(parts[0].table, group, data)
    else:
        decoding = Decoding.chosen(largest_image=largest_image)
        parts, name = _seen(data, test, model, classes, group, columns, on_bad, device, precision, notices, decoding)
    first = parts[0].table
    notices += [sentence for part in parts for sentence in part.table.how_read]
    labels = np.concatenate([part.table.labels for part in parts]).astype(np.int64)
    groups = groups_of(parts)
    is_test = np.concatenate([_is_test(part.table, i) for i, part in enumerate(parts)])
    n = len(labels)
    feats = None if parts[0].feats is None else torch.cat([part.feats for part in parts if part.feats is not None])
    near = None
    if feats is not None:
        near = neighbours_of(feats)
    looks = _joined_looks(parts)
    content = numbered(row.tobytes() for row in _rows_of(feats)) if looks is None else numbered(looks.digests)
    exact = np.bincount(content)[content] > 1
    pairs = near_pairs(None if looks is None else looks.thumbs, near)
    copies = copies_of(content, pairs)
    judged = None
    if feats is not None and near is not None and (labels >= 0).any():
        judged = pieces.judge_labels(
            feats,
            torch.from_numpy(labels),
            near,
            n_classes=len(first.class_names),
            groups=None if groups is None else torch.from_numpy(groups),
            seed=seed,
        )
    if judged is None and feats is not None:
        notices.append("labels were not judged: that takes two labelled images of each of two classes")
    two_labels = has_two_labels(copies, labels)
    in_test = np.isin(copies, copies[is_test & (copies >= 0)]) & (copies >= 0) & ~is_test
    flags = {
        **({} if judged is None else {"wrong_label": judged.is_suspected.numpy()}),
        "exact_copy": exact,
        "near_copy": (copies >= 0) & ~exact,
        "two_labels": two_labels,
        "copy_in_test": in_test,
        **_odd(looks, near),
    }
    alike = [] if judged is None else pieces.named_pairs(judged.alike, first.class_names)
    rows = _table(parts, labels, is_test, judged, copies, in_test, near, flags)
    counts = {flag: int(marked.sum()) for flag, marked in flags.items()}
    if judged is None and any(kind in ("wrong", "alike") for kind in wanted):
        raise ConfigError(f"--fail-on wrong or alike cannot be looked for: {notices[-1]}", fix="leave that kind out")
    failed = tuple(k for k in wanted if any(counts.get(flag) for flag in KINDS[k]) or (k == "alike" and alike))
    summary = {
        "n_images": n,
        "n_labelled": int((labels >= 0).sum()),
        "n_classes": len(first.class_names),
        "n_test": int(is_test.sum()),
        "features": name,
        "counts": counts,
        "estimated_wrong": None if judged is None else round(judged.wrong_frac, 4),
        "agreement": None if judged is None else round(judged.agreement, 4),
        "n_duplicate_groups": int(copies.max(initial=-1)) + 1,
        "worst": _worst(rows),
        "alike": alike,
        "notices": notices,
        "left_out": listed([p for part in parts for p in part.table.quarantined]),
        "failed": list(failed),
        "seconds": round(time.monotonic() - began, 1),
    }
    if target is not None and not rank():
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".csv":
            write_csv(rows, target)
        else:
            write_parquet_atomically(rows, target)
    return Audit(rows, summary, failed)


def _over_shards(
    data: Any,
    out: str,
    how: Reading,
    wanted: Sequence[str],
    model: str,
    device: str,
    precision: str,
    engine: str,
    shard_rows: int | None,
) -> Audit:
    """`audit` of more rows than memory holds."""
    began = time.monotonic()
    found = at_hand.at_hand() if model == "auto" else None
    name = found.model if found is not None else "none" if model == "auto" else model
    given = listed_once(data, n_rows=shard_rows)
    first = given.shards[0]
    name = "none" if first.kind in ("npy", "npz") or is_embeddings(first.place) else name
    done, all_of_them, worst = audit_shards(
        given,
        out if is_url(out) else str(Path(out).expanduser().resolve()),
        how,
        model=name,
        device=device,
        precision=precision,
        engine=engine,
    )
    counts = {flag: int(done.counts[flag]) for flags in KINDS.values() for flag in flags if flag in done.counts}
    names = all_of_them.class_names
    n_judged = done.counts.get("n_judged", 0)
    alike = pieces.named_pairs(torch.from_numpy(all_of_them.alike), names) if n_judged else []
    failed = tuple(k for k in wanted if any(counts.get(flag) for flag in KINDS[k]) or (k == "alike" and alike))
    summary = {
        "n_images": done.n_images,
        "n_labelled": int(done.counts.get("n_labelled", 0)),
        "n_classes": len(names),
        "n_test": int(done.counts.get("n_test", 0)),
        "features": "embeddings as given" if all_of_them.judge is not None and name == "none" else name,
        "counts": counts,
        "estimated_wrong": round(done.counts["sum_wrong"] / n_judged, 4) if n_judged else None,
        "agreement": None,
        "n_duplicate_groups": int(all_of_them.group.max(initial=-1)) + 1,
        "worst": worst.to_pylist(),
        "alike": alike,
        "notices": [*done.notices, *([] if n_judged else [_NOT_JUDGED])],
        "left_out": list(done.left_out),
        "failed": list(failed),
        "n_shards": done.n_shards,
        "seconds": round(time.monotonic() - began, 1),
    }
    return Audit(worst, summary, failed)


def _kinds(fail_on: Sequence[str] | str) -> list[str]:
    given: list[Any] = list(fail_on) if isinstance(fail_on, (list, tuple)) else [fail_on]
    if odd := [words for words in given if not isinstance(words, str)]:
        raise ConfigError(f"--fail-on {odd[0]!r} is not possible", fix=f"some of {', '.join(KINDS)}")
    kinds = [kind for words in given for kind in words.replace("-", "_").split(",") if kind]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"--fail-on {unknown[0]} is not possible", fix=f"some of {', '.join(KINDS)}")
    return kinds


def _model_of(run: Run, model: str, *, is_stored: bool) -> str:
    """The pretrained model of a run, to compare images by."""
    if model != "auto":
        raise ConfigError("--run and --model both name a model", fix="leave one of them out")
    own = run.summary["encoder"]
    if is_stored:
        return model
    if own in ("none", *OWN):
        what = f"{own} learned the labels from pixels" if own in OWN else "it was given embeddings"
        raise ConfigError(
            f"the run in {run.path} has no pretrained model to compare images by: {what}",
            fix="leave --run out, or name a pretrained --model",
        )
    return str(own)


# ---- what there is --------------------------------------------------------------------------------------------------


def _embedded(
    data: Any, test: Any, model: str, classes: Any, columns: Mapping[str, str], on_bad: OnBad, notices: list[str]
) -> list[_Part]:
    if model not in ("auto", "none"):
        raise ConfigError(f"the data are embeddings: --model {model} has nothing to work on", fix="leave --model out")
    sources = [open_embeddings(data, classes=classes, columns=columns, on_bad=on_bad)]
    if test is not None:
        sources.append(open_embeddings(test, classes=sources[0].table.class_names or None, on_bad=on_bad))
    feats = [clean_feats(source) for source in sources]
    widths = [each.shape[1] for each in feats]
    if len(set(widths)) > 1:
        raise DataError(
            f"{resolved_path(test)} holds {widths[1]} features, {resolved_path(data)} {widths[0]}",
            fix="embed test and training data with the same model",
        )
    labels = torch.from_numpy(np.concatenate([source.table.labels for source in sources]).astype(np.int64))
    rows = evenly_spread(torch.arange(len(labels)), SCALED_ROWS)
    scales = column_scales(torch.cat(feats)[rows], labels[rows])
    notices += scales_notice(scales)
    if scales is not None:
        feats = [each / scales for each in feats]
    return [_Part(source.table, each, None) for source, each in zip(sources, feats, strict=True)]


def _seen(
    data: Any,
    test: Any,
    model: str,
    classes: Any,
    group: str | None,
    columns: Mapping[str, str],
    on_bad: OnBad,
    device: str,
    precision: str,
    notices: list[str],
    decoding: Decoding,
) -> tuple[list[_Part], str]:
    if model in OWN:
        raise ConfigError(f"{model} has random weights, whose features say nothing", fix="name a pretrained --model")
    found = (at_hand.at_hand() or COLOURS) if model == "auto" else None
    where = accelerator_for(device).device
    name = found.model if found is not None else model
    # A model that is not there should not wait for the images.
    encoder = None if name == "none" else load_encoder(name, device=where, precision=precision)
    tables = [read(data, classes=classes, group=group, columns=columns, decoding=decoding)]
    if test is not None:
        if is_embeddings(test):
            raise DataError(f"{resolved_path(test)} holds embeddings, the data images", fix="give both in one form")
        names, decoding = tables[0].class_names or None, tables[0].images.decoding or decoding
        tables.append(for_scoring(read(test, classes=names, columns=columns, like=tables[0], decoding=decoding)))
    parts = []
    for table in tables:
        kept, looks = look_at(table, on_bad=on_bad)
        feats = None
        if encoder is not None:
            pixels = open_pixels(kept, size_px=encoder.stats.size_px, limit_gb=16.0)
            view = ViewSettings(mean=encoder.stats.mean, std=encoder.stats.std)
            feats = clean_feats(
                embed(
                    Source(kept, pixels, torch.arange(len(kept))), encoder, view, n_views=0, device=where, shared=True
                )
            )
        parts.append(_Part(kept, feats, looks))
    if encoder is None:
        notices.append(
            "--model none: copies are looked for in small grey pictures; wrong labels, classes that look like one and "
            "outliers need features, of --model openai/clip-vit-base-patch32 or of another model"
        )
    elif found is COLOURS:
        notices.append(f"no pretrained network is at hand: seen as colours and edges; {at_hand.PRETRAINED_HELPS}")
    return parts, "none" if encoder is None else (found.name if found is not None else model)


def clean_feats(source: Source) -> torch.Tensor:
    """[N, D] float32 features of every row."""
    assert source.stored is not None
    chunks = list(EmbeddingViews(source.stored, rows=source.rows).feats())
    return torch.cat(chunks) if chunks else torch.zeros(0, source.stored.n_features)


def _rows_of(feats: torch.Tensor | None) -> npt.NDArray[np.float32]:
    assert feats is not None, "data without looks are embeddings"
    return np.asarray(feats.numpy() + 0.0, dtype=np.float32)  # no negative zero


def groups_of(parts: Sequence[HasTable]) -> npt.NDArray[np.int64] | None:
    """Groups of all parts, those of each its own; a part without groups has a group per row."""
    if all(part.table.groups is None for part in parts):
        return None
    found, n = [], 0
    for part in parts:
        groups = part.table.groups
        dense = np.arange(len(part.table)) if groups is None else np.unique(groups, return_inverse=True)[1]
        found.append(dense + n)
        n += int(dense.max(initial=-1)) + 1
    return np.concatenate(found).astype(np.int64)


def _is_test(table: LabelTable, part: int) -> npt.NDArray[np.bool_]:
    if part:
        return np.ones(len(table), dtype=bool)
    return _none(len(table)) if table.split is None else np.asarray(table.split == SPLITS.index("test"))


def _none(n: int) -> npt.NDArray[np.bool_]:
    return np.zeros(n, dtype=bool)


def _joined_looks(parts: Sequence[_Part]) -> Looks | None:
    looks = [part.looks for part in parts if part.looks is not None]
    if not looks:
        return None
    return Looks(
        [digest for each in looks for digest in each.digests],
        np.concatenate([each.sides_px for each in looks]),
        np.concatenate([each.thumbs for each in looks]),
    )


# ---- what is found --------------------------------------------------------------------------------------------------


def neighbours_of(feats: torch.Tensor) -> pieces.Neighbours:
    """The nearest rows of each of the features [N, D], in their directions from the mean."""
    mean, scale = centre_and_scale(feats)
    return pieces.nearest(F.normalize((feats.float() - mean) / scale, dim=1), k=pieces.N_NEIGHBOURS)


def _odd(looks: Looks | None, near: pieces.Neighbours | None) -> dict[str, npt.NDArray[np.bool_]]:
    """Flags of images that are unlike all others, or show little."""
    flags = {}
    if near is not None:
        flags["outlier"] = pieces.far_out(_distance(near))
    if looks is not None:
        flat = looks.thumbs.reshape(len(looks.thumbs), -1)
        spread = flat.std(axis=1)
        short, aspect = looks.sides_px.min(axis=1), np.log(looks.sides_px[:, 0] / looks.sides_px[:, 1].clip(min=1))
        flags["dark"] = np.quantile(flat, 0.95, axis=1) < pieces.DARK_GREY
        flags["blank"] = spread < pieces.BLANK_SPREAD
        flags["blurred"] = pieces.far_out(np.log(pieces.sharpness(looks.thumbs)), low=True) & ~flags["blank"]
        flags["tiny"] = short < TINY_FRAC * np.median(short)
        flags["odd_aspect"] = np.abs(aspect - np.median(aspect)) > np.log(ODD_ASPECT)
    return flags


def _distance(near: pieces.Neighbours) -> npt.NDArray[np.float64]:
    """[N] mean distance to the nearest images, over its median."""
    there = near.rows >= 0
    gaps = torch.where(there, (2 - 2 * near.sims).clamp(min=0).sqrt(), 0.0)
    found = (gaps.sum(1) / there.sum(1).clamp(min=1)).double().numpy()
    return np.asarray(found / max(float(np.median(found)), 1e-9))


def _table(
    parts: Sequence[_Part],
    labels: npt.NDArray[np.int64],
    is_test: npt.NDArray[np.bool_],
    judged: pieces.Judged | None,
    copies: npt.NDArray[np.int64],
    in_test: npt.NDArray[np.bool_],
    near: pieces.Neighbours | None,
    flags: dict[str, npt.NDArray[np.bool_]],
) -> pa.Table:
    n, names = len(labels), pa.array(parts[0].table.class_names, pa.string())
    columns: dict[str, Any] = {"id": pa.concat_arrays([part.table.ids for part in parts])}
    if parts[0].looks is not None and all(part.table.images.dataset is None for part in parts):
        columns["path"] = [path for p in parts for path in p.table.images.sources(np.arange(len(p.table)))]
    columns["split"] = np.where(is_test, "test", "train")
    columns["label"] = names.take(pa.array(labels, mask=labels < 0))
    if judged is not None:
        suggested = judged.suggested.numpy()
        columns["label_score"] = pa.array(judged.score.numpy(), from_pandas=True)
        columns["suspected_label"] = names.take(pa.array(suggested, mask=suggested < 0))
        columns["suspected_probability"] = pa.array(judged.probability.numpy(), from_pandas=True)
    columns["duplicate_group"] = pa.array(copies, mask=copies < 0)
    columns["is_copy_in_test"] = in_test
    if near is not None:
        columns["outlier_score"] = _distance(near).astype(np.float32)
    marked = [np.flatnonzero(flags[flag]) for flag in flags]
    words: list[list[str]] = [[] for _ in range(n)]
    for flag, rows in zip(flags, marked, strict=True):
        for row in rows.tolist():
            words[row].append(flag)
    columns["flags"] = pa.array([",".join(each) for each in words], pa.string())
    return pa.table(columns)


def _worst(rows: pa.Table) -> list[dict[str, Any]]:
    """The labels that are most probably wrong."""
    if "label_score" not in rows.column_names:
        return []
    suspected = rows.filter(pc.match_substring(rows["flags"], "wrong_label")).sort_by("label_score")
    keys = ["id", "label", "suspected_label", "label_score", "suspected_probability"]
    return list(suspected.select(keys).slice(0, WORST_SHOWN).to_pylist())
