"""A network from random weights held against colours and edges on the images held out; a run that keeps the latter."""

import json
from pathlib import Path
from typing import Any

import pytest

import labelwright as lw
from labelwright import cli
from labelwright.metrics.choice import Choice
from labelwright.parsing import yaml_of
from labelwright.pipeline import references
from labelwright.pipeline.report import content_of
from labelwright.pipeline.resolve import on_colours, resolve
from labelwright.pipeline.review import relabelled, suggest
from labelwright.pipeline.run_config import settings_of
from labelwright.pipeline.settings import FitSettings
from labelwright.reporting import terminal
from labelwright.reviewing.answers import ANSWERS_FILE, AnswerLog
from labelwright.reviewing.board import Board
from labelwright.run_folder import Run
from labelwright.train.loop import _Loop
from pictures import write_folders

pytestmark = pytest.mark.usefixtures("own_cache")
COUNTS = {"ant": 25, "bee": 25, "cow": 25}  # 15 of them are held out
FAST: dict[str, Any] = {"device": "cpu", "size": 8, "epochs": 2, "evaluations": 0}
RESULTS = ("labels.parquet", "model/config.json", "model/model.safetensors", "model/strangers.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("photos") / "photos", COUNTS, size_px=12)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs teach a network nothing, and the classes differ in brightness."""
    return lw.fit(photos, out=tmp_path_factory.mktemp("runs") / "run", **FAST)


def contents(run: Path, names: tuple[str, ...] = RESULTS) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in names}


def test_network__loses_to_colours(run: Run, photos: Path) -> None:
    summary, beside = run.summary, run.summary["reference"]
    assert list(beside) == ["ce", "descriptor"]
    assert (summary["encoder"], summary["answer"]["name"]) == ("descriptor", "descriptor")
    assert beside["ce"]["title"] == "Cross-entropy (resnet32 from random weights)"
    assert beside["ce"]["test"]["balanced_accuracy"] < beside["descriptor"]["test"]["balanced_accuracy"] == 1
    assert summary["test"]["balanced_accuracy"] == 1
    assert summary["answer"]["why"].startswith(
        f"{beside['descriptor']['title']} is right on 100.0% of labelled images that were left out, Cross-entropy ("
    )
    assert summary["seconds"]["train"] == beside["ce"]["seconds"]  # of the network
    assert lw.load_model(run.path / "model").predict([str(photos / "cow" / "0.png")])["label"].to_pylist() == ["cow"]
    assert summary["n_fitted"] == 75  # those held out are learned from at the end


def test_network__wins(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = references.choose

    def of_the_network(own: str, *rest: Any, **how: Any) -> Choice:
        return Choice(own, "so", {"ce": 0.5, "descriptor": 0.5}) if own == "ce" else choose(own, *rest, **how)

    monkeypatch.setattr(references, "choose", of_the_network)
    found = lw.fit(photos, out=tmp_path / "run", **FAST)
    assert (found.summary["encoder"], found.summary["answer"]["why"]) == ("resnet32", "so")
    assert found.summary["reference"]["descriptor"]["test"]["balanced_accuracy"] == 1
    assert "kept" not in yaml_of((found.path / "config.yaml").read_text())
    facts = dict(content_of(found)["verdict"]["facts"])
    assert facts["training"] == "The network is kept; --model descriptor fits colours and edges in its place."


def test_network__given_test_images_show_and_do_not_choose(photos: Path, tmp_path: Path) -> None:
    test = write_folders(tmp_path / "test", COUNTS, size_px=12, seed=1)
    summary = lw.fit(photos, test=test, out=tmp_path / "run", **FAST).summary
    assert (summary["encoder"], summary["answer"]["criterion"]) == ("resnet32", None)
    assert summary["reference"]["descriptor"]["test"]["balanced_accuracy"] == 1
    assert [words for words in summary["warnings"] if words.endswith("--model descriptor makes it the answer")]


@pytest.mark.parametrize(
    "how",
    [{"model": "resnet32"}, {"method": "ce"}, {"views": "pixels"}, {"answer": "trained"}, {"test_frac": 0.0}],
    ids=lambda how: next(iter(how)),
)
def test_network__asked_for_or_not_judged(photos: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    given = {"data": str(photos), "out": str(tmp_path / "run"), "device": "cpu", "size": 8, "epochs": 1}
    assert on_colours(resolve(FitSettings(**given | how))) is None


def test_colours__are_of_the_pixels_that_the_network_sees(photos: Path, tmp_path: Path) -> None:
    plan = resolve(FitSettings(data=str(photos), out=str(tmp_path / "run"), device="cpu", size=8, epochs=1))
    plain = on_colours(plan)
    assert plain is not None
    assert plan.prepared.train.pixels is plain.prepared.train.pixels is not None
    assert plain.prepared.view.mean == (0.5,) * 3 != plan.prepared.view.mean
    assert (plain.settings.size, plain.prepared.size_px) == (8, 8)


def test_colours__config_repeats_what_was_kept(run: Run, photos: Path, tmp_path: Path) -> None:
    written = yaml_of((run.path / "config.yaml").read_text())
    assert (written["model"], written["resolved"]["model"], written["epochs"]) == ("auto", "resnet32", 2)
    assert (run.config["model"], run.config["resolved"]["views"]) == ("descriptor", "embeddings")
    assert run.config["epochs"] is None
    again = lw.fit(config=run.path / "config.yaml", out=tmp_path / "again")
    same = contents(run.path, RESULTS[:1] + RESULTS[2:])
    assert contents(again.path, tuple(same)) == same
    assert "descriptor" not in again.summary["reference"]  # there is nothing else
    assert lw.compare(run.path, again.path).settings == {}
    assert content_of(run)["again"]["command"].startswith(f"labelwright fit {photos} --size 8 --model descriptor")
    assert content_of(run)["next"][0]["title"] != "Start from what is known of images"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "1"], ("descriptor", None, None)),
        (["--model", "descriptor"], ("descriptor", None, None)),
        (["--minutes", "20"], ("auto", None, 20.0)),  # a network, for as long, and not for the epochs of the run
        (["--epochs", "7"], ("auto", 7, None)),
        (["--model", "resnet18"], ("resnet18", 2, None)),
    ],
)
def test_colours__what_is_stated_of_the_network_trains_it_again(
    run: Run, tmp_path: Path, words: list[str], expected: tuple[str, int | None, float | None]
) -> None:
    _, values = cli.parse(["fit", "--config", str(run.path / "config.yaml"), "--out", str(tmp_path / "x"), *words])
    assert (values["model"], values["epochs"], values["minutes"]) == expected
    assert values["method"] == "auto"
    assert values["size"] == 8
    key = words[0].removeprefix("--")
    same = settings_of(run.path / "config.yaml", {key: values[key], "out": str(tmp_path / "x")})
    assert (same.model, same.epochs, same.minutes) == expected


def test_colours__report_says_what_is_kept_and_how_to_get_the_other(run: Run) -> None:
    content = content_of(run)
    title = run.summary["answer"]["title"]
    facts = dict(content["verdict"]["facts"])
    network = "Cross-entropy (resnet32 from random weights)"
    assert facts["training"] == "Colours and edges are kept; --model resnet32 trains the network in their place."
    assert facts["obvious"].startswith(f"The network that was trained, {network}, gets ")
    assert facts["obvious"].endswith("this answer 100.0%: better.")
    assert dict(content["facts"])["Model"] == "none: colours and edges"
    assert dict(content["facts"])["Method"] == title
    assert content["training"]["words"][0] == "2 epochs of the network, which is not kept."
    assert [row[0] for row in content["again"]["beside"]] == [network, f"{title} (the answer)"]
    assert content["again"]["beside_head"] == ["", "Test images"]  # these chose
    assert f"It is the answer of {title}: " in (run.path / "model" / "README.md").read_text()


def test_colours__terminal_says_whose_training_it_was(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.PRINTERS["fit"](run, {})
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{run.summary['answer']['title']} on 60 images of 3 classes (balanced), ")
    assert first.endswith(" s of training of the network")


def test_colours__review_suggests_and_applies(run: Run, tmp_path: Path) -> None:
    board = Board(run.path)
    suggest(board)
    assert board.suggested is not None
    assert sorted(board.suggested.tolist()) == list(range(75))
    log = AnswerLog(run.path / ANSWERS_FILE)
    log.append("assign", labels={"ant/0.png": "bee"})
    again, says = relabelled(run.path, tmp_path / "applied")
    assert says.startswith("1 answer learned from")
    assert Run(again).summary["encoder"] == "descriptor"


def test_colours__a_run_is_resumed_wherever_it_was_killed(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the training of the network, in the fit of colours and edges, and where config.yaml names these already."""
    want, out = contents(run.path, (*RESULTS, "config.yaml", "data.json")), tmp_path / "run"
    end_epoch = _Loop.end_epoch

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def killed_in_the_second(loop: _Loop) -> None:
        killed() if loop.epoch == 1 else end_epoch(loop)

    for place, instead in {
        "labelwright.train.loop._Loop.end_epoch": killed_in_the_second,
        "labelwright.pipeline.references._colours": killed,
        "labelwright.pipeline.finish.save_model": killed,
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, instead)
            with pytest.raises(KeyboardInterrupt):
                lw.fit(photos, out=out, resume=out.exists(), **FAST)
    assert "kept" in yaml_of((out / "config.yaml").read_text())
    lw.fit(photos, out=out, resume=True, **FAST)
    assert contents(out, tuple(want)) == want
    before = json.loads((out / "summary.json").read_text())
    assert lw.fit(photos, out=out, resume=True, **FAST).summary == before  # a finished run is left as it is
