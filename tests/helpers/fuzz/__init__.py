"""Damaged inputs for the command line, a module per kind of file; `tests/test_fuzz.py` runs them."""
