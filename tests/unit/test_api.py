"""The verbs as Python functions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import labelwright as lw
from labelwright.errors import ConfigError, DataError
from labelwright.pipeline import time_budget
from labelwright.pipeline.run_config import command_of, from_config
from labelwright.reporting.checks import PER_TAB
from labelwright.reporting.gallery import read_gallery
from pictures import write_folders

FAST: dict[str, Any] = {"method": "ce", "size": 8, "device": "cpu", "evaluations": 0}
SETTINGS = {"batch_size": 8, "epochs": 1}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty labelled images of three classes, and four without a label."""
    root = write_folders(tmp_path_factory.mktemp("data") / "photos")
    write_folders(root, {"unlabeled": 4}, seed=1)
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> lw.Run:
    return lw.fit(photos, out=tmp_path_factory.mktemp("runs") / "run", test=photos, set=SETTINGS, **FAST)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_fit__summary_and_labels(run: lw.Run) -> None:
    assert run.summary["n_images"] == 24
    assert run.summary["n_labelled"] == 20
    assert run.summary["situation"] == "few_labels"
    assert run.summary["test"]["n_scored"] == 20  # the unlabelled ones are not scored
    assert run.report.exists()
    rows = run.labels.to_pylist()
    assert len(rows) == 24
    for row in rows:
        folder = row["id"].split("/")[0]
        assert row["source"] == ("predicted" if folder == "unlabeled" else "given")
        assert folder in ("unlabeled", row["label"])
        assert 0 <= row["trust"] <= 1
        assert row["runner_up"] != row["label"]


def test_predict__is_label_and_agrees_with_the_test_scores(run: lw.Run, photos: Path) -> None:
    rows = run.predict(photos, device="cpu")
    assert rows.equals(lw.label(run.path, photos, device="cpu"))
    assert set(rows["source"].to_pylist()) == {"predicted"}
    pairs = [(row["label"], row["id"].split("/")[0]) for row in rows.to_pylist()]
    right = [label == truth for label, truth in pairs if truth != "unlabeled"]
    assert np.mean(right) == pytest.approx(run.summary["test"]["accuracy"])
    assert json.loads(rows.schema.metadata[b"left_out"]) == []


def test_fit__an_array_of_images_by_name_and_by_object_is_one_run(run: lw.Run, photos: Path, tmp_path: Path) -> None:
    table = lw.load(photos)
    again = lw.fit(table, out=tmp_path / "run", test=table, set=SETTINGS, **FAST)
    assert again.labels.equals(run.labels)
    assert (again.path / "model" / "model.safetensors").read_bytes() == (
        run.path / "model" / "model.safetensors"
    ).read_bytes()


def test_fit__epochs_are_what_time_allows_and_stay_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_budget, "images_per_second", lambda *args, **how: 16.0)
    # 16 labelled images remain for training: ten epochs in ten seconds, none of them for scoring.
    given = {"set": {"batch_size": 16}, "minutes": 1 / 6, **{**FAST, "evaluations": 0}}
    done = lw.fit(photos, out=tmp_path / "run", **given)
    resolved = done.config["resolved"]
    assert (resolved["settings"]["epochs"], resolved["images_per_second"]) == (10, 16.0)
    told = capsys.readouterr().err
    assert "about 10 seconds of training on this machine for 10 epochs, measured on three steps" in told
    assert "--epochs 200 would take 3 minutes" in told
    (done.path / "summary.json").unlink()  # resumed on a machine that is slower, it is the same run
    monkeypatch.setattr(time_budget, "images_per_second", lambda *args, **how: 1.0)
    again = lw.fit(photos, out=tmp_path / "run", resume=True, **given)
    assert again.config["resolved"]["settings"]["epochs"] == 10
    assert from_config(done.path / "config.yaml")["epochs"] == 10
    assert "--epochs 10" in command_of(done.config)
    slow = lw.fit(photos, out=tmp_path / "slow", **given)
    assert slow.config["resolved"]["settings"]["epochs"] == 5
    assert "fewer would teach nothing, so --minutes 0.166667 is passed over" in capsys.readouterr().err


def test_fit__the_report_has_a_picture_and_facts_of_every_image_to_check(run: lw.Run) -> None:
    gallery = read_gallery(run.path)
    assert {"bee/0.png", "unlabeled/0.png"} & set(gallery["items"])
    assert set(gallery["large"]) == set(gallery["items"])
    labels = {row["id"]: row["label"] for row in run.labels.to_pylist()}
    for key, item in gallery["items"].items():
        names, probs = zip(*item["top"], strict=True)
        assert len(set(names)) == 3
        assert sum(probs) == pytest.approx(1, abs=1e-3)
        assert len(item["neighbours"]) == 4
        for other, label, how in item["neighbours"]:
            assert how == "given"
            assert other.split("/")[0] == label
            assert other != key
        if key in labels and "rather" not in item and key.startswith("unlabeled"):
            assert item["history"][-1][1] == labels[key]  # the answer of the run comes last
    assert sum(map(sum, gallery["matrix"])) == 20
    wrong = 20 - sum(row[i] for i, row in enumerate(gallery["matrix"]))
    assert sum(key.startswith("test/") for key in gallery["items"]) == min(wrong, PER_TAB)
    assert sum(each["right"] for each in gallery["trust"]["bins"]) == 20 - wrong


def test_resume__a_finished_run_is_left_alone(run: lw.Run, photos: Path) -> None:
    before = files_of(run.path)
    again = lw.fit(photos, out=run.path, test=photos, set=SETTINGS, resume=True, **FAST)
    assert again.summary == run.summary
    assert files_of(run.path) == before


def test_resume__writes_only_the_report_if_that_is_missing(run: lw.Run, photos: Path) -> None:
    before = files_of(run.path)
    run.report.unlink()
    lw.fit(photos, out=run.path, test=photos, set=SETTINGS, resume=True, **FAST)
    assert files_of(run.path).keys() == before.keys()


@pytest.mark.parametrize("which", ["training", "test"])
def test_resume__refuses_changed_images(which: str, run: lw.Run, photos: Path, tmp_path: Path) -> None:
    other = write_folders(tmp_path / "other", seed=2)
    train, test = (other, photos) if which == "training" else (photos, other)
    before = files_of(run.path)
    with pytest.raises(DataError, match=f"the {which} images changed since this run began"):
        lw.fit(train, out=run.path, test=test, set=SETTINGS, resume=True, **FAST)
    assert files_of(run.path) == before


def test_resume__names_the_setting_that_decides_which_images_are_held_out(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    lw.fit(photos, out=out, method="ce", device="cpu", model="descriptor")
    assert repr(lw.Run(out)) == f"Run({str(out)!r})"
    with pytest.raises(ConfigError, match="seed was 0 when this run began and is 3 now"):
        lw.fit(photos, out=out, method="ce", device="cpu", model="descriptor", resume=True, seed=3)
    with pytest.raises(ConfigError, match=r"test_frac was 0.2 when this run began and is 0.4 now"):
        lw.fit(photos, out=out, method="ce", device="cpu", model="descriptor", resume=True, test_frac=0.4)


def test_resume__begins_a_run_that_is_not_there_but_not_among_other_files(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("chapter one", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        lw.fit(photos, out=tmp_path / "mine", set=SETTINGS, resume=True, **FAST)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert lw.fit(photos, out=tmp_path / "new", set=SETTINGS, resume=True, **FAST).report.exists()


def test_inspect__a_problem_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,label\nno.png,a\nnone.png,b\n", encoding="utf-8")
    found = lw.inspect(tmp_path / "t.csv")
    assert [problem.kind for problem in found.problems] == ["missing_image", "missing_image"]
    assert found.runs == "ce"  # nothing is left over: judged as it is


def test_inspect__a_method_for_the_situation(photos: Path) -> None:
    found = lw.inspect(photos / "ant", classes=["ant", "bee"])
    assert (found.situation.name, found.situation.method(), found.runs) == ("no_labels", "cap", "cap")
    found = lw.inspect(photos, novel=2)
    assert (found.situation.name, found.situation.method(), found.runs) == ("open_world", "lps", "simgcd")


def test_inspect__what_is_scored_on_too(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos", {"ant": 3, "bee": 3})
    write_folders(tmp_path / "test", {"ant": 2, "cow": 1}, seed=1)
    (tmp_path / "test" / "ant" / "0.png").write_bytes((photos / "bee" / "1.png").read_bytes())
    (tmp_path / "test" / "ant" / "1.png").write_bytes(b"no image")
    found = lw.inspect(photos, test=tmp_path / "test")
    assert found.test is not None
    assert len(found.test) == 3
    assert "3 test images, 2 labelled" in found.notices
    assert "1 of the training images are among the test images too: scores would be too good" in found.notices
    told = {problem.kind: problem for problem in found.problems}
    assert "label 'cow' is not one of the 2 classes" in told["unknown_label"].detail
    assert told["unreadable_image"].where == str(tmp_path / "test" / "ant" / "1.png")
    both = lw.inspect(tmp_path / "test", test=photos, novel=1, check_images=False)
    assert "6 test images, 3 labelled" in both.notices  # bees are beyond the names
    with pytest.raises(DataError, match="no such file or folder"):
        lw.inspect(photos, test=tmp_path / "gone")


def test_embeddings__inspect_divides_columns_as_fit_does(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    feats, labels = draw.normal(size=(60, 4)), np.repeat(["ant", "bee", "cow"], 20)
    feats[:, 0] += np.repeat([0, 3, 6], 20)
    feats[:, 1] *= 5000
    feats[7, 1] = np.nan  # is listed, and decides nothing
    np.savez(tmp_path / "units.npz", embeddings=feats.astype(np.float32), labels=labels)
    found = lw.inspect(tmp_path / "units.npz")
    assert [problem.kind for problem in found.problems] == ["bad_embedding"]
    fitted = lw.fit(tmp_path / "units.npz", out=tmp_path / "run", test_frac=0, on_bad="skip", device="cpu")
    (notice,) = found.notices
    assert notice in fitted.summary["warnings"]
    assert notice.startswith("the columns of the embeddings deviate by ")
    np.savez(tmp_path / "even.npz", embeddings=draw.normal(size=(60, 4)), labels=labels)
    assert lw.inspect(tmp_path / "even.npz").notices == ()
    np.savez(tmp_path / "none.npz", embeddings=np.full((60, 4), np.nan, np.float32), labels=labels)
    assert lw.inspect(tmp_path / "none.npz").notices == ()


def test_embeddings__scored_on_some_of_the_classes(tmp_path: Path) -> None:
    feats = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.savez(tmp_path / "train.npz", embeddings=feats, labels=["ant", "bee"] * 10)
    np.savez(tmp_path / "test.npz", embeddings=feats[:3], labels=["ant", "", "ant"])
    found = lw.inspect(tmp_path / "train.npz", test=tmp_path / "test.npz")
    assert [problem for problem in found.problems if problem.kind == "empty_class"] == []
    assert "3 of the training embeddings are among the test embeddings too: scores would be too good" in found.notices
    run = lw.fit(tmp_path / "train.npz", test=tmp_path / "test.npz", out=tmp_path / "run", method="nearest_mean")
    assert run.summary["test"]["n_scored"] == 2
    assert lw.evaluate(run.path, tmp_path / "test.npz")["n_scored"] == 2


def test_fit__groups_of_a_table_need_to_be_there(photos: Path, tmp_path: Path) -> None:
    table = lw.load(photos)
    with pytest.raises(DataError, match="has no column 'track' to group by"):
        lw.fit(table, out=tmp_path / "run", group="track", set=SETTINGS, **FAST)
    grouped = dataclasses.replace(table, groups=np.arange(len(table)))
    assert lw.fit(grouped, out=tmp_path / "run", group="track", set=SETTINGS, **FAST).report.exists()


def test_label__embedded_images_are_copied_whole(run: lw.Run, tmp_path: Path) -> None:
    import datasets

    pictures = [Image.fromarray(np.full((9, 9, 3), shade, np.uint8)) for shade in (10, 200)]
    data = datasets.Dataset.from_dict({"image": pictures, "id": ["a/b", "a-b"]}).cast_column("image", datasets.Image())
    rows = lw.label(run.path, data, out=tmp_path / "sorted", device="cpu")
    copies = sorted((tmp_path / "sorted").rglob("*.png"))
    assert sorted(int(np.asarray(Image.open(path)).max()) for path in copies) == [10, 200]  # none lost to its namesake
    assert pq.read_table(tmp_path / "sorted" / "labels.parquet").equals(rows)


def test_import__is_light_and_so_is_inspect(photos: Path) -> None:
    code = (
        "import sys, labelwright as lw; print('torch' in sys.modules, lw.__version__); lw.inspect(sys.argv[1])\n"
        "print(*{'sklearn', 'scipy', 'transformers', 'datasets', 'torch.utils.tensorboard'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(photos)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert told == ["False", lw.__version__]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lw.nothing  # noqa: B018


def test_package__dir_is_what_there_is() -> None:
    assert set(dir(lw)) == {*lw.__all__, "__version__"}
    assert {"fit", "inspect", "label", "load_model", "review"} <= set(dir(lw))
    with pytest.raises(lw.LabelwrightError):
        lw.load("nothing here")


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_images__bytes_and_pixels_are_hashed_once_by_a_verb(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_folders(tmp_path / "photos", {"ant": 6, "bee": 6}, size_px=16)
    paths = sorted(photos.rglob("*.png"))
    encoded = {path.read_bytes(): path for path in paths}
    pixels = {np.asarray(Image.open(path)).tobytes(): path for path in paths}
    if kind == "parquet":
        rows = [{"image": {"bytes": path.read_bytes(), "path": None}, "label": path.parent.name} for path in paths]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "photos.parquet")
    data = photos if kind == "folder" else tmp_path / "photos.parquet"
    blake2b, counts = hashlib.blake2b, Counter[tuple[str, Path]]()

    def counted(content: Any = b"", **how: Any) -> Any:
        seen = bytes(content)
        counts.update([("bytes", encoded[seen])] if seen in encoded else [])
        counts.update([("pixels", path) for raw, path in pixels.items() if seen.endswith(raw) and len(seen) < 800])
        return blake2b(content, **how)

    def most(verb: Callable[[], Any]) -> dict[str, int]:
        counts.clear()
        verb()
        return {kind: max((n for (what, _), n in counts.items() if what == kind), default=0) for kind in KINDS}

    KINDS = ("bytes", "pixels")
    monkeypatch.setattr(hashlib, "blake2b", counted)
    out, clip = tmp_path / "run", {"model": "labelwright/digits-clip", "device": "cpu"}
    n_encoded = 0 if kind == "folder" else 1  # a file is known by its size and time
    assert most(lambda: lw.fit(data, out=out, method="nearest_mean", **clip)) == {"bytes": n_encoded, "pixels": 1}
    assert most(lambda: lw.label(out, data, device="cpu")) == {"bytes": n_encoded, "pixels": 0}
    assert most(lambda: lw.audit(data, out=tmp_path / "a.csv", **clip)) == {"bytes": n_encoded, "pixels": 1}
    if kind == "parquet":
        return
    streamed: dict[str, Any] = {"cache_limit_gb": 0, "epochs": 1, "size": 16, "method": "ce", "device": "cpu"}
    assert most(lambda: lw.fit(data, out=tmp_path / "streamed", **streamed)) == {"bytes": 1, "pixels": 0}
