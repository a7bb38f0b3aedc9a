"""`embed`: what comes in a function or an ONNX file goes into a file that `fit` and `inspect` read, or is refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import labelwright as lw
from labelwright import cli
from labelwright.data.embeddings import load_embeddings
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError, DataError
from labelwright.types import Candidates
from pictures import write_folders

COUNTS = {"ant": 6, "bee": 5, "cow": 5}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "photos", COUNTS, size_px=8)


def means(images: list[Any]) -> np.ndarray[Any, Any]:
    """Four numbers of each image."""
    arrays = [np.asarray(image, dtype=np.float64) / 255 for image in images]
    return np.stack([[*x.mean((0, 1)), x.std()] for x in arrays])


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embed__is_read_back_row_by_row(photos: Path, tmp_path: Path, suffix: str) -> None:
    table = lw.load(photos)
    hidden = np.arange(len(table)) % 3 == 0
    table = dataclasses.replace(
        table,
        labels=np.where(hidden, -1, table.labels).astype(np.int32),
        truth=table.labels,
        truth_names=table.class_names,
        split=(np.arange(len(table)) % 5 == 4).astype(np.int8),
        groups=np.arange(len(table)) // 2,
    )
    done = lw.embed(table, function=means, out=tmp_path / f"feats{suffix}", batch_size=7)
    assert (done.n_images, done.n_features, done.left_out) == (16, 4, [])
    found = load_embeddings(done.path)
    assert found.table.class_names == table.class_names
    assert np.allclose(found.feats, means([table.image(row) for row in range(16)]), atol=1e-6)
    for name in ("labels", "truth", "split"):
        assert getattr(found.table, name).tolist() == getattr(table, name).tolist()
    assert found.table.ids.to_pylist() == table.ids.to_pylist()
    groups = found.table.groups
    assert groups is not None
    assert ((groups[:, None] == groups) == (table.groups[:, None] == table.groups)).all()
    if suffix == ".parquet":
        paths = pq.read_table(done.path)["path"].to_pylist()
    else:
        with np.load(done.path) as file:
            paths = file["paths"].tolist()
    assert all(Path(path).is_file() for path in paths)


def test_embed__fit_learns_from_the_file(photos: Path, tmp_path: Path) -> None:
    done = lw.embed(photos, function=means, out=tmp_path / "feats.npz")
    run = lw.fit(done.path, out=tmp_path / "run", device="cpu")
    assert run.summary["n_images"] + run.summary["test"]["n_scored"] == 16
    labels = run.labels
    assert labels is not None
    assert set(labels["id"].to_pylist()) <= set(lw.load(photos).ids.to_pylist())


def test_embed__candidates_go_into_parquet_alone(photos: Path, tmp_path: Path) -> None:
    table = lw.load(photos)
    offsets = torch.arange(17) * 2
    classes = torch.tensor([[c % 2, 2] for c in range(16)], dtype=torch.int32).flatten()
    sets = Candidates(offsets, classes, torch.tensor([0.25, 0.75] * 16))
    bare: LabelTable = dataclasses.replace(table, labels=np.full(16, -1, np.int32), candidates=sets)
    with pytest.raises(ConfigError, match=r"which an \.npz cannot hold"):
        lw.embed(bare, function=means, out=tmp_path / "feats.npz")
    done = lw.embed(bare, function=means, out=tmp_path / "feats.parquet")
    found = load_embeddings(done.path, classes=table.class_names).table.candidates
    assert found is not None
    assert found.of(1).tolist() == [1, 2]
    assert torch.equal(found.offsets, sets.offsets)
    assert found.weights is not None
    assert torch.allclose(found.weights, torch.tensor([0.25, 0.75] * 16))


def test_embed__answers_of_annotators_go_into_columns(photos: Path, tmp_path: Path) -> None:
    images = sorted(str(path) for path in photos.rglob("*.png"))
    answers = [(path, Path(path).parent.name, "" if i % 3 else "ant") for i, path in enumerate(images)]
    wide, tall = tmp_path / "wide.csv", tmp_path / "tall.csv"
    wide.write_text("\n".join(["image,ann,bob", *(",".join(row) for row in answers)]), encoding="utf-8")
    pairs = [(path, zip(("ann", "bob"), both, strict=True)) for path, *both in answers]
    rows = [f"{path},{who},{answer}" for path, some in pairs for who, answer in some if answer]
    tall.write_text("\n".join(["image,who,label", *rows]), encoding="utf-8")
    expected = lw.load(wide, annotators=("ann", "bob"))
    assert expected.votes is not None
    for table, columns in ((wide, ["ann", "bob"]), (tall, "who")):
        out = tmp_path / f"{table.stem}.parquet"
        done = lw.embed(table, out=out, function=means, annotator_columns=columns)
        assert done.annotators == ("ann", "bob")
        again = lw.load(out, annotators=done.annotators)
        assert (again.class_names, again.annotators) == (expected.class_names, expected.annotators)
        assert again.votes is not None
        assert np.array_equal(again.votes, expected.votes)
    with pytest.raises(ConfigError, match=r"candidate labels, which an \.npz cannot hold"):
        lw.embed(wide, out=tmp_path / "f.npz", function=means, annotator_columns="ann,bob")
    wide.write_text("\n".join(["image,ann,embedding", *(",".join(row) for row in answers)]), encoding="utf-8")
    with pytest.raises(DataError, match="an annotator is called 'embedding', as a column of the file"):
        lw.embed(wide, out=tmp_path / "g.parquet", function=means, annotator_columns="ann,embedding")


def test_embed__a_broken_image_stops_or_is_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "ant" / "zero.png").write_bytes(b"")
    with pytest.raises(DataError):
        lw.embed(photos, function=means, out=tmp_path / "feats.npz")
    done = lw.embed(photos, function=means, out=tmp_path / "feats.npz", on_bad="skip")
    assert done.n_images == 16
    assert [Path(each["where"]).name for each in done.left_out] == ["zero.png"]


def failing(images: list[Any]) -> Any:
    raise ValueError("no such layer")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: means(images)[1:], r"gave \[6, 4\] for 7 images, not \[7, D\]"),
        (lambda images: means(images)[:, :, None], r"gave \[7, 4, 1\] for 7 images"),
        (lambda images: means(images)[:, : 4 if len(images) == 7 else 3], r"gave \[2, 3\] for 2 images, not \[2, 4\]"),
        (lambda images: ["a"] * len(images), "returned list, not numbers"),
        (lambda images: None, r"gave \[\] for 7 images"),
        (failing, "failing failed on 7 images from .*: ValueError: no such layer"),
    ],
    ids=["too few rows", "maps", "another width", "words", "nothing", "an error"],
)
def test_embed__what_a_function_must_not_give(photos: Path, tmp_path: Path, function: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lw.embed(photos, function=function, out=tmp_path / "feats.npz", batch_size=7)
    assert list(tmp_path.glob("*feats*")) == []


def test_embed__not_a_number_names_the_image(photos: Path, tmp_path: Path) -> None:
    def spoiled(images: list[Any]) -> Any:
        feats = means(images)
        feats[2, 1] = np.nan
        return feats

    with pytest.raises(DataError, match=r"spoiled gave a value that is not a finite number for .*ant.*\.png"):
        lw.embed(photos, function=spoiled, out=tmp_path / "feats.npz")
    assert not (tmp_path / "feats.npz").exists()


def test_embed__settings_that_cannot_be(photos: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.npz"
    np.savez(there, embeddings=np.ones((2, 2)))
    needs = tmp_path / "needs.py"
    needs.write_text("import not_installed_here\n", encoding="utf-8")
    for how, message in (
        ({"out": tmp_path / "feats.csv", "function": means}, "neither .npz nor .parquet"),
        ({"out": there, "function": means}, "there.npz exists"),
        ({"out": there / "feats.npz", "function": means}, "there.npz is a file"),
        ({"out": tmp_path / "feats.npz"}, "embed needs one model"),
        ({"out": tmp_path / "feats.npz", "function": means, "onnx": "net.onnx"}, "embed needs one model"),
        ({"out": tmp_path / "feats.npz", "function": "means"}, "is not MODULE:NAME"),
        ({"out": tmp_path / "feats.npz", "function": "nowhere:means"}, "nowhere cannot be imported"),
        ({"out": tmp_path / "feats.npz", "function": f"{needs}:means"}, "install not_installed_here where labelwright"),
        ({"out": tmp_path / "feats.npz", "function": "json:means"}, "json has no function 'means'"),
        ({"out": tmp_path / "feats.npz", "function": means, "batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            lw.embed(photos, **how)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="holds embeddings already"):
        lw.embed(there, function=means, out=tmp_path / "feats.npz")


def test_command__a_function_in_a_file(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import numpy as np\n\n\ndef embed(images):\n    return [np.asarray(i).mean((0, 1)) for i in images]\n"
    (tmp_path / "own_embedder.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for where in ("own_embedder.py:embed", "own_embedder:embed"):
        out = f"{where[12:15].strip(':')}.npz"
        assert cli.run(["embed", str(photos), "--function", where, "--out", out]) == 0
        assert f"16 images, 3 features each: {out}" in capsys.readouterr().out
    assert cli.run(["embed", str(photos), "--function", "own_embedder.py:no", "--out", "c.npz"]) == 2
    assert "it has: embed" in capsys.readouterr().err


def test_embed__onnx_without_onnxruntime_says_what_to_install(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="onnxruntime, which is not installed") as caught:
        lw.embed(photos, onnx=tmp_path / "net.onnx", out=tmp_path / "feats.npz")
    assert caught.value.fix == "pip install 'labelwright[export]'"


class Session:
    """Stands for onnxruntime.InferenceSession: the mean of each channel, of two images at a time."""

    shape: ClassVar[list[Any]] = [2, 3, 8, 8]

    def __init__(self, path: str, providers: list[str]) -> None:
        assert providers == ["CPUExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"shape": self.shape, "name": "x", "type": "tensor(float)"})]

    def get_outputs(self) -> list[Any]:
        return [type("Output", (), {"name": "feats"})]

    def run(self, outputs: list[str], given: dict[str, Any]) -> list[Any]:
        assert outputs == ["feats"]
        assert given["x"].shape == (2, 3, 8, 8)
        return [given["x"].mean((2, 3))]


def test_embed__onnx_of_a_fixed_batch_sees_normalised_pixels(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = type(sys)("onnxruntime")
    runtime.InferenceSession = Session  # type: ignore[attr-defined]
    runtime.get_available_providers = lambda: ["CPUExecutionProvider"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    (tmp_path / "net.onnx").touch()
    how: dict[str, Any] = {"onnx": tmp_path / "net.onnx", "out": tmp_path / "feats.npz", "device": "cpu"}
    done = lw.embed(photos, **how, batch_size=5, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    table = lw.load(photos)
    pixels = np.stack([np.asarray(table.image(row), np.float32) for row in range(16)])
    assert done.n_features == 3
    assert np.allclose(load_embeddings(done.path).feats, (pixels / 255 - 0.5).mean((1, 2)) / 0.25, atol=1e-5)
    done.path.unlink()
    with pytest.raises(ConfigError, match="takes images of 8 px, not 16"):
        lw.embed(photos, **how, size=16)
    monkeypatch.setattr(Session, "shape", ["n", 3, "h", "w"])
    with pytest.raises(ConfigError, match="takes images of any size"):
        lw.embed(photos, **how)
    monkeypatch.setattr(Session, "shape", [1, 8, 8, 3])
    with pytest.raises(ConfigError, match="not one input"):
        lw.embed(photos, **how)


def test_embed__onnx_in_its_own_runtime(photos: Path, tmp_path: Path) -> None:
    onnx: Any = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("pixels", ["n", 3, 8, 8]), ("feats", ["n", 3]))
    ]
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["feats"]),
    ]
    graph = onnx.helper.make_graph(nodes, "means", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "net.onnx")
    out, where = tmp_path / "feats.parquet", tmp_path / "net.onnx"
    done = lw.embed(photos, onnx=where, out=out, batch_size=7, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    table = lw.load(photos)
    expected = means([table.image(row) for row in range(16)])[:, :3]
    assert np.allclose(load_embeddings(done.path).feats, expected, atol=1e-5)
    where.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is not an ONNX model that runs here"):
        lw.embed(photos, onnx=where, out=tmp_path / "again.npz")
