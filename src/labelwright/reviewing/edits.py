"""Changes of the classes of a run, written down with its answers: these follow, and a change can be undone."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from labelwright.replacing import replacing
from labelwright.reviewing.answers import ANSWERS_FILE, AnswerLog, Kind

EDITED = ("labels.parquet", "summary.json", "gallery.json", "report.html", "model/config.json", "model/README.md")
"""What a change of classes writes: copies are kept, so that it can be undone."""


@contextmanager
def recorded(run: Path, kind: Kind, names: Sequence[str], *, is_of_page: bool = False, key: str = "") -> Iterator[None]:
    """Write down the change of classes that the block makes, and keep what it changes; nothing if it fails.

    Args:
      run: its folder. Where nothing was answered yet nothing is written, unless the change is_of_page.
      kind, names, key: see `reviewing.answers.Answer`.
    """
    if not (is_of_page or (run / ANSWERS_FILE).exists()):
        yield
        return
    log = AnswerLog(run / ANSWERS_FILE)
    kept = run / "review" / f"before-{len(log.answers)}"
    shutil.rmtree(kept, ignore_errors=True)
    for name in EDITED:
        if (run / name).is_file():
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, kept / name)
    try:
        yield
    except BaseException:
        shutil.rmtree(kept, ignore_errors=True)
        raise
    written = log.append(kind, names=names, key=key)
    wanted = kept.with_name(f"before-{written.number}")
    if wanted != kept:  # somebody answered meanwhile
        kept.replace(wanted)
    (wanted / "after").write_text(_digest(run), encoding="utf-8")


def is_undone(run: Path, number: int) -> bool:
    """Put back what a change of classes had changed; False, and nothing done, if the run has changed since.

    Args: number of its line among the answers.
    """
    kept = run / "review" / f"before-{number}"
    if not (kept / "after").is_file() or (kept / "after").read_text(encoding="utf-8") != _digest(run):
        return False
    for name in EDITED:
        if (kept / name).is_file():
            with replacing(run / name) as temporary:
                shutil.copyfile(kept / name, temporary)
    return True


def _digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in ("labels.parquet", "model/config.json"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
