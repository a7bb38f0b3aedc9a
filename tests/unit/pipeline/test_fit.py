"""From photographs or embeddings and class names to a run folder and back, without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import clip_folders
import labelwright as lw
import tiny
from chat_stub import ChatStub, Fail
from labelwright.annotators.chat import Estimate
from labelwright.encoders.embed import concepts_of, load_encoder
from labelwright.errors import ConfigError, DataError, LabelwrightError, OfflineError
from labelwright.pipeline import job
from labelwright.pipeline.saved_model import load_model
from labelwright.reporting.gallery import read_gallery
from pictures import write_folders

NAMES = ["cat", "dog", "owl"]
QUICK: dict[str, Any] = {"device": "cpu", "precision": "fp32", "evaluations": 0}
STEPS: dict[str, object] = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 8, "start_size": 2}
FAMILIES = pytest.mark.parametrize("family", ["clip", "siglip"])


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """ViT-B/32's format and SigLIP's at 224 px, CLIP's and SigLIP's at 16 px, and a ViT."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "clip": clip_folders.save_two_tower(root / "clip", "clip", size_px=224, patch_px=32),
        "siglip": clip_folders.save_two_tower(root / "siglip", "siglip", size_px=224, patch_px=32),
        "small-clip": clip_folders.save_two_tower(root / "small-clip", "clip", size_px=16, patch_px=8),
        "small-siglip": clip_folders.save_two_tower(root / "small-siglip", "siglip", size_px=16, patch_px=8),
        "vit": clip_folders.save_vision(root / "vit", size_px=16),
    }
    return {name: str(path) for name, path in made.items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images in one folder, without labels, and their class names beside it."""
    root = tmp_path_factory.mktemp("data")
    write_photos(root / "photos", 40, seed=0)
    (root / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return root / "photos"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images that no run has seen."""
    return write_photos(tmp_path_factory.mktemp("others") / "new", 9, seed=7)


def write_photos(folder: Path, n: int, *, seed: int) -> Path:
    """Stripes of two colours, as far apart as can be, so that even a model of random weights tells some apart."""
    draws = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(n):
        pixels = np.empty((24, 24, 3), np.uint8)
        pixels[:], pixels[:: int(draws.integers(2, 7))] = draws.integers(0, 256, (2, 3))
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def names_of(photos: Path) -> str:
    return str(photos.parent / "names.txt")


def listed(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- photographs and names -------------------------------------------------------------------------------------------


@FAMILIES
def test_fit__forty_photos_and_three_names(
    family: str, models: dict[str, str], photos: Path, others: Path, tmp_path: Path
) -> None:
    done = lw.fit(
        photos, out=tmp_path / "run", model=models[family], classes=names_of(photos), n_views=1, set=STEPS, **QUICK
    )
    assert (done.summary["method"], done.summary["situation"]) == ("cap", "no_labels")
    assert (done.summary["n_images"], done.summary["n_labelled"], done.summary["n_classes"]) == (40, 0, 3)
    assert (done.summary["schema_version"], done.summary["class_names"]) == (1, done.data["class_names"])
    assert done.summary["test"] is None
    assert sum(done.summary["pseudolabels"]["counts"]) == 40
    assert {"read", "embed", "train", "label"} <= set(done.summary["seconds"])
    files = listed(done.path)
    assert files >= {"config.yaml", "environment.json", "data.json", "metrics.jsonl", "summary.json", "report.html"}
    assert files >= {"labels.parquet", "model/model.safetensors", "model/config.json", "model/README.md"}
    assert "cap" in done.report.read_text(encoding="utf-8").lower()
    rows = done.labels.to_pylist()
    assert len(rows) == 40
    assert {row["label"] for row in rows} <= set(NAMES)
    assert {row["source"] for row in rows} == {"predicted"}
    # The saved model, which takes pixels and has no text tower, says what the recipe said on stored features.
    again = lw.label(done.path, photos, device="cpu", precision="fp32")
    assert again["label"].equals(done.labels["label"])
    assert np.allclose(again["softmax"], done.labels["softmax"], atol=2e-3)  # features are stored in float16
    assert len(set(again["label"].to_pylist())) > 1  # or there would be nothing to agree on
    fresh = lw.label(done.path, others, out=tmp_path / "labels.csv", device="cpu")
    assert fresh["label"].equals(done.predict(others, device="cpu")["label"])
    assert len((tmp_path / "labels.csv").read_text(encoding="utf-8").splitlines()) == 10
    saved = load_model(done.path / "model", device=tiny.CPU)
    assert not any("text_model" in name for name in saved.net.state_dict())


@pytest.mark.parametrize(
    ("family", "tune"),
    [("clip", "coop"), ("clip", "vpt"), ("clip", "maple"), ("clip", "lora"), ("siglip", "maple"), ("siglip", "lora")],
)
def test_fit__tuned_encoders_are_saved_as_they_predict(
    family: str, tune: str, models: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    settings = {**STEPS, "epochs": 1, "tune": tune, "lr": 5.0, "residual_weight": 0.2, "patience_epochs": 0}
    few: dict[str, Any] = {**QUICK, "model": models[f"small-{family}"], "classes": names_of(photos), "views": "pixels"}
    tuned = lw.fit(photos, out=tmp_path / "tuned", set=settings, **few)
    assert tuned.summary["method"] == "cap"
    again = lw.label(tuned.path, photos, device="cpu", precision="fp32")
    assert again["label"].equals(tuned.labels["label"])
    assert np.allclose(again["softmax"], tuned.labels["softmax"], atol=1e-4)
    # Two steps at this rate did move the encoder, ten tolerances or more: without tuning the run says something else.
    plain = lw.fit(photos, out=tmp_path / "plain", set={**settings, "tune": "adapters"}, **few)
    gap = np.abs(np.asarray(plain.labels["softmax"]) - np.asarray(tuned.labels["softmax"])).max()
    assert gap > 1e-3
    again = lw.label(plain.path, photos, device="cpu", precision="fp32")
    assert np.allclose(again["softmax"], plain.labels["softmax"], atol=1e-4)


@pytest.mark.parametrize("encoder", ["small-clip", "vit"])
def test_fit__ce_on_embeddings_of_an_encoder(encoder: str, models: dict[str, str], tmp_path: Path) -> None:
    data = write_folders(tmp_path / "data", {"cat": 10, "dog": 10}, size_px=20)
    write_folders(data, {"unlabeled": 6}, size_px=20, seed=3)
    how = {"method": "ce", "model": models[encoder], "views": "embeddings", "epochs": 5, "refit": False, **QUICK}
    done = lw.fit(data, out=tmp_path / "run", **how)
    assert (done.summary.get("zero_shot") is not None) == (encoder == "small-clip")
    again = lw.label(done.path, data / "unlabeled", device="cpu", precision="fp32")
    rows = [row for row in done.labels.to_pylist() if row["source"] == "predicted"]
    assert len(rows) == len(again) == 6
    assert [row["label"] for row in rows] == again["label"].to_pylist()
    # The store keeps half precision: 2e-3 of a probability with one network of random weights, 3e-3 with another.
    assert np.allclose([row["softmax"] for row in rows], again["softmax"], atol=5e-3)


# ---- the user's own embeddings ---------------------------------------------------------------------------------------

COUNTS = (16, 10, 8)
TRUTH = np.array(tiny.classes_of(COUNTS))


def write_npz(path: Path, **changed: Any) -> Path:
    """Features of cats, dogs and owls with text features of the names; entries that are None are left out."""
    concepts = tiny.concepts_of(3)
    arrays: dict[str, Any] = {
        "embeddings": tiny.TinyFeats(TRUTH.tolist()).x.numpy(),
        "class_embeddings": concepts.feats.numpy(),
        "class_names": np.array(NAMES),
        "logit_scale": np.float32(concepts.logit_scale),
        **changed,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_embeddings__cap_label_evaluate_and_inspect(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "pets.npz", truth=TRUTH)
    found = lw.inspect(data)
    assert (found.situation.name, found.runs) == ("no_labels", "cap")
    done = lw.fit(data, out=tmp_path / "run", set=STEPS, **QUICK)
    assert (done.summary["method"], done.summary["encoder"]) == ("cap", "none")
    assert done.summary["pseudolabels"]["accuracy"] > 0.95
    assert done.report.exists()
    bare = write_npz(tmp_path / "bare.npz", class_embeddings=None, class_names=None, logit_scale=None)
    rows = lw.label(done.path, bare, device="cpu", precision="fp32")
    assert rows["label"].equals(done.labels["label"])
    assert np.allclose(rows["softmax"], done.labels["softmax"], atol=1e-5)
    labelled = write_npz(tmp_path / "labelled.npz", labels=TRUTH)
    scores = lw.evaluate(done.path, labelled, device="cpu")
    assert scores["accuracy"] == pytest.approx(done.summary["pseudolabels"]["accuracy"])


def test_embeddings__ce_needs_no_text_and_scores_zero_shot_where_there_is_some(tmp_path: Path) -> None:
    for name, changed in (("text", {}), ("bare", {"class_embeddings": None, "logit_scale": None})):
        data = write_npz(tmp_path / f"{name}.npz", labels=TRUTH, **changed)
        done = lw.fit(data, out=tmp_path / name, method="ce", epochs=30, **QUICK)
        assert done.summary["test"]["accuracy"] > 0.8
        assert (done.summary.get("zero_shot") is not None) == (name == "text")


def test_embeddings__trzsl_reports_seen_unseen_and_their_mean(tmp_path: Path) -> None:
    labels = np.where((TRUTH < 2) & (np.arange(len(TRUTH)) % 2 == 0), TRUTH, -1)
    data = write_npz(tmp_path / "train.npz", labels=labels)
    test = write_npz(tmp_path / "test.npz", labels=TRUTH)
    done = lw.fit(data, out=tmp_path / "run", test=test, set={**STEPS, "pool": "any"}, **QUICK)
    assert done.summary["situation"] == "some_classes"
    for each in (done.summary["test"], done.summary["zero_shot"]):
        cat, dog, owl = each["per_class"]
        assert each["seen"] == pytest.approx((cat + dog) / 2)
        assert each["unseen"] == pytest.approx(owl)
        assert each["harmonic"] == pytest.approx(2 * each["seen"] * each["unseen"] / (each["seen"] + each["unseen"]))
    given = dict(zip(done.labels["id"].to_pylist(), done.labels["source"].to_pylist(), strict=True))
    assert sum(source == "given" for source in given.values()) == (labels >= 0).sum()


def test_embeddings__labelled_images_keep_their_label(tmp_path: Path) -> None:
    labels = np.where(np.arange(len(TRUTH)) % 5 == 0, (TRUTH + 1) % 3, -1)  # all of them wrong
    done = lw.fit(write_npz(tmp_path / "a.npz", labels=labels), out=tmp_path / "run", test_frac=0.0, set=STEPS, **QUICK)
    rows = done.labels.to_pylist()
    assert [NAMES.index(row["label"]) for row, y in zip(rows, labels, strict=True) if y >= 0] == labels[
        labels >= 0
    ].tolist()
    assert all(row["source"] == ("given" if y >= 0 else "predicted") for row, y in zip(rows, labels, strict=True))


# ---- hidden truth ----------------------------------------------------------------------------------------------------

SCORES = {
    "pseudolabels",
    "zero_shot",
    "test",
    "reference",
    "seconds",
    "images_per_second",
    "input_frac",
    "peak_memory_mb",
}


def without_clock(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("images_per_second", "time")}


def same_tree(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_tree, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


@pytest.mark.parametrize("method", ["cap", "fpl"])
@pytest.mark.parametrize("has_labels", [False, True], ids=["no label", "some labels"])
def test_hidden_truth__decides_nothing_but_the_scores(method: str, has_labels: bool, tmp_path: Path) -> None:
    labels = np.where(np.arange(len(TRUTH)) % 4 == 0, TRUTH, -1) if has_labels else None
    shuffled = np.random.default_rng(0).permutation(TRUTH)
    settings: dict[str, Any] = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 8}
    settings |= {"margin_scale": "auto"} if method == "cap" else {}
    folders, contents = [], []
    for truth in (TRUTH, shuffled):
        data = write_npz(tmp_path / "pool.npz", labels=labels, truth=truth)
        done = lw.fit(data, out=tmp_path / str(len(folders)), method=method, test_frac=0.0, set=settings, **QUICK)
        folders.append(done.path)
        contents.append(done.summary)
    first, second = folders
    assert listed(first) - {name for name in listed(first) if "tfevents" in name} == listed(second) - {
        name for name in listed(second) if "tfevents" in name
    }
    for name in ("labels.parquet", "config.yaml", "data.json", "model/model.safetensors", "model/config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    if method == "cap":
        assert (first / "margin_scale.json").read_bytes() == (second / "margin_scale.json").read_bytes()
    lines = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in folders]
    assert len(lines[0]) >= 2
    assert [without_clock(record) for record in lines[0]] == [without_clock(record) for record in lines[1]]
    saved = [torch.load(path / "checkpoints" / "last.pt", weights_only=True) for path in folders]
    assert all(same_tree(saved[0][key], saved[1][key]) for key in saved[0] if key not in ("spent", "metrics_size"))
    assert {k: v for k, v in contents[0].items() if k not in SCORES} == {
        k: v for k, v in contents[1].items() if k not in SCORES
    }
    accuracies = [summary["pseudolabels"]["accuracy"] for summary in contents]
    assert accuracies[0] > accuracies[1] + 0.2  # the truth was there, and was scored against


# ---- margin_scale=auto -----------------------------------------------------------------------------------------------


def test_margin_scale_auto__is_kept_and_not_chosen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from labelwright.methods import cap_margin as margin_pilot

    data = write_npz(tmp_path / "pool.npz")
    settings = {**STEPS, "margin_scale": "auto"}
    whole = lw.fit(data, out=tmp_path / "whole", set=settings, **QUICK)
    told = json.loads((whole.path / "margin_scale.json").read_text(encoding="utf-8"))
    assert set(told["scores"]) == {str(scale) for scale in margin_pilot.SCALES}
    assert told["chosen"] in margin_pilot.SCALES
    assert told["scores"][str(told["chosen"])] == max(told["scores"].values())
    half = tmp_path / "half"
    shutil.copytree(whole.path, half)
    (half / "summary.json").unlink()
    (half / "checkpoints" / "last.pt").unlink()
    (half / "margin_scale.json").write_text(json.dumps({"chosen": 14.0, "scores": {}}), encoding="utf-8")
    pilots: list[Any] = []
    monkeypatch.setattr(margin_pilot, "train", lambda *args, **kwargs: pilots.append(args))
    lw.fit(data, out=half, set=settings, resume=True, **QUICK)
    assert pilots == []
    assert json.loads((half / "margin_scale.json").read_text(encoding="utf-8"))["chosen"] == 14.0


# ---- what cannot be --------------------------------------------------------------------------------------------------


def refused(out: Path, data: Any, **how: Any) -> LabelwrightError:
    """The error of a fit that leaves nothing behind."""
    with pytest.raises(LabelwrightError) as caught:
        lw.fit(data, out=out, **{**QUICK, **how})
    assert not out.exists()
    assert caught.value.exit_code == 2
    return caught.value


def test_refused__cap_without_a_model(photos: Path, tmp_path: Path) -> None:
    error = refused(tmp_path / "run", photos, classes=names_of(photos))
    assert "no model is named" in str(error)
    assert "--model openai/clip-vit-base-patch32" in error.fix


def test_refused__cap_with_a_model_that_knows_no_words(models: dict[str, str], photos: Path, tmp_path: Path) -> None:
    error = refused(tmp_path / "run", photos, classes=names_of(photos), model=models["vit"])
    assert "has no text side, and cap reads class names" in str(error)
    some = write_folders(tmp_path / "some", {"cat": 6, "dog": 6, "unlabeled": 6})
    (some / "hollow").mkdir()
    error = refused(tmp_path / "run", some, model=models["vit"])
    assert "or leave out the classes without a label, such as 'hollow'" in error.fix
    error = refused(tmp_path / "run", photos, classes=names_of(photos), model="resnet18", method="cap")
    assert "reads class names, and resnet18 cannot" in str(error)
    how: dict[str, Any] = {"classes": names_of(photos), "model": models["small-clip"], "pretrained": False}
    assert "random weights know no class names" in str(refused(tmp_path / "run", photos, **how))


def test_refused__tuning_what_stored_embeddings_leave_out(models: dict[str, str], photos: Path, tmp_path: Path) -> None:
    error = refused(
        tmp_path / "run",
        photos,
        classes=names_of(photos),
        model=models["small-clip"],
        views="embeddings",
        n_views=1,
        set={**STEPS, "tune": "coop"},
    )
    assert "tune=coop" in str(error)
    assert "--views pixels" in error.fix


def test_refused__embeddings_with_what_needs_images(models: dict[str, str], tmp_path: Path) -> None:
    data = write_npz(tmp_path / "pool.npz")
    assert f"--model {models['clip']} has nothing to work on" in str(
        refused(tmp_path / "run", data, model=models["clip"])
    )
    assert "--views pixels has nothing to work on" in str(refused(tmp_path / "run", data, views="pixels"))
    error = refused(tmp_path / "run", data, set={**STEPS, "tune": "coop"})
    assert "tune=coop" in str(error)


def test_refused__embeddings_without_text_features_of_the_names(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "pool.npz", class_embeddings=None, logit_scale=None)
    error = refused(tmp_path / "run", data)
    assert "hold no text features" in str(error)
    assert error.fix.endswith("of the same model to the .npz")
    labels = np.where(np.arange(40) < 20, np.arange(40) % 2, -1)
    np.savez(tmp_path / "some.npz", embeddings=np.eye(40, dtype=np.float32), labels=labels, class_names=NAMES)
    error = refused(tmp_path / "run", tmp_path / "some.npz")
    assert error.fix.endswith(
        "or leave out the classes without a label, such as 'owl' (--classes FILE); "
        "if images may be of them, with --novel 1"
    )


def test_refused__descriptions_of_no_class(models: dict[str, str], photos: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"classes": names_of(photos), "model": models["small-clip"], "set": STEPS, "n_views": 1}
    error = refused(tmp_path / "run", photos, descriptions={"yak": ["a big dog"]}, **how)
    assert isinstance(error, DataError)
    assert "yak" in str(error)
    (tmp_path / "looks.json").write_text('{"cta": "a red cat"}', encoding="utf-8")
    error = refused(tmp_path / "run", photos, descriptions=tmp_path / "looks.json", **how)
    assert "did you mean 'cat'?" in str(error)


# ---- descriptions ----------------------------------------------------------------------------------------------------


def test_describe_with__an_endpoint_that_is_down_leaves_nothing_half_written(
    models: dict[str, str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "mismatched_classes", lambda *args, **kwargs: [1])
    monkeypatch.setattr("labelwright.annotators.chat_endpoint.FIRST_WAIT_S", 0.001)
    how: dict[str, Any] = {"classes": names_of(photos), "model": models["small-clip"], "set": STEPS, "n_views": 1}
    with ChatStub(Fail(401, "no such key")) as stub:
        error = refused(tmp_path / "run", photos, describe_with="m", chat_url=stub.url, **how)
        assert stub.seen
    assert isinstance(error, (ConfigError, OfflineError))
    error = refused(tmp_path / "run", photos, describe_with="m", chat_url=stub.url, **how)  # nobody listens any more
    assert isinstance(error, OfflineError)
    with ChatStub("1. a red dog with spots\n2. the big dog") as stub:
        done = lw.fit(photos, out=tmp_path / "run", describe_with="m", chat_url=stub.url, **how, **QUICK)
        assert len(stub.seen) == 1
        assert '"dog"' in stub.seen[0].prompt
    asked = json.loads((done.path / "descriptions.json").read_text(encoding="utf-8"))
    assert asked == {"dog": ["a red dog with spots", "the big dog"]}


def test_describe_with__says_first_what_it_will_ask(
    models: dict[str, str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelwright.pipeline.job.mismatched_classes", lambda *args, **kwargs: [1])
    how: dict[str, Any] = {"classes": names_of(photos), "model": models["small-clip"], "set": STEPS, "n_views": 1}
    estimates = []

    def refuse(estimate: Estimate) -> bool:
        estimates.append(estimate)
        return False

    with ChatStub("a red dog with spots") as stub:
        error = refused(tmp_path / "run", photos, describe_with="m", chat_url=stub.url, approve=refuse, **how)
        assert stub.seen == []
    assert "--describe-with" in error.fix
    assert len(estimates) == 1


def test_describe_with__one_process_asks_and_the_others_read(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "mismatched_classes", lambda *args, **kwargs: [1, 2])
    encoder = load_encoder(models["small-clip"], device=tiny.CPU, precision="fp32")
    assert encoder.tower is not None
    prepared: Any = SimpleNamespace(train=SimpleNamespace(table=SimpleNamespace(class_names=NAMES)))
    guesses: Any = SimpleNamespace(counts={"descriptions": {"cat": "a striped pet"}})
    found = []
    with ChatStub(lambda seen: "- a red dog with spots" if '"dog"' in seen.prompt else Fail(400, "no")) as stub:
        for is_main in (True, False):
            process = SimpleNamespace(device=tiny.CPU, is_main_process=is_main, main_process_first=nullcontext)
            settings = SimpleNamespace(describe_with="m", chat_url=stub.url)
            plan: Any = SimpleNamespace(
                encoder=encoder,
                texts={},
                templates="one",
                settings=settings,
                run=lw.Run(tmp_path),
                accelerator=process,
            )
            found.append(job._concepts(plan, prepared, guesses, None))
    assert len(stub.seen) == 2  # by the first alone, though it got no answer about one class
    for concepts in found:
        assert concepts is not None
        assert concepts.descriptions == ((), ("a red dog with spots",), ())
        asked_as = concepts_of(encoder.tower, ["a striped pet", "dog", "owl"], templates="one")
        assert torch.equal(concepts.feats, asked_as.feats)  # the description that replaced a name stays in its place


def test_describe_with__nothing_is_asked_without_it(
    models: dict[str, str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nobody asked for this")

    monkeypatch.setattr("labelwright.pipeline.job.ask_for", ask)
    done = lw.fit(
        photos,
        out=tmp_path / "run",
        classes=names_of(photos),
        model=models["small-clip"],
        descriptions={"dog": ["a red dog with spots"]},
        set=STEPS,
        n_views=1,
        **QUICK,
    )
    assert "descriptions.json" not in listed(done.path)


def test_labels_parquet_is_whole(tmp_path: Path) -> None:
    done = lw.fit(write_npz(tmp_path / "pool.npz"), out=tmp_path / "run", set=STEPS, **QUICK)
    table = pq.read_table(done.path / "labels.parquet")
    probabilities = np.asarray(table["softmax"])
    x = F.normalize(tiny.TinyFeats(TRUTH.tolist()).x, dim=1)
    with torch.no_grad():
        expected = load_model(done.path / "model", device=tiny.CPU).probs(x).max(1).values.numpy()
    assert np.allclose(probabilities, expected, atol=1e-5)


def test_pixels__trust_of_a_network_is_by_the_images_that_it_held_out(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part, n in (("old", 120), ("new", 80)):
        for i in range(n):
            folder = tmp_path / part / NAMES[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    done = lw.fit(tmp_path / "old", out=tmp_path / "run", views="pixels", size=8, epochs=2, **QUICK)
    trust, test = done.summary["trust"], done.summary["test"]
    assert (trust["source"], trust["n"]) == ("left-out labels", test["n_scored"])
    shown = read_gallery(done.path)["trust"]  # of the trust that ece is of
    assert (shown["basis"], shown["is_crossed"], sum(each["n"] for each in shown["bins"])) == ("test images", True, 24)
    assert shown["off"] == pytest.approx(trust["ece"], abs=1e-4)
    new = lw.label(done.path, tmp_path / "new", out=tmp_path / "new.parquet")["trust"].to_numpy()
    assert 0.35 < new.mean() < 0.65  # noise: half is right
    scores = lw.evaluate(done.path, tmp_path / "new")
    assert scores["trust_ece"] == pytest.approx(abs(new.mean() - scores["accuracy"]), abs=0.05)
