"""Prompt templates: the published sets, how names are fitted in, and the features made of them."""

import pytest
import torch

from labelwright.encoders.templates import TEMPLATES, class_text_feats, fill, prompt_text_feats, templates_named
from labelwright.errors import ConfigError


def test_templates__sets():
    assert {name: len(templates) for name, templates in TEMPLATES.items()} == {
        "mixed": 54,
        "one": 1,
        "short": 7,
        "long": 80,
        "photo27": 27,
    }
    for name, templates in TEMPLATES.items():
        assert len(set(templates)) == (28 if name == "mixed" else len(templates))
        assert all(template.count("{}") == 1 and template == template.strip() for template in templates)
    assert set(TEMPLATES["short"]) < set(TEMPLATES["long"])
    assert all("photo of" in template for template in TEMPLATES["photo27"])


def test_templates__long_list_is_the_published_one():
    """The 80 are nearly all pairs "a X" and "the X"; these are the ones without a partner."""
    long = set(TEMPLATES["long"])

    def partner(template):
        other = template.replace("a {}", "the {}") if "a {}" in template else template.replace("the {}", "a {}")
        return template if other == template else other

    def swapped(template):  # "a photo of a large {}" and "a photo of the large {}"
        return (
            template.replace(" of a ", " of the ") if " of a " in template else template.replace(" of the ", " of a ")
        )

    def leading(template):  # "a toy {}" and "the toy {}"
        return f"the {template[2:]}" if template.startswith("a ") else f"a {template.removeprefix('the ')}"

    alone = {t for t in long if not ({partner(t), swapped(t), leading(t)} - {t}) & long}
    assert alone == {"a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}."}


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("a photo of a {}", "cat", "a photo of a cat"),
        ("a photo of a {}", "  Polar__Bear ", "a photo of a polar bear"),
        ("a photo of a {}.", "apple", "a photo of an apple."),
        ("A {} in a video game.", "Owl", "An owl in a video game."),
        ("a photo of an {}", "cat", "a photo of a cat"),
        ("a photo of a {}", "unicorn", "a photo of a unicorn"),
        ("a photo of a {}", "umbrella", "a photo of an umbrella"),
        ("a photo of a {}", "one-way sign", "a photo of a one-way sign"),
        ("a photo of a {}", "hourglass", "a photo of an hourglass"),
        ("a photo of a {}", "F-16", "a photo of an f-16"),
        ("a photo of a {}", "fox", "a photo of a fox"),
        ("a photo of a {}", "U-turn", "a photo of a u-turn"),
        ("a photo of a {}", "8", "a photo of an 8"),
        ("a photo of a {}", "4", "a photo of a 4"),
        ("a photo of a {}", "four", "a photo of a four"),
        ("a photo of a {}", "two wheeler", "a photo of a two wheeler"),
        ("a photo of a {}", "two dogs", "a photo of two dogs"),
        ("a photo of the {}", "3 children on a swing", "a photo of 3 children on a swing"),
        (
            "a photo of a {}",
            "an empty white circle with a red border",
            "a photo of an empty white circle with a red border",
        ),
        ("a bad photo of the {}.", "A digital clock.", "a bad photo of a digital clock."),
        ("a photo of a large {}", "an owl", "a photo of a large owl"),
        ("a photo of {}", "an owl", "a photo of an owl"),
        ("a photo of a {}", "a", "a photo of an a"),
        ("a photo of a {}", "theatre", "a photo of a theatre"),
        ("a photo of a {}, a type of pet.", "abyssinian", "a photo of an abyssinian, a type of pet."),
        ("{}", "An_Owl", "an owl"),
        ("a photo of a {}", "{odd} name", "a photo of a {odd} name"),
        ("a origami {}.", "owl", "a origami owl."),
    ],
)
def test_fill(template, name, text):
    assert fill(template, name) == text


@pytest.mark.parametrize("name", ["", " _ ", "."])
def test_fill__empty_name(name):
    with pytest.raises(ConfigError, match="name is empty"):
        fill("a photo of a {}", name)


def test_templates_named__own_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a scan of a {}\n\n  {} under a microscope  \n", encoding="utf-8")
    assert templates_named(path) == ("a scan of a {}", "{} under a microscope")
    assert templates_named(str(path)) == templates_named(path)


@pytest.mark.parametrize("bad", ["a scan", "a {} and a {}", "a scan of {name}", "a {} with { in it"])
def test_templates_named__own_file_with_a_bad_line(tmp_path, bad):
    path = tmp_path / "mine.txt"
    path.write_text(f"a scan of a {{}}\n\n{bad}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="exactly one") as caught:
        templates_named(path)
    assert f"{path}, line 3:" in caught.value.message
    assert repr(bad) in caught.value.message


def test_templates_named__nothing_there(tmp_path):
    with pytest.raises(ConfigError, match="neither a set's name nor a file") as caught:
        templates_named("photos27")
    assert "did you mean photo27?" in caught.value.fix
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="no templates in"):
        templates_named(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"a caf\xe9 with a {}\n")
    with pytest.raises(ConfigError, match="cannot read the templates"):
        templates_named(tmp_path / "latin.txt")
    with pytest.raises(ConfigError, match="exactly one"):
        templates_named("a {} or a {}")


class Hashing:
    """Texts to unit vectors that depend on the text alone; counts what it was asked."""

    def __init__(self):
        self.sizes = []

    def __call__(self, texts):
        self.sizes.append(len(texts))
        codes = torch.tensor([[float(sum(map(ord, text)) % p) + 1 for p in (7, 11, 13)] for text in texts])
        return torch.nn.functional.normalize(codes, dim=1)


def test_prompt_text_feats__order():
    encode, names, templates = Hashing(), ["cat", "owl", "two dogs"], TEMPLATES["short"]
    feats = prompt_text_feats(encode, names, templates)
    assert feats.shape == (7, 3, 3)
    for p, template in enumerate(templates):
        for c, name in enumerate(names):
            assert torch.equal(feats[p, c], encode([fill(template, name)])[0])


def test_class_text_feats__mean_of_prompts():
    """An oracle in float64: the mean over prompts, of unit norm again."""
    encode, names = Hashing(), ["cat", "owl", "two dogs"]
    feats = class_text_feats(encode, names, TEMPLATES["photo27"])
    mean = prompt_text_feats(encode, names, TEMPLATES["photo27"]).double().mean(dim=0)
    expected = mean / mean.square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(feats.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("function", [class_text_feats, prompt_text_feats])
def test_text_feats__calls_are_bounded(function, monkeypatch):
    names = [f"class {number}" for number in range(10)]
    at_once = function(Hashing(), names, TEMPLATES["short"])
    monkeypatch.setattr("labelwright.encoders.templates.TEXTS_AT_ONCE", 21)
    encode = Hashing()
    torch.testing.assert_close(function(encode, names, TEMPLATES["short"]), at_once)
    assert sum(encode.sizes) == 70
    assert max(encode.sizes) <= 21
    assert len(encode.sizes) < 10


@pytest.mark.parametrize("function", [class_text_feats, prompt_text_feats])
def test_text_feats__nothing_to_embed(function):
    with pytest.raises(ConfigError, match="no class names"):
        function(Hashing(), [], TEMPLATES["one"])
    with pytest.raises(ConfigError, match="no templates"):
        function(Hashing(), ["cat"], [])


def test_class_text_feats__mixed_is_half_the_name_and_half_the_photographs():
    asked = []

    def encode(texts):
        asked.extend(texts)
        return torch.tensor([[1.0, 0.0] if text == "cat" else [0.0, 1.0] for text in texts])

    found = class_text_feats(encode, ["cat"], TEMPLATES["mixed"])
    torch.testing.assert_close(found, torch.full((1, 2), 0.5**0.5))
    assert len(asked) == len(set(asked)) == 28  # the name is encoded once
