"""`python -m ecstruct`, which is what `torchrun -m ecstruct` runs."""

from ecstruct.cli import main

if __name__ == "__main__":
    main()
