"""The way of the log, chosen once: the journal where stderr leads there, else lines on stderr."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vllmd.journal.lines import Format, formatter
from vllmd.journal.sending import JOURNAL, JournalHandler, is_the_journal


@contextmanager
def logging_to(wanted: Format, verbose: bool, environ: Mapping[str, str]) -> Iterator[None]:
    """Logs for as long as the block lasts; at its end everything has been written.

    Args:
        wanted: how lines look where they are lines.
        verbose: whether to log more.
        environ: where `JOURNAL_STREAM` is looked up.
    """
    handler = _handler(wanted, environ)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _handler(wanted: Format, environ: Mapping[str, str]) -> logging.Handler:
    if is_the_journal(sys.stderr.fileno(), environ.get("JOURNAL_STREAM", "")) and os.access(JOURNAL, os.W_OK):
        return JournalHandler()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(wanted))
    return handler
