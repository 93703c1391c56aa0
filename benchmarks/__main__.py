"""`python -m benchmarks`: everything, in one table."""

from benchmarks import causal, checking, engine, finetuning, knockout, naive, offload, published, scaling
from benchmarks.command import main

BENCHMARKS = {
    module.__name__.rpartition(".")[2]: module.rows
    for module in (engine, offload, causal, checking, knockout, finetuning, scaling, naive, published)
}

if __name__ == "__main__":
    main(BENCHMARKS)
