"""Every family of methods and every shared verb on two processes: the same answers as on one, and a kill of either.

Command: python benchmarks/processes.py --out DIR [--only NAME ...] [--kill] [--launcher] [--csv FILE]

The cases of faults.py, each on one process and on two that exchange gradients, features or answers (gloo, CPU, a thread
each, without a launcher; with --launcher by `accelerate launch --multi_gpu`, which starts processes without GPUs, too:
its --cpu starts a single one). Printed are the share of images with the same label, the largest difference of what was
written of them, and the seconds of both. With --kill the second process is killed: of a run as soon as it has ended an
epoch, of what has none half-way through its work. The first one must end with a sentence, and the same command,
with --resume, must then come to the same answers on one process and, from a copy of what was left, on two. While
processes still look for one another the first one waits, until it is terminated, as a launcher does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq

import faults
from labelwright.benchmarking.results import Row, add_rows

N_PROCESSES = 2
LONGEST_S = 300.0
AFTER = {False: 0.5, True: 0.7}  # of the seconds of a command, by whether a launcher takes some of them
LAUNCH = (
    *("--multi_gpu", "--num_processes", str(N_PROCESSES), "--num_machines", "1", "--main_process_port", "0"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
)
NUMBERS = ("probability", "softmax", "trust", "runner_up_probability")


def _child(words: Sequence[str], log: str, cache: str, launched: Mapping[str, str]) -> None:
    os.environ.update(launched)
    faults._child(words, log, cache)


def start(words: Sequence[str], folder: Path) -> list[Any]:
    """The processes of one command; what each prints goes to ``folder/log0.txt``, ``folder/log1.txt``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    shared |= {"WORLD_SIZE": str(N_PROCESSES), "LOCAL_WORLD_SIZE": str(N_PROCESSES)}
    found = []
    for k in range(N_PROCESSES):
        launched = shared | {"RANK": str(k), "LOCAL_RANK": str(k)}
        process = faults.server().Process(
            target=_child, args=(list(words), str(folder / f"log{k}.txt"), str(folder / "cache"), launched)
        )
        process.start()
        found.append(process)
    return found


def ended(processes: Sequence[Any]) -> list[int]:
    """Exit codes, once all have ended; those that do not are killed, and raise."""
    until = time.monotonic() + LONGEST_S
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    hung = [process for process in processes if process.exitcode is None]
    for process in hung:
        process.kill()
    if hung:
        raise TimeoutError(f"{len(hung)} processes did not end within {LONGEST_S:.0f} s")
    return [int(process.exitcode) for process in processes]


def compared(case: faults.Case, one: Path, two: Path) -> tuple[float, float]:
    """Share of images with the same label, and the largest difference of a number; of files, 1 where all are equal."""
    paths = [root / "run" / "labels.parquet" for root in (one, two)]
    if case.result is not faults.of_run or not paths[0].exists():
        wanted, found = (case.result(root) for root in (one, two))
        same = [found.get(name) == content for name, content in wanted.items() if not name.endswith("log.txt")]
        return float(np.mean(same)), float("nan")
    first, second = (pq.read_table(path) for path in paths)
    alike = np.array(first["label"].to_pylist()) == np.array(second["label"].to_pylist())
    gaps = [
        float(np.abs(first[name].to_numpy() - second[name].to_numpy()).max())
        for name in NUMBERS
        if name in first.column_names
    ]
    return float(alike.mean()), max(gaps)


def said(folder: Path) -> str:
    """The last lines of all processes."""
    return " | ".join(path.read_text()[-200:].strip() for path in sorted(folder.glob("log[0-9].txt")) if path.exists())


def start_launcher(words: Sequence[str], folder: Path) -> psutil.Popen:
    """`accelerate launch` with two processes; what is printed goes to ``folder/log0.txt``."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "-m", "labelwright.cli", *words]
    env = os.environ | {"LABELWRIGHT_CACHE": str(folder / "cache")}
    with (folder / "log0.txt").open("w") as log:
        return psutil.Popen(command, stdout=log, stderr=log, env=env)


def second_of(launcher: psutil.Popen) -> psutil.Process | None:
    """The second process of a launcher, once it is there."""
    with contextlib.suppress(psutil.Error):  # the launcher or the process has ended
        return next((child for child in launcher.children() if child.environ().get("RANK") == "1"), None)
    return None


def on(n_processes: int, words: Sequence[str], folder: Path, *, launcher: bool) -> list[int]:
    """Exit codes of a command that nobody disturbs."""
    if n_processes == 1:
        return [faults.finish(words, folder)[0]]
    if not launcher:
        return ended(start(words, folder))
    return [start_launcher(words, folder).wait(2 * LONGEST_S)]


def on_two(whole: faults.Undisturbed, name: str, launcher: bool) -> tuple[str, float, float, float]:
    """Run a case on two processes: what is wrong ("" = nothing), seconds, same labels, largest difference."""
    case, out = whole.cases[name], whole.place(f"two {name}", whole.cases[name])
    began = time.monotonic()
    codes = on(2, faults.words_of(case, whole.data, out, out / "run"), out, launcher=launcher)
    seconds = time.monotonic() - began
    if any(codes):
        return f"exit codes {codes}: {said(out)}", seconds, 0.0, 0.0
    words = (out / "log1.txt").read_text() if (out / "log1.txt").exists() else ""
    same, gap = compared(case, whole.root / f"whole {name}", out)
    return f"the second process prints {words[:80]!r}" if words else "", seconds, same, gap


def has_epoch(log: Path) -> bool:
    """Whether a run has ended an epoch."""
    return log.exists() and '"kind": "epoch"' in log.read_text(encoding="utf-8")


def kill_second(
    words: Sequence[str], out: Path, after_s: float, *, launcher: bool, is_trained: bool
) -> tuple[bool, int]:
    """Run a command on two processes and kill the second: whether that came in time, and the exit code that is left."""
    if launcher:
        first: Any = start_launcher(words, out)
    else:
        first, second = start(words, out)
    log, until = out / "run" / "metrics.jsonl", time.monotonic() + after_s
    while (first.poll() if launcher else first.exitcode) is None:
        if has_epoch(log) if is_trained else time.monotonic() > until:
            break
        time.sleep(0.005)
    victim: Any = second_of(first) if launcher else second
    is_in_time = victim is not None and (launcher or second.exitcode is None)
    if is_in_time:
        victim.kill()
    if launcher:
        return is_in_time, int(first.wait(2 * LONGEST_S))
    for patience_s, how in ((30.0, signal.SIGTERM), (30.0, signal.SIGKILL)):
        first.join(patience_s)
        if first.exitcode is None:
            os.kill(first.pid, how)
    return is_in_time, ended([first, second])[0]


def killed(
    whole: faults.Undisturbed, name: str, seconds: float, launcher: bool
) -> tuple[str, dict[str, tuple[float, float]]]:
    """Kill the second process, then go on with one and with two: how that ended, and same labels and difference."""
    case, out = whole.cases[name], whole.place(f"killed {name}", whole.cases[name])
    words = faults.words_of(case, whole.data, out, out / "run")
    is_trained = bool(case.again) and has_epoch(whole.root / f"whole {name}" / "run" / "metrics.jsonl")
    is_in_time, code = kill_second(words, out, AFTER[launcher] * seconds, launcher=launcher, is_trained=is_trained)
    lines = (out / "log0.txt").read_text().strip().splitlines()
    ours = [line for line in lines if line.startswith(("error", "interrupted"))]
    sentence = ours[0].split(" (")[0] if ours else f"exit code {code}"
    is_done = not code or (not case.again and compared(case, whole.root / f"whole {name}", out)[0] == 1)
    if not is_in_time or is_done:
        return "done before the kill, or without the second process", {}
    if "Traceback" in (out / "log0.txt").read_text().split("torch/distributed")[0]:
        raise RuntimeError(f"{name}: a traceback: {said(out)}")
    found = {}
    for n in (1, 2):
        copy = whole.root / f"killed {name}, on {n}"
        shutil.copytree(out, copy)
        words = faults.words_of(case, whole.data, copy, copy / "run")
        codes = on(n, [*words, *case.again], copy, launcher=launcher)
        if any(codes):
            raise RuntimeError(f"{name}: exit codes {codes} on going on with {n}: {said(copy)}")
        found[f"resumed_on_{n}"] = compared(case, whole.root / f"whole {name}", copy)
    return sentence, found


def main() -> None:
    """Print a row per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to work in; must not exist")
    parser.add_argument("--only", nargs="+", help="names of cases")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--launcher", action="store_true", help="by accelerate launch")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    failed, how = 0, "accelerate launch" if args.launcher else "no launcher"
    print(
        "| command | same labels | largest difference | s on one | s on two | resumed on one | on two | it said |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    with faults.one_thread():
        whole = faults.Undisturbed(args.out.resolve())
        for name in args.only or list(whole.cases):
            try:
                _, alone = whole.of(name)
                wrong, seconds, same, gap = on_two(whole, name, args.launcher)
                sentence, after = killed(whole, name, seconds, args.launcher) if args.kill and not wrong else ("", {})
            except (TimeoutError, RuntimeError) as error:  # the other cases may go well
                failed += 1
                print(f"| {name} | {error} |", flush=True)
                continue
            failed += bool(wrong)
            shown = [f"{again:.1%}, {apart:.1e}" for again, apart in after.values()] or ["", ""]
            print(
                f"| {name} | {same:.1%} | {gap:.1e} | {alone:.1f} | {seconds:.1f} | {' | '.join(shown)} |"
                f" {wrong or sentence} |",
                flush=True,
            )
            figures = {"same_labels_pct": 100 * same, "largest_difference": gap}
            for resumed, (again, apart) in after.items():
                figures |= {f"{resumed}_pct": 100 * again, f"{resumed}_difference": apart}
            rows: list[Row] = [
                {
                    "table": f"processes.py {how}",
                    "cell": name.replace(" ", "_"),
                    "title": name,
                    "metric": metric,
                    "value": np.format_float_positional(value, precision=3, fractional=False, trim="-"),
                    "n_seeds": "1",
                    "commit": commit,
                    "hardware": "cpu (2 processes, a thread each)",
                }
                for metric, value in figures.items()
                if not np.isnan(value)
            ]
            if args.csv is not None:
                add_rows(args.csv, rows)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
