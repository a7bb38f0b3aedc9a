"""What each verb of the command line does: call the Python function of the same name, print what it found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from labelwright.errors import ConfigError, DataError
from labelwright.wording import counted

if TYPE_CHECKING:
    from labelwright import cli
    from labelwright.annotators.chat import Estimate


def inspect(command: cli.Inspect) -> None:
    """Counts, situation, problems."""
    from labelwright import api
    from labelwright.data.checks import format_problems
    from labelwright.data.prepare import is_embeddings
    from labelwright.data.table import NOTICES

    found = api.inspect(
        command.data,
        classes=command.classes,
        novel=command.novel,
        group=command.group,
        check_pixels=command.check_images,
    )
    table, counts = found.table, found.table.counts()
    noun = "embeddings" if is_embeddings(command.data) else "images"
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"{len(table):,} {noun}, {int((table.labels >= 0).sum()):,} labelled, {len(table.class_names)} classes")
    shown = Table("class", noun, box=None, pad_edge=False)
    order = sorted(range(len(counts)), key=lambda c: -int(counts[c]))
    for c in order if len(order) <= 24 else [*order[:12], *order[-12:]]:
        shown.add_row(table.class_names[c], f"{int(counts[c]):,}")
    if len(order):
        out.print(shown)
    if len(order) > 24:
        out.print(f"(the 12 largest and the 12 smallest of {len(order)})")
    out.print(f"situation: {found.situation.name}: {found.situation.reason}", markup=False)
    out.print(f"fit would run: {_would_run(found, noun)}", markup=False)
    bad = [p for p in found.problems if p.kind not in NOTICES]
    if found.problems:
        out.print(format_problems(found.problems), markup=False)
    if bad:
        raise DataError(
            f"{len(bad)} {'problem' if len(bad) == 1 else 'problems'} in the data, listed above",
            fix="put them right, or leave the rows concerned out with fit --on-bad skip",
        )


def _would_run(found: Any, noun: str) -> str:
    from labelwright.methods.registry import METHODS

    if METHODS[found.runs].needs == "candidates":
        more = (
            ""
            if noun == "embeddings"
            else ", a small network from scratch; --model openai/clip-vit-base-patch32: on it"
        )
        return f"{found.runs} (on the candidates there are{more})"
    if METHODS[found.runs].needs != "text":
        return str(found.runs)
    if noun == "embeddings":
        return f"{found.runs} (the file has to hold class_embeddings, text features of the classes)"
    return f"{found.runs} (name a vision-language model, e.g. --model openai/clip-vit-base-patch32)"


def fit(command: cli.Fit) -> None:
    """Train; then scores, what names and pseudolabels were like, warnings, and where the report is."""
    from labelwright import api
    from labelwright.reporting import terminal as telling
    from labelwright.train.settings import parse_assignments

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
        views=command.views,
        n_views=command.n_views,
        templates=command.templates,
        descriptions=command.descriptions,
        describe_with=command.describe_with,
        vocabulary=command.vocabulary,
        annotator=command.annotator,
        rule=command.rule,
        top_k=command.top_k,
        ratio=command.ratio,
        phrasings=command.phrasings,
        chat_url=command.chat_url,
        approve=approval(True),
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
    n_images, n_labelled = summary["n_images"], summary["n_labelled"]
    images = f"{n_images:,} images, {n_labelled:,} labelled," if n_labelled < n_images else f"{n_images:,} images"
    out.print(
        f"{summary['method']} on {images} of {summary['n_classes']} classes "
        f"({summary['situation']}), {summary['seconds']['train']:.0f} s of training"
    )
    described = json.loads((done.path / "data.json").read_text(encoding="utf-8"))
    if described["quarantined"]:
        out.print(
            f"left out: {counted(len(described['quarantined']), 'row')}, listed in {done.path / 'data.json'}",
            markup=False,
        )
    if described["notices"]:
        out.print(f"notices: {len(described['notices'])}, listed in {done.path / 'data.json'}", markup=False)
    for line in telling.lines_of_run(done):
        out.print(line, markup=False)
    if summary["test"]:
        _print_scores(summary["test"])
    for warning in telling.folded_warnings(summary["warnings"]):
        out.print(f"warning: {warning}", markup=False)
    out.print(f"report: {done.report}", markup=False)


def pretrain(command: cli.Pretrain) -> None:
    """Pretrain; then on what, how long, warnings, and what to do with it."""
    from labelwright import api
    from labelwright.reporting import terminal as telling
    from labelwright.train.settings import parse_assignments

    path = api.pretrain(
        command.data,
        out=command.out,
        model=command.model,
        epochs=command.epochs,
        seed=command.seed,
        device=command.device,
        precision=command.precision,
        size_px=command.size,
        flip=command.flip,
        resume=command.resume,
        on_bad=command.on_bad,
        checkpoint_minutes=command.checkpoint_minutes,
        cache_limit_gb=command.cache_limit_gb,
        settings=parse_assignments(command.set),
    )
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    print(
        f"simclr on {summary['n_images']:,} images of {summary['size_px']} px, labels unseen: {summary['encoder']}, "
        f"{summary['epochs']} epochs, {summary['seconds']['train']:.0f} s of training"
    )
    described = json.loads((path / "data.json").read_text(encoding="utf-8"))
    if described["quarantined"]:
        print(f"left out: {counted(len(described['quarantined']), 'row')}, listed in {path / 'data.json'}")
    if described["notices"]:
        print(f"notices: {len(described['notices'])}, listed in {path / 'data.json'}")
    print(
        f"mean cosine of views of one image {summary['alignment']:.2f}, of different images "
        f"{summary['cosine_of_others']:.2f}"
    )
    for warning in telling.folded_warnings(summary["warnings"]):
        print(f"warning: {warning}")
    print(f"start from it: labelwright fit {command.data} --model {path} --out NEW")


def annotate(command: cli.Annotate) -> None:
    """Write candidates; then how many there are and, where labels are known, how often they hold them."""
    from labelwright import api
    from labelwright.reporting import terminal as telling

    done = api.annotate(
        command.data,
        model=command.model,
        out=command.out,
        classes=command.classes,
        rule=command.rule,
        top_k=command.top_k,
        ratio=command.ratio,
        templates=command.templates,
        descriptions=command.descriptions,
        chat_url=command.chat_url,
        phrasings=command.phrasings,
        n_workers=command.n_workers,
        on_bad=command.on_bad,
        device=command.device,
        precision=command.precision,
        seed=command.seed,
        cache_limit_gb=command.cache_limit_gb,
        approve=approval(command.yes),
    )
    for line in telling.annotated_lines(done.counts):
        print(line)
    print(f"candidates: {done.path}")
    _print_left_out(done.counts["left_out"])


def describe(command: cli.Describe) -> None:
    """Print the class names that fit no image, and the descriptions asked for."""
    from labelwright import api

    found = api.describe(
        command.data,
        model=command.model,
        classes=command.classes,
        out=command.out,
        chat=command.chat,
        chat_url=command.chat_url,
        every=command.every,
        context=command.context,
        n=command.n,
        templates=command.templates,
        on_bad=command.on_bad,
        device=command.device,
        precision=command.precision,
        approve=approval(command.yes),
    )
    names, evidence = found.class_names, found.mismatch.evidence.tolist()
    weakest = sorted(range(len(names)), key=evidence.__getitem__)
    if found.mismatched:
        fit = "fits" if len(found.mismatched) == 1 else "fit"
        print(f"{len(found.mismatched)} of {len(names)} class names {fit} no image")
        weakest = [c for c in weakest if found.mismatch.is_mismatched[c]]
    else:
        print(f"none of {len(names)} class names stands out as fitting no image; the weakest:")
        weakest = weakest[:5]
    shown = Table("class", "evidence (0 to 1)", box=None, pad_edge=False)
    for c in weakest:
        shown.add_row(names[c], f"{evidence[c]:.2f}")
    Console(highlight=False, markup=False).print(shown)
    if found.path is None:
        print("--chat MODEL --out FILE.json asks how they look; a file you write yourself is as good")
        return
    asked = range(len(names)) if command.every else [c for c in weakest if found.mismatch.is_mismatched[c]]
    if not asked:
        print("nothing was asked; --every asks about all classes")
        return
    for name, texts in found.descriptions.items():
        print(f"{name}: {'; '.join(texts)}")
    if silent := [names[c] for c in asked if names[c] not in found.descriptions]:
        print(f"no usable answer about: {', '.join(silent)}; the same command asks again")
    if found.descriptions:
        print(f"descriptions: {found.path}; look them over, then: labelwright fit ... --descriptions {found.path}")


def approval(yes: bool) -> Callable[[Estimate], bool]:
    """What tells the user on standard error what a chat model will be asked, and waits for a yes on a terminal.

    Args:
      yes: do not wait.

    Raises (when called): ConfigError if nobody can answer.
    """

    def approve(estimate: Estimate) -> bool:
        print(f"to be asked of the chat model: {estimate}", file=sys.stderr)
        if yes:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ConfigError("this is no terminal, so nobody can say yes to that", fix="add --yes to go on without")
        print("ask? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return approve


def label(command: cli.Label) -> None:
    """Label images; then how many, where, and what was left out."""
    from labelwright import api

    rows = api.label(
        command.run,
        command.data,
        out=command.out,
        rename=parse_renames(command.rename),
        on_bad=command.on_bad,
        device=command.device,
        precision=command.precision,
    )
    print(f"{counted(len(rows), 'image')} labelled: {command.out}")
    _print_left_out(json.loads(rows.schema.metadata[b"left_out"]))


def evaluate(command: cli.Evaluate) -> None:
    """Score a run on labelled images."""
    from labelwright import api

    scores = api.evaluate(
        command.run, command.data, on_bad=command.on_bad, device=command.device, precision=command.precision
    )
    if command.json:
        print(json.dumps(scores))
    else:
        _print_scores(scores)
        _print_left_out(scores["left_out"])


def report(command: cli.Report) -> None:
    """Write the report anew and print its path."""
    from labelwright import api

    print(api.report(command.run))


def bench(command: cli.Bench) -> None:
    """Run cells of a table and print it."""
    from labelwright.benchmarking import runner

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
            model=command.model,
            descriptions=command.descriptions,
            csv=command.csv,
        )
    )


def demo(command: cli.Demo) -> None:
    """The offline first run."""
    from labelwright import demo as first_run

    first_run.run(command.out)


def _print_left_out(problems: Sequence[dict[str, str]]) -> None:
    from labelwright.data.checks import format_problems
    from labelwright.errors import Problem

    if problems:
        print(f"{counted(len(problems), 'image')} left out:", file=sys.stderr)
        print(format_problems([Problem(p["where"], p["kind"], p["detail"]) for p in problems]), file=sys.stderr)


def _print_scores(scores: dict[str, Any]) -> None:
    shown = Table("score", f"on {counted(scores['n_scored'], 'image')}", box=None, pad_edge=False)
    groups = [key for key in ("many", "medium", "few") if scores.get(key) is not None]
    groups = groups if len(groups) > 1 else []  # one alone is the balanced accuracy over again
    for key in ("accuracy", "balanced_accuracy", *groups, "seen", "unseen", "harmonic", "novel", "ece"):
        if scores.get(key) is not None:
            shown.add_row(key.replace("_", " "), f"{scores[key]:.4f}")
    Console(highlight=False).print(shown)


def parse_renames(assignments: Sequence[str]) -> dict[str, str]:
    """``OLD=NEW`` texts as a mapping.

    Raises: ConfigError for a text without ``=``.

    Example:
      >>> parse_renames(["novel-1=okapi"])
      {'novel-1': 'okapi'}
    """
    found = {}
    for text in assignments:
        old, equals, new = text.partition("=")
        if not equals or not old or not new:
            raise ConfigError(f"--rename {text} is not OLD=NEW", fix="write --rename novel-1=okapi")
        found[old] = new
    return found
