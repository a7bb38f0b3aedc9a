"""The verbs of the command line: their flags, their help, and examples of each."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro

from labelwright.errors import ConfigError
from labelwright.exporting import Format
from labelwright.pipeline.settings import GROUPS, REQUIRED, default_words, fields, hints_of_fit, setting

POSITIONAL = ("data", "run", "first", "second", "method", "action", "names")


def flag(hint: Any, default: Any, text: str, example: str = "") -> tuple[Any, Any]:
    """Type of a flag and its `setting`."""
    return hint, setting(default, text, example)


RUN = flag(str, REQUIRED, "finished run folder", "run")
YES = flag(bool, False, "ask a chat model without waiting for a yes; needed when not on a terminal")
ENGINE = flag(
    Literal["local", "ray"],
    "local",
    "where shards are worked on: this machine, or the Ray cluster that RAY_ADDRESS names",
    "--engine ray",
)
SHARD_ROWS = flag(
    int | None,
    None,
    "write a folder of Parquet files, one for so many rows, which a repeated command completes; for data beyond memory",
    "--shard-rows 65536",
)


def verb(name: str, text: str, *order: str, **own: tuple[Any, Any]) -> type[Any]:
    """A verb's dataclass.

    Args:
      order: names of its flags: those that it shares with `fit`, and own ones that come before or between them.
      own: its own flags, see `flag`.
    """
    hints = hints_of_fit()
    flags = {field.name: (hints[field.name], field) for field in fields()} | own
    members = []
    for key in dict.fromkeys([*order, *own]):
        hint, field = flags[key]
        default = dataclasses.field(default=field.default, metadata=field.metadata)
        members.append((key, _annotated(key, hint, field), default))
    return _dataclass(name, text, members)


def _dataclass(name: str, text: str, members: Sequence[tuple[str, Any, Any]]) -> type[Any]:
    """A dataclass as tyro takes it; its text is the help."""
    return dataclasses.make_dataclass(name, members, frozen=True, kw_only=True, namespace={"__doc__": text})


def is_positional(field: dataclasses.Field[Any]) -> bool:
    """Whether a setting is given by its place and not by a flag.

    Example:
      >>> [is_positional(field) for field in fields_of("label")][:3]
      [True, True, False]
    """
    return field.name in POSITIONAL and field.default is REQUIRED


def _annotated(key: str, hint: Any, field: dataclasses.Field[Any]) -> Any:
    words, default = field.metadata["text"], field.default
    if key in POSITIONAL and default is REQUIRED:
        return Annotated[
            hint, tyro.conf.Positional, tyro.conf.arg(metavar=key.upper(), help=words, help_behavior_hint="")
        ]
    is_plain = default in (REQUIRED, None, ()) or hint is bool
    hints = [] if is_plain else [f"default: {default_words(default)}"]
    hints += [f"as {example}"] if (example := field.metadata["example"]).startswith("-") else []
    hint_words = f"({'; '.join(hints)})" if hints else ""
    shown = tyro.conf.arg(metavar=_metavar(hint), help=words, help_behavior_hint=hint_words)
    return Annotated[hint, shown]


def _metavar(hint: Any) -> str | None:
    """What a flag takes, as help shows it; None for on and off, and for words of a list.

    Example:
      >>> _metavar(float | None), _metavar(tuple[str, ...]), _metavar(Literal["a", "b"])
      ('X', 'TEXT ...', None)
    """
    kinds = {str: "TEXT", int: "N", float: "X"}
    if isinstance(hint, types.UnionType):
        found = {_metavar(each) for each in typing.get_args(hint) if each is not type(None)}
        return found.pop() if len(found) == 1 else None
    if typing.get_origin(hint) is tuple:
        return f"{kinds.get(typing.get_args(hint)[0], 'TEXT')} ..."
    return kinds.get(hint)


def fit_verb(defaults: Mapping[str, Any]) -> type[Any]:
    """`fit`: every setting, in its group.

    Args:
      defaults: of a config.yaml, in place of the settings' own.
    """
    hints, groups = hints_of_fit(), list[tuple[str, Any, Any]]()
    for title, group in GROUPS.items():
        own: list[tuple[str, Any, Any]] = []
        for field in dataclasses.fields(group):
            default, hint = defaults.get(field.name, field.default), hints[field.name]
            hint = hint | None if default is None else hint  # data that no word says, as a list, may be left out
            own.append((field.name, _annotated(field.name, hint, field), dataclasses.field(default=default)))
        made = _dataclass(f"Fit{title.title()}", group.__doc__ or "", own)
        is_required = any(default.default is REQUIRED for _, _, default in own)
        groups.append((title, made, dataclasses.field() if is_required else dataclasses.field(default_factory=made)))
    config = Annotated[
        str | None, tyro.conf.arg(help="config.yaml of a run to repeat; other flags change its settings")
    ]
    groups.append(("config", config, dataclasses.field(default=None)))
    made = _dataclass("Fit", "Train a classifier; writes a run folder with model, labels, scores and report.", groups)
    return tyro.conf.configure(tyro.conf.OmitArgPrefixes)(made)


VERBS: dict[str, Callable[..., Any]] = {
    "demo": verb(
        "Demo",
        "The offline first run: real handwritten digits without labels, sorted by their class names alone.",
        out=flag(str, "demo-run", "folder; each demo gets a numbered folder of its own in it"),
    ),
    "inspect": verb(
        "Inspect",
        "Say what is in the data, what is wrong with it, and what `fit` would run. Writes nothing.",
        *("data", "test", "classes", "novel", "group", "image_column", "label_column", "split_column"),
        *("candidates_column", "annotator_columns", "largest_image"),
        test=flag(
            str | None, None, "images to score on, looked through with the others as fit would", "--test test.csv"
        ),
        check_images=flag(bool, True, "decode every image in full; without it broken files are not found"),
    ),
    "audit": verb(
        "Audit",
        "Find labels that are probably wrong, copies, classes that look like one, outliers and odd images.",
        *("data", "run", "test", "classes", "group", "image_column", "label_column", "split_column", "on_bad", "seed"),
        *("device", "precision", "largest_image"),
        run=flag(str | None, None, "finished run whose pretrained model gives the features", "--run run"),
        test=flag(str | None, None, "images to score on, looked through for copies of the others", "--test test.csv"),
        model=flag(
            str,
            "auto",
            "whose features are compared: auto (one that is on this machine, else colours and edges), none, or a "
            "pretrained model by id or path",
            "--model openai/clip-vit-base-patch32",
        ),
        out=flag(
            str | None, None, ".csv or .parquet file to write, a row per image; must not exist", "--out audit.csv"
        ),
        fail_on=flag(
            tuple[str, ...],
            (),
            "exit with 1 if one of these is found: wrong, duplicates, two_labels, copies_in_test, outliers, odd, alike",
            "--fail-on wrong copies_in_test",
        ),
        engine=ENGINE,
        shard_rows=SHARD_ROWS,
        json=flag(bool, False, "print the summary as JSON"),
    ),
    "fit": fit_verb({}),
    "pretrain": verb(
        "Pretrain",
        "Train a backbone on images without looking at labels; writes a run folder for `fit --model`.",
        *(
            "data",
            "out",
            "model",
            "epochs",
            "minutes",
            "seed",
            "device",
            "precision",
            "size",
            "flip",
            "resume",
            "on_bad",
        ),
        *("accumulate", "checkpoint_minutes", "cache_limit_gb", "largest_image", "exact_decoding", "set"),
    ),
    "embed": verb(
        "Embed",
        "Write features of images by a model of your own, a Python function or an ONNX file, for `fit` to read.",
        *("data", "classes", "group", "image_column", "label_column", "split_column", "candidates_column"),
        *("annotator_columns", "on_bad", "device", "precision", "largest_image"),
        out=flag(str, REQUIRED, ".npz or .parquet file, of shards a folder; must not exist", "--out feats.npz"),
        function=flag(
            str | None,
            None,
            "from a list of RGB images to [n, D] numbers: MODULE:NAME or FILE.py:NAME",
            "--function my.py:embed",
        ),
        onnx=flag(str | None, None, "an exported network from pixels to features, instead", "--onnx net.onnx"),
        model=flag(
            str | None,
            None,
            "a pretrained model by id or path (CLIP, SigLIP, any vision model), instead",
            "--model openai/clip-vit-base-patch32",
        ),
        size=flag(int | None, None, "side in px that the ONNX network sees; none: as it was exported", "--size 224"),
        mean=flag(tuple[float, float, float], (0.485, 0.456, 0.406), "of its pixels in 0 to 1, per channel"),
        std=flag(tuple[float, float, float], (0.229, 0.224, 0.225), "what they are divided by, per channel"),
        batch_size=flag(int, 64, "images at once", "--batch-size 16"),
        engine=ENGINE,
        shard_rows=SHARD_ROWS,
    ),
    "annotate": verb(
        "Annotate",
        "Give every image candidate labels, with a vision-language model or one that chats; writes a table for `fit`.",
        *("data", "classes", "image_column", "label_column", "rule", "top_k", "ratio", "descriptions", "chat_url"),
        *("phrasings", "seed", "on_bad"),
        *("device", "precision", "cache_limit_gb", "largest_image", "exact_decoding"),
        model=flag(str, REQUIRED, "CLIP, SigLIP or LLaVA by id or path; with --chat-url its name at the endpoint"),
        out=flag(str, REQUIRED, ".parquet file, of shards a folder; must not exist"),
        templates=flag(str, "photo27", "what class names are put into: one, short, long, photo27, a file, or a text"),
        n_workers=flag(int | None, None, "questions in flight at once; none: as many as the endpoint takes"),
        yes=YES,
        engine=ENGINE,
        shard_rows=SHARD_ROWS,
    ),
    "describe": verb(
        "Describe",
        "Find the class names that fit no image; with --chat and --out, ask how these classes look.",
        *("data", "classes", "chat_url", "on_bad", "device", "precision"),
        model=flag(str, REQUIRED, "CLIP, SigLIP or another vision-language model by id or path"),
        out=flag(str | None, None, ".json file of descriptions; what it holds already is kept"),
        chat=flag(str | None, None, "chat model to ask, by the name that the endpoint knows it by"),
        every=flag(bool, False, "ask about all classes, not the mismatched alone"),
        context=flag(str | None, None, "what the images are, for the chat model, e.g. 'traffic signs'"),
        n=flag(int, 4, "descriptions per class"),
        templates=flag(
            str, "mixed", "what class names are put into: mixed, one, short, long, photo27, a file, or a text"
        ),
        yes=YES,
    ),
    "label": verb(
        "Label",
        "Label any images with the model of a run: label, probability, runner-up, trust.",
        *("run", "data", "out", "error", "confidence", "verified", "novel", "rename", "image_column", "on_bad"),
        *("device", "precision"),
        run=RUN,
        data=flag(
            tuple[str, ...],
            REQUIRED,
            "images: a folder, a table, or one or more files; labels they may have are ignored",
        ),
        out=flag(str, "labels.csv", ".csv, .parquet, or a folder that gets every image under its label"),
        rename=flag(tuple[str, ...], (), "OLD=NEW ...: names of classes, as novel-1=okapi; the model keeps them"),
        error=flag(
            float | None,
            None,
            "largest share of wrong labels among those to accept; without it every label is for review",
            "--error 0.05",
        ),
        verified=flag(
            str | None,
            None,
            "file with ids and the true classes of some of these images, as of verify-sample; none: what the run "
            "promised",
            "--verified to-verify.csv",
        ),
        novel=flag(bool, False, "put images of no class into new ones: new 1, new 2, ..."),
        engine=ENGINE,
        shard_rows=SHARD_ROWS,
        json=flag(bool, False, "print what was found and promised as JSON"),
    ),
    "verify-sample": verb(
        "Verify_Sample",
        "Draw images of a run to look at; the file, filled in, says which labels may be accepted.",
        *("run", "data", "n", "out", "error", "confidence", "seed", "json"),
        run=RUN,
        data=flag(str | None, None, "its images, if they moved, or those that its embeddings are of", "--data photos"),
        n=flag(int, 200, "how many images", "--n 100"),
        out=flag(str, "to-verify.csv", ".csv or .parquet file to write; must not exist"),
        error=flag(float, 0.05, "largest share of wrong labels that you want promised", "--error 0.02"),
        json=flag(bool, False, "print what was written as JSON"),
    ),
    "classes": verb(
        "Classes",
        "Rename, merge or drop discovered classes of a finished run, in model, labels and report alike.",
        *("run", "action", "names", "data", "device", "precision"),
        run=RUN,
        action=flag(Literal["rename", "merge", "drop"], REQUIRED, "what to do", "merge"),
        names=flag(tuple[str, ...], REQUIRED, "rename OLD NEW; merge KEPT OTHER ...; drop NAME ...", "novel-1 novel-3"),
        data=flag(str | None, None, "its images, if they moved; rename needs none", "--data photos"),
    ),
    "review": verb(
        "Review",
        "Look at the labels of a finished run on a local page, and correct them: every answer is saved at once.",
        run=RUN,
        data=flag(str | None, None, "its images, if they moved, or those that its embeddings are of", "--data photos"),
        export=flag(
            str | None,
            None,
            ".csv file to write the answers to, with the columns id and label; must not exist",
            "--export corrections.csv",
        ),
        apply=flag(bool, False, "fit anew with the answers as given labels", "--apply"),
        out=flag(
            str | None, None, "run folder of --apply; none: the name of the run with the next number", "--out run-2"
        ),
        port=flag(int, 0, "of the page; 0: any that is free", "--port 8765"),
        open=flag(bool, True, "show the page in the browser", "--no-open"),
    ),
    "evaluate": verb(
        "Evaluate",
        "Score the model of a run on labelled images.",
        *("run", "data", "json", "image_column", "label_column", "on_bad", "device", "precision"),
        run=RUN,
        data=flag(str, REQUIRED, "images with labels"),
        json=flag(bool, False, "print everything as JSON"),
    ),
    "settings": verb(
        "Settings",
        "Print every setting of a method: its value under a preset, and what it is.",
        method=flag(str, REQUIRED, "name of a method", "cap"),
        preset=flag(
            Literal["practical", "paper"],
            "practical",
            "what runs by default, or the published recipe",
            "--preset paper",
        ),
        views=flag(
            Literal["pixels", "embeddings"],
            "pixels",
            "what it sees: some methods have other settings on stored features",
            "--views embeddings",
        ),
        json=flag(bool, False, "print it as JSON"),
    ),
    "export": verb(
        "Export",
        "Write the model of a run for others to serve, or its labels as annotation tools and trainers read them.",
        *("run", "format", "out", "data"),
        run=RUN,
        format=flag(
            Format,
            "onnx",
            "of the model: onnx (decoded images of any size in, calibrated probabilities out), torchscript, "
            "safetensors (one file that `label` reads), hub (a folder with a model card); or of the labels",
            "--format label-studio",
        ),
        out=flag(str, REQUIRED, "file with the suffix of the format, or a folder; must not exist"),
        data=flag(str | None, None, "images of the run, if they moved; for labels", "--data photos"),
        accepted=flag(bool, False, "of the labels, those whose decision is accept"),
    ),
    "report": verb(
        "Report",
        "Write report.html of a finished run anew.",
        run=RUN,
        title=flag(str | None, None, "of the page; kept with the run", "--title 'Birds of May'"),
        open=flag(bool, False, "show it in the browser"),
    ),
    "compare": verb(
        "Compare",
        "Two runs side by side: what differs in settings, scores and labels.",
        first=flag(str, REQUIRED, "finished run folder", "run"),
        second=flag(str, REQUIRED, "another", "run-again"),
        json=flag(bool, False, "print it as JSON, every changed label among it"),
    ),
    "verify": verb(
        "Verify",
        "Compare the files of a run with the checksums taken when it was written; exits with 1 if one was altered.",
        run=RUN,
        json=flag(bool, False, "print it as JSON"),
    ),
    "bench": verb(
        "Bench",
        "Run cells of a benchmark table and print it beside the published numbers.",
        table=flag(str | None, None, "name of the table; without it the tables are listed"),
        cells=flag(tuple[str, ...], (), "methods to run, e.g. ce cvs; all of the table's if absent"),
        data=flag(str | None, None, "folder that holds the data sets' files; none: the hub, by name"),
        out=flag(str, "bench", "folder of the finished cells; those already there are not run again"),
        seeds=flag(tuple[int, ...], (), "seeds to run; the table's own if absent"),
        csv=flag(str | None, None, "file of results that every finished cell is added to", "--csv results.csv"),
        full=flag(bool, False, "the published schedule instead of the reduced one"),
        jobs=flag(int, 1, "cells run side by side, each on its share of the cores"),
        model=flag(str | None, None, "of tables on a target pool, or of coreg-pixels a run of pretrain; id or path"),
        descriptions=flag(str | None, None, "JSON {dataset: {class: texts}} of the cells with descriptions"),
        device=flag(str, "auto", "auto, cpu or cuda"),
    ),
}
"""Verb -> the dataclass of its flags, which are the parameters of the function of that name."""


def fields_of(name: str) -> list[dataclasses.Field[Any]]:
    """The settings that the flags of a verb are, with their metadata (see pipeline.settings.setting).

    Example:
      >>> [field.name for field in fields_of("verify")]
      ['run', 'json']
    """
    own: Any = VERBS[name]
    return list(fields()) if name == "fit" else list(dataclasses.fields(own))


SHOWN: Mapping[str, Mapping[str, Sequence[str]]] = {
    "Look at your images": {
        "demo": ["labelwright demo"],
        "inspect": ["labelwright inspect photos/", "labelwright inspect table.csv --classes names.txt"],
        "audit": [
            "labelwright audit photos/ --out audit.csv",
            "labelwright audit photos/ --fail-on wrong copies_in_test",
        ],
    },
    "Learn": {
        "fit": [
            "labelwright fit photos/ --out run",
            "labelwright fit photos/ --on-bad skip --out run",
            "labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --out run",
            "labelwright fit photos/ --corrections corrections.csv --out run-again",
        ],
        "pretrain": ["labelwright pretrain photos/ --out backbone"],
        "embed": ["labelwright embed photos/ --function my.py:embed --out feats.npz"],
        "annotate": [
            "labelwright annotate photos/ --classes names.txt --model llava-hf/llava-1.5-7b-hf --out guesses.parquet"
        ],
        "describe": ["labelwright describe photos/ --classes names.txt --model openai/clip-vit-base-patch32"],
        "settings": ["labelwright settings cap --preset paper"],
    },
    "Check and correct": {
        "review": ["labelwright review run", "labelwright review run --apply"],
        "report": ["labelwright report run --open", "labelwright report run --title 'Birds of May'"],
        "classes": ["labelwright classes run rename novel-1 okapi", "labelwright classes run merge cat novel-2"],
        "evaluate": ["labelwright evaluate run labelled-photos/"],
        "compare": ["labelwright compare run run-again"],
        "verify": ["labelwright verify run"],
    },
    "Use": {
        "label": [
            "labelwright label run new-photos/ --out labels.csv",
            "labelwright label run new-photos/ --error 0.05 --verified to-verify.csv --out labels.csv",
            "labelwright label run new-photos/ --out sorted/",
        ],
        "verify-sample": ["labelwright verify-sample run --n 100"],
        "export": ["labelwright export run --out model.onnx", "labelwright export run --format hub --out my-model"],
        "bench": ["labelwright bench", "labelwright bench --table cap-cifar10 --cells zero_shot cap --seeds 0"],
    },
}
"""What people do -> verb -> commands, the commonest first."""

ABOUT = "trustworthy image classifiers from missing, few, guessed, lopsided or incomplete labels"


def overview(width: int) -> str:
    """The help of the whole command: the verbs by what people do, and how to start.

    Example:
      >>> print(overview(80).splitlines()[-1])
        labelwright fit photos/ --out run        then open run/report.html
    """
    lines = textwrap.wrap(f"labelwright: {ABOUT}", width)
    for title, verbs in SHOWN.items():
        lines += ["", title]
        for name in verbs:
            text = (VERBS[name].__doc__ or "").replace("`", "")
            lines += textwrap.wrap(text, width, initial_indent=f"  {name:<14}", subsequent_indent=" " * 16)
    lines += ["", "labelwright VERB --help explains a verb; labelwright --version is the version."]
    lines += ["To start:", "  labelwright inspect photos/              what is there, and what would run"]
    lines += ["  labelwright fit photos/ --out run        then open run/report.html"]
    return "\n".join(lines)


def command_of(name: str) -> str:
    """The verb of a word that somebody typed.

    Raises: ConfigError naming the closest one.

    Example:
      >>> command_of("fit")
      'fit'
    """
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        raise ConfigError(
            f"there is no verb {name!r}", fix=f"did you mean {close[0]}?" if close else f"one of {', '.join(VERBS)}"
        )
    return name


def examples_of(name: str) -> str:
    """The end of the help of a verb.

    Example:
      >>> print(examples_of("verify"))
      example:
        labelwright verify run
    """
    commands = next(verbs[name] for verbs in SHOWN.values() if name in verbs)
    return "\n  ".join([f"example{'s' if len(commands) > 1 else ''}:", *commands])
