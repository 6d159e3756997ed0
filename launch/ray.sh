#!/bin/bash
# A study spread over a Ray cluster that is up (`ray up launch/ray.yaml`), from its head node or
# wherever RAY_ADDRESS leads to it:
#
#   launch/ray.sh --config=configs/studies/demo.py --workdir=/shared/studies/demo \
#     --config.study.resources=GPU:1
#
# Stopped after saving (exit status 3), as by config.max_seconds, it starts again, but not where a
# signal stopped it.
export RAY_ADDRESS=${RAY_ADDRESS:-auto}
ended=''
trap 'ended=1; kill -TERM $! 2>/dev/null' INT TERM
while true; do
  python -m sft_jax.main "$@" --config.study.engine=ray &
  wait $!
  status=$?
  # A signal ends the wait at once, and the study after it has saved.
  while kill -0 $! 2>/dev/null; do
    wait $!
    status=$?
  done
  if [[ $ended || $status -ne 3 ]]; then exit $status; fi
done
