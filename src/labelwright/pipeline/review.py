"""`review`: a local page on which a person looks at the labels of a run and corrects them.

Nothing heavy is imported before the page is open: 100,000 images are listed in a second, and their pictures, their
features and a refit come when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelwright.arguments import check_arguments
from labelwright.errors import ConfigError, LabelwrightError
from labelwright.launch import AHEAD
from labelwright.parsing import json_of
from labelwright.pipeline.run_config import command_of, from_config, settings_of
from labelwright.pipeline.settings import is_in_memory
from labelwright.replacing import replacing
from labelwright.reviewing.answers import ANSWERS_FILE, AnswerLog, write_corrections
from labelwright.reviewing.board import Board
from labelwright.reviewing.edits import is_undone
from labelwright.reviewing.pictures import Pictures
from labelwright.reviewing.server import Desk, ReviewServer, Work
from labelwright.run_folder import Run
from labelwright.wording import counted

STANDING = 10  # images that a discovered class with a name is known by in a refit, answered ones among them


@dataclass(frozen=True)
class Reviewed:
    """What `review` leaves.

    Attributes:
      run: the folder under review.   n_answered: images with an answer.
      corrections: file that was written for ``export``, else None.   applied: the new run of ``apply``, else None.
      says: what came of ``apply``.
    """

    run: Path
    n_answered: int
    corrections: Path | None = None
    applied: Path | None = None
    says: str = ""


@check_arguments
def review(
    run: str | Path,
    *,
    data: Any = None,
    export: str | Path | None = None,
    apply: bool = False,
    out: str | Path | None = None,
    port: int = 0,
    open: bool = True,
) -> Reviewed:
    """Look at the labels of a finished run on a local page, and correct them; every answer is saved at once.

    With neither ``export`` nor ``apply`` the page is served until Ctrl-C.

    Args:
      run: a finished run folder. Answers are added to its ``answers.jsonl``.
      data: its images, if they are no longer where config.yaml has them, or those that its embeddings are of.
      export: .csv file to write the answers to, as `fit(corrections=...)` reads them; must not exist.
      apply: fit anew with the answers as given labels.
      out: run folder of ``apply``; None = the name of the run with the next number.
      port: of the page; 0 = any that is free.
      open: show the page in the browser.

    Returns: what was answered and written.

    Raises: DataError for a run that is not finished; ConfigError if there is nothing to export or apply, or a file or
      folder is there already.
    """
    folder = Path(run)
    if export is None and not apply:
        return _serve(folder, data, port, open)
    Board(folder)  # a run that is not finished is refused
    corrections = None if export is None else _exported(folder, Path(export))
    applied, says = relabelled(folder, out) if apply else (None, "")
    return Reviewed(folder, len(AnswerLog(folder / ANSWERS_FILE).labels), corrections, applied, says)


def _serve(folder: Path, data: Any, port: int, open: bool) -> Reviewed:
    desk = desk_of(folder, data)
    server = _started(desk, folder, port)
    desk.board.is_reading = True
    threading.Thread(target=_look_ahead, args=(desk, data), name=AHEAD, daemon=True).start()
    print(f"{counted(desk.board.n_rows, 'image')} to look at: {server.address}")
    print("answers are saved as they are given; Ctrl-C ends this", flush=True)
    if open:
        webbrowser.open(server.address)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        _finish(desk.work, folder)
    finally:
        server.server_close()
    return Reviewed(folder, len(desk.board.log.labels))


def _finish(work: Work, folder: Path) -> None:
    """What still runs at the end: a change of classes is made whole, a fit is announced."""
    if work.state != "running":
        return
    if work.name == "apply":
        print(f"the fit with your answers was ended: labelwright review {folder} --apply makes it", file=sys.stderr)
        return
    print("the classes are being changed: this ends when that is done", file=sys.stderr)
    work.join()
    print(work.says, file=sys.stderr)


def _started(desk: Desk, folder: Path, port: int) -> ReviewServer:
    """The server, at the address of the last time if that is free: pages that are still open go on then."""
    path = folder / "review" / "address.json"
    try:
        before = json_of(path.read_text(encoding="utf-8"))
        if port in (0, before["port"]):
            return ReviewServer(desk, port=before["port"], token=before["token"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        pass
    try:
        server = ReviewServer(desk, port=port)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"port {port} cannot be used ({error})", fix="leave --port out: any free one is taken"
        ) from error
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path, is_private=True) as temporary:  # whoever reads it can answer
            temporary.write_text(json.dumps({"port": server.server_port, "token": server.token}), encoding="utf-8")
    except OSError as error:
        server.server_close()
        raise ConfigError(f"{folder} cannot be written ({error})", fix="make room there, or review a copy") from error
    return server


def desk_of(folder: Path, data: Any = None) -> Desk:
    """What the page of a run works with.

    Raises: DataError for a run that is not finished.
    """
    board = Board(folder)
    return Desk(
        board,
        Pictures(folder, board.ids, lambda: _images(folder, data)),
        edit=lambda action, names, key: _edit(board, action, names, key, data),
        undo_edit=lambda number, key: _undo_edit(board, number, key),
        apply=lambda: relabelled(folder, None)[1],
    )


# ---- images and features, read while the page is open already -------------------------------------------------------


def _images(folder: Path, data: Any) -> tuple[Any, Any]:
    """Ids and images of the run's data, or of ``data``."""
    from labelwright.pipeline.images import images_of

    return images_of(Run(folder), data)


def _look_ahead(desk: Desk, data: Any) -> None:
    """Find images and features, and from these the order of what teaches most."""
    desk.pictures.open()
    try:
        suggest(desk.board, data)
    except (LabelwrightError, OSError) as error:  # without features the doubtful ones come first
        print(f"no order of what teaches most: {error}", file=sys.stderr)
    finally:
        desk.board.is_reading = False


def suggest(board: Board, data: Any = None) -> None:
    """Put the images of a board in the order of what teaches most, and look-alikes into groups, if there are features.

    Raises: LabelwrightError where the data cannot be read any more.
    """
    found = _features(Run(board.path), data)
    if found is None:
        return
    import torch

    from labelwright.reviewing.order import components, groups_of, suggested

    ids, feats = found
    at = pc.index_in(board.ids.cast(pa.string()), value_set=ids.cast(pa.string()))
    at = np.asarray(at.fill_null(-1))
    rows = np.flatnonzero(at >= 0)
    z, place = components(feats[torch.from_numpy(at[rows])]), torch.from_numpy(rows)
    is_known = board.is_given & (board.trust >= 0.5)  # and nothing speaks against the given label
    doubt = torch.from_numpy(np.where(is_known, 0.0, 1 - board.trust)[rows])
    order = place[suggested(z, doubt, torch.from_numpy(board.label[rows]).long())].numpy()
    rest = np.setdiff1d(np.arange(board.n_rows), order)
    board.suggested = np.concatenate([order, rest[np.argsort(board.trust[rest], kind="stable")]])
    groups = np.zeros(board.n_rows, np.int64)
    groups[rows] = groups_of(z).numpy()
    board.groups = groups


def _features(run: Run, data: Any) -> tuple[Any, Any] | None:
    """Ids and features [M, D] of the images of a run; None where it learned from pixels."""
    if (run.config.get("resolved") or {}).get("views") != "embeddings":
        return None
    import torch

    from labelwright.data.prepare import is_embeddings
    from labelwright.data.stored import EmbeddingViews
    from labelwright.pipeline.job import embedded
    from labelwright.pipeline.resolve import resolve

    kept = {key: value for key, value in from_config(run.path / "config.yaml").items() if not is_in_memory(value)}
    if is_embeddings(kept.get("data")):
        given: dict[str, Any] = {"test_frac": 0.0}  # all rows in one table: none are searched for copies again
    else:
        given = {} if data is None else {"data": data}
    plan = resolve(settings_of(None, kept | given | {"out": str(run.path / "review" / "none")}))
    prepared = embedded(plan)
    sources = [prepared.train, *([prepared.test] if prepared.test is not None and prepared.test_is != "given" else [])]
    ids = pa.chunked_array([source.table.ids.cast(pa.string()) for source in sources]).combine_chunks()
    feats = [
        chunk
        for source in sources
        if source.stored is not None
        for chunk in EmbeddingViews(source.stored, rows=source.rows).feats()
    ]
    return ids, torch.cat(feats)


# ---- classes --------------------------------------------------------------------------------------------------------


def _edit(board: Board, action: Any, names: Sequence[str], key: str, data: Any) -> str:
    """Rename or merge classes of the run, and write the answer down; what it changes is kept beside, to be undone."""
    from labelwright.pipeline.classes import changed_classes

    with board.held():
        changed_classes(board.path, action, names, data=data, is_of_page=True, key=key)
    return f"{names[0]} is called {names[1]} now" if action == "rename" else f"merged into {names[0]}"


def _undo_edit(board: Board, number: int, key: str) -> str:
    """Put back what a change of classes had changed.

    Raises: ConfigError if the run has changed since.
    """
    board.log.catch_up()
    names = board.log.answers[number].names
    if number not in board.log.undoable:
        raise ConfigError(f"there is no answer {number} to take back", fix="load the page again")
    with board.held():
        if not is_undone(board.path, number):
            raise ConfigError(
                f"the classes of the run changed again since {' and '.join(names)}", fix="undo the later change first"
            )
        board.log.append("undo", undoes=number, key=key)
    return f"undone: {' and '.join(names)}"


# ---- corrections ----------------------------------------------------------------------------------------------------


def corrections_of(folder: Path) -> dict[str, str]:
    """id -> label: what the run was fitted with already, and over it what was answered since.

    Raises: ConfigError if nothing was answered; DataError for a file that cannot be read.
    """
    from labelwright.data.corrections import read_corrections

    answered = AnswerLog(folder / ANSWERS_FILE).labels
    if not answered:
        raise ConfigError(f"nothing was answered about {folder}", fix=f"labelwright review {folder}")
    before = Run(folder).config.get("corrections") or ()
    files = before if isinstance(before, list) else [before] if before else []
    return {key: label for file in files for _, key, label in read_corrections(file)} | answered


def _exported(folder: Path, target: Path) -> Path:
    if target.suffix != ".csv":
        raise ConfigError(f"{target} does not end in .csv", fix="--export corrections.csv")
    if target.exists():
        raise ConfigError(f"{target} exists", fix="choose another --export, or remove it first")
    write_corrections(corrections_of(folder), target)
    return target


def relabelled(folder: Path, out: str | Path | None) -> tuple[Path, str]:
    """Fit a run anew with what was answered as given labels; its stored features make that a matter of seconds.

    Args:
      folder: the run.   out: the new one; None = the name of the run with the next number.

    Returns: the folder of the new run, and what came of it.

    Raises: ConfigError if nothing was answered, or the run learned from pixels, which takes its time and is left to a
      command.
    """
    from labelwright.pipeline.fit import fit

    run = Run(folder)
    labels = corrections_of(folder)
    n_answered = len(labels)
    labels |= _standing_for_names(run, labels)
    table = "".join(f"{key}\0{label}\0" for key, label in sorted(labels.items()))
    digest = hashlib.blake2b(table.encode(), digest_size=4).hexdigest()
    path = folder / "review" / f"corrections-{digest}.csv"  # never changed: the new run's config.yaml names it
    path.parent.mkdir(exist_ok=True)
    write_corrections(labels, path)
    if (run.config.get("resolved") or {}).get("views") != "embeddings":
        head = command_of(run.config, path=folder).partition(" --out ")[0]
        raise ConfigError(
            "this run learned from pixels, which takes its time",
            fix=f"{head or 'fit'} --corrections {path} --out {next_name(folder)}",
        )
    target = next_name(folder) if out is None else Path(out)
    began = run.labels
    fitted = fit(config=folder / "config.yaml", corrections=str(path.resolve()), out=target, **_with_named(run, labels))
    assert began is not None
    assert fitted.labels is not None
    before = dict(zip(began["id"].to_pylist(), began["label"].to_pylist(), strict=True))
    after = zip(fitted.labels["id"].to_pylist(), fitted.labels["label"].to_pylist(), strict=True)
    changed = [(before.get(key), label) for key, label in after if before.get(key, label) != label]
    n_changed = sum(not (_is_unnamed(old) and _is_unnamed(new)) for old, new in changed)  # numbers say nothing
    says = f"{counted(n_answered, 'answer')} learned from, {counted(n_changed, 'label')} changed: {target}"
    return target, f"{says} (labelwright review {target} continues there){_what_stays(run, fitted)}"


def _is_unnamed(name: str | None) -> bool:
    return name is not None and re.fullmatch(r"novel-\d+", name) is not None


def _named_by_now(run: Run) -> list[str]:
    """Discovered classes that were given a name."""
    model = run.read("model/config.json")
    return [
        name for name in model["class_names"][model.get("n_seen", len(model["class_names"])) :] if not _is_unnamed(name)
    ]


def _standing_for_names(run: Run, labels: dict[str, str]) -> dict[str, str]:
    """id -> name of the images that discovered classes with names are known by in a refit: their likeliest ones."""
    rows, found = run.labels, dict[str, str]()
    assert rows is not None
    rows = rows.filter(pc.equal(rows["source"], "predicted")).sort_by([("trust", "descending")])
    for name in _named_by_now(run):
        answered = sum(label == name for label in labels.values())
        own = [key for key in rows.filter(pc.equal(rows["label"], name))["id"].to_pylist() if key not in labels]
        found |= dict.fromkeys(own[: max(0, STANDING - answered)], name)
    return found


def _what_stays(run: Run, fitted: Run) -> str:
    """Of discovered classes, what a refit has kept and what not."""
    named, n_unnamed = _named_by_now(run), sum(map(_is_unnamed, fitted.read("model/config.json")["class_names"]))
    edits = (run.read("summary.json").get("novel") or {}).get("edits") or []
    lost = [edit for edit in edits if not any(edit.startswith(f"merged into {name}:") for name in named)]
    return "".join(
        (
            f". Up to {STANDING} of the likeliest images each count as given labels of {', '.join(named)}"
            if named
            else "",
            f". Found anew, under other numbers: {counted(n_unnamed, 'class', 'classes')} without a name"
            if n_unnamed
            else "",
            f". Not kept, as only names are: {'; '.join(lost)}" if lost else "",
        )
    )


def _with_named(run: Run, labels: dict[str, str]) -> dict[str, Any]:
    """What a refit has otherwise: discovered classes that were given names and images are classes like the others."""
    model = run.read("model/config.json")
    seen = model["class_names"][: model.get("n_seen", len(model["class_names"]))]
    new = [name for name in model["class_names"] if name not in seen and name in set(labels.values())]
    if unnamed := list(filter(_is_unnamed, new)):
        raise ConfigError(f"{unnamed[0]} has images and no name yet", fix="give it a name, or merge it, on the page")
    if not new:
        return {}
    novel = str(run.config.get("novel"))
    fewer = {"novel": str(max(1, int(novel) - len(new)))} if novel.isdigit() else {}
    return {"classes": [*seen, *new], **fewer}


def next_name(folder: Path) -> Path:
    """The name of a run with the next number that is free.

    Example:
      >>> next_name(Path("no-such-folder/run")).name, next_name(Path("no-such-folder/run-2")).name
      ('run-2', 'run-3')
    """
    whole = folder.resolve()
    found = re.fullmatch(r"(.*)-(\d+)", whole.name)
    stem, number = (found[1], int(found[2])) if found else (whole.name, 1)
    while (target := folder.parent / f"{stem}-{(number := number + 1)}").exists():
        pass
    return target
