"""The parts of tests/fake_vllm.py, whose docstring says what it does and holds the table of knobs."""
