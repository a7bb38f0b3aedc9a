"""`fit`: from data to a run folder, phase by phase."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from labelwright.annotators.annotator import Guesses, texts_of
from labelwright.annotators.chat import Estimate
from labelwright.annotators.describe import ask_for, mismatched_classes, wanted_descriptions
from labelwright.annotators.training_candidates import Guesser, candidates_fingerprint, has_answers, wanted_annotator
from labelwright.data.prepare import Flip, Prepared, describe_data, is_embeddings, prepare, resolved_path
from labelwright.data.read import read_names
from labelwright.encoders.embed import Encoder, concepts_of, embed, load_encoder
from labelwright.encoders.nets import EncoderNets, OwnNets
from labelwright.encoders.pretrained import image_stats
from labelwright.encoders.resnets import OWN
from labelwright.encoders.templates import templates_named
from labelwright.errors import ConfigError, LabelwrightError
from labelwright.methods.cap_margin import with_chosen_margin
from labelwright.methods.registry import method_named, resolve_config
from labelwright.pipeline.evaluate import evaluator
from labelwright.pipeline.finish import finish
from labelwright.pipeline.novel import count_novel, feats_of, with_novel
from labelwright.pipeline.resolve import CPU_IMAGES as CPU_IMAGES
from labelwright.pipeline.resolve import Views, affordable, check_words, choose_method, choose_views, overrides_of
from labelwright.reporting.render import render
from labelwright.run_folder import Run
from labelwright.train.environment import environment
from labelwright.train.loop import LoopOptions, train
from labelwright.train.processes import accelerator_for
from labelwright.train.seeds import derive_seed
from labelwright.types import BuildNet, Concepts


def fit(
    data: Any,
    *,
    out: str | Path,
    method: str = "auto",
    model: str = "auto",
    classes: Any = None,
    novel: int | str | None = None,
    group: str | None = None,
    test: Any = None,
    test_frac: float = 0.2,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    size_px: int | None = None,
    flip: Flip = "auto",
    pretrained: bool = True,
    views: Views = "auto",
    n_views: int = 2,
    templates: str = "auto",
    descriptions: str | Path | Mapping[str, Sequence[str]] | None = None,
    describe_with: str | None = None,
    vocabulary: str | Path | None = None,
    annotator: str | None = None,
    rule: str = "top_k",
    top_k: int = 5,
    ratio: float = 0.5,
    phrasings: int = 3,
    chat_url: str | None = None,
    approve: Callable[[Estimate], bool] | None = None,
    freeze: Sequence[str] = (),
    resume: bool = False,
    on_bad: Literal["stop", "skip"] = "stop",
    checkpoint_minutes: float = 5.0,
    evaluations: int = 10,
    cache_limit_gb: float = 16.0,
    settings: Mapping[str, object] | None = None,
) -> Run:
    """Train a classifier and write a run folder: model, labels with trust, scores, report.

    Args:
      data: training images, labelled or not; see data.read.load.
      out: run folder; must not exist or be empty, unless ``resume``.
      method: a name of methods.registry.METHODS; "auto" asks `inspect`.
      model: resnet32, resnet18, preact_resnet18, or a transformers vision or vision-language model by id or path;
        "auto" is resnet32 for images up to 40 px and resnet18 above. Methods that read class names need a
        vision-language model (CLIP, SigLIP, ...).
      classes, novel, group: see `inspect`.
      test: images to score on; without it a stratified, group-safe share ``test_frac`` is held out.
      epochs: passes over the training images; None = the method's default (the published 200) on a GPU, and on a CPU
        as many of them as make up `CPU_IMAGES` images, at least 5 (for candidates see pipeline.resolve).
      seed: of everything random.
      device: auto, cpu or cuda.   precision: auto, bf16 or fp32.
      size_px: side of the square images the network sees.
      flip: whether mirrored images keep their class: auto, on or off.
      pretrained: load the weights of a transformers model; False starts it from random ones.
      freeze: parameter-name patterns that stay as they are, e.g. ``backbone.*``.
      views: what the method sees: "pixels", or "embeddings" of a frozen ``model``, made once and kept in the cache;
        "auto" is embeddings for methods that read class names and leave the encoder as it is, and for methods that
        learn from candidates if ``model`` is a two-tower model; else pixels.
      n_views: weak and strong views embedded of every image.
      templates: what class names are put into: one, short, long, photo27, a file, or a text with {}; "auto" is photo27
        for methods that learn from candidates, else one.
      descriptions: how classes look: {class: [texts]}, or a JSON or YAML file of it. They replace a name only where
        they explain the images better: for the method, or for the annotator.
      describe_with: a chat model to ask for descriptions of mismatched classes, by the name that ``chat_url`` (or
        OpenAI) knows it by; nothing is asked without it.
      vocabulary: file with one word per line, from which discovered classes are offered a name; needs a two-tower
        ``model`` and embeddings.
      annotator: for methods that learn from candidates, where the data have none: the two-tower or chat model that
        guesses them before training, see `annotate`; None = ``model`` if that is a two-tower model. What it says is
        kept in candidates.parquet of the run, answers of a chat model in candidates.answers.jsonl as they come.
      rule, top_k, ratio, phrasings: how it is asked, see `annotate`.
      chat_url: base URL of an OpenAI-compatible endpoint, of the annotator or of ``describe_with``.
      approve: told what a chat annotator will be asked, before it is; False stops.
      resume: continue the run in ``out`` where it stopped, or begin it if there is none; needs the same data and
        settings. A finished run is left as it is.
      on_bad: what to do with unusable rows: stop with a report of all of them, or skip and list them.
      checkpoint_minutes: at most this much work is lost to a kill.
      evaluations: times the test images are scored while training, for the curves; never used to choose anything.
      settings: fields of the method's Config, values or their text.

    Returns: the finished run.

    Raises: LabelwrightError subclasses, with nothing written, for data or settings that cannot work.
    """
    began = time.monotonic()
    run = Run.create(out, resume=resume)
    if resume and run.path.exists() and not (run.path / "config.yaml").exists() and any(run.path.iterdir()):
        raise ConfigError(f"{run.path} is not the folder of a run", fix="choose another --out")
    if method != "auto":  # mistakes in settings should not wait for the data to be read
        resolve_config(method_named(method), overrides_of(settings, epochs))
    # Our own networks take the size and statistics of the data; a checkpoint wants the pixels it was trained on.
    own = model == "auto" or model in OWN
    stats = image_stats(model) if pretrained and not own else None
    prepared = prepare(
        data,
        test=test,
        classes=classes,
        novel=novel,
        group=group,
        test_frac=test_frac,
        size_px=stats.size_px if stats and size_px is None else size_px,
        stats=(stats.mean, stats.std) if stats else None,
        flip=flip,
        on_bad=on_bad,
        seed=seed,
        cache_limit_gb=cache_limit_gb,
    )
    if n_views < 1:
        raise ConfigError(f"n_views={n_views} is not possible", fix="give 1 or more")
    name, chosen = choose_method(method, prepared)
    accelerator = accelerator_for(device)
    overrides = overrides_of(settings, epochs)
    cfg = resolve_config(chosen, overrides)
    sees = choose_views(views, chosen, cfg, data=data, model=model, pretrained=pretrained)
    cfg = affordable(cfg, chosen, prepared, sees, accelerator.device, given=overrides)
    if templates == "auto":
        templates = "photo27" if chosen.needs == "candidates" else "one"
    asked = wanted_annotator(
        name,
        chosen.needs,
        prepared.train.table,
        annotator=annotator,
        model=model,
        pretrained=pretrained,
        sees_given_embeddings=is_embeddings(data),
        rule=rule,
        top_k=top_k,
        ratio=ratio,
        templates=templates,
        descriptions=descriptions,
        chat_url=chat_url,
        phrasings=phrasings,
        seed=seed,
    )
    if model == "auto":
        model = "none" if is_embeddings(data) else "resnet32" if prepared.size_px <= 40 else "resnet18"
    described = describe_data(prepared) | {"candidates_fingerprint": candidates_fingerprint(prepared.train.table)}
    config = {
        "data": resolved_path(data),
        "test": None if test is None else resolved_path(test),
        "test_frac": test_frac,
        "classes": list(prepared.train.table.class_names) if classes is not None else None,
        "novel": novel,
        "group": group,
        "method": name,
        "model": model,
        "views": sees,
        "n_views": n_views,
        "templates": templates,
        "descriptions": str(descriptions) if isinstance(descriptions, (str, Path)) else descriptions,
        "describe_with": describe_with,
        "vocabulary": None if vocabulary is None else str(vocabulary),
        "annotator": None if asked is None else asked.told(),
        "pretrained": pretrained,
        "freeze": list(freeze),
        "size_px": prepared.size_px,
        "flip": prepared.view.flip,
        "seed": seed,
        "device": accelerator.device.type,
        "precision": precision,
        "on_bad": on_bad,
        "settings": json.loads(json.dumps(dataclasses.asdict(cfg))),  # as read back: tuples become lists
    }
    config = json.loads(json.dumps(config))
    uses_encoder = model not in ("none", *OWN) and (sees == "embeddings" or chosen.needs == "text")
    encoder = load_encoder(model, device=accelerator.device, precision=precision) if uses_encoder else None
    check_words(chosen, encoder, prepared, name)
    if chosen.needs != "text" and (describe_with is not None or (descriptions is not None and asked is None)):
        raise ConfigError(f"{name} reads no descriptions", fix="leave them out, or choose --method cap")
    words = None
    if vocabulary is not None:
        if encoder is None or encoder.tower is None or sees != "embeddings" or chosen.needs != "open_world":
            raise ConfigError(
                "a vocabulary names discovered classes by a two-tower model on embeddings, and this run has none",
                fix="add --novel auto and --model openai/clip-vit-base-patch32, or leave --vocabulary out",
            )
        listed = list(dict.fromkeys(read_names(Path(vocabulary))))
        if not listed:
            raise ConfigError(f"no word in {vocabulary}", fix="write one per line")
        words = dict(zip(listed, concepts_of(encoder.tower, listed, templates=templates).feats, strict=True))
    texts = wanted_descriptions(descriptions, prepared.train.table.class_names) if asked is None else {}
    if accelerator.is_main_process:
        run.write_head(config, described, environment(accelerator.device, precision), resume=resume)
    if resume and (run.path / "summary.json").exists():  # finished, but perhaps for the report
        if accelerator.is_main_process and not (run.path / "report.html").exists():
            render(run.path)
        return Run(run.path)
    options = LoopOptions(
        seed=seed,
        device=device,
        precision=precision,
        checkpoint_minutes=checkpoint_minutes,
        n_evaluations=evaluations if prepared.test or chosen.needs == "open_world" else 0,
    )
    try:
        seconds = {"read": time.monotonic() - began}
        if encoder is not None and sees == "embeddings":
            prepared = _embedded(prepared, encoder, n_views=n_views, device=accelerator.device, seconds=seconds)
        guesser = None if asked is None else Guesser(asked, encoder, accelerator.device, precision, cache_limit_gb)
        guesses = None
        if guesser is not None:
            began = time.monotonic()
            accelerator.wait_for_everyone()  # for the folder to be there
            n_processes = accelerator.num_processes
            guesses = guesser.guesses(run.path, prepared.train, n_processes=n_processes, approve=approve)
            prepared = _with_candidates(prepared, guesses)
            seconds["annotate"] = time.monotonic() - began
        concepts = _concepts(prepared, encoder, templates, texts, guesses)
        if describe_with is not None and concepts is not None and encoder is not None and encoder.tower is not None:
            concepts = _asked(
                run, prepared, encoder, concepts, templates, texts, describe_with, chat_url, accelerator.device
            )
        build: BuildNet
        if encoder is None and not is_embeddings(data):
            build = OwnNets(model, prepared.size_px, pretrained, tuple(freeze), seed)
        else:
            build = _encoder_nets(prepared, encoder, concepts, sees, templates, seed)
        clusters = guesser.clusters(prepared.train) if guesser is not None and sees == "pixels" else None
        n_novel, evidence = count_novel(
            run,
            prepared.train.table,
            prepared.situation.n_novel,
            lambda: feats_of(copy.copy(build)(1), prepared, accelerator.device, precision),
            seed=seed,
            writes=accelerator.is_main_process,
        )
        task = dataclasses.replace(prepared.train.table.task(n_novel=n_novel), concepts=concepts, clusters=clusters)
        if n_novel:
            prepared = with_novel(prepared, n_novel)
        source = prepared.train.views(prepared.view)
        cfg = with_chosen_margin(chosen.recipe, cfg, task, source, build, options=options, folder=run.path)
        trained = train(
            chosen.recipe,
            cfg,
            task,
            source,
            build,
            options=options,
            run=run,
            evaluate=evaluator(chosen.recipe, cfg, prepared, accelerator.device, precision, n_novel=n_novel),
        )
    except LabelwrightError as error:
        run.close()
        is_new = not resume and not run.checkpoint.exists() and not has_answers(run.path)
        if error.exit_code == 2 and is_new and accelerator.is_main_process:
            shutil.rmtree(run.path, ignore_errors=True)  # a setting that only the network could refuse
        raise
    if accelerator.is_main_process:
        seconds["train"] = trained.seconds
        finish(
            run,
            prepared,
            chosen,
            cfg,
            trained,
            config,
            described,
            accelerator.device,
            precision,
            seconds,
            task,
            build,
            guesser=guesser,
            guesses=guesses,
            evidence=evidence,
            words=words,
        )
    run.close()
    return Run(run.path)


# ---- phases of fit --------------------------------------------------------------------------------------------------


def _embedded(
    prepared: Prepared, encoder: Encoder, *, n_views: int, device: torch.device, seconds: dict[str, float]
) -> Prepared:
    """The same images as stored features; test images in the un-augmented view alone."""
    began = time.monotonic()
    train_source = embed(prepared.train, encoder, prepared.view, n_views=n_views, device=device)
    test = prepared.test and embed(prepared.test, encoder, prepared.view, n_views=0, device=device)
    seconds["embed"] = time.monotonic() - began
    return dataclasses.replace(prepared, train=train_source, test=test)


def _with_candidates(prepared: Prepared, guesses: Guesses) -> Prepared:
    table = dataclasses.replace(prepared.train.table, candidates=guesses.candidates)
    return dataclasses.replace(prepared, train=dataclasses.replace(prepared.train, table=table))


def _concepts(
    prepared: Prepared,
    encoder: Encoder | None,
    templates: str,
    texts: Mapping[str, Sequence[str]],
    guesses: Guesses | None,
) -> Concepts | None:
    if encoder is not None and encoder.tower is not None:
        names = prepared.train.table.class_names
        if guesses is not None:
            names = texts_of(names, guesses.counts)
        return concepts_of(encoder.tower, names, templates=templates, descriptions=texts)
    if prepared.class_feats is not None:
        feats, logit_scale = prepared.class_feats
        return Concepts(feats, logit_scale)
    return None


def _asked(
    run: Run,
    prepared: Prepared,
    encoder: Encoder,
    concepts: Concepts,
    templates: str,
    texts: Mapping[str, Sequence[str]],
    chat_model: str,
    chat_url: str | None,
    device: torch.device,
) -> Concepts:
    """Concepts with descriptions, asked of a chat model, of the classes whose name fits no image."""
    assert encoder.tower is not None
    names = prepared.train.table.class_names
    which = mismatched_classes(prepared, encoder, concepts, device=device)
    asked = ask_for(names, which, chat_model, chat_url=chat_url, path=run.path / "descriptions.json")
    merged = {name: (*texts.get(name, ()), *asked.get(name, ())) for name in names}
    return concepts_of(encoder.tower, names, templates=templates, descriptions=merged)


def _encoder_nets(
    prepared: Prepared, encoder: Encoder | None, concepts: Concepts | None, sees: str, templates: str, seed: int
) -> EncoderNets:
    stored = prepared.train.stored
    n_features = encoder.n_features if encoder is not None else stored.n_features if stored is not None else 0
    return EncoderNets(
        n_features=n_features,
        concepts=concepts,
        encoder=encoder,
        is_stored=sees == "embeddings",
        class_names=prepared.train.table.class_names,
        template=templates_named(templates)[0],
        seed=derive_seed(seed, "net", 1),
    )
