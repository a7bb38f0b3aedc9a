"""`classes`: discovered classes of a finished run renamed, merged or dropped, in model, labels and report alike."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from labelwright.arguments import check_arguments
from labelwright.data.columns import named_columns
from labelwright.data.prepare import Source, beyond, open_embeddings, open_source, resolved_path
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError, DataError
from labelwright.labels.clusters import about_clusters
from labelwright.metrics.scores import open_scores, truth_beyond
from labelwright.pipeline.evaluate import evaluate
from labelwright.pipeline.gallery import samples_of
from labelwright.pipeline.label import rename_in_run
from labelwright.pipeline.label_rows import label_rows
from labelwright.pipeline.novel import feats_of_views
from labelwright.pipeline.promises import decided
from labelwright.pipeline.report import report
from labelwright.pipeline.saved_model import SavedModel, change_classes, load_model, renamed, write_card
from labelwright.reporting.checks import to_check
from labelwright.reporting.gallery import (
    LARGE_CHARS,
    LARGE_PX,
    SMALL_CHARS,
    SMALL_PX,
    pictures,
    read_gallery,
    rename_in_gallery,
    write_gallery,
)
from labelwright.reviewing.edits import recorded
from labelwright.run_folder import Run, write_parquet_atomically
from labelwright.train.predict import answer
from labelwright.train.processes import accelerator_for
from labelwright.trust.calibration import expected_accuracy

BEFORE = "the score of held-out test images is of the classes as they were found, before some were merged or dropped"
Action = Literal["rename", "merge", "drop"]


@check_arguments
def classes(
    run: str | Path,
    action: Action,
    names: Sequence[str],
    *,
    data: Any = None,
    device: str = "auto",
    precision: str = "auto",
) -> Run:
    """Rename, merge or drop discovered classes of a finished run: its model, labels.parquet, summary and report.

    Args:
      run: a finished run folder that looked for new classes.
      action: rename OLD NEW; merge A B [C ...]: B and C become A, which may be a named class, and their probabilities
        are added up; drop A [B ...]: their images go to the next most probable class.
      names: of the classes, as the action takes them.
      data: the images that the run was trained on, if they are no longer where config.yaml has them; merge and drop
        label them anew. Given labels stay.
      device, precision: where and how to compute.

    Returns: the run. Every file is written whole, the model's last but for the report: if it is stopped before, the
      same command does it again. The training checkpoint and config.yaml stay as they are: `fit --resume` leaves a
      finished run alone, `fit --config` trains one with the classes as they were found.

    Raises: ConfigError naming the class that is not there, or is no discovered one; DataError without the images.
      Nothing is written then.
    """
    return changed_classes(run, action, names, data=data, device=device, precision=precision)


def changed_classes(
    run: str | Path,
    action: Action,
    names: Sequence[str],
    *,
    data: Any,
    device: str = "auto",
    precision: str = "auto",
    is_of_page: bool = False,
    key: str = "",
) -> Run:
    """`classes`, for the page of `review` as well: is_of_page and key as `reviewing.edits.recorded` takes them."""
    with Run(run).held() as folder:
        saved = load_model(folder.path / "model", device=accelerator_for(device).device)
        n_seen = saved.info.get("n_seen")
        if n_seen is None:
            raise ConfigError(f"{run} has no discovered classes", fix="give a run of fit --novel that found some")
        _check(action, names, saved.class_names, int(n_seen))
        if action == "rename":
            named = renamed(saved.class_names, {names[0]: names[1]})
            names = [names[0], named[saved.class_names.index(names[0])]]
        with recorded(folder.path, action, names, is_of_page=is_of_page, key=key):
            return _changed(folder, saved, action, names, data=data, device=device, precision=precision)


def _changed(
    folder: Run, saved: SavedModel, action: Action, names: Sequence[str], *, data: Any, device: str, precision: str
) -> Run:
    """`classes` of a run that is held, and of names that were checked."""
    run, n_seen = folder.path, int(saved.info["n_seen"])
    if action == "rename":
        rename_in_run(run, saved.class_names, {names[0]: names[1]})
        return Run(run)
    target = names[0] if action == "merge" else None
    gone = set(names[1:] if action == "merge" else names)
    kept = tuple(name for name in saved.class_names if name not in gone)
    at = {
        name: kept.index(name) if name in kept else kept.index(target) if target else -1 for name in saved.class_names
    }
    before = saved.outputs or tuple(range(len(saved.class_names)))
    outputs = tuple(at[saved.class_names[c]] if c >= 0 else -1 for c in before)
    edited = replace(saved, class_names=kept, outputs=outputs)
    words = f"merged into {target}: {', '.join(names[1:])}" if target else f"dropped: {', '.join(names)}"
    _label_again(folder, edited, at, words, n_seen, data=data, device=device, precision=precision)
    change_classes(folder.path / "model", kept, outputs)
    _score_again(folder, at, device=device, precision=precision)
    write_card(folder.path / "model", folder.read("summary.json"))
    report(run)
    return Run(run)


def _check(action: str, names: Sequence[str], known: Sequence[str], n_seen: int) -> None:
    """Refuse what is no discovered class, or not the number of names that the action takes."""
    if action not in ("rename", "merge", "drop"):
        raise ConfigError(f"classes can be renamed, merged or dropped, not {action!r}", fix="rename, merge or drop")
    wanted = {"rename": len(names) == 2, "merge": len(names) >= 2, "drop": len(names) >= 1}
    usage = {"rename": "rename OLD NEW", "merge": "merge KEPT OTHER ...", "drop": "drop NAME ..."}
    if not wanted[action] or len(set(names)) < len(names):
        raise ConfigError(f"{action} takes other names than {', '.join(names) or 'none'}", fix=usage[action])
    may_be_named = names[0] if action == "merge" else None
    for name in names[:1] if action == "rename" else names:
        if name not in known:
            raise ConfigError(f"the model has no class {name!r}", fix=f"its classes: {', '.join(known[-12:])}")
        if name in known[:n_seen] and name != may_be_named:
            raise ConfigError(
                f"{name!r} is a class that your labels name, and only discovered ones are changed",
                fix=f"discovered: {', '.join(known[n_seen:]) or 'none'}; to change your own, change the labels",
            )


def _source(run: Run, saved: SavedModel, data: Any) -> Source:
    """The images of a run."""
    columns = _columns(run)
    if data is None:
        data = run.config.get("data")
    elif not (isinstance(data, (str, Path)) and Path(data).is_file()):  # moved into a folder, or in memory
        columns = {}
    how: dict[str, Any] = {"classes": None, "on_bad": "skip"}
    try:
        if saved.size_px == 0:
            return open_embeddings(data, columns=columns, **how)
        return open_source(data, columns=columns, size_px=saved.size_px, decoding=saved.decoding, **how)
    except DataError as error:
        raise DataError(
            f"the images of the run cannot be read from {resolved_path(data)} ({error})",
            fix="give them with --data; rename needs none",
        ) from error


def _columns(run: Run) -> dict[str, str]:
    """Role -> column, of those that the settings of the run name for images and labels."""
    return named_columns(image=run.config.get("image_column"), label=run.config.get("label_column"))


def _label_again(
    run: Run, saved: SavedModel, at: dict[str, int], words: str, n_seen: int, *, data: Any, device: str, precision: str
) -> None:
    """labels.parquet, gallery.json and summary.json by the changed model; given labels stay.

    Args: at, class name before -> number now, -1 = gone.
    """
    old = run.labels
    assert old is not None
    source = _source(run, saved, data)
    place = {key: row for row, key in enumerate(source.table.ids.to_pylist())}
    ids = old["id"].to_pylist()
    if missing := [key for key in ids if key not in place]:
        raise DataError(
            f"{len(missing)} images of the run are not in {resolved_path(data or run.config.get('data'))}, "
            f"first {missing[0]!r}",
            fix="give the images that it was trained on, with --data",
        )
    rows = torch.tensor([place[key] for key in ids])
    source, named = source.take(rows.numpy()), saved.class_names[:n_seen]
    is_given = np.array([word == "given" for word in old["source"].to_pylist()])
    given = np.where(is_given, [at.get(name, -1) for name in old["label"].to_pylist()], -1).astype(np.int32)
    views, accelerator = source.views(saved.view), accelerator_for(device).device
    answers = answer(
        saved.probs,
        views,
        torch.arange(views.n_rows),
        device=accelerator,
        precision=precision,
        given=torch.from_numpy(given).long(),
        description="labelling",
    )
    table = source.table
    if table.truth is not None:
        table = replace(table, labels=table.truth.astype(np.int32), class_names=table.truth_names, truth=None)
    truth, truth_names = truth_beyond(beyond(table, named), n_seen)
    truth = np.where(is_given, -1, truth)
    table = replace(source.table, class_names=saved.class_names, labels=given, truth=None, truth_names=())
    feats = feats_of_views(saved.net, views, accelerator, precision)
    summary = run.read("summary.json")
    clusters = about_clusters(table, answers, feats, n_seen=n_seen)
    for cluster in clusters:
        same = [c for c in summary["novel"]["clusters"] if c["name"] == cluster["name"] and "proposed" in c]
        cluster |= {"proposed": same[0]["proposed"]} if same else {}
    is_written = summary["class_names"] == list(saved.class_names)  # the same change was stopped after it was written
    summary["novel"] |= {"clusters": clusters, "edits": [*summary["novel"].get("edits", []), *[words][is_written:]]}
    summary |= {"n_novel": len(saved.class_names) - n_seen, "class_names": list(saved.class_names)}
    if (answers.given < 0).any():
        chances = saved.calibration.chance(answers.odds)[answers.given < 0]
        mean, low, high = expected_accuracy(chances, saved.calibration)
        summary["trust"] |= {"estimated": round(mean, 4), "interval": [round(low, 4), round(high, 4)]}
    if summary.get("pseudolabels") is not None and (truth >= 0).any():
        summary["pseudolabels"] = open_scores(answers, truth, truth_names, n_seen=n_seen)
    new = label_rows(
        *(table, answers, saved.class_names, saved.calibration),
        keep_given=True,
        # as they were judged by heads that had not learned them, which this model has
        given_chance=torch.tensor(np.where(is_given, old["trust"].to_numpy(), np.nan)),
        strangeness=None if saved.strangers is None else torch.tensor(old["strangeness"].to_numpy()),
        threshold=None if saved.strangers is None else saved.strangers.threshold,
    )
    new = decided(new, np.zeros(len(new), bool), None, saved.class_names)
    write_parquet_atomically(new, run.path / "labels.parquet")
    rename_in_gallery(run.path, {name: saved.class_names[c] if c >= 0 else None for name, c in at.items()})
    central = [row for each in clusters for row in each["central_rows"]]
    if source.pixels is not None:
        write_gallery(run.path, read_gallery(run.path) | _pictures(table, new, summary, central))
    run.write_json("summary.json", summary)


def _pictures(table: LabelTable, rows: pa.Table, summary: Mapping[str, Any], central: list[int]) -> dict[str, Any]:
    """For `write_gallery`: images to check, those of each class, and the central ones [n] of clusters."""
    samples = samples_of(rows)
    place = {key: row for row, key in enumerate(table.ids.to_pylist())}
    shown = dict.fromkeys(place[key] for tab in to_check(rows, summary).values() for key in tab if key in place)
    of_classes = [place[key] for some in samples.values() for key in some]
    return {
        "samples": samples,
        "large": pictures(table, list(shown), edge_px=LARGE_PX, chars_max=LARGE_CHARS),
        "small": pictures(table, list(dict.fromkeys([*central, *of_classes])), edge_px=SMALL_PX, chars_max=SMALL_CHARS),
    }


def _score_again(run: Run, at: Mapping[str, int], *, device: str, precision: str) -> None:
    """Scores on the test images that were given; of held-out ones, which the model has learned from, as they were.

    Args: at, as for `_label_again`.
    """
    summary = run.read("summary.json")
    if summary.get("test") is None:
        return
    if not run.config.get("test"):
        matched = summary["test"]["matched"]
        for name, true in reversed([*zip(at, matched, strict=False)]):  # of several that became one, that of the first
            if at[name] >= 0:
                matched[at[name]] = true
        summary["test"]["matched"] = matched[: max(at.values()) + 1]
        if BEFORE not in summary.setdefault("warnings", []):
            summary["warnings"].append(BEFORE)
        run.write_json("summary.json", summary)
        return
    named = {f"{role}_column": name for role, name in _columns(run).items()}
    scores: dict[str, Any] | None = None
    for columns in [named, {}] if named else [{}]:  # a test table may lack the columns that the training table has
        with contextlib.suppress(DataError, KeyError):
            scores = evaluate(
                run.path, run.config["test"], on_bad="skip", device=device, precision=precision, **columns
            )
            break
    if scores is None:
        summary["test"] = None
    else:
        kept = {key: value for key, value in summary["test"].items() if key == "n_copied"}
        summary["test"] = kept | {key: value for key, value in scores.items() if key not in ("left_out", "notices")}
    run.write_json("summary.json", summary)
