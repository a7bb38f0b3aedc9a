"""`audit` over shards finds what was planted, as in one piece; a part that is missing is made anew, the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import labelwright as lw
from labelwright import cli
from labelwright.errors import ConfigError, DataError
from labelwright.scale import shards
from labelwright.scale.rows import BATCH_VECTORS
from sharded import bytes_of

N, C, D = 1200, 4, 8


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray[Any, Any]]:
    """Embeddings with 5% of the labels wrong, two copies in the test rows and one row far from all; the wrong rows."""
    draw = np.random.default_rng(0)
    truth = draw.integers(C, size=N)
    feats = (draw.standard_normal((C, D))[truth] + 0.5 * draw.standard_normal((N, D))).astype(np.float32)
    feats[1000], feats[1001] = feats[17], feats[18]
    wrong = draw.choice(np.arange(100, 1000), 60, replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + draw.integers(1, C, 60)) % C
    labels[1000], labels[17] = 0, 1
    path = tmp_path_factory.mktemp("planted") / "feats.npz"
    split = np.where(np.arange(N) >= 1000, "test", "train")
    np.savez(path, embeddings=feats, labels=np.array([f"c{k}" for k in labels]), split=split)
    return path, wrong


def test_finds_what_was_planted_as_in_one_piece(planted: tuple[Path, np.ndarray[Any, Any]], tmp_path: Path) -> None:
    path, wrong = planted
    found = lw.audit(path, out=tmp_path / "audit", shard_rows=500, fail_on="two_labels,outliers")
    rows, whole = pq.read_table(tmp_path / "audit"), lw.audit(path)
    assert rows["id"].to_pylist() == whole.rows["id"].to_pylist() == [str(row) for row in range(N)]
    marked, alone = (np.array(["wrong_label" in f for f in t["flags"].to_pylist()]) for t in (rows, whole.rows))
    assert marked[wrong].mean() > 0.9
    assert abs(marked[wrong].mean() - alone[wrong].mean()) < 0.06
    assert np.isin(np.flatnonzero(marked), wrong).mean() > 0.8
    groups = rows["duplicate_group"].to_pylist()
    assert [row for row in range(N) if groups[row] is not None] == [17, 18, 1000, 1001]
    assert (groups[17], groups[18]) == (groups[1000], groups[1001])
    assert np.flatnonzero(rows["is_copy_in_test"]).tolist() == [17, 18]
    assert found.summary["counts"]["copy_in_test"] == whole.summary["counts"]["copy_in_test"] == 2
    assert found.summary["counts"]["two_labels"] == whole.summary["counts"]["two_labels"]
    assert found.failed[0] == "two_labels"
    assert (found.summary["n_test"], found.summary["n_classes"], found.summary["n_labelled"]) == (200, C, N)
    assert abs(found.summary["estimated_wrong"] - 0.05) < 0.02
    assert [row["id"] for row in found.summary["worst"]] == found.rows["id"].to_pylist()
    with pytest.raises(ConfigError, match=r"audit was begun with other settings or data \(shards, n_shards\)"):
        lw.audit(path, out=tmp_path / "audit", shard_rows=600)
    with pytest.raises(ConfigError, match="is one file"):
        lw.audit(path, out=tmp_path / "audit.csv", shard_rows=600)
    assert not (tmp_path / "audit.csv").exists()
    before = bytes_of(tmp_path / "audit")
    (tmp_path / "audit" / "part-00001.parquet").unlink()
    (tmp_path / "audit" / "_facts" / "part-00002.parquet").unlink()
    (tmp_path / "audit" / "_found.npz").unlink()
    lw.audit(path, out=tmp_path / "audit", shard_rows=500)
    assert bytes_of(tmp_path / "audit") == before


def test_without_labels__copies_are_found_and_nothing_is_judged(tmp_path: Path) -> None:
    feats = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    feats[50] = feats[3]
    np.save(tmp_path / "a.npy", feats)
    done = lw.audit(tmp_path / "a.npy", out=tmp_path / "out", shard_rows=20)
    rows = pq.read_table(tmp_path / "out")
    assert (rows.num_rows, done.summary["n_labelled"], done.summary["counts"]["wrong_label"]) == (60, 0, 0)
    groups = rows["duplicate_group"].to_pylist()
    assert [row for row in range(60) if groups[row] is not None] == [3, 50]


def test_input_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = list[object](), (shards.find_shards, shards.digest_of)

    def counting(function: Any) -> Any:
        return lambda *args, **kwargs: (asked.append(function), function(*args, **kwargs))[1]

    monkeypatch.setattr(shards, "find_shards", counting(plain[0]))
    monkeypatch.setattr(shards, "digest_of", counting(plain[1]))
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(60, 4)))
    lw.audit(tmp_path / "a.npy", out=tmp_path / "out", shard_rows=20)
    assert asked == [*plain]


def test_without_labels__widths_differ(tmp_path: Path) -> None:
    for name, width in (("a", 4), ("b", 3)):
        np.save(tmp_path / f"{name}.npy", np.ones((20, width), np.float32))
    with pytest.raises(DataError, match=r"b\.npy.*: embeddings of 3 features where .*a\.npy.* has 4"):
        lw.audit([tmp_path / "a.npy", tmp_path / "b.npy"], out=tmp_path / "out", shard_rows=20)


def test_without_labels__widths_differ_within_a_shard(tmp_path: Path) -> None:
    rows = [[1.0, float(i), *([0.0] if i < BATCH_VECTORS else [])] for i in range(BATCH_VECTORS + 10)]
    pq.write_table(pa.table({"embedding": rows}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet.*: embeddings of 2 features where rows before have 3"):
        lw.audit(tmp_path / "a.parquet", out=tmp_path / "out", shard_rows=50_000)


def test_images__copies_and_dark_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    for name, n in (("ant", 3), ("bee", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(n):
            pixels = draw.integers(0, 255, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    Image.open(tmp_path / "photos" / "ant" / "0.png").save(tmp_path / "photos" / "bee" / "7.bmp")
    Image.new("RGB", (16, 16), (3, 3, 3)).save(tmp_path / "photos" / "bee" / "8.png")
    words = ["audit", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--shard-rows", "3"]
    assert cli.run([*words, "--model", "none", "--fail-on", "two_labels", "--json"]) == 1
    assert '"features": "none"' in capsys.readouterr().out
    flags = dict(zip(*pq.read_table(tmp_path / "out").select(["id", "flags"]).to_pydict().values(), strict=True))
    assert flags["ant/0.png"] == flags["bee/7.bmp"] == "exact_copy,two_labels"
    assert flags["bee/8.png"] == "dark,blank"
    assert [flags[name] for name in ("ant/1.png", "bee/0.png")] == ["", ""]
    with pytest.raises(ConfigError, match="writes a folder"):
        lw.audit(tmp_path / "photos", shard_rows=3)
