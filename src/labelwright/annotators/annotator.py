"""What gives images candidate labels: a two-tower model that compares them with texts, or a model that chats."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labelwright.annotators.ask_classes import annotate_with_chat
from labelwright.annotators.candidate_rules import Rule, candidates_from_feats, check_rule, describe_candidates
from labelwright.annotators.chat import ChatModel, Estimate
from labelwright.annotators.chat_endpoint import OpenAIChat
from labelwright.annotators.chat_local import LocalChat
from labelwright.data.prepare import Source
from labelwright.data.stored import EmbeddingViews
from labelwright.data.table import LabelTable
from labelwright.data.views import ViewSettings
from labelwright.encoders.clip import TwoTower
from labelwright.encoders.embed import Encoder, concepts_of, embed, load_encoder
from labelwright.encoders.pretrained import load_config
from labelwright.encoders.templates import prompt_text_feats, templates_named
from labelwright.errors import ConfigError
from labelwright.labels.chunks import evenly_spread
from labelwright.labels.concepts import TRIED_ROWS, choose_descriptions, detect_mismatched, knowledge
from labelwright.types import Candidates

UNPARSEABLE_SHOWN = 20  # of the answers without a class, in the counts; the journal holds all


@dataclass(frozen=True)
class Annotator:
    """Who gives images candidate labels, and how it is asked; `checked` checks that it can be."""

    model: str  # hub id or folder; with ``chat_url``, the name that the endpoint knows it by
    is_chat: bool = False  # it answers questions about images; else it compares them with texts (two towers)
    # two towers only:
    rule: str = "top_k"  # which classes become candidates, see annotators.candidate_rules.pick
    top_k: int = 5
    ratio: float = 0.5
    templates: str = "photo27"  # prompts, see encoders.templates.templates_named
    descriptions: Mapping[str, Sequence[str]] = field(default_factory=dict)  # class -> texts that may replace its name
    # chat models only:
    chat_url: str | None = None  # base URL of an OpenAI-compatible endpoint; None = the model is loaded here
    phrasings: int = 3  # questions per image
    seed: int = 0  # of the orders in which it is shown the classes

    def facts(self) -> dict[str, Any]:
        """What a table of candidates says of where they come from: JSON-ready.

        Example:
          >>> Annotator("m", is_chat=True, phrasings=2).facts()
          {'model': 'm', 'kind': 'chat', 'phrasings': 2, 'seed': 0}
        """
        if self.is_chat:
            return {"model": self.model, "kind": "chat", "phrasings": self.phrasings, "seed": self.seed}
        facts: dict[str, Any] = {"model": self.model, "kind": "two towers", "rule": self.rule}
        facts |= (
            {"top_k": self.top_k} if self.rule == "top_k" else {"ratio": self.ratio} if self.rule == "ratio" else {}
        )
        facts |= {"templates": self.templates, "n_templates": len(templates_named(self.templates))}
        offered = {name: list(texts) for name, texts in self.descriptions.items()}
        return facts | ({"offered_descriptions": offered} if offered else {})


@dataclass(frozen=True)
class Guesses:
    """What an annotator says of N images."""

    candidates: Candidates  # sets of N rows
    # of annotators.candidate_rules.describe_candidates; of a chat model also those of annotators.ask_classes.Asked with
    # the first unparseable answers; where descriptions were offered, also ``mismatched`` (names that fit no image),
    # ``descriptions`` (class -> the text in place of its name) and ``rejected`` (class -> texts of no use); of two
    # towers also ``knowledge``, that of the candidates
    counts: dict[str, Any]
    info: dict[str, Any]  # what the table of candidates says of them, JSON-ready


@dataclass(frozen=True)
class MatchingEncoder(Encoder):
    """An encoder that has a text side."""

    tower: TwoTower


def checked(asked: Annotator, *, has_descriptions: bool = False) -> Annotator:
    """The annotator, with its kind found out from the configuration of its model; nothing else is loaded.

    Raises: ConfigError for settings that cannot work, a model that is neither of the two kinds, or descriptions for one
      that chats; OfflineError if its configuration is out of reach.

    Example:
      >>> checked(Annotator("labelwright/digits-clip")).is_chat, checked(Annotator("m", chat_url="http://a:1")).is_chat
      (False, True)
    """
    check_rule(asked.rule, top_k=asked.top_k, ratio=asked.ratio)
    templates_named(asked.templates)
    if asked.phrasings < 1:
        raise ConfigError(f"phrasings={asked.phrasings} is not possible", fix="ask at least once")
    is_chat = asked.chat_url is not None or _is_chat_model(asked.model)
    if is_chat and has_descriptions:
        raise ConfigError(
            f"{asked.model} is asked by the names of the classes and reads no descriptions",
            fix="leave --descriptions out, or name a vision-language model (CLIP, SigLIP)",
        )
    return replace(asked, is_chat=is_chat)


def ask_chat(
    annotator: Annotator,
    table: LabelTable,
    *,
    journal: Path,
    device: torch.device,
    precision: str,
    n_workers: int | None = None,
    approve: Callable[[Estimate], bool] | None = None,
) -> Guesses:
    """Candidates of N images that can be decoded from a model that chats; labels and truth serve for the counts alone.

    Args:
      journal: file of the answers so far, see `annotate_with_chat`.   device, precision: of a model loaded here.
    """
    with contextlib.ExitStack() as opened:
        if annotator.chat_url is not None:
            endpoint = OpenAIChat(annotator.model, base_url=annotator.chat_url)
            chat: ChatModel = opened.enter_context(contextlib.closing(endpoint))
        else:
            chat = LocalChat(annotator.model, device=device, precision=precision)
        asked = annotate_with_chat(
            chat,
            table,
            table.class_names,
            n_phrasings=annotator.phrasings,
            seed=annotator.seed,
            journal=journal,
            n_workers=n_workers,
            approve=approve,
        )
    shown = [list(answer) for answer in asked.unparseable[:UNPARSEABLE_SHOWN]]
    counts = _counts(asked.candidates, table) | {**asked.counts, "unparseable": shown}
    return Guesses(asked.candidates, counts, annotator.facts())


def load_matching(model: str, *, device: torch.device, precision: str) -> MatchingEncoder:
    """Load a two-tower model.

    Raises: ConfigError, OfflineError: as encoders.embed.load_encoder, and if it has no text side.
    """
    encoder = load_encoder(model, device=device, precision=precision)
    if encoder.tower is None:
        raise ConfigError(f"{model} has no text side", fix="name a two-tower model (CLIP, SigLIP)")
    return MatchingEncoder(**vars(encoder))


def views_of(source: Source, encoder: MatchingEncoder, device: torch.device, *, shared: bool = False) -> EmbeddingViews:
    """Features of images decoded at the size that the model was trained on, from the cache or into it."""
    view = ViewSettings(mean=encoder.stats.mean, std=encoder.stats.std)
    stored = embed(source, encoder, view, n_views=0, device=device, shared=shared)
    assert stored.stored is not None
    return EmbeddingViews(stored.stored)


def match_names(annotator: Annotator, table: LabelTable, views: EmbeddingViews, tower: TwoTower) -> Guesses:
    """Candidates of every image from the class names that a two-tower model finds nearest, by prompt.

    Args:
      table: N images; labels and truth serve for the counts alone, but which images have a label is looked at: names
        are judged by the images without one.
    """
    texts, repairs = _repaired(annotator, table, views, tower)
    prompts = prompt_text_feats(tower.text_feats, texts, templates_named(annotator.templates))
    candidates = candidates_from_feats(
        views.feats(),
        prompts,
        logit_scale=tower.logit_scale,
        rule=cast(Rule, annotator.rule),
        top_k=annotator.top_k,
        ratio=annotator.ratio,
    )
    some = torch.cat(list(views.feats(evenly_spread(torch.arange(views.n_rows), TRIED_ROWS))))
    known = knowledge(some, F.normalize(prompts.mean(0), dim=1).cpu())
    candidates = replace(candidates, knowledge=round(min(known, 99.0), 3))
    counts = _counts(candidates, table) | repairs | {"knowledge": candidates.knowledge}
    return Guesses(candidates, counts, annotator.facts() | {"identity": tower.identity})


def texts_of(class_names: Sequence[str], counts: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands for each class in the prompts: its name, or the description that took its place by ``counts``.

    Example:
      >>> texts_of(["owl", "cat"], {"descriptions": {"owl": "a bird with large eyes"}})
      ('a bird with large eyes', 'cat')
    """
    used = counts.get("descriptions", {})
    return tuple(used.get(name, name) for name in class_names)


def _repaired(
    annotator: Annotator, table: LabelTable, views: EmbeddingViews, tower: TwoTower
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What stands for each class in the prompts, and what to say of it: as labels.alignment chooses."""
    names = table.class_names
    if not annotator.descriptions:
        return names, {}
    concepts = concepts_of(tower, names, templates=annotator.templates, descriptions=annotator.descriptions)
    is_open = table.labels < 0
    pool = torch.from_numpy(np.flatnonzero(is_open if is_open.any() else ~is_open))
    feats = torch.cat([z.half() for z in views.feats(pool)])  # as they are stored
    found = detect_mismatched(feats, concepts.feats, logit_scale=concepts.logit_scale)
    chosen = choose_descriptions(feats, concepts.feats, concepts.description_feats, is_mismatched=found.is_mismatched)
    used, rejected = {}, {}
    for c, texts in enumerate(concepts.descriptions):
        pick = int(chosen.chosen[c])
        if pick >= 0:
            used[names[c]] = texts[pick]
        useless = [text for text, gain in zip(texts, chosen.gains[c], strict=True) if gain <= 1]
        if useless and (pick >= 0 or found.is_mismatched[c]):
            rejected[names[c]] = useless
    mismatched = [names[c] for c in found.is_mismatched.nonzero().flatten().tolist()]
    repairs = {"mismatched": mismatched, "descriptions": used, "rejected": rejected}
    return texts_of(names, repairs), repairs


def truth_of(table: LabelTable) -> NDArray[np.int32]:
    """The labels; where there is none, the truth: for scoring only."""
    return table.labels if table.truth is None else np.where(table.labels >= 0, table.labels, table.truth)


def _counts(candidates: Candidates, table: LabelTable) -> dict[str, Any]:
    return describe_candidates(candidates, n_classes=len(table.class_names), truth=truth_of(table))


def _is_chat_model(name: str) -> bool:
    """Whether a model answers questions about images, by its configuration; False for two towers.

    Raises: ConfigError if it is neither, or there is no such model; OfflineError if it is out of reach.
    """
    from transformers.models.auto import modeling_auto

    config = load_config(name)
    chats = config.model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    matches = config.model_type in modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if chats and matches:  # BLIP comes as either
        return any("Generation" in architecture for architecture in config.architectures or ())
    if not chats and not hasattr(config, "text_config"):
        raise ConfigError(
            f"{name} is a {config.model_type} model, which knows images or texts but not both",
            fix="name a two-tower model (CLIP, SigLIP) or one that answers questions about images (LLaVA)",
        )
    return chats
