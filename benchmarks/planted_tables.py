"""How often a report finds what is not there, on tables of the released shape.

`python -m benchmarks.planted_tables --out=benchmarks/results/planted_tables`

Tables in which nothing is true of what is asked: scores that are chance alone; models that each
react in a way of their own (to a data set, to the method, the size, further epochs), which is
nothing on the mean; data sets that do something to each benchmark, alike in all models, where
method, size, epochs, and how data and model fit do nothing. Each line: of what kind of statement,
how many are made, in how many of them something is found, and in how many tables any of the
statements of one sentence is. The last lines: tables in which something is planted, and how often
that is said. See `benchmarks/README.md`.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

import numpy as np
import pandas as pd

from benchmarks import report
from sft_jax.analysis import effects, findings, gains, plain, predictors, table

MODELS = sorted(name for names in table.LANGUAGES.values() for name in names)
DATA = [f'data{i}' for i in range(10)]
COLUMNS = list(table.MAIN)
# What a world varies, as standard deviations in points: of chance in a row, of a model's own
# reaction to a data set, the method, the size and ten epochs, and of a data set's effect in all.
WORLDS: dict[str, dict[str, float]] = {
  'chance': {'chance': 3.0},
  'models': {'chance': 2.0, 'own': 4.0, 'method': 2.0, 'size': 2.0, 'epochs': 3.0},
  'data': {'chance': 2.0, 'data': 4.0},
}
# Points that are planted: one data set, full less LoRA, the larger size less the smaller, an epoch.
PLANTED = {'data': 6.0, 'method': 3.0, 'size': 6.0, 'epoch': 1.0}

_CHUNK = 10  # Seeds between two looks at what is known.

Found = Iterator[tuple[str, str, bool]]


def rows() -> pd.DataFrame:
  """What tells the rows of the released table apart."""
  meta: list[tuple] = [(m, table.BASE, None, 0.0, 0.0, None) for m in MODELS]
  for m in MODELS:
    meta += [(m, d, a, 10.0, 1000.0, 'cosine') for d in DATA for a in (False, True)]
    meta += [(m, table.ALL, a, e, 1e4, 'cosine') for a in (False, True) for e in range(1, 11)]
  for m in MODELS[:3]:
    for size in (1000.0, 20000.0):
      meta += [(m, d, False, e, size, 'constant') for d in DATA for e in range(1, 11)]
  first = MODELS[0]
  meta += [(first, f'w/o-{d}', a, 10.0, 9000.0, 'cosine') for d in DATA for a in (False, True)]
  frame = pd.DataFrame(meta, columns=list(table.META))
  return frame.assign(lora=frame['lora'].astype(object), epoch=frame['epoch'].astype(float))


def world(
  seed: int, sd: Mapping[str, float], planted: Mapping[str, float] | None = None
) -> tuple[pd.DataFrame, np.ndarray]:
  """A table, and what is true of each data set and benchmark, in points `[D, B]`.

  Args:
    seed: Of everything.
    sd: See `WORLDS`.
    planted: Besides these, of `PLANTED`.
  """
  rng, frame = np.random.default_rng(seed), rows()
  size = lambda name, *shape: rng.normal(0, sd.get(name, 0.0) or 0.0, (*shape, len(COLUMNS)))
  model = frame['model_name'].map(MODELS.index).to_numpy()
  names = [table.BASE, *sorted(set(frame['data_name']) - {table.BASE})]
  data = frame['data_name'].map(names.index).to_numpy()
  trained = (data > 0)[:, None]
  lora = np.where(frame['lora'].eq(True), -0.5, 0.5)[:, None]
  large = (frame['data_size'].to_numpy() > 15000)[:, None]
  epoch = frame['epoch'].to_numpy()[:, None] / 10 - 0.55
  effect = size('data', len(names))
  more = dict(planted or {})
  effect[names.index(DATA[0])] += more.get('data', 0.0)
  scores = rng.uniform(35, 65, (len(MODELS), len(COLUMNS)))[model] + size('chance', len(frame))
  moved = effect[data] + size('own', len(MODELS), len(names))[model, data]
  moved += (size('method', len(MODELS))[model] + more.get('method', 0.0)) * lora
  moved += (size('size', len(MODELS))[model] + more.get('size', 0.0)) * large
  moved += (size('epochs', len(MODELS))[model] + 10 * more.get('epoch', 0.0)) * epoch
  frame[COLUMNS] = scores + np.where(trained, moved, 0)
  return frame, effect[[names.index(d) for d in DATA]]


def study_of(frame: pd.DataFrame) -> findings.Study:
  """As a report makes it of a table in which nothing is amiss."""
  return findings.Study(frame, gains.gains(frame), COLUMNS, strict=[])


def misses(part: Mapping[str, float | None], low: str = 'low', high: str = 'high') -> bool | None:
  """Whether 0 lies outside of the interval; None without one."""
  if part.get(low) is None or part.get(high) is None:
    return None
  return part[low] > 0 or part[high] < 0


def of_means(answer: Mapping, sentences: list[str]) -> Found:
  """Q1."""
  for name, overall in answer['overall'].items():
    for part in overall.values():
      yield 'mean gain of a data set: interval', name, bool(misses(part))
      yield 'the same: raises or lowers, in words', name, part['decided']
    for data, cells in answer[name].items():
      for column in cells:
        part = {key: answer[key][name][data][column] for key in ('low', 'high')}
        joint = {key: answer[f'{key}_joint'][name][data][column] for key in ('low', 'high')}
        yield 'gain of a data set on a benchmark: interval', name, bool(misses(part))
        yield 'the same: interval in words, for all cells', name, bool(misses(joint))
  said = [s for s in sentences if 'raises scores' in s]
  loud = [s for s in said if 'raises scores: none. Lowers them: none.' not in s]
  parts = [list(answer['overall'][name].values()) for name in findings.METHODS]
  if len(loud) != sum(any(part['decided'] for part in held) for held in parts):
    raise ValueError(f'words say otherwise than numbers: {said}')


def of_fit(answer: Mapping, sentences: list[str]) -> Found:
  """Q2."""
  for part in answer['shares'].values():
    yield 'model x data in a benchmark: F test', '', part['p'] <= 0.05
  yield 'the same: named, in words', '', bool(answer['fit_decided'])


def of_likeness(answer: Mapping, sentences: list[str]) -> Found:
  """Q3."""
  for name, part in answer['models'].items():
    yield 'mean correlation of models: interval', name, bool(misses(part))


def of_methods(answer: Mapping, sentences: list[str]) -> Found:
  """Q5."""
  for block in ('core', 'all'):
    part = answer[block]
    yield 'full less LoRA: interval', block, bool(misses(part['benchmarks']['mean']))
    for name, kind in part['categories'].items():
      if name != 'mean':
        yield 'the same by kind of task: interval', block, bool(misses(kind))
        yield 'the same: decided, in words', block, kind['decided']


def of_epochs(answer: Mapping, sentences: list[str]) -> Found:
  """Q6."""
  for name, part in answer.items():
    p = part['spearman']['mean']['p']
    yield 'epochs and mean score: p in words', name, p is not None and p <= 0.05


def of_sizes(answer: Mapping, sentences: list[str]) -> Found:
  """Q7."""
  for key in ('all_epochs', 'last_epoch'):
    parts = answer[key]['benchmarks']
    yield 'larger less smaller size, 3 models: interval', key, bool(misses(parts['mean']))
    for column in COLUMNS:
      yield 'the same by benchmark: interval', key, bool(misses(parts[column]))
      yield 'the same: decided, in words', key, parts[column]['decided']


def of_languages(answer: Mapping, sentences: list[str]) -> Found:
  """Q8."""
  for name, part in answer.items():
    for pair, found in () if findings.is_skipped(part) else part.items():
      if (miss := misses(found)) is not None:
        yield 'gains across languages: interval', f'{name} {pair}', miss


def of_rivals(frame: pd.DataFrame, seed: int) -> Found:
  """Ten predictors that are chance, held against an eleventh."""
  rng, study = np.random.default_rng(seed), study_of(frame)
  values, _ = gains.cube(study.core(study.gains()), COLUMNS, False, MODELS)
  held = {f'p{i}': rng.normal(size=values.shape[:2]) for i in range(11)}
  for part in predictors.rivals(held, 'p0', values.mean(-1)).values():
    yield 'one predictor closer than ten others, in words', 'full', bool(misses(part))


ASKED: dict[str, tuple[Callable[[Mapping, list[str]], Found], tuple[str, ...]]] = {
  'Q1': (of_means, ('chance', 'models')),
  'Q2': (of_fit, ('chance', 'data')),
  'Q3': (of_likeness, ('chance', 'models')),
  'Q5': (of_methods, tuple(WORLDS)),
  'Q6': (of_epochs, tuple(WORLDS)),
  'Q7': (of_sizes, tuple(WORLDS)),
  'Q8': (of_languages, tuple(WORLDS)),
}


def unaided() -> contextlib.AbstractContextManager:
  """Without Wilcoxon's p of pairs, which nothing here asks for and takes half of the time."""
  return mock.patch.object(effects, 'wilcoxon', lambda x: None)


def in_null(seed: int, name: str) -> list[tuple[str, str, str, bool]]:
  """(question, statement, sentence, found) of all statements about one table without a truth."""
  frame, _ = world(seed, WORLDS[name])
  study, out = study_of(frame), []
  for key, (ask, worlds) in ASKED.items():
    if name in worlds:
      # Of epochs the mean score alone is told: three benchmarks make one, and take a third as long.
      few = dataclasses.replace(study, columns=COLUMNS[:3]) if key == 'Q6' else study
      with unaided():
        answer = findings.QUESTIONS[key](few)
      out += [(key, *one) for one in ask(answer, plain.sentences(key, answer))]
  if name != 'data':
    out += [('predictors', *one) for one in of_rivals(frame, seed)]
  return out


def in_planted(seed: int) -> list[tuple[str, bool]]:
  """(what is planted, whether it is said), and truths that lie in their intervals."""
  study, first = study_of(world(seed, WORLDS['models'], PLANTED)[0]), DATA[0]

  def ask(key: str) -> Mapping:
    with unaided():
      return findings.QUESTIONS[key](study)

  raised = ask('Q1')['overall']['full'][first]['decided']
  method = ask('Q5')['core']['benchmarks']['mean']
  size = ask('Q7')['all_epochs']['benchmarks']['mean']
  few = dataclasses.replace(study, columns=COLUMNS[:3])
  with unaided():
    p = findings.epochs(few)['all_cosine_full']['spearman']['mean']['p']
  out = [
    (f'one data set: {PLANTED["data"]:g} points; raises scores, in words', raised),
    (f'full less LoRA: {PLANTED["method"]:g} points; interval', bool(misses(method))),
    (f'20k less 1k, 3 models: {PLANTED["size"]:g} points; interval', bool(misses(size))),
    (f'an epoch, 11 models: {PLANTED["epoch"]:g} points; p', p is not None and p <= 0.05),
  ]
  if seed % 4:
    return out  # Each table has 120 of the next.
  frame, effect = world(seed, {**WORLDS['models'], 'data': 4.0})
  told = findings.mean_gains(study_of(frame))
  what = 'gain of a data set on a benchmark: truth in its interval'
  # What full runs and the last epoch do is nothing on the mean.
  for i, data in enumerate(DATA):
    for j, column in enumerate(COLUMNS):
      low, high = (told[key]['full'][data][column] for key in ('low', 'high'))
      out.append((what, bool(low <= effect[i, j] <= high)))
  return out


def measured(nulls: Mapping[str, list], planted: list) -> dict[str, list[dict]]:
  """Lines of both tables, of what `in_null` and `in_planted` gave for so many seeds."""
  lines = []
  for name, tables in nulls.items():
    single: dict[tuple[str, str], list[bool]] = collections.defaultdict(list)
    families: dict[tuple[str, str], list[bool]] = collections.defaultdict(list)
    for one in tables:
      groups: dict[tuple[str, str, str], list[bool]] = collections.defaultdict(list)
      for key, what, sentence, found in one:
        single[key, what].append(found)
        groups[key, what, sentence].append(found)
      for (key, what, _), group in groups.items():
        families[key, what].append(any(group))
    for (key, what), every in single.items():
      whole = families[key, what]
      # In words, all of a sentence is one statement.
      rate = whole if 'in words' in what else every
      line = {'world': name, 'question': key, 'statement': what, 'made': len(every)}
      line |= {'found': float(np.mean(every)), 'in a sentence': float(np.mean(whole))}
      lines.append(line | {'met': float(np.mean(rate)) <= bar(len(tables))})
  told: dict[str, list[bool]] = collections.defaultdict(list)
  for one in planted:
    for what, said in one:
      told[what].append(said)
  shares = [{'what': what, 'share': float(np.mean(said))} for what, said in told.items()]
  return {'null': lines, 'planted': shares}


def bar(tables: int) -> float:
  """5 %, and two standard errors of so many tables."""
  return 0.05 + 2 * math.sqrt(0.05 * 0.95 / tables)


def page(found: Mapping[str, list[dict]], seeds: int) -> list[str]:
  """Both tables as Markdown."""
  lines = [
    f'{seeds} tables of each kind; bar: 5 %, and two standard errors of so many tables '
    f'({bar(seeds):.1%}), of single statements, and of '
    'sentences for what is said in words.',
    '',
    '| nothing true but | question | statement | made | found in | sentences with any | bar |',
    '|---|---|---|---|---|---|---|',
  ]
  for one in found['null']:
    lines.append(
      f'| {one["world"]} | {one["question"]} | {one["statement"]} | {one["made"]:,} '
      f'| {one["found"]:.1%} | {one["in a sentence"]:.1%} | {"met" if one["met"] else "missed"} |'
    )
  lines += ['', '| planted | said in |', '|---|---|']
  lines += [f'| {one["what"]} | {one["share"]:.1%} |' for one in found['planted']]
  return lines


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, default=200)
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  given = parser.parse_args()
  os.environ |= {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}  # Of each worker.
  began = time.monotonic()
  nulls: dict[str, list] = {name: [] for name in WORLDS}
  planted: list = []
  with multiprocessing.get_context('spawn').Pool(given.workers) as pool:
    for first in range(0, given.seeds, _CHUNK):
      part = range(first, min(first + _CHUNK, given.seeds))
      for name, tables in nulls.items():
        tables += pool.map(functools.partial(in_null, name=name), part)
      planted += pool.map(in_planted, part)
      # What is known by now: it may be stopped at any time.
      found = measured(nulls, planted)
      head = [
        '# Planted tables',
        '',
        f'`python -m benchmarks.planted_tables --seeds={part.stop}`',
        '',
      ]
      report.write(given.out, [*head, *page(found, part.stop)], found)
      print(f'{part.stop} of {given.seeds}: {time.monotonic() - began:.0f} s', flush=True)
  print('\n'.join(page(found, given.seeds)))


if __name__ == '__main__':
  main()
