"""What the small study found: the hypotheses of docs/results.md, from the tables it has written.

Everything is computed by the package's own analysis; not for running the study (`small_study.py`)
or for the page (`small_study_page.py`).
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.analysis import gains, intrinsic_dim, layers, one_model, predictors, table, vectors
from sft_jax.evals import benchmarks
from sft_jax.evals.files import LocalFiles
from sft_jax.utils import io, tables

METHODS = {'lora': True, 'full': False}
KINDS = ('gain', 'soft')
PERPLEXITY = 'log perplexity of answers'
# The rivals that the paper names come first.
RIVALS = ('similarity', 'mean length', 'hard tokens', 'fall in a pilot', 'perplexity after a pilot')
NAMED = RIVALS[:2]
Found = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A finished run of the study, with its rows, the base's first."""

  path: str
  data: str
  lora: bool
  seed: int
  rows: list[dict[str, Any]]


def runs(place: pathlib.Path) -> list[Run]:
  """Finished runs, by data set, method and seed."""
  out = []
  for done in place.glob('runs/*/done.json'):
    rows = sorted(io.read_jsonl(done.parent / 'rows.jsonl'), key=lambda row: row['step'])
    last = rows[-1]
    run = Run(str(done.parent), last['data_name'], last['lora'], int(last['seed-data']), rows)
    out.append(run)
  return sorted(out, key=lambda run: (run.data, not run.lora, run.seed))


@dataclasses.dataclass(frozen=True)
class Questions:
  """What was asked: of each benchmark its column, and the right choice of each item by its id."""

  columns: dict[str, str]
  gold: dict[str, dict[str, int]]


def questions(frame: Any, bench: pathlib.Path, names: Sequence[str]) -> Questions:
  """The benchmarks of a table, read again for what is right."""
  columns = {name: next(c for c in table.main(frame) if c.startswith(name)) for name in names}
  items = {name: benchmarks.BENCHMARKS[name].read(LocalFiles(str(bench)))[0] for name in names}
  gold = {name: {item.id: int(item.fields['gold']) for item in items[name]} for name in names}
  return Questions(columns, gold)


def change(run: Run, asked: Questions) -> dict[str, dict[str, np.ndarray]]:
  """{kind: {benchmark: points of each item, after less before}}."""
  at = [_items(run, step, asked) for step in (0, run.rows[-1]['step'])]
  return {kind: {n: 100 * (at[1][n][kind] - at[0][n][kind]) for n in at[1]} for kind in KINDS}


def _items(run: Run, step: int, asked: Questions) -> dict[str, dict[str, np.ndarray]]:
  """{benchmark: {'gain': whether right, 'soft': probability of the right choice, of each item}}."""
  out = {}
  for name, column in asked.columns.items():
    right, sure = [], []
    for item in io.read_jsonl(pathlib.Path(run.path) / 'samples' / f'{column}-{step}.jsonl'):
      logprobs = np.array(item['logprobs'])
      right.append(item['scores']['acc'])
      of_gold = logprobs[asked.gold[name][item['id']]]
      sure.append(math.exp(of_gold - np.logaddexp.reduce(logprobs)))
    out[name] = dict(zip(KINDS, (np.array(right), np.array(sure)), strict=True))
  return out


def found(workdir: pathlib.Path, bench: pathlib.Path, names: Sequence[str], seed: int) -> Found:
  """All estimates and tests.

  Args:
    workdir: Of the small study.
    bench: Directory of the questions.
    names: Benchmarks.
    seed: The one that all data sets and methods have.
  """
  place = workdir / 'study'
  frame = table.read(str(place / 'results.csv'))
  asked = questions(frame, bench, names)
  every = {run: change(run, asked) for run in runs(place)}
  data = sorted({run.data for run in every})
  one = lambda name, lora: next(
    run for run in every if (run.data, run.lora, run.seed) == (name, lora, seed)
  )
  first = {method: [one(name, lora) for name in data] for method, lora in METHODS.items()}
  overall = lambda run, kind: float(
    np.mean([points.mean() for points in every[run][kind].values()])
  )
  _agree(frame, asked, {run: overall(run, 'gain') for run in every})
  known = _known(workdir, data, first['lora'])
  depths = {m: _depths(place, first[m]) for m in METHODS}
  slices = {name: [run for run in every if run.data == name and run.lora] for name in data}
  slices = {name: own for name, own in slices.items() if len(own) > 1}
  out: Found = {
    'data': data,
    'predictors': {name: values.tolist() for name, values in known.items()},
    'items': {name: len(points) for name, points in every[first['lora'][0]]['gain'].items()},
    'base': {n: first['lora'][0].rows[0][column] for n, column in asked.columns.items()},
    'each': {name: _each([one(name, v) for v in METHODS.values()], every) for name in data},
    'gains': {},
    'tests': {},
  }
  for kind in KINDS:
    by = {m: np.array([overall(run, kind) for run in first[m]]) for m in METHODS}
    both = np.mean(list(by.values()), 0)
    out['gains'][kind] = {m: v.tolist() for m, v in by.items()} | {'both': both.tolist()}
    tests: Found = {'H1': one_model.rank_correlation(known[PERPLEXITY], both)}
    tests['H2'] = {
      name: one_model.closer(known[PERPLEXITY], known[name], both)
      | {'rho': one_model.rank_correlation(known[name], both)['rho']}
      for name in RIVALS
    }
    tests['H3'] = one_model.middle([(depths[m], by[m]) for m in METHODS])
    tests['H4'] = one_model.rank_correlation(by['lora'], by['full'])
    tests['H6'] = one_model.seeds(
      {name: [overall(run, kind) for run in own] for name, own in slices.items()}
    )
    out['tests'][kind] = tests
  shared = {'H5': _grafted(place, data), 'H7': _dimension(place), 'H8': _map(place)}
  for tests in out['tests'].values():
    tests |= shared
  return out


def _agree(frame: Any, asked: Questions, overall: Mapping[Run, float]) -> None:
  """Items and the table that the report reads must say the same of every run."""
  columns = list(asked.columns.values())
  rows = gains.gains(frame, columns)
  told = dict(zip(rows['run-id'], gains.overall(rows, columns), strict=True))
  for run, value in overall.items():
    if abs(told[run.rows[-1]['run-id']] - value) > 1e-6:
      raise SystemExit(f'{run.path}: {value} by items, {told[run.rows[-1]["run-id"]]} in the table')


def _known(
  workdir: pathlib.Path, data: Sequence[str], first: Sequence[Run]
) -> dict[str, np.ndarray]:
  """{predictor: a value for each data set}, from the probes and the pilot."""
  import pandas as pd

  place = workdir / 'study' / 'probes'
  read = lambda kind: pd.concat(
    [vectors.read_properties(file) for file in sorted(place.glob(f'{kind}-*.csv'))]
  )
  properties = read('dataset_properties').set_index('data_name')
  alike = read('similarity').groupby('data_name')['cosine_of_means'].mean()
  pilots = {run.data: run.rows for run in runs(workdir / 'pilot')}
  column = 'ppl-heldout-response'
  after = {name: math.log(rows[-1][column]) for name, rows in pilots.items()}
  of = lambda values: np.array([float(values[name]) for name in data])
  return {
    PERPLEXITY: np.log(of(properties['ppl-data-response'])),
    'similarity': of(alike),
    'mean length': of(properties['tokens']),
    'hard tokens': of(properties['hard-tokens']),
    'fall in a pilot': of({n: predictors.early_drop(r, column) for n, r in pilots.items()}),
    'perplexity after a pilot': of(after),
  }


def _each(pair: Sequence[Run], every: Mapping[Run, Mapping[str, Any]]) -> Found:
  """Gain of one data set, mean of its methods: by benchmark, overall, and its error over items."""
  out: Found = {}
  for kind in KINDS:
    points = {
      name: np.mean([every[run][kind][name] for run in pair], 0) for name in every[pair[0]][kind]
    }
    errors = [values.std(ddof=1) / math.sqrt(len(values)) for values in points.values()]
    out[kind] = {name: float(values.mean()) for name, values in points.items()}
    out[f'{kind}-stderr'] = float(np.sqrt(np.square(errors).sum()) / len(errors))
  return out


def _depths(place: pathlib.Path, first: Sequence[Run]) -> np.ndarray:
  """`[D, 21]` relative change of weights at depths from 0 to 1, of each data set."""
  last = {(record['run-id'], record['step']): record for record in layers.read(place)}
  rows = [run.rows[-1] for run in first]
  change = [last[row['run-id'], row['step']]['modules']['all']['relative'] for row in rows]
  return layers.on_grid(np.array(change))


def _grafted(place: pathlib.Path, data: Sequence[str]) -> Found:
  """Of how many models the middle third brings the largest share of the fall in log perplexity."""
  from scipy import stats

  shares = {}
  for name in data:
    frame = vectors.read_properties(place / 'probes' / f'graft-{name}' / 'grafts.csv')
    logs = np.log(frame.set_index('graft')['ppl-heldout-response'].astype(float))
    bands = [band for band in logs.index if band not in ('none', 'all')]
    whole = logs['none'] - logs['all']
    shares[name] = [float((logs['none'] - logs[band]) / whole) for band in bands]
  hits = sum(int(np.argmax(values)) == 1 for values in shares.values())
  test = stats.binomtest(hits, len(data), 1 / 3)
  low, high = test.proportion_ci()
  found = {'n': len(data), 'value': hits / len(data), 'low': float(low), 'high': float(high)}
  return found | {'p': float(test.pvalue), 'shares': shares}


def _dimension(place: pathlib.Path) -> Found:
  """Change of the intrinsic dimension in the middle third less that in the others."""
  read = {}
  for file in sorted(place.glob('probes/hidden_states-*.npz')):
    about = io.read_json(f'{file}.json')
    if not about['epoch'] or about['lora']:
      read['base' if not about['epoch'] else about['data_name']] = tables.read_arrays(file)[0]
  contrasts, curves = {}, {}
  for name, arrays in read.items():
    if name == 'base':
      continue
    rows = intrinsic_dim.by_layer(read['base']['states'], arrays['states'])
    size = np.abs([row['change'] for row in rows])
    inner = one_model.thirds(len(rows))
    contrasts[name] = float(size[inner].mean() - size[~inner].mean())
    curves[name] = [row['change'] for row in rows]
  return one_model.mean_interval(list(contrasts.values())) | {'change': curves}


def _map(place: pathlib.Path) -> Found:
  """The claim of the model map on methods and data, as the report tells it."""
  told = io.read_json(place / 'report' / 'findings.json')['map']
  claim = dict(told['claims']['method'])
  # The interval is over probe texts; its half-width gives the error that p is made of.
  error = (claim['high'] - claim['low']) / (2 * 1.96)
  claim['p'] = math.erfc(abs(claim['value'] - 1) / error / math.sqrt(2)) if error else 0.0
  return claim | {'texts': told['n_texts']}
