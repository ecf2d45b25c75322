"""Inputs that nobody would think of: `make fuzz SECONDS=600`, and for a few seconds in the tests."""
