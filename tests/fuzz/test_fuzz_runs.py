"""Settings and run folders: any value of any setting, and any damage to what a run wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import fuzzed, read_or_refused

import labelwright as lw
from labelwright.methods.registry import METHODS, method_named
from labelwright.pipeline.run_config import settings_of
from labelwright.pipeline.settings import fields, parse_assignments
from labelwright.run_folder import Run
from labelwright.train.settings import apply_overrides

ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        10**30,
        0.5,
        -0.5,
        1e308,
        float("inf"),
        float("nan"),
        "",
        "auto",
        "both",
        "-1",
        "nan",
    ),
    *(
        "x" * 300,
        "a=b",
        b"x",
        [],
        [1],
        ["a", "b"],
        (),
        {},
        {"a": 1},
        object,
        Path("no-such"),
        np.float32(1),
        np.zeros(2),
    ),
]
WORDS = ["", "1", "-1", "0", "nan", "inf", "1e308", "1e400", "true", "None", "a", "[1]", "1,2", "0.5"]
NAMES = sorted(field.name for field in fields())


@fuzzed(120)
@given(chosen=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ODD), min_size=1, max_size=3))
@example(chosen={"flip": True})
@example(chosen={"views": "both"})
def test_settings_of_fit(chosen: dict[str, Any]) -> None:
    def check() -> Any:
        return settings_of(None, {"data": "photos", "out": "run"} | chosen)

    read_or_refused(check, *chosen, *(name.replace("_", "-") for name in chosen))


@fuzzed(120)
@given(name=st.sampled_from(sorted(METHODS)), data=st.data())
def test_settings_of_methods(name: str, data: st.DataObject) -> None:
    config: Any = method_named(name).recipe.Config
    keys = sorted(vars(config()))
    key = data.draw(st.sampled_from([*keys, "no_such_key", "", "lr "]))
    value = data.draw(st.sampled_from(WORDS))
    read_or_refused(
        lambda: apply_overrides(config(), parse_assignments([f"{key}={value}"])), key.strip() or "=", f"{key}="
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run on features, and the features."""
    root = tmp_path_factory.mktemp("runs")
    draws, truth = np.random.default_rng(0), np.arange(60) % 3
    feats = (3 * np.eye(3, 6)[truth] + draws.normal(size=(60, 6))).astype(np.float32)
    np.savez(root / "feats.npz", embeddings=feats, labels=np.array(["ant", "bee", "cow"])[truth])
    lw.fit(str(root / "feats.npz"), out=root / "run", method="nearest_mean", device="cpu")
    return root / "run", root / "feats.npz"


FILES = [
    *(
        "config.yaml",
        "summary.json",
        "data.json",
        "environment.json",
        "metrics.jsonl",
        "gallery.json",
        "checksums.json",
    ),
    *("labels.parquet", "model/config.json", "model/model.safetensors", "model/strangers.safetensors"),
]


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, Callable[[bytes], bytes | None]]:
    """A file of a run, and what becomes of its content; None removes it."""
    name = draw(st.sampled_from(FILES))
    kind = draw(st.sampled_from(["cut", "changed", "gone", "empty", "other", "key gone", "value"]))
    at, byte = draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=3))
    other = draw(st.sampled_from([b"[]", b"3", b"null", b'"x"', b"{}", b"\xff", b"{" * 4000, b"[" * 100_000]))
    odd = draw(st.sampled_from([None, 3, -1, "x", [], {}, [None], 1e300]))

    def changed(content: bytes) -> bytes | None:
        place = int(at * max(0, len(content) - 1))
        if kind in ("key gone", "value") and name.endswith(".json"):
            found = json.loads(content)
            key = sorted(found)[int(at * (len(found) - 1))]
            if kind == "key gone":
                del found[key]
            else:
                found[key] = odd
            return json.dumps(found).encode()
        return {"cut": content[:place], "gone": None, "empty": b"", "other": other}.get(
            kind, content[:place] + byte + content[place + len(byte) :]
        )

    return name, changed


VERBS = ("label", "report", "read", "verify", "compare")


@pytest.fixture
def copy_of(finished: tuple[Path, Path], tmp_path: Path) -> Callable[[], Path]:
    def made() -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return Path(shutil.copytree(finished[0], tmp_path / "run"))

    return made


@fuzzed(60)
@given(
    damage=damages(), is_sealed=st.booleans(), verb=st.sampled_from(["label", "report", "read", "verify", "compare"])
)
def test_run_folders(
    finished: tuple[Path, Path], copy_of: Callable[[], Path], damage: Any, is_sealed: bool, verb: str
) -> None:
    run, (name, changed) = copy_of(), damage
    if not is_sealed:
        (run / "checksums.json").unlink()
    path = run / name
    if path.exists():
        content = changed(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)
    calls: dict[str, Callable[[], Any]] = {
        "label": lambda: lw.label(run, finished[1], device="cpu"),
        "report": lambda: lw.report(run),
        "read": lambda: (Run(run).summary, Run(run).labels, Run(run).data, Run(run).config),
        "verify": lambda: lw.verify(run),
        "compare": lambda: lw.compare(finished[0], run),
    }
    read_or_refused(calls[verb], str(run), Path(name).name)
