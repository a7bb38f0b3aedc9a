"""Training runs as a process of their own, to be killed, interrupted or run beside another.

Usage: python tiny_run.py OUT '{"name": "cvs", "counts": [..], "settings": {..}, ...}'    one run, its folder OUT
       python tiny_run.py OUT '{"first": {...}, "second": {...}}'    several, without folders; RANK says which process
                                                                     writes OUT/state0.pt, OUT/state1.pt
"""

import json
import os
import sys
from pathlib import Path

import torch

import tiny
from labelwright import cli
from labelwright.run_folder import Run


def main(out: Path, wanted: dict[str, object]) -> None:
    torch.set_num_threads(1)
    if "name" in wanted:
        run = Run(out)
        tiny.run_method(run=run, **wanted)  # type: ignore[arg-type]
        run.close()
        return
    found = {}
    for name, order in wanted.items():
        assert isinstance(order, dict)
        if "verb" in order:
            assert cli.run(order["verb"]) == 0
            continue
        resumed = {"run": Run(out / order.pop("resumes"))} if "resumes" in order else {}
        trained, losses = tiny.run_method(**order, **resumed)
        found[name] = {"tensors": tiny.tensors_of(trained.state), "losses": losses}
    torch.save(found, out / f"state{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
