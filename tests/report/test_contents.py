"""Reading metrics.jsonl as runs leave it."""

import numpy as np
import pytest

from hubert_jax.errors import InputError
from hubert_jax.report.contents import JointCounts, best_layer, by_layer, read_curve


def test_resumed_and_interrupted_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "loss": 4.5, "note": "x"}\n'
        '{"step": 20, "loss": 4.0}\n'
        '{"step": 30, "loss": 9.0, "dev_loss": 5.0}\n'
        '{"step": 30, "loss": 3.5}\n'  # resumed from step 20
        '{"step": 40, "lo'
    )
    curve = read_curve(path)
    assert set(curve) == {"step", "loss", "dev_loss"}
    np.testing.assert_array_equal(curve["step"], [10, 20, 30])
    np.testing.assert_array_equal(curve["loss"], [4.5, 4.0, 3.5])
    np.testing.assert_array_equal(curve["dev_loss"], [np.nan, np.nan, 5.0])


@pytest.mark.parametrize("line", ["loss 3", '{"loss": 3}', "[1]", '{"step": null}'])
def test_other_lines_are_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl: line 2 is .* expected"):
        read_curve(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="metrics not found"):
        read_curve(tmp_path / "metrics.jsonl")


def test_layers_are_in_the_order_of_numbers():
    assert list(by_layer({"10": 0.1, "9": 0.2, "2": None})) == [9, 10]
    assert best_layer({"pnmi_by_layer": {"10": 0.1, "9": 0.2}}) == 9
    assert best_layer({"best_layer": 0, "pnmi_by_layer": {"9": 0.2}}) == 0
    assert best_layer({}) is None


def test_joint_counts_of_another_shape():
    with pytest.raises(ValueError, match=r"\(3, 2\) for 2 phones"):
        JointCounts(["AA", "B"], np.zeros((3, 2)))
