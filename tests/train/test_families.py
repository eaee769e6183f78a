"""Every family that is not refused follows a plain loop of transformers' own code (family_proof.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from talaria.base_model.families import FAMILIES

from tests.train.family_proof import BOUND, OWN, TINY, prove

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_follows_the_plain_loop(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    proof = prove(family, folders, tmp_path)
    assert max(proof.loss, proof.norm, proof.weights, proof.packed) < BOUND, proof
    assert proof.perturbed == 0.0, "a conversation sees its neighbour"
    assert proof.moved > 1e-4, "nothing was trained"


def test_the_page_lists_the_families_that_are_proven() -> None:
    assert set(TINY) == set(OWN) == set(FAMILIES)
    table = DOCS.read_text().partition("| model_type |")[2].partition("\n\n")[0]
    listed = {line.split("`")[1]: line.split("|")[2:-1] for line in table.splitlines() if line.startswith("| `")}
    assert listed.keys() == set(FAMILIES)
    for family, (own, *measured) in listed.items():
        assert own.strip() == OWN[family]
        assert all(float(number) < BOUND for number in measured)
