"""Which of a run's processes this is, settled before anything else happens.

Rank 0 is the process that the user started, and it starts the others (see `processes`). Ranks come from nowhere else.
Variables such as RANK or SLURM_PROCID, which other launchers set and shells keep, are ignored: a single run would take
itself for one of several, and leave the work or the result to another.

Every command imports this module, so it imports nothing slow.
"""

from __future__ import annotations

import os
import sys
import time

from selfdraft.app.terminal.console import drop_unwritten
from selfdraft.tracking.files.rank import process_rank, set_process_rank

MAIN = "SELFDRAFT_MAIN_PROCESS"  # process id of rank 0, in the environment of the ranks that it has started
RANK = "LOCAL_RANK"  # all processes are on this machine
OWN_CORES = "SELFDRAFT_OWN_CORES"  # set for ranks that were started on cores of their own
REPORTED = ("RANK", RANK, "WORLD_SIZE")  # ignored with a message: whoever set these may expect an effect
IGNORED = (
    *REPORTED,
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "JSM_NAMESPACE_RANK",
)
SETTLE_S = 3.0  # seconds until every process has met a mistake that all of them meet, and rank 0 has printed it


def settle_rank() -> None:
    """Find out this process's rank in its run, and remove the variables that other launchers set for it.

    Raises:
        SystemExit: the run that started this process has ended.
    """
    rank = 0
    if MAIN in os.environ:
        if os.environ[MAIN] != str(os.getppid()):
            sys.exit(f"selfdraft: the run that started this process has ended; if you did not mean one, unset {MAIN}")
        rank = int(os.environ[RANK])
    else:
        found = [name for name in IGNORED if os.environ.pop(name, None) is not None]
        if ignored := [name for name in found if name in REPORTED]:
            print(
                f"selfdraft: {', '.join(ignored)} in the environment ignored: a run starts its processes itself "
                "(hardware=cpu_ddp or gpu_ddp, hardware.devices)",
                file=sys.stderr,
            )
    set_process_rank(rank)


def tell_mistake(line: str) -> None:
    """Print the message of a mistake that ends this process, unless rank 0 prints the same one.

    Every process of a run reads the same configuration, so rank 0 prints a mistake for all and then ends the others,
    which wait for that. A process prints only a mistake that rank 0 does not meet.
    """
    drop_unwritten()  # this also flushes earlier output, which belongs before the line
    if rank := process_rank():
        time.sleep(SETTLE_S)
        line = f"process {rank}: {line}"
    print(f"selfdraft: {line}", file=sys.stderr, flush=True)
