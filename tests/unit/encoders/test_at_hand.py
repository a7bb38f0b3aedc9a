"""Which model is taken where none is named: one that reads names, else one of images, else installed weights."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from labelwright.encoders import at_hand, efficientnet

real: Any = importlib.reload(at_hand).at_hand  # conftest hides it from every test


def cached(tmp_path: Path, name: str, kind: str, used: float, *, lacks: str = "") -> Any:
    """A model of the cache, as huggingface_hub describes it."""
    folder = tmp_path / name
    folder.mkdir()
    files = {"config.json": json.dumps({"model_type": kind}), "preprocessor_config.json": "{}", "model.safetensors": ""}
    for file, text in files.items():
        if file != lacks:
            (folder / file).write_text(text, encoding="utf-8")
    revision = SimpleNamespace(snapshot_path=folder)
    return SimpleNamespace(repo_type="model", repo_id=f"some/{name}", last_accessed=used, revisions=[revision])


def test_at_hand__order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repos: list[Any] = []
    (tmp_path / "hub" / "models--some--vit").mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: SimpleNamespace(repos=repos))
    monkeypatch.setattr(efficientnet, "weights_file", lambda: None)
    assert real() is None
    monkeypatch.setattr(efficientnet, "weights_file", lambda: tmp_path / "lite0.pth")
    assert real().model == efficientnet.NAME
    repos += [
        cached(tmp_path, "a-text-model", "bert", 9.0),
        cached(tmp_path, "a-broken-clip", "clip", 9.0, lacks="model.safetensors"),
        cached(tmp_path, "a-chat-model", "llava", 9.0),
    ]
    assert real().model == efficientnet.NAME
    repos += [cached(tmp_path, "vit", "vit", 2.0), cached(tmp_path, "dinov2", "dinov2", 1.0)]
    assert real().name == "some/vit"
    repos.append(cached(tmp_path, "clip", "clip", 0.0))
    found = real()
    assert (found.name, found.model) == ("some/clip", str(tmp_path / "clip"))  # a folder: no hub is asked for it


def test_at_hand__no_cache_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent() -> Any:
        raise huggingface_hub.errors.CacheNotFound("none", tmp_path)

    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", absent)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(efficientnet, "weights_file", lambda: None)
    assert real() is None
    (tmp_path / "hub" / "models--some--vit").mkdir(parents=True)
    assert real() is None
