"""Class names found in answers as models give them."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from labelwright.annotators.answers import AnswerParser
from labelwright.errors import ConfigError

PETS = ["cat", "dog", "hot dog", "Traffic light", "car", "car wheel", "bus", "No vehicles"]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("cat", ["cat"]),
        ("  CAT!\n", ["cat"]),
        ("It is a cat.", ["cat"]),
        ("**Cat**", ["cat"]),
        ('{"class": "cat"}', ["cat"]),
        ("1. cat\n2. bus", ["cat", "bus"]),
        ("- a cat\n- the car", ["cat", "car"]),
        ("Cats", ["cat"]),
        ("two buses", ["bus"]),
        ("traffic-lights", ["Traffic light"]),
        ("traffic_light", ["Traffic light"]),
        ("a car wheel", ["car wheel"]),
        ("a car, maybe a car wheel", ["car", "car wheel"]),
        ("hot dogs", ["hot dog"]),
        ("It is not a dog, it is a cat.", ["cat"]),
        ("This isn’t the bus; a car", ["car"]),
        ("neither cat nor dog", []),
        ("No. Cat.", ["cat"]),
        ("no vehicles", ["No vehicles"]),
        ("<think>a dog? a car?</think>cat", ["cat"]),
        ("<think>a dog? a car?", []),
        ("caterpillar", []),
        ("scar", []),
        ("I cannot tell.", []),
        ("", []),
        (", ".join(PETS), []),
    ],
)
def test_answer(answer, named) -> None:
    assert [PETS[c] for c in AnswerParser(PETS)(answer)] == sorted(named, key=PETS.index)


def test_answer__plurals_of_every_kind() -> None:
    parse = AnswerParser(["dog", "fox", "pony", "bus", "glass", "horse"])
    for c, plural in enumerate(("dogs", "foxes", "ponies", "buses", "glasses", "horses")):
        assert parse(f"I see {plural}.") == (c,)


def test_answer__singular_and_plural_that_are_two_classes() -> None:
    parse = AnswerParser(["glass", "glasses", "Dogs"])
    assert (parse("a glass"), parse("glasses"), parse("a dog")) == ((0,), (1,), (2,))


def test_answer__letters_and_digits_as_classes() -> None:
    parse = AnswerParser(["A", "B", "3"])
    assert (parse("It is a B."), parse("The letter A."), parse("3."), parse("1. 3")) == ((1,), (0,), (2,), (2,))


def test_answer__names_with_a_full_stop_or_signs() -> None:
    parse = AnswerParser(["St. Bernard", "C", "C++", "Speed limit (20km/h)"])
    assert (parse("A St. Bernard."), parse("C++"), parse("C")) == ((0,), (2,), (1,))
    assert parse("Speed limit 20 km/h") == (3,)


def test_answer__every_name_finds_itself_and_nothing_else() -> None:
    shared = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))
    if not (shared / "data" / "gtsrb-test.parquet").exists():
        pytest.skip("needs the shared folder (LABELWRIGHT_SHARED)")
    for name, n_classes in (("cifar10", 10), ("gtsrb", 43)):
        schema = pq.read_schema(shared / "data" / f"{name}-test.parquet")
        told = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = next(feature["names"] for feature in told.values() if feature.get("_type") == "ClassLabel")
        parse = AnswerParser(names)
        assert len(names) == n_classes
        for c, class_name in enumerate(names):
            assert parse(f"The image shows: {class_name.upper()}.") == (c,), class_name


@pytest.mark.parametrize(("names", "said"), [(["Cat", "cat"], "cannot be distinguished"), (["cat", "?"], "no letter")])
def test_classes__that_no_answer_could_name(names, said) -> None:
    with pytest.raises(ConfigError, match=said):
        AnswerParser(names)
