"""What holds for the whole command line, wherever on it it was said."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllmd.ctl.terminal import Terminal

if TYPE_CHECKING:
    from vllmd.address import Address
    from vllmd.ctl.client import Client


class Invocation:
    """One run of vllmctl; every command gets it first.

    Args:
        terminal: where to read and write.
        environ: VLLMD_HOST, the API key, XDG_RUNTIME_DIR.
    """

    def __init__(self, terminal: Terminal, environ: Mapping[str, str]) -> None:
        self.terminal = terminal
        self.environ = environ
        self.host = ""
        self.said: set[str] = set()
        """The shared options that stood on the command line, which no environment variable may change."""

    def address(self) -> "Address":
        """Where the daemon is that the command line, the environment or the usual place points at.

        Raises:
            AddressError: it points at no address.
        """
        from vllmd.ctl.reach import find_address

        return find_address(self.host, self.environ, os.getuid())

    def client(self) -> "Client":
        """That daemon. Raises as `address` does."""
        from vllmd.ctl.client import Client

        return Client(self.address(), self.environ, self.terminal.note, self.terminal.trace)
