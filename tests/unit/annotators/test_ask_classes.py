"""Asking a chat model for classes: votes, the journal, stops and restarts, an endpoint that misbehaves."""

import json
import threading

import pytest
from filelock import FileLock
from PIL import Image

import chat_stub
from labelwright.annotators.ask_classes import PHRASINGS, annotate_with_chat, phrase, votes_to_candidates
from labelwright.annotators.chat_endpoint import OpenAIChat
from labelwright.data.read import load
from labelwright.errors import ConfigError, DataError, OfflineError

NAMES = ("red", "green", "blue")


class Painter:
    """Says the colour it sees; `upset` may say something else, or raise, given (image colour, prompt)."""

    name = "painter"

    def __init__(self, upset=lambda colour, prompt: None) -> None:
        self.upset, self.asked, self._lock = upset, [], threading.Lock()

    def ask(self, prompt: str, image: Image.Image | None = None) -> str:
        colour = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue"}[image.getpixel((0, 0))]
        with self._lock:
            self.asked.append((colour, prompt))
        return self.upset(colour, prompt) or f"It is {colour}."


@pytest.fixture
def table(tmp_path):
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue"), ("d", "red")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    return load(tmp_path, classes=NAMES)


def lists(candidates) -> list[list[int]]:
    return [candidates.of(row).tolist() for row in range(len(candidates))]


def test_annotate__every_image_in_every_phrasing(table, tmp_path) -> None:
    painter = Painter()
    asked = annotate_with_chat(painter, table, NAMES, journal=tmp_path / "j.jsonl", n_phrasings=3)
    assert lists(asked.candidates) == [[0], [1], [2], [0]]
    assert asked.candidates.weights.tolist() == [1.0] * 4
    assert asked.counts == {
        "n_calls": 12,
        "n_from_journal": 0,
        "n_answers": 12,
        "n_failed": 0,
        "n_unparseable": 0,
    }
    prompts = [prompt for colour, prompt in painter.asked if colour == "green"]
    assert len(set(prompts)) == 3
    assert all(name in prompt for prompt in prompts for name in NAMES)


def test_annotate__union_and_shares_of_what_was_named(table, tmp_path) -> None:
    wordings = [text.split("{")[0] for text in PHRASINGS]

    def upset(colour: str, prompt: str) -> str | None:
        second = prompt.startswith(wordings[1])
        return "green or blue" if colour == "blue" and second else "hard to say" if colour == "green" else None

    asked = annotate_with_chat(Painter(upset), table, NAMES, journal=tmp_path / "j.jsonl", n_phrasings=3)
    assert lists(asked.candidates) == [[0], [], [1, 2], [0]]
    assert asked.candidates.weights.tolist() == pytest.approx([1.0, 0.25, 0.75, 1.0])  # blue thrice, green once
    assert asked.counts["n_unparseable"] == 3
    assert asked.unparseable == tuple(("b.png", k, "hard to say") for k in range(3))


@pytest.mark.parametrize("torn", ["", '{"id": "a.png", "phra', '{"id": "c.png", "phrasing": 0, "answer": "red"}'])
def test_annotate__a_killed_run_asks_nothing_twice(table, tmp_path, torn) -> None:
    journal = tmp_path / "j.jsonl"
    whole = annotate_with_chat(Painter(), table, NAMES, journal=journal, n_phrasings=2)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:6]) + torn)  # the head, five answers, and what a kill left of the next
    painter = Painter()
    told = []

    def note(estimate) -> bool:
        told.append(estimate)
        return True

    again = annotate_with_chat(painter, table, NAMES, journal=journal, n_phrasings=2, approve=note)
    assert (again.counts["n_calls"], again.counts["n_from_journal"]) == (3, 5)
    assert len(painter.asked) == told[0].n_calls == 3
    assert lists(again.candidates) == lists(whole.candidates)
    records = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert len({(r["id"], r["phrasing"]) for r in records}) == len(records) == 8
    third = Painter()
    done = annotate_with_chat(third, table, NAMES, journal=journal, n_phrasings=2, approve=note)
    assert (third.asked, len(told), done.counts["n_calls"]) == ([], 1, 0)


def test_annotate__stopped_half_way_keeps_what_was_answered(table, tmp_path) -> None:
    def stop(colour: str, prompt: str) -> None:
        if colour == "blue":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate_with_chat(Painter(stop), table, NAMES, journal=tmp_path / "j.jsonl", n_phrasings=1, n_workers=1)
    painter = Painter()
    annotate_with_chat(painter, table, NAMES, journal=tmp_path / "j.jsonl", n_phrasings=1)
    assert sorted(colour for colour, _ in painter.asked) == ["blue", "red"]


def test_annotate__other_questions_refuse_the_journal(table, tmp_path) -> None:
    journal = tmp_path / "j.jsonl"
    annotate_with_chat(Painter(), table, NAMES, journal=journal, n_phrasings=1)
    with pytest.raises(ConfigError, match="class_names differ"):
        annotate_with_chat(Painter(), table, (*NAMES, "pink"), journal=journal)
    with pytest.raises(ConfigError, match="seed differ"):
        annotate_with_chat(Painter(), table, NAMES, journal=journal, seed=1)
    journal.write_text(journal.read_text().replace('"phrasing"', '"phrase"', 1))
    with pytest.raises(DataError, match="line 2 is not an answer: KeyError"):
        annotate_with_chat(Painter(), table, NAMES, journal=journal)


def test_annotate__an_estimate_that_is_refused_stops_before_the_first_question(table, tmp_path) -> None:
    def refuse(estimate) -> bool:
        assert (estimate.n_calls, estimate.tokens_in > 12 * 600) == (12, True)
        return False

    painter = Painter()
    with pytest.raises(ConfigError, match="stopped before anything was asked"):
        annotate_with_chat(painter, table, NAMES, journal=tmp_path / "j.jsonl", approve=refuse)
    assert painter.asked == []


def colour_of(seen: chat_stub.Seen) -> str:
    red, _, blue = seen.image.convert("RGB").getpixel((0, 0))
    return "red" if red > 200 else "blue" if blue > 200 else "green"


def test_annotate__an_endpoint_that_misbehaves(table, tmp_path) -> None:
    def answer(seen: chat_stub.Seen) -> chat_stub.Behaviour:
        return chat_stub.Fail(400, "no such picture") if colour_of(seen) == "green" else f"A {colour_of(seen)} one"

    script = [chat_stub.Fail(500), chat_stub.rate_limit(0), chat_stub.Drop(), chat_stub.Raw()]
    with chat_stub.ChatStub(answer, script=script) as stub:
        chat = OpenAIChat("m", base_url=stub.url, sleep=lambda seconds: None)
        asked = annotate_with_chat(chat, table, NAMES, journal=tmp_path / "j.jsonl", n_phrasings=2, n_workers=2)
        n_requests = len(stub.seen)
    assert lists(asked.candidates) == [[0], [], [2], [0]]
    assert (asked.counts["n_calls"], asked.counts["n_answers"], asked.counts["n_failed"]) == (8, 6, 2)
    assert n_requests == 8 + len(script)
    with chat_stub.ChatStub("green") as stub:
        chat = OpenAIChat("m", base_url=stub.url)
        again = annotate_with_chat(chat, table, NAMES, journal=tmp_path / "j.jsonl", n_phrasings=2)
    assert (again.counts["n_calls"], again.counts["n_failed"]) == (2, 0)
    assert lists(again.candidates) == [[0], [1], [2], [0]]


def test_annotate__an_endpoint_that_is_down(table, tmp_path) -> None:
    with chat_stub.ChatStub(lambda seen: chat_stub.Fail(503)) as stub:
        chat = OpenAIChat("m", base_url=stub.url, retries=1, sleep=lambda seconds: None)
        with pytest.raises(OfflineError, match="HTTP 503"):
            annotate_with_chat(chat, table, NAMES, journal=tmp_path / "j.jsonl")


def test_phrase__order_hangs_on_seed_image_and_phrasing() -> None:
    many = [f"class {c}" for c in range(30)]
    first = phrase(many, seed=0, image_id="a", phrasing=0)
    assert first == phrase(many, seed=0, image_id="a", phrasing=0)
    others = [
        phrase(many, seed=1, image_id="a", phrasing=0),
        phrase(many, seed=0, image_id="b", phrasing=0),
        phrase(many, seed=0, image_id="a", phrasing=len(PHRASINGS)),
    ]
    assert len({first, *others}) == 4
    listed = next(line for line in others[2].splitlines() if "class 0" in line)
    assert sorted(listed.split(", ")) == sorted(many)


def test_votes__nobody_asked() -> None:
    sets = votes_to_candidates([])
    assert (len(sets), sets.classes.tolist()) == (0, [])


def test_journal__in_use(table, tmp_path) -> None:
    with FileLock(tmp_path / "j.jsonl.lock"), pytest.raises(ConfigError, match="in use by another run"):
        annotate_with_chat(Painter(), table, NAMES, journal=tmp_path / "j.jsonl")


def test_table_ids_are_what_the_journal_names(table, tmp_path) -> None:
    annotate_with_chat(Painter(), table, NAMES, journal=tmp_path / "j.jsonl", n_phrasings=1)
    head, *lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert head == {"model": "painter", "seed": 0, "class_names": list(NAMES)}
    assert sorted(line["id"] for line in lines) == table.ids.to_pylist()
