"""Descriptions of classes: a user's file with every kind of mistake, and answers of models good and bad."""

import json
import os
from pathlib import Path

import pytest

from chat_stub import ChatStub, Fail
from labelwright.annotators.chat_endpoint import OpenAIChat
from labelwright.annotators.description_prompts import OTHERS_SHOWN, description_prompt, parse_descriptions
from labelwright.annotators.descriptions import describe_classes, read_descriptions, write_descriptions
from labelwright.data.checks import format_problems
from labelwright.errors import ConfigError, DataError, DiskError, OfflineError

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED") or Path(__file__).parents[3].parent / "shared")
SIGNS = ("stop", "yield", "no entry")


@pytest.fixture(autouse=True)
def only_the_stub(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def chat_of(stub, **settings):
    return OpenAIChat("stub", base_url=stub.url, sleep=lambda seconds: None, **settings)


def written(folder, text, name="looks.json"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_read_descriptions__json_and_yaml_say_the_same(tmp_path):
    as_json = written(tmp_path, '{"yield": " a red\\n triangle ", "stop": ["a red octagon", "é", "a red octagon"]}')
    as_yaml = written(tmp_path, "yield: a red triangle\nstop: [a red octagon, é]\n", "looks.yml")
    expected = {"yield": ("a red triangle",), "stop": ("a red octagon", "é")}
    assert read_descriptions(as_json, SIGNS) == read_descriptions(as_yaml, SIGNS) == expected


def test_read_descriptions__every_mistake_is_told(tmp_path):
    wrong = {"stpo": "x", "yield": [], "stop": 3, "no entry": ["white bar", None]}
    path = written(tmp_path, json.dumps(wrong))
    with pytest.raises(DataError) as caught:
        read_descriptions(path, SIGNS)
    error = caught.value
    assert error.message == f"{path}: 'stpo' is not a class; did you mean 'stop'? (and 3 more)"
    assert [problem.detail for problem in error.problems] == [
        "is not a class; did you mean 'stop'?",
        "has an empty description",
        "has a number where a text or a list of texts belongs",
        "has a list with nothing where a text or a list of texts belongs",
    ]
    assert "looks.json" in error.fix
    assert "1 unknown_label" in format_problems(error.problems)


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("{", "a.json", "is not valid JSON: Expecting property name"),
        ("stop: [", "a.yaml", "is not valid YAML"),
        ('{"stop": "a", "stop": "b"}', "a.json", "the key 'stop' is there twice"),
        ("stop: a\nstop: b\n", "a.yaml", "the key 'stop' is there twice"),
        ("no: a bar\n", "a.yaml", "False is read as bool; put the class name in quotes"),
        ('["stop"]', "a.json", "holds a list at its top"),
        ("", "a.yaml", "holds nothing at its top"),
        ("{}", "a.json", "describes no class"),
        ('{"stop": ["a", " "]}', "a.json", "'stop' has an empty description"),
        ('{"stop": {"shape": "round"}, "yield": "x"}', "a.json", "'stop' has a mapping where a text"),
    ],
)
def test_read_descriptions__wrong_in_one_way(tmp_path, text, name, words):
    path = written(tmp_path, text, name)
    with pytest.raises(DataError) as caught:
        read_descriptions(path, SIGNS)
    assert words in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.fix


def test_read_descriptions__one_level_down(tmp_path):
    path = written(tmp_path, '{"signs": {"stop": "a red octagon"}, "pets": {"cat": "whiskers"}}')
    with pytest.raises(DataError, match="holds classes one level down, under 'signs' and 'pets'") as caught:
        read_descriptions(path, SIGNS)
    assert "file of its own" in caught.value.fix


def test_read_descriptions__of_the_shared_models(tmp_path):
    path = SHARED / "models" / "descriptions.json"
    if not path.is_file():
        pytest.skip(f"needs {path}: set LABELWRIGHT_SHARED to the folder with the shared models")
    with pytest.raises(DataError, match="one level down, under 'cifar10' and 'gtsrb'"):
        read_descriptions(path, SIGNS)
    both = json.loads(path.read_text(encoding="utf-8"))
    for name, entries in both.items():
        one = written(tmp_path, json.dumps(entries), f"{name}.json")
        assert {key: list(texts) for key, texts in read_descriptions(one, list(entries)).items()} == entries


def test_read_descriptions__no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_descriptions(tmp_path / "none.json", SIGNS)
    with pytest.raises(ConfigError, match="not read") as caught:
        read_descriptions(written(tmp_path, "x", "looks.txt"), SIGNS)
    assert ".yaml" in caught.value.fix
    (tmp_path / "latin.json").write_bytes('{"stop": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_descriptions(tmp_path / "latin.json", SIGNS)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ConfigError, match="it is not a file"):
        read_descriptions(tmp_path / "pipe.json", SIGNS)
    for name in ("deep.json", "deep.yaml"):
        with pytest.raises(DataError, match="nested too deeply"):
            read_descriptions(written(tmp_path, "[" * 20_000, name), SIGNS)


def test_write_descriptions__comes_back(tmp_path):
    path = tmp_path / "looks.json"
    write_descriptions(path, {"stop": ["ein rotes Achteck, weiß beschriftet"], "yield": ()})
    assert "weiß" in path.read_text(encoding="utf-8"), "for a person to read"
    assert read_descriptions(path, SIGNS) == {"stop": ("ein rotes Achteck, weiß beschriftet",)}
    assert [file.name for file in tmp_path.iterdir()] == ["looks.json"]
    with pytest.raises(ConfigError, match="written as JSON"):
        write_descriptions(tmp_path / "looks.yaml", {})
    with pytest.raises(DiskError, match=r"looks\.json cannot be written"):
        write_descriptions(path / "looks.json", {})


LISTS = {
    "plain": "a red octagon\nwhite letters on red\n",
    "numbered": "1. a red octagon\n2) white letters on red.",
    "bullets": "- a red octagon\n• white letters on red\n",
    "bold, blank lines, talk": "Sure! Here are two:\n\n**a red octagon**\n\n* white letters on red\nI hope it helps",
    "quoted": '"a red octagon"\n“white letters on red.”',
    "letters": "(a) a red octagon\n(b) white letters on red",
    "json": '["a red octagon", "white letters on red"]',
    "json in a fence": '```json\n{"descriptions": ["a red octagon", "white letters on red"]}\n```',
    "json cut off": '[\n  "a red octagon",\n  "white letters on red",\n',
    "thinking first": "<think>What is\na stop sign</think>\na red octagon\nwhite letters on red",
    "windows lines": "1. a red octagon\r\n2. white letters on red\r\n",
}


@pytest.mark.parametrize("answer", LISTS.values(), ids=LISTS)
def test_parse_descriptions__forms_of_a_list(answer):
    assert parse_descriptions(answer) == ("a red octagon", "white letters on red")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n\n",
        "I'm sorry, but I can't help with that.",
        "I cannot describe this class.",
        "As an AI language model, I have no eyes to see with.",
        "Sorry, no.",
        "Descriptions:",
        "Which stop do you mean?",
        "octagon",
        "word " * 31,
        "{}",
        "[" * 20_000,
        "<think>a red octagon\nwhite letters",
    ],
)
def test_parse_descriptions__nothing_usable(answer):
    assert parse_descriptions(answer) == ()


def test_parse_descriptions__keeps_what_a_sign_says():
    answer = '1. a round sign with the number 20\n2. 3 red stripes\n3. a disc that reads "STOP"\n4. red-and-white bars'
    assert parse_descriptions(answer) == (
        "a round sign with the number 20",
        "3 red stripes",
        'a disc that reads "STOP"',
        "red-and-white bars",
    )


def test_parse_descriptions__repeated_and_too_many():
    parsed = parse_descriptions("a red disc\nA red disc!\n" + "\n".join(f"a disc with {i} dots" for i in range(9)), n=3)
    assert parsed == ("a red disc", "a disc with 0 dots", "a disc with 1 dots")


def test_parse_descriptions__sentences_of_one_paragraph():
    answer = " ".join(f"A wide red disc number {i} with a white bar across its middle." for i in range(4))
    assert parse_descriptions(answer)[1] == "A wide red disc number 1 with a white bar across its middle"


def test_description_prompt__names_its_neighbours_only():
    names = [f"kind {i}" for i in range(500)]
    for c in (0, 250, 499):
        prompt = description_prompt(names, c)
        others = prompt.split("(")[1].split(")")[0].split(", ")
        assert len(others) == OTHERS_SHOWN
        assert names[c] not in others
        assert f'"{names[c]}"' in prompt
    alone = description_prompt(["stop"], 0)
    assert "(" not in alone
    assert "The images are of" not in alone


ALL = range(len(SIGNS))


def test_describe_classes__asks_for_those_wanted(tmp_path, caplog):
    def answer(seen):
        if '"no entry"' in seen.prompt:
            return "I'm sorry, I can't."
        return "1. a red octagon\n2. white letters\n3. a thick border" if '"stop"' in seen.prompt else Fail(400, "no")

    path = tmp_path / "looks.json"
    with ChatStub(answer) as stub:
        chat = chat_of(stub, max_in_flight=1)
        found = describe_classes(chat, SIGNS, path, which=[0, 2, 1], n=2, context="traffic signs")
    assert found == read_descriptions(path, SIGNS) == {"stop": ("a red octagon", "white letters")}
    assert all(seen.prompt.startswith("The images are of: traffic signs.\nWrite 2 ") for seen in stub.seen)
    assert "no usable description of 2 of 3 classes: no entry, yield" in caplog.text


def test_describe_classes__nothing_wanted(tmp_path):
    path = tmp_path / "looks.json"
    with ChatStub() as stub:
        assert describe_classes(chat_of(stub), SIGNS, path, which=[]) == {}
        with pytest.raises(ConfigError, match="n=0"):
            describe_classes(chat_of(stub), SIGNS, path, which=[0], n=0)
    assert (stub.seen, path.exists()) == ([], False)


def test_describe_classes__keeps_what_is_there(tmp_path):
    path = tmp_path / "looks.json"
    write_descriptions(path, {"yield": ["my own words"]})
    with ChatStub("Here you go:\na red octagon\nwhite letters") as stub:
        for _ in range(2):
            found = describe_classes(chat_of(stub), SIGNS, path, which=ALL)
    assert len(stub.seen) == 2
    assert found["yield"] == ("my own words",)
    assert found["stop"] == ("a red octagon", "white letters")
    assert list(found) == list(read_descriptions(path, SIGNS)) == list(SIGNS)


def test_describe_classes__goes_on_after_a_stop(tmp_path):
    path = tmp_path / "looks.json"
    names = [f"kind {i}" for i in range(6)]
    more = [*names, *"abcdefgh"]
    with ChatStub(Fail(500), script=["two words"] * 2) as stub, pytest.raises(OfflineError):
        describe_classes(chat_of(stub, retries=0, max_in_flight=1), more, path, which=range(14))
    assert set(read_descriptions(path, names)) == {"kind 0", "kind 1"}
    with ChatStub("I cannot tell", script=["two words"] * 3) as stub:
        found = describe_classes(chat_of(stub, max_in_flight=1), names, path, which=range(6))
    assert len(stub.seen) == 4
    assert list(found) == names[:5]


def test_describe_classes__says_before_asking_that_it_cannot_write(tmp_path):
    (tmp_path / "file").touch()
    with ChatStub("two words") as stub, pytest.raises(ConfigError, match=r"cannot be written: .*file is a file"):
        describe_classes(chat_of(stub), SIGNS, tmp_path / "file" / "looks.json", which=ALL)
    assert stub.seen == []
