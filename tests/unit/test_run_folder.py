import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from labelwright.errors import ConfigError, DataError, DiskError
from labelwright.run_folder import Run, write_text_atomically
from labelwright.train.environment import environment


def test_run_folder__refuses_what_is_not_empty(tmp_path: Path) -> None:
    Run.create(tmp_path / "new")
    assert not (tmp_path / "new").exists()  # nothing is written before there is something to write
    Run.create(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty") as caught:
        Run.create(tmp_path)
    assert "--resume" in caught.value.fix
    assert Run(tmp_path).path == tmp_path
    for resume in (False, True):
        with pytest.raises(ConfigError, match="is a file"):
            Run.create(tmp_path / "notes.txt", resume=resume)
    with pytest.raises(ConfigError, match="a name in it has 300 bytes"):
        Run.create(tmp_path / ("x" * 300))


@pytest.mark.parametrize("content", ["labels", "data", "config", "environment", "class_names"])
def test_run__of_a_folder_that_is_not_there_is_refused_when_read(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=f"there is no folder {tmp_path}/nowhere\n  fix: give the folder of a run"):
        getattr(Run(tmp_path / "nowhere"), content)
    assert not getattr(Run(tmp_path), content)  # nothing of the run is there yet


def test_log__cut_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorBoard reads files of one second in the order of their counter as a text: the 10th before the 9th.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    run = Run.create(tmp_path / "made" / "by the first record")
    assert run.metrics_size() == 0
    run.cut_metrics(0)  # nothing there: nothing happens
    run.log({"kind": "epoch", "epoch": 0, "loss": 2.0, "kappa": [1.0], "done": True}, step=1)
    size = run.metrics_size()
    run.log({"kind": "epoch", "epoch": 1, "loss": 1.0}, step=2)
    run.close()

    again = Run(run.path)
    again.cut_metrics(size)
    again.log({"kind": "epoch", "epoch": 1, "loss": 1.5}, step=2)
    again.close()
    again.close()
    records = [json.loads(line) for line in again.metrics.read_text().splitlines()]
    assert [record["loss"] for record in records] == [2.0, 1.5]
    assert records[0]["kappa"] == [1.0]
    again.cut_metrics(10**9)  # longer than the file: never padded
    assert [json.loads(line) for line in again.metrics.read_text().splitlines()] == records

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["epoch/loss"]  # not the list, the flag or the epoch's number
    assert [(event.step, event.value) for event in events.Scalars("epoch/loss")] == [(1, 2.0), (2, 1.5)]


def test_json_and_yaml__round_trip_and_broken_files(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.write_json("a.json", {"é": [1, None]})
    run.write_yaml("a.yaml", {"b": 1, "a": ["é"]})
    assert run.read("a.json") == {"é": [1, None]}
    assert list(run.read("a.yaml").items()) == [("b", 1), ("a", ["é"])]
    with pytest.raises(ValueError, match="Out of range float"):
        run.write_json("nan.json", {"x": float("nan")})
    assert not (tmp_path / "nan.json").exists()
    (tmp_path / "broken.json").write_text('{"a":')
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "empty.yaml").write_text("")
    for name in ("broken.json", "none.json", "broken.yaml", "empty.yaml"):
        with pytest.raises(DataError, match=f"{name} (cannot be read|holds no keys)"):
            run.read(name)


def test_write_text__torn_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    def torn(self: Path, text: str, encoding: str) -> int:
        self.write_bytes(b"ne")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", torn)
    with pytest.raises(DiskError, match="disk full"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_environment__names_what_a_result_depends_on() -> None:
    found = environment(torch.device("cpu"), "fp32")
    assert (
        found["packages"]["torch"] == torch.__version__.split("+")[0] or found["packages"]["torch"] == torch.__version__
    )
    assert (found["device"], found["precision_used"]) == ("cpu", "float32")
    assert environment(torch.device("cpu"), "bf16")["precision_used"] == "bfloat16"
    json.dumps(found, allow_nan=False)
