"""What a starting vLLM writes, where it writes it, and how a start goes wrong."""

import os
import re
import time
from pathlib import Path

from .knobs import Knobs

LOG = """\
(APIServer pid={api}) INFO {now} [api_utils.py:347]   █▄█▀ █     █     █     █  model   {model}
(APIServer pid={api}) INFO {now} [api_utils.py:286] non-default args: {{'model_tag': '{model}', 'model': '{model}'}}
(APIServer pid={api}) INFO {now} [model.py:733] Resolved architecture: LlamaForCausalLM
(APIServer pid={api}) INFO {now} [model.py:2152] Using max model len 2048
(EngineCore pid={core}) INFO {now} [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='{model}'
(Worker pid={worker}) INFO {now} [cpu_model_runner.py:68] Starting to load model {model}...
\rLoading safetensors checkpoint shards:   0% Completed | 0/7 [00:00<?, ?it/s]
\rLoading safetensors checkpoint shards:  43% Completed | 3/7 [00:01<00:01,  2.50it/s]
\rLoading safetensors checkpoint shards: 100% Completed | 7/7 [00:02<00:00,  2.50it/s]

(Worker pid={worker}) INFO {now} [default_loader.py:501] Loading weights took 0.40 seconds
(EngineCore pid={core}) INFO {now} [model_runner.py:302] Model loading took 14.29 GiB and 1.722191 seconds
(EngineCore pid={core}) INFO {now} [backends.py:1148] Dynamo bytecode transform time: 5.18 s
(EngineCore pid={core}) INFO {now} [backends.py:393] Compiling a graph for compile range (1, 8192) takes 9.67 s
(EngineCore pid={core}) INFO {now} [monitor.py:53] torch.compile took 19.21 s in total
(EngineCore pid={core}) INFO {now} [kv_cache_utils.py:2146] GPU KV cache size: 2,115,440 tokens
(EngineCore pid={core}) \rCapturing CUDA graphs (PIECEWISE):   0%|          | 0/51 [00:00<?, ?it/s]
\rCapturing CUDA graphs (PIECEWISE):  43%|████▎     | 22/51 [00:01<00:01, 18.98it/s]
\rCapturing CUDA graphs (PIECEWISE): 100%|██████████| 51/51 [00:02<00:00, 18.65it/s]

(EngineCore pid={core}) INFO {now} [model_runner.py:722] Graph capturing finished in 5 secs, took 0.89 GiB
(EngineCore pid={core}) INFO {now} [core.py:337] init engine (profile, create kv cache, warmup model) took 41.76 s
(APIServer pid={api}) INFO {now} [entry.py:136] Supported tasks: ['generate']
(APIServer pid={api}) INFO {now} [entry.py:140] Starting vLLM server on {address}
INFO:     Started server process [{api}]
INFO:     Waiting for application startup.
"""
READY = "INFO:     Application startup complete.\n"
TAKES_MEMORY = "Starting to load model"
"""At the line that says so it takes its GPU's memory; without such a line, just before it is ready."""
CORE_ERROR = "(EngineCore pid={core}) ERROR {now} [core.py:1510] {error}\n"
CORE_FAILED = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
SHUTDOWN = """\
(APIServer pid={api}) INFO {now} [launcher.py:304] [shutdown] API server: shutting down FastAPI HTTP server
INFO:     Shutting down
INFO:     Waiting for application shutdown.
INFO:     Application shutdown complete.
"""
FLOOD = "(EngineCore pid={api}) WARNING {now} [flood.py:{line}] the same thing as before, once more, for the record\n"
GARBAGE = b"\xff\xfe\x00\x80\x1b[31mred\x1b]0;title\x07\r\x0b\n" + b"x" * 300_000 + b"\n"
USAGE = """\
usage: vllm [-h] [-v]
            {chat,complete,serve,launch,bench,collect-env,download-kernels,preload,run-batch,snapshot}
            ...
"""
HELP = """\
usage: vllm serve [model_tag] [options]

  --uds UDS             Unix domain socket path. If set, host and port arguments are ignored. (default: None)
  --served-model-name SERVED_MODEL_NAME [SERVED_MODEL_NAME ...]
  --max-model-len MAX_MODEL_LEN
  --max-num-seqs MAX_NUM_SEQS
  --max-num-queued-reqs MAX_NUM_QUEUED_REQS
  --shutdown-timeout SHUTDOWN_TIMEOUT
                        Shutdown timeout in seconds. 0 = abort, >0 = wait. (default: 0)
  --sse-keep-alive-interval SSE_KEEP_ALIVE_INTERVAL
  --disable-uvicorn-access-log, --no-disable-uvicorn-access-log
  --scheduling-policy {fcfs,priority}
  --enable-sleep-mode, --no-enable-sleep-mode"""


def say(text: str, **facts: object) -> None:
    """Writes log text where vLLM writes it: bars and uvicorn's lines to stderr, the rest to stdout."""
    if facts:
        text = text.format(now=time.strftime("%m-%d %H:%M:%S"), api=os.getpid(), **facts)
    write(2 if "\r" in text or text.startswith(("INFO: ", "\n", "usage")) else 1, text.encode())


def write(place: int, data: bytes) -> None:
    """Writes it all; waits, and the whole process with it, for a reader of a full pipe."""
    while data:
        data = data[os.write(place, data) :]


def flood(lines: int) -> None:
    for line in range(lines):
        say(FLOOD, line=line)


def log_lines(knobs: Knobs, **facts: object) -> list[str]:
    """The lines of a start, in order; those of a bar end without a newline."""
    if knobs.start_log == "none":
        return []
    if knobs.start_log:
        lines = Path(knobs.start_log).read_bytes().decode().split("\n")
        return [re.sub(r"^\[\+ *[\d.]+s\] ", "", line) + "\n" for line in lines]
    text = LOG.format(now=time.strftime("%m-%d %H:%M:%S"), **facts)
    return [line if "\r" in line else line + "\n" for line in text.split("\n")[:-1]]


def last_words(start_last: str) -> str:
    """The text of START_LAST; of a recorded fault, only the engine's own lines."""
    if not start_last.startswith("@"):
        return f"{start_last}\n" if start_last else ""
    text = Path(start_last[1:]).read_text()
    return "".join(re.findall(r"LOG\| (.*\n)", text)) or text


def burn(seconds: float) -> None:
    """Uses CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
