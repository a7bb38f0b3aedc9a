"""The command line: the same verbs as the Python functions, and nothing of its own but printing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from evenkeel.errors import DataError, EvenkeelError

DataArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
RunArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Inspect:
    """Say what is in the data, what is wrong with it, and what `fit` would run. Writes nothing."""

    data: DataArgument  # folder, table (.csv .jsonl .parquet), or hub data set
    classes: str | None = None  # file with one class name per line, fixing names and order
    novel: str | None = None  # K or auto: classes outside the list may be present
    group: str | None = None  # column whose rows belong together (frames of one track)
    check_images: bool = True  # decode every image in full


@dataclass(frozen=True)
class Fit:
    """Train a classifier; writes a run folder with model, labels, scores and report."""

    data: DataArgument  # folder, table (.csv .jsonl .parquet), or hub data set
    out: str  # run folder: absent or empty, unless --resume
    method: str = "auto"  # auto, or a name such as cvs, ce, la, vs, ldam_drw
    model: str = "auto"  # resnet32, resnet18, preact_resnet18, or a transformers vision model by id or path
    classes: str | None = None  # file with one class name per line, fixing names and order
    novel: str | None = None  # K or auto: classes outside the list may be present
    group: str | None = None  # column whose rows belong together (frames of one track)
    test: str | None = None  # images to score on; without it a share is held out
    test_frac: float = 0.2  # share of the labelled images held out when there is no --test; 0 = none
    views: Literal["pixels"] = "pixels"  # where a recipe's views come from
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
class Label:
    """Label any images with the model of a run: label, probability, runner-up, trust."""

    run: RunArgument  # finished run folder
    data: DataArgument  # images; labels they may have are ignored
    out: str = "labels.csv"  # .csv, .parquet, or a folder that gets every image under its label
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
    device: str = "auto"  # auto, cpu or cuda


@dataclass(frozen=True)
class Demo:
    """The offline first run: real handwritten digits made long-tailed, cross-entropy against CVS."""

    out: str = "demo-run"  # folder for the two runs


VERBS: dict[str, Callable[..., Any]] = {
    "demo": Demo,
    "inspect": Inspect,
    "fit": Fit,
    "label": Label,
    "evaluate": Evaluate,
    "report": Report,
    "bench": Bench,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command ``evenkeel``: exits 0 done, 1 failed, 2 bad input, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are summed up in one OfflineError
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code and prints errors to standard error."""
    command = parse(argv)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        _ACTIONS[type(command)](command)
    except DataError as error:
        from evenkeel.data.images import format_problems

        if error.problems:
            errors.print(format_problems(error.problems), markup=False)
        errors.print(f"error: {error}", markup=False)
        return error.exit_code
    except EvenkeelError as error:
        errors.print(f"error: {error}", markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        again = "; continue with the same command and --resume" if isinstance(command, Fit) else ""
        errors.print(f"interrupted{again}", markup=False)
        return 130
    return 0


def parse(argv: Sequence[str]) -> Any:
    """The verb's dataclass with the values given; prints help or what is wrong and exits (0 or 2) otherwise.

    Example:
      >>> parse(["label", "run", "photos"])
      Label(run='run', data='photos', out='labels.csv', on_bad='stop', device='auto', precision='auto')
    """
    return tyro.extras.subcommand_cli_from_dict(
        VERBS,
        prog="evenkeel",
        description="Trustworthy image classifiers from missing, few, guessed, lopsided or incomplete labels.",
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


# ---- what each verb prints ------------------------------------------------------------------------------------------


def _inspect(command: Inspect) -> None:
    from evenkeel import api
    from evenkeel.data.images import format_problems
    from evenkeel.data.table import NOTICES

    found = api.inspect(
        command.data,
        classes=command.classes,
        novel=command.novel,
        group=command.group,
        check_pixels=command.check_images,
    )
    table, counts = found.table, found.table.counts()
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"{len(table):,} images, {int((table.labels >= 0).sum()):,} labelled, {len(table.class_names)} classes")
    shown = Table("class", "images", box=None, pad_edge=False)
    order = sorted(range(len(counts)), key=lambda c: -int(counts[c]))
    for c in order if len(order) <= 24 else [*order[:12], *order[-12:]]:
        shown.add_row(table.class_names[c], f"{int(counts[c]):,}")
    if len(order):
        out.print(shown)
    if len(order) > 24:
        out.print(f"(the 12 largest and the 12 smallest of {len(order)})")
    out.print(f"situation: {found.situation.name}: {found.situation.reason}", markup=False)
    out.print(f"fit would run: {found.runs or found.situation.method + ' (not in this version)'}", markup=False)
    bad = [p for p in found.problems if p.kind not in NOTICES]
    if found.problems:
        out.print(format_problems(found.problems), markup=False)
    if bad:
        raise DataError(
            f"{len(bad)} {'problem' if len(bad) == 1 else 'problems'} in the data, listed above",
            fix="put them right, or leave the rows concerned out with fit --on-bad skip",
        )


def _fit(command: Fit) -> None:
    from evenkeel import api
    from evenkeel.train.settings import parse_assignments

    done = api.fit(
        command.data,
        out=command.out,
        method=command.method,
        model=command.model,
        classes=command.classes,
        novel=command.novel,
        group=command.group,
        test=command.test,
        test_frac=command.test_frac,
        epochs=command.epochs,
        seed=command.seed,
        device=command.device,
        precision=command.precision,
        size_px=command.size,
        flip=command.flip,
        pretrained=command.pretrained,
        freeze=command.freeze,
        resume=command.resume,
        on_bad=command.on_bad,
        checkpoint_minutes=command.checkpoint_minutes,
        evaluations=command.evaluations,
        cache_limit_gb=command.cache_limit_gb,
        settings=parse_assignments(command.set),
    )
    summary, out = done.summary, Console(highlight=False, soft_wrap=True)
    out.print(
        f"{summary['method']} on {summary['n_labelled']:,} labelled images of {summary['n_classes']} classes "
        f"({summary['situation']}), {summary['seconds']['train']:.0f} s of training"
    )
    described = json.loads((done.path / "data.json").read_text(encoding="utf-8"))
    if described["quarantined"]:
        out.print(
            f"left out: {_count(described['quarantined'], 'row')}, listed in {done.path / 'data.json'}", markup=False
        )
    if described["notices"]:
        out.print(f"notices: {len(described['notices'])}, listed in {done.path / 'data.json'}", markup=False)
    if summary["test"]:
        _print_scores(summary["test"])
    for warning in summary["warnings"]:
        out.print(f"warning: {warning}", markup=False)
    out.print(f"report: {done.report}", markup=False)


def _label(command: Label) -> None:
    from evenkeel import api

    rows = api.label(
        command.run,
        command.data,
        out=command.out,
        on_bad=command.on_bad,
        device=command.device,
        precision=command.precision,
    )
    print(f"{_count(rows, 'image')} labelled: {command.out}")
    _print_left_out(json.loads(rows.schema.metadata[b"left_out"]))


def _evaluate(command: Evaluate) -> None:
    from evenkeel import api

    scores = api.evaluate(
        command.run, command.data, on_bad=command.on_bad, device=command.device, precision=command.precision
    )
    if command.json:
        print(json.dumps(scores))
    else:
        print(f"{scores['n_scored']:,} images scored")
        _print_scores(scores)
        _print_left_out(scores["left_out"])


def _report(command: Report) -> None:
    from evenkeel import api

    print(api.report(command.run))


def _bench(command: Bench) -> None:
    from evenkeel.benchmarking import runner

    print(
        runner.bench(
            command.table,
            cells=command.cells,
            data=command.data,
            out=command.out,
            seeds=command.seeds,
            full=command.full,
            jobs=command.jobs,
            device=command.device,
        )
    )


def _demo(command: Demo) -> None:
    from evenkeel import demo

    demo.run(command.out)


def _count(items: Any, noun: str) -> str:
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'}"


def _print_left_out(problems: Sequence[dict[str, str]]) -> None:
    from evenkeel.data.images import format_problems
    from evenkeel.errors import Problem

    if problems:
        print(f"{_count(problems, 'image')} left out:", file=sys.stderr)
        print(format_problems([Problem(p["where"], p["kind"], p["detail"]) for p in problems]), file=sys.stderr)


def _print_scores(scores: dict[str, Any]) -> None:
    shown = Table("score", "value", box=None, pad_edge=False)
    for key in ("accuracy", "balanced_accuracy", "many", "medium", "few", "ece"):
        if scores.get(key) is not None:
            shown.add_row(key.replace("_", " "), f"{scores[key]:.4f}")
    Console(highlight=False).print(shown)


_ACTIONS: dict[type[Any], Callable[[Any], None]] = {
    Inspect: _inspect,
    Fit: _fit,
    Label: _label,
    Evaluate: _evaluate,
    Report: _report,
    Bench: _bench,
    Demo: _demo,
}

if __name__ == "__main__":
    main()
