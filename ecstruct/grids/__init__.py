"""Sweeps: experiments on a grid of models, learning rates, epochs and seeds, each cell a job of its own.

* `grid`: what is swept over, read from YAML
* `cell`: one cell as a job that may be killed and run again
* `executors`: where jobs run, here or on Slurm
* `run`: all cells of a grid, with retries, and on from where they stopped
* `status`, `combine`: what there is, as tables and as a report
"""

from ecstruct.grids.grid import Cell, Grid
from ecstruct.grids.run import run_sweep, sweep
from ecstruct.grids.status import show_status, status

__all__ = ["Cell", "Grid", "run_sweep", "show_status", "status", "sweep"]
