"""A run in a process of its own, to be killed: it says how far it is and takes its time.

Forked from a server that has imported everything, so that a life costs a second or two instead of
ten. Not a test.
"""

import multiprocessing
import os
import sys
import time
from typing import Any

# For the server: what a life would otherwise import again.
import orbax.checkpoint  # noqa: F401
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast  # noqa: F401

from sft_jax.utils import log
from tests import tiny

# A step of the tiny model takes less, and a kill must be able to hit it.
STEP_SECONDS = 0.02


def live(given: Any, workdir: str, pipe: Any) -> None:
  """A life: does the run, from where it was left, to its end."""
  update = log.Progress.update

  def slow(self: log.Progress, step: int, *rest: float) -> dict[str, float]:
    pipe.send(step)
    time.sleep(STEP_SECONDS)
    return update(self, step, *rest)

  log.Progress.update = slow  # type: ignore[method-assign]
  given.log.tensorboard = False  # Importing TensorFlow would be most of a life.
  with open(os.devnull, 'w') as sys.stderr:
    tiny.run(workdir, given)


def start(given: Any, workdir: Any) -> tuple[multiprocessing.Process, Any]:
  """A new life, and the pipe on which it reports finished steps."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['tests.victim'])
  ours, theirs = context.Pipe(duplex=False)
  process = context.Process(target=live, args=(given, str(workdir), theirs))
  process.start()
  theirs.close()
  return process, ours
