"""Validation within a run: its programs, the best checkpoint and the early end."""

import concurrent.futures
import contextlib
import math
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hubert_jax import distributed
from hubert_jax.training import sharding
from hubert_jax.training.checkpoint import fingerprint
from hubert_jax.training.step import shape_of
from hubert_jax.training.task import Validation


class Validator:
    """Measures a run every so often, and remembers when it was best; of None it never does.

    What it remembers is `metadata["validation"]`, which is saved with the run's checkpoints. Where
    the metric or the split is another than in a run that goes on, the best is sought anew.
    """

    def __init__(
        self, validation: Validation | None, metadata: dict[str, Any], goes_on: bool = True
    ) -> None:
        self._validation, self._metadata = validation, metadata
        self._programs: dict = {}
        if validation is None:
            return
        facts = {**validation.facts, "metric": validation.metric}
        known = metadata.get("validation", {})
        if known and known["of"] != facts and goes_on:
            distributed.announce("validation has changed: the best checkpoint is sought anew")
            known = {}
        metadata["validation"] = known or {"of": facts, "best": None, "worse": 0, "last": {}}

    def compile(self, mesh: Mesh, params: Any) -> None:
        """Compiles the program of every shape; `params` are abstract."""
        if self._validation is None:
            return
        self._mesh = mesh
        rows = NamedSharding(mesh, sharding.BATCH)
        # Every process gets all rows.
        evaluate = jax.jit(self._validation.evaluate, out_shardings=NamedSharding(mesh, P()))

        def compiled(shapes: dict[str, jax.ShapeDtypeStruct]) -> Callable:
            batch = {
                name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rows)
                for name, shape in shapes.items()
            }
            return evaluate.lower(params, batch).compile()

        distinct = {shape_of(shapes): shapes for shapes in self._validation.batch_shapes}
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            programs = pool.map(compiled, distinct.values())
            self._programs = dict(zip(distinct, programs, strict=True))

    def is_due(self, step: int, last_step: int) -> bool:
        """Whether the run is measured after `step` steps."""
        validation = self._validation
        return validation is not None and (step % validation.every == 0 or step == last_step)

    def measure(self, step: int, params: Any) -> tuple[dict[str, float], bool]:
        """Figures of the parameters after `step` steps, and whether these are the best so far."""
        validation, outputs = self._validation, []
        assert validation is not None
        with contextlib.closing(validation.batches()) as batches:
            for batch in batches:
                rows = sharding.to_global(self._mesh, batch)
                with jax.transfer_guard("disallow"):
                    outputs.append(self._programs[shape_of(rows)](params, rows))
                jax.block_until_ready(outputs[-2:-1])  # one runs, one is read
        figures = validation.summarise(jax.device_get(outputs))
        value, known = figures[validation.metric], self._metadata["validation"]
        sign = -1 if validation.larger_is_better else 1
        best = known["best"]
        # Of weights that diverged nothing is best: they say nothing, which is a WER of 1.
        numbers = not any(map(math.isnan, figures.values())) and math.isfinite(value)
        improved = numbers and (not best or sign * value < sign * best["value"])
        self._metadata["validation"] = {
            "of": known["of"],
            "best": {"step": step, "value": value} if improved else best,
            "worse": 0 if improved else known["worse"] + 1,
            "last": figures,
        }
        return figures, improved

    def result(self) -> dict[str, Any] | None:
        """For `result.json`: the metric, its best step, value and fingerprint, the last figures."""
        if self._validation is None:
            return None
        known = self._metadata["validation"]
        best = {"step": None, "value": None, "fingerprint": None}
        if known["best"]:
            step = known["best"]["step"]
            best = known["best"] | {"fingerprint": fingerprint({**self._metadata, "step": step})}
        return {
            "metric": known["of"]["metric"],
            **best,
            "last": known["last"],
            "ended_run": self.ends_run,
        }

    @property
    def ends_run(self) -> str:
        """Why the run ends here, "" if it does not."""
        validation = self._validation
        if validation is None or not validation.patience:
            return ""
        best, worse = (self._metadata["validation"][key] for key in ("best", "worse"))
        if worse < validation.patience:
            return ""
        than = f" than {best['value']:.4g} at step {best['step']}" if best else ""
        return f"{validation.metric} was not better{than} in {worse} validations"
