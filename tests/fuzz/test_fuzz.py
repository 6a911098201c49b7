"""Fuzzed metadata: nothing reads or writes outside the pool, and no read gives a wrong byte.

``fuzz_metadata`` damages what lies in a pool, of either visibility, while two hosts use it, at any
moment between two of their loads; ``fuzz_attach`` the superblock and the host pages that an attach
believes. They are built with libFuzzer where clang has it, else with a driver of their own, always
under ASan and UBSan.

``pytest tests/fuzz --fuzz-seconds 1800`` (or FUZZ_SECONDS) fuzzes for long. A crash leaves its
input in the build folder; ``FUZZ_TRACE=1 fuzz_metadata INPUT`` replays it and says each step.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TARGETS = ["fuzz_metadata", "fuzz_metadata_noncoherent", "fuzz_attach"]

ENVIRONMENT = {
    # Short stacks and a small quarantine: many small blocks come and go.
    "ASAN_OPTIONS": "malloc_context_size=2:quarantine_size_mb=8:detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def has_libfuzzer(directory: Path) -> bool:
    """Does clang++ exist, with its runtime?"""
    source = directory / "probe.cpp"
    source.write_text(
        "#include <cstddef>\n#include <cstdint>\n"
        'extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t*, std::size_t) { return 0; }\n'
    )
    command = ["clang++", "-std=c++20", "-fsanitize=fuzzer,address,undefined", source.name]
    if shutil.which("clang++") is None:
        return False
    return subprocess.run(command, cwd=directory, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the executables. A second run has nothing left to compile."""
    clang = has_libfuzzer(tmp_path_factory.mktemp("probe"))
    build = ROOT / "build" / ("fuzz-clang" if clang else "fuzz")
    commands = [
        [
            *("cmake", "-S", ROOT, "-B", build, "-DBELUGA_FUZZ=ON"),
            *(["-G", "Ninja"] if shutil.which("ninja") else []),
            *(["-DCMAKE_CXX_COMPILER=clang++"] if clang else []),
            "-DCMAKE_BUILD_TYPE=Release",
            "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
            "-DBELUGA_SANITIZE=address,undefined",
        ],
        ["cmake", "--build", build, "--parallel", str(len(os.sched_getaffinity(0)))],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return build / "tests" / "fuzz"


@pytest.fixture
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the inputs of the target that the test is about: each a line, in base64."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    target: str = request.node.callspec.params["target"]
    name = target.removeprefix("fuzz_").removesuffix("_noncoherent")
    for number, line in enumerate((HERE / f"corpus_{name}.txt").read_text().splitlines()):
        (folder / f"{number:04}").write_bytes(base64.b64decode(line))
    return folder


def run(executable: Path, corpus: Path, shm: Path, *options: str) -> str:
    """Fuzzes; what it says at the end."""
    command = [
        executable,
        f"-artifact_prefix={executable.parent}/",
        "-timeout=60",
        *options,
        corpus,
    ]
    environment = {**os.environ, **ENVIRONMENT, "FUZZ_DIRECTORY": str(shm)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-12000:]
    return next(line for line in done.stderr.splitlines() if line.startswith("fuzzed: "))


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_that_once_mattered(built: Path, corpus: Path, shm_dir: Path, target: str) -> None:
    said = run(built / f"{target}_standalone", corpus, shm_dir)
    assert f"fuzzed: {len(list(corpus.iterdir()))} inputs" in said


@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(
    built: Path,
    corpus: Path,
    shm_dir: Path,
    target: str,
    fuzz_seconds: int,
    record_property: pytest.RecordProperty,
) -> None:
    executable = built / target
    options = [f"-max_total_time={fuzz_seconds}", "-max_len=600"]
    if executable.exists():
        options += ["-use_counters=0", "-len_control=0", "-rss_limit_mb=4096"]
    else:
        executable = built / f"{target}_standalone"
        options += [f"-seed={int.from_bytes(os.urandom(4))}"]
    said = run(executable, corpus, shm_dir, *options)
    record_property(target, said)
    print(said)
