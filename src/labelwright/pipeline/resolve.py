"""What `fit` makes of its settings before anything is written: the method, what it sees, how long it runs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labelwright.annotators.annotator import Annotator, checked
from labelwright.annotators.describe import wanted_descriptions
from labelwright.annotators.reliability import weighted
from labelwright.annotators.training_candidates import candidates_fingerprint
from labelwright.data.class_names import read_names
from labelwright.data.images import Decoding
from labelwright.data.prepare import Prepared, describe_data, is_embeddings, prepare, read
from labelwright.data.table import LabelTable
from labelwright.encoders import at_hand, descriptor
from labelwright.encoders.at_hand import AtHand
from labelwright.encoders.embed import Encoder, concepts_of, is_two_tower, load_encoder
from labelwright.encoders.nets import OwnNets
from labelwright.encoders.pretrained import image_stats, is_from_transformers
from labelwright.encoders.resnets import OWN, own_network
from labelwright.encoders.saved import saved_backbone
from labelwright.errors import ConfigError, DataError
from labelwright.methods.method import Budget, Method, Views
from labelwright.methods.registry import METHODS, method_named, resolve_config
from labelwright.pipeline.copies import same_picture
from labelwright.pipeline.no_network import without_network
from labelwright.pipeline.run_config import to_config
from labelwright.pipeline.settings import FitSettings, column_names, columns_of
from labelwright.pipeline.time_budget import Clocked, clocked
from labelwright.run_folder import Run
from labelwright.train import fsdp
from labelwright.train.loop import LoopOptions
from labelwright.train.processes import accelerator_for
from labelwright.train.settings import TrainSettings, fine_tuned
from labelwright.wording import counted

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Plan:
    """A run that can begin."""

    settings: FitSettings  # as the user gave them
    run: Run  # the folder, not written to yet
    accelerator: Accelerator  # where to compute
    prepared: Prepared  # the images and what is known of them
    name: str  # this and the next two: the method, and its Config
    method: Method
    cfg: TrainSettings
    views: Views  # what it sees
    model: str  # this and the next: the network and the prompts, "auto" resolved
    templates: str
    encoder: Encoder | None  # the frozen model, loaded; None if a network learns from pixels or the data are embeddings
    annotator: Annotator | None  # who guesses candidates before training; None if nobody does
    texts: Mapping[str, Sequence[str]]  # descriptions of classes for the method
    # names offered to discovered classes, with their text features; None if there are none
    words: Mapping[str, torch.Tensor] | None
    budget: Budget  # what there is to learn from
    # the speed of a network that learns from pixels and the time it has; None where time sets no limit.   found: the
    # pretrained model that was taken as none was named
    clock: Clocked | None
    found: AtHand | None
    is_spared: bool  # a pretrained network gives features, and would be trained where there is a GPU
    seconds: float  # spent on reading

    @property
    def is_finished(self) -> bool:
        """Whether the run in the folder is finished, perhaps but for its report."""
        return self.settings.resume and (self.run.path / "summary.json").exists()

    @property
    def announcement(self) -> str:
        """What to say before it starts, a line each: the model that was found, and how long it will take."""
        lines = []
        if self.found is not None:
            use = "is trained on" if self.views == "pixels" else "gives features; --views pixels trains it"
            use = use if self.model != descriptor.NAME else f"as no network is at hand; {at_hand.PRETRAINED_HELPS}"
            lines.append(f"model: {self.found.name}, {self.found.where}, {use}; --model resnet32 takes random weights")
        elif self.model == descriptor.NAME:
            lines.append("model: descriptor gives features, colours and edges; nothing in it is learned")
        elif self.is_spared:
            lines.append(f"model: {self.model} gives features, as training it on a CPU takes long; --views pixels does")
        elif self.settings.model == "auto" and self.model in OWN:
            lines.append(
                f"model: {self.model}, random weights: no pretrained one is at hand; {at_hand.PRETRAINED_HELPS}; "
                "--model descriptor, colours and edges, takes seconds"
            )
        if self.clock is not None:
            most = resolve_config(self.method, self.settings.overrides, preset=self.settings.preset).epochs
            words = self.clock.words(self.cfg, self.method.passes(self.cfg, self.budget), most=most)
            lines.append(f"{self.name}, {self.model}: {words}")
        elif self.views == "pixels" and self.cfg.takes_steps and self.cfg.epochs > 1:
            epochs, images = counted(self.cfg.epochs, "epoch"), counted(len(self.prepared.train.table), "image")
            lines.append(f"{self.name}, {self.model}: {epochs} on {images}; the time left is shown while it trains")
        return "\n".join(lines)

    @property
    def options(self) -> LoopOptions:
        """How the loop runs."""
        is_scored = self.prepared.test is not None or self.method.requires.novel
        return LoopOptions(
            seed=self.settings.seed,
            device=self.settings.device,
            precision=self.settings.precision,
            accumulate=self.settings.accumulate,
            checkpoint_minutes=self.settings.checkpoint_minutes,
            n_evaluations=self.settings.evaluations if is_scored else 0,
        )

    @property
    def answer(self) -> str:
        """Whether the answer is "best" or "trained"."""
        if self.settings.answer != "auto":
            return self.settings.answer
        is_asked_for = self.method.is_baseline and self.settings.method != "auto"
        return "trained" if is_asked_for or self.settings.preset == "paper" else "best"

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.yaml holds: the settings as given, and under ``resolved`` what became of them."""
        resolved = {
            "method": self.name,
            "model": self.model,
            "views": self.views,
            "answer": self.answer,
            "templates": self.templates,
            "size": self.prepared.size_px,
            "flip": self.prepared.view.flip,
            "device": self.accelerator.device.type,
            "annotator": None if self.annotator is None else self.annotator.facts(),
            "found": None if self.found is None else dataclasses.asdict(self.found),
            "images_per_second": None if self.clock is None else self.clock.images_per_second,
            "settings": dataclasses.asdict(self.cfg),
        }
        content = to_config(self.settings) | {"resolved": resolved}
        return dict(json.loads(json.dumps(content)))  # as read back: tuples become lists

    @cached_property
    def described(self) -> dict[str, Any]:
        """What data.json holds."""
        table = self.prepared.train.table
        return describe_data(self.prepared) | {"candidates_fingerprint": candidates_fingerprint(table)}


def new_run(settings: FitSettings) -> Run:
    """The folder that the settings name, looked at but not made.

    Raises: ConfigError if it cannot be.
    """
    return Run.create(settings.out, resume=settings.resume, data=(settings.data, settings.test))


def resolve(settings: FitSettings, run: Run | None = None) -> Plan:
    """Read and check everything that a run needs; nothing is written.

    Raises: LabelwrightError subclasses for data or settings that cannot work.
    """
    began = time.monotonic()
    settings = _with_preset(settings)
    run = new_run(settings) if run is None else run
    data, found = _at_hand(settings, run)
    model = str(settings.model) if found is None else found.model
    # Our own networks take the size and statistics of the data; a checkpoint wants the pixels it was trained on.
    is_checkpoint = settings.pretrained and model not in ("auto", *OWN)
    stats = image_stats(model) if is_checkpoint else None
    prepared = prepare(
        data,
        test=settings.test,
        classes=settings.classes,
        novel=settings.novel,
        group=settings.group,
        annotators=column_names(settings.annotator_columns),
        columns=columns_of(settings),
        test_frac=settings.test_frac,
        size_px=stats.size_px if stats and settings.size is None else settings.size,
        stats=(stats.mean, stats.std) if stats else None,
        flip=settings.flip,
        on_bad=settings.on_bad,
        seed=settings.seed,
        cache_limit_gb=settings.cache_limit_gb,
        corrections=settings.corrections,
        decoding=_decoding(settings),
        same_picture=same_picture,
    )
    source = dataclasses.replace(prepared.train, table=weighted(prepared.train.table))
    return _planned(settings, run, dataclasses.replace(prepared, train=source), found, began)


def on_colours(plan: Plan) -> Plan | None:
    """The same run on colours and edges, of the same pixels, to hold a network of random weights against.

    None where the user chose the network, or nothing shows which is better. Of few images no network is trained: see
    pipeline/no_network.py.
    """
    settings, prepared = plan.settings, plan.prepared
    asked_for = settings.model != "auto" or settings.method != "auto" or settings.views == "pixels" or settings.freeze
    is_random = plan.views == "pixels" and plan.model in OWN
    is_shown = prepared.test is not None and prepared.situation.n_novel is None
    if asked_for or not is_random or not is_shown or plan.answer == "trained":
        return None
    stats = image_stats(descriptor.NAME)
    prepared = dataclasses.replace(prepared, view=dataclasses.replace(prepared.view, mean=stats.mean, std=stats.std))
    plain = dataclasses.replace(
        settings, model=descriptor.NAME, size=prepared.size_px, minutes=None, epochs=None, set=()
    )
    found = _planned(plain, plan.run, prepared, None, time.monotonic())
    return None if found.cfg.takes_steps else found


def _planned(settings: FitSettings, run: Run, prepared: Prepared, found: AtHand | None, began: float) -> Plan:
    """The plan of a run on what was read since ``began``, with the pretrained model that was found."""
    overrides, model = settings.overrides, str(settings.model) if found is None else found.model
    is_checkpoint = settings.pretrained and model not in ("auto", *OWN)
    is_matching = is_checkpoint and is_two_tower(model)
    are_feats = prepared.train.stored is not None  # the user's own embeddings
    has_text = prepared.class_feats is not None if are_feats else is_matching
    has_features = are_feats or (is_checkpoint and settings.views != "pixels")
    name, method = choose_method(settings.method, prepared, has_text=has_text, has_features=has_features)
    on_embeddings = method.on_embeddings if settings.method == "auto" else None
    if are_feats or settings.views == "embeddings":
        if on_embeddings is not None:  # whose settings --set may name
            name = on_embeddings(prepared.train.table)
            method, on_embeddings = method_named(name), None
        method = method.on_features()
    cfg = resolve_config(method, overrides, preset=settings.preset)
    views = choose_views(settings, method, cfg, are_feats=are_feats, is_two_tower=is_matching, model=model)
    accelerator = accelerator_for(settings.device)
    is_cpu = accelerator.device.type == "cpu"
    is_tuned = found is not None or (
        views == "pixels"
        and is_checkpoint
        and not (is_matching or settings.freeze or settings.minutes or "epochs" in overrides)
        and saved_backbone(model) is None
    )
    is_spared = is_tuned and settings.views == "auto" and (is_cpu or model == descriptor.NAME)
    if is_spared:
        views = "embeddings"  # a pass of each image, where to train such a network would take hours
        method = method.on_features()
        cfg = resolve_config(method, overrides, preset=settings.preset)
    if views == "embeddings" and on_embeddings is not None:
        name = on_embeddings(prepared.train.table)
        method = method_named(name)
        cfg = resolve_config(method, overrides)
    fixed = method.presets[settings.preset] if settings.preset != "practical" else {}
    table = prepared.train.table
    n_labelled = int((table.labels >= 0).sum())
    network = model
    if model == "auto":
        network = "none" if are_feats else own_network(prepared.size_px)
    uses_encoder = network not in ("none", *OWN) and (views == "embeddings" or method.requires.text)
    learns = views == "pixels" and not uses_encoder and cfg.takes_steps
    fsdp.check_tunes(learns and is_from_transformers(network) and "backbone.*" not in settings.freeze)
    if learns and is_checkpoint and "backbone.*" not in settings.freeze and saved_backbone(model) is None:
        cfg = fine_tuned(cfg, {**fixed, **overrides})
    clock, budget = None, Budget(len(table), n_labelled, is_stored=views == "embeddings", is_cpu=is_cpu)
    if learns and "epochs" not in {**fixed, **overrides}:
        clock = _clock(settings, run, prepared, network, cfg, accelerator)
        budget = dataclasses.replace(budget, n_passes=clock.n_passes)
    given = {**fixed, **overrides}
    if clock is not None and (began_with := _resolved_before(run)):
        cfg = dataclasses.replace(cfg, epochs=began_with["settings"]["epochs"])
        given["epochs"] = cfg.epochs
    cfg = method.schedule(cfg, budget, given)
    templates = method.templates if settings.templates == "auto" else str(settings.templates)
    annotator = _annotator(settings, name, method, table, model, templates, are_feats=are_feats)
    model = network
    encoder = load_encoder(model, device=accelerator.device, precision=settings.precision) if uses_encoder else None
    bare = [each for each, n in zip(table.class_names, table.counts().tolist(), strict=True) if n == 0]
    without = ""
    if n_labelled and bare:  # some classes have labels: it runs without the others
        without = (
            f"; or leave out the classes without a label, such as {bare[0]!r} (--classes FILE); if images may "
            f"be of them, with --novel {len(bare)}"
        )
    if method.requires.text and encoder is not None and encoder.tower is None:
        raise ConfigError(
            f"{encoder.name} has no text side, and {name} reads class names",
            fix=f"name a vision-language model: CLIP, SigLIP, ... (openai/clip-vit-base-patch32){without}",
        )
    if method.requires.text and encoder is None and prepared.class_feats is None:
        raise ConfigError(
            f"{name} reads class names, and these embeddings hold no text features of them",
            fix=f"add class_embeddings [C, D] (and logit_scale) of the same model to the .npz{without}",
        )
    if not method.requires.text and (
        settings.describe_with is not None or (settings.descriptions is not None and annotator is None)
    ):
        raise ConfigError(f"{name} reads no descriptions", fix="leave them out, or choose --method cap")
    return Plan(
        settings=settings,
        run=run,
        accelerator=accelerator,
        prepared=prepared,
        name=name,
        method=method,
        cfg=cfg,
        views=views,
        model=model,
        templates=templates,
        encoder=encoder,
        annotator=annotator,
        texts=wanted_descriptions(settings.descriptions, table.class_names) if annotator is None else {},
        words=_vocabulary(settings.vocabulary, encoder, method, views, templates),
        budget=budget,
        clock=clock,
        found=found,
        is_spared=is_spared,
        seconds=time.monotonic() - began,
    )


def _at_hand(settings: FitSettings, run: Run) -> tuple[Any, AtHand | None]:
    """The data, or a table of them, and the model to take where the user names none.

    Of a run that is resumed the one it began with. Of few images it takes no network, unless training is asked for.
    """
    data = settings.data
    if settings.model != "auto" or not settings.pretrained or settings.freeze or is_embeddings(data):
        return data, None
    if before := _resolved_before(run):
        return data, AtHand(**before["found"]) if before.get("found") else None
    found = at_hand.at_hand()
    asks_for_training = settings.views == "pixels" or settings.minutes is not None or bool(settings.overrides)
    if found is not None or asks_for_training or settings.method != "auto" or settings.annotator is not None:
        return data, found
    table = read(
        data,
        classes=settings.classes,
        group=settings.group,
        annotators=column_names(settings.annotator_columns),
        columns=columns_of(settings),
        decoding=_decoding(settings),
    )
    return table, without_network(table, novel=settings.novel)


def _decoding(settings: FitSettings) -> Decoding | None:
    return Decoding.chosen(largest_image=settings.largest_image, exact_decoding=settings.exact_decoding)


def own_nets(settings: FitSettings, model: str, size_px: int) -> OwnNets:
    """Networks that learn from pixels, as a run builds them."""
    return OwnNets(model, size_px, settings.pretrained, tuple(settings.freeze), settings.seed)


def _clock(
    settings: FitSettings, run: Run, prepared: Prepared, model: str, cfg: TrainSettings, accelerator: Accelerator
) -> Clocked:
    """Measure the network that will learn; of a run that is resumed, take what it measured."""
    n_test = 0 if prepared.test is None else len(prepared.test.table)
    nets = own_nets(settings, model, prepared.size_px)
    return clocked(
        lambda: nets(len(prepared.train.table.class_names)),
        prepared.train.views(prepared.view),
        batch_size=cfg.batch_size,
        device=accelerator.device,
        precision=settings.precision,
        minutes=settings.minutes,
        n_scored=n_test * settings.evaluations,
        n_processes=accelerator.num_processes,
        accumulate=settings.accumulate,
        known=_resolved_before(run).get("images_per_second"),
    )


def _resolved_before(run: Run) -> dict[str, Any]:
    """What became of the settings when the run that is resumed began; empty for a new one."""
    return dict(run.read("config.yaml").get("resolved", {})) if run.has_begun else {}


def _with_preset(settings: FitSettings) -> FitSettings:
    """The settings of the run that go with a preset, where the user gave none.

    Raises: ConfigError where the user gave what the preset cannot have, or the method: that should not wait for the
      data to be read.
    """
    if settings.method == "auto":
        if settings.preset == "practical":
            return settings
        raise ConfigError(
            "--preset paper is the recipe of one paper", fix="name its method: --method cap, coreg, cvs or lps"
        )
    method = method_named(settings.method)
    on_features = settings.views == "embeddings" or is_embeddings(settings.data)
    wanted = method.run_presets.get(settings.preset, {})
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    if wanted.get("views") == "pixels" and on_features:
        raise ConfigError(
            f"--preset {settings.preset} of {settings.method} trains the network, which embeddings leave out",
            fix="give the images with --views pixels, or leave --preset out",
        )
    resolve_config(method.on_features() if on_features else method, settings.overrides, preset=settings.preset)
    missing = {key: value for key, value in wanted.items() if getattr(settings, key) == defaults[key]}
    return dataclasses.replace(settings, **missing)  # type: ignore[arg-type]


def _annotator(
    settings: FitSettings, name: str, method: Method, table: LabelTable, model: str, templates: str, *, are_feats: bool
) -> Annotator | None:
    """Who gives the training images candidate labels; None if no annotator is needed.

    Raises: ConfigError, DataError or OfflineError for what cannot work.
    """
    if not method.requires.candidates:
        if settings.annotator is not None:
            raise ConfigError(f"{name} asks no annotator", fix="leave --annotator out, or choose --method coreg")
        return None
    if table.candidates is not None and len(table.candidates.classes):
        if settings.annotator is not None:
            raise ConfigError(
                "the data have candidates, and --annotator would make others",
                fix="leave --annotator out, or give the images without the column `candidates`",
            )
        if settings.descriptions is not None:
            raise ConfigError(
                "the data have candidates, and descriptions would not be used",
                fix="leave --descriptions out; `labelwright annotate` uses them to make candidates",
            )
        return None
    if are_feats:
        raise ConfigError(
            f"{name} learns from candidates, and these embeddings have none; no annotator can be shown embeddings",
            fix="add a column `candidates`, or give the images",
        )
    if settings.annotator is None and (model in ("auto", *OWN) or not settings.pretrained or not is_two_tower(model)):
        raise ConfigError(
            f"{name} learns from candidates: the data have none, and no model is named that could give them",
            fix="name one with --annotator, e.g. openai/clip-vit-base-patch32, or give a table with candidates",
        )
    asked = Annotator(
        model if settings.annotator is None else str(settings.annotator),
        rule=settings.rule,
        top_k=settings.top_k,
        ratio=settings.ratio,
        templates=templates,
        chat_url=None if settings.annotator is None else settings.chat_url,
        phrasings=settings.phrasings,
        seed=settings.seed,
    )
    asked = checked(asked, has_descriptions=settings.descriptions is not None)
    return dataclasses.replace(asked, descriptions=wanted_descriptions(settings.descriptions, table.class_names))


def _vocabulary(
    path: str | Path | None, encoder: Encoder | None, method: Method, views: Views, templates: str
) -> dict[str, torch.Tensor] | None:
    """Names offered to discovered classes, with their text features."""
    if path is None:
        return None
    if encoder is None or encoder.tower is None or views != "embeddings" or not method.requires.novel:
        raise ConfigError(
            "a vocabulary names discovered classes by a two-tower model on embeddings, and this run has none",
            fix="add --novel auto and --model openai/clip-vit-base-patch32, or leave --vocabulary out",
        )
    words = list(dict.fromkeys(read_names(Path(path))))
    if not words:
        raise ConfigError(f"no word in {path}", fix="write one per line")
    return dict(zip(words, concepts_of(encoder.tower, words, templates=templates).feats, strict=True))


def choose_method(method: str, prepared: Prepared, *, has_text: bool, has_features: bool = True) -> tuple[str, Method]:
    """The method asked for, or the one that fits the situation.

    Args:
      has_text, has_features: see `data.situation.Situation.method`.

    Raises: ConfigError if it knows named classes only and there are others; DataError if it needs labels and there are
      none.
    """
    situation = prepared.situation
    name = situation.method(has_text=has_text, has_features=has_features) if method == "auto" else method
    chosen = method_named(name)
    if situation.n_novel is not None and not chosen.requires.novel:
        others = [key for key, each in METHODS.items() if each.requires.novel]
        raise ConfigError(
            f"{name} learns the named classes only, and --novel says there are others",
            fix=f"leave --novel out, or choose one of {', '.join(others)}",
        )
    needs_labels = chosen.requires.labels and not (chosen.requires.or_text and has_text)
    if needs_labels and not (prepared.train.table.labels >= 0).any():
        others = [key for key, each in METHODS.items() if each.requires.text and not each.requires.labels]
        raise DataError(
            f"method {name} needs labels, and no training image has one",
            fix="label some images first"
            + (f", or choose a method that reads class names alone: {', '.join(others)}" if has_text else ""),
        )
    return name, chosen


def choose_views(
    settings: FitSettings,
    chosen: Method,
    cfg: TrainSettings,
    *,
    are_feats: bool,
    is_two_tower: bool,
    model: str | None = None,
) -> Views:
    """What the method sees; of the user's own embeddings (``are_feats``) these. ``model``: in place of the setting.

    Raises: ConfigError for what cannot be.
    """
    views, pretrained = settings.views, settings.pretrained
    model = str(settings.model) if model is None else model
    if are_feats:
        if views == "pixels" or model != "auto":
            what = "--views pixels" if views == "pixels" else f"--model {model}"
            raise ConfigError(f"the data are embeddings: {what} has nothing to work on", fix=f"leave {what} out")
        return "embeddings"
    is_own = model in ("auto", *OWN)
    if chosen.requires.text and is_own:
        why = "no model is named that can" if model == "auto" else f"{model} cannot"
        raise ConfigError(
            f"this method reads class names, and {why}",
            fix="name a vision-language model: --model openai/clip-vit-base-patch32, or a folder with one "
            "(labelwright/digits-clip is inside the package and knows digits only)",
        )
    if chosen.requires.text and not pretrained:
        raise ConfigError("random weights know no class names", fix="leave --no-pretrained out")
    if views == "auto":
        return chosen.default_views(cfg, is_two_tower=is_two_tower)
    if views == "embeddings" and (is_own or not pretrained):
        raise ConfigError(
            "embeddings need a pretrained encoder", fix="name one with --model, e.g. openai/clip-vit-base-patch32"
        )
    return views
