#!/usr/bin/env bash
# tpu_pod.sh [--dry-run] ACTION NAME [...]: a slice of Cloud TPU VMs, by gcloud.
#
#   create NAME TYPE [--spot]   asks for a slice, such as v5litepod-128 or v5p-256, and waits for it
#   install NAME SOURCE         clones SOURCE (a git URL, or URL#BRANCH) on every host, installs it
#   mount NAME SERVER:/SHARE    mounts one NFS share (Filestore) as /mnt/shared on every host, unless
#                               corpus and workdir are in a bucket
#   run NAME JOB [FLAGS]        starts python -m JOB FLAGS on every host, again after a preemption
#   logs NAME                   follows the first host's output
#   stop NAME                   SIGTERM: the job saves its step and ends
#   status NAME | delete NAME
#
# Of the environment: ZONE (needed), PROJECT (gcloud's own by default), VERSION of the TPU's
# software. --dry-run prints the commands instead.
set -euo pipefail
usage() { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dry=''
[[ ${1-} != --dry-run ]] || { dry=1; shift; }
[[ $# -ge 2 ]] || usage
action=$1 name=$2
shift 2
[[ -n ${ZONE-} ]] || { echo "error: ZONE is not set; expected the slice's zone, such as us-east5-a" >&2; exit 2; }
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})

gcloud_() {
    if [[ -n $dry ]]; then
        printf '%q ' gcloud "$@"
        echo
    else
        gcloud "$@"
    fi
}

on() { # WORKER COMMAND: runs it in a shell there
    gcloud_ compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

case $action in
create)
    [[ $# -ge 1 ]] || usage
    type=$1
    case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v4-*) version=tpu-ubuntu2204-base ;;
    *) version='' ;;
    esac
    version=${VERSION:-$version}
    [[ -n $version ]] || { echo "error: $type: which software has it? Set VERSION" >&2; exit 2; }
    # A queued request waits for capacity, where `tpu-vm create` would fail.
    gcloud_ compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
        --accelerator-type="$type" --runtime-version="$version" ${2:+"$2"}
    [[ -n $dry ]] || until [[ $(gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
        --format='value(state.state)') == ACTIVE ]]; do sleep 30; done
    ;;
install)
    [[ $# -eq 1 ]] || usage
    source=${1%%#*} branch=''
    [[ $1 != *#* ]] || branch="--branch=${1##*#}"
    on all "set -e; rm -rf hubert_jax; git clone --depth=1 $branch $source hubert_jax; cd hubert_jax; \
sudo apt-get -qq install -y python3-venv; python3 -m venv .venv; \
.venv/bin/python -m pip install --quiet --requirement requirements.txt --editable '.[tpu,gs]'"
    ;;
mount)
    [[ $# -eq 1 ]] || usage
    on all "set -e; sudo apt-get -qq install -y nfs-common; sudo mkdir -p /mnt/shared; \
mountpoint -q /mnt/shared || sudo mount $1 /mnt/shared; sudo chmod 1777 /mnt/shared"
    ;;
run)
    [[ $# -ge 1 ]] || usage
    flags=$(printf ' %q' "$@" --config.distributed.coordinator=auto)
    # A compiled program is found again after a restart. setsid: it outlives the connection. No `&&`
    # before it: a shell around both would have the number that is kept, and hold the connection.
    on all "cd hubert_jax || exit; JAX_COMPILATION_CACHE_DIR=\$HOME/compiled setsid nohup \
launch/keep_running.sh .venv/bin/python -m$flags > \$HOME/$name.log 2>&1 < /dev/null & \
echo \$! > \$HOME/$name.pid"
    ;;
logs) on 0 "tail -n 50 -F \$HOME/$name.log" ;;
stop) on all "kill -TERM \$(cat \$HOME/$name.pid)" ;;
status) gcloud_ compute tpus queued-resources describe "$name" "${where[@]}" ;;
delete) gcloud_ compute tpus queued-resources delete "$name" "${where[@]}" --force ;;
*) usage ;;
esac
