"""The command as a whole: what it loads, how it helps, and how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from click.testing import CliRunner

from lmcache_beluga.cli.root import COMMANDS, LazyCommand, beluga

HEAVY = {"numpy", "torch", "lmcache", "rich", "msgpack", "lmcache_beluga._native"}


def run_beluga(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lmcache_beluga", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
    )


def test_help_lists_every_command_and_loads_none() -> None:
    script = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        "sys.argv = ['beluga', '--help']\n"
        "from lmcache_beluga.cli import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    help_text, _, loaded = result.stdout.partition("LOADED")
    for name, command in COMMANDS.items():
        assert f"  {name} " in help_text
        assert command.help in help_text
    assert not HEAVY & set(loaded.split())
    targets = {command.target.partition(":")[0] for command in COMMANDS.values()}
    assert not targets & set(loaded.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples(name: str) -> None:
    result = CliRunner().invoke(beluga, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Examples:" in result.output
    assert f"beluga {name}" in result.output


def test_version() -> None:
    result = CliRunner().invoke(beluga, ["--version"])
    assert result.output == f"beluga, version {version('lmcache-beluga')}\n"


def test_misspelt_command() -> None:
    result = CliRunner().invoke(beluga, ["inspct"])
    assert result.exit_code == 2
    assert "no command 'inspct', did you mean 'inspect'?" in result.stderr


def test_no_pool_named() -> None:
    result = CliRunner().invoke(beluga, ["inspect"], env={"BELUGA_POOL": None})
    assert result.exit_code == 2
    assert "name the pool's PATH, or set the environment variable BELUGA_POOL" in result.stderr


def test_errors_are_one_line_without_a_traceback() -> None:
    result = run_beluga("settings", BELUGA_LEASE="never")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("beluga: error: BELUGA_LEASE (environment): cannot use 'never'")


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(missing: str) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from importlib import util\n"
        "real = util.find_spec\n"
        f"util.find_spec = lambda name: None if name == {missing!r} else real(name)\n"
        "from lmcache_beluga.cli import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"beluga: error: the command needs {missing}: pip install 'lmcache-beluga[cli]'\n"
    )


def test_missing_module_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    command = LazyCommand("lmcache_beluga.cli.settings:settings", "", extra="demo")
    monkeypatch.setitem(COMMANDS, "settings", command)
    monkeypatch.setitem(sys.modules, "lmcache_beluga.cli.settings", None)

    def fail(module: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("lmcache_beluga.cli.root.import_module", fail)
    result = CliRunner().invoke(beluga, ["settings"])
    assert result.exit_code == 2
    assert result.stderr == (
        "beluga: error: this command needs torch: pip install 'lmcache-beluga[demo]'\n"
    )
