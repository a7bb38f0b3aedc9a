"""What `fit` makes of a plan before it trains: features, candidates, text features, networks, the number of classes."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labelwright.annotators.annotator import Guesses, texts_of
from labelwright.annotators.chat import Estimate
from labelwright.annotators.describe import ask_for, mismatched_classes
from labelwright.annotators.training_candidates import Guesser
from labelwright.data.embeddings import GivenFeats
from labelwright.data.prepare import Prepared, Source
from labelwright.data.stored import EmbeddingViews
from labelwright.data.table import LabelTable
from labelwright.encoders.embed import concepts_of, embed
from labelwright.encoders.nets import EncoderNets
from labelwright.encoders.templates import templates_named
from labelwright.labels.chunks import known_and_unknown
from labelwright.labels.unlike import Unlike
from labelwright.methods.baselines.majority import votes
from labelwright.pipeline.novel import count_novel, feats_of, novel_notice, unlike_of, with_novel
from labelwright.pipeline.resolve import Plan, own_nets
from labelwright.train.column_scales import SCALED_ROWS, column_scales
from labelwright.train.seeds import derive_seed
from labelwright.train.settings import TrainSettings
from labelwright.types import BuildNet, Concepts, Task


@dataclass(frozen=True)
class Job:
    """Everything that training and its end need."""

    prepared: Prepared  # the images, with stored features if the method sees such, and classes beyond the named ones
    task: Task  # what the recipe may know
    build: BuildNet  # makes networks
    cfg: TrainSettings  # the recipe's Config, complete
    # this and the next: who guessed the candidates of the training images, and what; None if they came with the data
    guesser: Guesser | None
    guesses: Guesses | None
    evidence: Mapping[str, Any] | None  # how the number of novel classes was estimated; None if it was not
    unlike: Unlike  # unlabelled images that look unlike every labelled one, where no new classes are learned
    new_share: float  # share of these where new classes are learned, 0 to 1; 0 where it is not known
    notices: tuple[str, ...]  # what was noticed of the images before training, for the warnings of the run


def prepare_job(plan: Plan, seconds: dict[str, float], approve: Callable[[Estimate], bool] | None) -> Job:
    """Embed, annotate, read the class names, build, count novel classes.

    Args:
      seconds: by phase; those spent here are added.

    Raises: LabelwrightError subclasses for what only these steps can find.
    """
    settings, accelerator, prepared, encoder = plan.settings, plan.accelerator, plan.prepared, plan.encoder
    device, precision = accelerator.device, settings.precision
    source = prepared.train
    scales = None if prepared.class_feats is not None else scales_of(source.table, source.stored, source.rows)
    if scales is not None:
        prepared = _divided(prepared, scales)
    if encoder is not None and plan.views == "embeddings":
        with _clock(seconds, "embed"):
            prepared = embedded(plan)
    guesser, guesses = None, None
    if plan.annotator is not None:
        guesser = Guesser(plan.annotator, encoder, device, precision, settings.cache_limit_gb)
        with _clock(seconds, "annotate"):
            guesses = guesser.guesses(plan.run.path, prepared.train, approve=approve)
            table = dataclasses.replace(prepared.train.table, candidates=guesses.candidates)
            prepared = dataclasses.replace(prepared, train=dataclasses.replace(prepared.train, table=table))
    concepts = _concepts(plan, prepared, guesses, approve)
    build = _nets(plan, prepared, concepts, scales)
    clusters = guesser.clusters(prepared.train) if guesser is not None and plan.views == "pixels" else None
    n_novel, evidence = count_novel(
        plan.run,
        prepared.train.table,
        prepared.situation.n_novel,
        lambda: feats_of(copy.copy(build)(1), prepared, device, precision),
        seed=settings.seed,
        writes=accelerator.is_main_process,
    )
    task = dataclasses.replace(prepared.train.table.task(n_novel=n_novel), concepts=concepts, clusters=clusters)
    unlike, new_share = _unlike(prepared), 0.0
    if n_novel:
        unlike, new_share = Unlike(), 0.0 if unlike.is_elsewhere else unlike.share
    prepared = with_novel(prepared, n_novel) if n_novel else prepared
    views = prepared.train.views(prepared.view)
    cfg = plan.method.pilot(plan.cfg, task, views, build, options=plan.options, folder=plan.run.path)
    none_found = prepared.situation.n_novel is not None
    notices = (*_copies(prepared), *scales_notice(scales), *novel_notice(unlike, none_found=none_found))
    return Job(prepared, task, build, cfg, guesser, guesses, evidence, unlike, new_share, notices)


def embedded(plan: Plan) -> Prepared:
    """The images with their features, from the cache where they are stored; as they are without a frozen encoder.

    A method that takes no steps looks at the un-augmented view alone, and so do all that it is held against.
    """
    settings, prepared, encoder, device = plan.settings, plan.prepared, plan.encoder, plan.accelerator.device
    if encoder is None or plan.views != "embeddings":
        return prepared
    n_views = settings.n_views if plan.cfg.takes_steps else 0
    train = embed(prepared.train, encoder, prepared.view, n_views=n_views, device=device, shared=True)
    # Test images in the un-augmented view alone, but for those to be learned from.
    n_views = n_views if settings.refit and prepared.test_is == "held out" else 0
    test = prepared.test and embed(prepared.test, encoder, prepared.view, n_views=n_views, device=device, shared=True)
    return dataclasses.replace(prepared, train=train, test=test)


def scales_of(table: LabelTable, stored: Any, of: Tensor | None = None) -> Tensor | None:
    """What to divide columns of the user's own embeddings by, as `column_scales` sees them on some of the rows.

    Args: table: N rows learned from. stored: the features. of: [N] int64 rows of these; None: all.
    """
    if not isinstance(stored, GivenFeats) or not len(table):
        return None
    task = table.task()
    labels = task.labels if task.candidates is None else votes(task)
    rows = known_and_unknown(labels, SCALED_ROWS)
    feats = torch.cat(list(EmbeddingViews(stored, rows=of).feats(rows)))
    return column_scales(feats, labels[rows])


def _divided(prepared: Prepared, scales: Tensor) -> Prepared:
    """The same with columns divided."""

    def divided(source: Source) -> Source:
        assert isinstance(source.stored, GivenFeats), "embeddings are scored on embeddings"
        return dataclasses.replace(source, stored=source.stored.divided(scales))

    test = prepared.test and divided(prepared.test)
    return dataclasses.replace(prepared, train=divided(prepared.train), test=test)


def scales_notice(scales: Tensor | None) -> tuple[str, ...]:
    """What was done to the columns of embeddings, see `column_scales`."""
    if scales is None:
        return ()
    low, high = (f"{float(value):.3g}" for value in (scales.min(), scales.max()))
    return (f"the columns of the embeddings deviate by {low} to {high}: each is divided by its own deviation",)


def _copies(prepared: Prepared) -> tuple[str, ...]:
    """Copies among the test images."""
    n = prepared.n_copies_in_test
    return (f"{n:,} of the training images are among the test images too: the scores are too good",) if n else ()


def _unlike(prepared: Prepared) -> Unlike:
    """Of stored features, images unlike the labelled ones."""
    if prepared.train.stored is None:
        return Unlike()
    views = EmbeddingViews(prepared.train.stored, rows=prepared.train.rows)
    return unlike_of(prepared.train.table, lambda rows: torch.cat(list(views.feats(rows))))


@contextmanager
def _clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - began


def _concepts(
    plan: Plan, prepared: Prepared, guesses: Guesses | None, approve: Callable[[Estimate], bool] | None
) -> Concepts | None:
    """Text features of the class names, with descriptions; asked of a chat model where the user named one."""
    if plan.encoder is None or plan.encoder.tower is None:
        return None if prepared.class_feats is None else Concepts(*prepared.class_feats)
    tower, names = plan.encoder.tower, prepared.train.table.class_names
    texts: Mapping[str, Sequence[str]] = plan.texts
    asked_as = names if guesses is None else texts_of(names, guesses.counts)
    concepts = concepts_of(tower, asked_as, templates=plan.templates, descriptions=texts)
    if plan.settings.describe_with is None:
        return concepts
    which = mismatched_classes(prepared, plan.encoder, concepts, device=plan.accelerator.device)
    with plan.accelerator.main_process_first():  # which asks; the others read its file
        asked = ask_for(
            names,
            which if plan.accelerator.is_main_process else (),
            plan.settings.describe_with,
            chat_url=plan.settings.chat_url,
            path=plan.run.path / "descriptions.json",
            approve=approve,
        )
    merged = {name: (*texts.get(name, ()), *asked.get(name, ())) for name in names}
    described = concepts_of(tower, names, templates=plan.templates, descriptions=merged)
    return dataclasses.replace(described, feats=concepts.feats)


def _nets(plan: Plan, prepared: Prepared, concepts: Concepts | None, scales: Tensor | None) -> BuildNet:
    settings, encoder, stored = plan.settings, plan.encoder, prepared.train.stored
    frozen = stored if encoder is None else encoder
    if frozen is None:
        return own_nets(settings, plan.model, prepared.size_px)
    return EncoderNets(
        n_features=frozen.n_features,
        concepts=concepts,
        encoder=encoder,
        is_stored=plan.views == "embeddings",
        class_names=prepared.train.table.class_names,
        template=templates_named(plan.templates)[0],
        seed=derive_seed(settings.seed, "net", 1),
        scales=scales,
    )
