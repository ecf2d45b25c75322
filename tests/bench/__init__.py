"""What the relay costs, beside others in one run: `make bench`, or `python tests/bench --help`."""
