#!/usr/bin/env bash
# kenlm.sh FOLDER [PYTHON]: builds KenLM's lmplz and build_binary, which `python -m hubert_jax.lm`
# takes as --config.kenlm=FOLDER. The sources come from PyPI, by pip. Needs cmake, a C++ compiler
# and Boost; on Debian or Ubuntu: apt install cmake g++ zlib1g-dev libboost-program-options-dev
# libboost-system-dev libboost-thread-dev libboost-test-dev
set -euo pipefail
[[ $# -ge 1 ]] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
folder=$1 python=${2:-python3} version=0.3.0
command -v cmake > /dev/null || { echo "error: cmake not found; apt install cmake g++" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m pip download --quiet --no-deps --no-binary kenlm \
    --dest "$scratch" "kenlm==$version"
tar -xzf "$scratch/kenlm-$version.tar.gz" -C "$scratch"
cmake -S "$scratch/kenlm-$version" -B "$scratch/build" -DCMAKE_BUILD_TYPE=Release
cmake --build "$scratch/build" --parallel --target lmplz build_binary
mkdir -p "$folder"
cp "$scratch/build/bin/lmplz" "$scratch/build/bin/build_binary" "$folder/"
echo "built: $folder/lmplz, $folder/build_binary"
