"""vllmctl: the command line. Synchronous, small, and quick to start."""
