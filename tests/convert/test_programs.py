"""StableHLO of a network, run by a process that knows nothing of this package."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from oracles import BASE_LIKE, LARGE_LIKE

from hubert_jax import config as config_lib
from hubert_jax import export, files
from hubert_jax.convert import formats
from hubert_jax.data.waveform import normalize
from hubert_jax.errors import InputError
from hubert_jax.model.architecture import Execution
from hubert_jax.model.hubert import Hubert, HubertForCTC
from hubert_jax.model.kernels import choice
from hubert_jax.vocabulary import LIBRISPEECH

NETWORKS = {"base": BASE_LIKE, "large": LARGE_LIKE}
PROGRAMS = ("emissions", "layer_2")
# (samples of the batch, samples of each row)
BATCHES = {"two": (9_000, (9_000, 5_311)), "short": (400, (400,))}

_DEPLOYED = """
import json, sys, pathlib
import jax, numpy, safetensors.numpy
jax.config.update("jax_platforms", "cpu")
folder = pathlib.Path(sys.argv[1])
given = dict(numpy.load(folder / "given.npz"))
found = {}
for name in sys.argv[2:]:
    programs = folder / name / "export" / "programs"
    described = json.loads((programs / "programs.json").read_text())
    parameters = safetensors.numpy.load_file(programs / "parameters.safetensors")
    for program, file in described["programs"].items():
        exported = jax.export.deserialize((programs / file).read_bytes())
        for batch in (key for key in given if "/" not in key):
            arguments = parameters, given[batch], given[batch + "/num_samples"]
            found[f"{name}/{program}/{batch}"] = exported.call(*arguments)
assert not [module for module in sys.modules if module.startswith(("hubert_jax", "flax"))]
numpy.savez(folder / "found.npz", **found)
"""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory, make_params):
    """Parameters of each network, what a batch has, and what the programs gave."""
    folder = tmp_path_factory.mktemp("deployed")
    random = np.random.default_rng(0)
    given, params = {}, {}
    for name, (samples, lengths) in BATCHES.items():
        # Anything stands in the padding.
        given[name] = random.normal(0, 0.1, (len(lengths), samples)).astype(np.float32)
        given[f"{name}/num_samples"] = np.array(lengths, np.int32)
    np.savez(folder / "given.npz", **given)
    for name, network in NETWORKS.items():
        params[name] = make_params(network, LIBRISPEECH.size)
        where = f"orbax:{folder}/{name}/checkpoints"
        formats.write(where, network.network(params[name], LIBRISPEECH))
        values = dict(workdir=f"{folder}/{name}", checkpoint=where, programs=PROGRAMS)
        result = export.run(config_lib.build(export.ExportConfig, values))
        for file, digest in result["programs"].items():
            assert files.sha256_file(folder / name / "export" / "programs" / file) == digest
    command = [sys.executable, "-c", _DEPLOYED, str(folder), *NETWORKS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return params, given, dict(np.load(folder / "found.npz"))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_gives_the_networks_numbers(deployed, name):
    params, given, found = deployed
    architecture = NETWORKS[name].architecture
    kernels = choice.choose(Execution(), architecture)
    ctc = HubertForCTC(architecture, LIBRISPEECH.size, kernels)
    hubert = Hubert(architecture, kernels)

    @jax.jit
    def of_network(waveform):
        logits = ctc.apply({"params": params[name]}, waveform[None])
        states = hubert.apply({"params": params[name]["hubert"]}, waveform[None], collect=True)
        return {"emissions": jax.nn.log_softmax(logits)[0], "layer_2": states["layers"][2, 0]}

    for batch, (_, lengths) in BATCHES.items():
        for row, length in enumerate(lengths):
            waveform = given[batch][row, :length]
            if architecture.normalize_waveform:
                waveform = normalize(waveform)
            frames = (length - 400) // 320 + 1
            for program, values in of_network(waveform).items():
                ours = found[f"{name}/{program}/{batch}"][row, :frames]
                np.testing.assert_allclose(ours, values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        (("layer_4",), "config.programs=layer_4: expected a layer of 0 to 3"),
        (("layer_1", "logits"), "config.programs=logits: expected emissions, or layer_N"),
        (("emissions",), "config.programs=emissions: the network has no CTC head"),
    ],
)
def test_what_is_no_program_is_refused(programs, message, tmp_path, make_params):
    where = f"orbax:{tmp_path}/checkpoints"
    formats.write(where, BASE_LIKE.network(make_params(BASE_LIKE)))
    values = dict(workdir=str(tmp_path), checkpoint=where, programs=programs)
    with pytest.raises(InputError, match=message):
        export.run(config_lib.build(export.ExportConfig, values))
    assert not (tmp_path / "export").exists()
