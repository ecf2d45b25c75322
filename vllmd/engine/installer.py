"""What uv or pip is told to do.

uv builds an environment in a tenth of pip's time, but does not read pip's configuration, in which administrators have
written down their mirrors, wheel directories and certificates. So that configuration is translated here.
"""

import ast
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllmd.engine.distributions import Repair

# pip's option → uv's variable, and what stands between the values where both take several (pip: white space).
_UV_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "keyring-provider": ("UV_KEYRING_PROVIDER", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "retries": ("UV_HTTP_RETRIES", " "),
    "proxy": ("ALL_PROXY", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
}
_SOURCES = ("index-url", "extra-index-url", "find-links", "no-index")
_UV_SOURCES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
_NOT_INHERITED = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Step:
    """One command of a build, and what to tell people about it."""

    title: str
    argv: tuple[str, ...]


def find_uv() -> str | None:
    """The uv that came with vllmd, else the one on PATH, else None."""
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


def pip_settings(listing: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """pip's options as `pip install` would see them.

    Args:
        listing: the lines of `pip config list`: global.index-url='…', install.find-links='…'.
        environ: the process's environment; a PIP_* variable there is stronger than any file.
    """
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for line in listing:
        match = re.fullmatch(r"(global|install)\.([\w-]+)=('.*'|\".*\")", line.strip())
        if match:
            found[match[1]][match[2].replace("_", "-")] = str(ast.literal_eval(match[3]))
    variables = {
        name.removeprefix("PIP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("PIP_") and value
    }
    return {**found["global"], **found["install"], **variables}


def uv_settings(pip_config: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that make uv do what pip's options say."""
    settings = {
        variable: separator.join(pip_config[option].split())
        for option, (variable, separator) in _UV_VARIABLES.items()
        if pip_config.get(option)
    }
    if "UV_INDEX" in settings:
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip takes all indexes for equals
    if settings.get("UV_KEYRING_PROVIDER", "subprocess") != "subprocess":
        del settings["UV_KEYRING_PROVIDER"]  # the only one that both have
    return settings


def with_index(pip_config: Mapping[str, str], index: str) -> dict[str, str]:
    """pip's options with one more index; the same ones where it is empty."""
    indexes = f"{index} {pip_config.get('extra-index-url', '')}".strip()
    return {**pip_config, **({"extra-index-url": indexes} if index else {})}


def installer_environ(environ: Mapping[str, str], pip_config: Mapping[str, str], repair: Repair) -> dict[str, str]:
    """The environment for an installer: the administrator's own UV_* variables are stronger than pip's options.

    Where nobody has said where packages come from, uv is told which of PyTorch's indexes has the right torch.
    """
    has_sources = any(map(pip_config.get, _SOURCES)) or any(map(environ.get, _UV_SOURCES))
    backend = {} if has_sources or not repair.torch_backend else {"UV_TORCH_BACKEND": repair.torch_backend}
    told = {"PIP_EXTRA_INDEX_URL": pip_config["extra-index-url"]} if pip_config.get("extra-index-url") else {}
    return {**backend, **uv_settings(pip_config), **inherited(environ), **told}


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a command in another virtual environment: nothing that leads back into this one."""
    kept = {name: value for name, value in environ.items() if name not in _NOT_INHERITED}
    return {**kept, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


def no_index(pip_config: Mapping[str, str]) -> list[str]:
    """uv's flag for pip's `no-index`, for which it has no variable."""
    return ["--no-index"] if pip_config.get("no-index", "").lower() in ("1", "true", "yes", "on") else []


def steps(
    uv: str | None,
    requirement: str,
    interpreter: Path,
    environment: Path,
    flags: Sequence[str] = (),
    overrides: Path | None = None,
    without: Sequence[str] = (),
) -> list[Step]:
    """The commands that build an environment.

    Args:
        uv: path of uv; None to do it with pip, which cannot leave a distribution out and so takes it away again.
        requirement: what to install.
        interpreter: the Python to build with.
        environment: the directory to build; nothing is there yet.
        flags: more flags for `uv pip install`.
        overrides: the file for uv's `--overrides`.
        without: distributions to leave out.
    """
    python = str(environment / "bin/python")
    create = Step("creating the environment", (uv or "", "venv", "--quiet", "--no-project", "--relocatable"))
    title = f"resolving and downloading {requirement}"
    if uv is not None:
        create = Step(create.title, (*create.argv, "--python", str(interpreter), str(environment)))
        replaced = ("--overrides", str(overrides)) if overrides else ()
        install = (uv, "pip", "install", "--python", python, "--compile-bytecode", *flags, *replaced, requirement)
        return [create, Step(title, install)]
    pip = (python, "-m", "pip")
    removal = Step(f"taking out {', '.join(without)}", (*pip, "uninstall", "--yes", *without))
    return [
        Step(create.title, (str(interpreter), "-m", "venv", str(environment))),
        Step(title, (*pip, "install", "--no-input", "--disable-pip-version-check", requirement)),
        *([removal] if without else []),
    ]


def explained(line: str) -> list[str]:
    """What to report for one line of an installer's: the line, and what silently follows it."""
    follows = {"Prepared ": "copying into the environment", "Installed ": "compiling bytecode"}
    return [line, *(text for start, text in follows.items() if line.startswith(start))]
