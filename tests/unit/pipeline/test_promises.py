"""From verified labels in a file to decisions in labels.parquet."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

import labelwright as lw
from labelwright import cli
from labelwright.errors import ConfigError, DataError
from labelwright.pipeline.promises import by_held_out, decided, facts, read_verified, strata, truths, verify_sample
from labelwright.run_folder import Run

NAMES = ("ant", "bee", "cow")


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def labels_of(trust: list[float], source: list[str] | None = None, label: str = "ant") -> pa.Table:
    """Rows as labels.parquet has them."""
    n = len(trust)
    columns = {"id": [str(i) for i in range(n)], "label": [label] * n, "probability": trust, "runner_up": ["bee"] * n}
    columns |= {"source": source or ["predicted"] * n, "trust": trust, "softmax": trust, "decision": ["review"] * n}
    return pa.table(columns)


@pytest.mark.parametrize("column", ["verified", "label", "truth"])
def test_read_verified__blanks_and_no_class(tmp_path: Path, column: str) -> None:
    found = read_verified(written(tmp_path / "v.csv", f"id,{column}\n007,bee\n8,\n9,none\n8,ant\n007,bee\n"), NAMES)
    assert dict(found.labels) == {"007": 1, "9": -1, "8": 0}
    assert (found.n_blank, dict(found.drawn)) == (1, {})


def test_read_verified__jsonl_and_parquet(tmp_path: Path) -> None:
    lines = written(tmp_path / "v.jsonl", '{"id": "a", "label": "ant"}\n{"id": "b", "label": null}\n')
    pq.write_table(pa.table({"id": [3, 4], "verified": ["cow", "bee"]}), tmp_path / "v.parquet")
    assert dict(read_verified(lines, NAMES).labels) == {"a": 0}
    assert dict(read_verified(tmp_path / "v.parquet", NAMES).labels) == {"3": 2, "4": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,verified\n1,bea\n", r"line 2: 'bea' is not a class\n  fix: did you mean bee\?"),
        ("id,verified\n1,bee\n1,ant\n", "line 3: '1' was verified before, as another class"),
        ("id,verified\n1,bee\n,ant\n", "line 3: no id"),
        ("name,verified\n1,bee\n", "no column 'id'"),
        ("id,class_\n1,bee\n", "no column 'verified'"),
        ("id,verified,drawn\n1,bee,n=3\n", "the column drawn cannot be read"),
        ("id,verified,drawn\n1,bee,n=inf error=0.1 confidence=0.9 seed=0\n", "the column drawn cannot be read"),
        ("id,verified,drawn\n1,bee,n=3 error=nan confidence=0.9 seed=0\n", "the column drawn cannot be read"),
        (
            "id,verified,drawn\n1,bee,n=3 error=0.1 confidence=0.9 seed=0\n2,bee,n=3 error=0.1 confidence=0.9 seed=1\n",
            "drawn in 2 different ways",
        ),
    ],
)
def test_read_verified__says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_verified(written(tmp_path / "v.csv", text), NAMES)


def test_read_verified__labels_that_nobody_looked_at_are_refused(tmp_path: Path) -> None:
    pq.write_table(labels_of([0.5, 0.9]), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="nobody verified them"):
        read_verified(tmp_path / "labels.parquet", NAMES)
    pq.write_table(labels_of([0.5, 0.9]).append_column("verified", [["bee", None]]), tmp_path / "seen.parquet")
    assert dict(read_verified(tmp_path / "seen.parquet", NAMES).labels) == {"0": 1}


def test_read_verified__no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_verified(tmp_path / "v.csv", NAMES)


def test_truths__of_predicted_labels_alone(tmp_path: Path) -> None:
    verified = read_verified(written(tmp_path / "v.csv", "id,verified\n0,bee\n1,none\n2,ant\n9,ant\n"), NAMES)
    rows = labels_of([0.9] * 4, ["predicted", "predicted", "given", "predicted"])
    assert truths(rows, verified).tolist() == [1, -1, -2, -2]
    strange = read_verified(written(tmp_path / "w.csv", "id,verified\nx,bee\n"), NAMES)
    with pytest.raises(DataError, match="no id is of one of the 4 images, 'x' for example"):
        truths(rows, strange)


def test_decided__given_verified_and_unknown() -> None:
    rows = labels_of([0.9, 0.3, 0.8, 0.7, 0.6], ["given", "given", "predicted", "predicted", "predicted"])
    found = decided(rows, np.array([False, False, True, False, False]), None, NAMES)
    assert found["decision"].to_pylist() == ["accept", "review", "accept", "review", "review"]
    found = decided(rows, np.array([False, False, True, False, False]), np.array([-2, -2, -2, 1, -1]), NAMES)
    assert found["decision"].to_pylist() == ["accept", "review", "accept", "accept", "unknown"]
    assert found["label"].to_pylist() == ["ant", "ant", "ant", "bee", "ant"]
    assert found["runner_up"].to_pylist() == ["bee", "bee", "bee", "ant", "bee"]
    assert found["source"].to_pylist() == ["given", "given", "predicted", "verified", "verified"]
    assert found["trust"].to_pylist() == pytest.approx([0.9, 0.3, 0.8, 1.0, 0.0])
    unknown = rows.set_column(7, "decision", pa.array(["unknown"] * 5))
    assert set(decided(unknown, np.ones(5, bool), None, NAMES)["decision"].to_pylist()) == {"unknown"}


def test_by_held_out__only_if_they_are_like_the_others() -> None:
    trust = np.linspace(0.6, 1, 1000).tolist()
    shares = {"error": 0.05, "confidence": 0.95}
    truth = np.zeros(200, np.int64)
    found = by_held_out(labels_of(trust), labels_of(trust[::5]), truth, NAMES, **shares)
    assert not isinstance(found, str)
    assert found.accepted.sum() > 300
    block = facts(found, labels_of(trust), NAMES, basis="held-out labels", n_wrong=0, **shares)
    assert block["n_accepted"] == found.accepted.sum()
    assert block["says"].startswith(f"{found.accepted.sum()} of 1,000 predicted labels")
    assert "Left to review" not in block["says"]  # of other classes there are none
    for seen, words in ((found.accepted, "all of them verified ones"), (np.arange(1000) == 999, "1 of them verified")):
        of_seen = facts(found, labels_of(trust), NAMES, basis="verified labels", n_wrong=0, seen=seen, **shares)
        assert f"may be accepted, {words}" in of_seen["says"]
    unlike = by_held_out(labels_of(trust), labels_of(trust[-200:]), truth, NAMES, **shares)
    assert unlike == "the 200 labelled images held back are not like the others: their trust is another"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, dict[str, str]]:
    """A run on points in three heaps, a few of them labelled; its data; id -> true class."""
    folder = tmp_path_factory.mktemp("promises")
    generator = np.random.default_rng(0)
    truth = np.tile(np.arange(3), 200)
    feats = np.eye(3)[truth] * 3 + generator.normal(0, 0.8, (600, 3))
    names = np.array(NAMES)[truth]
    labels = np.where(np.arange(600) < 60, names, "")
    np.savez(folder / "feats.npz", embeddings=feats.astype(np.float32), labels=labels, class_names=np.array(NAMES))
    done = lw.fit(
        folder / "feats.npz", out=folder / "run", test_frac=0, evaluations=0, method="nearest_mean", error=0.1
    )
    return done, folder / "feats.npz", {str(i): name for i, name in enumerate(names)}


def filled(path: Path, truth: dict[str, str], n: int | None = None) -> Path:
    """The first n rows of a file of `verify_sample`, filled in."""
    table = pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types={"id": pa.string()}))
    answers = [truth[name] if n is None or i < n else None for i, name in enumerate(table["id"].to_pylist())]
    pa_csv.write_csv(table.set_column(4, "verified", pa.array(answers, pa.string())), path)
    return path


def test_fit__without_verified_labels_it_promises_nothing_and_says_so(run: tuple[Run, Path, dict[str, str]]) -> None:
    block = run[0].summary["promise"]
    assert block["n_accepted"] == 0
    assert "labelwright verify-sample" in block["says"]
    rows = run[0].labels
    assert rows is not None
    decisions = zip(rows["source"].to_pylist(), rows["decision"].to_pylist(), strict=True)
    assert {decision for source, decision in decisions if source == "predicted"} <= {"review", "unknown"}


def test_verify_sample_then_label(run: tuple[Run, Path, dict[str, str]], tmp_path: Path) -> None:
    done, data, truth = run
    made = verify_sample(done.path, n=150, out=tmp_path / "v.csv", error=0.1)
    assert (made.n, made.n_predicted) == (150, 540)
    header = (tmp_path / "v.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == '"id","path","label","trust","verified","drawn"'
    filled(tmp_path / "v.csv", truth, 120)
    rows = lw.label(done.path, data, error=0.1, verified=tmp_path / "v.csv")
    block = json.loads(rows.schema.metadata[b"promise"])
    assert (block["n_blank"], block["basis"]) == (30, "verified labels")
    assert 118 <= block["n_verified"] <= 120  # nothing is promised of an image or two that look strange
    assert block["share_accepted"] > 0.5
    assert "30 rows left blank" in block["assumes"]
    accepted = np.array(rows["decision"].to_pylist()) == "accept"
    label = np.array(rows["label"].to_pylist())
    wrong = label != np.array([truth[name] for name in rows["id"].to_pylist()])
    assert wrong[accepted].mean() <= 0.1
    assert rows["source"].to_pylist().count("verified") == 120
    assert not wrong[np.array(rows["source"].to_pylist()) == "verified"].any()
    in_run = done.labels
    assert in_run is not None  # the 60 that were given stay as they are there, and nothing is promised of them
    was_given = np.array(in_run["source"].to_pylist()) == "given"
    assert was_given.sum() == 60
    for column in ("id", "label", "source", "trust", "softmax", "decision"):
        assert np.array(rows[column].to_pylist())[was_given].tolist() == in_run[column].filter(was_given).to_pylist()
    assert block["n_predicted"] == 540
    assert "of 540 predicted labels" in block["says"]


def test_fit__repeated_with_verified_labels(run: tuple[Run, Path, dict[str, str]], tmp_path: Path) -> None:
    done, data, truth = run
    verify_sample(done.path, n=150, out=tmp_path / "v.csv", error=0.1)
    again = lw.fit(config=done.path / "config.yaml", out=tmp_path / "again", verified=filled(tmp_path / "v.csv", truth))
    assert again.summary["promise"]["share_accepted"] > 0.5
    assert 150 <= again.summary["trust"]["n"] <= 150 + done.summary["trust"]["n"]  # with what was left out
    rows = lw.label(again.path, data, error=0.1, rename={"ant": "emmet"})  # by its thresholds
    found = json.loads(rows.schema.metadata[b"promise"])
    assert found["assumes"] == "these images are like those of the run"
    assert rows["decision"].to_pylist().count("accept") == found["n_accepted"] > 200
    assert "emmet" in Run(again.path).summary["promise"]["thresholds"]
    with pytest.raises(ConfigError, match=r"does not promise an error of 0\.05"):
        lw.label(again.path, data, error=0.05)


def test_label__a_sample_of_other_labels_is_refused(run: tuple[Run, Path, dict[str, str]], tmp_path: Path) -> None:
    done, data, truth = run
    verify_sample(done.path, n=50, out=tmp_path / "v.csv")
    path = filled(tmp_path / "v.csv", truth)
    path.write_text(path.read_text(encoding="utf-8").replace("seed=0", "seed=1"), encoding="utf-8")
    with pytest.raises(DataError, match="was not drawn from these labels"):
        lw.label(done.path, data, error=0.1, verified=path)


def test_strata__labels_given_or_of_no_class_could_not_be_drawn(tmp_path: Path) -> None:
    verified = read_verified(written(tmp_path / "v.csv", "id,verified\n0,ant\n"), NAMES)
    rows = labels_of([0.9, 0.8, 0.7], ["predicted", "given", "predicted"])
    rows = rows.set_column(7, "decision", pa.array(["review", "review", "unknown"]))
    assert strata(rows, verified).tolist() == [0, -1, -1]


def test_verify_sample__on_the_command_line(
    run: tuple[Run, Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.csv"
    assert cli.run(["verify-sample", str(run[0].path), "--n", "9", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["n"], told["n_predicted"]) == (str(out), 9, 540)
    assert told["note"].endswith("(name the images: --data photos/); the column `id` says which image it is")
    assert cli.run(["verify-sample", str(run[0].path), "--n", "9", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert cli.run(["verify-sample", str(run[0].path), "--n", "9", "--out", str(tmp_path / "u.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "holds embeddings and no paths of images" in lines[1]
    words = shlex.split(lines[-1])
    assert words == [
        *("labelwright", "label", str(run[0].path), run[0].config["data"], "--error", "0.05"),
        *("--verified", str(tmp_path / "u.csv"), "--out", "accepted.csv"),
    ]
    for flags in (["--n", "0"], ["--error", "1"], ["--out", str(tmp_path / "v.txt")], ["--confidence", "0"]):
        assert cli.run(["verify-sample", str(run[0].path), "--out", str(tmp_path / "w.csv"), *flags]) == 2
        assert "fix:" in capsys.readouterr().err
    assert not (tmp_path / "w.csv").exists()


def test_verify_sample__of_images_that_are_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images in memory and inside a Parquet file: pictures that a person can open lie beside the sheet."""
    monkeypatch.chdir(tmp_path)
    shades = [Image.new("L", (8, 8), 100 * (i % 2) + i) for i in range(24)]
    names = [("dark", "bright")[i % 2] if i < 8 else None for i in range(24)]
    data = datasets.Dataset.from_dict({"image": shades, "label": names})
    done = lw.fit(data, out="memory", model="descriptor", test_frac=0, device="cpu")
    found = verify_sample(done.path, n=5, out="blind.csv")
    assert found.note.startswith("the images were in memory, and memory keeps no copy (pass them again from Python")
    assert found.note.endswith("which image it is: its row from 0, where the data have no ids")
    assert {row["path"] for row in rows_in(found.path)} == {""}
    assert not Path("blind-images").exists()
    with pytest.raises(DataError, match="none of the images that were drawn is in these data"):
        verify_sample(done.path, data=shades[:2], n=5, out="other.csv")

    data.to_parquet("shades.parquet")
    lw.fit("shades.parquet", out="stored", model="descriptor", test_frac=0, device="cpu")
    for run, given, out in (("memory", data, "seen.csv"), ("stored", None, "shard.v1.csv")):
        found = verify_sample(run, data=given, n=5, out=out)
        assert found.note == ""
        rows = rows_in(found.path)
        assert len({row["path"] for row in rows}) == 5
        for row in rows:
            with Image.open(row["path"]) as picture:
                assert picture.size == (128, 128)
                assert picture.convert("L").getpixel((0, 0)) == 100 * (int(row["id"]) % 2) + int(row["id"])
    Path("shades.parquet").rename("moved.parquet")
    assert "shades.parquet (if they moved, say where with --data)" in verify_sample("stored", n=5, out="gone.csv").note
    capsys.readouterr()
    assert cli.run(["verify-sample", "stored", "--n", "5", "--data", "moved.parquet", "--out", "moved.csv"]) == 0
    assert "labelwright label stored moved.parquet" in capsys.readouterr().out
    Path("again-images").mkdir()
    with pytest.raises(ConfigError, match="again-images exists"):
        verify_sample("memory", data=data, n=5, out="again.csv")
    assert not Path("again.csv").exists()


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_fit__a_class_that_is_none_is_refused_before_anything_is_written(
    run: tuple[Run, Path, dict[str, str]], tmp_path: Path
) -> None:
    bad = written(tmp_path / "v.csv", "id,verified\n100,ants\n")
    with pytest.raises(DataError, match="did you mean ant"):
        lw.fit(run[1], out=tmp_path / "run", error=0.1, verified=bad)
    assert not (tmp_path / "run").exists()


def test_answers_one_a_row__every_verb_sees_an_image_once(tmp_path: Path) -> None:
    draw, rows = np.random.default_rng(0), ["worker,image,label"]
    for i in range(24):
        shade = draw.integers(0, 60, (12, 12, 3), np.uint8) + np.array([190, 0, 0], np.uint8)[np.arange(3) - i % 3]
        Image.fromarray(shade.astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows += [f"w{who},{i}.png,{NAMES[(i + (who == i % 5)) % 3]}" for who in range(2 + i % 2)]
    table = written(tmp_path / "votes.csv", "\n".join(rows) + "\n")
    run = lw.fit(table, out=tmp_path / "run", annotator_columns="worker", model="descriptor", test_frac=0.0)
    assert run.labels is not None
    ids = run.labels["id"].to_pylist()
    assert sorted(ids) == sorted(f"{i}.png" for i in range(24))
    assert lw.label(run.path, table)["id"].to_pylist() == ids
    lw.verify_sample(run.path, out=tmp_path / "sheet.csv", n=24)
    sheet = filled(tmp_path / "sheet.csv", {f"{i}.png": NAMES[i % 3] for i in range(24)})
    promised = lw.label(run.path, table, verified=sheet, error=0.5).schema.metadata[b"promise"]
    assert json.loads(promised)["n_predicted"] == 24
    with pytest.raises(DataError, match="has a label") as raised:
        lw.evaluate(run.path, table)
    assert any("about 24 images; the answers differ" in problem.detail for problem in raised.value.problems)
    truth = [line.rsplit(",", 1)[0] + f",{NAMES[int(line.split(',')[1][:-4]) % 3]}" for line in rows[1:]]
    known = written(tmp_path / "truth.csv", "\n".join([rows[0], *truth]) + "\n")
    assert lw.evaluate(run.path, known)["n_scored"] == 24
    lw.export(run.path, out=tmp_path / "out", format="coco")
    assert len(json.loads((tmp_path / "out" / "labels.json").read_text())["images"]) == 24
