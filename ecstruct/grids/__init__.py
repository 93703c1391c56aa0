"""Sweeps: experiments on a grid of models, learning rates, epochs and seeds. Each cell is a separate job.

* `grid`: the grid that a sweep runs over, read from YAML
* `cell`: one cell as a job that can be killed and run again
* `executors`: where jobs run, on this machine or on Slurm
* `run`: runs all cells of a grid, retries them, and continues an interrupted sweep
* `cell_states`, `combine`: the state and the results of a sweep, as tables and as a report
"""

from ecstruct.grids.cell_states import status, status_text
from ecstruct.grids.grid import Cell, Grid
from ecstruct.grids.run import run_sweep, sweep

__all__ = ["Cell", "Grid", "run_sweep", "status", "status_text", "sweep"]
