"""What scoring costs, against what it is held to: `python -m benchmarks` prints one table.

A module per question, each with `rows(setup)` and a command of its own (`python -m benchmarks.engine`). The
sides of a comparison take turns in one process. Where they compute the same, that is checked first.
"""
