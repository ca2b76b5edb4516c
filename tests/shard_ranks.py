"""One process of a group that divides a target's layers:  python tests/shard_ranks.py RANK FOLDER

Writes to FOLDER/RANK.json what it held, and whether the teacher outputs stayed the same; tests/models/test_shards.py
reads it.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.training.shards import shard_layers
from selfdraft.models.training.teacher import TeacherOutputs, TeacherOutputStore, teach

RANKS = 2
MIB = 1 << 20


def held(tries: int = 10) -> float:
    """MiB of all tensors that are alive in this process, at the quietest of some moments.

    A thread of gloo lets go of what it gathered a moment after the operation has ended, on a busy machine later still.
    """
    found = []
    for _ in range(tries):
        gc.collect()
        tensors = [each for each in gc.get_objects() if issubclass(type(each), Tensor) and type(each) is not DTensor]
        found.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))
        time.sleep(0.05)
    return min(found) / MIB


def equal(left: TeacherOutputs, right: TeacherOutputs) -> bool:
    """Whether the outputs are the same bit by bit."""
    pairs = [(left.final, right.final)]
    for part in ("states", "keys", "values"):
        ours, theirs = getattr(left, part), getattr(right, part)
        assert ours.keys() == theirs.keys()
        pairs += [(ours[layer], theirs[layer]) for layer in ours]
    return all(torch.equal(*pair) for pair in pairs)


def greatest(count: int) -> int:
    """The greatest of the processes' counts."""
    found = torch.tensor(count)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    start = held()
    model = tiny_model("llama", seed=0, hidden=256).requires_grad_(False)
    target = Target(model, packed=False)
    layers = sum(p.numel() for layer in target.full.layers for p in layer.parameters()) * 4 / MIB
    tokens = torch.randint(90, (3, 12), generator=torch.Generator().manual_seed(1))
    given = tokens, torch.arange(12).expand(3, -1), torch.zeros(3, 12, dtype=torch.long)

    def run(*batch: Tensor) -> TeacherOutputs:
        runs.append(1)
        return teach(target, *batch, layers=[2, 3], before=[2])

    runs: list[int] = []
    whole = run(*given)
    stored = TeacherOutputStore(run)(*given)
    before = held() - start
    shard_layers(target, torch.device("cpu"))
    after = held() - start
    same = equal(whole, run(*given))
    for _ in range(5):
        run(*given)
    again = held() - start
    # The first process has all rows in the end, the second only one; a row that is known is not run again.
    runs.clear()
    store = TeacherOutputStore(run, greatest)
    store(*(part[:1] for part in given))
    remembered = store(*(given if rank == 0 else (part[:1] for part in given)))
    (folder / f"{rank}.json").write_text(
        json.dumps(
            {
                "layers": layers,
                "before": before,
                "after": after,
                "again": again,
                "same": same,
                "stored": rank > 0 or equal(stored, remembered),
                "runs": len(runs),
            }
        )
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
