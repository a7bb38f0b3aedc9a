"""From images to a backbone in a run folder, and from that to a classifier that no longer needs the folder."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import clip_folders
import labelwright as lw
from labelwright.cli import run as run_command
from labelwright.data.table import NOTICES
from labelwright.encoders import backbones
from labelwright.encoders.embed import is_two_tower
from labelwright.encoders.pretrained import image_stats
from labelwright.encoders.saved import network_of, saved_backbone
from labelwright.errors import ConfigError, DataError, LabelwrightError
from labelwright.methods import simclr
from labelwright.pipeline import time_budget
from labelwright.run_folder import Run
from pictures import spoil, write_folders

QUICK: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
SHORT: dict[str, Any] = {**QUICK, "epochs": 2, "size": 8, "set": {"batch_size": 8}}
FIT: dict[str, Any] = {**QUICK, "method": "ce", "evaluations": 0, "set": {"batch_size": 8, "lr": 0.01}}
COUNTS = {"ant": 8, "bee": 6, "cow": 6}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("data") / "photos", COUNTS)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `pretrain`; read only."""
    return lw.pretrain(photos, out=tmp_path_factory.mktemp("runs") / "whole", **SHORT)


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run / "model" / "model.safetensors")
    return found


def told(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text(encoding="utf-8"))


def measured(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]


def write_table(path: Path, labels: list[str | None], splits: list[str] | None = None) -> Path:
    draws = np.random.default_rng(0)
    folder = path.parent / "pixels"
    folder.mkdir(exist_ok=True)
    for i in range(len(labels)):
        pixels = draws.integers(0, 256, (10, 10, 3)).astype(np.uint8)
        if not (folder / f"{i}.png").exists():  # one written anew is another file, to a fingerprint
            Image.fromarray(pixels).save(folder / f"{i}.png")
    columns: dict[str, Any] = {"image": [f"pixels/{i}.png" for i in range(len(labels))], "label": labels}
    pq.write_table(pa.table(columns | ({} if splits is None else {"split": splits})), path)
    return path


# ---- the run --------------------------------------------------------------------------------------------------------


def test_pretrain__leaves_a_run_folder(whole: Path) -> None:
    files = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert files >= {"config.yaml", "environment.json", "data.json", "metrics.jsonl", "summary.json"}
    assert files >= {"model/model.safetensors", "model/config.json", "model/README.md", "checkpoints/last.pt"}
    summary, records = told(whole, "summary.json"), measured(whole)
    assert (summary["method"], summary["encoder"], summary["n_images"]) == ("simclr", "resnet32", 20)
    assert (summary["epochs"], summary["size_px"], len(records)) == (2, 8, 2)
    assert all(0 < record["loss"] < 10 for record in records)
    assert summary["alignment"] == pytest.approx(records[-1]["alignment"], abs=1e-3)
    assert not any("projector" in name for name in weights(whole))
    assert "without labels" in (whole / "model" / "README.md").read_text(encoding="utf-8")


def test_pretrain__same_seed_same_weights_whatever_the_labels(tmp_path: Path) -> None:
    labels: list[str | None] = ["cat"] * 5 + ["dog"] * 4 + ["owl"] * 3
    shuffled: list[str | None] = ["owl", None, "dog", "cat"] * 3
    found = {}
    for name, given, seed in (("a", labels, 0), ("b", shuffled, 0), ("c", labels, 1)):
        run = lw.pretrain(write_table(tmp_path / f"{name}.parquet", given), out=tmp_path / name, seed=seed, **SHORT)
        found[name] = weights(run)
    assert all(torch.equal(value, found["b"][key]) for key, value in found["a"].items())
    assert not all(torch.equal(value, found["c"][key]) for key, value in found["a"].items())
    assert told(tmp_path / "a", "data.json")["fingerprint"] == told(tmp_path / "b", "data.json")["fingerprint"]


def test_pretrain__resumed_ends_where_uninterrupted_does(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, n_steps = simclr.step, 0

    def stopped_in_the_second_epoch(*args: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(simclr, "step", stopped_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            lw.pretrain(photos, out=tmp_path / "run", **SHORT)
    assert n_steps == 3
    assert not (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(ConfigError, match="has not finished"):
        lw.fit(photos, out=tmp_path / "fit", model=str(tmp_path / "run"), **FIT)
    with pytest.raises(ConfigError, match="is not empty"):
        lw.pretrain(photos, out=tmp_path / "run", **SHORT)
    with pytest.raises(ConfigError, match="seed was 0 when this run began and is 1 now"):
        lw.pretrain(photos, out=tmp_path / "run", resume=True, seed=1, **SHORT)
    run = lw.pretrain(photos, out=tmp_path / "run", resume=True, **SHORT)
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(run).items())
    assert measured(run) == measured(whole)
    monkeypatch.setattr(simclr, "step", None)  # a finished run is left as it is
    assert lw.pretrain(photos, out=run, resume=True, **SHORT) == run


def test_pretrain__folder_without_classes_and_bad_files(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(write_folders(tmp_path / "photos", COUNTS).rglob("*.png"))):
        shutil.copy(path, flat / f"{i}.png")
    (flat / "zero.png").write_bytes(b"")
    with pytest.raises(DataError) as stopped:
        lw.pretrain(flat, out=tmp_path / "run", **SHORT)
    assert [problem.where for problem in stopped.value.problems] == [str(flat / "zero.png")]
    assert not (tmp_path / "run").exists()
    run = lw.pretrain(flat, out=tmp_path / "run", on_bad="skip", **SHORT)
    data = told(run, "data.json")
    assert (data["n_images"], data["flip"]) == (20, True)
    assert [problem["where"] for problem in data["quarantined"]] == [str(flat / "zero.png")]


def test_pretrain__problems_with_labels_are_none(tmp_path: Path) -> None:
    data = write_folders(tmp_path / "photos", COUNTS)
    (data / "hollow").mkdir()
    (data / "hollow" / "draft.psd").write_bytes(b"8BPS")
    with pytest.raises(DataError, match="empty_class"):
        lw.fit(data, out=tmp_path / "fit", **FIT)
    notices = told(lw.pretrain(data, out=tmp_path / "run", **SHORT), "data.json")["notices"]
    assert [notice["kind"] for notice in notices] == ["unsupported_file"]
    spoilt = spoil(write_folders(tmp_path / "spoilt", COUNTS))
    with pytest.raises(DataError) as stopped:
        lw.pretrain(tmp_path / "spoilt", out=tmp_path / "none", **SHORT)
    bad = {problem.where for problem in stopped.value.problems if problem.kind not in NOTICES}
    assert bad == set(spoilt) - {str(tmp_path / "spoilt" / "hollow")}


def test_pretrain__train_split_alone(tmp_path: Path) -> None:
    splits = ["train"] * 6 + ["test"] * 3 + ["validation"] * 3
    data = write_table(tmp_path / "a.parquet", ["cat", "dog"] * 6, splits)
    assert told(lw.pretrain(data, out=tmp_path / "a", **SHORT), "data.json")["n_images"] == 6
    data = write_table(tmp_path / "b.parquet", ["cat", "dog"] * 6, [*splits[:-1], "tset"])
    with pytest.raises(DataError, match="unknown_split"):
        lw.pretrain(data, out=tmp_path / "b", **SHORT)
    data = write_table(tmp_path / "c.parquet", ["cat", "dog"] * 2, ["test"] * 4)
    with pytest.raises(DataError, match="no image is in the split train"):
        lw.pretrain(data, out=tmp_path / "c", **SHORT)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"set": {"temprature": 1}}, "did you mean temperature"),
        ({"set": {"temperature": -1}}, "temperature=-1.0 is not possible"),
        ({"epochs": 0}, "epochs=0 is not possible"),
        ({"size": 4}, "size must be at least 8"),
        ({"seed": -1}, "seed=-1 is not possible"),
        ({"model": "resnet23"}, "unknown model: 'resnet23'"),
        ({"device": "tpu"}, "device 'tpu' is not known"),
        ({"precision": "fp8"}, "precision 'fp8' is not known"),
    ],
    ids=lambda value: str(value),
)
def test_pretrain__refused(changed: dict[str, Any], told: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelwrightError, match=told):
        lw.pretrain(photos, out=tmp_path / "run", **{**SHORT, **changed})
    assert not (tmp_path / "run").exists()


def test_pretrain__refuses_embeddings_and_a_single_image(tmp_path: Path) -> None:
    np.save(tmp_path / "feats.npy", np.ones((4, 3), np.float32))
    with pytest.raises(ConfigError, match="there are no images to learn from"):
        lw.pretrain(tmp_path / "feats.npy", out=tmp_path / "run", **SHORT)
    with pytest.raises(DataError, match="there is one image"):
        lw.pretrain(write_folders(tmp_path / "one", {"ant": 1}), out=tmp_path / "run", **SHORT)


def test_pretrain__epochs_are_what_time_allows_and_stay_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_budget, "images_per_second", lambda *args, **how: 10.0)
    given = {**SHORT, "epochs": None, "minutes": 0.4}  # 240 views: six times two of each of 20 images
    run = Run(lw.pretrain(photos, out=tmp_path / "run", **given))
    assert run.summary["epochs"] == 6
    assert "simclr, resnet32: about 24 seconds of training on this machine for 6 epochs" in capsys.readouterr().err
    (run.path / "summary.json").unlink()
    monkeypatch.setattr(time_budget, "images_per_second", lambda *args, **how: 1.0)
    assert Run(lw.pretrain(photos, out=tmp_path / "run", resume=True, **given)).summary["epochs"] == 6


def test_command__prints_what_to_do_next(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    words = ["pretrain", str(photos), "--out", out, "--epochs", "1", "--size", "8", "--device", "cpu"]
    assert run_command([*words, "--set", "batch_size=10"]) == 0
    printed = capsys.readouterr().out
    assert "20 images of 8 px, labels unseen: resnet32, 1 epochs" in printed
    assert f"labelwright fit {photos} --model {out}" in printed
    assert run_command([*words, "--resume", "--set", "batch_size=11"]) == 2
    assert "batch_size was 10" in capsys.readouterr().err


# ---- what starts from it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["whole", "frozen", "embeddings"])
def test_fit__from_a_pretrained_backbone(way: str, photos: Path, whole: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(whole, start)
    how: dict[str, Any] = {
        "whole": {"model": str(start)},
        "frozen": {"model": str(start / "model"), "freeze": ("backbone.*",)},
        "embeddings": {"model": str(start), "views": "embeddings", "n_views": 1},
    }[way]
    steps = {"set": {}} if way == "embeddings" else {}  # on features there are none to set
    done = lw.fit(photos, out=tmp_path / "run", epochs=1, **how, **(FIT | steps))
    shutil.rmtree(start)
    old, new = weights(whole), weights(done.path)
    prefix = "backbone.inner." if way == "embeddings" else "backbone."
    gaps = {
        key: (value - new[prefix + key.removeprefix("backbone.")]).abs().max()
        for key, value in old.items()
        if key.startswith("backbone.") and value.is_floating_point()
    }
    if way == "whole":  # it moved, and from there
        assert 0 < gaps["backbone.stem.weight"] < 0.1
        fresh = backbones.build("resnet32", 3, image_size_px=8, seed=0).backbone.get_parameter("stem.weight")
        assert (fresh.detach() - new["backbone.stem.weight"]).abs().max() > 0.1
    else:
        assert max(gaps.values()) == 0
    saved, first = told(done.path, "model/config.json"), told(whole, "model/config.json")
    assert (saved["classifier"]["name"], saved["size_px"]) == ("resnet32", 8)
    assert (saved["view"]["mean"], saved["view"]["std"]) == (first["view"]["mean"], first["view"]["std"])
    assert len(lw.label(done.path, photos, **QUICK)) == 20
    assert lw.evaluate(done.path, photos, **QUICK)["n_scored"] == 20
    again = lw.fit(photos, out=tmp_path / "again", epochs=1, model=str(done.path), **FIT)  # a fit's backbone serves too
    assert told(again.path, "model/config.json")["classifier"]["unit_feats"] is False


def test_transformers_model__goes_on_and_is_found_again(photos: Path, tmp_path: Path) -> None:
    vit = str(clip_folders.save_vision(tmp_path / "vit", size_px=16))
    how = {**SHORT, "size": None, "epochs": 1, "set": {"batch_size": 8, "optimizer": "adamw", "lr": 1e-3}}
    run = lw.pretrain(photos, out=tmp_path / "run", model=vit, **how)
    shutil.rmtree(vit)
    stats = image_stats(str(run))
    assert stats.size_px == 16
    first = backbones.build(str(run), 3, image_size_px=16, seed=0)
    second = backbones.build(str(run), 3, image_size_px=16, seed=1)
    key = next(name for name in first.backbone.state_dict() if name.endswith("weight"))
    assert torch.equal(first.backbone.state_dict()[key], weights(run)[f"backbone.{key}"])
    assert torch.equal(first.backbone.state_dict()[key], second.backbone.state_dict()[key])
    assert not torch.equal(first.head.weight, second.head.weight)  # type: ignore[arg-type]
    again = lw.pretrain(photos, out=tmp_path / "again", model=str(run), **how)
    assert told(again, "model/config.json")["classifier"]["transformers"]["model_type"] == "vit"


def test_saved_backbone__says_what_it_cannot_be(photos: Path, whole: Path, tmp_path: Path) -> None:
    assert saved_backbone(str(photos)) is None
    assert (network_of(str(whole)), is_two_tower(str(whole))) == ("resnet32", False)
    assert image_stats(str(whole)) == image_stats(str(whole / "model"))
    for verb in (lw.label, lw.evaluate):
        with pytest.raises(DataError, match="knows no classes"):
            verb(whole, photos, **QUICK)
    with pytest.raises(DataError, match="of which there is no report"):
        lw.report(whole)
    with pytest.raises(ConfigError, match="random weights leave nothing of"):
        lw.fit(photos, out=tmp_path / "fit", model=str(whole), pretrained=False, **FIT)
    with pytest.raises(ConfigError, match="has no text side"):
        lw.fit(photos, out=tmp_path / "fit", model=str(whole), **{**FIT, "method": "cap", "set": {}})
    assert not (tmp_path / "fit").exists()
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    (broken / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="cannot load the model in"):
        backbones.build(str(broken), 3, seed=0)
    (broken / "model" / "config.json").unlink()
    with pytest.raises(ConfigError, match="holds no model that can be read"):
        saved_backbone(str(broken))
    config = told(whole, "model/config.json")
    other = tmp_path / "other"
    other.mkdir()
    for changed, expected in (({"format": 99}, "has format 99"), ({}, "has no backbone")):
        config["classifier"]["name"] = "stored"
        (other / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")
        with pytest.raises(ConfigError, match=expected):
            saved_backbone(str(other))
