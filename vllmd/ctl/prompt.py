"""What is sent to the model: which parts make a message, and when stdin is one of them. Pure."""

from stat import S_ISFIFO, S_ISREG, S_ISSOCK

from vllmd.errors import RequestError


def wants_reading(mode: int | None) -> bool:
    """Whether stdin holds something to read: a pipe, a file, a socket.

    Args:
        mode: its `st_mode`; None if it is closed. A terminal or /dev/null is left alone: the first would make a user
            wait who gave the prompt as an argument, the second never has anything.
    """
    return mode is not None and (S_ISFIFO(mode) or S_ISREG(mode) or S_ISSOCK(mode))


def decode(data: bytes, whence: str) -> str:
    """`data` as text.

    Raises:
        RequestError: it is not UTF-8; names `whence` and the offset of the first wrong byte.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = data[error.start]
        raise RequestError(
            f"{whence} is not UTF-8: byte 0x{found:02x} at offset {error.start}",
            "convert it first, such as with:  iconv -f ISO-8859-1 -t UTF-8",
        ) from error


def compose(*parts: str) -> str:
    """The user's message: documents first, the question last, one blank line between; parts without text vanish.

    Questions about one document then share their beginning, which the engine's prefix cache needs to be of use.
    """
    return "\n\n".join(part.strip("\r\n") for part in parts if part.strip())


def messages(system: str | None, text: str) -> list[dict[str, str]]:
    """The conversation that the model is asked to continue."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]
