"""``beluga settings``, and the README's table, which it makes."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from lmcache_beluga.cli.root import beluga
from lmcache_beluga.cli.settings import markdown
from lmcache_beluga.config import SETTINGS

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def test_the_readme_has_the_table() -> None:
    assert README.exists(), "README.md is missing"
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == 1, f"README.md needs one line {BEGIN} before the settings table"
    assert text.count(END) == 1, f"README.md needs one line {END} after the settings table"
    table = text.partition(BEGIN)[2].partition(END)[0].strip() + "\n"
    assert table == markdown(), "paste the output of: beluga settings --markdown"


def test_markdown() -> None:
    result = CliRunner().invoke(beluga, ["settings", "--markdown"])
    assert result.output == markdown()
    lines = result.output.splitlines()
    assert len(lines) == 2 + len(SETTINGS)
    assert {line.count("|") for line in lines} == {6}


def test_json_shows_the_values_of_this_environment() -> None:
    environ = {"BELUGA_SIZE": "1GiB", "BELUGA_POOL": "/a:/b"}
    result = CliRunner().invoke(beluga, ["settings", "--json"], env=environ)
    rows = {row["setting"]: row for row in json.loads(result.output)}
    assert rows["beluga.size"]["value"] == 1 << 30
    assert rows["beluga.size"]["default"] is None
    assert rows["beluga.pool"]["value"] == ["/a", "/b"]
    assert rows["beluga.lease"] == {
        "setting": "beluga.lease",
        "variable": "BELUGA_LEASE",
        "type": "duration in seconds",
        "unit": "ms",
        "default": 10_000,
        "value": 10_000,
        "meaning": rows["beluga.lease"]["meaning"],
    }


def test_table() -> None:
    result = CliRunner().invoke(beluga, ["settings"], env={"BELUGA_LEASE": "3s"})
    (line,) = [line for line in result.output.splitlines() if "beluga.lease" in line]
    assert "3s" in line
    assert "10s" in line
