"""Probe texts: from a file, or the questions of benchmarks with their right answers."""

from collections.abc import Sequence

from sft_jax.data import readers
from sft_jax.evals import parse, prompts
from sft_jax.evals.benchmark import Choose, Files, Item
from sft_jax.evals.probes.loglik_vector import ProbeText
from sft_jax.evals.questions import Wanted


def read(path: str) -> dict[str, list[ProbeText]]:
  """{task: texts} of a file of records with `prompt`, `answer` and, if they like, `task`.

  Raises:
    UserError: no such file, or a record without these or with neither of them filled.
  """
  out: dict[str, list[ProbeText]] = {}
  for source, record in readers.read_raw(path):
    if not isinstance(record, dict):
      raise parse.wrong(source, 'prompt', 'is missing: the record is no object')
    prompt, answer = (parse.text(record, key, source, empty=True) for key in ('prompt', 'answer'))
    if not (prompt + answer).strip():
      raise parse.wrong(source, 'prompt', 'is empty, and so is the answer')
    task = parse.text(record, 'task', source) if 'task' in record else ''
    out.setdefault(task, []).append(ProbeText(prompt, answer, task))
  return out


def of_benchmarks(wanted: Sequence[Wanted], files: Files) -> dict[str, list[ProbeText]]:
  """{benchmark: its items, as plain text without shots, and where it has choices the right one}.

  Raises:
    UserError: data that are missing or malformed.
  """
  out: dict[str, list[ProbeText]] = {}
  for one in wanted:
    items, _ = one.benchmark.read(files)
    out[one.benchmark.name] = [_text(one, item) for item in items]
  return out


def _text(wanted: Wanted, item: Item) -> ProbeText:
  reading = wanted.benchmark.readings[wanted.reading]
  prompt = reading.ask(item, ())
  text, answer = prompts.raw_text(prompt), ''
  if isinstance(reading, Choose):
    choices, gold = list(reading.choices(item)), item.fields.get('gold')
    if isinstance(gold, int) and not isinstance(gold, bool) and gold < len(choices):
      answer = f'{prompt.delimiter}{choices[gold]}'
  return ProbeText(text, answer, wanted.benchmark.name)
