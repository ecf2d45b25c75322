"""`make papers`: writes manual pages, completions and the dashboard, out of the code. Tests see that all is current."""

import sys
from pathlib import Path

import dashboard
import pages

from vllmd.ctl.completion import script

PACKAGING = Path(__file__).parents[1]


def contents() -> dict[Path, str]:
    """Every file and what is to stand in it."""
    man, completions = PACKAGING / "man", PACKAGING / "completions"
    return {
        man / "vllmctl.1": pages.vllmctl_1(),
        man / "vllmd.8": pages.vllmd_8(),
        man / "vllmd.toml.5": pages.vllmd_toml_5(),
        completions / "vllmctl.bash": script("bash"),
        completions / "_vllmctl": script("zsh"),
        completions / "vllmctl.fish": script("fish"),
        PACKAGING / "grafana" / "vllmd.json": dashboard.dashboard(),
    }


def main() -> None:
    """Writes what has changed, and says what that is."""
    for path, text in contents().items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(PACKAGING.parent), file=sys.stderr)


if __name__ == "__main__":
    main()
