"""What is sent to the model: which parts make a message, and when stdin is one of them. Pure."""

from stat import S_ISFIFO, S_ISREG, S_ISSOCK

from vllmd.errors import RequestError

Messages = list[dict[str, str]]
"""A conversation as OpenAI's API has it."""


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


def typed(text: str, whence: str) -> str:
    """`text` as it stood on the command line, where Python hides bytes that are not UTF-8. Raises as `decode` does."""
    return decode(text.encode("utf-8", "surrogateescape"), whence)


def compose(*parts: str) -> str:
    """The user's message: documents first, the question last, one blank line between; parts without text vanish.

    Questions about one document then share their beginning, which the engine's prefix cache needs to be of use.
    """
    return "\n\n".join(part.strip("\r\n") for part in parts if part.strip())


def named(name: str, text: str) -> str:
    """A file's text under its name, as head(1) and tail(1) write it; nothing if the file is empty."""
    return f"==> {name} <==\n{text}" if text.strip() else ""


def with_system(messages: Messages, system: str | None) -> Messages:
    """The conversation with that system prompt: None leaves it as it is, an empty one takes it away."""
    if system is None:
        return messages
    first = [{"role": "system", "content": system}] if system else []
    return first + [message for message in messages if message["role"] != "system"]


def user(text: str) -> dict[str, str]:
    """What the user says."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """What the model said."""
    return {"role": "assistant", "content": text}
