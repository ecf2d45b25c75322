"""What a vLLM says of itself: that it runs at all, which version it is, and which flags it takes."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllmd.engine.diagnosis import last_words
from vllmd.engine.flags import listed
from vllmd.engine.installer import inherited
from vllmd.engine.run import Report, gently, run
from vllmd.errors import InstallError

ANSWER_TIMEOUT_S = 300.0

_HINT = "this version of vLLM may not fit this machine's driver or processor: try another one"
_HELPS = ("--help=all", "--help")
"""Older versions list everything at once."""


@dataclass(frozen=True)
class Inspection:
    """Asks the `vllm` of an environment.

    Args:
        python, vllm: its interpreter and its script.
        scratch: a directory that ends with the inspection; all that vLLM writes goes there.
        report: called with each line of progress.
        inherited_fds: descriptors that it gets.
    """

    python: Path
    vllm: Path
    scratch: Path
    report: Report
    inherited_fds: tuple[int, ...] = ()

    async def version(self) -> str:
        """What `vllm --version` says, which imports most of vLLM: a broken one shows here and not at a start.

        Raises:
            InstallError: it does not run.
        """
        self.report("checking: vllm --version")
        try:
            status, lines = await self._ask(["--version"])
        except TimeoutError:
            raise InstallError(f"vllm --version gave no answer in {ANSWER_TIMEOUT_S:.0f} s", _HINT) from None
        if status != 0:
            words = last_words(lines) or "it said nothing"
            raise InstallError(f"vllm --version failed with exit status {status}: {words}", _HINT)
        self.report(f"vllm {lines[-1] if lines else '(no version told)'} answers")
        return lines[-1] if lines else ""

    async def flags(self) -> tuple[str, ...]:
        """The flags of `vllm serve`; none if they cannot be listed, which is no reason not to use it."""
        self.report("reading the flags of vllm serve")
        for help in _HELPS:
            with suppress(TimeoutError):
                status, lines = await self._ask(["serve", help])
                if status == 0 and (flags := listed(lines)):
                    return flags
        self.report("the flags of vllm serve could not be listed: those of `args` will not be checked")
        return ()

    async def _ask(self, words: Sequence[str]) -> tuple[int, list[str]]:
        """Exit status and lines of a short command. Raises TimeoutError."""
        argv = gently([str(self.python), str(self.vllm), *words])
        private = dict.fromkeys(("TMPDIR", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT"), str(self.scratch))
        quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "COLUMNS": "100"}
        lines: list[str] = []
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            environ = {**inherited(os.environ), **private, **quiet}
            return await run(argv, environ, lines.append, self.inherited_fds, alive=self.report), lines
