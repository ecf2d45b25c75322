"""How many columns a terminal needs for a text: two for wide characters, none for those that combine."""


def fit(text: str, columns: int) -> str:
    """The beginning of `text` that fits into so many columns."""
    if text.isascii():
        return text[: max(0, columns)]
    for end, character in enumerate(text):
        columns -= _width_of(character)
        if columns < 0:
            return text[:end]
    return text


def width(text: str) -> int:
    """The columns that `text` takes; it must hold no control characters."""
    return len(text) if text.isascii() else sum(map(_width_of, text))


def _width_of(character: str) -> int:
    # Imported only where it is needed: it loads a megabyte of tables.
    from unicodedata import category, east_asian_width

    if category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1
