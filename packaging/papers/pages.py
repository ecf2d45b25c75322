"""The three manual pages, out of the code: what the programs say of themselves, and a few words around it."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from typing import Any, get_type_hints

import click
import roff

from vllmd import __version__, config, sections
from vllmd.ctl.commands import ENVIRONMENT, MEANINGS, VERBS
from vllmd.ctl.examples import EXAMPLES
from vllmd.ctl.run import vllmctl
from vllmd.daemon import parser
from vllmd.errors import ExitStatus

SOURCE, MANUAL = f"vllmd {__version__}", "vllmd"

_KINDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "string",
    tuple[str, ...]: "list of strings",
}


# ── vllmctl(1) ──


def vllmctl_1() -> str:
    """vllmctl's commands, options, exit statuses, environment, and examples."""
    context = click.Context(vllmctl, info_name="vllmctl", **vllmctl.context_settings)
    return roff.page(
        roff.title("vllmctl", 1, SOURCE, MANUAL),
        roff.heading("NAME"),
        roff.text("vllmctl - ask models that vllmd serves, and watch and steer them"),
        roff.heading("SYNOPSIS"),
        roff.synopsis("`vllmctl` [*OPTION*]... *COMMAND* [*ARGUMENT*]..."),
        roff.heading("DESCRIPTION"),
        roff.paragraphs(vllmctl.help or ""),
        roff.paragraphs("Answers go to stdout and nothing else does; all that is said about them goes to stderr."),
        roff.heading("COMMANDS"),
        *(_verb(name, context) for name in VERBS),
        roff.heading("OPTIONS OF ALL COMMANDS"),
        roff.paragraphs("They may stand before the command and after it."),
        *(_options(vllmctl, context, set())),
        roff.heading("EXIT STATUS"),
        *(roff.item(f"`{int(status)}`", meaning) for status, meaning in MEANINGS.items()),
        roff.heading("ENVIRONMENT"),
        *(roff.item(f"`{name}`", meaning) for name, meaning in ENVIRONMENT),
        roff.heading("EXAMPLES"),
        *(part for words, lines in EXAMPLES.items() for part in (roff.paragraphs(words), roff.example(lines))),
        roff.heading("SEE ALSO"),
        roff.paragraphs("`vllmd`(8), `vllmd.toml`(5), `journalctl`(1)"),
    )


def _verb(name: str, above: click.Context) -> Iterator[str]:
    command = vllmctl.get_command(above, name)
    assert command is not None, "it is one of VERBS"
    context = click.Context(command, info_name=name, parent=above)
    usage = " ".join(command.collect_usage_pieces(context))
    yield roff.subheading(f"vllmctl {name} {usage}")
    yield from roff.paragraphs(command.help or "")
    for lines in _options(command, context, {option for each in vllmctl.get_params(above) for option in each.opts}):
        yield from lines


def _options(command: click.Command, context: click.Context, without: set[str]) -> Iterator[list[str]]:
    for param in command.get_params(context):
        if isinstance(param, click.Option) and without.isdisjoint(param.opts):
            value = "" if param.is_flag else param.make_metavar(context)
            yield roff.item(f"`{', '.join(param.opts)}`" + (f" *{value}*" if value else ""), param.help or "")


# ── vllmd(8) ──

_DAEMON = """
vllmd runs vLLM as a service: an engine for each configured model, started, watched, and replaced when it dies or hangs.
Clients reach all of them through one door, a Unix socket and a TCP port, which stays open while engines come and go:
requests are held while their model loads, sent again when an engine dies before its answer has begun, and continued by
the next one where that is possible.

It is meant to be run by systemd, as the unit `vllmd.service`: READY=1 follows the first token of the default model, the
watchdog is fed from the event loop, and the sockets of `vllmd.socket` are taken. It does not need systemd.

`vllmctl`(1) talks to it; so does everything that speaks OpenAI's API.
"""

_SIGNALS = {
    "SIGTERM, SIGINT": "No more requests are taken. Running streams get `relay.drain_s` seconds to finish, then every "
    "engine is stopped in order, unless systemd restarts the service: then the next vllmd adopts the engines. A second "
    "signal ends the patience, with the streams and with the engines.",
    "SIGHUP": "The configuration is read anew, as by `vllmctl reload`; what comes of it stands in the log.",
}

_FILES = {
    "/etc/vllmd/vllmd.toml": "The configuration, see `vllmd.toml`(5).",
    "/etc/vllmd/keys": "API keys, where `access.keys` names it; `vllmctl key` writes it.",
    "/etc/credstore/vllmd.api-keys": 'The same as a credential of the unit\'s: `access.keys` is "api-keys" then.',
    "/etc/credstore/vllmd.hub-token": "The token for the hub of models, if it asks for one.",
    "/run/vllmd/vllmd.sock": "The Unix socket. A user's own daemon has $XDG_RUNTIME_DIR/vllmd/vllmd.sock.",
    "/var/lib/vllmd": "The engines' virtual environments, and what is known of failures (incidents).",
    "/var/cache/vllmd": "Caches of vLLM, Triton, Inductor and Hugging Face.",
}

_STATUSES = {
    ExitStatus.OK: "it was told to end, and has",
    ExitStatus.ERROR: "it could not go on",
    ExitStatus.USAGE: "the command line or the configuration is wrong; trying again would not help",
}


def vllmd_8() -> str:
    """The daemon: its options, signals and files."""
    options = parser()._actions  # argparse tells of its options in no other way
    usage = " ".join(parser().format_usage().split()).removeprefix("usage: vllmd ")
    return roff.page(
        roff.title("vllmd", 8, SOURCE, MANUAL),
        roff.heading("NAME"),
        roff.text("vllmd - serve models with vLLM, supervised"),
        roff.heading("SYNOPSIS"),
        roff.synopsis(f"`vllmd` {usage}"),
        roff.heading("DESCRIPTION"),
        roff.paragraphs(_DAEMON),
        roff.heading("OPTIONS"),
        *(_option(each) for each in options),
        roff.heading("SIGNALS"),
        *(roff.item(f"`{name}`", meaning) for name, meaning in _SIGNALS.items()),
        roff.heading("EXIT STATUS"),
        *(roff.item(f"`{int(status)}`", meaning) for status, meaning in _STATUSES.items()),
        roff.heading("FILES"),
        *(roff.item(f"`{name}`", meaning) for name, meaning in _FILES.items()),
        roff.heading("SEE ALSO"),
        roff.paragraphs("`vllmctl`(1), `vllmd.toml`(5), `systemctl`(1), `journalctl`(1)"),
    )


def _option(action: argparse.Action) -> list[str]:
    names = ", ".join(action.option_strings)
    help = (action.help or "") % {"default": action.default}
    return roff.item(f"`{names}`" + (f" *{action.metavar}*" if action.metavar else ""), help)


# ── vllmd.toml(5) ──

_ABOUT = """
A TOML file of tables. Every key may be left out; then its default holds. Units are in the names: seconds end in `_s`,
bytes in `_bytes`. Mistakes are told all at once, each with its place and the nearest known key: `vllmd --check`.
"""

_MODELS = """
A table for each model, under the name that clients ask for. Where there is none, *Qwen/Qwen2-7B-Instruct* is served as
`qwen2-7b-instruct`. `args` are flags of `vllm serve` and go through untouched: true is *--flag*, false *--no-flag*.
"""

_EXAMPLE = [
    '[models.qwen2-7b-instruct]',
    'model = "Qwen/Qwen2-7B-Instruct"',
    "",
    "[models.qwen2-7b-instruct.args]",
    "max-model-len = 2048",
]  # fmt: skip


def vllmd_toml_5() -> str:
    """The configuration, table by table and key by key."""
    return roff.page(
        roff.title("vllmd.toml", 5, SOURCE, MANUAL),
        roff.heading("NAME"),
        roff.text("vllmd.toml - the configuration of vllmd"),
        roff.heading("SYNOPSIS"),
        roff.synopsis("`/etc/vllmd/vllmd.toml`"),
        roff.heading("DESCRIPTION"),
        roff.paragraphs(_ABOUT),
        roff.heading("TABLES"),
        roff.subheading("[models.NAME]"),
        roff.paragraphs(_MODELS),
        *_keys(sections.Model),
        *_reserved("args", config.RESERVED_FLAGS),
        *_reserved("env", config.RESERVED_VARIABLES),
        *(line for name, section in sections.SECTIONS.items() for line in _section(name, section)),
        roff.heading("EXAMPLES"),
        roff.example(_EXAMPLE),
        roff.heading("SEE ALSO"),
        roff.paragraphs("`vllmd`(8), `vllmctl`(1)"),
    )


def _section(name: str, section: type[Any]) -> Iterator[str | list[str]]:
    yield roff.subheading(f"[{name}]")
    yield roff.paragraphs((section.__doc__ or "").partition("\n\n")[0])
    yield from _keys(section)


def _keys(section: type[Any]) -> Iterator[list[str]]:
    hints = get_type_hints(section)
    for each in fields(section):
        doc = each.metadata["doc"]
        yield roff.item(f"`{each.name}`", f"{doc[:1].upper()}{doc[1:]}.\n\n{_facts(each, hints[each.name])}")


def _facts(each: "Field[Any]", kind: Any) -> str:
    """The type, the bounds and the default of a key: `Number, 0 to 2; 0.7 if not set.`"""
    words = _KINDS.get(kind, "table")
    minimum, maximum = each.metadata["minimum"], each.metadata["maximum"]
    bounds = {
        (True, True): f", {minimum} to {maximum}",
        (True, False): f", at least {minimum}",
        (False, True): f", at most {maximum}",
    }.get((minimum is not None, maximum is not None), "")
    return f"{words.capitalize()}{bounds}; {_default(each)} if not set."


def _default(each: "Field[Any]") -> str:
    value: object = each.default if isinstance(each.default, (bool, int, float, str, tuple)) else {}
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if value else "empty"
    return "empty" if value in ((), {}) else str(value)


def _reserved(key: str, reasons: Mapping[str, str]) -> Iterator[list[str]]:
    yield roff.paragraphs(f"In `{key}`, these are not to be set:")
    for name, reason in reasons.items():
        yield roff.item(f"`{name}`", f"{reason}.")
