"""No verb takes what cannot be a path: one sentence, before anything is read or written."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labelwright as lw
from labelwright.annotators.describe import wanted_descriptions
from labelwright.arguments import _PLAIN, check_arguments
from labelwright.errors import ConfigError, LabelwrightError
from labelwright.paths import PATHS
from labelwright.pipeline.saved_model import renamed

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
    "verify_sample": ({"run": "run"}, ("run", "out", "data")),
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
ODD += ["\udcff.csv", ""]


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


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "fit"])
def test_verbs__no_odd_types(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, given = getattr(lw, verb), {"run": "run", "path": "run"} | VERBS[verb][0]
    given = {key: value for key, value in given.items() if key in inspect.signature(call).parameters}
    plain = {
        key: parameter.annotation
        for key, parameter in inspect.signature(call).parameters.items()
        if _PLAIN.fullmatch(str(parameter.annotation))
    }
    assert plain or verb in ("load_model", "report", "compare", "verify")
    for key, hint in plain.items():
        for odd in (b"x", {}, object(), *(["x"] if "str" not in hint else [] if "int" in hint else [3])):
            with pytest.raises(LabelwrightError, match=rf"^{key}="):
                call(**{**given, key: odd})
    assert list(tmp_path.iterdir()) == []


def test_arguments__numbers_of_numpy_and_lists_are_what_they_hold() -> None:
    @check_arguments
    def verb(
        n: int, share: float | None = None, mean: tuple[float, ...] = (), name: str = "", is_on: bool = False
    ) -> int:
        return n

    assert verb(np.int64(3), share=np.float32(0.5), mean=[0.5, np.float64(1)], name=Path("a"), is_on=np.True_) == 3
    for odd in ({"n": 1.5}, {"n": True}, {"n": np.float64(1)}, {"n": 1, "mean": ["a"]}, {"n": 1, "is_on": 1}):
        with pytest.raises(ConfigError, match="is not possible"):
            verb(**odd)


@pytest.mark.parametrize("odd", [{"rename": 3}, {"rename": {"ant": 3}}])
def test_label__names_that_are_none(odd: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="3 is no name"):
        renamed(("ant", "bee"), odd["rename"])


def test_descriptions_and_kinds__of_another_type() -> None:
    with pytest.raises(ConfigError, match="descriptions=3 are none"):
        wanted_descriptions(3, ("ant",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--fail-on 3 is not possible"):
        lw.audit(["a.png"], fail_on=3)  # type: ignore[arg-type]
