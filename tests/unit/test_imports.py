"""The architecture as a test: who may know whom, and why (design.md, section 3)."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vllmd"
STANDARD = sys.stdlib_module_names


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@cache
def imports_of(module: str) -> frozenset[str]:
    """Everything that a module imports anywhere in it: its own package's by full name, others by their top name."""
    return frozenset(found for node in ast.walk(tree_of(module)) for found in _imported(node))


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (_known(each.name) for each in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: a relative import hides where it leads"
        yield from (_known(f"{node.module}.{each.name}") for each in node.names)


def _known(name: str) -> str:
    if not name.startswith("vllmd"):
        return name.partition(".")[0]
    return name if name in MODULES else name.rpartition(".")[0]


def layer_of(module: str) -> str:
    """`vllmd.engine.probe` → engine; top-level modules are core, but for the composition root."""
    _, _, rest = module.partition(".")
    if rest in ("daemon", "__main__"):
        return rest
    return rest.partition(".")[0] if (PACKAGE / rest.partition(".")[0]).is_dir() and rest else "core"


DIRECTIONS = {
    "core": ({"core"}, "it is what everybody shares, and stays testable with values alone"),
    "engine": ({"core", "engine"}, "an engine is supervised whether or not anybody asks anything of it"),
    "server": ({"core", "engine", "server"}, "it serves what engines produce, and is no concern of the command line's"),
    "journal": ({"core", "journal"}, "where the log goes is nobody's business but the composition root's"),
    "ctl": ({"core", "ctl"}, "the command line knows the daemon by its HTTP contract alone"),
    "daemon": (
        {"core", "engine", "server", "journal"},
        "the composition root wires everybody but the command line",
    ),
    "__main__": ({"daemon"}, "`python -m vllmd` is `vllmd`, and nothing else"),
}

LIBRARIES = {
    "core": (set[str](), "the core is the standard library, so that ctl and tests import it in no time"),
    "engine": ({"aiohttp", "uv"}, "requests to the engine, and the installer of its environment"),
    "server": (
        {"aiohttp", "aiohttp_sse", "multidict", "yarl"},
        "the doors, with aiohttp's own headers and paths",
    ),
    "journal": (set[str](), "two hundred lines take the place of a library"),
    "ctl": ({"click"}, "importing aiohttp costs more than a whole command of vllmctl"),
    "daemon": ({"uvloop"}, "the loop is chosen where it is started"),
    "__main__": (set[str](), "it only calls"),
}
LIBRARIES_OF_MODULES = {
    "vllmd.config": ({"tomli"}, "TOML 1.1, which the standard library does not read"),
    "vllmd.notify": ({"sdnotify"}, "systemd's protocol"),
    "vllmd.server.prometheus": ({"prometheus_client"}, "what Prometheus reads; loaded by who asks for it only"),
    "vllmd.server.exposition": ({"prometheus_client"}, "what Prometheus reads; loaded by who asks for it only"),
    "vllmd.engine.gpu": ({"pynvml"}, "the GPU's driver"),
    **dict.fromkeys(
        ("vllmd.engine.pulling", "vllmd.engine.transfer", "vllmd.engine.hub_errors"),
        ({"huggingface_hub", "httpx2"}, "the hub's client, in the process that fetches models and in no other"),
    ),
}

NEVER = [
    ({"lifecycle", "transitions", "sse", "phases", "verdict"}, {"asyncio", "time", "logging", "os"},
     "what is decided or read purely needs neither clock nor world"),
    ({"core"}, {"asyncio", "socket", "subprocess", "threading"}, "the core does nothing on its own"),
    ({"ctl"}, {"asyncio", "aiohttp"}, "vllmctl is to start in the time of `import click`"),
    ({"guard"}, set(MODULES), "the guard runs alone, by file, for as long as the engine lives"),
    ({"core", "engine", "server", "ctl"}, {"vllmd.daemon", "vllmd.__main__"}, "only the composition root knows it all"),
    (set(DIRECTIONS), {"mock", "pytest", "hypothesis", "unittest"}, "what serves tests stays in tests"),
]  # fmt: skip

LEAVERS = {
    ("vllmd.daemon", "main"): "the console script `vllmd`",
    ("vllmd.ctl.main", "main"): "the console script `vllmctl`",
    ("vllmd.engine.guard", "__main__"): "it is a program of its own",
    ("vllmd.engine.pulling", "__main__"): "it is a program of its own",
}
"""The only places that may leave the process: elsewhere failures are exceptions, which can be told and tested."""

WAYS_OUT = {"sys.exit", "os._exit", "os.abort", "SystemExit"}
BUILT_IN_WAYS_OUT = {"exit", "quit"}


def is_called(module: str, names: set[str]) -> bool:
    return bool({layer_of(module), module.rpartition(".")[2]} & names)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_in_one_direction(module: str) -> None:
    allowed, reason = DIRECTIONS[layer_of(module)]
    wrong = {each for each in imports_of(module) & set(MODULES) if layer_of(each) not in allowed and each != "vllmd"}
    assert not wrong, reason


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_where_they_belong(module: str) -> None:
    by_layer, reason = LIBRARIES[layer_of(module)]
    by_module, more = LIBRARIES_OF_MODULES.get(module, (set(), ""))
    foreign = {each for each in imports_of(module) if each not in STANDARD and each not in MODULES}
    assert foreign <= by_layer | by_module, more or reason


@pytest.mark.parametrize("module", MODULES)
def test_what_is_never_imported(module: str) -> None:
    for who, what, reason in NEVER:
        if is_called(module, who):
            assert not (reached_from(module) if "guard" not in who else imports_of(module)) & (what - {module}), reason


@cache
def reached_from(module: str) -> frozenset[str]:
    """What a module imports, itself and through others of vllmd's."""
    reached, ahead = set[str](), {module}
    while ahead:
        found = {each for one in ahead if one in MODULES for each in imports_of(one)}
        ahead = found - reached
        reached |= found
    return frozenset(reached)


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: imports_of(module) & set(MODULES) - {"vllmd"} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_only_the_mains_leave_the_process(module: str) -> None:
    found = {(module, where) for where in ways_out(tree_of(module), "")}
    assert found <= set(LEAVERS), f"raise an error of vllmd.errors instead; these may: {list(LEAVERS.values())}"


def ways_out(node: ast.AST, where: str) -> Iterator[str]:
    """The functions (or `__main__` blocks) in which something ends the process."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from ways_out(child, where or child.name)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'":
            yield from ways_out(child, "__main__")
        else:
            if is_way_out(child):
                yield where
            yield from ways_out(child, where)


def is_way_out(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return bool({f"{node.module}.{each.name}" for each in node.names} & WAYS_OUT)
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in BUILT_IN_WAYS_OUT
    return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in WAYS_OUT


def test_the_rules_see_what_they_look_for() -> None:
    sinner = ast.parse("def f():\n    import os\n    def g(): os._exit(1)\nclass C:\n    from sys import exit\nquit()")
    assert sorted(ways_out(sinner, "")) == ["", "C", "f"]
    for (module, where), why in LEAVERS.items():
        assert where in set(ways_out(tree_of(module), "")), why
    assert {layer_of(module) for module in MODULES} == set(DIRECTIONS) == set(LIBRARIES)
    assert "vllmd.settings" in imports_of("vllmd.ctl.commands"), "an import inside a function counts"


# ── the same, seen from the running interpreter ──

IMPORT_EVERYTHING = """
import importlib, json, os, sys, threading
before = set(os.listdir("/proc/self/fd"))
for module in json.load(sys.stdin):
    importlib.import_module(module)
opened = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
          if fd not in before and os.path.exists(f"/proc/self/fd/{fd}")}
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
threads = [each.name for each in threading.enumerate() if each is not threading.main_thread()]
json.dump([opened, children, threads], sys.stderr)
"""


def python(program: str, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-c", program, *arguments]
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)


def test_nothing_happens_at_import() -> None:
    modules = [each for each in MODULES if not each.endswith("__main__")]
    ran = python(IMPORT_EVERYTHING, stdin=json.dumps(modules))
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert json.loads(ran.stderr) == [{}, [], []]


def test_importing_the_daemon_says_nothing() -> None:
    ran = python("import vllmd.daemon")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_prometheus_library_is_loaded_by_who_asks_only() -> None:
    """An idle daemon would be larger by it."""
    ran = python(
        "import sys, vllmd.daemon; assert 'prometheus_client' not in sys.modules; import vllmd.server.prometheus"
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_vllmctl_starts_without_what_is_slow() -> None:
    program = """
import sys
sys.argv = ["vllmctl", "--help"]
from vllmd.ctl.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(sorted({"aiohttp", "asyncio", "vllmd.server", "vllmd.engine", "http.client"} & set(sys.modules)), file=sys.stderr)
"""
    ran = python(program)
    assert (ran.returncode, ran.stderr) == (0, "[]\n")
    assert "chat" in ran.stdout
