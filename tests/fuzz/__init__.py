"""Damaged inputs of the command line, a module for each kind of file; `tests/test_fuzz.py` runs them."""
