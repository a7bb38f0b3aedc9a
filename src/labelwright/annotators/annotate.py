"""The verb annotate: candidate labels for unlabelled images, from a two-tower model or from one that chats."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch
import torch.nn.functional as F

from labelwright import checksums
from labelwright.annotators.annotator import (
    Annotator,
    MatchingEncoder,
    ask_chat,
    checked,
    load_matching,
    match_names,
    truth_of,
    views_of,
)
from labelwright.annotators.candidate_rules import (
    candidate_rows,
    candidates_from_feats,
    describe_candidates,
    write_candidates,
)
from labelwright.annotators.chat import Estimate
from labelwright.annotators.describe import wanted_descriptions
from labelwright.arguments import check_arguments
from labelwright.data.checks import OnBad, check_images, resolve_problems
from labelwright.data.columns import METADATA_KEY, named_columns
from labelwright.data.images import Decoding
from labelwright.data.prepare import Source, class_list, listed, open_source, read, resolved_path
from labelwright.data.views import ViewSettings
from labelwright.encoders.templates import prompt_text_feats, templates_named
from labelwright.errors import ConfigError, DataError
from labelwright.labels.concepts import KNOWN_FROM, TRIED_ROWS, UNKNOWN, knowledge
from labelwright.launch import rank
from labelwright.paths import absolute
from labelwright.replacing import new_output
from labelwright.scale.places import is_url
from labelwright.scale.shards import Shard
from labelwright.scale.tables import Reading, batches, some_of
from labelwright.scale.work import Sharded, folder_of, is_sharded, noted, over_shards
from labelwright.train.processes import accelerator_for


@dataclass(frozen=True)
class Annotated:
    """What `annotate` made."""

    path: Path  # the Parquet table of candidates; data for `fit` and `inspect`
    counts: dict[str, Any]  # those of `Guesses`, and ``left_out``: rows that could not be used; JSON-ready


@check_arguments
def annotate(
    data: Any,
    *,
    model: str,
    out: str | Path,
    classes: Any = None,
    image_column: str | None = None,
    label_column: str | None = None,
    rule: str = "top_k",
    templates: str = "photo27",
    top_k: int = 5,
    ratio: float = 0.5,
    descriptions: str | Path | Mapping[str, Sequence[str]] | None = None,
    chat_url: str | None = None,
    phrasings: int = 3,
    n_workers: int | None = None,
    on_bad: OnBad = "stop",
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    cache_limit_gb: float = 16.0,
    largest_image: float = 179.0,
    exact_decoding: bool = False,
    engine: str = "local",
    shard_rows: int | None = None,
    approve: Callable[[Estimate], bool] | None = None,
) -> Annotated | Sharded:
    """Write a table that gives every image its candidate labels, with weights.

    A stopped call goes on where it was when it is repeated: features are kept in the cache, answers in
    ``OUT.answers.jsonl`` beside the table. No network is used unless ``chat_url`` or the name of a model says so.

    Args:
      data: images, labelled or not; see data.read.load. Labels are passed on and never used, except to score.
      model: a two-tower model (CLIP, SigLIP, ...) or one that chats about images (LLaVA, ...), by hub id or folder;
        with ``chat_url``, the name that the endpoint knows it by.
      out: the .parquet file to write; must not exist.
      image_column, label_column: columns of a table that are called otherwise.
      classes: class names or a file of them; None = those of the data.
      rule, top_k, ratio: which classes become candidates, see annotators.candidate_rules.pick. Two-tower models only.
      templates, descriptions: see `fit`. Two-tower models only.
      chat_url: base URL of an OpenAI-compatible endpoint.   phrasings: questions per image. Chat models only.
      n_workers: questions under way at once.   seed: of the orders in which the classes are shown. Chat models only.
      on_bad, device, precision, cache_limit_gb, largest_image, exact_decoding: see `fit`.
      engine, shard_rows: see `label`. Two-tower models with ``classes`` and without ``descriptions`` only.
      approve: called with what a chat model will be asked, before it is; False stops.

    Returns: an `Annotated`: where the table is, and counts; against the labels or the truth of the data, where it has
      any, also how often the candidates hold it. Of shards a `scale.work.Sharded`.

    Raises: ConfigError or DataError, with nothing written, for data or settings that cannot work; OfflineError if the
      model is neither on this machine nor within reach.
    """
    is_over_shards = is_sharded(data, engine=engine, shard_rows=shard_rows)
    target = Path() if is_over_shards else new_output(out, ".parquet")
    asked = Annotator(
        model,
        rule=rule,
        top_k=top_k,
        ratio=ratio,
        templates=templates,
        chat_url=chat_url,
        phrasings=phrasings,
        seed=seed,
    )
    asked = checked(asked, has_descriptions=descriptions is not None)
    decoding = Decoding.chosen(largest_image=largest_image, exact_decoding=exact_decoding)
    columns = named_columns(image=image_column, label=label_column)
    if is_over_shards:
        names = class_list(classes)
        if asked.is_chat or descriptions is not None or names is None or len(names) < 2:
            raise ConfigError(
                "shards are annotated one by one, by a vision-language model and the names of all classes",
                fix="give --classes and a two-tower --model, without --descriptions",
            )
        how = Reading(tuple(columns.items()), False, tuple(names), on_bad, decoding)
        what = {"verb": "annotate", **asked.facts(), "content": checksums.of_place(model), "classes": names}
        what |= {"columns": columns, "on_bad": on_bad, "largest_image": largest_image, "exact_decoding": exact_decoding}
        annotator = AnnotateShard(asked, how, device, precision, folder_of(out), absolute(model))
        done = over_shards(
            data,
            out,
            annotator,
            what=what | {"precision": precision},
            engine=engine,
            shard_rows=shard_rows,
            doing="annotating shards",
            look=annotator.knowledge,
        )
        is_unknown = done.found.get("knowledge", math.inf) < KNOWN_FROM
        is_asked = done.counts.get("n_labelled", 0) < done.n_images
        return replace(done, notices=(UNKNOWN, *done.notices)) if is_unknown and is_asked else done
    table = read(data, classes=classes, columns=columns, decoding=decoding)
    if len(table.class_names) < 2:
        raise DataError(
            f"{resolved_path(data)} names {len(table.class_names)} classes; candidates need two or more",
            fix="give the class names, or a file with one per line, as --classes",
        )
    asked = replace(asked, descriptions=wanted_descriptions(descriptions, table.class_names))
    on = accelerator_for(device).device
    if asked.is_chat:
        usable = resolve_problems(table, [*table.problems, *check_images(table)], on_bad)
        journal = target.with_name(f"{target.stem}.answers.jsonl")
        if rank():  # one asks
            return Annotated(target, {})
        guesses = ask_chat(
            asked, usable, journal=journal, device=on, precision=precision, n_workers=n_workers, approve=approve
        )
    else:
        encoder = load_matching(model, device=on, precision=precision)
        size_px = encoder.tower.stats.size_px
        source = open_source(table, classes=None, size_px=size_px, on_bad=on_bad, cache_limit_gb=cache_limit_gb)
        usable = source.table
        guesses = match_names(asked, usable, views_of(source, encoder, on, shared=True), encoder.tower)
    n_labelled = int((usable.labels >= 0).sum())
    counts = guesses.counts | {"left_out": listed(usable.quarantined), "n_labelled": n_labelled}
    is_unknown = guesses.candidates.knowledge < KNOWN_FROM and n_labelled < len(usable)
    counts["notices"] = [*usable.how_read, *([UNKNOWN] if is_unknown else [])]
    info = guesses.info | {"counts": counts}
    if not rank():
        write_candidates(target, usable, guesses.candidates, usable.class_names, info)
    return Annotated(target, counts)


@dataclass(frozen=True)
class AnnotateShard:
    """Candidates of a shard's images, as `write_candidates` writes them."""

    annotator: Annotator  # a two-tower model and its rule
    how: Reading  # how shards are read; its classes are all there are
    device: str  # this and the next: see `annotate`
    precision: str
    out: str  # folder that the paths of images start from
    place: str  # where the model is

    def knowledge(self, shards: Sequence[Shard]) -> dict[str, Any]:
        """How well the model knows the classes, by images of some shards: see `labels.concepts.knowledge`."""
        encoder, prompts = self._matching()
        sources = some_of(shards, self.how, n_rows=TRIED_ROWS, size_px=encoder.stats.size_px)
        feats = [self._feats(source) for source in sources if len(source.table)]
        known = knowledge(torch.cat(feats), F.normalize(prompts.mean(0), dim=1)) if feats else math.inf
        return {"knowledge": round(min(known, 99.0), 3)}

    def _matching(self) -> tuple[MatchingEncoder, torch.Tensor]:
        names = self.how.classes or ()
        return _matching(self.place, self.annotator.templates, names, self.device, self.precision)

    def _feats(self, source: Source) -> torch.Tensor:
        """Features [n, D] of decoded images, rounded as they are stored."""
        encoder, _ = self._matching()
        view = ViewSettings(mean=encoder.stats.mean, std=encoder.stats.std)
        where = accelerator_for(self.device).device
        x = source.pixel_views(view).batch(torch.arange(len(source.table)), "clean", seed=0, device=where)
        with torch.inference_mode():
            return encoder.encode(x).half().float()

    def __call__(self, shard: Shard, *, found: Mapping[str, Any]) -> pa.Table:
        """A row per usable image, in the order of the shard."""
        names = self.how.classes or ()
        encoder, prompts = self._matching()
        parts, left_out, n_scored, n_inside, n_labelled = list[pa.Table](), list[Any](), 0, 0, 0
        for batch in batches(shard, self.how, size_px=encoder.stats.size_px):
            left_out += batch.left_out
            if (source := batch.source) is None:
                continue
            feats = self._feats(source)
            rule = {"rule": self.annotator.rule, "top_k": self.annotator.top_k, "ratio": self.annotator.ratio}
            candidates = candidates_from_feats(
                [feats], prompts, logit_scale=encoder.tower.logit_scale, **cast(Any, rule)
            )
            folder = None if is_url(self.out) else Path(self.out).expanduser().resolve()
            parts.append(candidate_rows(source.table, candidates, names, folder, groups=batch.groups))
            counts = describe_candidates(candidates, n_classes=len(names), truth=truth_of(source.table))
            n_labelled += int((source.table.labels >= 0).sum())
            n_scored += counts.get("n_scored", 0)
            n_inside += round(counts.get("truth_inside", 0.0) * counts.get("n_scored", 0))
        numbers = {"n_scored": n_scored, "n_inside": n_inside, "n_labelled": n_labelled}
        table = noted(parts, pa.schema([("id", pa.string())]), left_out, **numbers)
        notes = {"class_names": list(names), "annotator": self.annotator.facts() | {"counts": dict(found)}}
        return table.replace_schema_metadata({**table.schema.metadata, METADATA_KEY: json.dumps(notes)})


@functools.lru_cache(maxsize=1)
def _matching(
    model: str, templates: str, names: tuple[str, ...], device: str, precision: str
) -> tuple[MatchingEncoder, torch.Tensor]:
    """The model and its prompts' features, once in a process."""
    encoder = load_matching(model, device=accelerator_for(device).device, precision=precision)
    return encoder, prompt_text_feats(encoder.tower.text_feats, names, templates_named(templates))
