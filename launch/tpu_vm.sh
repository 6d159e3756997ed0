#!/bin/bash
# A run or a study on a TPU slice made for it, on all its hosts as one program. The slice is asked
# for as a queued resource, and removed at the end:
#
#   NAME=sft ZONE=us-east5-b TYPE=v6e-64 RUNTIME=v2-alpha-tpuv6e \
#     IMAGE=us-docker.pkg.dev/project/sft/sft_jax launch/tpu_vm.sh \
#     --config=configs/sft.py --workdir=gs://bucket/runs/large --config.model.path=…
#
# IMAGE is built with `docker build -f launch/Dockerfile --build-arg EXTRA=tpu .`; SPOT=--spot takes
# what others may take back. Stopped after saving (exit status 3), or taken back, the run goes on on
# a new slice.
set -uo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${RUNTIME:?}" "${IMAGE:?}" "${SPOT:=}"

tpus() { gcloud compute tpus "$@" --zone="$ZONE" --quiet; }
state() { tpus queued-resources describe "$NAME" --format='value(state.state)'; }

while true; do
  tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME" ${SPOT:+"$SPOT"} || exit 1
  until [[ $(state) == ACTIVE ]]; do
    if [[ $(state) == FAILED ]]; then exit 1; fi
    sleep "${POLL:-30}"
  done
  run="sudo docker run --rm --privileged --net=host $IMAGE$(printf ' %q' "$@")"
  said=$(tpus tpu-vm ssh "$NAME" --worker=all --command="$run; echo exit status \$?" | tee /dev/stderr)
  kept=$(state)
  tpus queued-resources delete "$NAME" --force
  if [[ $said != *'exit status 3'* && $kept == ACTIVE ]]; then break; fi
done
[[ $said == *'exit status 0'* && $said != *'exit status '[1-9]* ]]
