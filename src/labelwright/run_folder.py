"""The run folder: the one place that writes what a run leaves, and reads it back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from filelock import FileLock, Timeout

import labelwright
from labelwright import checksums
from labelwright.errors import ConfigError, DataError, DiskError, LabelwrightError
from labelwright.launch import rank
from labelwright.parsing import as_kept, json_of, yaml_of
from labelwright.replacing import check_output, disk_errors, replacing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OF_IMAGES = ("seed", "test_frac", "group", "classes", "corrections", "on_bad", "split_column", "label_column")
"""Settings that decide which images are learned from and which are scored on."""
ANNOTATIONS = ("candidates.parquet", "candidates.answers.jsonl")
"""What a run folder keeps of an annotator: the candidates, and the answers of a chat model as they come."""

ROWS_AT_ONCE = 1 << 20  # of a Parquet file
OF_LABELS = ("id", "label", "source")  # columns that every labels.parquet has
LOCK = ".lock"
CHECKPOINTS = ("last.pt", "previous.pt")
BEGINNINGS = (  # what a run writes before it learns
    *("config.yaml", "environment.json", "data.json", "metrics.jsonl", *ANNOTATIONS, "novel.json"),
    *("margin_scale.json", ".candidates.parquet.lock", "candidates.answers.jsonl.lock"),
)

SUMMARY_VERSION = 1  # of what summary.json holds; it rises where a key means something else or is gone
KINDS: Mapping[str, Mapping[str, type]] = {
    "summary.json": {"method": str, "warnings": list, "seconds": dict},
    "data.json": {"fingerprint": str, "class_names": list, "train_counts": list},
    "config.yaml": {"method": str, "resolved": dict, "settings": dict, "kept": dict},
}
"""Types of what files of a run hold."""

CONTENTS = {"summary", "data", "config", "environment", "records", "epochs", "steps", "begun", "labels"}


class Run:
    """A run folder: config.yaml, data.json, metrics.jsonl, checkpoints/, model/, labels.parquet, summary.json and more.

    Contents are read when first asked for and kept; they are empty where a file is absent; without the folder itself
    settings, data and labels are a DataError.

    Args:
      path: the folder.
      contents: what to take as read, by the names of the properties below: for tests and examples.

    Example:
      >>> run = Run("run", summary={"test": {"accuracy": 0.5}})
      >>> run.test, run.name
      ({'accuracy': 0.5}, 'run')
    """

    def __init__(self, path: Path | str, **contents: Any) -> None:
        self.path = Path(path)
        assert set(contents) <= CONTENTS, contents.keys()
        self._is_made_up = bool(contents)
        self.__dict__.update(contents)  # where cached_property keeps what it has read
        self._writer: SummaryWriter | None = None
        self.also_log: Callable[[Mapping[str, Any], int], None] | None = None  # gets every record and its step
        self._folder: tuple[int, int] | None = None  # device and inode, while it is held

    @classmethod
    def create(cls, path: Path | str, *, resume: bool = False, data: Sequence[Any] = ()) -> Run:
        """A folder to write a run into.

        Args:
          path: the folder; must be empty or absent, unless ``resume``.
          resume: continue what is there.
          data: what it will read; folders of it may not hold the run.

        Raises: ConfigError if it cannot be written, is a file, or not empty and ``resume`` is False or no run is there.
        """
        run = cls(path)
        if os.path.isfile(run.path):  # noqa: PTH113 (False, not an error, where the name is too long)
            raise ConfigError(f"{run.path} is a file", fix="give --out a folder that does not exist yet")
        check_output(run.path, *data)
        has_content = run._has_content()
        if has_content and not resume:
            raise ConfigError(
                f"{run.path} is not empty", fix="choose another --out, or --resume to continue the run that is there"
            )
        if has_content and not (run.path / "config.yaml").exists():
            raise ConfigError(f"{run.path} is not the folder of a run", fix="choose another --out")
        return run

    @contextmanager
    def held(self) -> Iterator[Run]:
        """Hold the folder, made if absent: no other process writes into it until the block ends, however it ends.

        Of several processes of one run the first holds it. A block inside another changes nothing. If bad input ends
        the block, what it wrote into a new folder is removed, answers of chat models and what others put there are not.

        Raises: ConfigError if another process holds it, or it cannot be made.
        """
        lock = FileLock(self.path / LOCK, timeout=0, is_singleton=True)
        if rank() or lock.is_locked:
            yield self
            return
        made = [each for each in (self.path, *self.path.parents) if not each.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            found = self.path.stat()
        except Timeout as error:
            raise ConfigError(
                f"{self.path} is in use by another process", fix="wait until that has ended, or choose another --out"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written: {error.strerror}", fix="give --out a place that can be written"
            ) from error
        self._folder, is_new = (found.st_dev, found.st_ino), not self._has_content()
        try:
            for stale in self.path.rglob(".*.tmp"):  # of a process killed while it wrote
                stale.unlink()
            yield self
        except LabelwrightError as error:
            if error.exit_code == 2 and is_new and not (self.has_begun or self.has_answers):
                self.close()
                self._remove_beginnings()
            raise
        finally:
            self._folder = None
            with suppress(OSError, DiskError):
                self.close()
            if not self._has_content():
                (self.path / LOCK).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):
                for each in made:
                    each.rmdir()  # stops at the first that is not empty

    @property
    def has_answers(self) -> bool:
        """Whether there are answers of a chat model, which took time and perhaps money."""
        if (self.path / "descriptions.json").exists():
            return True
        journal = self.path / ANNOTATIONS[1]
        if not journal.exists():
            return False
        with journal.open("rb") as file:
            return len(file.readlines(1 << 16)) > 1  # the first line says what was asked

    def _has_content(self) -> bool:
        return self.path.is_dir() and any(each.name != LOCK for each in self.path.iterdir())

    def _remove_beginnings(self) -> None:
        for name in BEGINNINGS:
            (self.path / name).unlink(missing_ok=True)
        events = self.path / "tensorboard"
        for each in events.glob("events.out.tfevents.*"):
            each.unlink()
        with suppress(OSError):
            events.rmdir()

    def check_there(self) -> None:
        """Refuse to go on if the folder that is held was deleted, moved or replaced.

        Raises: DiskError.
        """
        if self._folder is None:
            return
        with suppress(OSError):
            found = self.path.stat()
            if (found.st_dev, found.st_ino) == self._folder:
                return
        raise DiskError(
            f"{self.path} was deleted or moved while this run wrote into it",
            reason="the folder is gone",
            fix="start it again; a run that was moved goes on with --resume and its new place as --out",
        )

    def seal(self) -> None:
        """Keep the checksums of everything in the folder of a finished run, for `checksums.check` and `verify`.

        What TensorBoard reads is left out. The checkpoint before the last one is no longer needed, and goes.
        """
        self.checkpoint.with_name(CHECKPOINTS[1]).unlink(missing_ok=True)
        files = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        names = [str(path.as_posix()) for path in files if path.parts[0] not in ("tensorboard", checksums.NAME)]
        with disk_errors(self.path / checksums.NAME):
            checksums.keep(self.path, [name for name in names if not name.endswith((".tmp", LOCK))])

    def unseal(self) -> None:
        """Forget the checksums of a run that goes on."""
        (self.path / checksums.NAME).unlink(missing_ok=True)

    # ---- reading ----------------------------------------------------------------------------------------------------

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json.

        Raises: DataError if the run has not finished, or the file cannot be read.
        """
        if not (self.path / "summary.json").is_file():
            inside = sorted(path.parent for path in self.path.glob("*/summary.json"))
            hint = f"; {inside[-1]} is one" if inside else ""
            hint += "; this one goes on with the same fit and --resume" if (self.path / "config.yaml").is_file() else ""
            raise DataError(f"no summary.json in {self.path}", fix=f"give the folder of a finished run{hint}")
        return self.read("summary.json")

    @cached_property
    def data(self) -> dict[str, Any]:
        """data.json: what the run was trained on."""
        return self._read_if_there("data.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml: how, as `as_kept` has it."""
        return as_kept(self._read_if_there("config.yaml"))

    @property
    def answered_by(self) -> str | None:
        """The one column that named the annotators, whose answers may stand one a row; None without such."""
        given = self.config.get("annotator_columns") or ""
        names = given.split(",") if isinstance(given, str) else given
        return names[0].strip() or None if len(names) == 1 else None

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json: versions, hardware, commit."""
        return self._read_if_there("environment.json")

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """metrics.jsonl, in the order it was written; a last line cut short by a kill is left out."""
        if not self.metrics.is_file():
            return []
        checksums.check(self.metrics)
        found = []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        for i, line in enumerate(lines, 1):
            try:
                record = json_of(line)
                if not (isinstance(record, dict) and isinstance(record.get("epoch", 0), int)):
                    raise ValueError("no record of a run")
                found.append(record)
            except ValueError as error:
                if i < len(lines):
                    raise DataError(f"{self.metrics} line {i} is not JSON ({error})", fix="remove that line") from error
        return found

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """Records of what each epoch came to; of an epoch done twice after a kill, the later."""
        found = {record["epoch"]: record for record in self.records if record.get("kind") == "epoch"}
        return [found[epoch] for epoch in sorted(found)]

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Records of single steps, in the order they were written."""
        return [record for record in self.records if record.get("kind") == "step"]

    @cached_property
    def begun(self) -> dict[str, Any]:
        """The record of what came before the first epoch; empty if there is none."""
        return next((record for record in reversed(self.records) if record.get("kind") == "begin"), {})

    @cached_property
    def labels(self) -> pa.Table | None:
        """labels.parquet, one row per training image; None where absent.

        Raises: DataError if it cannot be read.
        """
        self._check_is_one()
        path = self.path / "labels.parquet"
        if not path.is_file():
            return None
        checksums.check(path)
        try:
            found = pq.read_table(path)
            missing = [name for name in OF_LABELS if name not in found.column_names]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]!r}", fix="run labelwright fit anew, or remove the file"
                )
            return found
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{path} cannot be read ({error})", fix="run labelwright fit anew, or remove the file"
            ) from error

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def class_names(self) -> list[str]:
        """C names in class order."""
        return [str(name) for name in self.data.get("class_names") or []]

    @property
    def counts(self) -> list[int]:
        """Labelled training images of each of the C classes."""
        return list(self.data.get("train_counts") or [])

    @property
    def test(self) -> dict[str, Any]:
        """Scores on the test images."""
        return self.summary.get("test") or {}

    @property
    def scores(self) -> dict[str, Any]:
        """The same, with ``trust_ece``, the calibration error of trust, beside ``ece``, that of the softmax."""
        off = (self.summary.get("trust") or {}).get("ece")
        return self.test if off is None else {**self.test, "trust_ece": off}

    @property
    def zero_shot(self) -> dict[str, Any]:
        """Scores of the class names alone on the test images, of a vision-language model."""
        return self.summary.get("zero_shot") or {}

    @property
    def has_groups(self) -> bool:
        """Do many, medium and few tell classes apart? Of a vision-language model all may be in one group, unlabelled.

        Example:
          >>> Run("run", summary={"test": {"group_sizes": {"many": 0, "few": 43}}, "zero_shot": None}).has_groups
          False
        """
        sizes = self.test.get("group_sizes") or {}
        return "zero_shot" not in self.summary or sum(n > 0 for n in sizes.values()) > 1

    @property
    def report(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint; the one before it stays beside it, for `train.checkpoint.newest`."""
        return self.path / "checkpoints" / CHECKPOINTS[0]

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint or a finished run: its settings hold."""
        kept = (self.checkpoint.with_name(name) for name in CHECKPOINTS)
        return any(each.exists() for each in (*kept, self.path / "summary.json"))

    @property
    def metrics(self) -> Path:
        """One JSON object per line: what was measured, in order."""
        return self.path / "metrics.jsonl"

    def predict(self, data: Any, *, on_bad: Literal["stop", "skip"] = "stop", device: str = "auto") -> pa.Table:
        """Labels for any images, with trust; see `labelwright.label`."""
        return labelwright.label(self.path, data, on_bad=on_bad, device=device)

    def _repr_html_(self) -> str:
        """Verdict, what to do next and the images to check, where a notebook shows the run."""
        found: str = import_module("labelwright.pipeline.report").notebook_html(
            self
        )  # by name: the pipeline imports us
        return found

    def read(self, name: str, *needed: str) -> dict[str, Any]:
        """Read a JSON or YAML file of the run.

        Raises: DataError if it is missing or broken, lacks a key that is ``needed``, holds what a run never writes, or
          was altered once the run had finished.
        """
        path = self.path / name
        try:
            text = path.read_text(encoding="utf-8")
            content = json_of(text) if path.suffix == ".json" else yaml_of(text)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error})", fix="is this the folder of a run?") from error
        if not isinstance(content, dict):
            raise DataError(f"{path} holds no keys and values", fix="restore it from the run, or remove it")
        if name != "config.yaml":  # in which a path may be corrected by hand
            checksums.check(path)
        for key, kind in KINDS.get(name, {}).items():
            if (key in content or key in needed) and not isinstance(content.get(key), kind):
                raise DataError(
                    f"{path}: {key} is {str(content.get(key))[:60]}, which a run never writes",
                    fix="restore the file from a copy of the run",
                )
        return content

    def _check_is_one(self) -> None:
        if not self._is_made_up and not os.path.exists(self.path):  # noqa: PTH110 (False where the name is too long)
            raise DataError(f"there is no folder {self.path}", fix="give the folder of a run of fit")

    def _read_if_there(self, name: str) -> dict[str, Any]:
        self._check_is_one()
        return self.read(name) if (self.path / name).is_file() else {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    # ---- writing ----------------------------------------------------------------------------------------------------

    def write_head(
        self,
        config: Mapping[str, Any],
        described: Mapping[str, Any],
        machine: Mapping[str, Any],
        *,
        resume: bool,
        may_differ: Sequence[str] = (),
    ) -> None:
        """Write config.yaml, environment.json and data.json; of a run that has begun, check that they still hold.

        Args:
          config: the settings; those under ``resolved``, and of the method under ``settings``, stand for them.
          may_differ: settings that a resumed run may change.

        Raises: DataError if the images changed; ConfigError naming the setting that did.
        """
        self.check_there()
        has_begun = self.has_begun
        changed: dict[str, tuple[Any, Any]] = {}  # setting -> what it was, and is
        if resume and has_begun:
            old, new = _flat(self.read("config.yaml", "method")), _flat(config)
            changed = {key: (old.get(key), new[key]) for key in new if old.get(key) != new[key]}
            changed = {key: pair for key, pair in changed.items() if key not in may_differ}
        is_annotating = any((self.path / name).exists() for name in ANNOTATIONS)
        if resume and (has_begun or (is_annotating and (self.path / "data.json").exists())):
            was = self.read("data.json", "fingerprint")
            kinds = {"": "training images", "test_": "test images", "candidates_": "candidates"}
            for kind, what in kinds.items():
                if was.get(f"{kind}fingerprint") != described.get(f"{kind}fingerprint"):
                    _check_unchanged({key: pair for key, pair in changed.items() if key in OF_IMAGES})
                    raise DataError(
                        f"the {what} changed since this run began", fix="resume with the same data, or start anew"
                    )
        if resume and has_begun:
            _check_unchanged(changed)
            return
        self.write_yaml("config.yaml", config)
        self.write_json("environment.json", machine)
        self.write_json("data.json", described)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file so that it is always whole."""
        self.check_there()
        write_text_atomically(self.path / name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a YAML file so that it is always whole."""
        self.check_there()
        write_text_atomically(self.path / name, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))

    def log(self, record: Mapping[str, Any], *, step: int) -> None:
        """Append one record to metrics.jsonl and its scalars to TensorBoard."""
        self.check_there()
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=True) + "\n")
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
            for key, value in record.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("epoch", "step"):
                    self._writer.add_scalar(f"{record.get('kind', 'run')}/{key}", value, step)
        if self.also_log is not None:
            self.also_log(record, step)

    def metrics_size(self) -> int:
        """Bytes in metrics.jsonl: saved with a checkpoint, so that a resume can cut what came after it."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Drop what metrics.jsonl holds past ``size`` bytes: records of steps that will be run again."""
        if self.metrics.exists():
            os.truncate(self.metrics, min(size, self.metrics_size()))

    def close(self) -> None:
        """Flush TensorBoard."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with disk_errors(self.path / "tensorboard"):
                writer.close()


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a text file so that a reader sees the old one or the new one, never a part.

    Example:
      >>> import tempfile; folder = Path(tempfile.mkdtemp())
      >>> write_text_atomically(folder / "a.txt", "hello"); (folder / "a.txt").read_text()
      'hello'
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """A schema with texts for columns that are numbers into a dictionary.

    Example:
      >>> plain_schema(pa.schema([("label", pa.dictionary(pa.int32(), pa.string()))])).types
      [DataType(string)]
    """
    kinds = [each.type.value_type if pa.types.is_dictionary(each.type) else each.type for each in schema]
    return pa.schema([each.with_type(kind) for each, kind in zip(schema, kinds, strict=True)], schema.metadata)


def write_parquet_atomically(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that is always whole; texts that are numbers into a dictionary as texts, group by group."""
    schema = plain_schema(table.schema)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for first in range(0, max(1, len(table)), ROWS_AT_ONCE):
            writer.write_table(table.slice(first, ROWS_AT_ONCE).cast(schema))


def _check_unchanged(changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse to resume with another setting: ConfigError naming the first."""
    for key, (was, is_now) in changed.items():
        raise ConfigError(
            f"{key} was {was!r} when this run began and is {is_now!r} now",
            fix="resume with the settings of config.yaml, or start anew in another --out",
        )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that count: as resolved, those of the method among them."""
    resolved = {**config, **(config.get("resolved") or {})}
    flat = {**resolved, **(resolved.get("settings") or {})}
    return {key: value for key, value in flat.items() if key not in ("resolved", "settings", "set")}
