"""Which names fit no image, and what a chat model is asked about them: nothing that nobody wanted asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clip_folders
from chat_stub import ChatStub, Fail
from labelwright.annotators import describe as describing
from labelwright.annotators.describe import ask_for, describe, wanted_descriptions
from labelwright.errors import ConfigError, DataError, OfflineError
from labelwright.labels.concepts import Mismatch

NAMES = ["cat", "dog", "owl"]
ON_CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("labelwright.annotators.chat_endpoint.FIRST_WAIT_S", 0.001)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(clip_folders.save_two_tower(tmp_path_factory.mktemp("clip") / "m", "clip", size_px=16, patch_px=8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(draws.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def dog_fits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Mismatch(torch.tensor([False, True, False]), torch.tensor([0.9, 0.0, 0.8]), 0.4)
    monkeypatch.setattr(describing, "detect_mismatched", lambda *args, **kwargs: found)


def test_describe__without_a_chat_model_only_tells(photos: Path, model: str, dog_fits_nothing: None) -> None:
    found = describe(photos, model=model, classes=NAMES, **ON_CPU)
    assert found.mismatched == ["dog"]
    assert found.class_names == tuple(NAMES)
    assert (found.path, found.descriptions) == (None, {})


def test_describe__detects_what_mismatch_says_of_the_features(photos: Path, model: str) -> None:
    found = describe(photos, model=model, classes=NAMES, **ON_CPU)
    assert found.mismatch.evidence.shape == (3,)
    assert 0.3 < float(found.mismatch.evidence.max()) <= 1  # some class is the most probable of three
    assert found.mismatched == [
        n for n, is_so in zip(NAMES, found.mismatch.is_mismatched.tolist(), strict=True) if is_so
    ]


@pytest.mark.parametrize(("every", "asked"), [(False, ["dog"]), (True, NAMES)])
def test_describe__asks_about_the_mismatched_or_all(
    every: bool, asked: list[str], photos: Path, model: str, dog_fits_nothing: None, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "looks.json"
    with ChatStub("1. red with spots\n2. big and brown") as stub:
        found = describe(
            photos,
            model=model,
            classes=NAMES,
            out=out,
            chat="m",
            chat_url=stub.url,
            every=every,
            context="pets",
            n=2,
            **ON_CPU,
        )
        prompts = sorted(seen.prompt for seen in stub.seen)
    assert len(prompts) == len(asked)
    assert all("pets" in prompt for prompt in prompts)
    assert list(found.descriptions) == asked
    assert json.loads(out.read_text(encoding="utf-8")) == {name: ["red with spots", "big and brown"] for name in asked}
    with ChatStub(Fail(500)) as stub:  # what the file holds is not asked again
        again = describe(
            photos, model=model, classes=NAMES, out=out, chat="m", chat_url=stub.url, every=every, **ON_CPU
        )
        assert stub.seen == []
    assert again.descriptions == found.descriptions


def test_describe__approval_comes_before_the_first_question(
    photos: Path, model: str, dog_fits_nothing: None, tmp_path: Path
) -> None:
    told: list[Any] = []

    def refuse(estimated: Any) -> bool:
        told.append(estimated)
        return False

    out = tmp_path / "looks.json"
    with ChatStub("1. big") as stub:
        with pytest.raises(ConfigError, match="nothing was asked"):
            describe(photos, model=model, classes=NAMES, out=out, chat="m", chat_url=stub.url, approve=refuse, **ON_CPU)
        assert stub.seen == []
    assert len(told) == 1
    assert not out.exists()


def test_ask_for__nothing_to_ask_needs_no_endpoint(tmp_path: Path) -> None:
    assert ask_for(NAMES, [], "m", chat_url="http://127.0.0.1:9/v1", path=tmp_path / "looks.json") == {}
    assert list(tmp_path.iterdir()) == []


def test_ask_for__an_endpoint_that_is_down_leaves_no_file(tmp_path: Path) -> None:
    with ChatStub() as stub:
        url = stub.url
    with pytest.raises(OfflineError):
        ask_for(NAMES, [1], "m", chat_url=url, path=tmp_path / "looks.json")
    assert list(tmp_path.iterdir()) == []


def test_describe__refuses(photos: Path, model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="go together"):
        describe(photos, model=model, classes=NAMES, chat="m", **ON_CPU)
    with pytest.raises(ConfigError, match="go together"):
        describe(photos, model=model, classes=NAMES, out=tmp_path / "looks.json", **ON_CPU)
    vit = str(clip_folders.save_vision(tmp_path / "vit", size_px=16))
    with pytest.raises(ConfigError, match="has no text side"):
        describe(photos, model=vit, classes=NAMES, **ON_CPU)


def test_wanted_descriptions__mapping_file_or_none(tmp_path: Path) -> None:
    assert wanted_descriptions(None, NAMES) == {}
    assert wanted_descriptions({"dog": "big", "owl": ["red", "big"]}, NAMES) == {"dog": ("big",), "owl": ("red", "big")}
    (tmp_path / "looks.json").write_text('{"dog": ["big"]}', encoding="utf-8")
    assert wanted_descriptions(tmp_path / "looks.json", NAMES) == {"dog": ("big",)}
    with pytest.raises(DataError, match="unknown classes: ant, yak"):
        wanted_descriptions({"yak": ["big"], "dog": ["red"], "ant": ["small"]}, NAMES)
