"""The command line: the same verbs as the Python functions, with their flags; cli_actions.py does the printing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from labelwright import __version__, cli_actions
from labelwright.errors import DataError, LabelwrightError

DataArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
RunArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Inspect:
    """Say what is in the data, what is wrong with it, and what `fit` would run. Writes nothing."""

    data: DataArgument  # folder, table (.csv .jsonl .parquet), hub data set, or embeddings (.npy .npz .parquet)
    classes: str | None = None  # file with one class name per line, fixing names and order
    novel: str | None = None  # K, a range such as 3-12, or auto: classes outside the list may be present
    group: str | None = None  # column whose rows belong together (frames of one track)
    check_images: bool = True  # decode every image in full


@dataclass(frozen=True)
class Fit:
    """Train a classifier; writes a run folder with model, labels, scores and report."""

    data: DataArgument  # folder, table (.csv .jsonl .parquet), hub data set, or embeddings (.npy .npz .parquet)
    out: str  # run folder: absent or empty, unless --resume
    method: str = "auto"  # auto, or a name such as cap, cvs, ce, la, vs, ldam_drw
    model: str = "auto"  # resnet32, resnet18, preact_resnet18; CLIP, SigLIP or any vision model; or a run of pretrain
    classes: str | None = None  # file with one class name per line, fixing names and order
    novel: str | None = None  # K, a range such as 3-12, or auto: classes outside the list may be present
    group: str | None = None  # column whose rows belong together (frames of one track)
    test: str | None = None  # images to score on; without it a share is held out
    test_frac: float = 0.2  # share of the labelled images held out when there is no --test; 0 = none
    views: Literal["auto", "pixels", "embeddings"] = "auto"  # pixels, or embeddings of a frozen --model, made once
    n_views: int = 2  # weak and strong views embedded of every image
    templates: str = "auto"  # what class names are put into: one, short, long, photo27, a file, or a text with {}
    descriptions: str | None = None  # JSON or YAML file {class: texts}: how classes look
    vocabulary: str | None = None  # file of words, one per line, that discovered classes may be named by
    describe_with: str | None = None  # chat model asked how the classes look whose name fits no image
    annotator: str | None = None  # CLIP, SigLIP or LLaVA that guesses candidate labels first; --model if absent
    rule: Literal["union", "top_k", "ratio", "mean"] = "top_k"  # which classes become candidates; not for chat models
    top_k: int = 5  # candidates per image of --rule top_k, at most half of the classes
    ratio: float = 0.5  # least share of the highest probability of --rule ratio
    phrasings: int = 3  # questions per image put to a chat annotator
    chat_url: str | None = None  # base URL of an OpenAI-compatible endpoint; OpenAI's if absent
    epochs: int | None = None  # passes over the training images; the method's default if absent
    seed: int = 0  # of everything random
    device: str = "auto"  # auto, cpu or cuda
    precision: str = "auto"  # auto, bf16 or fp32
    size: int | None = None  # side in px of the square images the network sees
    flip: Literal["auto", "on", "off"] = "auto"  # do mirrored images keep their class? auto looks at the names
    pretrained: bool = True  # start a transformers model from its weights
    freeze: tuple[str, ...] = ()  # parameter-name patterns to leave as they are, e.g. 'backbone.*'
    resume: bool = False  # continue the run in --out where it stopped
    on_bad: Literal["stop", "skip"] = "stop"  # unusable rows: stop with a report, or leave them out and list them
    checkpoint_minutes: float = 5.0  # at most this much work is lost to a kill
    evaluations: int = 10  # times the test images are scored while training; for the curves only
    cache_limit_gb: float = 16.0  # decoded images above this are streamed instead of cached
    set: tuple[str, ...] = ()  # KEY=VALUE ...: fields of the method's Config, e.g. lr=0.05 tau=1.0


@dataclass(frozen=True)
class Pretrain:
    """Train a backbone on images without looking at labels; writes a run folder for `fit --model`."""

    data: DataArgument  # folder, table (.csv .jsonl .parquet), or hub data set; labels are not used
    out: str  # run folder: absent or empty, unless --resume
    model: str = "auto"  # resnet32, resnet18, preact_resnet18; or any vision model or earlier run to go on from
    epochs: int | None = None  # passes over the images; 200 if absent, on a CPU fewer
    seed: int = 0  # of everything random
    device: str = "auto"  # auto, cpu or cuda
    precision: str = "auto"  # auto, bf16 or fp32
    size: int | None = None  # side in px of the square images the network sees
    flip: Literal["auto", "on", "off"] = "auto"  # may views be mirrored? auto looks at the class names, if any
    resume: bool = False  # continue the run in --out where it stopped
    on_bad: Literal["stop", "skip"] = "stop"  # unusable images: stop with a report, or leave them out and list them
    checkpoint_minutes: float = 5.0  # at most this much work is lost to a kill
    cache_limit_gb: float = 16.0  # decoded images above this are streamed instead of cached
    set: tuple[str, ...] = ()  # KEY=VALUE ...: settings of SimCLR, e.g. temperature=0.2 batch_size=512


@dataclass(frozen=True)
class Annotate:
    """Give every image candidate labels, with a vision-language model or one that chats; writes a table for `fit`."""

    data: DataArgument  # folder, table (.csv .jsonl .parquet), or hub data set
    model: str  # CLIP, SigLIP or LLaVA by id or path; with --chat-url the name that the endpoint knows it by
    out: str  # .parquet file to write; must not exist
    classes: str | None = None  # file with one class name per line, fixing names and order
    rule: Literal["union", "top_k", "ratio", "mean"] = "top_k"  # which classes become candidates; not for chat models
    top_k: int = 5  # candidates per image of --rule top_k, at most half of the classes
    ratio: float = 0.5  # least share of the highest probability of --rule ratio
    templates: str = "photo27"  # what class names are put into: one, short, long, photo27, a file, or a text with {}
    descriptions: str | None = None  # JSON or YAML file {class: texts}: how classes look; not for chat models
    chat_url: str | None = None  # base URL of an OpenAI-compatible endpoint, to ask a chat model there
    phrasings: int = 3  # questions per image put to a chat model
    n_workers: int | None = None  # questions under way at once; as many as the endpoint takes if absent
    yes: bool = False  # ask a chat model without waiting for a yes; needed when not on a terminal
    seed: int = 0  # of the orders in which a chat model is shown the classes
    on_bad: Literal["stop", "skip"] = "stop"  # unusable images
    device: str = "auto"  # auto, cpu or cuda
    precision: str = "auto"  # auto, bf16 or fp32
    cache_limit_gb: float = 16.0  # decoded images above this are streamed instead of cached


@dataclass(frozen=True)
class Describe:
    """Find the class names that fit no image; with --chat and --out, ask how these classes look."""

    data: DataArgument  # folder, table (.csv .jsonl .parquet), or hub data set; labels are not used
    model: str  # CLIP, SigLIP or another vision-language model by id or path
    classes: str | None = None  # file with one class name per line, fixing names and order
    out: str | None = None  # .json file of descriptions; what it holds already is kept
    chat: str | None = None  # chat model to ask, by the name that the endpoint knows it by
    chat_url: str | None = None  # base URL of an OpenAI-compatible endpoint; OpenAI's if absent
    every: bool = False  # ask about all classes, not the mismatched alone
    context: str | None = None  # what the images are, told to the chat model, e.g. 'traffic signs'
    n: int = 4  # descriptions per class
    yes: bool = False  # ask without waiting for a yes; needed when not on a terminal
    templates: str = "one"  # what class names are put into: one, short, long, photo27, a file, or a text with {}
    on_bad: Literal["stop", "skip"] = "stop"  # unusable images
    device: str = "auto"  # auto, cpu or cuda
    precision: str = "auto"  # auto, bf16 or fp32


@dataclass(frozen=True)
class Label:
    """Label any images with the model of a run: label, probability, runner-up, trust."""

    run: RunArgument  # finished run folder
    data: DataArgument  # images; labels they may have are ignored
    out: str = "labels.csv"  # .csv, .parquet, or a folder that gets every image under its label
    rename: tuple[str, ...] = ()  # OLD=NEW ...: names of classes, as novel-1=okapi; the model keeps them
    on_bad: Literal["stop", "skip"] = "stop"  # unusable images
    device: str = "auto"  # auto, cpu or cuda
    precision: str = "auto"  # auto, bf16 or fp32


@dataclass(frozen=True)
class Evaluate:
    """Score the model of a run on labelled images."""

    run: RunArgument  # finished run folder
    data: DataArgument  # images with labels
    json: bool = False  # print everything as JSON
    on_bad: Literal["stop", "skip"] = "stop"  # unusable images
    device: str = "auto"  # auto, cpu or cuda
    precision: str = "auto"  # auto, bf16 or fp32


@dataclass(frozen=True)
class Report:
    """Write report.html of a finished run anew."""

    run: RunArgument  # finished run folder


@dataclass(frozen=True)
class Bench:
    """Run cells of a benchmark table and print it beside the published numbers."""

    table: str | None = None  # name of the table; without it the tables are listed
    cells: tuple[str, ...] = ()  # methods to run, e.g. ce cvs; all of the table's if absent
    data: str | None = None  # folder that holds the data sets' files; else the hub, by name
    out: str = "bench"  # folder of the finished cells; those already there are not run again
    seeds: tuple[int, ...] = ()  # seeds to run; the table's own if absent
    full: bool = False  # the published schedule instead of the reduced one
    jobs: int = 1  # cells run side by side, each on its share of the cores
    model: str | None = None  # of tables on a target pool, or of coreg-pixels a run of pretrain; id or path
    descriptions: str | None = None  # JSON {dataset: {class: texts}} of the cells with descriptions
    csv: str | None = None  # file of results that the finished cells are added to, a row per seed and metric
    device: str = "auto"  # auto, cpu or cuda


@dataclass(frozen=True)
class Demo:
    """The offline first run: real handwritten digits without labels, sorted by their class names alone."""

    out: str = "demo-run"  # folder; each demo gets a numbered folder of its own in it


VERBS: dict[str, Callable[..., Any]] = {
    "demo": Demo,
    "inspect": Inspect,
    "fit": Fit,
    "pretrain": Pretrain,
    "annotate": Annotate,
    "describe": Describe,
    "label": Label,
    "evaluate": Evaluate,
    "report": Report,
    "bench": Bench,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command ``labelwright``: exits 0 done, 1 failed, 2 bad input, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are summed up in one OfflineError
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code and prints errors to standard error."""
    if list(argv) == ["--version"]:
        print(f"labelwright {__version__}")
        return 0
    command = parse(argv)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        _ACTIONS[type(command)](command)
    except DataError as error:
        from labelwright.data.checks import format_problems

        if error.problems:
            errors.print(format_problems(error.problems), markup=False)
        errors.print(f"error: {error}", markup=False)
        return error.exit_code
    except LabelwrightError as error:
        errors.print(f"error: {error}", markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        with_resume = "; continue with the same command and --resume"
        again = {Fit: with_resume, Pretrain: with_resume, Annotate: "; the same command goes on from here"}
        errors.print(f"interrupted{again.get(type(command), '')}", markup=False)
        return 130
    return 0


def parse(argv: Sequence[str]) -> Any:
    """The verb's dataclass with the values given; prints help or what is wrong and exits (0 or 2) otherwise.

    Example:
      >>> parse(["label", "run", "photos"])
      Label(run='run', data='photos', out='labels.csv', rename=(), on_bad='stop', device='auto', precision='auto')
    """
    return tyro.extras.subcommand_cli_from_dict(
        VERBS,
        prog="labelwright",
        description="Trustworthy image classifiers from missing, few, guessed, lopsided or incomplete labels. "
        "`labelwright VERB --help` explains a verb, `labelwright --version` prints the version.",
        args=_gathered(argv),
    )


def _gathered(argv: Sequence[str]) -> list[str]:
    """One ``--set`` with every assignment, however often it was given.

    Example:
      >>> _gathered(["fit", "--set", "lr=1", "photos", "--set", "tau=2", "epochs=3"])
      ['fit', 'photos', '--set', 'lr=1', 'tau=2', 'epochs=3']
    """
    kept: list[str] = []
    assignments: list[str] = []
    gathering = after_set = False
    for word in argv:
        if word.startswith("--set="):
            assignments.append(word.removeprefix("--set="))
        elif after_set or (gathering and "=" in word and not word.startswith("--")):
            assignments.append(word)
        elif word != "--set":
            kept.append(word)
            gathering = False
        after_set = word == "--set"
        gathering = gathering or after_set
    return [*kept, "--set", *assignments] if assignments else kept


_ACTIONS: dict[type[Any], Callable[[Any], None]] = {
    Inspect: cli_actions.inspect,
    Fit: cli_actions.fit,
    Pretrain: cli_actions.pretrain,
    Annotate: cli_actions.annotate,
    Describe: cli_actions.describe,
    Label: cli_actions.label,
    Evaluate: cli_actions.evaluate,
    Report: cli_actions.report,
    Bench: cli_actions.bench,
    Demo: cli_actions.demo,
}

if __name__ == "__main__":
    main()
