"""Many command lines of ours in one process that has imported everything. Not a test.

`python -m tests.forked` reads a JSON list of (words, environment) and prints a JSON list of [exit
status, standard output, standard error]; each command runs in a child of its own.
"""

import json
import os
import sys
import tempfile
import traceback


def main() -> None:
  # Nothing here starts a backend, or children would share its threads.
  from sft_jax.decide import choose_mode, recommend_mode
  from sft_jax.execution import evaluate, runner, study_run
  from sft_jax.interactive import show_data

  del choose_mode, evaluate, recommend_mode, runner, show_data, study_run
  print(json.dumps([_one(words, env) for words, env in json.load(sys.stdin)]))


def _one(words: list[str], env: dict[str, str]) -> tuple[int, str, str]:
  with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
    child = os.fork()
    if child == 0:
      _become(words, env, out.fileno(), err.fileno())
    _, status = os.waitpid(child, 0)
    out.seek(0), err.seek(0)
    return os.waitstatus_to_exitcode(status), out.read(), err.read()


def _become(words: list[str], env: dict[str, str], out: int, err: int) -> None:
  """Runs the command in this child, and ends it."""
  status = 1
  try:
    os.dup2(out, 1), os.dup2(err, 2)
    os.environ.update(env)
    sys.argv = words
    from sft_jax import main as main_lib

    main_lib.cli()
    status = 0
  except SystemExit as e:
    status = e.code if isinstance(e.code, int) else 1
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


if __name__ == '__main__':
  main()
