"""How many classes a run finds, how they are scored, shown and named."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

import labelwright as lw
from labelwright import cli
from labelwright.cli import parse_renames
from labelwright.data.embeddings import GivenFeats
from labelwright.data.prepare import beyond
from labelwright.data.table import Images, LabelTable
from labelwright.errors import ConfigError
from labelwright.labels.clusters import about_clusters
from labelwright.labels.unlike import Unlike
from labelwright.metrics.scores import open_scores, truth_beyond
from labelwright.pipeline.novel import EVIDENCE_FILE, count_novel, units_of, unlike_of
from labelwright.pipeline.saved_model import renamed
from labelwright.pipeline.votes import with_likeness
from labelwright.reporting.collect import collect
from labelwright.reporting.lines import lines_of_run
from labelwright.run_folder import Run
from labelwright.train.predict import TEMPERATURES, Answers
from labelwright.trust.calibration import Calibration

NAMES = ("ant", "bee", "cow", "dog", "elk")
FAST: dict[str, Any] = {"device": "cpu", "precision": "fp32", "evaluations": 2}


def answers_of(predicted: list[int], n_classes: int) -> Answers:
    n = len(predicted)
    at = torch.tensor(predicted)
    sure = torch.linspace(0.9, 0.6, n)
    none, odds = sure * torch.nan, sure[:, None].expand(n, len(TEMPERATURES)).logit()
    return Answers(at, sure, (at + 1) % n_classes, 1 - sure, torch.full((n,), -1), none, none, odds)


def table_of(labels: list[int], truth: list[int] | None = None) -> LabelTable:
    ids = pa.array([f"{i}.png" for i in range(len(labels))], pa.large_string())
    known = None if truth is None else np.array(truth, dtype=np.int32)
    return LabelTable(
        Images(ids), ids, np.array(labels, dtype=np.int32), NAMES[:2], truth=known, truth_names=NAMES if truth else ()
    )


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Embeddings of five classes, of which two have some labels; and test embeddings with all names."""
    folder = tmp_path_factory.mktemp("blobs")
    draw = np.random.default_rng(0)
    centres = np.linalg.qr(draw.normal(size=(16, 16)))[0][:5]
    paths = []
    for name, n in (("pool", 60), ("test", 12)):
        truth = np.repeat(np.arange(5), n)
        feats = (centres[truth] + 0.12 * draw.normal(size=(len(truth), 16))).astype(np.float32)
        words = np.array(NAMES)[truth]
        given = np.where((truth < 2) & (np.arange(len(truth)) % 2 == 0), words, "")
        columns = {
            "embedding": pa.array(list(feats)),
            "label": pa.array([w or None for w in (given if n == 60 else words)]),
        }
        columns |= {"truth": pa.array(words)} if n == 60 else {}
        paths.append(folder / f"{name}.parquet")
        pa.parquet.write_table(pa.table(columns), paths[-1])
    return paths[0], paths[1]


@pytest.fixture(scope="module")
def found(blobs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> lw.Run:
    out = tmp_path_factory.mktemp("found") / "run"
    settings = {"epochs": 6, "batch_size": 64, "lr": 0.03}
    return lw.fit(blobs[0], out=out, novel="auto", test=blobs[1], set=settings, **FAST)


def test_fit__finds_classes_that_nobody_named(found: lw.Run) -> None:
    summary = found.summary
    assert (summary["method"], summary["situation"]) == ("simgcd", "open_world")
    assert (summary["n_seen"], summary["n_novel"]) == (2, 3)
    for scores in (summary["test"], summary["pseudolabels"]):
        assert min(scores[key] for key in ("seen", "novel", "all")) > 0.9
    clusters = summary["novel"]["clusters"]
    assert [c["name"] for c in clusters] == ["novel-1", "novel-2", "novel-3"]
    assert sum(c["n_images"] for c in clusters) == pytest.approx(180, abs=20)
    assert summary["novel"]["evidence"]["n_novel"] == 3
    assert (found.path / EVIDENCE_FILE).exists()
    assert {"seen", "novel", "pool_novel"} <= set(_tests(found)[-1])
    first, _, right = lines_of_run(found)
    assert first.startswith("3 classes beyond the named ones")
    assert right.startswith("unlabelled images right: of named classes ")


def test_evaluate__any_names_will_do(found: lw.Run, blobs: tuple[Path, Path]) -> None:
    scores = lw.evaluate(found.path, blobs[1], device="cpu", precision="fp32")
    assert scores["novel"] == pytest.approx(found.summary["test"]["novel"])
    assert set(scores["class_names"]) == set(NAMES)


def test_label__renames_and_the_model_keeps_it(
    found: lw.Run, blobs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.run(["label", str(found.path), str(blobs[1]), "--out", str(tmp_path / "a.csv"), "--rename", "novel-9=x"])
        == 2
    )
    assert "no class 'novel-9' to rename" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()
    before = lw.label(found.path, blobs[1], device="cpu")["label"].to_pylist()
    assert (
        cli.run(
            ["label", str(found.path), str(blobs[1]), "--out", str(tmp_path / "b.csv"), "--rename", "novel-1=okapi"]
        )
        == 0
    )
    after = lw.label(found.path, blobs[1], device="cpu")["label"].to_pylist()
    assert after == ["okapi" if name == "novel-1" else name for name in before]
    assert "okapi" in after
    assert [c["name"] for c in lw.Run(found.path).summary["novel"]["clusters"]] == ["okapi", "novel-2", "novel-3"]
    assert "okapi" in (found.path / "report.html").read_text(encoding="utf-8")


def test_hidden_truth__plays_no_part(blobs: tuple[Path, Path], found: lw.Run, tmp_path: Path) -> None:
    table = pa.parquet.read_table(blobs[0])
    shuffled = pa.array(np.random.default_rng(1).permutation(table["truth"].to_pylist()))
    pa.parquet.write_table(
        table.set_column(table.schema.get_field_index("truth"), "truth", shuffled), tmp_path / "s.parquet"
    )
    settings = {"epochs": 6, "batch_size": 64, "lr": 0.03}
    again = lw.fit(tmp_path / "s.parquet", out=tmp_path / "run", novel="auto", test=blobs[1], set=settings, **FAST)
    first, second = ((run.path / "model" / "model.safetensors").read_bytes() for run in (found, again))
    assert first == second


def test_fit__one_named_class_and_a_class_named_like_a_found_one(blobs: tuple[Path, Path], tmp_path: Path) -> None:
    table = pa.parquet.read_table(blobs[0])
    one = pa.array([name if name == "ant" else None for name in table["label"].to_pylist()])
    at = table.schema.get_field_index("label")
    pa.parquet.write_table(table.set_column(at, "label", one), tmp_path / "one.parquet")
    settings = {"epochs": 3, "batch_size": 64, "lr": 0.03}
    run = lw.fit(tmp_path / "one.parquet", out=tmp_path / "run", novel=4, set=settings, **FAST)
    assert run.summary["pseudolabels"]["novel"] > 0.8
    clash = pa.array([name and name.replace("bee", "novel-2") for name in table["label"].to_pylist()])
    pa.parquet.write_table(table.drop(["truth"]).set_column(at, "label", clash), tmp_path / "clash.parquet")
    with pytest.raises(ConfigError, match="a class is named 'novel-2', as discovered ones will be"):
        lw.fit(tmp_path / "clash.parquet", out=tmp_path / "no", novel=3, set=settings, **FAST)
    assert not (tmp_path / "no").exists()


def test_fit__no_class_is_found_where_there_is_none(blobs: tuple[Path, Path], tmp_path: Path) -> None:
    table = pa.parquet.read_table(blobs[0])
    table = table.filter(pa.array([name in NAMES[:2] for name in table["truth"].to_pylist()]))
    pa.parquet.write_table(table, tmp_path / "seen.parquet")
    settings = {"epochs": 3, "batch_size": 64, "lr": 0.03}
    run = lw.fit(tmp_path / "seen.parquet", out=tmp_path / "run", novel="auto", set=settings, **FAST)
    assert run.summary["n_novel"] == 0
    assert run.summary["pseudolabels"]["seen"] > 0.9


def test_count_novel__a_number_needs_no_features_and_an_estimate_is_made_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.path.mkdir()

    def nothing() -> torch.Tensor:
        raise AssertionError("no features are needed")

    table = table_of([0, 1, -1])
    assert count_novel(run, table, None, nothing, seed=0) == (0, None)
    assert count_novel(run, table, 3, nothing, seed=0) == (3, None)
    run.write_json(EVIDENCE_FILE, {"n_novel": 7})
    assert count_novel(run, table, "auto", nothing, seed=0) == (7, {"n_novel": 7})


def test_beyond__other_classes_become_a_truth() -> None:
    table = table_of([0, 1, 1, -1])
    seen = beyond(table, ("bee",))
    assert seen.labels.tolist() == [-1, 0, 0, -1]
    assert seen.truth is not None
    assert (seen.truth.tolist(), seen.truth_names) == ([1, 0, 0, -1], ("bee", "ant"))
    assert truth_beyond(seen, 1)[0].tolist() == [1, 0, 0, -1]


def test_open_scores__a_cluster_without_a_class_is_never_right() -> None:
    scores = open_scores(answers_of([0, 2, 3, 3], 4), np.array([0, 2, 2, 2]), NAMES, n_seen=2)
    assert scores["accuracy"] == scores["all"] == 0.75
    assert scores["matched"] == ["ant", "bee", None, "cow"]
    assert len(scores["per_class"]) == len(scores["precision"]) == len(NAMES)  # the report pairs them
    assert scores["confusions"][0] == {"truth": "cow", "predicted": "no class", "count": 1} | scores["confusions"][0]


def test_about_clusters__words_that_fit_one_more_than_the_others() -> None:
    feats = torch.eye(4)[torch.tensor([0, 1, 2, 2, 3])]
    table = LabelTable(
        table_of([0, 1, -1, -1, -1]).images,
        table_of([0] * 5).ids,
        np.array([0, 1, -1, -1, -1], np.int32),
        (*NAMES[:2], "novel-1", "novel-2"),
    )
    words = {"cow": torch.eye(4)[2], "dog": torch.eye(4)[3]}
    told = about_clusters(table, answers_of([0, 1, 2, 2, 3], 4), feats, n_seen=2, words=words)
    assert [(c["n_images"], c["central"], c["proposed"][0][0]) for c in told] == [
        (2, ["2.png", "3.png"], "cow"),
        (1, ["4.png"], "dog"),
    ]
    assert told[0]["taken_for"] == [["novel-2", 1.0]]


def test_names() -> None:
    assert parse_renames(["novel-1=a=b"]) == {"novel-1": "a=b"}
    with pytest.raises(ConfigError, match="--rename okapi is not OLD=NEW"):
        parse_renames(["okapi"])
    with pytest.raises(ConfigError, match="two classes would be named 'ant'"):
        renamed(NAMES, {"bee": "ant"})
    assert renamed(NAMES[:2], {"bee": " Gro\u0308\u00dfe  "}) == ("ant", "Gr\u00f6\u00dfe")
    assert renamed(["1", "2"], {"2": "3"}) == ("1", "3")
    assert renamed([*NAMES[:2], "NA"], {"NA": "NA"}) == (*NAMES[:2], "NA")  # as it is called already
    for odd, words in (
        ("  ", "'bee' would have an empty name"),
        ("a\nb", "is more than one line"),
        ("NA", "'NA' stands for a label that is missing"),
        ("17", "'17' would be read as the number of a class"),
    ):
        with pytest.raises(ConfigError, match=words):
            renamed(NAMES, {"bee": odd})


def _tests(run: lw.Run) -> list[dict[str, Any]]:
    import json

    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [record["test"] for record in map(json.loads, lines) if "test" in record]


def test_fit__without_novel_says_that_labels_do_not_speak_for_hidden_classes(
    blobs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = lw.fit(
        blobs[0], out=tmp_path / "run", error=0.1, **FAST
    )  # 180 of 240 unlabelled images are of hidden classes
    trust, verdict = run.summary["trust"], collect(run)["verdict"]
    right = float(np.mean([label == truth for label, truth in zip(*labels_and_truth(run, blobs[0]), strict=True)]))
    assert trust["unlike"] > 0.5
    assert trust["interval"][0] <= right <= trust["interval"][1] < 1.01
    assert any("their trust is lowered: --novel auto looks for new" in words for words in run.summary["warnings"])
    truth = pa.parquet.read_table(blobs[0])["truth"]
    named = pc.is_in(truth, pa.array(NAMES[:2]))
    guessed = run.labels.append_column("named", named).filter(pc.equal(run.labels["source"], "predicted"))
    is_named, chances = guessed["named"].to_numpy(), guessed["trust"].to_numpy()
    assert chances[~is_named].mean() < 0.3 < 0.6 < chances[is_named].mean()
    assert trust["estimated"] == pytest.approx(right, abs=0.1)
    assert run.summary["promise"]["says"].startswith("Nothing is promised: labelled images do not speak for")
    assert "accept" not in run.labels.filter(pc.equal(run.labels["source"], "predicted"))["decision"].to_pylist()
    assert verdict["level"] in ("unconfirmed", "poor")
    assert "look unlike all labelled ones" in verdict["sentence"]
    assert any("--novel auto" in card["command"] for card in collect(run, command="labelwright fit x --out y")["next"])


def test_fit__no_class_was_found_but_images_look_unlike_all_labelled_ones(
    blobs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none: dict[str, Any] = {"n_novel": 0, "plausible": [0, 0], "could_be_none": False, "reason": "none.", "curve": []}
    monkeypatch.setattr("labelwright.pipeline.novel.estimate_n_novel", lambda *_, **__: none)
    run = lw.fit(blobs[0], out=tmp_path / "run", novel="auto", **FAST)
    trust = run.summary["trust"]
    right = float(np.mean([label == truth for label, truth in zip(*labels_and_truth(run, blobs[0]), strict=True)]))
    assert trust["unlike"] > 0.5
    assert trust["estimated"] == pytest.approx(right, abs=0.1)
    assert any("no new class was found, but about" in words for words in run.summary["warnings"])
    assert not any("--novel auto" in words for words in run.summary["warnings"])


def test_fit__unlabelled_images_of_another_camera_keep_a_trust_and_the_interval_says_how_little_is_known(
    tmp_path: Path,
) -> None:
    draw = np.random.default_rng(0)
    truth, is_open = np.arange(600) % 3, np.arange(600) >= 150
    feats = 2 * np.eye(3, 16)[truth] + 0.5 * draw.normal(size=(600, 16))
    feats[is_open] += 1.5 * draw.normal(size=16)
    labels = np.where(is_open, "", np.array(NAMES[:3])[truth])
    data = {"embeddings": feats.astype(np.float32), "labels": labels}
    run = lw.fit(data, out=tmp_path / "run", test_frac=0, device="cpu", evaluations=0)
    trust = run.summary["trust"]
    right = np.mean(np.array(run.labels["label"].to_pylist())[is_open] == np.array(NAMES[:3])[truth][is_open])
    assert trust["unlike"] >= 0.95
    assert trust["estimated"] > 0.5
    assert trust["interval"][0] < 0.1
    assert trust["interval"][0] <= right <= trust["interval"][1]
    assert any("of another place or camera" in words for words in run.summary["warnings"])
    assert collect(run)["verdict"]["level"] in ("unconfirmed", "poor")


@pytest.mark.parametrize("spare", [(), ("dog",)], ids=["two named", "one of them without a label"])
def test_unlike_of__an_image_is_not_its_own_neighbour_and_may_be_of_a_named_class(spare: tuple[str, ...]) -> None:
    feats = torch.cat([torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) + at for at in (0, 3, 6)])
    labels = np.arange(1200) // 400
    labels[(labels == 2) | (np.arange(1200) % 4 > 0)] = -1  # some of the first two classes, labels and others by turns
    table = dataclasses.replace(table_of(labels.tolist()), class_names=(*NAMES[:2], *spare))
    found = unlike_of(table, lambda rows: feats[rows])
    if spare:  # the images that look unlike may be of it
        assert found == Unlike()
        return
    assert 0 < found.share < 1
    assert found.likeness is not None
    rows = torch.from_numpy(np.flatnonzero(labels < 0))
    mean = float(found.likeness.chance(feats[rows], units_of(table)[rows]).mean())
    assert mean == pytest.approx(1 - found.share, abs=0.01)


@pytest.mark.parametrize("most", [1.0, 0.9])
def test_with_likeness__the_chance_is_multiplied_under_a_largest_trust_too(most: float) -> None:
    draw = torch.Generator().manual_seed(0)
    feats = torch.cat([torch.randn(400, 4, generator=draw) + at for at in (0, 3, 6)])
    labels = np.arange(1200) // 400
    labels[(labels == 2) | (np.arange(1200) % 4 > 0)] = -1
    table = dataclasses.replace(table_of(labels.tolist()), class_names=NAMES[:2])
    unlike = unlike_of(table, lambda rows: feats[rows])
    given = torch.from_numpy(labels)
    n = int((labels < 0).sum())
    odds = torch.zeros(1200, len(TEMPERATURES))
    odds[given < 0] = torch.linspace(-2, 3, n)[:, None].expand(n, len(TEMPERATURES))
    answers = dataclasses.replace(answers_of([0] * 1200, 2), given=given, odds=odds)
    calibration = Calibration(most=most)
    source = SimpleNamespace(table=table, stored=GivenFeats(feats.numpy()), rows=None)
    job: Any = SimpleNamespace(unlike=unlike, prepared=SimpleNamespace(train=source))
    rows = np.flatnonzero(labels < 0)
    after = calibration.chance(with_likeness(job, answers, calibration).odds[rows])
    assert unlike.likeness is not None
    wanted = calibration.chance(odds[rows]) * unlike.likeness.chance(feats[rows], units_of(table)[rows])
    torch.testing.assert_close(after, wanted, atol=1e-3, rtol=0, check_dtype=False)


def test_fit__verified_labels_speak_for_hidden_classes(blobs: tuple[Path, Path], tmp_path: Path) -> None:
    truth = pa.parquet.read_table(blobs[0])["truth"].to_pylist()
    seen = range(0, len(truth), 3)
    words = "\n".join(f"{row},{truth[row] if truth[row] in NAMES[:2] else 'none'}" for row in seen)
    (tmp_path / "verified.csv").write_text(f"id,verified\n{words}\n", encoding="utf-8")
    run = lw.fit(blobs[0], out=tmp_path / "run", verified=str(tmp_path / "verified.csv"), **FAST)
    right = float(np.mean([label == truth for label, truth in zip(*labels_and_truth(run, blobs[0]), strict=True)]))
    low, high = run.summary["trust"]["interval"]
    assert low <= right <= high < 0.7
    verdict = collect(run)["verdict"]
    assert verdict["level"] == "poor"
    assert "look unlike" not in verdict["sentence"]


def labels_and_truth(run: lw.Run, path: Path) -> tuple[list[str], list[str]]:
    """Of the images without labels."""
    truth = pa.parquet.read_table(path)["truth"].to_pylist()
    rows = [row for row, source in enumerate(run.labels["source"].to_pylist()) if source == "predicted"]
    return [run.labels["label"][row].as_py() for row in rows], [truth[row] for row in rows]
