"""One of the checks of `upstream`, fed by atheris: a program of its own, as libFuzzer ends the process that it runs in.

python tests/fuzz/libfuzzer.py http|sse [libFuzzer's arguments]
"""

import sys
from pathlib import Path


def main(argv: list[str]) -> None:
    """Feeds the check until the arguments say that it is enough; leaves the process."""
    import atheris

    with atheris.instrument_imports(include=["vllmd", "fuzz.upstream"]):
        from fuzz.upstream import CHECKS
    check = CHECKS[argv.pop(1)]

    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        cuts = provider.ConsumeIntListInRange(provider.ConsumeIntInRange(0, 4), 0, 4096)
        check(provider.ConsumeBytes(len(data)), cuts)

    atheris.Setup(argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    main(sys.argv)
