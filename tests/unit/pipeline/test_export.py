"""pipeline/export.py: files that others serve give the model's own probabilities; labels reach the tools' formats."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import datasets
import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import labelwright as lw
from clip_folders import save_two_tower
from labelwright import cli
from labelwright.data.cache import resize_to_square
from labelwright.data.read import load
from labelwright.data.views import ViewSettings
from labelwright.encoders import backbones
from labelwright.errors import ConfigError, DataError, LabelwrightError
from labelwright.exporting import Format, onnx_file
from labelwright.exporting.onnx_file import write_onnx
from labelwright.exporting.served import Served
from labelwright.pipeline.export import CLASS_FOLDERS, EACH_NTH_IN_VAL, LABEL_WRITERS
from labelwright.pipeline.saved_model import load_model, without_paths
from labelwright.trust.strangers import Strangers
from pictures import write_folders

CPU = torch.device("cpu")
COUNTS = {"ant": 12, "bee": 6, "cow": 4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("data") / "photos", COUNTS, size_px=12)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    lw.fit(str(photos), out=out, model="resnet32", method="ce", epochs=1, size=8, test_frac=0.2, device="cpu")
    return out


@pytest.fixture(scope="module")
def as_onnx(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lw.export(run, out=tmp_path_factory.mktemp("onnx") / "made" / "m.onnx")


def ask(path: Path, inputs: np.ndarray) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: inputs}))


def test_onnx__answers_as_label_does_for_images_of_another_size(run: Path, photos: Path, as_onnx: Path) -> None:
    out = as_onnx
    rows = lw.label(run, photos, device="cpu", precision="fp32")
    labelled = {row["id"]: row for row in rows.to_pylist()}
    chosen = sorted(labelled)[:3]
    images = np.stack([np.asarray(Image.open(photos / key)) for key in chosen])  # 12 px; the network sees 8
    assert images.shape == (3, 12, 12, 3)
    saved = load_model(run, device=CPU)
    probs, label, trust = ask(out, images)
    assert probs.shape == (3, 3)
    assert np.allclose(probs.sum(1), 1, atol=1e-5)
    # Resized in the file to within two grey levels of the pixels that the network was trained on
    assert [saved.class_names[c] for c in label] == [labelled[key]["label"] for key in chosen]
    assert trust == pytest.approx([labelled[key]["trust"] for key in chosen], abs=0.03)
    small = np.stack([resize_to_square(Image.open(photos / key), size_px=8) for key in chosen])
    exact = ask(out, small)
    assert exact[2] == pytest.approx([labelled[key]["trust"] for key in chosen], abs=1e-4)
    metadata = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == ["ant", "bee", "cow"]
    assert [p.name for p in out.parent.iterdir()] == ["m.onnx"]


def test_documented_lines__need_onnxruntime_or_torch_alone(
    run: Path,
    as_onnx: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "deployment.md").read_text(encoding="utf-8")
    onnx_lines, torch_lines = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "labelwright" not in onnx_lines + torch_lines
    assert "torch" not in onnx_lines
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(as_onnx, "model.onnx")
    Image.open(photos / "ant" / "0.png").resize((30, 20)).save("photo.jpg")
    lw.export(run, format="torchscript", out="model.pt")
    for lines in (onnx_lines, torch_lines):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
            exec(compile(lines, "deployment.md", "exec"), {})
        name, trust = capsys.readouterr().out.split()
        assert name in COUNTS
        assert 0 < float(trust) < 1


def test_onnx__says_the_scale_of_images_of_more_than_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_folders(tmp_path / "photos", {"ant": 6, "bee": 6}, size_px=12)
    for file in photos.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 16).save(file)  # 12 bits in 16
    run = lw.fit(photos, out=tmp_path / "run", model="resnet32", method="ce", epochs=1, size=12, test_frac=0).path
    lw.export(run, out=tmp_path / "model.onnx")
    row = lw.label(run, photos / "bee" / "0.png", precision="fp32").to_pylist()[0]
    shutil.copyfile(photos / "bee" / "0.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "deployment.md").read_text(encoding="utf-8")
    found = dict[str, Any]()
    exec(compile(page.split("```python\n")[1].split("```")[0], "deployment.md", "exec"), found)
    assert json.loads(found["about"]["grey_range"]) == [0.0, 2047.0]  # the values are below 120 x 16
    assert found["names"][found["label"][0]] == row["label"]
    assert found["trust"][0] == pytest.approx(row["trust"], abs=1e-4)


def test_onnx__colours_and_edges_of_photographs_with_flat_areas(tmp_path: Path) -> None:
    """The converter takes `x + 1e-12` for x: without care the share of an orientation is 0 / 0 where no edge is."""
    net = backbones.build("descriptor", 3, seed=0)
    served = Served(net.eval(), 3, trust_of=lambda p, x: p.amax(1), mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    assert write_onnx(served, tmp_path / "m.onnx", size_px=64, n_features=0, metadata={}) <= 1e-4
    image = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    image[:, 20:40, 20:40] = 200
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(["probabilities"], {"images": image})[0]
    with torch.inference_mode():
        own = served(torch.from_numpy(image).permute(0, 3, 1, 2))[0].numpy()
    assert found == pytest.approx(own, abs=1e-4)


def test_onnx__strangeness_among_images_that_look_alike(tmp_path: Path) -> None:
    """In two columns nearest neighbours are as near as numbers can tell, and ranks of them move."""
    draw, radius = np.random.default_rng(0), np.repeat([1, 2.5], 200)
    angle = draw.uniform(0, 2 * np.pi, 400)
    feats = np.c_[radius * np.cos(angle), radius * np.sin(angle)] + draw.normal(0, 0.1, (400, 2))
    np.savez(tmp_path / "rings.npz", embeddings=feats.astype(np.float32), labels=np.repeat(["in", "out"], 200))
    run = lw.fit(tmp_path / "rings.npz", out=tmp_path / "run", device="cpu")
    assert run.summary["answer"]["name"] == "kernel"
    probs, label, trust, strangeness = ask(lw.export(run.path, out=tmp_path / "m.onnx"), feats.astype(np.float32))
    rows = lw.label(run.path, tmp_path / "rings.npz", device="cpu").to_pylist()
    assert [("in", "out")[c] for c in label] == [row["label"] for row in rows]
    usual = strangeness < 0.9
    assert trust[usual] == pytest.approx(np.array([row["trust"] for row in rows])[usual], abs=1e-4)
    assert strangeness == pytest.approx([row["strangeness"] for row in rows], abs=0.01)
    assert probs.shape == (400, 2)


def test_onnx__a_file_that_gives_nan_is_not_kept(tmp_path: Path) -> None:
    class Edges(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            length = x.mean(1).diff(dim=1).square().mean(2)[:, -3:]  # nothing where the image is of one colour
            return length / (length + 1e-12)

    served = Served(Edges(), 3, trust_of=lambda p, x: p.amax(1), mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    with pytest.raises(LabelwrightError, match="probabilities by up to nan, trust by up to nan"):
        write_onnx(served, tmp_path / "m.onnx", size_px=16, n_features=0, metadata={})


def test_onnx__every_kind_of_classifier(tmp_path: Path) -> None:
    tower = backbones.build(str(save_two_tower(tmp_path / "clip", "clip", size_px=16, patch_px=8)), 3, seed=0)
    stored = backbones.Classifier(
        backbones.Stored(), name="stored", n_features=5, n_outputs=4, head="centred", image_size_px=0, freeze=()
    )
    nn.init.normal_(stored.head.linear.weight)
    pair = backbones.Ensemble(
        [
            backbones.Classifier(
                backbones.Stored(), name="stored", n_features=5, n_outputs=3, head="mlp", image_size_px=0, freeze=()
            )
            for _ in range(2)
        ]
    )
    view = ViewSettings()
    looks = [F.normalize(torch.randn(30, n), dim=1).half() for n in (tower.n_features, 192, 5)]
    classes, scores = torch.arange(30) % 3, torch.tensor([0.0, 0.5, 0.5, 1.0])
    of_images = Strangers((looks[0], looks[1]), classes, torch.tensor([0.5, 0.9]), scores)
    of_features = Strangers((looks[2],), classes, torch.tensor([0.5]), scores)
    for net, size, outputs, strangers in (
        (tower, 16, (), of_images),
        (stored, 0, (1, -1, 0, 1), of_features),
        (pair, 0, (2, 0, 1), None),
    ):
        served = Served(
            net.eval(),
            max(outputs, default=2) + 1,
            outputs=outputs,
            trust_of=lambda p, x: p.amax(1) / 2,
            strangers=strangers,
            **({"mean": view.mean, "std": view.std} if size else {}),
        ).eval()
        worst = write_onnx(served, tmp_path / "m.onnx", size_px=size, n_features=5, metadata={})
        assert worst <= 1e-4
        assert len(served.outputs) == (3 if strangers is None else 4)
    x = torch.randn(40, 5)
    served = Served(stored, 4, trust_of=lambda p, x: p.amax(1), strangers=of_features).eval()
    probs, _, trust, strangeness = served(x)
    assert torch.equal(strangeness, of_features.strangeness(of_features.score((x,))))
    is_strange = strangeness > of_features.threshold
    assert 0 < is_strange.sum() < 40
    assert torch.equal(trust[~is_strange], probs.amax(1)[~is_strange])
    assert torch.allclose(trust, probs.amax(1) * ((1 - strangeness) / (1 - of_features.threshold)).clamp(max=1))


@pytest.mark.parametrize("shape", [(8, 8), (20, 20), (31, 47), (300, 200)])
def test_onnx__images_are_resized_as_at_training(shape: tuple[int, int]) -> None:
    served = Served(nn.Flatten(), 768, trust_of=lambda p, x: p.amax(1), mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    made = onnx_file._converted(served, torch.zeros(2, 3, 16, 16))
    onnx_file._put_before(made, 16)
    made.graph.output.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)  # noise: the worst there is
    pixels = session.run(["pixels"], {"images": image[None]})[0][0]
    expected = resize_to_square(Image.fromarray(image), size_px=16).transpose(2, 0, 1)
    assert np.abs(pixels - expected).max() <= 2


def test_onnx__a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = [Served(nn.Linear(3, 3), 3, trust_of=lambda p, x: p.amax(1)).eval() for _ in range(2)]
    other = onnx_file._converted(served[1], torch.zeros(2, 3))
    monkeypatch.setattr(onnx_file, "_converted", lambda served, example: other)
    with pytest.raises(LabelwrightError, match="other values than the model, probabilities by up to"):
        write_onnx(served[0], tmp_path / "m.onnx", size_px=0, n_features=3, metadata={})
    assert list(tmp_path.iterdir()) == []
    assert write_onnx(served[1], tmp_path / "m.onnx", size_px=0, n_features=3, metadata={}) <= 1e-6


def test_torchscript__takes_the_networks_own_size(run: Path, tmp_path: Path) -> None:
    out = lw.export(run, format="torchscript", out=tmp_path / "made" / "m.pt")
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    saved = load_model(run, device=CPU)
    served = Served(saved.net, 3, trust_of=saved.trust_of, mean=saved.view.mean, std=saved.view.std)
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.load"):
        made = torch.jit.load(str(out))
    with torch.inference_mode():
        for one, own in zip(made(images.float()), served(images), strict=True):
            assert torch.allclose(one.float(), own.float(), atol=1e-5)


def test_torchscript__a_disk_that_is_full(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    lines = (
        "import resource, sys",
        "from labelwright import cli",
        "words = ['export', sys.argv[1], '--format', 'torchscript', '--out', sys.argv[2]]",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))",  # bytes of a file
        "sys.exit(cli.run(words))",
    )
    words = [sys.executable, "-c", "\n".join(lines), str(run), str(tmp_path / "out" / "m.pt")]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "m.pt cannot be written: File too large" in ended.stderr.replace("\n", " ")
    assert list((tmp_path / "out").iterdir()) == []


def test_hub_and_single_file__label_as_the_run_does(run: Path, photos: Path, tmp_path: Path) -> None:
    own = lw.label(run, photos, device="cpu")
    hub = lw.export(run, format="hub", out=tmp_path / "hub")
    one = lw.export(run, format="safetensors", out=tmp_path / "m.safetensors")
    for made in (hub, one):
        assert lw.label(made, photos, device="cpu").equals(own)
    card = (hub / "README.md").read_text(encoding="utf-8")
    for said in ("license:", "Intended use", "Limits", "accuracy |", "ant, bee, cow"):
        assert said in card
    assert sorted(p.name for p in hub.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_without_paths__a_folder_of_this_machine_is_only_named(tmp_path: Path) -> None:
    (tmp_path / "my-clip").mkdir()
    config = {"classifier": {"name": str(tmp_path / "my-clip"), "n_outputs": 3}, "format": 1}
    assert without_paths(config) == {"classifier": {"name": "my-clip", "n_outputs": 3}, "format": 1}
    assert without_paths({"classifier": {"name": "openai/clip"}})["classifier"]["name"] == "openai/clip"
    there = str(tmp_path / "of-another-machine" / "my-clip")
    config = {"classifier": {"name": there, "transformers": {"_name_or_path": there, "model_type": "clip"}}}
    assert without_paths(config) == {
        "classifier": {"name": "my-clip", "transformers": {"_name_or_path": "my-clip", "model_type": "clip"}}
    }


@pytest.fixture(scope="module")
def rows(run: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(run / "labels.parquet").to_pylist())


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    return {name: lw.export(run, format=name, out=folder / name) for name in LABEL_WRITERS}  # type: ignore[arg-type]


def test_label_studio__given_labels_are_annotations(made: dict[str, Path], rows: list[dict[str, Any]]) -> None:
    tasks = json.loads((made["label-studio"] / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["id"] for task in tasks] == [row["id"] for row in rows]
    interface = ElementTree.parse(made["label-studio"] / "interface.xml").getroot()
    assert [each.get("value") for each in interface.iter("Choice")] == ["ant", "bee", "cow"]
    for task, row in zip(tasks, rows, strict=True):
        assert Path("/", task["data"]["image"].split("?d=")[1]).is_file()
        assert task["data"]["decision"] == row["decision"]
        said = task["annotations" if row["source"] == "given" else "predictions"][0]
        assert said["result"][0]["value"]["choices"] == [row["label"]]


def test_fiftyone_and_coco__every_image_and_its_class(made: dict[str, Path], rows: list[dict[str, Any]]) -> None:
    found = json.loads((made["fiftyone"] / "labels.json").read_text(encoding="utf-8"))
    assert {p.stem for p in (made["fiftyone"] / "data").iterdir()} == set(found["labels"])
    assert [found["classes"][each["label"]] for each in found["labels"].values()] == [row["label"] for row in rows]
    coco = json.loads((made["coco"] / "labels.json").read_text(encoding="utf-8"))
    names = {each["id"]: each["name"] for each in coco["categories"]}
    assert [names[each["category_id"]] for each in coco["annotations"]] == [row["label"] for row in rows]
    assert all((image["width"], image["height"]) == (12, 12) for image in coco["images"])
    assert all(Path(image["file_name"]).is_file() for image in coco["images"])


def test_folders__can_be_read_back(made: dict[str, Path], rows: list[dict[str, Any]]) -> None:
    train = sorted((made["yolo-folder"] / "train").glob("*/*.png"))
    val = sorted((made["yolo-folder"] / "val").glob("*/*.png"))
    assert len(train) + len(val) == len(rows) == sum(COUNTS.values())
    counts = Counter(row["label"] for row in rows)
    assert len(val) == sum(count // EACH_NTH_IN_VAL or count > 1 for count in counts.values())
    found = datasets.Dataset.from_parquet(
        str(made["datasets"] / "data" / "train-00000-of-00001.parquet"), cache_dir=str(made["datasets"] / "cache")
    )
    assert found.features["label"].names == ["ant", "bee", "cow"]
    assert found["id"][:] == [row["id"] for row in rows]
    assert found[0]["image"].size == (12, 12)
    assert len(sorted(made["imagefolder"].glob("*/*.png"))) == len(rows)
    given = {row["id"]: row["label"] for row in rows if row["source"] == "given"}
    labels = {row["id"]: row["label"] for row in rows}
    for name, folder in made.items():
        table = load(folder)
        known = {"label-studio": given}.get(name, labels)
        assert (len(table), Counter(table.class_names[c] for c in table.labels if c >= 0)) == (
            len(rows),
            Counter(known.values()),
        ), name


def with_strangers(run: Path, rows: list[dict[str, Any]], folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A copy of a run with one bee, ants for the rest but one cow, and the bee and one ant of no class."""
    copy = Path(shutil.copytree(run, folder / "run"))
    changed = [{**row, "label": "cow" if i == 0 else "bee" if i == 1 else "ant"} for i, row in enumerate(rows)]
    changed[1] |= {"decision": "unknown", "source": "predicted"}
    changed[2] |= {"decision": "unknown", "source": "verified", "trust": 0.0}
    pq.write_table(pa.Table.from_pylist(changed), copy / "labels.parquet")
    (copy / "checksums.json").unlink()
    return copy, changed


def test_yolo_folder__train_and_val_have_the_same_classes(
    run: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    copy, _ = with_strangers(run, rows, tmp_path)
    out = lw.export(copy, format="yolo-folder", out=tmp_path / "yolo")
    found = {part: {p.name: len(list(p.iterdir())) for p in (out / part).iterdir()} for part in ("train", "val")}
    held_out = (len(rows) - 3) // EACH_NTH_IN_VAL
    assert found == {"train": {"ant": len(rows) - 3 - held_out, "cow": 1}, "val": {"ant": held_out, "cow": 0}}


@pytest.mark.parametrize("format", sorted(LABEL_WRITERS))
def test_labels__images_of_no_class_get_none(
    format: Format, run: Path, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, changed = with_strangers(run, rows, tmp_path)
    out = lw.export(copy, format=format, out=tmp_path / "out")
    is_left_out = format in CLASS_FOLDERS
    how = "left out" if is_left_out else "written without a label"
    assert capsys.readouterr().err == f"2 images of no class (decision: unknown): {how}\n"
    table = load(out)
    by_people = ("given", "verified") if format == "label-studio" else ("given", "verified", "predicted")
    kept = [row["label"] for row in changed if row["decision"] != "unknown" and row["source"] in by_people]
    assert Counter(table.class_names[c] for c in table.labels if c >= 0) == Counter(kept)
    assert len(table) == len(rows) - 2 * is_left_out
    if format == "label-studio":
        tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
        assert [set(task) for task in tasks[1:3]] == [{"data"}] * 2
        assert [task["data"]["decision"] for task in tasks[1:3]] == ["unknown"] * 2


def test_csv__images_of_no_class_have_the_nearest_class_as_runner_up(
    run: Path, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, changed = with_strangers(run, rows, tmp_path)
    lw.export(copy, format="csv", out=tmp_path / "labels.csv")
    assert capsys.readouterr().err == "2 images of no class (decision: unknown): written without a label\n"
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        found = [(row["label"], row["runner_up"]) for row in csv.DictReader(file)]
    expected = [(row["label"], row["runner_up"]) for row in changed]
    expected[1:3] = [("", "bee"), ("", "ant")]
    assert found == expected


def test_label_studio__addresses_of_names_with_signs_lead_to_the_files(tmp_path: Path) -> None:
    """Label Studio reads the address as a query: & and # end a path there, + and %20 are blanks."""
    data = tmp_path / "Äcker & Wald #1"
    for name in ("a+b", "100%20, ü"):
        (data / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 255, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(data / name / f"bild {i}#&+%20.png")
    run = lw.fit(data, out=tmp_path / "run", model="descriptor", device="cpu")
    out = lw.export(run.path, format="label-studio", out=tmp_path / "tasks")
    tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
    found = [parse_qs(urlsplit(task["data"]["image"]).query)["d"][0] for task in tasks]
    assert {Path("/", path) for path in found} == set(data.rglob("*.png"))
    table = load(out)
    assert {Path(table.images.sources(np.array([row]))[0]) for row in range(len(table))} == set(data.rglob("*.png"))


def test_export__labels_of_embeddings_need_the_images(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    labels = np.array([path.parent.name for path in files])
    feats = np.random.default_rng(0).normal(size=(len(files), 8)).astype(np.float32)
    ids = np.array([path.relative_to(photos).as_posix() for path in files])
    np.savez(tmp_path / "f.npz", embeddings=feats, labels=labels, ids=ids)
    run = lw.fit(tmp_path / "f.npz", out=tmp_path / "run", device="cpu").path
    with pytest.raises(ConfigError, match="holds embeddings and no paths of images") as caught:
        lw.export(run, format="coco", out=tmp_path / "coco")
    assert "--data photos/" in caught.value.fix
    assert not (tmp_path / "coco").exists()
    out = lw.export(run, format="coco", out=tmp_path / "coco", data=photos)
    assert len(json.loads((out / "labels.json").read_text(encoding="utf-8"))["images"]) == len(files)
    np.savez(tmp_path / "f.npz", embeddings=feats, labels=labels, ids=ids, paths=np.array([str(f) for f in files]))
    out = lw.export(run, format="fiftyone", out=tmp_path / "fiftyone")
    assert len(list((out / "data").iterdir())) == len(files)


def test_export__accepted_labels_alone(run: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    kept = [row["id"] for row in rows if row["decision"] == "accept"]
    assert 0 < len(kept) < len(rows)
    lw.export(run, format="label-studio", out=tmp_path / "some", accepted=True)
    tasks = json.loads((tmp_path / "some" / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["id"] for task in tasks] == kept
    lw.export(run, format="csv", out=tmp_path / "new" / "some.csv", accepted=True)
    with (tmp_path / "new" / "some.csv").open(newline="", encoding="utf-8") as file:
        assert [row["id"] for row in csv.DictReader(file)] == kept
    open_rows = pq.read_table(run / "labels.parquet").to_pylist()
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    pq.write_table(pa.Table.from_pylist([{**row, "decision": "review"} for row in open_rows]), copy / "labels.parquet")
    (copy / "checksums.json").unlink()
    with pytest.raises(ConfigError, match=r"no label of .* is accepted"):
        lw.export(copy, format="coco", out=tmp_path / "none", accepted=True)


def test_export__embedded_images_are_written(run: Path, photos: Path, made: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    table = pq.read_table(made["datasets"] / "data" / "train-00000-of-00001.parquet")
    pq.write_table(table, data / "train.parquet")
    out = lw.export(run, format="coco", out=tmp_path / "coco", data=data)
    files = [Path(image["file_name"]) for image in json.loads((out / "labels.json").read_text())["images"]]
    assert len(files) == sum(COUNTS.values())
    assert all(file.is_file() and file.parent == out / "images" for file in files)


def test_export__copies_end_as_images_do(tmp_path: Path) -> None:
    """Files without a suffix, and embedded images without a name, are images to whoever reads the copies."""
    photos = write_folders(tmp_path / "photos", {"ant": 6, "bee": 6}, size_px=12)
    cells = []
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        place = file.rename(photos / f"{number}.v1") if number % 2 else None
        cells.append({"bytes": None if place else file.read_bytes(), "path": str(place) if place else None})
    data = tmp_path / "data.parquet"
    pq.write_table(pa.table({"image": cells, "label": ["ant"] * 6 + ["bee"] * 6}), data)
    run = lw.fit(data, out=tmp_path / "run", model="resnet32", method="ce", epochs=1, size=8, test_frac=0).path
    for format in ("fiftyone", "yolo-folder", "imagefolder"):
        out = lw.export(run, format=format, out=tmp_path / format)  # type: ignore[arg-type]
        assert len(list(out.rglob("*.png"))) == len(load(out)) == len(cells), format
    out = lw.export(run, format="label-studio", out=tmp_path / "label-studio")
    assert {file.suffix for file in (out / "images").iterdir()} == {".png"}


@pytest.mark.parametrize("format", ["label-studio", "coco", "imagefolder"])
def test_export__an_image_of_a_table_that_is_gone_is_named(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    shutil.copytree(photos, tmp_path / "moved")
    (tmp_path / "moved" / "bee" / "1.png").unlink()
    ids = [file.relative_to(photos).as_posix() for file in sorted(photos.rglob("*.png"))]
    (tmp_path / "data.csv").write_text("id,image\n" + "".join(f"{id},moved/{id}\n" for id in ids), encoding="utf-8")
    words = [str(run), "--format", format, "--data", str(tmp_path / "data.csv"), "--out", str(tmp_path / "out")]
    assert cli.run(["export", *words]) == 2
    assert f"1 image of the run cannot be found, first {tmp_path}/moved/bee/1.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export__refused_with_nothing_written(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, said in (
        (["--out", "m.pt"], "end --out in .onnx"),
        (["--format", "coco", "--out", "labels.json"], "give --out without a suffix"),
        (["--format", "coco", "--out", "c", "--data", "nowhere"], "give them with --data"),
    ):
        words = [str(tmp_path / word) if flags[i - 1] in ("--out", "--data") else word for i, word in enumerate(flags)]
        assert cli.run(["export", str(run), *words]) == 2
        assert said in capsys.readouterr().err
    other = write_folders(tmp_path / "others", {"ant": 2}, size_px=12)
    with pytest.raises(DataError, match="images of the run are not in"):
        lw.export(run, format="coco", out=tmp_path / "c", data=other)
    with pytest.raises(ConfigError, match="there is no format"):
        lw.export(run, format="tflite", out=tmp_path / "c")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["others"]
    for given in (None, photos):  # the run's own data, wherever they are named
        with pytest.raises(ConfigError, match="lies in the data"):
            lw.export(run, format="imagefolder", out=photos / "sorted", data=given)
    assert cli.run(["export", str(run), "--format", "coco", "--out", str(tmp_path / "others")]) == 2
