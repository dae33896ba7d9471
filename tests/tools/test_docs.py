"""What the documents say is what the programs do."""

from __future__ import annotations

import re

import pytest
import yaml
from conftest import ROOT, run_tool

from ernie_vil import cli

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "_base_" not in path.parts)


def test_the_list_of_keys_is_current():
    result = run_tool("describe_config")
    assert result.returncode == 0, result.stderr
    assert result.stdout == (ROOT / "docs" / "config.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_is_valid_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    name = str(path.relative_to(ROOT))
    head = text[: text.index("\n_base_")]
    tool = "eval.py    -c" if name == "configs/cloze.yaml" else "train.py -c"  # the cloze test has nothing to train
    assert head.startswith("# ") and f"tools/{tool} {name}" in head and "Table" in head
    config, _ = cli.load_config(cli.run_parser("").parse_args(["-c", str(path)]))
    assert config.target is not None and config.target.source
    assert yaml.safe_load(text)["mini"]["output"] != config.output


def test_tools_named_in_the_readme_exist_and_explain_themselves():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tools = sorted(set(re.findall(r"tools/(\w+)\.py", readme)))
    assert {"train", "eval", "predict", "check", "convert_weights", "benchmark"} <= set(tools)
    for tool in tools:
        result = run_tool(tool, "--help")
        assert result.returncode == 0 and "usage" in result.stdout, tool


def test_links_in_the_readme_lead_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
