"""A process that behaves like `vllm serve`, on the standard library alone, for tests and benchmarks.

    python tests/fake_vllm.py serve MODEL --uds PATH --served-model-name NAME [any vLLM flag: accepted and ignored]
    python tests/fake_vllm.py --version

It runs from here with tests/fake_engine beside it; from a test, `fake_engine.running` starts it and speaks to it.
What it does was read from recordings of vLLM 0.32.0; tests/engine/test_fake_vllm.py holds it to them. Flags that
mean something here: --uds or --host/--port, --served-model-name, --max-model-len, --max-num-seqs,
--max-num-queued-reqs, --shutdown-timeout, --sse-keep-alive-interval, --disable-uvicorn-access-log,
--gpu-memory-utilization, --enable-sleep-mode.

A partial answer (continue_final_message) is gone on with: where it is the beginning of the answer that this engine
gives, right there, as a sure model does; another one by as many words later ("tokN …"). max_tokens counts what is new;
the partial answer counts as prompt, in usage as in /tokenize.

Knobs are environment variables FAKE_*, or the same names in lower case without FAKE_ in the JSON file that
FAKE_CONTROL names: `control(path, tokens_per_s=5)` writes it; it is read again at each request and each token (the
start-up knobs when the process starts). The file outlives the process: the next generation reads it too.

    start-up
    READY_AFTER_S   0       seconds until it listens, the log lines spread over them
    START_LOG               a recorded log to print instead of the built-in one; `none` prints nothing
    START_END       ready   how the start ends: ready, never, exit:N or signal:N
    START_AT        1.0     START_END comes after this part of the log
    START_LAST              text printed just before that end; @FILE takes a recording from fixtures/faults
    START_BUSY      0       1: burns some CPU for as long as it is not ready
    START_TERM      die     SIGTERM during the start: die (status -15), ignore (becomes ready), hang
    UNKNOWN_FLAGS           flags (blank separated) which it does not know: exit status 2
    answers
    TOKENS          16      tokens in an answer: "tok0 tok1 …"; max_tokens up to that cuts it (finish "length")
    TEXT                    answer with this text instead
    ECHO            0       1: answer with the last user message
    SPLIT           words   what a token is: words, chars, or bytes (a character of n bytes takes n tokens, the
                            first n-1 of them empty, as in byte-level BPE)
    TEMPLATE        trim    what the chat template does to a partial answer: trim its whitespace, keep it as it is,
                            think (trim, and put empty thoughts of two tokens before it), refuse (400)
    EOS             0       1: "stop" comes in an event of its own, empty and counted as a token, as in vLLM
    TOKENS_PER_S    0       pace of each stream; 0 is as fast as possible
    PREFILL_S       0       silence between the response's head and the first event
    KEEP_ALIVE_S    0       `: keep-alive` after so much silence (or the flag --sse-keep-alive-interval)
    EVENTS_PER_SEND 1       events joined into one write
    CHOP            0       a seed above 0: HTTP chunks and writes end at arbitrary bytes
    EMBEDDINGS      0       1: serves /v1/embeddings; otherwise 404, as a generate model does
    faults
    FAULT                   what befalls a stream:
                            hang        silence for all streams, /health stays 200 (undone when the knob is)
                            stall       silence for this stream alone
                            error:CODE  an error event and [DONE]; CODE is 400, 500 or 503
                            http:CODE   a true HTTP error, where nothing was sent yet (else as error:CODE)
                            abort       finish_reason "abort" and [DONE]
                            cut         the connection closes between two events
                            cut-inside  the connection closes inside an event
                            eof         HTTP ends in good order, without finish_reason and [DONE]
                            malformed   an event that is no JSON, then [DONE]
    FAULT_AFTER     0       after so many tokens of the stream; 0 is before the first event
    FAULT_REQUEST   1       from the n-th generating request of this process on
    FAULT_EXIT              the process dies with it, all streams ending alike: an exit status or a signal's name
    ONCE                    a path: FAULT and START_END strike only the process that can create that file
    sleep mode (only with VLLM_SERVER_DEV_MODE=1; else 404). Weights that were dropped (level 2) speak only "!" until
    they are loaded again; what uses memory that is gone kills EngineCore
    SLEEP           frees   what /sleep does: frees memory; lies: 200, but frees nothing (as in life without the flag
                            --enable-sleep-mode); hangs; refuses: 500, and requests wait; dies
    SLEEP_S         0       seconds that it takes once no request runs
    WAKE            brings  what /wake_up does: brings it back, hangs, refuses, dies; mute: 200, but then no token
    WAKE_S          0       seconds that it takes
    RELOAD          brings  what /collective_rpc reload_weights does: brings, hangs, refuses, dies
    GPUS                    a folder of virtual_gpus.py, where it takes memory of the first GPU of CUDA_VISIBLE_DEVICES;
                            a start ends with status 1 where that is not free, a wake with 500
    MEMORY          0       bytes that it takes; 0: --gpu-memory-utilization (0.92) of the GPU
    RESIDUE         1073741824  bytes of it that it holds also while it sleeps
    ending
    TERM            abort   SIGTERM: abort, drain (as --shutdown-timeout does), ignore, hang
    TERM_DELAY_S    0       seconds from the end of its streams to its exit
    DEATH_S         0.3     seconds from the death of EngineCore to exit 0, answering 503 and 500; negative: stays
    TREE            0       1: has a child VLLM::EngineCor and below it a VLLM::Worker; kill or stop them as in life
    STRAY           0       1: has a double-forked child VLLM::Stray in its own session that ignores SIGTERM
    LIFE_S          600     each process here ends by SIGALRM after that; 0: never
    noise
    GARBAGE         0       1: bytes on stdout that are no text, and a very long line
    LOG_PROMPTS     0       1: prints what it is asked, as --enable-log-requests does with VLLM_LOGGING_LEVEL=DEBUG
    FLOOD           0       log lines written before ready and at each generation; an unread pipe blocks it, as in life
    METRICS                 what /metrics says instead of the truth; `hang`: nothing, for ever
    JOURNAL                 a file to which it appends what it saw and did, as JSON lines; `journal(path)` reads it
"""

import os
import sys
from pathlib import Path

from fake_engine.knobs import VERSION, Controls, control, journal, parse_flags

PROGRAM = Path(__file__)
__all__ = ["PROGRAM", "VERSION", "command", "control", "environ", "journal", "main"]


def command(uds: Path, *flags: str, name: str = "tiny") -> list[str]:
    """The command line of an engine on that Unix socket (for tests)."""
    return [
        sys.executable,
        str(PROGRAM),
        "serve",
        "models/tiny",
        "--uds",
        str(uds),
        "--served-model-name",
        name,
        *flags,
    ]


def environ(**knobs: object) -> dict[str, str]:
    """This process's environment with those knobs, `tokens=3` as FAKE_TOKENS=3 (for tests)."""
    return {**os.environ, **{f"FAKE_{name.upper()}": str(value) for name, value in knobs.items()}}


def main(argv: list[str]) -> int:
    """Runs `serve`, or prints the version; returns the exit status."""
    if "--version" in argv or "-v" in argv:
        print(VERSION)
        return 0
    from fake_engine import startup
    from fake_engine.engine import serve

    controls = Controls()
    flags, given = parse_flags(argv[1:])
    if any(flag in ("-h", "--help") for flag in given):
        print(startup.HELP)
        return 0
    if unknown := given & set(controls.now.unknown_flags.split()):
        startup.say(f"{startup.USAGE}vllm: error: unrecognized arguments: {' '.join(sorted(unknown))}\n")
        return 2
    return serve(flags, controls)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
