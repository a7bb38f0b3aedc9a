"""Every family of methods and every shared verb on two processes: the same answers as on one, and a kill of either.

Command: python benchmarks/processes.py --out DIR [--only NAME ...] [--kill] [--launcher] [--csv FILE]

The cases of faults.py, each on one process and on two that exchange gradients, features or answers (gloo, CPU, a thread
each, without a launcher; with --launcher by `accelerate launch --cpu`). Printed are the share of images with the same
label, the largest difference of what was written of them, and the seconds of both. With --kill the second process is
killed half-way: the first one must end with a sentence, and the same command, with --resume, must then come to the same
answers on one process. While processes still look for one another the first one waits, until it is terminated, as a
launcher does.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import faults
from labelwright.benchmarking.results import Row, add_rows

N_PROCESSES = 2
LONGEST_S = 300.0
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


def by_launcher(words: Sequence[str], folder: Path) -> list[int]:
    """Exit code of `accelerate launch`; what is printed goes to ``folder/log0.txt``."""
    ports = ["--main_process_port", "0", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(N_PROCESSES), *ports]
    with (folder / "log0.txt").open("w") as log:
        env = os.environ | {"LABELWRIGHT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "-m", "labelwright.cli", *words], stdout=log, stderr=log, env=env, timeout=2 * LONGEST_S
        )
    return [done.returncode]


def on_two(whole: faults.Undisturbed, name: str, launcher: bool) -> tuple[str, float, float, float]:
    """Run a case on two processes: what is wrong ("" = nothing), seconds, same labels, largest difference."""
    case, out = whole.cases[name], whole.place(f"two {name}", whole.cases[name])
    began = time.monotonic()
    words_of_case = faults.words_of(case, whole.data, out, out / "run")
    codes = by_launcher(words_of_case, out) if launcher else ended(start(words_of_case, out))
    seconds = time.monotonic() - began
    if any(codes):
        return f"exit codes {codes}: {said(out)}", seconds, 0.0, 0.0
    words = (out / "log1.txt").read_text() if (out / "log1.txt").exists() else ""
    same, gap = compared(case, whole.root / f"whole {name}", out)
    return f"the second process prints {words[:80]!r}" if words else "", seconds, same, gap


def killed(whole: faults.Undisturbed, name: str, seconds: float) -> str:
    """Kill the second process half-way, then go on with one: what is wrong, or what the first one wrote."""
    case, out = whole.cases[name], whole.place(f"killed {name}", whole.cases[name])
    words = faults.words_of(case, whole.data, out, out / "run")
    processes = start(words, out)
    processes[1].join(0.5 * seconds)
    if processes[1].exitcode is None:
        os.kill(processes[1].pid, signal.SIGKILL)
    for patience_s, how in ((30.0, signal.SIGTERM), (30.0, signal.SIGKILL)):
        processes[0].join(patience_s)
        if processes[0].exitcode is None:
            os.kill(processes[0].pid, how)
    code = ended(processes)[0]
    line = (out / "log0.txt").read_text().strip().splitlines()
    if code:
        if "Traceback" in "".join(line):
            return f"a traceback: {said(out)}"
        code, _ = faults.finish([*words, *case.again], out)
        if code:
            return f"exit code {code} on going on: {(out / 'log.txt').read_text()[-200:]}"
    same, gap = compared(case, whole.root / f"whole {name}", out)
    ending = next((x.split(" (")[0] for x in line if "error" in x), f"exit code {code}")
    return f"{same:.0%} the same after it, {gap:.0e}; {ending}"


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
    failed = 0
    print(
        "| command | same labels | largest difference | s on one | s on two | after a kill |\n|---|---|---|---|---|---|"
    )
    with faults.one_thread():
        whole = faults.Undisturbed(args.out.resolve())
        for name in args.only or list(whole.cases):
            try:
                _, alone = whole.of(name)
                wrong, seconds, same, gap = on_two(whole, name, args.launcher)
                after = killed(whole, name, seconds) if args.kill and not wrong else ""
            except TimeoutError as error:  # a machine that does much else: the other cases may be done in time
                failed += 1
                print(f"| {name} | {error} |", flush=True)
                continue
            failed += bool(wrong)
            print(f"| {name} | {same:.1%} | {gap:.1e} | {alone:.1f} | {seconds:.1f} | {wrong or after} |", flush=True)
            figures = {"same_labels_pct": 100 * same, "largest_difference": gap}
            how = "accelerate launch" if args.launcher else "no launcher"
            if args.kill and (found := re.match(r"(\d+)% the same", after)):
                figures["after_a_kill_pct"] = float(found[1])
            rows: list[Row] = [
                {
                    "table": f"processes.py {how}",
                    "cell": name.replace(" ", "_"),
                    "title": name,
                    "metric": metric,
                    "value": f"{value:.3g}",
                    "n_seeds": "1",
                    "seconds": f"{seconds:.1f}",
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
