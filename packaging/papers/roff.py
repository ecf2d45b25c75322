"""Manual pages in the language that man(1) sets: the few macros of man(7) that ours need."""

import re
from collections.abc import Iterable

_ESCAPES = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"})
_ASCII = str.maketrans({"…": "...", "–": "-", "—": "-", "“": '"', "”": '"', "’": "'", "→": "->"})
_MARKED = re.compile(r"`([^`]+)`|\*([^*\s][^*]*)\*")


def text(plain: str) -> str:
    """A text as it is to be read: nothing in it means anything to roff."""
    line = plain.translate(_ASCII).translate(_ESCAPES)
    line.encode("ascii")  # whatever else comes one day needs a thought about terminals without UTF-8
    return f"\\&{line}" if line.startswith((".", "\\(aq")) else line


def marked(plain: str) -> str:
    """A text in which `code` is bold and *what stands for something* is in italics."""
    parts, end = [], 0
    for match in _MARKED.finditer(plain):
        font, inner = ("B", match[1]) if match[1] else ("I", match[2])
        parts += [text(plain[end : match.start()]), f"\\f{font}{text(inner)}\\fR"]
        end = match.end()
    return "".join([*parts, text(plain[end:])])


def title(name: str, section: int, source: str, manual: str) -> list[str]:
    """The first lines. There is no date: a page changes when what it tells of does. Names of options and files are not
    to be hyphenated, nor stretched apart."""
    return [f'.TH {name.upper()} {section} "" "{source}" "{manual}"', ".nh", ".ad l"]


def heading(words: str) -> str:
    """The heading of a section."""
    return f".SH {text(words)}"


def subheading(words: str) -> str:
    """The heading of a part of a section."""
    return f'.SS "{text(words)}"'


def paragraphs(prose: str) -> list[str]:
    """Prose, its paragraphs set apart by empty lines."""
    joined = [" ".join(part.split()) for part in re.split(r"\n\s*\n", prose.strip())]
    return [line for part in joined for line in (".PP", marked(part))]


def item(term: str, explanation: str) -> list[str]:
    """A term and what it means, indented below it."""
    return [".TP", marked(term), *_below(explanation)]


def _below(explanation: str) -> list[str]:
    first, *more = [" ".join(part.split()) for part in re.split(r"\n\s*\n", explanation.strip())]
    return [marked(first), *(line for part in more for line in (".IP", marked(part)))]


def example(lines: Iterable[str]) -> list[str]:
    """Lines as they are typed."""
    return [".PP", ".in +4n", ".EX", *map(text, lines), ".EE", ".in"]


def synopsis(*lines: str) -> list[str]:
    """How a program is called, a line for each way; marked as `marked` has it."""
    return [part for line in lines for part in (marked(line), ".br")][:-1]


def page(*parts: str | Iterable[str]) -> str:
    """The whole page."""
    lines = [line for part in parts for line in ([part] if isinstance(part, str) else part)]
    return "\n".join(['.\\" Made by packaging/papers/papers.py (make papers); do not edit.', *lines]) + "\n"
