"""Every way to distil: stopped and gone on with it ends the same, and a refactor changes none of its losses.

python tests/test_ways.py          writes the golden losses anew: only for a change that is meant to change them
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ways import WAYS, figures

GOLDEN = Path(__file__).with_name("golden_losses.json")


@pytest.mark.parametrize("name", WAYS)
def test_a_training_goes_as_it_always_went_and_stopped_twice_ends_with_the_same_student(name, tmp_path):
    way = WAYS[name]
    whole = way.train(tmp_path / "whole").state_dict()
    for until in (4, 7, None):
        again = way.train(tmp_path / "parts", until).state_dict()
    before = way.student().state_dict()
    assert any(not torch.equal(before[place], weight) for place, weight in whole.items())
    assert all(torch.equal(again[place], weight) for place, weight in whole.items())
    seen, golden = figures(tmp_path / "whole"), json.loads(GOLDEN.read_text())[name]
    assert len(seen) == len(golden) > 5
    for one, other in zip(seen, golden, strict=True):
        # Processors differ in the order in which they add: the fifth digit, never more.
        assert one == pytest.approx(other, rel=1e-4)


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    found = {}
    for name, way in WAYS.items():
        with TemporaryDirectory() as folder:
            way.train(Path(folder))
            found[name] = figures(Path(folder))
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
