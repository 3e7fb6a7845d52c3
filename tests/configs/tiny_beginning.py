"""The stages of tests/configs/tiny.py that need no other training: one of each kind."""

from ml_collections import ConfigDict

from tests.configs import tiny


def get_config(part: str = "pipeline") -> ConfigDict:
    """For `pipeline`; the values of its stages are those of the whole."""
    config = tiny.get_config(part)
    for group in ("it2", "longer", "pretrained"):
        del config.stages[group]
    del config.stages.it1["evaluate"]
    config.report = dict(iterations=("it1",), recognisers=("scratch",))
    return config
