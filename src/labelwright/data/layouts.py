"""Where the parts of a data set lie: splits by names of files and folders, tables beside images, hub repositories."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from labelwright.data.images import COMMON_SUFFIXES, IMAGE_SUFFIXES
from labelwright.errors import DataError
from labelwright.parsing import json_of, yaml_of

SPLITS = ("train", "test", "validation")
"""Names of the splits; `data.table.LabelTable.split` holds their positions here."""

SPLIT_NAMES: Mapping[str, int] = {
    **{name: SPLITS.index("train") for name in ("train", "training")},
    **{name: SPLITS.index("test") for name in ("test", "testing", "eval", "evaluation")},
    **{name: SPLITS.index("validation") for name in ("validation", "valid", "val", "dev")},
}
"""What a split may be called -> its position in SPLITS."""

TABLE_SUFFIXES = frozenset([".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"])

LEFT_BEHIND = {
    **dict.fromkeys(("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"), "network storage"),
    **dict.fromkeys(("$recycle.bin", "system volume information", "recycler", "recycled"), "Windows"),
    **dict.fromkeys(("__macosx",), "macOS"),
    **dict.fromkeys(("lost+found",), "the file system"),
    **dict.fromkeys(("__pycache__",), "Python"),
}
"""Folders that are no data, in lower case -> who leaves them behind."""

LABELS_FILE = "labels.parquet"
"""What we write beside images that are sorted into folders."""

INTERFACE_FILE = "interface.xml"
"""What we write beside tasks of Label Studio."""

STRANGERS_FOLDERS = ("unknown", "of no class")
"""Of images of no class, where we sorted images into folders: the second where a class has the name of the first."""

SHARD_PLAN = "_plan.json"
"""Of work over shards, in the folder that it writes: what is done to what, and ``n_shards``."""

NAME_BYTES_MAX = 200  # of the name of a file or folder; file systems take 255

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_EXPORTS = ("samples.json", "labels.json", "tasks.json")  # of FiftyOne, COCO and Label Studio
_SPLIT_WORD = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_NAMES)})(?=$|[^a-z])")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of files
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}")  # in the names of files of the hub
_DEPTH = 4  # folders below the one given in which tables are looked for


def split_named(path: PurePosixPath) -> str | None:
    """The split that the name of a file says, or else that of the nearest folder; None if none does.

    Example:
      >>> split_named(PurePosixPath("data/test-00000-of-00001.parquet")), split_named(PurePosixPath("val/x.csv"))
      ('test', 'validation')
      >>> split_named(PurePosixPath("contest/photos.csv")) is None
      True
    """
    for name in (path.stem, *(part.name for part in path.parents)):
        if found := _SPLIT_WORD.search(name.lower()):
            return SPLITS[SPLIT_NAMES[found[1]]]
    return None


def splits_of(files: Sequence[Path]) -> list[str | None]:
    """The split of each of several tables by their names below the folder that holds all; None if they are of one.

    Example:
      >>> splits_of([Path("d/train-0.parquet"), Path("d/test-0.parquet")]), splits_of([Path("d/test.csv")])
      (['train', 'test'], [None])
    """
    above = Path(os.path.commonpath([path.absolute().parent for path in files]))
    found = [split_named(PurePosixPath(path.absolute().relative_to(above).as_posix())) for path in files]
    if len(set(found)) < 2 or not {"test", "validation"} & set(found):
        return [None] * len(files)
    return [split or "train" for split in found]


def split_folders(folders: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Which folders are splits: name -> split.

    They are if they all are, with folders of unlabelled images at most; if there are two splits or more; or where one
    holds folders of the same names as those beside it. A folder ``train`` beside ``car`` and ``bus`` is a class.

    Args:
      folders: name -> names of the folders in it.

    Example:
      >>> split_folders({"train": [], "val": [], "docs": []}), split_folders({"cat": [], "train": []})
      ({'train': 'train', 'val': 'validation'}, {})
      >>> split_folders({"cat": [], "dog": [], "test": ["cat", "dog"]})
      {'test': 'test'}
    """
    splits = {name: SPLITS[SPLIT_NAMES[name.lower()]] for name in folders if name.lower() in SPLIT_NAMES}
    others = [name for name in folders if name not in splits and name.lower() not in UNLABELLED_NAMES]
    if not others or len(set(splits.values())) > 1:
        return splits
    return {name: split for name, split in splits.items() if set(folders[name]) & set(others)}


def splits_inside(paths: Sequence[str]) -> list[str | None]:
    """The splits of images that lie in folders of splits inside every class folder; empty if they do not.

    Example:
      >>> splits_inside(["cat/train/1.png", "dog/test/1.png"]), splits_inside(["cat/train/1.png", "dog/1.png"])
      (['train', 'test'], [])
    """
    parts = [Path(path).parts for path in paths]
    inner = [each[1].lower() if len(each) > 2 else None for each in parts]
    codes = {SPLIT_NAMES.get(name or "", -1) for each, name in zip(parts, inner, strict=True) if len(each) > 1}
    return inner if -1 not in codes and len(codes) > 1 else []


UNLABELLED_NAMES = frozenset({"unlabeled", "unlabelled"})


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, which is no data."""
    return _is_file(folder / "config.yaml") and any((folder / name).exists() for name in ("data.json", "model"))


def _is_file(path: Path) -> bool:
    """Whether there is such a file; False as well where the folder may not be looked into."""
    return os.path.isfile(path)  # noqa: PTH113 (Path raises there)


def check_whole(folder: str, plan: Any, names: Iterable[str]) -> None:
    """Refuse a folder that work over shards has begun and not ended.

    Args: plan: what `SHARD_PLAN` holds; names: of the files in the folder.

    Raises: DataError if fewer files are there than shards.

    Example:
      >>> check_whole("feats", {"n_shards": 2}, ["part-00000.parquet", "part-00001.parquet"])
      >>> check_whole("feats", {"n_shards": 2}, ["part-00000.parquet"])
      Traceback (most recent call last):
      labelwright.errors.DataError: feats holds 1 of 2 shards: the work that writes it was not finished
      fix: give the same command again, which goes on where it was
    """
    n_shards = plan.get("n_shards") if isinstance(plan, Mapping) else None
    n_there = sum(name.startswith("part-") and name.endswith(".parquet") for name in names)
    if isinstance(n_shards, int) and n_there < n_shards:
        raise DataError(
            f"{folder} holds {n_there:,} of {n_shards:,} shards: the work that writes it was not finished",
            fix="give the same command again, which goes on where it was",
        )


def tables_in(root: Path) -> tuple[list[Path], list[str | None]] | None:
    """The tables that a folder without loose images is made of, and the split of each; None if it is one of images.

    Those that a README.md of a hub repository names come first, then exports of annotation tools, then
    ``metadata.csv``, ``.jsonl`` or ``.parquet``, then Parquet files or else other tables.

    Raises: DataError where a repository holds several configurations, or of shards that are not all there.
    """
    if (named := _configured(root)) is not None:
        return named
    beside = {path.name for path in _sorted(root)}
    if SHARD_PLAN in beside:
        check_whole(str(root), json_of((root / SHARD_PLAN).read_bytes()), beside)
    for name in _EXPORTS:
        is_alone = "data" in beside or beside <= {name, INTERFACE_FILE, "images"}
        if name in beside and is_alone and (root / name).is_file():
            return [root / name], [None]
    folders = [root, *(path for path in _sorted(root) if path.is_dir() and not is_run(path))]
    metadata = [folder / name for folder in folders for name in METADATA if _is_file(folder / name)]
    if metadata:
        return metadata, splits_of(metadata)
    has_shards = any(_SHARD.search(path.name) for place in ("", "data") for path in (root / place).glob("*.parquet"))
    tables: list[Path] = []
    for path in files_below(root, _DEPTH):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES and not has_shards:
            return None
        tables += [path] if suffix in TABLE_SUFFIXES - {".json"} else []
    found = [path for path in tables if path.suffix.lower() == ".parquet"] or tables
    return (found, splits_of(found)) if found else None


def table_of_images(names: Sequence[str]) -> str:
    """The table with the labels of a folder of images, of the paths of all its files, in order; "" if there is none.

    Example:
      >>> table_of_images(["images/0.png", "metadata.csv"]), table_of_images(["cat/0.png", "notes.csv"])
      ('metadata.csv', '')
      >>> table_of_images(["data/0.png", "labels.json"]), table_of_images(["cat/0.png", "labels.json"])
      ('labels.json', '')
    """
    beside = {name.split("/")[0] for name in names}
    exports = [name for name in _EXPORTS if "data" in beside or beside <= {name, INTERFACE_FILE, "images"}]
    found = [name for name in names if name in exports]
    found += [name for name in names if name.count("/") < 2 and name.rpartition("/")[2] in METADATA]
    return found[0] if found else ""


def files_below(folder: Path, depth: int) -> Iterator[Path]:
    """Files of a tree, sorted, ``depth`` folders deep; links to folders and what is no data are not followed."""
    for path in _sorted(folder):
        if _is_file(path):
            yield path
        elif depth and os.path.isdir(path) and not path.is_symlink() and not is_run(path):  # noqa: PTH112 (as above)
            yield from files_below(path, depth - 1)


def _sorted(folder: Path) -> list[Path]:
    """What a folder holds, but for what is hidden or was left behind by a program; nothing if it cannot be opened."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError:
        return []
    return [folder / name for name in names if not name.startswith(".") and name.lower() not in LEFT_BEHIND]


def _configured(root: Path) -> tuple[list[Path], list[str | None]] | None:
    """The data files that the head of README.md names, as on the hub."""
    configs = _head(root / "README.md").get("configs")
    configs = [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []
    if not configs:
        return None
    chosen = [each for each in configs if each.get("default") or each.get("config_name") == "default"] or configs
    if len(chosen) > 1:
        names = ", ".join(str(each.get("config_name")) for each in chosen)
        raise DataError(
            f"{root} holds several configurations: {names}", fix="give the folder or the files of one of them"
        )
    given = chosen[0].get("data_files")
    parts = given if isinstance(given, list) else [given]
    files: list[Path] = []
    splits: list[str | None] = []
    for part in parts:
        split = part.get("split") if isinstance(part, dict) else None
        patterns = part.get("path") if isinstance(part, dict) else part
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            base = root / str(chosen[0].get("data_dir") or "")
            plain = isinstance(pattern, str) and not PurePosixPath(pattern).is_absolute() and ".." not in pattern
            found = [path for path in sorted(base.glob(pattern)) if path.is_file()] if plain and pattern else []
            found = [path for path in found if path.suffix.lower() in TABLE_SUFFIXES and path not in files]
            files += found
            splits += [None if split is None else str(split)] * len(found)
    return (files, splits if any(splits) else splits_of(files)) if files else None


def _head(readme: Path) -> dict[str, Any]:
    """The YAML between the dashes that a README begins with."""
    try:
        text = readme.read_text(encoding="utf-8-sig")
        found = yaml_of(text.split("---", 2)[1]) if text.startswith("---") else {}
    except (OSError, ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def file_names(texts: Sequence[str]) -> dict[str, str]:
    """Text -> a name that a file or folder may have, each another, upper and lower case being the same.

    Separators become ``-``; what is too long is cut. A name that had to change, and is not alone then, ends in a hash.

    Example:
      >>> file_names(["cat", "a/b", ".hidden", ".."])
      {'cat': 'cat', 'a/b': 'a-b', '.hidden': '-hidden', '..': '-'}
      >>> list(file_names(["a/b", "a-b"]).values())
      ['a-b-c14cddc0', 'a-b']
    """
    found: dict[str, str] = {}
    plain = {text: plain_name(text) for text in texts}
    taken = {LABELS_FILE}
    for text in sorted(plain, key=lambda text: (plain[text] != text, text)):  # those that need no change come first
        name = plain[text]
        if name.casefold() in taken:
            name = f"{name}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"
        taken.add(name.casefold())
        found[text] = name
    return {text: found[text] for text in texts}


def strangers_folder(class_names: Iterable[str]) -> str:
    """The folder of images of no class beside those of classes: none that is theirs, in capitals or not.

    Example:
      >>> strangers_folder(["cat"]), strangers_folder(["cat", "Unknown"])
      ('unknown', 'of no class')
    """
    taken = {plain_name(name).casefold() for name in class_names}
    first, second = STRANGERS_FOLDERS
    while second in taken:
        second += "-"
    return second if first in taken else first


def is_strangers_folder(name: str) -> bool:
    """Whether `strangers_folder` may have given this name.

    Example:
      >>> is_strangers_folder("unknown"), is_strangers_folder("of no class"), is_strangers_folder("cat")
      (True, True, False)
    """
    return name.rstrip("-") in STRANGERS_FOLDERS


def plain_name(text: str) -> str:
    """Text as one name in a folder."""
    name = re.sub(r"[/\\\x00-\x1f]", "-", text).rstrip(". ")
    name = "-" + name.lstrip(". ") if name.startswith((".", " ")) or not name else name
    raw = name.encode(errors="replace")
    if len(raw) <= NAME_BYTES_MAX:
        return name
    suffix = PurePosixPath(name).suffix
    suffix = suffix if len(suffix) < 8 else ""
    head = raw[: NAME_BYTES_MAX - 20].decode(errors="ignore")
    return f"{head}-{hashlib.sha256(raw).hexdigest()[:8]}{suffix}"


def path_from(folder: Path, source: str) -> str:
    """A path as a table in ``folder`` should name it: relative where it lies below, else absolute."""
    absolute = Path(source).resolve() if ".." in source else Path(source).absolute()
    return str(absolute.relative_to(folder)) if absolute.is_relative_to(folder) else str(absolute)


def folder_inside(folder: str, path: str) -> str | None:
    """The only folder inside ``folder`` that holds a file ``path``; None if none or several do."""
    try:
        with os.scandir(folder or ".") as entries:
            inside = [each.path for each in entries if each.is_dir() and not each.name.startswith(".")]
        found = [each for each in inside if _file_of(os.path.join(each, path))]  # noqa: PTH118
    except (OSError, ValueError):
        return None
    return found[0] if len(found) == 1 else None


def found_elsewhere(path: str, folder: str, inside: str | None = None) -> str | None:
    """The file that a table means by a path that is not there: it may be written on another machine or start elsewhere.

    Tried in turn: with / for \\, with accents composed or decomposed, with a suffix where it has none or with it in
    capitals or small letters, from the working folder, from the folder above the table, from ``inside``; of
    addresses, as Label Studio writes them, the path in them, and the name alone beside the table.
    """
    whole = path
    given = path.replace("\\", "/")
    is_address = "://" in given or given.startswith("/data/")
    if is_address:
        parts = urlsplit(given)
        given = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    starts = ["/", folder, str(Path(folder) / "images"), "", str(Path(folder).parent), *([inside] if inside else [])]
    names = [given, *([given.rpartition("/")[2], _UPLOADED.sub("", given.rpartition("/")[2])] if is_address else ())]
    for name in dict.fromkeys(names):
        for start in starts if is_address else starts[1:]:
            for form in ("NFC", "NFD"):
                place = os.path.join(start, unicodedata.normalize(form, name))  # noqa: PTH118
                if (file := _file_of(place)) is not None and file != whole:
                    return os.path.abspath(file)  # noqa: PTH100
    return None


def _file_of(place: str) -> str | None:
    """The file at a place, or the only one that differs from it by its suffix: in other letters, or left out."""
    if os.path.isfile(place):  # noqa: PTH113 (Path is slow)
        return place
    stem, suffix = os.path.splitext(place)  # noqa: PTH122
    names = [stem + suffix.upper(), stem + suffix.lower()]
    if suffix.lower() not in IMAGE_SUFFIXES:
        names = [place + written for each in COMMON_SUFFIXES for written in (each, each.upper())]
    found = {os.stat(name).st_ino: name for name in names if os.path.isfile(name)}  # noqa: PTH113, PTH116
    return next(iter(found.values())) if len(found) == 1 else None  # where case does not count, two names are one file
