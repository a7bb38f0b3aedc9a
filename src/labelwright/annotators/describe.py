"""`describe`: which class names fit no image, and what a chat model says these classes look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from labelwright.annotators.annotator import load_matching
from labelwright.annotators.chat import Estimate, estimate
from labelwright.annotators.chat_endpoint import OpenAIChat
from labelwright.annotators.description_prompts import description_prompt
from labelwright.annotators.descriptions import describe_classes, read_descriptions
from labelwright.arguments import check_arguments
from labelwright.data.checks import OnBad
from labelwright.data.prepare import Prepared, is_embeddings, prepare
from labelwright.encoders.embed import Encoder, concepts_of, embed
from labelwright.errors import ConfigError, DataError
from labelwright.labels.concepts import Mismatch, detect_mismatched
from labelwright.replacing import check_output
from labelwright.train.processes import accelerator_for
from labelwright.types import Concepts

N_DESCRIPTIONS = 4  # asked for per class: some will be useless, and are rejected where they do not fit the images


@dataclass(frozen=True)
class Found:
    """What `describe` found."""

    class_names: tuple[str, ...]
    mismatch: Mismatch  # which of them fit no image, and by what evidence
    path: Path | None  # the file of descriptions; None if no chat model was asked
    descriptions: Mapping[str, Sequence[str]]  # class -> texts, as in the file

    @property
    def mismatched(self) -> list[str]:
        """Names of the mismatched classes."""
        return [self.class_names[c] for c in self.mismatch.is_mismatched.nonzero().flatten().tolist()]


@check_arguments
def describe(
    data: Any,
    *,
    model: str,
    classes: Any = None,
    out: str | Path | None = None,
    chat: str | None = None,
    chat_url: str | None = None,
    every: bool = False,
    context: str | None = None,
    n: int = N_DESCRIPTIONS,
    templates: str = "mixed",
    on_bad: OnBad = "stop",
    device: str = "auto",
    precision: str = "auto",
    approve: Callable[[Estimate], bool] | None = None,
) -> Found:
    """Find the classes whose name fits no image, and ask a chat model how they look; a file to check and to edit.

    Nothing is asked without ``chat``. Texts that the file holds already are kept, and their classes not asked again.

    Args:
      data: images; labels they may have are not used.
      model: a vision-language model, by hub id or folder.
      classes: class names or a file of them; None = those of the data.
      out: the .json to write; None = none, and nothing is asked.
      chat: the chat model, by the name that the endpoint knows it by.
      chat_url: base URL of an OpenAI-compatible endpoint; None = OpenAI's.
      every: ask about all classes, not the mismatched alone.   n: descriptions per class.
      context: one line on what the images are, as in "traffic signs".
      templates, on_bad, device, precision: see `fit`.
      approve: called with what will be asked, before it is; False stops.

    Raises: ConfigError, DataError, OfflineError, with nothing asked, for what cannot work.
    """
    if (chat is None) != (out is None):
        raise ConfigError("a chat model and a file for its answers go together", fix="give both --chat and --out")
    if out is not None:
        check_output(Path(out))
    if is_embeddings(data):
        raise ConfigError("the data are embeddings, which the model cannot be shown", fix="give the images")
    on = accelerator_for(device).device
    encoder = load_matching(model, device=on, precision=precision)
    stats = encoder.stats
    stats_of_pixels = (stats.mean, stats.std)
    prepared = prepare(
        data, classes=classes, test_frac=0.0, size_px=stats.size_px, stats=stats_of_pixels, on_bad=on_bad
    )
    names = prepared.train.table.class_names
    concepts = concepts_of(encoder.tower, names, templates=templates)
    mismatch = _mismatch(prepared, encoder, concepts, on)
    if chat is None or out is None:
        return Found(names, mismatch, None, {})
    which = list(range(len(names))) if every else mismatch.is_mismatched.nonzero().flatten().tolist()
    facts = ask_for(names, which, chat, chat_url=chat_url, path=Path(out), n=n, context=context, approve=approve)
    return Found(names, mismatch, Path(out), facts)


def ask_for(
    class_names: Sequence[str],
    which: Sequence[int],
    chat: str,
    *,
    chat_url: str | None,
    path: Path,
    n: int = N_DESCRIPTIONS,
    context: str | None = None,
    approve: Callable[[Estimate], bool] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Descriptions of some classes, from the file if it has them, else from a chat model and into the file.

    Raises: ConfigError if ``approve`` refuses.
    """
    known = read_descriptions(path, class_names) if path.exists() else {}
    which = [c for c in which if class_names[c] not in known]
    if not which:
        return known
    prompt = description_prompt(class_names, which[0], n=n, context=context)
    if approve and not approve(estimate(len(which), prompt_chars=len(prompt), answer_tokens=30 * n)):
        raise ConfigError("nothing was asked", fix="say yes, or leave --chat (of fit: --describe-with) out")
    with closing(OpenAIChat(chat, base_url=chat_url)) as model:
        return describe_classes(model, class_names, path, which=which, n=n, context=context)


def mismatched_classes(prepared: Prepared, encoder: Encoder, concepts: Concepts, *, device: torch.device) -> list[int]:
    """Positions of the classes whose name fits no image of the pool."""
    return _mismatch(prepared, encoder, concepts, device).is_mismatched.nonzero().flatten().tolist()


def wanted_descriptions(
    descriptions: str | Path | Mapping[str, Sequence[str]] | None, class_names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Descriptions as `fit` takes them: a file, a mapping or none.

    Raises: DataError for a mapping with unknown classes; see annotators.descriptions.read_descriptions for files.

    Example:
      >>> wanted_descriptions({"owl": ["a bird with large eyes"]}, ["owl", "cat"])
      {'owl': ('a bird with large eyes',)}
    """
    if descriptions is None:
        return {}
    if isinstance(descriptions, (str, Path)):
        return read_descriptions(descriptions, class_names)
    if not isinstance(descriptions, Mapping):
        raise ConfigError(f"descriptions={descriptions!r} are none", fix="give a file, or {class: list of texts}")
    unknown = sorted(set(descriptions) - set(class_names))
    if unknown:
        raise DataError(f"descriptions of unknown classes: {', '.join(unknown[:5])}", fix="use the class names")
    return {name: (texts,) if isinstance(texts, str) else tuple(texts) for name, texts in descriptions.items()}


def _mismatch(prepared: Prepared, encoder: Encoder, concepts: Concepts, device: torch.device) -> Mismatch:
    """Which names fit no training image, by clean features."""
    source = prepared.train
    if source.stored is None:
        source = embed(source, encoder, prepared.view, n_views=0, device=device)
    views = source.views(prepared.view)
    feats = views.batch(torch.arange(views.n_rows), "clean", seed=0, device=torch.device("cpu"))
    return detect_mismatched(feats, concepts.feats, logit_scale=concepts.logit_scale)
