"""Points in time as journalctl's `--since` takes them, as far as they are common: a date, a time, so long ago."""

import re
import time

import click

_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400, "w": 604800}
_AGO = re.compile(r"-(\d+) ?([a-z]+?)s?|(\d+) ?([a-z]+?)s? ago")
_DATES = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M")
_TIMES = ("%H:%M:%S", "%H:%M")
_DAYS = {"today": 0, "yesterday": 1}


def since(text: str, now: float) -> float:
    """What `text` means, in Unix seconds: `2026-11-23 19:00`, `19:00`, `-10min`, `2 hours ago`, `today`, `@1795463558`.

    Args:
        now: Unix seconds.

    Raises:
        click.BadParameter: it means nothing.
    """
    text = " ".join(text.split())
    if (ago := _AGO.fullmatch(text)) and (unit := _UNITS.get(ago[2] or ago[4])):
        return now - int(ago[1] or ago[3]) * unit
    if re.fullmatch(r"@\d{1,11}", text):
        return float(text[1:])
    today = time.strftime("%Y-%m-%d ", time.localtime(now))
    if text in _DAYS:
        year, month, day = time.localtime(now)[:3]
        return time.mktime((year, month, day - _DAYS[text], 0, 0, 0, 0, 0, -1))
    for form, written in [*((each, text) for each in _DATES), *((f"%Y-%m-%d {each}", today + text) for each in _TIMES)]:
        if (found := _read(written, form)) is not None:
            return found
    raise click.BadParameter(f"{text!r} is no time: '2026-11-23 19:00', '19:00', '-10min', '2 hours ago', 'today'")


def _read(text: str, form: str) -> float | None:
    try:
        return time.mktime(time.strptime(text, form))
    except (ValueError, OverflowError):
        return None
