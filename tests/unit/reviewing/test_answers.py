"""reviewing/answers.py: what is acknowledged stays, what is taken back goes, names follow their classes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from labelwright.data.corrections import read_corrections
from labelwright.errors import ConfigError, DataError
from labelwright.reviewing.answers import ANSWERS_FILE, NO_CLASS, AnswerLog, write_corrections


def log_in(folder: Path) -> AnswerLog:
    return AnswerLog(folder / ANSWERS_FILE)


def test_two_logs_of_one_file_see_one_another_and_the_last_answer_wins(tmp_path: Path) -> None:
    first, second = log_in(tmp_path), log_in(tmp_path)
    first.append("assign", labels={"a": "cat", "b": "cat"})
    second.append("assign", labels={"b": "dog"})
    first.append("stranger", labels={"c": NO_CLASS})
    second.catch_up()
    assert first.labels == second.labels == log_in(tmp_path).labels == {"a": "cat", "b": "dog", "c": ""}
    assert [answer.number for answer in second.answers] == [0, 1, 2]


def test_a_log_whose_file_was_removed_begins_anew(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.append("assign", labels={"a": "cat", "b": "cat"})
    log.path.unlink()
    log.append("assign", labels={"c": "dog"})
    log.append("stranger", labels={"d": NO_CLASS})
    assert log.labels == log_in(tmp_path).labels == {"c": "dog", "d": ""}
    assert [answer.number for answer in log.answers] == [0, 1]


def test_undo_gives_the_answer_before_back_and_works_once(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.append("assign", labels={"a": "cat"})
    log.append("assign", labels={"a": "dog", "b": "dog"})
    log.append("undo", undoes=1)
    assert log.labels == {"a": "cat"}
    assert log.undoable == [0]
    for number in (1, 2, 9):
        with pytest.raises(ConfigError, match=f"no answer {number} to take back"):
            log.append("undo", undoes=number)
    assert len(log_in(tmp_path).answers) == 3


def test_an_answer_sent_again_is_not_written_again(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    sent = log.append("assign", labels={"a": "cat"}, key="k1")
    assert log_in(tmp_path).append("assign", labels={"a": "cat"}, key="k1") == sent
    assert len((tmp_path / ANSWERS_FILE).read_bytes().splitlines()) == 1


def test_a_line_cut_short_by_a_kill_is_dropped_and_written_over(tmp_path: Path) -> None:
    log_in(tmp_path).append("assign", labels={"a": "cat"})
    with (tmp_path / ANSWERS_FILE).open("ab") as file:
        file.write(b'{"kind": "assign", "labels": {"b": "do')
    log = log_in(tmp_path)
    assert log.labels == {"a": "cat"}
    log.append("assign", labels={"c": "dog"})
    assert log_in(tmp_path).labels == {"a": "cat", "c": "dog"}


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"kind": "guess"}', '{"kind": "assign", "labels": {"a": 1}}'])
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: str) -> None:
    log_in(tmp_path).append("assign", labels={"a": "cat"})
    with (tmp_path / ANSWERS_FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"answers.jsonl line 2 is no answer[\s\S]*remove that line"):
        log_in(tmp_path)


def test_answers_are_on_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, synced = log_in(tmp_path), []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    log.append("assign", labels={"a": "cat"})
    assert synced[0] == (tmp_path / ANSWERS_FILE).stat().st_size


def test_names_follow_their_class(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.append("assign", labels={"a": "novel-1", "b": "novel-2"})
    renamed = log.append("rename", names=("novel-1", "okapi"))
    log.append("assign", labels={"c": "okapi"})
    assert log.labels == {"a": "okapi", "b": "novel-2", "c": "okapi"}
    merged = log.append("merge", names=("okapi", "novel-2"))
    assert log.labels == dict.fromkeys("abc", "okapi")
    log.append("undo", undoes=merged.number)
    assert log.labels == {"a": "okapi", "b": "novel-2", "c": "okapi"}
    log.append("undo", undoes=renamed.number)
    assert log_in(tmp_path).labels == {"a": "novel-1", "b": "novel-2", "c": "novel-1"}


def test_corrections_keep_odd_names(tmp_path: Path) -> None:
    labels = {'a "quoted", name\n.png': "=1+1", "b": NO_CLASS, "\u00fc/\U0001f600.png": "Z\u00fcrich", "-1.png": "'tis"}
    write_corrections(labels, tmp_path / "corrections.csv")
    assert "'=1+1" in (tmp_path / "corrections.csv").read_text(encoding="utf-8"), "nothing for a spreadsheet to compute"
    assert {key: label for _, key, label in read_corrections(tmp_path / "corrections.csv")} == labels


def test_lines_are_plain_json(tmp_path: Path) -> None:
    log_in(tmp_path).append("assign", labels={"ü": "a\nb"}, key="k")
    (line,) = (tmp_path / ANSWERS_FILE).read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert (found["kind"], found["labels"], found["key"]) == ("assign", {"ü": "a\nb"}, "k")
    assert found["at"].endswith("+00:00")
