"""Run a sweep of a hundred jobs on a tiny model, and perhaps the same sweep killed at a random moment and gone on with.

    python experiments/sweeps/hundred.py [--jobs 100] [--at-once 2] [--kill] [--folder outputs/sweeps/hundred]

Every job is a whole evaluation with its certificates and files: drafter=jacobi with other windows and refinements. With
`--kill`, a second sweep is ended by SIGKILL at a random moment and started again, and both tables are compared, except
for what the clock decides.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from rich.console import Console

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError

RUN = Path(__file__).parents[2] / "run.py"
REFINEMENTS = 4
SAME = ["drafter.window", "drafter.refine_steps", "status", "tokens_per_forward", "exact", "tie", "mismatch"]


@one_line_script("hundred")
def main(arguments: list[str]) -> None:
    """Print the seconds of the sweep, and what the killed one kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100, help=f"a multiple of {REFINEMENTS} (default: 100)")
    parser.add_argument("--at-once", type=int, default=2, help="jobs that run at the same time (default: 2)")
    parser.add_argument("--kill", action="store_true", help="then the same sweep, killed and gone on with")
    parser.add_argument("--folder", type=Path, default=Path("outputs/sweeps/hundred"), help="is overwritten")
    given = parser.parse_args(arguments)
    if given.jobs < REFINEMENTS or given.jobs % REFINEMENTS or given.at_once < 1:
        raise UserError(f"--jobs: a multiple of {REFINEMENTS}; --at-once: at least 1")
    console = Console()
    whole = given.folder / "whole"
    seconds = run(command(whole, given.jobs, given.at_once), whole)
    table = table_of(whole)
    console.print(
        f"{len(table)} jobs, {given.at_once} at once: {seconds:.0f} s, {seconds / given.jobs:.2f} s a job; "
        f"a job took {table['seconds'].median():.2f} s (median)"
    )
    if given.kill:
        killed = given.folder / "killed"
        after = random.uniform(0.3, 0.9) * seconds
        run(command(killed, given.jobs, given.at_once), killed, kill_after=after)
        begun = (killed / "sweep.csv").is_file()  # the first job writes it
        kept = int((table_of(killed)["status"] == "completed").sum()) if begun else 0
        again = run(command(killed, given.jobs, given.at_once), None)
        same = table_of(killed)[SAME].equals(table[SAME])
        console.print(
            f"killed after {after:.0f} s with {kept} jobs finished, gone on with in {again:.0f} s: "
            f"{'the same table' if same else 'ANOTHER TABLE'}"
        )
        if not same:
            raise UserError(f"sweep.csv in {whole} and {killed} differ")


def command(folder: Path, jobs: int, at_once: int) -> list[str]:
    """Return the sweep's command."""
    steps = ",".join(str(step + 1) for step in range(REFINEMENTS))
    swept = [f"drafter.window=range(2,{2 + jobs // REFINEMENTS})", f"drafter.refine_steps={steps}"]
    launcher = [f"hydra.launcher.n_jobs={at_once}", f"hydra.sweep.dir={folder.absolute()}"]
    return [sys.executable, str(RUN), "-m", "experiment=smoke", "drafter=jacobi", *swept, *launcher]


def run(sweep: list[str], fresh: Path | None, kill_after: float | None = None) -> float:
    """Run a sweep, and return its seconds.

    Args:
        fresh: a folder to remove before; None to go on with what there is.
        kill_after: seconds after which it is killed with all its jobs.
    """
    if fresh is not None:
        shutil.rmtree(fresh, ignore_errors=True)
    begun = time.perf_counter()
    process = subprocess.Popen(
        sweep, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        errors = process.communicate(timeout=kill_after)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    else:
        if process.returncode:
            raise UserError(f"the sweep ended with {process.returncode}: {errors.strip()[-300:]}")
    return time.perf_counter() - begun


def table_of(folder: Path) -> pd.DataFrame:
    """Return the sweep's table in the order of its jobs."""
    return pd.read_csv(folder / "sweep.csv").sort_values("job").reset_index(drop=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
