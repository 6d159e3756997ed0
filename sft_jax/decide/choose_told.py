"""What is told of a decision on data: plain values, with what a reader needs beside them.

Not for how it is laid out: `study/decision_page.py`.
"""

import dataclasses
import itertools
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from sft_jax import config_file
from sft_jax.data import licences
from sft_jax.decide import choose_data
from sft_jax.decide.choose_run import Runs
from sft_jax.decide.choose_wish import Wish
from sft_jax.evals import records
from sft_jax.execution import study_sizes
from sft_jax.study import choose
from sft_jax.study import race_stats as stats
from sft_jax.study.race import Race
from sft_jax.study.race_data import Observation

_EXAMPLES = 5
_NOT_STATED = 'not stated'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A finished race.

  Attributes:
    decision: What came out.
    race: The race.
    runs: Its runs.
    endpoint: Scores of the served model, or None.
  """

  decision: choose.Decision
  race: Race
  runs: Runs
  endpoint: Observation | None


def told(outcome: Outcome, config: Any, wish: Wish, workdir: str) -> dict[str, Any]:
  """A decision as plain values, with what a reader needs beside it."""
  decision, about = outcome.decision, outcome.runs.candidates
  value = choose.as_json(decision, outcome.race)
  value['facts'] += [f'{name} {text}' for name, one in about.items() for text in one.warnings]
  time = outcome.runs.time
  value |= {
    'spent': time.spent() if time.limited else value['spent'],
    'budget': wish.budget.amount,
    'full-cost': value['full-cost'] + time.before(),
    'unit': wish.budget.unit,
    'base': {
      'name': config.model.name or config.model.path,
      'licence': study_sizes.base_licence(config.model.path, config.cache_dir) or _NOT_STATED,
    },
    'licences': {name: licence(data) for name, data in wish.data.items()},
    'data': {
      name: {'source': data, 'examples': about[name].examples} for name, data in wish.data.items()
    },
    'endpoint': _endpoint(outcome, wish),
    'command': '',
    'examples': [],
    'workdir': workdir,
  }
  if decision.pick is not None:
    size = outcome.runs.size(decision.pick.candidate, outcome.race.last)
    value['command'] = command(config, wish, decision, workdir, size)
    value['examples'] = list(itertools.islice(_examples(outcome, workdir), _EXAMPLES))
  return value


def licence(data: str) -> str:
  """As published or said beside the data, of every part of a candidate."""
  found = licences.of(*(('', data) if choose_data.kind(data) == 'path' else (data, '')))
  if len(found) == 1:
    return next(iter(found.values())) or _NOT_STATED
  return '; '.join(f'{part}: {text or _NOT_STATED}' for part, text in found.items())


def command(config: Any, wish: Wish, decision: choose.Decision, workdir: str, size: int) -> str:
  """What trains the chosen recipe in full, on `size` examples; 0 takes all."""
  assert decision.pick is not None
  full = config.copy_and_resolve_references()
  data = wish.data[decision.pick.candidate]
  with full.unlocked():
    full.data[choose_data.kind(data)], full.data.size = data, size
    full.train.learning_rate = decision.pick.rate or config.train.learning_rate
    tasks = dict.fromkeys(('perplexity', *wish.rules.targets, *wish.rules.guards))
    full.eval.tasks = ','.join(tasks)
    full.checkpoint.keep_weights = 'last'
  flags = [
    f'--{key}={value}'
    for key, value in config_file.changed(full).items()
    if not key.startswith('config.choose.')
  ]
  given = ['--config=configs/base.py', f'--workdir={os.path.join(workdir, "full")}', *flags]
  return ' '.join(['python -m sft_jax.main', *map(shlex.quote, given)])


def _endpoint(outcome: Outcome, wish: Wish) -> dict[str, Any] | None:
  """Gain of the served model over the base, and of the pick over the served model."""
  if outcome.endpoint is None:
    return None
  race, pick = outcome.race, outcome.decision.pick
  # It is one model: no seeds.
  none = stats.Noise(0.0, float('inf'))
  served = race.field.sample([outcome.endpoint], race.field.targets)
  gain = choose.estimate(stats.gain(served, none))
  out = {'name': wish.endpoint, 'gain': gain, 'pick-over': None}
  if pick is not None:
    rung = race.evidence.reached[pick]
    own = race.evidence.sample(pick, rung), race.evidence.noise(rung)[pick]
    out['pick-over'] = choose.estimate(stats.contrast(own, (served, none)))
  return out


def _examples(outcome: Outcome, workdir: str) -> Iterator[dict[str, str]]:
  """Items that count as gained by the pick, of each target in turn."""
  race, pick = outcome.race, outcome.decision.pick
  assert pick is not None
  places = outcome.runs.workdirs(pick, race.evidence.reached[pick])
  if not places:
    return
  base, row = records.read(os.path.join(workdir, 'base')), records.read(places[0])
  found = []
  for task in race.field.targets:
    measure = row.tasks[task][0]['about']['measures'][0]
    unread = lambda a: race.rules.ability_only and 'output' in a and a['extracted'] is None
    pairs = zip(base.tasks[task], row.tasks[task], race.field.counts(task), strict=True)
    gained = [(a, b) for a, b, counts in pairs if counts and not unread(a)]
    found.append([(a, b) for a, b in gained if b['scores'][measure] > a['scores'][measure]])
  for place in range(max(map(len, found), default=0)):
    for pairs_of in found:
      if place < len(pairs_of):
        a, b = pairs_of[place]
        yield {'prompt': str(a['prompt']), 'base': _said(a), 'chosen': _said(b)}


def _said(item: Mapping[str, Any]) -> str:
  """What a model wrote, or which continuation it found likeliest."""
  if 'output' not in item:
    return str(item['extracted'])
  return item['output'] if isinstance(item['output'], str) else '\n\n'.join(item['output'])
