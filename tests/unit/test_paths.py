"""No verb takes what cannot be a path: one sentence, before anything is read or written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import labelwright as lw
from labelwright.errors import LabelwrightError
from labelwright.paths import PATHS

VERBS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "inspect": ({"data": "photos"}, ("data", "classes")),
    "load": ({"source": "photos"}, ("source", "classes")),
    "audit": ({"data": "photos"}, ("data", "run", "test", "out")),
    "fit": ({"data": "photos", "out": "run"}, ("data", "out", "test", "corrections", "config")),
    "label": ({"run": "run", "data": "photos"}, ("run", "data", "out", "verified")),
    "evaluate": ({"run": "run", "data": "photos"}, ("run", "data")),
    "report": ({}, ("run",)),
    "verify": ({}, ("run",)),
    "compare": ({"first": "run", "second": "run"}, ("first", "second")),
    "verify_sample": ({"run": "run"}, ("run", "out")),
    "export": ({"run": "run", "out": "net.onnx"}, ("run", "out", "data")),
    "review": ({"run": "run"}, ("run", "export", "out")),
    "classes": ({"run": "run", "action": "rename", "names": ["a", "b"]}, ("run",)),
    "embed": ({"data": "photos", "out": "f.npz", "function": len}, ("data", "out")),
    "annotate": ({"data": "photos", "model": "none/here", "out": "a.parquet"}, ("data", "out", "classes")),
    "describe": ({"data": "photos", "model": "none/here"}, ("data", "classes")),
    "pretrain": ({"data": "photos", "out": "run"}, ("data", "out")),
    "load_model": ({}, ("path",)),
    "bench": ({"table": "cifar10-lt-100"}, ("out", "data")),
}
SUFFIXES = ("", ".npz", ".csv", ".parquet")
ODD = [*("x" * 300 + suffix for suffix in SUFFIXES), *("a\0b" + suffix for suffix in SUFFIXES), "~nobody-here/x.csv"]
ODD += ["\udcff.csv"]


@pytest.mark.parametrize("verb", VERBS)
def test_verbs__no_odd_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.chdir(tmp_path)
    given, names = VERBS[verb]
    for name in names:
        for value in [*ODD, Path(ODD[1]), *([3] if name in PATHS else [])]:
            with pytest.raises(LabelwrightError) as caught:
                getattr(lw, verb)(**given | {name: value})
            assert name in str(caught.value) or "run" in str(caught.value)
            assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_verbs__a_folder_where_a_file_is_wanted(tmp_path: Path) -> None:
    for suffix in SUFFIXES[1:]:
        (tmp_path / f"folder{suffix}").mkdir()
        for call in (lw.inspect, lw.load):
            with pytest.raises(LabelwrightError):
                call(tmp_path / f"folder{suffix}")


def test_classes__a_pipe_or_a_folder_is_not_read(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs pipes")
    os.mkfifo(tmp_path / "pipe.txt")
    for odd in (tmp_path / "pipe.txt", tmp_path):
        with pytest.raises(LabelwrightError, match="cannot read the class names"):
            lw.inspect(tmp_path, classes=odd)
