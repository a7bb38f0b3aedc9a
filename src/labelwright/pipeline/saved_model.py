"""A trained classifier on disk: model.safetensors, config.json and a model card, rebuilt without the network."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labelwright import checksums
from labelwright.data.checks import OnBad
from labelwright.data.images import Decoding
from labelwright.data.prepare import Source, is_embeddings, open_embeddings, open_source, resolved_path
from labelwright.data.table import LabelTable
from labelwright.data.values import INTEGER, canonical
from labelwright.data.views import ViewSettings
from labelwright.encoders import backbones
from labelwright.encoders.saved import FORMAT
from labelwright.errors import ConfigError, DataError
from labelwright.parsing import json_of
from labelwright.replacing import replacing
from labelwright.reporting.verdict import DOUBTED
from labelwright.reporting.words import is_doubted
from labelwright.run_folder import write_text_atomically
from labelwright.train.predict import Answers, answer, joined, odds_of, share_of
from labelwright.train.processes import accelerator_for, gather_objects
from labelwright.trust.calibration import Calibration, with_evidence
from labelwright.trust.pixel_votes import PixelVotes
from labelwright.trust.pixel_votes import from_tensors as votes_of_tensors
from labelwright.trust.strangers import AT_ONCE, Strangers, from_tensors, small_pixels

STRANGERS_FILE = "strangers.safetensors"  # of a model folder; older ones have none

CONFIG_KEY = "labelwright"  # of the header of a .safetensors file that is a whole model
STRANGERS_PREFIX = "strangers."  # of names in such a file


@dataclass(frozen=True)
class SavedModel:
    """A classifier ready to predict."""

    net: nn.Module  # the network, in evaluation mode
    class_names: tuple[str, ...]  # C names, in class order
    size_px: int  # side of the square images it takes
    view: ViewSettings  # how pixels are normalised (the augmentation fields play no part in prediction)
    info: Mapping[str, Any]  # everything else in config.json
    outputs: tuple[int, ...] = ()  # class of each output of ``net``, -1 = none (dropped); empty: they are the classes
    strangers: Strangers | None = None  # what tells images of no class; None if nothing does
    votes: PixelVotes | None = None  # what pixels say of labels; None if nothing does

    @property
    def calibration(self) -> Calibration:
        """What turns its probabilities into the chance of being right; of a model without one, nothing does."""
        return Calibration(**self.info.get("calibration", {}))

    @property
    def decoding(self) -> Decoding:
        """How the images that it learned from were decoded; others are decoded alike."""
        return Decoding(**self.info.get("decoding", {}))

    def as_in_the_run(self, odds: Tensor, predicted: Tensor) -> Tensor:
        """Log-odds [B, T] with what the run added to those of its own images by predicted class [B], if anything.

        See `trust.class_shares`: for images that show the classes in the same shares.
        """
        shift = self.info.get("class_shift")
        return odds if shift is None else with_evidence(odds, torch.tensor(shift)[predicted.cpu()].to(odds.device))

    def trust_of(self, probs: Tensor, x: Tensor) -> Tensor:
        """The chance [B] that the most probable class is right, of probabilities [B, C] of clean views or features."""
        odds = odds_of(probs)
        if self.votes is not None:
            odds = with_evidence(odds, self.votes.evidence(small_pixels(x), probs.argmax(1)))
        if self.info.get("is_verified"):
            odds = self.as_in_the_run(odds, probs.argmax(1))
        return self.calibration.chance(odds)

    def probs(self, x: Tensor) -> Tensor:
        """Probabilities [B, C] of clean views [B, 3, size_px, size_px]."""
        logits: Tensor = self.net(x).float()
        if not self.outputs:
            return logits.softmax(dim=1)
        of = torch.tensor(self.outputs, device=logits.device)
        kept = of >= 0
        probs = logits[:, kept].softmax(dim=1)
        return probs.new_zeros(len(x), len(self.class_names)).index_add_(1, of[kept], probs)


@dataclass(frozen=True)
class Strange:
    """How unlike the training images N images are."""

    strangers: Strangers  # what marks them
    scores: Tensor  # [N] float32, see `trust.strangers`; above 1: of no class
    feats: Tensor  # [M, D] float32 features of the M images of no class, in order


def save_model(
    folder: Path,
    net: backbones.Classifier | backbones.Ensemble,
    *,
    class_names: tuple[str, ...],
    size_px: int,
    view: ViewSettings,
    info: Mapping[str, Any],
    card: str = "",
) -> None:
    """Write a classifier as ``model.safetensors``, ``config.json`` and, given a ``card``, ``README.md``.

    Args:
      folder: made if absent.
      net: a Classifier of encoders.backbones, or an Ensemble of some.
      class_names, size_px, view: see `SavedModel`.
      info: what else a reader should know: method, data fingerprint, scores; JSON-ready.
      card: text of the model card; empty: it comes later.

    Raises: DiskError if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in net.state_dict().items()}
    with replacing(folder / "model.safetensors", durable=True) as temporary:
        save_file(tensors, str(temporary), metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "classifier": backbones.classifier_config(net),
        "class_names": list(class_names),
        "size_px": size_px,
        "view": asdict(view),
        **info,
    }
    write_text_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    if card:
        write_text_atomically(folder / "README.md", card)


def add_to_model(
    folder: Path, *, card: str, strangers: Strangers | None, votes: PixelVotes | None = None, **info: Any
) -> None:
    """Write what is known of a saved model only once it has answered.

    Args:
      folder: by `save_model`.   card: text of the model card.
      strangers, votes: go into a file of their own beside the model.
      info: keys of config.json, new or in place of what is there; JSON-ready.
    """
    if tensors := _beside(strangers, votes):
        with replacing(folder / STRANGERS_FILE) as temporary:
            save_file(tensors, str(temporary), metadata={"format": "pt"})
    config = json_of((folder / "config.json").read_text(encoding="utf-8")) | info
    write_text_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_text_atomically(folder / "README.md", card)


def _beside(strangers: Strangers | None, votes: PixelVotes | None) -> dict[str, Tensor]:
    """What is kept beside the weights."""
    return {} if strangers is None else strangers.tensors() | ({} if votes is None else votes.tensors())


def change_classes(folder: Path, class_names: Sequence[str], outputs: Sequence[int] = ()) -> None:
    """Give the C classes of a saved model, which `load_model` has read, other names, and its outputs other classes.

    Args:
      outputs: as in `SavedModel`; empty: they stay as they are.
    """
    path = folder / "config.json"
    config = json_of(path.read_text(encoding="utf-8")) | {"class_names": list(class_names)}
    if outputs:
        config["outputs"] = list(outputs)
    write_text_atomically(path, json.dumps(config, indent=2) + "\n")


def write_card(folder: Path, summary: Mapping[str, Any]) -> None:
    """The card of a saved model anew, where its classes have changed, by the summary.json of its run."""
    version = json_of((folder / "config.json").read_text(encoding="utf-8")).get("labelwright", "")
    write_text_atomically(folder / "README.md", model_card(summary, tuple(summary["class_names"]), version))


def write_single_file(folder: Path, path: Path) -> None:
    """The model of a folder that `save_model` wrote as one .safetensors file, its config.json in the header."""
    config, tensors, strangers, votes = _read(folder)
    tensors |= {STRANGERS_PREFIX + name: value for name, value in _beside(strangers, votes).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt", CONFIG_KEY: json.dumps(without_paths(config))}
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata=header)


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config.json with the name of the folder, and not its path, where its network came from a folder."""
    classifier = dict(config["classifier"])
    name = str(classifier["name"])
    place = Path(name).expanduser()  # exported elsewhere, it need not be there
    classifier["name"] = public = place.name if place.is_absolute() or place.exists() else name
    if "_name_or_path" in (own := classifier.get("transformers") or {}):
        classifier["transformers"] = {**own, "_name_or_path": public}
    return {**config, "classifier": classifier}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], Strangers | None, PixelVotes | None]:
    """config.json, the weights, what tells images of no class, and what votes on labels."""
    strange: dict[str, Tensor] = {}
    if folder.is_file():
        with safe_open(str(folder), framework="pt") as file:
            config = json_of((file.metadata() or {})[CONFIG_KEY])
        tensors = load_file(str(folder))
        for name in [name for name in tensors if name.startswith(STRANGERS_PREFIX)]:
            strange[name.removeprefix(STRANGERS_PREFIX)] = tensors.pop(name)
    else:
        try:
            config = json_of((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"config.json is not JSON: {error}") from error
        tensors = load_file(str(folder / "model.safetensors"))
        if (folder / STRANGERS_FILE).exists():
            strange = load_file(str(folder / STRANGERS_FILE))
    return config, tensors, from_tensors(strange) if strange else None, votes_of_tensors(strange)


def load_model(folder: Path, *, device: torch.device) -> SavedModel:
    """Read a classifier written by `save_model`; needs no network and none of the training data.

    Args:
      folder: that was written; a finished run, whose folder ``model`` it is; or a file by `write_single_file`.

    Raises: DataError if a file is missing, of another format or altered, or if the model tells no classes apart.
    """
    try:
        folder = folder / "model" if (folder / "model").is_dir() else folder
        config, tensors, strangers, votes = _read(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        why, fix = f" ({error})", "give the run folder of a finished fit"
        if not folder.exists():
            why = ": there is no such folder"
        elif (folder / "config.yaml").is_file() and not (folder / "model").exists():
            why, fix = ": the run has not finished", "continue it: the same fit with --resume"
        raise DataError(f"no model in {folder}{why}", fix=fix) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        config = config if isinstance(config, dict) else {}
        raise DataError(f"{folder}/config.json has format {config.get('format')}", fix="use the version that wrote it")
    if not config["class_names"]:
        raise DataError(
            f"the model in {folder} is a pretrained backbone and knows no classes",
            fix=f"train it to know some: labelwright fit DATA --model {folder.parent} --out RUN",
        )
    for name in () if folder.is_file() else ("config.json", "model.safetensors", STRANGERS_FILE):
        checksums.check(folder / name)
    try:
        net = backbones.from_config(config.pop("classifier"))
        net.load_state_dict(tensors)
        view: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in config.pop("view").items()
        }
        saved = SavedModel(
            net=net,
            class_names=tuple(map(str, config.pop("class_names"))),
            size_px=int(config.pop("size_px")),
            view=ViewSettings(**view),
            outputs=tuple(map(int, config.pop("outputs", ()))),
            strangers=strangers,
            votes=votes,
            info=config,
        )
        n_outputs = net.first.n_outputs if isinstance(net, backbones.Ensemble) else net.n_outputs
        fits = len(saved.outputs) == n_outputs if saved.outputs else len(saved.class_names) == n_outputs
        if not fits or max(saved.outputs, default=0) >= len(saved.class_names):
            raise ValueError(f"{len(saved.class_names)} class names for {n_outputs} outputs")
        Calibration(**saved.info.get("calibration", {}))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ConfigError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{folder / 'config.json'} does not describe the model beside it: {type(error).__name__}, {words}",
            fix="restore it from a copy of the run, or fit anew",
        ) from error
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.eval()
    return saved


def renamed(class_names: Sequence[str], renames: Mapping[str, str]) -> tuple[str, ...]:
    """Class names with some of them changed.

    Blanks at the ends of a new name go.

    Raises: ConfigError for a name that is not there, one that would be there twice, and a new one that no table of
      labels could hold.

    Example:
      >>> renamed(["cat", "novel-1"], {"novel-1": "okapi "})
      ('cat', 'okapi')
    """
    texts = [*renames, *renames.values()] if isinstance(renames, Mapping) else [renames]
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise ConfigError(f"rename: {odd[0]!r} is no name", fix="give {old name: new name}")
    for old in renames:
        if old not in class_names:
            raise ConfigError(
                f"the model has no class {old!r} to rename", fix=f"its classes: {', '.join(class_names[-12:])}"
            )
    has_numbers = any(INTEGER.fullmatch(name) for name in class_names)
    new = {old: _readable(name, old, has_numbers=has_numbers) for old, name in renames.items()}
    names = tuple(new.get(name, name) for name in class_names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two classes would be named {twice[0]!r}", fix="give each class a name of its own")
    return names


def _readable(name: str, old: str, *, has_numbers: bool) -> str:
    """A new name of a class, as labels are read.

    Raises: ConfigError where no table of labels could hold it.
    """
    if name == old:
        return name
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise ConfigError(f"{old!r} would have an empty name", fix="give it a name")
    if any(unicodedata.category(each) == "Cc" for each in name):
        raise ConfigError(f"the name {name!r} is more than one line", fix="give a name without line breaks and tabs")
    if canonical([name]) == [None]:
        raise ConfigError(f"{name!r} stands for a label that is missing, in any table", fix="give it another name")
    if not has_numbers and INTEGER.fullmatch(name):
        raise ConfigError(f"{name!r} would be read as the number of a class", fix=f"give it a name, as class {name}")
    return name


def answers_for(
    saved: SavedModel,
    data: Any,
    *,
    on_bad: OnBad,
    device: str,
    precision: str,
    classes: Sequence[str] | None,
    columns: Mapping[str, str] | None = None,
    only_images: bool = False,
    answered_by: str | None = None,
    cache_limit_gb: float = 16.0,
    first_number: int | None = None,
    shared: bool = False,
) -> tuple[LabelTable, Answers, Strange | None]:
    """What a saved model says of any images, or of embeddings if it was trained on such; with their table.

    Args: answered_by: see `prepare.read`.   shared: see `answers_of_source`.

    Returns: table, answers, and how strange the images are; None of a model that cannot tell.
    """
    source = _source_for(
        saved,
        data,
        on_bad=on_bad,
        classes=classes,
        columns=columns,
        only_images=only_images,
        answered_by=answered_by,
        cache_limit_gb=cache_limit_gb,
        first_number=first_number,
    )
    answers, strange = answers_of_source(saved, source, device=device, precision=precision, shared=shared)
    return source.table, answers, strange


def _source_for(
    saved: SavedModel,
    data: Any,
    *,
    on_bad: OnBad,
    classes: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    only_images: bool,
    answered_by: str | None,
    cache_limit_gb: float,
    first_number: int | None,
) -> Source:
    """The images as the model takes them, or embeddings."""
    how: dict[str, Any] = {"classes": classes, "on_bad": on_bad, "columns": columns, "only_images": only_images}
    if saved.size_px == 0:
        source = open_embeddings(data, **how)
        check_fits(saved, source, resolved_path(data))
        return source
    if is_embeddings(data):
        raise DataError(
            f"{resolved_path(data)} holds embeddings, and the model was trained on images", fix="give the images"
        )
    return open_source(
        data,
        size_px=saved.size_px,
        cache_limit_gb=cache_limit_gb,
        answered_by=answered_by,
        first_number=first_number,
        decoding=saved.decoding,
        **how,
    )


def check_fits(saved: SavedModel, source: Source, where: str) -> None:
    """Refuse images for a model of embeddings, embeddings for one of images, and embeddings of another length.

    Raises: DataError naming ``where``.
    """
    net: Any = saved.net
    if (saved.size_px == 0) != (source.stored is not None):
        holds, wants = ("images", "embeddings") if saved.size_px == 0 else ("embeddings", "images")
        raise DataError(f"{where} holds {holds}, and the model was trained on {wants}", fix=f"give the {wants}")
    n_features = getattr(net, "first", net).n_features
    if source.stored is not None and source.stored.n_features != n_features:
        raise DataError(
            f"{where} holds embeddings of {source.stored.n_features} features; the model was trained on {n_features}",
            fix="embed these images with the model that embedded the training images",
        )


def answers_of_source(
    saved: SavedModel, source: Source, *, device: str, precision: str, shared: bool = False
) -> tuple[Answers, Strange | None]:
    """What a saved model says of images that are decoded, or of embeddings, see `check_fits`; how strange they are.

    Args: shared: whether every process of a launcher is here, to answer for its share.
    """
    net: Any = saved.net
    views, strangers = source.views(saved.view), saved.strangers
    on, every = accelerator_for(device).device, torch.arange(views.n_rows)
    rows = share_of(every) if shared else every
    seen, strange, evidence = list[Tensor](), list[Tensor](), list[Tensor]()
    scores, n_scored = torch.empty(len(rows)), 0

    def probs(x: Tensor) -> Tensor:
        nonlocal n_scored
        seen.clear()
        found = saved.probs(x)
        if saved.votes is not None:
            with torch.autocast(x.device.type, enabled=False):
                evidence.append(saved.votes.evidence(small_pixels(x), found.argmax(1)).cpu())
        if strangers is not None:
            looks = (seen[0].float(), *([small_pixels(x)] if x.ndim == 4 else []))
            parts = zip(*(torch.split(look, AT_ONCE) for look in looks), strict=True)
            own = scores[n_scored : n_scored + len(x)]
            torch.cat([strangers.score(part) for part in parts], out=own)
            n_scored += len(x)
            strange.append(looks[0].cpu()[own > 1])
        return found

    hook = net.backbone.register_forward_hook(lambda module, x, feats: seen.append(feats))
    answers = answer(probs, views, rows, device=on, precision=precision, description="labelling")
    hook.remove()
    if shared:
        answers = joined(gather_objects(answers))
        scores = torch.cat(gather_objects(scores))
        strange, evidence = (
            [each.cpu() for part in gather_objects(some) for each in part] for some in (strange, evidence)
        )
    if evidence:
        answers = replace(answers, odds=with_evidence(answers.odds, torch.cat(evidence)))
    if saved.info.get("is_verified"):  # what was verified, and promised by it, is of images like the run's
        answers = replace(answers, odds=saved.as_in_the_run(answers.odds, answers.predicted))
    return answers, None if strangers is None else Strange(strangers, scores, torch.cat(strange))


def model_card(summary: Mapping[str, Any], class_names: tuple[str, ...], version: str) -> str:
    """README.md of a saved model, in the hub's model-card format."""
    test, base = summary.get("test") or {}, str(summary["encoder"])
    is_of_hub = "/" in base and not Path(base).expanduser().exists()
    is_stored = base == "none"
    noun, place = ("embeddings", "new-embeddings.npz") if is_stored else ("images", "photos/")
    learned_on = "no network: embeddings as given" if is_stored else f"backbone `{base}`"
    lines = [
        "---",
        "library_name: labelwright",
        *([] if is_stored else ["pipeline_tag: image-classification"]),
        "license: other  # choose one that the pretrained backbone and your data allow",
        *([f"base_model: {base}"] if is_of_hub else []),
        "---",
        f"# Classifier of {noun}, {len(class_names)} classes",
        "",
        f"Trained by labelwright {version} with method `{summary['method']}` on {summary['n_images']:,} {noun}, "
        f"{summary['n_labelled']:,} of them labelled (situation: {summary['situation']}), {learned_on}, seed "
        f"{summary['seed']}.",
        "",
    ]
    detects = (summary.get("strangers") or {}).get("threshold") is not None
    n_seen = summary.get("n_seen") or len(class_names)
    answer = summary.get("answer") or {"name": summary["method"]}
    if answer["name"] != summary["method"]:
        lines += [f"It is the answer of {answer['title']}: {answer['why']}.", ""]
    if summary.get("n_fitted", 0) > summary["n_images"]:
        n_more = summary["n_fitted"] - summary["n_images"]
        lines += [f"Once scored, it was fitted anew with the {n_more:,} {noun} that had been held out.", ""]
    if test:
        lines += [f"| score on the test {noun} | value |", "|---|---|"]
        for key in ("accuracy", "balanced_accuracy", "many", "medium", "few"):
            if test.get(key) is not None:
                lines.append(f"| {key.replace('_', ' ')} | {test[key]:.4f} |")
        lines.append("")
    lines += [
        "Use it, on this folder or the run that it came from:",
        "",
        "```python",
        "import labelwright as lw",
        f'labels = lw.label("THIS_FOLDER", "{place}")  # label, trust, runner-up and decision of each',
        "```",
        "",
        f"**Intended use.** Sorting {noun} like those that it was trained on into the classes below. `trust` is the "
        "estimated chance that a label is right: let people look where it is low."
        + (f" The decision of {noun} that look like no class is `unknown`." if detects else ""),
        "",
        f"**Limits.** {_basis(summary.get('trust') or {}, noun)} {noun.capitalize()} from another source (camera, "
        "place, season) may be labelled worse than these scores say: check a sample of them first.",
        "",
        "Classes: " + ", ".join(class_names[:n_seen]),
        *(
            ["", "Discovered, confirmed by no label: " + ", ".join(class_names[n_seen:])]
            if class_names[n_seen:]
            else []
        ),
        "",
    ]
    return "\n".join(lines)


def _basis(trust: Mapping[str, Any], noun: str) -> str:
    """What `trust` rests on: a sentence."""
    if trust.get("source") == "left-out labels":
        off = f", and was off by {trust['ece']:.1%} on the test {noun}" if trust.get("ece") is not None else ""
        return f"Trust was calibrated on {trust['n']:,} labels that were left out{off}."
    if is_doubted(trust):
        return f"No label was left out to check trust, and {DOUBTED}: it is about the chance of a guess."
    if trust.get("source") == "text model":
        return "No label was left out to check trust: it rests on how sure the text model was, and may be off."
    return "Trust was not checked on any label: read it as a ranking."
