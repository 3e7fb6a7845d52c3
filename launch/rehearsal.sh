#!/usr/bin/env bash
# rehearsal.sh PYTHON [OVERRIDES]: the paper's two pipelines, narrow and short (configs/paper/),
# BASE's in two processes of four simulated devices, LARGE's and X-LARGE's in one of eight.
# The latter begins when the former has trained the network that its units come from.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift

# Nearly all of the time goes into compiling programs that then run for milliseconds. JAX 0.10's
# compiler, the last for Python 3.11, has a way of emitting fusions that takes half of it.
export JAX_PLATFORMS=cpu JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
case $("$python" -c 'import jaxlib; print(jaxlib.__version__)') in
0.10.*) XLA_FLAGS+=" --xla_cpu_use_fusion_emitters=false" ;;
esac
export XLA_FLAGS

units=runs/librispeech_rehearsal/it2/train/result.json
log=runs/librispeech_rehearsal.txt
mkdir -p runs
started=$(mktemp)
JAX_NUM_CPU_DEVICES=4 "$python" -m launch.one_machine 2 hubert_jax.pipeline \
    --config=configs/paper/librispeech.py:rehearsal "$@" > "$log" 2>&1 &
base=$!
trap 'rm -f "$started"; kill "$base" 2> /dev/null || true' EXIT
echo "BASE's lines are in $log, and follow here at its end"
# A result of an earlier run may be made anew: then only the end of this one tells.
until [[ $units -nt $started ]] || ! kill -0 "$base" 2> /dev/null; do sleep 1; done
status=0
if [[ -e $units ]]; then
    JAX_NUM_CPU_DEVICES=8 "$python" -m hubert_jax.pipeline \
        --config=configs/paper/librilight.py:rehearsal "$@" || status=$?
fi
wait "$base" || status=$?
cat "$log"
[[ $status == 0 ]] && echo "both rehearsals: $SECONDS s"
exit "$status"
