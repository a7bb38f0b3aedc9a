"""Prompt templates: what to make of a class name before a text tower reads it.

Templates are texts with one ``{}``. CLIP's two published sets are kept word for word, "a origami {}" included;
only the article right before the name is fitted to the name.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.errors import ConfigError

Encode = Callable[[Sequence[str]], Tensor]  # T texts -> [T, D] float32 of unit norm, as TwoTower.text_feats

TEXTS_AT_ONCE = 4096  # texts handed to the encoder in one call, about

_ONE = "a photo of a {}"

# Radford et al. 2021 (arXiv 2103.00020): the 7 chosen among the 80 by forward selection on ImageNet (their repository).
_SHORT = """
itap of a {}. | a bad photo of the {}. | a origami {}. | a photo of the large {}. | a {} in a video game.
art of the {}. | a photo of the small {}.
"""

# Radford et al. 2021 (arXiv 2103.00020), section 3.1.4: the ensemble of 80 used on ImageNet (their repository).
_LONG = """
a bad photo of a {}. | a photo of many {}. | a sculpture of a {}. | a photo of the hard to see {}.
a low resolution photo of the {}. | a rendering of a {}. | graffiti of a {}. | a bad photo of the {}.
a cropped photo of the {}. | a tattoo of a {}. | the embroidered {}. | a photo of a hard to see {}.
a bright photo of a {}. | a photo of a clean {}. | a photo of a dirty {}. | a dark photo of the {}.
a drawing of a {}. | a photo of my {}. | the plastic {}. | a photo of the cool {}. | a close-up photo of a {}.
a black and white photo of the {}. | a painting of the {}. | a painting of a {}. | a pixelated photo of the {}.
a sculpture of the {}. | a bright photo of the {}. | a cropped photo of a {}. | a plastic {}.
a photo of the dirty {}. | a jpeg corrupted photo of a {}. | a blurry photo of the {}. | a photo of the {}.
a good photo of the {}. | a rendering of the {}. | a {} in a video game. | a photo of one {}. | a doodle of a {}.
a close-up photo of the {}. | a photo of a {}. | the origami {}. | the {} in a video game. | a sketch of a {}.
a doodle of the {}. | a origami {}. | a low resolution photo of a {}. | the toy {}. | a rendition of the {}.
a photo of the clean {}. | a photo of a large {}. | a rendition of a {}. | a photo of a nice {}.
a photo of a weird {}. | a blurry photo of a {}. | a cartoon {}. | art of a {}. | a sketch of the {}.
a embroidered {}. | a pixelated photo of a {}. | itap of the {}. | a jpeg corrupted photo of the {}.
a good photo of a {}. | a plushie {}. | a photo of the nice {}. | a photo of the small {}. | a photo of the weird {}.
the cartoon {}. | art of the {}. | a drawing of the {}. | a photo of the large {}. | a black and white photo of a {}.
the plushie {}. | a dark photo of a {}. | itap of a {}. | graffiti of the {}. | a toy {}. | itap of my {}.
a photo of a cool {}. | a photo of a small {}. | a tattoo of the {}.
"""

# Ours: 27 plain photographs, so that a name keeps its meaning (no toys, drawings or video games). The papers that
# annotate with 27 prompts do not print them.
_PHOTO27 = """
a photo of a {} | a photo of the {} | a photo of one {} | a good photo of a {} | a bad photo of a {}
a bright photo of a {} | a dark photo of a {} | a blurry photo of a {} | a sharp photo of a {}
a close-up photo of a {} | a distant photo of a {} | a cropped photo of a {} | a centered photo of a {}
a low resolution photo of a {} | a high resolution photo of a {} | a pixelated photo of a {}
a jpeg corrupted photo of a {} | a black and white photo of a {} | a color photo of a {} | a photo of a large {}
a photo of a small {} | a photo of a clean {} | a photo of a dirty {} | a photo of a nice {} | a photo of a typical {}
a photo of a partly hidden {} | a photo of a {} seen from the side
"""

_NAME = "{}"  # half of "mixed": what a model was trained on decides whether a name is better alone or in a sentence


def _split(block: str) -> tuple[str, ...]:
    return tuple(template.strip() for line in block.strip().splitlines() for template in line.split("|"))


TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mixed": (*_split(_PHOTO27), *[_NAME] * len(_split(_PHOTO27))),
        "one": (_ONE,),
        "short": _split(_SHORT),
        "long": _split(_LONG),
        "photo27": _split(_PHOTO27),
    }
)


def templates_named(name_or_path: str | Path) -> tuple[str, ...]:
    """The templates of a name, of the user's own file, or the one template given as text.

    Args:
      name_or_path: a key of `TEMPLATES`; or a text with one ``{}``; or a UTF-8 file with a template on each line (empty
        lines are skipped).

    Raises: ConfigError: no such name or file, or a template without exactly one ``{}``, by file and line.

    Example:
      >>> {name: len(templates_named(name)) for name in TEMPLATES}
      {'mixed': 54, 'one': 1, 'short': 7, 'long': 80, 'photo27': 27}
      >>> templates_named("an X-ray of a {}")
      ('an X-ray of a {}',)
    """
    asked = str(name_or_path)
    if asked in TEMPLATES:
        return TEMPLATES[asked]
    if "{" in asked and not Path(asked).is_file():
        return (_checked(asked, where="the template"),)
    path = Path(asked).expanduser()
    if not path.is_file():
        close = difflib.get_close_matches(asked, TEMPLATES, n=1)
        raise ConfigError(
            f"no templates {asked!r}: neither a set's name nor a file",
            fix=(f"did you mean {close[0]}? " if close else "")
            + f"use one of {', '.join(TEMPLATES)}, a file with one template per line, or a text with {{}}",
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the templates in {asked}: {error}", fix="save it as UTF-8 text") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ConfigError(f"there are no templates in {asked}", fix="write one per line, as in: a photo of a {}")
    return tuple(_checked(line, where=f"{asked}, line {number}:") for number, line in numbered)


def _checked(template: str, *, where: str) -> str:
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise ConfigError(
            f"{where} {template!r} does not hold exactly one {{}}", fix="write {} once, where the class name goes"
        )
    return template


_ARTICLE_BEFORE_NAME = re.compile(r"\b(a|an|the) \{\}", re.IGNORECASE)
_WORD_BEFORE_NAME = re.compile(r"([^\s{]+) \{\}")
_OWN_ARTICLE = re.compile(r"(?:a|an|the) (?=\S)")
# "two dogs", but neither "four" nor "two wheeler".
_OWN_COUNT = re.compile(
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\d+) .*(?:[a-z](?<!s)s|men|people|children)\b"
)
_TAKES_PHRASES = {"of", "with", "in", "showing", "shows", "depicting", "is", "as", "like"}  # "a photo of" + "an owl"
# Spelt with a vowel but spoken without ("unit", "one-way"), and the reverse ("hour", "x-ray", "8").
_SPOKEN_CONSONANT = re.compile(r"uni(?!m|n)|us[abe]|ut[ei]|uk|eu|one\b|once\b|u(?![a-z])")
_SPOKEN_VOWEL = re.compile(r"[aeiou]|hour|heir|hono|honest|[fhlmnrsx](?![a-z])|8|1[18]\b")


def fill(template: str, name: str) -> str:
    """Put a class name, or a description of a class, into a template.

    The name is cleaned (underscores and runs of spaces become one space; lower case; no final full stop). A template's
    article right before it agrees with how the name is spoken, and is dropped if the name has an article or a count of
    its own; after any other word ("a large {}") the name's own article is dropped instead.

    Raises: ConfigError: the name is empty.

    Example:
      >>> fill("a photo of a {}", "Polar_Bear"), fill("a photo of a {}.", "owl")
      ('a photo of a polar bear', 'a photo of an owl.')
      >>> fill("a photo of a {}", "an empty white circle with a red border")
      'a photo of an empty white circle with a red border'
      >>> fill("a photo of a large {}", "the red barn"), fill("a photo of the {}", "two dogs"), fill("{}", "Owl")
      ('a photo of a large red barn', 'a photo of two dogs', 'owl')
    """
    name = " ".join(name.replace("_", " ").lower().split()).rstrip(".")
    if not name:
        raise ConfigError("a class name is empty", fix="give every class a name")
    has_article, has_count = _OWN_ARTICLE.match(name), _OWN_COUNT.match(name)
    found = _ARTICLE_BEFORE_NAME.search(template)
    if found is not None:
        article = found[1]
        if has_article or has_count:
            return template.replace(found[0], name)
        if article.lower() != "the":
            takes_an = _SPOKEN_VOWEL.match(name) and not _SPOKEN_CONSONANT.match(name)
            article = article[0] + ("n" if takes_an else "")
        return template.replace(found[0], f"{article} {name}")
    before = _WORD_BEFORE_NAME.search(template)
    if has_article and before is not None and before[1][-1].isalpha() and before[1].lower() not in _TAKES_PHRASES:
        name = name[has_article.end() :]
    return template.replace("{}", name)


def prompt_text_feats(encode: Encode, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Text features [P, C, D] float32, unit norm, of C class names or descriptions in P templates.

    Raises: ConfigError: no class or no template, or a name is empty.

    Example:
      >>> lengths = lambda texts: torch.tensor([[float(len(text))] for text in texts])
      >>> prompt_text_feats(lengths, ["cat", "horse"], ["{}", "a {}"]).flatten(1).tolist()
      [[3.0, 5.0], [5.0, 7.0]]
    """
    _check_not_empty(class_names, templates)
    per_call = max(1, TEXTS_AT_ONCE // len(class_names))
    parts = []
    for start in range(0, len(templates), per_call):
        some = templates[start : start + per_call]
        feats = encode([fill(template, name) for template in some for name in class_names])
        parts.append(feats.reshape(len(some), len(class_names), -1))  # [p*C, D] -> [p, C, D]
    return torch.cat(parts)


def class_text_feats(encode: Encode, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One text feature per class: the mean of its unit features over the templates, brought to unit norm again.

    A template that comes twice is encoded once and counts twice.

    Never holds more than about TEXTS_AT_ONCE features besides the result, however many classes and templates.

    Returns: [C, D] float32, unit norm.

    Raises: ConfigError: no class or no template, or a name is empty.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 3.1.4 (ensemble over embeddings, not probabilities).

    Example:
      >>> corner = lambda texts: torch.tensor([[1.0, 0.0] if "big" in text else [0.0, 1.0] for text in texts])
      >>> [round(v, 4) for v in class_text_feats(corner, ["cat"], ["a big {}", "a small {}"])[0].tolist()]
      [0.7071, 0.7071]
    """
    _check_not_empty(class_names, templates)
    times = Counter(templates)
    per_call = max(1, TEXTS_AT_ONCE // len(times))
    some = [class_names[start : start + per_call] for start in range(0, len(class_names), per_call)]

    def mean_of(names: Sequence[str]) -> Tensor:
        feats = prompt_text_feats(encode, names, list(times))  # [P, c, D]
        counts = torch.tensor(list(times.values()), dtype=feats.dtype, device=feats.device)
        return (counts[:, None, None] * feats).sum(0) / len(templates)

    return F.normalize(torch.cat([mean_of(names) for names in some]), dim=1)


def _check_not_empty(class_names: Sequence[str], templates: Sequence[str]) -> None:
    if not class_names:
        raise ConfigError("there are no class names to embed", fix="give --classes a file with a name on each line")
    if not templates:
        raise ConfigError("there are no templates", fix=f"use one of {', '.join(TEMPLATES)}")
