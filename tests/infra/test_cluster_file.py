"""`ray up ray_cluster.yaml` must at least read its file; a user would find out in the middle of a start."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import spexmap

FILE = Path(__file__).resolve().parents[2] / "ray_cluster.yaml"


def test_cluster_file_is_valid() -> None:
    config = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(config)
    assert any(node["resources"].get("GPU") == 1 for node in config["available_node_types"].values())


def test_cluster_installs_this_version() -> None:
    commands = yaml.safe_load(FILE.read_text())["setup_commands"]
    assert any(f"=={spexmap.__version__}" in command for command in commands)
