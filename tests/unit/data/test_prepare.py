"""Reading, splitting and checking before anything is trained."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from labelwright.data.prepare import contents, describe_data, native_size, open_source, prepare
from labelwright.data.read import load
from labelwright.data.table import NOTICES
from labelwright.errors import ConfigError, DataError
from labelwright.pipeline.inspect import inspect
from pictures import COUNTS, spoil, write_folders


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path / "cache"))


def write_table(root: Path, columns: dict[str, list[str]]) -> Path:
    """photos.csv beside the class folders of `write_folders`, with more columns."""
    images = [f"{name}/{i}.png" for name, n in COUNTS.items() for i in range(n)]
    labels = [name for name, n in COUNTS.items() for _ in range(n)]
    with (root / "photos.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", *columns])
        writer.writerows(zip(images, labels, *columns.values(), strict=True))
    return root / "photos.csv"


def test_prepare__holds_out_a_share_of_every_class(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos", {"ant": 20, "bee": 10, "cow": 5})
    prepared = prepare(root, size_px=8)
    assert prepared.test is not None
    assert prepared.test_is == "held out"
    assert prepared.train.table.counts().tolist() == [16, 8, 4]
    assert prepared.test.table.counts().tolist() == [4, 2, 1]
    ids = [*prepared.train.table.ids.to_pylist(), *prepared.test.table.ids.to_pylist()]
    assert len(set(ids)) == 35  # no image on both sides
    assert prepare(root, size_px=8, seed=1).test.table.ids.to_pylist() != prepared.test.table.ids.to_pylist()
    assert prepare(root, size_px=8).test.table.ids.to_pylist() == prepared.test.table.ids.to_pylist()


def test_prepare__pixels_follow_their_rows(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos", size_px=8)
    prepared = prepare(root, size_px=8)
    for side in (prepared.train, prepared.test):
        assert side is not None
        for row in range(len(side.table)):
            pixels = side.pixels.read(side.rows[[row]])[0].numpy()
            assert np.array_equal(pixels, np.asarray(side.table.image(row)))


def test_prepare__the_data_say_which_are_test_images(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos")
    is_test = [i % 3 == 0 for i in range(20)]
    prepared = prepare(write_table(root, {"split": ["test" if yes else "train" for yes in is_test]}), size_px=8)
    assert prepared.test is not None
    assert prepared.test_is == "split"
    assert (len(prepared.train.table), len(prepared.test.table)) == (13, 7)
    given = prepare(root / "photos.csv", test=root, size_px=8)
    assert given.test is not None
    assert (given.test_is, len(given.train.table), len(given.test.table)) == ("given", 13, 20)


def test_prepare__no_group_on_both_sides(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos")
    table = write_table(root, {"patient": [str(i // 2) for i in range(20)]})
    prepared = prepare(table, group="patient", size_px=8)
    assert prepared.test is not None
    train, test = (set(side.table.ids.to_pylist()) for side in (prepared.train, prepared.test))
    place = {name: i for i, name in enumerate(load(table).ids.to_pylist())}
    assert not {place[name] // 2 for name in train} & {place[name] // 2 for name in test}
    assert len(train) + len(test) == 20


def test_prepare__exact_copies_stay_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folders(tmp_path / "photos", {"ant": 20, "bee": 10, "cow": 10})
    for i in range(12):  # in another file format
        with Image.open(root / "ant" / f"{i}.png") as image:
            image.save(root / "ant" / f"copy-{i}.bmp")
    for seed in range(4):
        prepared = prepare(root, size_px=8, seed=seed)
        assert prepared.test is not None
        held = set(prepared.test.table.ids.to_pylist())
        assert all((f"ant/{i}.png" in held) == (f"ant/copy-{i}.bmp" in held) for i in range(12))
        assert 4 <= prepared.test.table.counts()[0] <= 8
        assert prepared.n_copies_in_test == 0


def test_prepare__copies_of_embeddings_and_groups(tmp_path: Path) -> None:
    feats = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    feats[30:40] = feats[:10]
    np.savez(tmp_path / "e.npz", embeddings=feats, labels=np.arange(60) % 2, groups=np.arange(60) // 2)
    prepared = prepare(tmp_path / "e.npz")
    assert prepared.test is not None
    seen = contents([prepared.train, prepared.test])
    n = len(prepared.train.table)
    assert not set(seen[:n]) & set(seen[n:])
    assert not set(prepared.train.table.groups) & set(prepared.test.table.groups)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_prepare__embeddings_are_grouped_by_the_column_that_is_named(suffix: str, tmp_path: Path) -> None:
    feats = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    rows = {"label": ["ant", "bee"] * 30, "patient": [f"p{i // 4}" for i in range(60)]}
    if suffix == ".npy":
        np.save(tmp_path / "e.npy", feats)
        lines = ["label,patient", *map(",".join, zip(*rows.values(), strict=True))]
        (tmp_path / "e.csv").write_text("\n".join(lines), encoding="utf-8")
    else:
        pq.write_table(pa.table({"embedding": feats.tolist(), **rows}), tmp_path / "e.parquet")
    data = tmp_path / f"e{suffix}"
    prepared = prepare(data, group="patient")
    assert prepared.train.table.groups is not None
    assert prepared.test is not None
    assert not set(prepared.train.table.groups) & set(prepared.test.table.groups)
    assert "group" not in str(inspect(data, group="patient").problems)
    for call in (prepare, inspect):
        with pytest.raises(DataError, match="no column 'cow' to group by"):
            call(data, group="cow")


def test_prepare__groups_of_an_npz_are_its_key(tmp_path: Path) -> None:
    feats = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    np.savez(tmp_path / "e.npz", embeddings=feats, labels=np.arange(60) % 2, groups=np.arange(60) // 4)
    assert prepare(tmp_path / "e.npz", group="track").train.table.groups is not None
    with pytest.raises(ConfigError, match="no column 'patient' for --group, but the key groups"):
        prepare(tmp_path / "e.npz", group="patient")
    np.savez(tmp_path / "f.npz", embeddings=feats, labels=np.arange(60) % 2)
    with pytest.raises(ConfigError, match="no column 'track' for --group"):
        prepare(tmp_path / "f.npz", group="track")


def test_prepare__test_images_that_are_training_images_are_counted(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos")
    other = write_folders(tmp_path / "test", {"ant": 2, "bee": 2, "cow": 2})
    for i in range(2):
        shutil.copy(root / "bee" / f"{i}.png", other / "bee" / f"{i}.png")
    kept = prepare(root, test=other, size_px=8)
    streamed = prepare(root, test=other, size_px=8, cache_limit_gb=0)
    assert kept.n_copies_in_test == streamed.n_copies_in_test >= 2
    same = prepare(root, test=root, size_px=8)
    assert same.n_copies_in_test == len(same.train.table)
    assert same.n_tested_on_copies == (same.train.table.labels >= 0).sum() > 0


def test_prepare__no_test_images_if_none_are_wanted(tmp_path: Path) -> None:
    prepared = prepare(write_folders(tmp_path / "photos"), test_frac=0, size_px=8)
    assert (prepared.test, prepared.test_is, len(prepared.train.table)) == (None, "none", 20)
    assert describe_data(prepared)["splits"] == {"train": 20, "test": 0}


def test_prepare__problems_of_both_sources_together(tmp_path: Path) -> None:
    root, other = write_folders(tmp_path / "photos"), write_folders(tmp_path / "other", {"ant": 1, "yak": 1})
    bad = spoil(root)
    with pytest.raises(DataError) as stopped:
        prepare(root, test=other, size_px=8)
    found = {problem.where for problem in stopped.value.problems if problem.kind not in NOTICES}
    assert found == {*bad, str(other / "yak" / "0.png")}


def test_prepare__each_problem_is_listed_once(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos")
    spoil(root)
    prepared = prepare(root, on_bad="skip", size_px=8)
    told = describe_data(prepared)
    assert [problem["kind"] for problem in told["quarantined"]] == ["unreadable_image"] * 3
    assert sorted(problem["kind"] for problem in told["notices"]) == ["empty_class", "unsupported_file"]
    assert told["class_names"] == ["ant", "bee", "cow"]  # no class that nothing could be learned of


def test_open_source__a_test_set_need_not_hold_every_class(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos", {"ant": 2})
    source = open_source(root, classes=["ant", "bee"], size_px=8)
    assert source.table.labels.tolist() == [0, 0]
    with pytest.raises(DataError, match="2 unknown_label"):
        open_source(root, classes=["bee", "cow"], size_px=8)


@pytest.mark.parametrize(("side", "size"), [(8, 32), (40, 32), (41, 64), (100, 64)])
def test_native_size(side: int, size: int, tmp_path: Path) -> None:
    table = load(write_folders(tmp_path / "photos", {"ant": 3}, size_px=side), on_bad="report")
    assert native_size(table) == size


def test_native_size__passes_over_unreadable_images(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos", {"ant": 3}, size_px=100)
    spoil_me = root / "ant" / "0.png"
    spoil_me.write_bytes(b"")
    assert native_size(load(root, on_bad="report")) == 64


@pytest.mark.parametrize("size_px", [0, 7])
def test_prepare__too_small(size_px: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too small"):
        prepare(write_folders(tmp_path / "photos"), size_px=size_px)
