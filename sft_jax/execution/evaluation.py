"""`config.eval` as benchmarks ready to be run: their data, how they are asked, who grades.

For a run's own snapshots (`scoring.py`) and for evaluations of their own alike. Not for what
benchmarks are (`evals/`).
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from sft_jax.data import overlap, tokenize
from sft_jax.data.formats import Record
from sft_jax.evals import chats, core, sandbox, served
from sft_jax.evals.benchmark import Files, Generate, Services
from sft_jax.evals.endpoint import Endpoint
from sft_jax.evals.files import HubFiles, LocalFiles
from sft_jax.evals.judge import EndpointJudge, judge_target
from sft_jax.evals.questions import Options, Wanted
from sft_jax.evals.suite import BenchmarkTask
from sft_jax.utils import log, words
from sft_jax.utils.errors import UserError


def options(
  config: Any,
  writer: core.Writer,
  window: int,
  check: Callable[[], None],
  directory: epath.Path,
  trained_on: Sequence[Record] = (),
  cache: pathlib.Path | None = None,
) -> Options:
  """How `config.eval` asks benchmarks.

  Args:
    config: `config.eval`.
    writer: Tokenizer and template of the run; no tokenizer for a served model.
    window: Longest text of the model.
    check: Called between requests to a judge; may raise to end an evaluation.
    directory: Where judgments are kept.
    trained_on: Records in which the items of benchmarks are looked for.
    cache: Where benchmarks are kept as tokens; None for nowhere.
  """
  template = writer.template if config.template == 'train' else config.template
  stops: Sequence[int] = ()
  if writer.tokenizer is not None:
    stops = tokenize.stop_ids(writer.tokenizer, 'chat' if template == 'chat' else 'study')
  return Options(
    writer.tokenizer,
    template,
    stops,
    window,
    limit=config.limit,
    precision=config.precision,
    seed=config.seed,
    tokens_per_batch=config.tokens_per_batch,
    slots=config.slots,
    services=Services(
      judge=_judge(config, check, directory),
      run_programs=_runner(config.run_code),
    ),
    seen=search(trained_on),
    cache=cache,
  )


def search(records: Sequence[Record]) -> Callable[[Sequence[Any]], list[bool]] | None:
  """Which items overlap some record (`overlap.NgramIndex`); None if there are no records."""
  if not records:
    return None
  index = overlap.NgramIndex(records)

  def seen(items: Sequence[Any]) -> list[bool]:
    hits = set(index.hits(items))
    return [i in hits for i in range(len(items))]

  return seen


def _judge(config: Any, check: Callable[[], None], directory: epath.Path) -> EndpointJudge | None:
  if not os.environ.get('SFT_JAX_JUDGE_URL'):
    return None
  endpoint = Endpoint(
    judge_target(os.environ),
    cache=chats.Cache(os.fspath(directory / 'judgments.jsonl')),
    budget=chats.parse_budget(config.judge_budget),
    check=check,
  )
  return EndpointJudge(endpoint, config.seed)


def _runner(run_code: str) -> Callable[..., Any] | None:
  if run_code == 'no':
    return None
  return functools.partial(sandbox.run_all, allow_weaker=run_code == 'weak')


def prepare(
  wanted: Sequence[Wanted],
  config: Any,
  options: Options,
  make: Callable[[Wanted, Any, Options], BenchmarkTask],
) -> list[BenchmarkTask]:
  """Benchmarks made by `make` or its like, with what they need checked before that.

  Raises:
    UserError: data that are missing or malformed, no judge or one that is too dear, or no leave to
      run programs.
  """
  tasks: list[BenchmarkTask] = []
  judgments = 0
  for one in wanted:
    reading = one.benchmark.readings[one.reading]
    if isinstance(reading, Generate):
      _require_services(one.benchmark.name, reading, config, options.services)
    task = make(one, config, options)
    tasks.append(task)
    if isinstance(reading, Generate):
      judgments += reading.judgments * len(task.questions)
  if judgments and options.services.judge is not None:
    options.services.judge.afford(judgments)
  return tasks


def make(wanted: Wanted, config: Any, options: Options) -> BenchmarkTask:
  """One benchmark, read and tokenised, or as messages where there is no tokenizer.

  Raises:
    UserError: see `BenchmarkTask`.
  """
  files: Files = LocalFiles(config.data_dir) if config.data_dir else HubFiles()
  kind = BenchmarkTask if options.tokenizer is not None else served.ServedTask
  task = kind(wanted, files, options)
  log.say(f'{wanted.name}: {words.count(len(task.questions), "question")}')
  return task


def _require_services(name: str, reading: Generate, config: Any, services: Services) -> None:
  """Raises UserError where grading will need what is not there."""
  if reading.judgments and services.judge is None:
    raise UserError(
      f'{name} needs a judge',
      'SFT_JAX_JUDGE_URL',
      'set it, SFT_JAX_JUDGE_MODEL and SFT_JAX_JUDGE_KEY, or leave the task out',
    )
  if not reading.programs:
    return
  if services.run_programs is None:
    raise UserError(
      f'{name} runs programs that the model wrote',
      'config.eval.run_code',
      'allow it with --config.eval.run_code=yes (they run in a sandbox), or leave the task out',
    )
  sandbox.require(allow_weaker=config.run_code == 'weak')
