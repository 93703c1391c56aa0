"""What scoring costs, against what it is held to: `python -m benchmarks` prints one table.

A module per question, each with `rows(setup)` and a command of its own (`python -m benchmarks.engine`). The
sides of a comparison take turns in one process. Where they compute the same, that is checked first.

`organism_recall` and `organism_subnetworks` measure no costs, but what recall and subnetworks find in the
organism.
"""
