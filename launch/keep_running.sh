#!/usr/bin/env bash
# keep_running.sh COMMAND ...: starts a job again whenever the machine, not the job, ended it:
# preempted (status 75, or 143 before the first step). What goes on goes on from its last checkpoint.
# Bad input (1), a diverged training (3), SIGINT (130) and success end it. Of crashes (70, or others)
# it takes MOST_CRASHES in a row, 3 by default, of 143 MOST_EARLY, 20 by default, as a job can be at
# fault for it; a row ends when the job has run for an hour. It waits RESTART_SECONDS, 10 by default,
# before each start, so that all hosts of a job have ended. SIGTERM is passed on, as is Ctrl-C (as
# SIGTERM, so that its step is saved), and then nothing is started again.
set -uo pipefail
[[ $# -ge 1 ]] || { sed -n '2,9s/^# //p' "$0" >&2; exit 2; }

crashes=0 early=0 ending='' interrupted='' job=''
pass_on() { [[ -z $job ]] || kill -TERM "$job" 2> /dev/null; }
trap 'ending=1 interrupted=1; pass_on' TERM INT # a job in the background ignores SIGINT
while :; do
    began=$SECONDS job=''
    "$@" &
    job=$!
    [[ -z $ending ]] || pass_on # SIGTERM came before its number was known
    while :; do # SIGTERM ends the wait, not yet the job
        interrupted='' status=0
        wait "$job" || status=$?
        [[ -n $interrupted ]] || break
    done
    [[ -z $ending ]] || exit "$status"
    ((SECONDS - began < 3600)) || crashes=0 early=0
    case $status in
    0 | 1 | 2 | 3 | 126 | 127 | 130) exit "$status" ;;
    75) early=0 ;;
    143)
        ((++early < ${MOST_EARLY:-20})) || {
            echo "error: ended $early times with SIGTERM's status and nothing saved" >&2
            exit "$status"
        }
        ;;
    *)
        ((++crashes < ${MOST_CRASHES:-3})) || {
            echo "error: ended $crashes times with a crash, the last one with status $status" >&2
            exit "$status"
        }
        ;;
    esac
    echo "ended with status $status; starts again in ${RESTART_SECONDS:-10} s" >&2
    sleep "${RESTART_SECONDS:-10}" &
    wait "$!"
    [[ -z $ending ]] || exit 75
done
