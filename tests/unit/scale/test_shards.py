"""Every form of input is cut into shards that hold each row exactly once, and bad ones are named."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelwright.data.read import load
from labelwright.data.table import SPLITS
from labelwright.errors import ConfigError, DataError
from labelwright.scale.shards import digest_of, find_shards
from labelwright.scale.tables import Reading, batches, known_of
from pictures import write_folders
from sharded import as_parquet, as_tars, feats

LABELS = ["ant"] * 12 + ["bee"] * 6 + ["cow"] * 2


def read(
    data: object, n_rows: int | None = None, how: Reading | None = None
) -> tuple[int, list[str], list[str | None]]:
    """Number of shards, ids and labels of all rows."""
    ids, labels, shards = list[str](), list[str | None](), find_shards(data, n_rows=n_rows)
    for shard in shards:
        for batch in batches(shard, Reading()):
            known = known_of(batch)
            ids += known["id"].to_pylist()
            labels += known["label"].to_pylist()
    return len(shards), ids, labels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "photos", size_px=8)


FORMS: dict[str, tuple[Callable[[Path, Path], object], int]] = {
    "folders": (lambda photos, out: photos, 3),
    "parquet of bytes": (lambda photos, out: as_parquet(photos, out / "a.parquet", row_group=4), 3),
    "parquet of paths": (lambda photos, out: as_parquet(photos, out / "a.parquet", row_group=8, as_paths=True), 3),
    "tars": (lambda photos, out: as_tars(photos, out / "tars", 2), 2),
    "a pattern": (lambda photos, out: f"{as_tars(photos, out / 'tars', 4)}/*.tar", 4),
    "a file URL": (lambda photos, out: f"file://{photos}", 3),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_row_once(form: str, photos: Path, tmp_path: Path) -> None:
    made, n_shards = FORMS[form]
    found, ids, labels = read(made(photos, tmp_path), n_rows=8)
    assert (found, len(set(ids)), len(ids)) == (n_shards, 20, 20)
    assert sorted(map(str, labels)) == LABELS


def test_images_behind_a_url(photos: Path) -> None:
    memory = fsspec.filesystem("memory")
    for file in photos.rglob("*.png"):
        memory.pipe_file(f"/far/{file.relative_to(photos)}", file.read_bytes())
    found, ids, labels = read("memory://far", n_rows=8)
    assert (found, sorted(map(str, labels))) == (3, LABELS)
    assert ids == sorted(str(file.relative_to(photos)) for file in photos.rglob("*.png"))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_embeddings_in_blocks(suffix: str, tmp_path: Path) -> None:
    path, x = tmp_path / f"feats{suffix}", feats()
    names = np.array(["ant", "bee"])[np.arange(50) % 2]
    if suffix == ".npy":
        np.save(path, x)
    elif suffix == ".npz":
        np.savez(path, embeddings=x, labels=names)
    else:
        pq.write_table(pa.table({"embedding": list(x), "label": names}), path, row_group_size=10)
    seen = []
    for shard in find_shards(path, n_rows=20):
        for batch in batches(shard, Reading()):
            assert batch.source is not None
            assert batch.source.stored is not None
            rows = batch.source.rows
            seen.append(batch.source.stored.read(rows, "clean", rows * 0).numpy())
    assert np.array_equal(np.concatenate(seen), x)
    found, ids, labels = read(path, n_rows=20)
    assert (found, ids) == (3, [str(row) for row in range(50)])
    assert labels == ([None] * 50 if suffix == ".npy" else names.tolist())


def test_bad_rows__stop_or_are_left_out(photos: Path) -> None:
    (photos / "ant" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        read(photos)
    assert [p.where for p in caught.value.problems] == [str(photos / "ant" / "3.png")]
    shard = find_shards(photos)[0]
    (batch,) = batches(shard, Reading(on_bad="skip"))
    assert [each["where"] for each in batch.left_out] == [str(photos / "ant" / "3.png")]
    assert len(known_of(batch)["id"]) == 19


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda folder: folder / "none", "no such file or folder"),
        (lambda folder: "memory://nothing/*.tar", "no file matches"),
        (lambda folder: "gibberish://x", "is no URL that can be read"),
        (lambda folder: [3], "shards are made of files"),
    ],
)
def test_input_that_is_not_there(made: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, ConfigError), match=said):
        find_shards(made(tmp_path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not all of it")
    with pytest.raises(DataError, match=r"a.parquet cannot be read"):
        find_shards(tmp_path / "a.parquet")
    np.savez_compressed(tmp_path / "b.npz", embeddings=feats())
    with pytest.raises(DataError, match=r"b.npz is compressed"):
        find_shards(tmp_path / "b.npz")
    (tmp_path / "c.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"c.tar cannot be read"):
        read(tmp_path / "c.tar")
    np.save(tmp_path / "e.npy", np.array([[1.0], [2.0], [np.nan]]))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "e.npy", n_rows=2)
    assert caught.value.problems[0].where == f"{tmp_path / 'e.npy'} row 3"


def test_digest__changes_with_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", feats())
    first = digest_of(find_shards(tmp_path / "a.npy"))
    assert digest_of(find_shards(tmp_path / "a.npy")) == first
    assert digest_of(find_shards(tmp_path / "a.npy", n_rows=7)) != first
    np.save(tmp_path / "a.npy", feats(51))
    assert digest_of(find_shards(tmp_path / "a.npy")) != first


def test_input_given_twice_or_called_alike(photos: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        as_parquet_without_ids(photos, tmp_path / name / "p.parquet")
    _, ids, _ = read([tmp_path / "a" / "p.parquet"] * 2)
    assert (len(ids), len(set(ids))) == (20, 20)
    _, ids, _ = read([tmp_path / "a" / "p.parquet", tmp_path / "b" / "p.parquet"])
    assert (len(ids), len(set(ids))) == (40, 40)


def as_parquet_without_ids(photos: Path, path: Path) -> None:
    pq.write_table(pq.read_table(as_parquet(photos, path, row_group=8)).drop_columns("id"), path)


def test_a_table_beside_images_is_not_read(photos: Path, tmp_path: Path) -> None:
    as_parquet(photos, tmp_path / "a.parquet", row_group=8)
    (photos / "meta.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    found, ids, _ = read(photos, n_rows=8)
    assert (found, len(set(ids))) == (3, 20)


LAYOUTS = {
    "unlabelled images": ("ant/1", "ant/2", "bee/3", "unlabeled/4", "Unlabelled/5", "6"),
    "splits": ("train/ant/1", "train/bee/2", "test/ant/3", "unlabeled/4", "notes/5", "6"),
    "a split beside classes": ("ant/1", "bee/2", "test/ant/3", "test/bee/4", "test/unlabeled/5"),
    "splits inside the classes": ("ant/train/1", "ant/val/2", "bee/train/3", "bee/val/4"),
    "a class called train": ("ant/1", "train/2", "train/inner/3"),
    "runs and what is left behind": ("ant/1", "bee/2", "@eaDir/3", "ant/__MACOSX/4", "ant/run/review/pictures/5"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_read_as_without_shards(layout: str, photos: Path, tmp_path: Path) -> None:
    """Classes, splits and unlabelled images; what is not read without shards is not read here."""
    root, pictures = tmp_path / "data", sorted(photos.rglob("*.png"))
    for name, picture in zip(LAYOUTS[layout], pictures, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture.rename(root / f"{name}.png")
    for run in root.rglob("run"):
        for name in ("config.yaml", "data.json"):
            (run / name).write_text("")
    whole = load(root)
    split = [None] * len(whole) if whole.split is None else [SPLITS[s] for s in whole.split]
    wanted = {
        key: (whole.class_names[c] if c >= 0 else None, s)
        for key, c, s in zip(whole.ids.to_pylist(), whole.labels, split, strict=True)
    }
    found = {}
    for shard in find_shards(root, n_rows=2):
        for batch in batches(shard, Reading()):
            known = known_of(batch)
            labels, splits = (known[name].to_pylist() if name in known else [None] * 9 for name in ("label", "split"))
            found |= {key: (c, s) for key, c, s in zip(known["id"].to_pylist(), labels, splits, strict=False)}
    assert found == wanted


@pytest.mark.parametrize("column", [True, False])
def test_splits_by_the_names_of_parquet_files(*, column: bool, photos: Path, tmp_path: Path) -> None:
    """As without shards: a column says it, else the name; else test images would be learned from."""
    (tmp_path / "data").mkdir()
    for name in ("train-0", "test-0"):
        path = as_parquet(photos, tmp_path / "data" / f"{name}.parquet", row_group=8)
        if column:
            pq.write_table(pq.read_table(path).append_column("split", pa.array(["validation"] * 20)), path)
    found = [
        known_of(batch)["split"].to_pylist()
        for shard in find_shards(tmp_path / "data")
        for batch in batches(shard, Reading())
    ]
    assert found == ([["validation"] * 20] * 2 if column else [["test"] * 20, ["train"] * 20])
    (shard,) = find_shards(tmp_path / "data" / "test-0.parquet")
    assert shard.split == ""


@pytest.mark.parametrize("name", ["metadata.csv", "labels.json"])
def test_a_table_with_the_labels_of_a_folder_is_named(name: str, photos: Path, tmp_path: Path) -> None:
    """Its folders would be taken for classes; verbs that read images alone need no labels."""
    (tmp_path / "set").mkdir()
    photos.rename(tmp_path / "set" / "data")
    (tmp_path / "set" / name).write_text("file_name,label\n")
    with pytest.raises(DataError, match=rf"has its labels in {name}"):
        read(tmp_path / "set")
    (shard,) = find_shards(tmp_path / "set")
    assert sum(len(known_of(batch)["id"]) for batch in batches(shard, Reading(only_images=True))) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_link_that_leads_nowhere_and_a_name_that_is_not_utf8(photos: Path) -> None:
    (photos / "ant" / "gone.png").symlink_to("/nowhere.png")
    digest_of(find_shards(photos))
    with pytest.raises(DataError, match="1 missing_image"):
        read(photos)
    (photos / "ant" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)ant/caf.*not UTF-8 text.*rename it"):
        find_shards(photos)


def test_a_folder_named_as_a_pattern(photos: Path, tmp_path: Path) -> None:
    photos.rename(tmp_path / "my [2024] ants")
    assert len(read(tmp_path / "my [2024] ants", n_rows=8)[1]) == 20


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 4)])
def test_rows_without_an_embedding__stop_or_are_left_out(kind: pa.DataType, tmp_path: Path) -> None:
    rows: list[list[float] | None] = feats().tolist()
    rows[3] = rows[17] = None
    rows[40:] = [None] * 10  # a whole row group
    pq.write_table(pa.table({"embedding": pa.array(rows, kind)}), tmp_path / "a.parquet", row_group_size=20)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.parquet", n_rows=20)
    assert [p.where for p in caught.value.problems] == [f"{tmp_path / 'a.parquet'} row {n}" for n in (4, 18)]
    ids, left_out = list[str](), list[dict[str, str]]()
    for shard in find_shards(tmp_path / "a.parquet", n_rows=20):
        for batch in batches(shard, Reading(on_bad="skip")):
            ids += [] if batch.source is None else known_of(batch)["id"].to_pylist()
            left_out += batch.left_out
    assert ids == [str(row) for row in range(40) if row not in (3, 17)]
    assert len(left_out) == 12
    assert left_out[1]["detail"] == "0 numbers where most rows have 4"


@pytest.mark.parametrize("root", ["", "file://"])
def test_missing_image__the_parquet_file_and_row_that_name_it(root: str, photos: Path, tmp_path: Path) -> None:
    paths = [f"{root}{file}" for file in sorted(photos.rglob("*.png"))]
    paths[9] = f"{root}{photos}/gone.png"
    pq.write_table(pa.table({"image": paths}), tmp_path / "a.parquet", row_group_size=8)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.parquet", n_rows=8)
    (gone,) = caught.value.problems
    assert gone.where == f"{root}{photos}/gone.png ({tmp_path / 'a.parquet'} row 10)"
    assert gone.detail == "there is no such file"


def test_images_behind_a_url__names_that_look_like_patterns_and_urls(photos: Path) -> None:
    content, names = (photos / "ant" / "1.png").read_bytes(), ["a[1].png", "b*.png", "c::d.png", "e f?#%20é.png"]
    for name in names:
        fsspec.filesystem("memory").pipe_file(f"/odd/{name}", content)
    assert read("memory://odd")[1] == names
    assert digest_of(find_shards("memory://odd")) == digest_of(find_shards("memory://odd"))


def test_images_behind_a_url__a_network_that_fails_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/flaky/a.png", b"some")
    shard = find_shards("memory://flaky")[0]

    def fails(*_: object, **__: object) -> bytes:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(memory), "cat_file", fails)
    with pytest.raises(DataError, match=r"memory:///flaky/a\.png cannot be read: no answer"):
        list(batches(shard, Reading(on_bad="skip")))


def test_tar__notes_that_hold_no_label_are_named(photos: Path, tmp_path: Path) -> None:
    image = (photos / "ant" / "1.png").read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key, notes in (("1", b'{"label": "ant"}'), ("2", b"{ant}"), ("3", b'{"label": ["ant"]}'), ("4", b"[]")):
            for suffix, content in ((".png", image), (".json", notes)):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.tar")
    found = [(p.where, p.detail) for p in caught.value.problems]
    assert found == [("a.tar/2.png", "its .json is not JSON"), ("a.tar/3.png", '"label" in its .json is not one label')]
    (shard,) = find_shards(tmp_path / "a.tar")
    (batch,) = batches(shard, Reading(on_bad="skip"))
    assert known_of(batch)["label"].to_pylist() == ["ant", None]
    (batch,) = batches(shard, Reading(only_images=True))  # whose labels nobody looks at
    assert len(known_of(batch)["id"]) == 4


def test_embedding_that_is_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"embedding": ["[1, 2]"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="its column embedding holds string"):
        read(tmp_path / "a.parquet")


def test_folders_given_twice_or_called_alike(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    photos.rename(tmp_path / "other" / "photos")
    write_folders(photos, size_px=8)
    assert len(read([photos, photos])[1]) == 20
    assert len(set(read([photos, tmp_path / "other" / "photos"])[1])) == 40
