"""The model card: complete, short enough for every database, readable by the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from talaria.config.load import load
from talaria.config.schema import Config
from talaria.runs.model_card import LIMIT, Curve, Facts, card, readme, sparkline

CONFIGS = Path(__file__).parents[2] / "configs"


def facts(config: Config, **changes) -> Facts:
    values = {
        "config": config,
        "step": 23_475,
        "total_steps": 23_475,
        "role": "final",
        "loss": 0.7,
        "report": {
            "heldout": {"conversations": 2003, "supervised_tokens": 612_345},
            "tuned": {"loss": 0.7, "exact_match": 0.25, "stopped": 0.98},
            "base": {"loss": 1.3, "exact_match": 0.0, "stopped": 0.0},
            "prompts": 64,
            "device": "NVIDIA H100 80GB HBM3",
        },
        "tags": {
            "talaria.data.name": "teknium/OpenHermes-2.5",
            "talaria.base": "Qwen/Qwen3-4B-Base",
            "talaria.train_key": "k" * 64,
        },
        "data": {
            "convert": {"dropped": {"unknown role": 3, "empty": 0}},
            "tokenize": {
                "conversations": {"train": 999_000, "validation": 2003},
                "tokens": {"train": 420_000_000},
                "dropped": {"too_long": 17},
                "truncated": 0,
            },
        },
        "curve": Curve(list(range(1, 23_476)), [3.0 - step / 20_000 for step in range(1, 23_476)], {7825: 0.9, 23_475: 0.7}),
        "cost": {"seconds": 36_000.0, "gpu_hours": 80.0, "energy_kwh": 51.2},
        "ranks": 8,
    }
    return Facts(**(values | changes))


@pytest.mark.parametrize("name", ["tiny", "qwen3-4b-base"])
def test_the_card_fits_into_a_description(name):
    assert len(card(facts(load(CONFIGS / f"{name}.yaml")))) < LIMIT / 2


def test_the_card_tells_data_quality_and_cost():
    text = card(facts(load(CONFIGS / "qwen3-4b-base.yaml")))
    for told in (
        "Qwen/Qwen3-4B-Base",
        "| held-out loss (token mean) | 1.3000 | 0.7000 |",
        "| exact match, 64 prompts | 0.0 % | 25.0 % |",
        "2003 conversations",
        "999,000 train",
        "dropped: 3 unknown role, 17 too long",
        "8 ranks, 10.00 h",
        "80.00 GPU-hours",
        "51.200 kWh",
        "0.9000 at step 7825",
        "`train.lr`: 1e-05",
    ):
        assert told in text


def test_a_version_from_the_middle_says_so_and_claims_no_answers():
    text = card(facts(load(CONFIGS / "qwen3-4b-base.yaml"), step=7825, role="kept", loss=0.9))
    assert "kept at step 7825 of 23475" in text
    assert "exact match" not in text


def test_without_a_held_out_split_the_card_says_why_there_are_no_numbers():
    report = {"heldout": None, "tuned": None, "base": None, "note": "No held-out conversations: ..."}
    assert "No held-out conversations" in card(facts(load(CONFIGS / "qwen3-4b-base.yaml"), report=report, loss=None))


def test_the_readme_has_front_matter_and_every_setting():
    config = load(CONFIGS / "qwen3-4b-base.yaml")
    _, front, rest = readme(facts(config)).split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "Qwen/Qwen3-4B-Base"
    assert yaml.safe_load(front)["datasets"] == ["teknium/OpenHermes-2.5"]
    assert yaml.safe_load(rest.split("```yaml\n")[1].split("```")[0]) == config.model_dump(mode="json")


def test_a_sparkline_has_the_curves_shape():
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0] * 5) == "▁▁▁▁▁"
    assert sparkline([]) == ""
    assert len(sparkline(list(range(1000)))) == 40


def test_lists_show_how_good_a_version_is_on_which_data():
    config = load(CONFIGS / "qwen3-4b-base.yaml")
    of_one = {"talaria.data.name": "some-lab/chats", "talaria.data.revision": "c0ffee" * 6}
    of_two = {"talaria.data.name": "a/b, c/d", "talaria.data.revision": "x c0ffee, y c0ffee", "talaria.data.source": "mixture"}
    first = card(facts(config, tags=of_one, champion=(3, 0.8), date="2026-11-27")).splitlines()[0]
    assert first.startswith("Held-out loss 0.7000 (base 1.3000, champion 0.8000), exact match 25.0 % (base 0.0 %), ")
    assert first.endswith(", some-lab/chats@c0ffeec0, 2026-11-27.")
    assert ", a/b, c/d." in card(facts(config, tags=of_two)).splitlines()[0]
