"""The verb annotate: candidate labels for unlabelled images, from a two-tower model or from one that chats."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from evenkeel.data.images import OnBad, check_images, resolve_problems
from evenkeel.data.table import LabelTable
from evenkeel.data.views import ViewSettings
from evenkeel.encoders.chat import ChatModel, Estimate, local_chat, openai_chat
from evenkeel.encoders.clip import TwoTower, load_two_tower
from evenkeel.encoders.pretrained import load_config
from evenkeel.encoders.store import EmbeddingViews, build_store, images_digest
from evenkeel.encoders.templates import prompt_text_feats, templates_named
from evenkeel.errors import ConfigError, DataError
from evenkeel.labels.annotate import Rule, candidates_from_feats, check_rule, describe_candidates, write_candidates
from evenkeel.labels.ask_classes import annotate_with_chat
from evenkeel.prepare import Source, listed, open_source, read, resolved_path
from evenkeel.train.processes import accelerator_for

UNPARSEABLE_SHOWN = 20  # of the answers without a class, in the counts; the journal holds all


@dataclass(frozen=True)
class Annotated:
    """What `annotate` made.

    Attributes:
      path: the Parquet table of candidates; data for `fit` and `inspect`.
      counts: of labels.annotate.describe_candidates, ``left_out`` (rows that could not be used) and, of a chat model,
        those of labels.ask_classes.Asked with the first unparseable answers: JSON-ready.
    """

    path: Path
    counts: dict[str, Any]


def annotate(
    data: Any,
    *,
    model: str,
    out: str | Path,
    classes: Any = None,
    rule: str = "union",
    templates: str = "photo27",
    top_k: int = 3,
    ratio: float = 0.5,
    chat_url: str | None = None,
    phrasings: int = 3,
    n_workers: int | None = None,
    on_bad: OnBad = "stop",
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    cache_limit_gb: float = 16.0,
    approve: Callable[[Estimate], bool] | None = None,
) -> Annotated:
    """Write a table that gives every image its candidate labels, with weights.

    A stopped call goes on where it was when it is repeated: features are kept in the cache, answers in
    ``OUT.answers.jsonl`` beside the table. No network is used unless ``chat_url`` or the name of a model says so.

    Args:
      data: images, labelled or not; see data.read.load. Labels are passed on and never used, except to score.
      model: a two-tower model (CLIP, SigLIP, ...) or one that chats about images (LLaVA, ...), by hub id or folder;
        with ``chat_url``, the name that the endpoint knows it by.
      out: the .parquet file to write; must not exist.
      classes: class names or a file of them; None = those of the data.
      rule, top_k, ratio: which classes become candidates, see labels.annotate.pick. Two-tower models only.
      templates: prompts: a name or a file, see encoders.templates.templates_named. Two-tower models only.
      chat_url: base URL of an OpenAI-compatible endpoint.
      phrasings: questions per image. Chat models only.
      n_workers: questions under way at once. Chat models only.
      on_bad: stop, or skip unusable images.
      device: auto, cpu or cuda.   precision: auto, bf16 or fp32.
      seed: of the orders in which a chat model is shown the classes.
      cache_limit_gb: decoded images above this are streamed instead of cached.
      approve: told what a chat model will be asked, before it is; False stops.

    Returns: where the table is, and counts; against the labels or the truth of the data, where it has any, also how
      often the candidates hold it.

    Raises: ConfigError or DataError, with nothing written, for data or settings that cannot work; OfflineError if the
      model is neither on this machine nor within reach.
    """
    target = _checked(Path(out))
    check_rule(rule, top_k=top_k, ratio=ratio)
    prompts = templates_named(templates)
    is_chat = chat_url is not None or _is_chat_model(model)
    table = read(data, classes=classes)
    if len(table.class_names) < 2:
        raise DataError(
            f"{resolved_path(data)} names {len(table.class_names)} classes; candidates need two or more",
            fix="give the class names, or a file with one per line, as --classes",
        )
    on = accelerator_for(device).device
    if is_chat:
        usable = resolve_problems(table, [*table.problems, *check_images(table)], on_bad)
        with contextlib.ExitStack() as opened:
            if chat_url is not None:
                chat: ChatModel = opened.enter_context(contextlib.closing(openai_chat(model, base_url=chat_url)))
            else:
                chat = local_chat(model, device=on, precision=precision)
            asked = annotate_with_chat(
                chat,
                usable,
                usable.class_names,
                n_phrasings=phrasings,
                seed=seed,
                journal=target.with_name(f"{target.stem}.answers.jsonl"),
                n_workers=n_workers,
                on_estimate=None if approve is None else _approval(approve),
            )
        shown = [list(answer) for answer in asked.unparseable[:UNPARSEABLE_SHOWN]]
        candidates, extra = asked.candidates, {**asked.counts, "unparseable": shown}
        info: dict[str, Any] = {"model": model, "kind": "chat", "phrasings": phrasings, "seed": seed}
    else:
        tower = load_two_tower(model, device=on, precision=precision)
        source = open_source(
            table, classes=None, size_px=tower.stats.size_px, on_bad=on_bad, cache_limit_gb=cache_limit_gb
        )
        usable, extra = source.table, {}
        prompt_feats = prompt_text_feats(tower.text_feats, usable.class_names, prompts)
        feats = _image_feats(source, tower, on)
        candidates, _ = candidates_from_feats(
            feats, prompt_feats, logit_scale=tower.logit_scale, rule=cast(Rule, rule), top_k=top_k, ratio=ratio
        )
        info = {"model": model, "kind": "two towers", "identity": tower.identity, "rule": rule}
        info |= {"top_k": top_k} if rule == "top_k" else {"ratio": ratio} if rule == "ratio" else {}
        info |= {"templates": templates, "n_templates": len(prompts)}
    counts = describe_candidates(candidates, n_classes=len(usable.class_names), truth=_truth(usable))
    counts |= extra | {"left_out": listed(usable.quarantined)}
    write_candidates(target, usable, candidates, usable.class_names, {**info, "counts": counts})
    return Annotated(target, counts)


def _image_feats(source: Source, tower: TwoTower, device: torch.device) -> Iterator[torch.Tensor]:
    """Clean features of every image in chunks [b, D], from the store that keeps them."""
    store = build_store(
        source.pixel_views(ViewSettings(mean=tower.stats.mean, std=tower.stats.std)),
        tower.image_feats,
        identity=f"{tower.identity} {tower.precision}",
        images_digest=images_digest(source.table),
        n_views=0,
        seed=0,
        n_features=tower.n_features,
        device=device,
    )
    return EmbeddingViews(store).feats()


def _checked(target: Path) -> Path:
    if target.suffix != ".parquet":
        raise ConfigError(f"{target} is not a .parquet file", fix="end --out in .parquet")
    if target.exists():
        raise ConfigError(f"{target} exists", fix="choose another --out, or remove it first")
    return target


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


def _approval(approve: Callable[[Estimate], bool]) -> Callable[[Estimate], None]:
    def ask(estimated: Estimate) -> None:
        if not approve(estimated):
            raise ConfigError("stopped before anything was asked", fix="fewer phrasings or images cost less")

    return ask


def _truth(table: LabelTable) -> NDArray[np.int32]:
    """The labels; where there is none, the truth."""
    return table.labels if table.truth is None else np.where(table.labels >= 0, table.labels, table.truth)
