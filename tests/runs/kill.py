"""Kill a run again and again, at random moments, and see whether it ends as if nobody had.

    python tests/runs/kill.py [--kills 20] [--recipe blitz] [--compile] [--seed 0] [--no-figures]

Every process of the run is killed with SIGKILL, which nothing can catch, and the run is resumed;
it saves its state after every few steps, so that many kills hit a file that is being written. When
a run comes to its end its digest is compared with that of a run that was left alone; while kills
are left, another run begins. Exit status 0: every run ended with the same digest and metrics.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcifar.runs.verify import verify
from fcifar.train import run_dir
from tests.helpers import undrawn
from tests.helpers.training import records

QUIET = ("--quiet", "--json", "--debug")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--recipe", default="blitz")
    parser.add_argument("--dataset", default="shapes10")
    parser.add_argument("--steps", default="7", help="between two checkpoints")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-figures", action="store_true", help="which take two seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("more", nargs="*", help="options of fcifar train, after --")
    options = parser.parse_args(words)
    begin = ["train", options.recipe, "--dataset", options.dataset, "--seed", "3", *options.more]
    begin += ["--checkpoint-every", options.steps, *(["--compile"] if options.compile else [])]
    with tempfile.TemporaryDirectory() as folder:
        program = [undrawn.PATH] if options.no_figures else ["-m", "fcifar"]
        program = [sys.executable, *program]
        return kill_often(program, begin, Path(folder), options.kills, random.Random(options.seed))


def kill_often(
    program: list[str], begin: list[str], folder: Path, kills: int, moments: random.Random
) -> int:
    """Run to the end once, then with ``kills`` kills; 0 if nothing differs."""
    started = time.monotonic()
    subprocess.run([*program, *begin, *QUIET, "--out", str(folder / "whole")], check=True)
    seconds = time.monotonic() - started
    whole = outcome(folder / "whole")
    print(f"left alone: {seconds:.1f} s, digest {whole['digest'][:16]}", flush=True)
    killed = number = different = 0
    while killed < kills:
        number += 1
        run = folder / f"run{number}"
        while True:
            resumable = (run / run_dir.MANIFEST).exists()
            words = ["train", "--resume", str(run)] if resumable else [*begin, "--out", str(run)]
            moment = moments.uniform(0, seconds) if killed < kills else None
            if not _run_and_kill([*program, *words, *QUIET], moment):
                break
            killed += 1
            saved = sorted(path.name for path in run.glob("*")) if run.exists() else []
            print(f"kill {killed} of run {number} after {moment:.2f} s: {saved[:3]}", flush=True)
        same = outcome(run) == whole and not verify(run)
        different += not same
        print(f"run {number} ended: {'the same' if same else 'DIFFERENT'}", flush=True)
    print(f"{killed} kills in {number} runs; {different} ended differently")
    return min(different, 1)


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on kills: digest, metrics, and the files that are there."""
    return {
        "digest": run_dir.read_report(run)["params_digest"],
        "records": records(run),
        "predictions": (run / run_dir.PREDICTIONS).read_bytes(),
        "partial": [path.name for path in run.glob(".*partial*")],
    }


def _run_and_kill(command: list[str], moment: float | None) -> bool:
    """Whether the process was still there to be killed after so many seconds."""
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            status = process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return True
    if status:
        raise SystemExit(f"{' '.join(command)} failed with {status}")
    return False


if __name__ == "__main__":
    sys.exit(main())
