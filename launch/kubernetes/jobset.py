"""Prints a JobSet of Kubernetes that runs one job on several hosts, as JSON, which kubectl takes.

    python -m launch.kubernetes.jobset --name=large --image=IMAGE --hosts=16 --claim=shared
        --tpu=tpu-v5-lite-podslice/8x16 -- hubert_jax.train --config=configs/large.py
        --config.workdir=/shared/large | kubectl apply -f -

Every host runs a pod, with all of its chips. The claim is a volume that all hosts may write at
once (ReadWriteMany), at /shared. Without one the workdir is in a bucket, and /shared, for copies of
what is there, is each pod's own; --secret and --account say who may read and write the bucket.

A pod that is preempted, or whose node fails, starts the whole set again from the last checkpoint,
at most --restarts times; bad input and a diverged training end it.
The cluster needs the JobSet controller.
"""

import argparse
import json
import os
import re
import sys
from typing import Any

# With these a job ends for good: bad input, a command line that is none, a diverged training.
_FINAL = [1, 2, 3]
_PORT = 8476
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # of a service, RFC 1035


def job_set(asked: argparse.Namespace) -> dict[str, Any]:
    """The JobSet as Kubernetes has it."""
    last = f"--config.distributed.count={asked.hosts}"
    first_pod = f"{asked.name}-host-0-0.{asked.name}"
    if asked.tpu:
        kind, _, topology = asked.tpu.partition("/")
        selector = {
            "cloud.google.com/gke-tpu-accelerator": kind,
            "cloud.google.com/gke-tpu-topology": topology,
        }
        chips, distributed = (
            {"google.com/tpu": asked.chips},
            ["--config.distributed.coordinator=auto"],
        )
    else:
        selector, chips = {}, {"nvidia.com/gpu": asked.chips}
        distributed = [
            f"--config.distributed.coordinator={first_pod}:{_PORT}",
            last,
            "--config.distributed.index=$(JOB_COMPLETION_INDEX)",
        ]
    places = {"JAX_COMPILATION_CACHE_DIR": "/shared/compiled"}
    if not asked.claim:
        places["HUBERT_JAX_CACHE"] = "/shared/copies"
    container = {
        "name": "job",
        "image": asked.image,
        "args": [*asked.command, *distributed],
        "env": [{"name": name, "value": place} for name, place in places.items()],
        "envFrom": [{"secretRef": {"name": name}} for name in asked.secret],
        "ports": [{"containerPort": _PORT}],
        "resources": {"limits": chips},
        "volumeMounts": [
            {"name": "shared", "mountPath": "/shared"},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }
    claim = {"persistentVolumeClaim": {"claimName": asked.claim}}
    shared: dict[str, Any] = claim if asked.claim else {"emptyDir": {}}
    pod = {
        **({"serviceAccountName": asked.account} if asked.account else {}),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,  # in which a training saves its step
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [
            {"name": "shared", **shared},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},  # NCCL's
        ],
    }
    ends = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": _FINAL}}
    job = {
        "completionMode": "Indexed",
        "completions": asked.hosts,
        "parallelism": asked.hosts,
        "backoffLimit": 0,  # one pod alone never starts again: all do
        "podFailurePolicy": {"rules": [ends]},
        "template": {"spec": pod},
    }
    gives_up = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": asked.name},
        "spec": {
            "failurePolicy": {"maxRestarts": asked.restarts, "rules": [gives_up]},
            "network": {"enableDNSHostnames": True, "subdomain": asked.name},
            "replicatedJobs": [{"name": "host", "replicas": 1, "template": {"spec": job}}],
        },
    }


def main(arguments: list[str]) -> None:
    """Prints the JobSet that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the set; also of its network")
    parser.add_argument("--image", required=True, help="made by launch/kubernetes/Dockerfile")
    parser.add_argument("--hosts", type=int, required=True, help="machines, a pod each")
    parser.add_argument("--claim", default="", help="PersistentVolumeClaim, ReadWriteMany")
    parser.add_argument("--account", default="", help="ServiceAccount, such as of a bucket's users")
    parser.add_argument(
        "--secret", action="append", default=[], help="whose keys are variables of the environment"
    )
    parser.add_argument("--tpu", default="", help="GKE's ACCELERATOR/TOPOLOGY; without it, GPUs")
    parser.add_argument("--chips", type=int, default=0, help="of a host; 4 TPUs or 8 GPUs")
    parser.add_argument("--restarts", type=int, default=100, help="after preemptions and failures")
    parser.add_argument("command", nargs="+", help="after --: JOB and its flags")
    asked = parser.parse_args(arguments)
    if asked.hosts < 1:
        parser.error(f"--hosts={asked.hosts}: expected 1 or more")
    # A pod is called NAME-host-0-INDEX-xxxxx, and no part of a host's name is longer than 63.
    longest = 63 - len(f"-host-0-{asked.hosts}-xxxxx")
    if not _NAME.fullmatch(asked.name) or len(asked.name) > longest:
        parser.error(
            f"--name={asked.name}: expected at most {longest} of a-z, 0-9 and -, "
            "a letter first and no - last"
        )
    if asked.restarts < 0 or asked.chips < 0:
        parser.error("--restarts and --chips: expected 0 or more")
    if asked.tpu and not asked.tpu.partition("/")[2]:
        parser.error(
            f"--tpu={asked.tpu}: expected ACCELERATOR/TOPOLOGY, such as tpu-v5p-slice/4x4x8"
        )
    asked.chips = asked.chips or (4 if asked.tpu else 8)
    try:
        print(json.dumps(job_set(asked), indent=2), flush=True)
    except BrokenPipeError:  # such as `| head`; nothing more can be written there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
