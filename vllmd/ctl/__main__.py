"""`python -m vllmd.ctl` is vllmctl."""

from vllmd.ctl.main import main

main()
