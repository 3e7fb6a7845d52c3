"""Converts a network between formats, in any direction; nothing of it is lost.

Pre-training and CTC models of any size, their heads included. Reading never runs code that a file
carries. What the target format has no home for travels beside it, and whatever was widened, left
out or made anew is printed. The target appears complete or not at all.
"""

import argparse
import sys
import time

from hubert_jax import files, job
from hubert_jax.errors import InputError

_FORMATS = """
formats:
  hf:DIR            directory of Hugging Face transformers; a pre-training head lies in
                    pretraining_head.safetensors beside the model
  fairseq:FILE      checkpoint of fairseq (.pt), of HubertModel or HubertCtc; needs torch
  torchaudio:FILE   state dict of torchaudio (.pt), of HuBERTPretrainModel or Wav2Vec2Model, with
                    the configuration in FILE.json and what has no home there in
                    FILE.rest.safetensors; without them the published sizes are recognised by
                    their shapes; needs torch
  orbax:DIR         checkpoint directory of this package, WORKDIR/train/checkpoints

torch is an extra: pip install --editable '.[torch]'

example:
  python -m hubert_jax.convert --from=fairseq:hubert_base_ls960.pt --to=hf:hubert-base
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message}; --help shows the usage")


def run(source: str, target: str, workdir: str = "") -> dict:
    """Converts; returns the content of the result file that it wrote.

    Args:
      source, target: `SCHEME:PATH`, see `formats`.
      workdir: the result is written as `WORKDIR/convert/result.json`; empty: beside the target,
        as `PATH.result.json`.

    Raises:
      InputError: a source that cannot be read, or a target that cannot be written.
    """
    started = time.monotonic()
    from hubert_jax.convert import formats

    path, scheme = formats.parse(target, "--to")[::-1]
    if formats.parse(source, "--from")[1].resolve() == path.resolve():
        raise InputError(f"--to={target}: the same place as --from={source}")
    if workdir:
        files.require_writable(workdir)
    elif scheme == "orbax" and path.exists():
        raise InputError(f"--to={target}: exists; name a directory that does not")
    network = formats.read(source)
    written = formats.write(target, network)
    result = {
        "kind": network.kind,
        "from": source,
        "to": target,
        "parameters": network.num_parameters,
        "notes": [*network.notes, *written.notes],
        "inputs": {"network": network.fingerprint},
        "digests": written.digests,
    }
    print(f"{result['parameters']:,} parameters ({network.kind}) in {target}", flush=True)
    for note in result["notes"]:
        print(note, flush=True)
    beside = None if workdir else f"{path}.result.json"
    return job.finish(workdir, "convert", result, started, beside)


def main(arguments: list[str]) -> None:
    """The command line; exit status as of every job's `main`."""
    parser = _Parser(
        "python -m hubert_jax.convert",
        description=__doc__,
        epilog=_FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--from", dest="source", metavar="FORMAT:PATH", required=True)
    parser.add_argument("--to", dest="target", metavar="FORMAT:PATH", required=True)
    parser.add_argument(
        "--workdir",
        default="",
        metavar="DIR",
        help="write DIR/convert/result.json; by default PATH.result.json beside the target",
    )

    def work() -> None:
        found = parser.parse_args(arguments)
        run(found.source, found.target, found.workdir)

    job.guarded(work)


if __name__ == "__main__":
    main(sys.argv[1:])
