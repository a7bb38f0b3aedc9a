"""Candidate labels that a run starts from: those of the data, or those that an annotator gives before training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from labelwright.annotators.annotator import (
    Annotator,
    Guesses,
    MatchingEncoder,
    ask_chat,
    load_matching,
    match_names,
    texts_of,
    views_of,
)
from labelwright.annotators.candidate_rules import mean_probs, write_candidates
from labelwright.annotators.chat import Estimate
from labelwright.data.columns import METADATA_KEY
from labelwright.data.prepare import Source, open_source
from labelwright.data.stored import EmbeddingViews
from labelwright.data.table import LabelTable
from labelwright.encoders.embed import Encoder
from labelwright.encoders.templates import prompt_text_feats, templates_named
from labelwright.errors import ConfigError, DataError
from labelwright.launch import rank
from labelwright.metrics.agreement import clusters_of
from labelwright.parsing import json_of
from labelwright.run_folder import ANNOTATIONS
from labelwright.train.predict import Answers, answer
from labelwright.train.processes import gather_objects, wait_for_all
from labelwright.types import Candidates

TABLE, JOURNAL = ANNOTATIONS


def candidates_fingerprint(table: LabelTable) -> str | None:
    """32 hex digits that change when a candidate or its weight does; None without candidates.

    Example:
      >>> from dataclasses import replace; import numpy as np
      >>> from labelwright.data.table import Images
      >>> ids = pa.array(["a"], pa.large_string())
      >>> table = LabelTable(Images(ids), ids, np.array([-1], np.int32), ("cat", "dog"))
      >>> sets = Candidates(torch.tensor([0, 1]), torch.tensor([1], dtype=torch.int32))
      >>> candidates_fingerprint(table), len(candidates_fingerprint(replace(table, candidates=sets)))
      (None, 32)
    """
    if table.candidates is None:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for part in (table.candidates.offsets, table.candidates.classes, table.candidates.weights):
        digest.update(b"none" if part is None else part.numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Guesser:
    """An annotator at work for a run."""

    annotator: Annotator
    run_encoder: Encoder | None  # the encoder that the run sees images through, None if it sees pixels
    device: torch.device
    precision: str
    cache_limit_gb: float = 16.0  # decoded images above this are streamed instead of cached

    def guesses(self, folder: Path, source: Source, *, approve: Callable[[Estimate], bool] | None = None) -> Guesses:
        """Candidates of every training image: read from the run folder, or made and written there first.

        Args:
          folder: of the run; gets TABLE, and JOURNAL with the answers of a chat model as they come.

        Raises: ConfigError if TABLE was made in another way; DataError if it is not of these images.
        """
        table, path = source.table, folder / TABLE
        if not gather_objects(path.exists())[0]:  # every process sees images; the first one asks chat models and writes
            made = self._made(folder, source, approve) if rank() == 0 or not self.annotator.is_chat else None
            if made is not None and rank() == 0:
                write_candidates(path, table, made.candidates, table.class_names, made.info | {"counts": made.counts})
            wait_for_all()
        return read_guesses(path, table, self.annotator)  # what a resumed run sees, an uninterrupted one sees too

    def _made(self, folder: Path, source: Source, approve: Callable[[Estimate], bool] | None) -> Guesses:
        if not self.annotator.is_chat:
            return match_names(self.annotator, source.table, self._views(source, shared=True), self._encoder.tower)
        return ask_chat(
            self.annotator,
            source.table,
            journal=folder / JOURNAL,
            device=self.device,
            precision=self.precision,
            approve=approve,
        )

    def asker(self, guesses: Guesses, class_names: Sequence[str]) -> Callable[[Source], Answers]:
        """What the two-tower model alone answers on any images: its mean probability over the prompts."""
        tower = self._encoder.tower
        texts = texts_of(class_names, guesses.counts)
        prompts = prompt_text_feats(tower.text_feats, texts, templates_named(self.annotator.templates))

        def ask(source: Source) -> Answers:
            views = self._views(source)
            return answer(
                lambda z: mean_probs(z, prompts, tower.logit_scale)[0],
                views,
                torch.arange(views.n_rows),
                device=self.device,
                precision=self.precision,
            )

        return ask

    def clusters(self, source: Source) -> Tensor | None:
        """Clusters of the images in the features of a two-tower model, one per class; None of a chat model."""
        if self.annotator.is_chat:
            return None
        feats = torch.cat([z.half() for z in self._views(source).feats()])  # as they are stored
        return clusters_of(feats, len(source.table.class_names))

    @cached_property
    def _encoder(self) -> MatchingEncoder:
        shared = self.run_encoder
        if shared is not None and shared.name == self.annotator.model and shared.tower is not None:
            return MatchingEncoder(**vars(shared))
        return load_matching(self.annotator.model, device=self.device, precision=self.precision)

    def _views(self, source: Source, *, shared: bool = False) -> EmbeddingViews:
        if source.stored is not None and self.run_encoder is not None and self.run_encoder.tower is self._encoder.tower:
            return EmbeddingViews(source.stored, rows=source.rows)
        size_px = self._encoder.stats.size_px
        opened = open_source(source.table, classes=None, size_px=size_px, cache_limit_gb=self.cache_limit_gb)
        return views_of(opened, self._encoder, self.device, shared=shared)


def read_guesses(path: Path, table: LabelTable, annotator: Annotator) -> Guesses:
    """The candidates of a run folder, without looking at an image.

    Args:
      path: written by `write_candidates` for the images of ``table``.   annotator: who is to have made them.

    Raises: ConfigError if another annotator did, or was asked in another way; DataError if the images are others, or
      the file cannot be read.
    """
    try:
        described = json_of(pq.read_schema(path).metadata[METADATA_KEY])
        info, names = dict(described["annotator"]), described["class_names"]
        columns = pq.read_table(path, columns=["id", "candidates", "weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error})", fix="remove it and resume, to annotate again") from error
    if names != list(table.class_names) or columns["id"].to_pylist() != table.ids.to_pylist():
        raise DataError(
            f"{path} is of other images or classes", fix="resume with the same data, or start anew in another --out"
        )
    facts = annotator.facts()
    changed = [key for key in facts | {"offered_descriptions": None} if info.get(key) != facts.get(key)]
    if changed:
        was, now = info.get(changed[0]), facts.get(changed[0])
        raise ConfigError(
            f"the candidates of this run were made with {changed[0]} {was!r}, and {now!r} is asked for now",
            fix="resume with the settings of config.yaml, or start anew in another --out",
        )
    sets = columns["candidates"].combine_chunks()
    sizes = pc.list_value_length(sets).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = torch.from_numpy(np.pad(sizes.cumsum(), (1, 0)))
    classes = pc.index_in(pc.list_flatten(sets), pa.array(names, pa.string())).to_numpy(zero_copy_only=False)
    weights = pc.list_flatten(columns["weights"].combine_chunks()).to_numpy(zero_copy_only=False)
    counts = info.pop("counts")
    candidates = Candidates(
        *(offsets, torch.from_numpy(classes.copy()).int(), torch.from_numpy(weights.copy())),
        knowledge=float(counts.get("knowledge", math.inf)),
    )
    return Guesses(candidates, counts, info)


def summary_of(guesses: Guesses) -> dict[str, Any]:
    """What summary.json says of the annotator: its name, how it was asked, which descriptions stood for names.

    Example:
      >>> sets = Candidates(torch.tensor([0, 1]), torch.tensor([0], dtype=torch.int32))
      >>> summary_of(Guesses(sets, {"n_images": 1, "n_calls": 3}, {"model": "m", "kind": "chat", "phrasings": 3}))
      {'name': 'm', 'kind': 'chat', 'phrasings': 3, 'n_calls': 3}
    """
    own = ("mismatched", "descriptions", "rejected")
    asked = ("n_calls", "n_from_journal", "n_answers", "n_failed", "n_unparseable", "unparseable")
    info = {key: value for key, value in guesses.info.items() if key not in ("model", "offered_descriptions")}
    return {
        "name": guesses.info["model"],
        **info,
        **{key: guesses.counts[key] for key in (*own, *asked) if key in guesses.counts},
    }
