"""The command line: a verb per function of labelwright.api, with flags of the same names."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tyro

import labelwright
from labelwright import launch
from labelwright.arguments import fits
from labelwright.errors import ConfigError, DataError, LabelwrightError
from labelwright.pipeline.run_config import assignments_of, from_config
from labelwright.pipeline.settings import GROUPS, hints_of_fit
from labelwright.screen import screen
from labelwright.verbs import VERBS, command_of, examples_of, fit_verb, overview

if TYPE_CHECKING:
    from labelwright.annotators.chat import Estimate

OF_THE_DISK = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors that are nobody's mistake, wherever they happen."""

SHARED = ("fit", "pretrain", "embed", "annotate", "label", "audit")
"""Verbs that the processes of `accelerate launch` do together; any other is done by the first one."""
TRAINING = ("fit", "pretrain")
SECONDS_TO_REPORT = 10.0  # that the main process has to find the bad input that another one found


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command ``labelwright``: exits 0 done, 1 failed, 2 bad input, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are summed up in one OfflineError
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, in every phase
    try:
        try:
            code: Any = run(sys.argv[1:] if argv is None else argv)
        except SystemExit as stopped:  # of help, and of what is wrong with the flags
            code = 0 if isinstance(stopped.__context__, BrokenPipeError) else stopped.code  # as rich ends then
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    launch.end(code)


def run(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code and prints errors to standard error."""
    errors = screen(is_error=True)
    if list(argv) == ["--version"]:
        print(f"labelwright {labelwright.__version__}")
        return 0
    if os.environ.get("NO_COLOR"):  # rich and tyro leave out colours for it, and keep bold type
        os.environ["TERM"] = "dumb"
    verb_name, values = "", dict[str, Any]()
    try:
        verb_name, values = parse(argv)
        if verb_name not in SHARED:
            if launch.rank():
                return 0
            launch.leave()
        elif launch.is_left_alone():
            errors.print(
                "warning: accelerate started one process: several need as many GPUs, or --multi_gpu\n"
                "  fix: torchrun --nproc_per_node 2 -m labelwright.cli ... starts two on a CPU"
            )
        if launch.asks_for_fsdp() and verb_name not in TRAINING and launch.is_shared():
            raise ConfigError(f"{verb_name} trains nothing that --use_fsdp could share out", fix="use --multi_gpu")
        result = _call(verb_name, dict(values))
        if launch.rank():
            return 0
        from labelwright.reporting import terminal  # heavy: the page of `review` is open before it is needed

        is_over_shards = "engine" in values and hasattr(result, "n_shards")
        (terminal.print_sharded if is_over_shards else terminal.PRINTERS[verb_name])(result, values)
        if verb_name == "fit":
            from labelwright.pipeline.report import content_of

            terminal.print_verdict(content_of(result))
        if (verb_name == "audit" and result.failed) or (verb_name == "verify" and result.faults):
            return 1
    except LabelwrightError as error:
        found = ""
        if isinstance(error, DataError) and error.problems:
            from labelwright.data.checks import format_problems

            found = format_problems(error.problems) + "\n"
        errors.print(f"{found}error: {error}")
        if launch.rank() and (error.exit_code != 2 or not _is_reported()):
            print(f"{found}process {launch.rank()}: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename and error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
            name = str(error.filename)
            name = name if len(name) < 200 else f"{name[:100]}...{name[-50:]}"
            errors.print(f"error: {name} cannot be opened: {error.strerror}\n  fix: check the path")
            return 2
        if error.errno not in OF_THE_DISK:
            raise
        errors.print(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}")
        return 1
    except (KeyboardInterrupt, Exception) as error:
        if not _was_interrupted(error):
            raise
        with_resume = "; continue with the same command and --resume"
        again = {"fit": with_resume, "pretrain": with_resume, "annotate": "; the same command continues from here"}
        again["bench"] = "; the same command runs what is missing"
        if values.get("shard_rows") or values.get("engine") == "ray":
            again[verb_name] = "; the same command makes the shards that are missing"
        errors.print(f"interrupted{again.get(verb_name, '')}")
        return 130
    return 0


def _is_reported() -> bool:
    """Whether the main process, which finds the same bad input, has ended while this one waited for it.

    The launcher ends a process whose neighbour has ended: at once, this one would keep the main one from saying why.
    """
    try:
        time.sleep(SECONDS_TO_REPORT)
    except KeyboardInterrupt:  # by the launcher
        return True
    return False


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an interruption is behind an error: torch.onnx makes one of its own of whatever stops it.

    Example:
      >>> _was_interrupted(KeyboardInterrupt()), _was_interrupted(ValueError())
      (True, False)
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def parse(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb and the values of its flags; prints help or what is wrong and exits (0 or 2) otherwise.

    Raises: ConfigError or DataError for a ``--config`` that cannot be used.

    Example:
      >>> parse(["verify", "run"])
      ('verify', {'run': 'run', 'json': False})
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(overview(min(screen().width, 120)))
        sys.exit(0 if argv else 2)
    name = command_of(argv[0])
    flags, kept = VERBS[name], dict[str, Any]()
    if name == "fit" and (config := (stated := _stated(argv)).pop("config")) is not None:
        kept = from_config(config, stated)
        kept["set"] = tuple(assignments_of(kept.get("set", {})))
        hints = hints_of_fit()
        flags = fit_verb({key: value if fits(value, hints[key]) else None for key, value in kept.items()})
    try:
        command = tyro.cli(flags, prog=f"labelwright {name}", args=_gathered(argv[1:]))
    except SystemExit as stopped:
        if not stopped.code:  # of --help
            screen().print(examples_of(name), soft_wrap=True)
        raise
    values = {f.name: getattr(command, f.name) for f in dataclasses.fields(command)}
    if name == "fit":
        groups = [values.pop(title) for title in GROUPS]
        values |= {f.name: getattr(group, f.name) for group in groups for f in dataclasses.fields(group)}
        # What no flag can say, as a list of class names, stays unless a flag replaces it.
        values |= {key: value for key, value in kept.items() if values[key] is None}
    return name, values


def _stated(argv: Sequence[str]) -> dict[str, str | None]:
    """What follows ``--config``, and the flags that decide how it is read; None where there is no such flag.

    Example:
      >>> _stated(["fit", "--config", "run/config.yaml", "--minutes=20"])
      {'config': 'run/config.yaml', 'model': None, 'epochs': None, 'minutes': '20'}
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "model", "epochs", "minutes"):
        parser.add_argument(f"--{name}", nargs="?")
    return vars(parser.parse_known_args(argv)[0])


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


def _call(name: str, values: dict[str, Any]) -> Any:
    """Call the function of the verb."""
    if name == "demo":
        from labelwright import demo

        return demo.run(values["out"])
    values.pop("json", None)
    if name in ("annotate", "describe"):
        values["approve"] = approval(values.pop("yes"))
    elif name == "fit":
        values["approve"] = approval(True)
        values.pop("config")  # its settings are the defaults of the flags
    elif name == "label":
        values["rename"] = parse_renames(values["rename"])
        if not values["data"]:
            raise ConfigError("nothing to label", fix="name images: labelwright label RUN photos/ --out labels.csv")
        values["data"] = list(values["data"]) if len(values["data"]) > 1 else values["data"][0]
    return getattr(labelwright, name.replace("-", "_"))(**values)


def approval(yes: bool) -> Callable[[Estimate], bool]:
    """Print on standard error what a chat model will be asked, and wait for a yes on a terminal.

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


if __name__ == "__main__":
    main()
