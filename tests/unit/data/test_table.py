"""LabelTable: taking rows, splits, tasks, fingerprints."""

import dataclasses
import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from labelwright.data.build import _repeated
from labelwright.data.table import NOTICES, PROBLEM_KINDS, Images, LabelTable
from labelwright.errors import ConfigError, DataError, Problem
from labelwright.types import Candidates


def strings(*values: str) -> pa.Array:
    return pa.array(values, pa.large_string())


def make_table(**changes: object) -> LabelTable:
    names = strings("a.png", "b.png", "c.png", "d.png")
    fields = {
        "images": Images(names, root="nowhere"),
        "ids": names,
        "labels": np.array([0, 2, -1, 2], np.int32),
        "class_names": ("cat", "dog", "owl"),
        "candidates": Candidates(torch.tensor([0, 1, 3, 3, 4]), torch.tensor([0, 1, 2, 2], dtype=torch.int32)),
        "split": np.array([0, 0, 1, -1], np.int8),
        "groups": np.array([5, 5, 6, 7]),
        "truth": np.array([0, 2, 1, 2], np.int32),
        "problems": (Problem("c.png", "missing_image", "x", 2), Problem("dog", "empty_class", "y")),
    }
    return LabelTable(**{**fields, **changes})


def png(colour: str, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, format="png")
    return buffer.getvalue()


def embedded(*colours: str) -> Images:
    cells = [{"bytes": png(colour), "path": None} for colour in colours]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return Images(dataset=datasets.Dataset.from_dict({"image": cells}, features=features))


def test_subset__every_column_follows() -> None:
    taken = make_table().subset(np.array([3, 2]))
    assert taken.ids.to_pylist() == taken.images.paths.to_pylist() == ["d.png", "c.png"]
    assert taken.labels.tolist() == [2, -1]
    assert taken.split.tolist() == [-1, 1]
    assert taken.groups.tolist() == [7, 6]
    assert taken.truth.tolist() == [2, 1]
    assert [taken.candidates.of(i).tolist() for i in range(2)] == [[2], []]
    assert [(p.where, p.row) for p in taken.problems] == [("c.png", 1), ("dog", None)]
    assert make_table().subset(np.array([0])).problems == (Problem("dog", "empty_class", "y"),)


def test_candidates_take__against_a_loop() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 5, 60)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    n = int(offsets[-1])
    sets = Candidates(offsets, torch.from_numpy(rng.integers(0, 9, n).astype(np.int32)), torch.rand(n))
    rows = rng.integers(0, 60, 40)
    taken = sets.take(torch.from_numpy(rows))
    for new, old in enumerate(rows):
        assert taken.of(new).tolist() == sets.of(int(old)).tolist()
        old_weights = sets.weights[offsets[old] : offsets[old + 1]]
        assert torch.equal(taken.weights[taken.offsets[new] : taken.offsets[new + 1]], old_weights)


def test_task__no_truth_gets_through() -> None:
    table = make_table()
    other = dataclasses.replace(table, truth=np.array([1, 1, 0, 0], np.int32))
    assert "truth" not in {field.name for field in dataclasses.fields(table.task())}
    assert torch.equal(table.task().labels, other.task().labels)
    assert table.task(n_novel=2).n_classes == 5
    assert table.task().labels.dtype == torch.int64


def test_where__splits() -> None:
    assert make_table().where("train").tolist() == [0, 1]
    assert make_table().where("test").tolist() == [2]
    assert make_table(split=None).where("train").tolist() == [0, 1, 2, 3]
    assert make_table(split=None).where("test").tolist() == []
    with pytest.raises(ConfigError, match="no such split: 'exam'"):
        make_table().where("exam")


def test_counts__unknown_labels_do_not_count() -> None:
    assert make_table().counts().tolist() == [1, 0, 2]


def test_images_digest__follows_images_and_not_labels(tmp_path: Path) -> None:
    ids = strings("a.png", "b.png")
    for name in ids.to_pylist():
        (tmp_path / name).write_bytes(b"one")
    table = LabelTable(Images(ids, str(tmp_path)), ids, np.array([0, 1], np.int32), ("cat", "dog"))
    renamed = LabelTable(table.images, strings("x", "y"), -np.ones(2, np.int32), ("owl",))
    assert renamed.images_digest == table.images_digest
    assert table.subset(np.array([1, 0])).images_digest != table.images_digest
    (tmp_path / "b.png").write_bytes(b"another")
    assert dataclasses.replace(table).images_digest != table.images_digest


def test_fingerprint__changes_with_labels_names_and_images() -> None:
    def make(labels: list[int], colours: tuple[str, ...], classes: tuple[str, ...] = ("cat", "dog")) -> str:
        ids = strings(*map(str, range(len(colours))))
        return LabelTable(embedded(*colours), ids, np.array(labels, np.int32), classes).fingerprint

    base = make([0, 1], ("red", "blue"))
    assert base == make([0, 1], ("red", "blue"))
    changed = {
        make([1, 1], ("red", "blue")),
        make([0, 1], ("blue", "red")),
        make([0, 1], ("red", "green")),
        make([0, 1], ("red", "blue"), ("dog", "cat")),
    }
    assert len(changed | {base}) == 5
    assert len(base) == 32


def test_fingerprint__same_size_other_bytes() -> None:
    def make(data: bytes) -> str:
        features = datasets.Features({"image": datasets.Image(decode=False)})
        images = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None}]}, features=features)
        return LabelTable(Images(dataset=images), strings("0"), np.array([0], np.int32), ("cat",)).fingerprint

    assert make(b"abcd") == make(b"abcd")
    assert make(b"abcd") != make(b"abce")


def test_fingerprint__same_rows_same_hash_whatever_they_were_cut_from() -> None:
    ids, labels = strings("x", "yy", "zzz"), np.array([0, 0, 0], np.int32)
    long = LabelTable(embedded("red", "blue", "lime"), ids, labels, ("cat",))
    short = LabelTable(embedded("blue", "lime"), strings("yy", "zzz"), labels[1:], ("cat",))
    assert long.subset(np.array([1, 2])).fingerprint == short.fingerprint


def test_fingerprint__file_rewritten(tmp_path) -> None:
    names = strings("a.png")
    (tmp_path / "a.png").write_bytes(png("red"))
    table = LabelTable(Images(names, root=str(tmp_path)), names, np.array([0], np.int32), ("cat",))
    before = table.fingerprint
    (tmp_path / "a.png").write_bytes(png("red", size=64))
    assert dataclasses.replace(table).fingerprint != before


def test_image__missing_file_is_named() -> None:
    with pytest.raises(DataError, match=r"nowhere/b\.png: there is no such file") as caught:
        make_table().image(1)
    assert caught.value.problems[0].row == 1


def test_image__embedded_row() -> None:
    table = LabelTable(embedded("red", "blue"), strings("0", "1"), np.array([-1, -1], np.int32), ())
    assert table.subset(np.array([1])).image(0).getpixel((0, 0)) == (0, 0, 255)
    assert table.images.where(1) == "row 2"  # from 1


def test_problem_kinds__notices_are_among_them() -> None:
    assert set(PROBLEM_KINDS) > NOTICES


def test_repeated__against_a_set() -> None:
    rng = np.random.default_rng(1)
    values = [f"{n:x}" for n in rng.integers(0, 50_000, 70_000)] + ["", ""]  # more than one hashing round
    seen: set[str] = set()
    expected = [row for row, value in enumerate(values) if value in seen or seen.add(value)]
    assert _repeated(pa.array(values, pa.large_string())).tolist() == expected


def test_repeated__equal_hashes_are_compared_in_full(monkeypatch) -> None:
    monkeypatch.setattr("labelwright.data.build.hash", lambda text: 0, raising=False)
    assert _repeated(strings("a", "b", "a", "c")).tolist() == [2]


def test_with_hashes__embedded_images_are_read_once_for_all_that_is_taken_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = [{"bytes": bytes([i]) * 9, "path": None} for i in range(6)]
    data = datasets.Dataset.from_dict({"image": cells})
    ids = pa.array([str(i) for i in range(6)], pa.large_string())
    plain = LabelTable(Images(dataset=data), ids, np.zeros(6, np.int32), ("cat",))
    hashed = dataclasses.replace(plain, images=plain.images.with_hashes())
    before = [plain.subset(np.array(rows)).images_digest for rows in ([0, 1, 2], [3, 4, 5], [2, 1, 0])]
    assert len({*before, plain.images_digest}) == 4
    monkeypatch.setattr(Images, "sources", lambda *_: pytest.fail("read again"))
    again = [hashed.subset(np.array(rows)).images_digest for rows in ([0, 1, 2], [3, 4, 5], [2, 1, 0])]
    assert (again, hashed.images_digest) == (before, plain.__dict__["images_digest"])
    assert hashed.fingerprint != hashed.subset(np.arange(5)).fingerprint
