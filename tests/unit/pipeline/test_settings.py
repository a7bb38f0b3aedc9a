"""The settings of `fit` are defined once: checks, flags, config.yaml and the command of a report agree."""

from __future__ import annotations

import dataclasses
import html
import inspect
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import labelwright as lw
from labelwright import cli
from labelwright.errors import ConfigError, DataError
from labelwright.pipeline.run_config import command_of, from_config, settings_of, to_config
from labelwright.pipeline.settings import GROUPS, PER_CALL, FitSettings, fields
from pictures import write_folders

NAMES = ("zero", "two", "five", "six")
CLIP = "labelwright/digits-clip"
MADE_AGAIN = r"Make it again</summary>\s*<div class=\"cmd\"><code>(labelwright fit .*?)</code>"
SHORT = ("--evaluations", "0", "--device", "cpu", "--epochs", "1")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# ---- checks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seed": "1"}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"resume": "yes"}, "resume must be true or false"),
        ({"flip": "maybe"}, "flip must be auto or on or off"),
        ({"test_frac": -0.1}, "test_frac must be at least 0"),
        ({"ratio": 1.5}, "ratio must be at most 1"),
        ({"size": 4}, "size must be at least 8"),
        ({"n_views": 0}, "n_views must be at least 1"),
        ({"test_frac": float("nan")}, "test_frac must be at least 0"),
        ({"freeze": (1,)}, "freeze must be a list of texts"),
        ({"epochs": "3"}, "epochs must be a whole number or none"),
        ({"sedd": 1}, "did you mean seed?"),
        ({"lr": 0.1}, "settings of a method go into set"),
    ],
)
def test_settings__refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(None, {"data": "photos", "out": "run", **given})
    assert words in str(caught.value.fix)


def test_settings__what_is_missing() -> None:
    with pytest.raises(ConfigError, match="out is missing"):
        settings_of(None, {"data": "photos"})


def test_settings__python_may_give_more_than_the_command_line() -> None:
    given = {"data": object(), "out": Path("run"), "classes": ["a"], "novel": 3, "set": {"lr": 0.1}, "freeze": ["head"]}
    found = settings_of(None, given)
    assert (found.novel, found.overrides, found.freeze) == (3, {"lr": 0.1}, ("head",))


# ---- one definition -------------------------------------------------------------------------------------------------


def test_signature_flags_and_fields_are_the_same() -> None:
    names = [field.name for field in fields()]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(FitSettings))
    assert len(names) == len(set(names))
    assert [*inspect.signature(lw.fit).parameters] == [*names, "config", "approve"]
    _, values = cli.parse(["fit", "photos", "--out", "run"])
    assert {key: value for key, value in values.items() if key != "config"} == vars(
        FitSettings(data="photos", out="run")
    )
    for field in fields():
        assert f"{field.name}: {field.metadata['text']}" in (lw.fit.__doc__ or ""), field.name


@pytest.mark.parametrize("field", list(fields()), ids=lambda field: field.name)
def test_example_of_a_setting_parses(field: dataclasses.Field[Any]) -> None:
    words = shlex.split(field.metadata["example"])
    others = [] if field.name == "out" else ["--out", "run"]
    _, values = cli.parse(["fit", *([] if field.name == "data" else ["photos"]), *words, *others])
    if field.name not in ("data", "out"):
        default = field.default
        assert values[field.name] != default, "an example changes something"


def test_help_is_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["fit", "--help"])
    shown = capsys.readouterr().out
    assert [title for title in GROUPS if f"{title} options" in shown] == list(GROUPS)


# ---- config.yaml and the command ------------------------------------------------------------------------------------


def test_config__round_trip(tmp_path: Path) -> None:
    given = FitSettings(
        data="photos", out="run", classes=("a", "b"), set=("lr=0.1",), pretrained=False, freeze=("h.*",)
    )  # type: ignore[arg-type]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_config(given)), encoding="utf-8")
    again = settings_of(tmp_path / "config.yaml", {"out": "again"})
    assert dataclasses.replace(given, out="again", set={"lr": "0.1"}) == again  # type: ignore[arg-type]
    assert not set(PER_CALL) & set(from_config(tmp_path / "config.yaml"))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("sedd: 1", ConfigError, "unknown setting 'sedd'"),
        ("[1]", DataError, "no keys and values"),
        ("a: [", DataError, "cannot be read"),
        ("[" * 3000, DataError, "nested too deeply"),
        ("data: a\nset: 3", ConfigError, "set=3 is not possible"),
        ("data: a\nset: null", ConfigError, "set=None is not possible"),
        ("data: a\nresolved: 3\nepochs: x", ConfigError, "epochs='x' is not possible"),
        ("data: a\nresolved: {images_per_second: 3}\nsedd: 1", ConfigError, "unknown setting 'sedd'"),
        ("data: <Dataset in memory>", ConfigError, "data was in memory when that run was made"),
        ("data: [<Dataset in memory>]", ConfigError, "data was in memory when that run was made"),
        ("data: a\ntest: <Dataset in memory>", ConfigError, "test was in memory when that run was made"),
    ],
)
def test_config__refused(text: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=words):
        settings_of(tmp_path / "config.yaml", {"out": "again"})
    assert cli.run(["fit", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_config__a_stated_time_decides_the_epochs_anew(tmp_path: Path) -> None:
    text = "data: a\nminutes: 5\nresolved: {images_per_second: 3, settings: {epochs: 40}}"
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    again = settings_of(tmp_path / "config.yaml", {"out": "again"})
    assert (again.epochs, again.minutes) == (40, 5)
    longer = settings_of(tmp_path / "config.yaml", {"out": "again", "minutes": 60})
    assert (longer.epochs, longer.minutes) == (None, 60)


def test_config__a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(DataError, match="it is not a file"):
        settings_of(tmp_path / "config.yaml", {"out": "again"})


def test_command__flags_win_over_the_config(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: photos\nseed: 3\nclasses: [a, b]\nset: {lr: 0.1}\n", encoding="utf-8")
    _, values = cli.parse(["fit", "--config", str(tmp_path / "c.yaml"), "--out", "run", "--seed", "4"])
    assert (values["data"], values["seed"], values["classes"], values["set"]) == ("photos", 4, ("a", "b"), ("lr=0.1",))
    _, values = cli.parse(["fit", "other", f"--config={tmp_path / 'c.yaml'}", "--out", "run", "--classes", "n.txt"])
    assert (values["data"], values["seed"], values["classes"]) == ("other", 3, "n.txt")


def test_command__what_no_flag_says_is_read_from_the_config() -> None:
    config = to_config(FitSettings(data="photos", out="run", classes=["a", "b"]))  # type: ignore[arg-type]
    assert (
        command_of(config, path=Path("/runs/one")) == "labelwright fit --config /runs/one/config.yaml --out one-again"
    )
    assert command_of({}) == ""
    for data in (object(), [object()]):
        assert command_of(to_config(FitSettings(data=data, out="run"))) == ""  # type: ignore[arg-type]


def test_config__data_named_in_one_word_or_by_a_pattern_are_found_from_elsewhere_and_numbers_may_be_numpys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.parquet").touch()
    monkeypatch.chdir(tmp_path)
    config = to_config(FitSettings(data="photos", test="*.parquet", out="run"))
    assert (config["data"], config["test"]) == (str(tmp_path / "photos"), str(tmp_path / "*.parquet"))
    for given in ([("a.png", "cat")], {"image": ["a.png"]}):
        assert to_config(settings_of(None, {"data": given, "out": "run"}))["data"].endswith(" in memory>")
    assert settings_of(None, {"data": "photos", "out": "run", "seed": np.int64(3)}).seed == 3
    classes = settings_of(None, {"data": "photos", "out": "run", "classes": np.array(["a", "b"])}).classes
    assert classes == ("a", "b")  # type: ignore[comparison-overlap]
    with pytest.raises(ConfigError, match=r"classes={'a'} is not possible") as raised:
        settings_of(None, {"data": "photos", "out": "run", "classes": {"a"}})
    assert raised.value.fix == "classes must be a text or none or a list"
    config = to_config(FitSettings(data="owner", test="s3://bucket/*.parquet", out="run"))
    assert (config["data"], config["test"]) == ("owner", "s3://bucket/*.parquet")


def test_config__what_was_in_memory_can_be_given_again(tmp_path: Path) -> None:
    table = object()
    config = to_config(FitSettings(data=table, out="run", seed=3))  # type: ignore[arg-type]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    again = settings_of(tmp_path / "config.yaml", {"data": table, "out": "again"})
    assert (again.data, again.seed) == (table, 3)
    words = ["fit", "photos", "--config", str(tmp_path / "config.yaml"), "--out", "again"]
    assert cli.parse(words)[1]["data"] == "photos"


# ---- every situation ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 digits of four classes, a folder each; the same without labels in ``flat``; a list of the names."""
    root, found = tmp_path_factory.mktemp("data"), load_digits()
    values = {0: "zero", 2: "two", 5: "five", 6: "six"}
    for i in np.flatnonzero(np.isin(found.target, list(values)))[:80]:
        image = Image.fromarray((found.images[i] * (255 / 16)).astype(np.uint8))
        for folder in (root / "classes" / values[found.target[i]], root / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{i}.png")
    (root / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return root


def words_of(situation: str, digits: Path, tmp_path: Path) -> list[str]:
    """What a user types, up to --out."""
    some = sorted((digits / "classes").rglob("*.png"))
    if situation == "no_labels":
        return [str(digits / "flat"), "--classes", str(digits / "names.txt"), "--model", CLIP, "--n-views", "1"]
    if situation in ("few_labels", "some_classes"):
        seen = NAMES if situation == "few_labels" else NAMES[:2]
        rows = [
            [str(path), path.parent.name if i % 10 == 0 and path.parent.name in seen else ""]
            for i, path in enumerate(some)
        ]
        names = ["--classes", str(digits / "names.txt"), "--model", CLIP, "--n-views", "1"]
        return [table_of(tmp_path / "t.csv", "label", rows), *names, "--test-frac", "0"]
    if situation == "candidates":
        rows = [[str(path), f"{path.parent.name}|six"] for path in some]
        return [table_of(tmp_path / "t.csv", "candidates", rows), "--size", "8", "--set", "batch_size=16"]
    if situation == "open_world":
        draws = np.random.default_rng(0)
        feats = np.concatenate([draws.normal(c, 0.3, (20, 4)) for c in np.eye(4)]).astype(np.float32)
        labels = ["a" if i < 10 else "b" if 20 <= i < 30 else None for i in range(80)]
        columns = {"embedding": list(feats), "label": labels}
        pq.write_table(pa.table(columns), tmp_path / "feats.parquet")
        return [str(tmp_path / "feats.parquet"), "--novel", "2", "--test-frac", "0", "--set", "batch_size=16"]
    counts = {"ant": 12, "bee": 6, "cow": 3} if situation == "long_tailed" else {"ant": 8, "bee": 8}
    return [str(write_folders(tmp_path / "photos", counts)), "--size", "8", "--set", "batch_size=8"]


def table_of(path: Path, column: str, rows: list[list[str]]) -> str:
    path.write_text("\n".join([f"image,{column}", *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return str(path)


def test_command_of_the_report__data_that_were_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_folders(tmp_path / "photos", {"ant": 8, "bee": 8})
    images = sorted(root.rglob("*.png"))
    tables = [
        table_of(tmp_path / f"{name}.csv", "label", [[str(path), path.parent.name] for path in some])
        for name, some in (("first", images[::2]), ("second", images[1::2]))
    ]
    first = lw.fit(tables, out="run", size=8, epochs=1, device="cpu", evaluations=0, set=("batch_size=8",))
    page = first.report.read_text(encoding="utf-8")
    (command,) = re.findall(MADE_AGAIN, re.sub(r"</?span[^>]*>", "", page))
    assert cli.run(shlex.split(html.unescape(command))[1:]) == 0
    again = lw.Run("run-again")
    assert first.labels is not None
    assert first.labels.equals(again.labels)
    assert again.config == first.config


@pytest.mark.parametrize(
    "situation", ["no_labels", "few_labels", "some_classes", "candidates", "long_tailed", "balanced", "open_world"]
)
def test_command_of_the_report_makes_the_run_again(
    situation: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["fit", *words_of(situation, digits, tmp_path), *SHORT, "--out", "run"]
    assert cli.run(typed) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    (command,) = re.findall(MADE_AGAIN, re.sub(r"</?span[^>]*>", "", page))
    program, *words = shlex.split(html.unescape(command))
    assert (program, words[-2:]) == ("labelwright", ["--out", "run-again"])
    again = [words]
    if situation in ("few_labels", "candidates"):
        again.append(["fit", "--config", "run/config.yaml", "--out", "third"])
    first = lw.Run("run")
    assert first.summary["situation"] == situation
    for some in again:
        assert cli.run(some) == 0
        other = lw.Run(some[-1])
        assert other.labels is not None
        assert other.labels.equals(first.labels)
        assert other.config == first.config
        weights = [Path(name, "model", "model.safetensors").read_bytes() for name in ("run", other.path)]
        assert weights[0] == weights[1]
        assert other.summary["test"] == first.summary["test"]
