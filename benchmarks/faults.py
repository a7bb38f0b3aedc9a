"""Kill every method and verb at random moments, go on, and compare; alter files of every kind, and see each found.

Command: python benchmarks/faults.py --kills 100 --out DIR    (or: make faults)

A process that has loaded everything once forks a child per command, so a kill costs the command alone. A killed run
goes on with --resume, a killed verb with the same command; labels, weights and written files must then be those of a
run that nobody disturbed, byte for byte. One thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LOADED = [
    *("torch.utils.tensorboard", "sympy", "tyro"),
    "labelwright.api",
    "labelwright.cli",
    "labelwright.reporting.terminal",
    "sklearn.linear_model",
    "transformers",
]
LONGEST_S = 240.0
QUICK = ["--device", "cpu", "--precision", "fp32", "--checkpoint-minutes", "0"]
N_CLASSES, N_FEATURES = 3, 12


# ---- commands in processes of their own -----------------------------------------------------------------------------


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The processes started within compute on one thread and reach no network."""
    before = dict(os.environ)
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MKL_NUM_THREADS": "1"})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def server() -> Any:
    """What starts the processes."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(LOADED)
    return made


def _child(words: Sequence[str], log: str, cache: str) -> None:
    sys.stdout = sys.stderr = Path(log).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 (until the end)
    os.environ["LABELWRIGHT_CACHE"] = cache
    import torch

    from labelwright import cli
    from labelwright.encoders import at_hand

    torch.set_num_threads(1)
    at_hand.at_hand = lambda: None  # what else is on this machine decides nothing
    cli.main(words)


def start(words: Sequence[str], folder: Path) -> Any:
    """A process that runs a command of labelwright; what it prints goes to ``folder/log.txt``."""
    made = server().Process(target=_child, args=(list(words), str(folder / "log.txt"), str(folder / "cache")))
    made.start()
    return made


def finish(words: Sequence[str], folder: Path) -> tuple[int, float]:
    """Run a command to its end: exit code and seconds."""
    began, process = time.monotonic(), start(words, folder)
    process.join(LONGEST_S)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{words} took more than {LONGEST_S} s")
    return process.exitcode, time.monotonic() - began


def killed(words: Sequence[str], folder: Path, after_s: float, how: int = signal.SIGKILL) -> int:
    """Run a command and send it a signal after so long; its exit code."""
    process = start(words, folder)
    process.join(after_s)
    if process.exitcode is None:
        os.kill(process.pid, how)
    process.join(LONGEST_S)
    return int(process.exitcode)


# ---- tiny data ------------------------------------------------------------------------------------------------------


def write_data(root: Path) -> None:
    """Features of every kind of labels, as .npz and Parquet, and a folder of images."""
    draws = np.random.default_rng(0)
    centres = np.linalg.qr(draws.normal(size=(N_FEATURES, N_FEATURES)))[0][: N_CLASSES + 1]
    classes = np.repeat(np.arange(N_CLASSES), [30, 18, 12])
    feats = (centres[classes] + 0.25 * draws.normal(size=(len(classes), N_FEATURES))).astype(np.float32)
    names = np.array(["cat", "dog", "owl"])
    labels = names[classes]
    few = np.where(np.arange(len(classes)) % 3 == 0, labels, "")
    text = {"class_embeddings": centres[:N_CLASSES].astype(np.float32), "class_names": names, "logit_scale": 12.0}
    np.savez(root / "labelled.npz", embeddings=feats, labels=labels)
    np.savez(root / "few.npz", embeddings=feats, labels=few)
    np.savez(root / "text.npz", embeddings=feats, labels=few, **text)
    seen = np.where((classes < N_CLASSES - 1) & (np.arange(len(classes)) % 2 == 0), labels, "")
    np.savez(root / "open.npz", embeddings=feats, labels=seen)
    sets = [sorted({names[c], names[draws.integers(N_CLASSES)]}) for c in classes]
    columns = {"embedding": list(feats), "candidates": sets, "label": [str(each) or None for each in few]}
    pq.write_table(pa.table(columns), root / "sets.parquet")
    for kind, n in (("photos", 10), ("new", 4)):
        for c, name in enumerate(names):
            (root / kind / name).mkdir(parents=True)
            for i in range(n):
                pixels = np.full((16, 16, 3), 60 * c, np.uint8) + draws.integers(0, 60, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / kind / name / f"{i}.png")
    (root / "loose").mkdir()
    for path in sorted((root / "new").rglob("*.png")):
        (root / "loose" / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    (root / "own.py").write_text(
        "import numpy as np\ndef embed(images):\n    return [np.asarray(i).mean((0, 1)) for i in images]\n"
    )
    (root / "names.txt").write_text("cat\ndog\nowl\n")


# ---- what is killed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A command to kill.

    Attributes:
      name: of the method or verb.
      words: the command; DATA, RUN and OUT stand for folders.
      result: what of OUT must be the same, as bytes by name.
      again: more words of the command that goes on.
      on: the case whose finished run it works on, a copy of which is RUN.
    """

    name: str
    words: tuple[str, ...]
    result: Callable[[Path], dict[str, bytes]]
    again: tuple[str, ...] = ()
    on: str = ""


def of_run(out: Path) -> dict[str, bytes]:
    """Weights, labels and scores of a run."""
    run = out / "run"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    kept = {"test": summary.get("test"), "warnings": summary["warnings"]}
    found = {"weights": (run / "model" / "model.safetensors").read_bytes(), "scores": json.dumps(kept).encode()}
    labels = run / "labels.parquet"
    return found | ({"labels": repr(pq.read_table(labels).to_pylist()).encode()} if labels.exists() else {})


def of_files(out: Path) -> dict[str, bytes]:
    """Everything that was written, but for locks, logs, caches, and the path of the run in its page."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix not in (".lock", ".txt")]
    kept = [path for path in paths if path.relative_to(out).parts[0] != "cache"]
    found = {str(path.relative_to(out)): _content(path) for path in kept}
    for name in [name for name in found if name.endswith("report.html")]:
        found[name] = found[name].replace(str(out).encode(), b"OUT")
        sums = json.loads(found[name.replace("report.html", "checksums.json")])
        found[name.replace("report.html", "checksums.json")] = repr(sums | {"report.html": None}).encode()
    return found


def _content(path: Path) -> bytes:
    return repr(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else path.read_bytes()


def fit(method: str, data: str, *more: str) -> Case:
    """A run of a method on features."""
    words = ("fit", f"DATA/{data}", "--out", "OUT/run", "--method", method, *QUICK, *more)
    return Case(method, words, of_run, ("--resume",))


def cases() -> list[Case]:
    """Every family of methods, and every verb that writes."""
    epochs = ("--epochs", "4")
    labelled = [fit(m, "labelled.npz", *epochs) for m in ("cvs", "ce", "ldam_drw", "vs", "focal")]
    labelled += [fit(m, "labelled.npz") for m in ("cross_validated", "class_balanced", "nearest_mean")]
    text = [fit(m, "text.npz", *epochs) for m in ("cap", "fpl", "fixmatch_text")]
    text += [fit(m, "text.npz") for m in ("zero_shot", "transclip", "zlap")]
    sets = [fit(m, "sets.parquet", *epochs) for m in ("coreg", "coreg_frozen", "proden", "cc", "pico", "crdpll")]
    world = [fit(m, "open.npz", "--novel", "1", *epochs) for m in ("lps", "orca", "simgcd", "ss_kmeans")]
    few = [fit("beliefs", "few.npz")]
    pixels = ("--size", "16", *QUICK)
    clip = ("--model", "labelwright/digits-clip")
    return [
        *labelled,
        *text,
        *sets,
        *world,
        *few,
        Case(
            "ce on pixels", ("fit", "DATA/photos", "--out", "OUT/run", "--epochs", "2", *pixels), of_run, ("--resume",)
        ),
        Case(
            "pretrain", ("pretrain", "DATA/photos", "--out", "OUT/run", "--epochs", "2", *pixels), of_run, ("--resume",)
        ),
        Case(
            "fit on stored features",
            (
                "fit",
                "DATA/photos",
                "--out",
                "OUT/run",
                "--views",
                "embeddings",
                *clip,
                *QUICK,
                "--method",
                "ce",
                *epochs,
            ),
            of_run,
            ("--resume",),
        ),
        Case("label .csv", ("label", "RUN", "DATA/new", "--out", "OUT/labels.csv"), of_files, on="ce on pixels"),
        Case("label folder", ("label", "RUN", "DATA/new", "--out", "OUT/sorted"), of_files, on="ce on pixels"),
        Case("report", ("report", "RUN"), of_files, on="ce"),
        Case("classes", ("classes", "RUN", "rename", "novel-1", "okapi"), of_run, on="lps"),
        Case("audit", ("audit", "DATA/photos", *clip, "--out", "OUT/audit.csv"), of_files),
        Case("embed", ("embed", "DATA/photos", "--function", "DATA/own.py:embed", "--out", "OUT/f.npz"), of_files),
        Case(
            "annotate",
            (
                "annotate",
                "DATA/loose",
                *clip,
                "--classes",
                "DATA/names.txt",
                "--out",
                "OUT/c.parquet",
            ),
            of_files,
        ),
    ]


def words_of(case: Case, data: Path, out: Path, run: Path) -> list[str]:
    """The command, with its folders."""
    return [word.replace("DATA", str(data)).replace("OUT", str(out)).replace("RUN", str(run)) for word in case.words]


class Undisturbed:
    """What each case comes to when nobody disturbs it, and how long it takes; found once."""

    def __init__(self, root: Path) -> None:
        self.root, self.data = root, root / "data"
        self.data.mkdir(parents=True)
        write_data(self.data)
        self.cases = {case.name: case for case in cases()}
        self.known: dict[str, tuple[dict[str, bytes], float]] = {}

    def of(self, name: str) -> tuple[dict[str, bytes], float]:
        """Result and seconds."""
        if name not in self.known:
            case, out = self.cases[name], self.place(f"whole {name}", self.cases[name])
            code, seconds = finish(words_of(case, self.data, out, out / "run"), out)
            if code:
                raise RuntimeError(f"{name} ends with {code}: {(out / 'log.txt').read_text()}")
            self.known[name] = case.result(out), seconds
        return self.known[name]

    def place(self, name: str, case: Case) -> Path:
        """A new folder for a case, with the run that it works on."""
        out = self.root / name
        out.mkdir()
        if case.on:
            self.of(case.on)
            shutil.copytree(self.root / f"whole {case.on}" / "run", out / "run")
        return out

    def after_kills(self, name: str, moments: Sequence[float], place: str) -> str:
        """Kill a case at shares of its time, one after another, and let it end; "" if its result is as it should be."""
        case, (wanted, seconds) = self.cases[name], self.of(name)
        out = self.place(place, case)
        words = words_of(case, self.data, out, out / "run")
        for share in moments:
            killed(words, out, share * seconds)
            words = [*words, *(again for again in case.again if again not in words)]
        code, _ = finish(words, out)
        said = (out / "log.txt").read_text()
        if (
            code == 2 and not case.again and ("exists" in said or "has no class 'novel-1'" in said)
        ):  # it was done before the kill came
            code = 0
        if code:
            return f"exit code {code}: {said[-300:]}"
        if "Traceback" in said:
            return f"a traceback: {said[-300:]}"
        found = {key: value for key, value in case.result(out).items() if not key.endswith(".tmp")}
        return ", ".join(f"{key} differs" for key in wanted if found.get(key) != wanted[key])


# ---- what is altered ------------------------------------------------------------------------------------------------


def alter(path: Path, draws: random.Random) -> None:
    """Change one bit of a file, somewhere."""
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def altered(whole: Undisturbed, n: int, draws: random.Random) -> list[tuple[str, str]]:
    """Files of a finished run, checkpoints, stores and caches, each with what came of changing one bit of it."""
    whole.of("fit on stored features")
    base = whole.root / "whole fit on stored features"
    of_a_run = [
        *("model/model.safetensors", "model/config.json", "labels.parquet", "summary.json", "data.json", "config.yaml"),
        *("metrics.jsonl", "report.html", "environment.json", "model/README.md", "checkpoints/last.pt"),
    ]
    stores = [str(path.relative_to(base)) for path in (base / "cache").rglob("*") if path.suffix == ".npy"]
    kinds = [*(f"run/{name}" for name in of_a_run), *stores]
    found = []
    for i in range(n):
        name, out = kinds[i % len(kinds)], whole.root / f"altered {i}"
        shutil.copytree(base, out)
        alter(out / name, draws)
        (out / "log.txt").write_text("")
        if name.startswith("run/"):
            code, _ = finish(["verify", str(out / "run")], out)
            what = "found by verify" if code == 1 else f"NOT FOUND, exit code {code}"
        else:
            shutil.rmtree(out / "run")
            case = whole.cases["fit on stored features"]
            code, _ = finish(words_of(case, whole.data, out, out / "run"), out)
            is_same = code == 0 and case.result(out) == whole.of(case.name)[0]
            is_told = "made anew" in (out / "log.txt").read_text()
            what = "made anew, the same result" if is_same and is_told else f"NOT FOUND, exit code {code}"
        found.append((name if name.startswith("run/") else f"cache/…/{Path(name).suffix[1:]}", what))
    return found


def main() -> None:
    """Print a table of the kills, and one of the altered files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill, after a run that was cut off")
    parser.add_argument("--altered", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to work in; must not exist")
    args = parser.parse_args()
    draws, failed = random.Random(args.seed), 0
    with one_thread():
        whole = Undisturbed(args.out.resolve())
        names = list(whole.cases)
        for k in range(args.kills):
            name, share = names[k % len(names)], draws.uniform(0.02, 1.0)
            if k < args.first:
                continue
            try:
                what = whole.after_kills(name, [share], f"kill {k}")
            except RuntimeError as error:  # the command fails with nobody disturbing it
                what = str(error)
            failed += bool(what)
            print(
                f"{k:4d}  {name:24s} killed at {share:4.0%} of its time  {what or 'identical'}",
                flush=True,
            )
            shutil.rmtree(args.out / f"kill {k}", ignore_errors=True)
        n = args.kills - args.first
        print(f"{n} kills: {n - failed} identical results")
        for name, what in altered(whole, args.altered, draws):
            failed += "NOT" in what
            print(f"{name:32s} {what}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
