"""`vllm` in the bench's environment: tells a version, or becomes the engine that is never the limit (engine.c)."""

import os
import sys

VERSION = "0.32.0"

if "--version" in sys.argv:
    print(VERSION)
else:
    engine = os.environ["BENCH_ENGINE"]
    os.execv(engine, [engine, *sys.argv[1:]])
