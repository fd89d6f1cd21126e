"""What each process of a group does in test_ranks.py: distances that all of them share.

Run as ``python ranks.py RANK FOLDER MODE``.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed, nn

from riemae import Manifold

RANK = int(sys.argv[1])
FOLDER = Path(sys.argv[2])
MODE = sys.argv[3]

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8)).double().requires_grad_(False)
M = Manifold(NET)
Z = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

distributed.init_process_group(
    "gloo", init_method=f"file://{FOLDER / 'store'}", rank=RANK, world_size=2
)


def told(module):
    """Count the geodesics of this process, and let each of the two have a first block."""
    solve = module.geodesic
    counts = []

    def geodesic(space, start, stop, **options):
        if not counts and not (MODE == "dies" and module is matrix):
            distributed.barrier()
            if MODE == "dies" and RANK == 1:
                time.sleep(1)  # the other has left the barrier, too
                os.kill(os.getpid(), signal.SIGKILL)
        counts.append(len(start))
        return solve(space, start, stop, **options)

    module.geodesic = geodesic
    return counts


search = sys.modules["riemae.solvers.candidates"]
search._BLOCK = 16
matrix = sys.modules["riemae.solvers.matrix_work"]
solved = {"neighbors": told(search), "matrix": told(matrix)}

found = M.neighbors(Z, 4, out=FOLDER / "n")
found.save(FOLDER / f"n{RANK}")
distances = M.distance_matrix(Z, block_size=64, out=FOLDER / "d.npy")
torch.save(distances.clone(), FOLDER / f"d{RANK}.pt")
again = M.neighbors(Z, 4, out=FOLDER / "n")
assert torch.equal(again.distances, found.distances)
(FOLDER / f"solved{RANK}.json").write_text(json.dumps({k: sum(v) for k, v in solved.items()}))
