"""Variants of the demonstration that studies run."""

import pytest

from configs import demo
from studies import demo as study


def _seeds(part) -> list[int]:
    found = []
    for key, value in sorted(part.items()):
        found += _seeds(value) if isinstance(value, dict) else [value] * (key == "seed")
    return found


def test_a_variant_differs_by_its_changes_and_seeds():
    changes = {"tuning": 50, "stages.it1.train.loop.steps": 7}
    config = study.variant(changes, 3).to_dict()
    assert changes == {"tuning": 50, "stages.it1.train.loop.steps": 7}  # for the next seed
    plain = demo.get_config().to_dict()
    assert _seeds(config) == [seed + 3 for seed in _seeds(plain)] and len(_seeds(plain)) > 9
    for group in ("pretrained", "scratch"):
        tuned = config["stages"][group]["finetune"]
        assert (tuned["loop"]["steps"], tuned["ctc"]["freeze_steps"]) == (50, 5)
    assert config["stages"]["it1"]["train"]["loop"]["steps"] == 7
    with pytest.raises(SystemExit, match="stages.it1.train.loop.step: no such key; .*, steps"):
        study.variant({"stages.it1.train.loop.step": 7}, 0)
