"""Work over shards: the same bytes after a kill, on either engine, and nothing is done twice."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import labelwright as lw
from labelwright import cli
from labelwright.errors import ConfigError, DataError
from labelwright.labels.concepts import KNOWN_FROM
from labelwright.scale import repeats, work
from labelwright.scale.shards import Shard
from pictures import write_folders
from sharded import as_parquet, as_tars, bytes_of, feats, model_of_embeddings, model_of_images

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'labelwright[scale]'")


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    np.save(tmp_path / "feats.npy", feats())
    return tmp_path / "feats.npy"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "photos", size_px=8)


@dataclass(frozen=True)
class Killed:
    """Names of rows; the process dies once on the way, after the file of one shard has been begun."""

    folder: str
    at: int = -1

    def __call__(self, shard: Shard) -> pa.Table:
        (Path(self.folder) / f"{shard.first}.{os.getpid()}").touch()
        once = Path(self.folder) / "killed"
        if shard.first == self.at and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return work.noted([pa.table({"id": [str(row) for row in range(shard.first, shard.stop)]})], pa.schema([]), [])


def run(data: Path, out: Path, folder: Path, *, engine: str = "local", at: int = -1) -> work.Sharded:
    folder.mkdir(exist_ok=True)
    make = Killed(str(folder), at)
    return work.over_shards(data, out, make, what={"verb": "test"}, engine=engine, shard_rows=10, doing="testing")


def test_killed_driver__goes_on_to_the_same_bytes(vectors: Path, tmp_path: Path) -> None:
    run(vectors, tmp_path / "whole", tmp_path / "a")
    child = os.fork()
    if not child:
        run(vectors, tmp_path / "out", tmp_path / "b", at=30)
        os._exit(0)  # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(bytes_of(tmp_path / "out")) == 3
    (tmp_path / "out" / ".part-00003.parquet.7.tmp").write_bytes(b"half of it")  # as a kill while writing leaves it
    done = run(vectors, tmp_path / "out", tmp_path / "b")
    assert (done.n_before, done.n_shards, done.n_images) == (3, 5, 50)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*.tmp"))
    again = [name for name in os.listdir(tmp_path / "b") if name.endswith(f".{child}")]  # noqa: PTH208
    assert sorted(again) == [f"{first}.{child}" for first in (0, 10, 20, 30)]
    assert len(os.listdir(tmp_path / "b")) == 4 + 1 + 2  # noqa: PTH208 (the mark, and the two shards that were left)


def test_other_settings_and_other_folders_are_refused(vectors: Path, tmp_path: Path) -> None:
    run(vectors, tmp_path / "out", tmp_path / "a")
    before = bytes_of(tmp_path / "out")
    np.save(vectors, feats(49))
    with pytest.raises(ConfigError, match=r"begun with other settings or data \(shards\)"):
        run(vectors, tmp_path / "out", tmp_path / "a")
    assert bytes_of(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(ConfigError, match="mine exists"):
        run(vectors, tmp_path / "mine", tmp_path / "a")
    with pytest.raises(ConfigError, match="one file, and shards are written to a folder"):
        run(vectors, tmp_path / "out.csv", tmp_path / "a")
    with pytest.raises(ConfigError, match="engine=spark"):
        lw.label(tmp_path, vectors, out=tmp_path / "out", engine="spark")


def test_embed__unfinished_shards_are_no_data(photos: Path, tmp_path: Path) -> None:
    lw.embed(photos, out=tmp_path / "feats", model="labelwright/digits-clip", shard_rows=8)
    (tmp_path / "feats" / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"feats holds 2 of 3 shards: the work that writes it was not finished"):
        lw.inspect(tmp_path / "feats")
    with pytest.raises(DataError, match="feats holds 2 of 3 shards"):
        lw.label(model_of_embeddings(tmp_path / "stored", 64), tmp_path / "feats", out=tmp_path / "o", shard_rows=8)
    lw.embed(photos, out=tmp_path / "feats", model="labelwright/digits-clip", shard_rows=8)
    assert len(lw.inspect(tmp_path / "feats").table) == 20


def test_embed__another_function_and_other_images_are_refused(photos: Path, tmp_path: Path) -> None:
    code = "import numpy as np\ndef f(images):\n    return [np.asarray(i).mean((0, 1)) * {} for i in images]\n"
    (tmp_path / "fn.py").write_text(code.format(1))
    asked = {"out": tmp_path / "feats", "function": f"{tmp_path / 'fn.py'}:f", "shard_rows": 8}
    lw.embed(photos, **asked)
    (tmp_path / "fn.py").write_text(code.format(2))
    with pytest.raises(ConfigError, match=r"begun with other settings or data \(content\)"):
        lw.embed(photos, **asked)
    (tmp_path / "fn.py").write_text(code.format(1))
    (photos / "notes.txt").touch()  # is no image
    assert lw.embed(photos, **asked).n_before == 3
    (photos / "ant" / "1.png").write_bytes((photos / "bee" / "1.png").read_bytes())
    with pytest.raises(ConfigError, match=r"begun with other settings or data \(shards\)"):
        lw.embed(photos, **asked)


def test_label__a_bad_row_is_left_out_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    model, bad = model_of_images(tmp_path / "model"), sorted(photos.rglob("*.png"))[-1]
    bad.write_bytes(b"")
    with pytest.raises(DataError, match="--on-bad skip"):
        lw.label(model, photos, out=tmp_path / "o", shard_rows=8)
    done = lw.label(model, photos, out=tmp_path / "o", shard_rows=8, on_bad="skip")
    assert (done.n_before, done.n_shards, done.n_images) == (2, 3, 19)
    with pytest.raises(ConfigError, match=r"other settings or data \(on_bad\)"):
        lw.label(model, photos, out=tmp_path / "o", shard_rows=8)


def test_out__is_a_file(vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match="taken exists, and is a file"):
        run(vectors, tmp_path / "taken", tmp_path / "a")


def test_label__shards_say_what_one_table_says(photos: Path, vectors: Path, tmp_path: Path) -> None:
    model = model_of_images(tmp_path / "model")
    whole = lw.label(model, photos)
    forms: dict[str, Any] = {
        "folders": photos,
        "bytes": as_parquet(photos, tmp_path / "a.parquet", row_group=8),
        "tars": as_tars(photos, tmp_path / "tars", 2),
    }
    for name, data in forms.items():
        done = lw.label(model, data, out=tmp_path / f"of {name}", shard_rows=8)
        rows = pq.read_table(tmp_path / f"of {name}")
        assert (done.n_images, rows.num_rows) == (20, 20)
        if name != "tars":  # in another order there
            assert rows["label"].equals(whole["label"])
            assert np.allclose(rows["trust"], whole["trust"], atol=1e-6)
    stored = model_of_embeddings(tmp_path / "stored")
    lw.label(stored, vectors, out=tmp_path / "of-vectors", shard_rows=20)
    rows, whole = pq.read_table(tmp_path / "of-vectors"), lw.label(stored, vectors)
    assert rows["id"].to_pylist() == whole["id"].to_pylist()
    assert rows["label"].equals(whole["label"])
    for data, said in ((vectors, "holds embeddings, and the model"), (photos, "holds images, and the model")):
        with pytest.raises(DataError, match=said):
            lw.label(model if data is vectors else stored, data, out=tmp_path / said[:9], shard_rows=8)


def test_label__rows_left_out_and_options_that_need_all_images(photos: Path, tmp_path: Path) -> None:
    model = model_of_images(tmp_path / "model")
    (photos / "bee" / "1.png").write_bytes(b"")
    done = lw.label(model, photos, out="memory://labels", shard_rows=8, on_bad="skip")
    assert done.n_images == 19
    assert [each["where"] for each in done.left_out] == [str(photos / "bee" / "1.png")]
    assert len(fsspec.filesystem("memory").glob("/labels/part-*.parquet")) == 3
    with pytest.raises(ConfigError, match="shards are labelled one by one"):
        lw.label(model, photos, out=tmp_path / "x", shard_rows=8, novel=True)


def test_embed_and_annotate__shards_are_data_again(photos: Path, tmp_path: Path) -> None:
    digits, names = "labelwright/digits-clip", ["zero", "one", "two"]
    lw.embed(photos, out=tmp_path / "feats", model=digits, shard_rows=8)
    lw.embed(photos, out=tmp_path / "feats.parquet", model=digits)
    parts, whole = pq.read_table(tmp_path / "feats"), pq.read_table(tmp_path / "feats.parquet")
    assert parts["label"].equals(whole["label"])
    vectors = [np.array(table["embedding"].to_pylist()) for table in (parts, whole)]
    assert np.allclose(*vectors, atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors[0], axis=1), 1, atol=1e-5)
    found = lw.inspect(tmp_path / "feats").table  # the vectors, not the images that the column of paths names
    assert (found.fingerprint, len(found)) == (lw.inspect(tmp_path / "feats.parquet").table.fingerprint, len(whole))
    tars = as_tars(photos, tmp_path / "tars", 2)
    lw.embed(tars, out=tmp_path / "of-tars", model=digits)
    assert lw.inspect(f"{tmp_path}/of-tars/*.parquet").table.counts().tolist() == found.counts().tolist()
    for data in (tars, tars / "000.tar"):
        with pytest.raises(DataError, match=r"000\.tar: a tar is read by embed") as raised:
            lw.inspect(data)
        assert "and give feats" in str(raised.value)
    done = lw.annotate(f"{tars}/*.tar", model=digits, out=tmp_path / "sets", classes=names, on_bad="skip", shard_rows=8)
    assert done.n_shards == 2
    assert done.n_images == 0  # labels that are not in the list of classes
    lw.annotate(
        photos, model=digits, out=tmp_path / "own", classes=["ant", "bee", "cow"], shard_rows=8, templates="one"
    )
    lw.annotate(photos, model=digits, out=tmp_path / "own.parquet", classes=["ant", "bee", "cow"], templates="one")
    table, alone = lw.load(tmp_path / "own"), lw.load(tmp_path / "own.parquet")
    assert table.class_names == alone.class_names == ("ant", "bee", "cow")
    assert table.candidates is not None
    assert alone.candidates is not None
    assert table.candidates.classes.tolist() == alone.candidates.classes.tolist()


def test_embed_and_audit__an_id_in_two_shards_is_told(photos: Path, tmp_path: Path) -> None:
    table = pq.read_table(as_parquet(photos, tmp_path / "a.parquet", row_group=10))
    names = [f"i{k}" for k in range(18)] + ["i2", "i3"]
    pq.write_table(table.set_column(2, "id", [names]), tmp_path / "a.parquet", row_group_size=10)
    said = f"2 rows have the id of another, as 'i2' ({tmp_path}/a.parquet, block 0 to 1, and {tmp_path}/a.parquet, "
    done = lw.embed(tmp_path / "a.parquet", out=tmp_path / "feats", model="labelwright/digits-clip", shard_rows=10)
    assert done.notices[0].startswith(said + "block 1 to 2): give each its own")
    found = lw.audit(tmp_path / "a.parquet", out=tmp_path / "audit", model="none", shard_rows=10)
    assert found.summary["notices"][0].startswith(said)
    assert repeats.repeated_ids([], [], 0) == ""
    done = lw.embed(photos, out=tmp_path / "alone", model="labelwright/digits-clip", shard_rows=8)
    assert done.notices == ()


def test_shards_without_a_usable_row__have_the_columns_of_the_others(photos: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"none"] * 3, "label": ["ant"] * 3}), tmp_path / "a.parquet")
    as_parquet(photos, tmp_path / "b.parquet", row_group=10)
    data, digits = [tmp_path / "a.parquet", tmp_path / "b.parquet"], "labelwright/digits-clip"
    for _ in range(2):  # the second finds all of it there
        done = lw.embed(data, out=tmp_path / "feats", model=digits, shard_rows=10, on_bad="skip")
        assert (done.n_images, len(done.left_out), done.n_shards) == (20, 3, 3)
    assert pq.read_table(tmp_path / "feats")["embedding"].null_count == 0
    assert len(lw.inspect(tmp_path / "feats").table) == 20
    for again, model in ((data, digits), (tmp_path / "feats", "auto")):
        name = f"audit by {model}".replace("/", " ")
        found = lw.audit(again, out=tmp_path / name, shard_rows=10, on_bad="skip", model=model)
        assert found.summary["n_images"] == 20
        assert "outlier_score" in pq.read_table(tmp_path / name).column_names


def test_annotate__shards_hold_how_well_the_model_knows_the_classes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, path in enumerate(sorted(photos.rglob("*.png"))):
        path.rename(photos / f"{i}.png")  # no image has a label
    how: dict[str, Any] = {"model": "labelwright/digits-clip", "classes": ["ant", "bee", "cow", "emu", "fox"]}
    how |= {"on_bad": "skip", "templates": "one"}
    wanted = lw.annotate(photos, out=tmp_path / "whole.parquet", **how).counts["knowledge"]
    done = lw.annotate(photos, out=tmp_path / "sets", shard_rows=8, **how)
    assert wanted == pytest.approx(done.found["knowledge"], abs=0.02)
    before = bytes_of(tmp_path / "sets")
    next((tmp_path / "sets").glob("*.parquet")).unlink()
    assert lw.annotate(photos, out=tmp_path / "sets", shard_rows=8, **how).found == done.found
    assert bytes_of(tmp_path / "sets") == before
    candidates = lw.load(tmp_path / "sets").candidates
    assert candidates is not None
    assert candidates.knowledge == done.found["knowledge"] < KNOWN_FROM
    words = ["annotate", str(photos), "--out", str(tmp_path / "sets"), "--shard-rows", "8", "--on-bad", "skip"]
    (tmp_path / "names.txt").write_text("\n".join(how["classes"]))
    assert cli.run([*words, "--model", how["model"], "--classes", f"{tmp_path}/names.txt", "--templates", "one"]) == 0
    assert "does not seem to know these classes" in capsys.readouterr().out
    tars = as_tars(photos, tmp_path / "tars", 2)
    assert lw.annotate(tars, out=tmp_path / "tars-sets", **how | {"shard_rows": 8}).found["knowledge"] < 99


def test_command_line__says_what_was_written_and_what_is_missing(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of_embeddings(tmp_path / "model")
    words = ["label", str(model), str(vectors), "--out", str(tmp_path / "out"), "--shard-rows", "20"]
    assert cli.run(words) == 0
    assert "50 images in 3 shards" in capsys.readouterr().out
    assert cli.run(words) == 0
    assert "50 images in 3 shards, 3 of them there before" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.run([*words[:4], str(tmp_path / "far"), "--engine", "ray"]) == 2
    assert "'labelwright[scale]'" in capsys.readouterr().err
    assert not (tmp_path / "far").exists()
    assert cli.run([*words[:4], str(tmp_path / "bad"), "--shard-rows", "0"]) == 2
    assert "shard_rows=0 is not possible" in capsys.readouterr().err


# ---- Ray ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers on this machine."""
    import ray

    with pytest.MonkeyPatch.context() as patched:
        here = Path(__file__).parents[2]
        patched.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent / "src")]))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_ray__labels_as_the_local_engine(cluster: Any, vectors: Path, photos: Path, tmp_path: Path) -> None:
    stored = model_of_embeddings(tmp_path / "stored")
    for name, model, data in (("v", stored, vectors), ("p", model_of_images(tmp_path / "model"), photos)):
        for engine in ("local", "ray"):
            lw.label(model, data, out=tmp_path / f"{name}-{engine}", engine=engine, shard_rows=8)
        assert bytes_of(tmp_path / f"{name}-ray") == bytes_of(tmp_path / f"{name}-local")
    with pytest.raises(DataError, match="holds images, and the model was trained on embeddings"):
        lw.label(stored, photos, out=tmp_path / "x", engine="ray")


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_ray__killed_worker(cluster: Any, vectors: Path, tmp_path: Path) -> None:
    run(vectors, tmp_path / "whole", tmp_path / "a")
    done = run(vectors, tmp_path / "out", tmp_path / "b", engine="ray", at=20)
    assert (tmp_path / "b" / "killed").exists()
    assert (done.n_before, done.n_images) == (0, 50)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


@needs_ray
def test_ray__killed_driver(vectors: Path, tmp_path: Path) -> None:
    model = model_of_embeddings(tmp_path / "model")
    lw.label(model, vectors, out=tmp_path / "whole", shard_rows=2)
    words = ["label", str(model), str(vectors), "--out", str(tmp_path / "out"), "--shard-rows", "2", "--engine", "ray"]
    source = str(Path(lw.__file__).parents[1])
    driver = subprocess.Popen([sys.executable, "-m", "labelwright", *words], env={**os.environ, "PYTHONPATH": source})
    while driver.poll() is None and len(bytes_of(tmp_path / "out")) < 3:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert 3 <= len(bytes_of(tmp_path / "out")) < 25
    done = lw.label(model, vectors, out=tmp_path / "out", shard_rows=2)  # the rest on the other engine
    assert done.n_before >= 3
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_ray__no_cluster_answers() -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        work._check_answers("127.0.0.1:1")
    for address in ("", "auto", "local"):
        work._check_answers(address)
