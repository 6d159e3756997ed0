"""Sentences and figures of what `measured.py` answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.analysis import figures, models_told, table
from sft_jax.analysis.models_told import interval, known

Answer = Mapping[str, Any]


def _made(answer: Answer) -> dict[str, Any]:
  """The parts that were not skipped."""
  return {k: v for k, v in answer.items() if 'skipped' not in v}


def _say_predictors(answer: Answer) -> list[str]:
  out = []
  for name, part in _made(answer).items():
    if 'alone' in part:
      out += _say_alone(name, part)
      continue
    first = part['tests'][0]['benchmark']
    for row in part['tests']:
      if row['benchmark'] != first or row['reason']:
        continue
      word = 'a finding' if row['finding'] else 'no finding'
      partial = f', given the others {row["partial"]:+.2f}' if known(row['partial']) else ''
      p = max(row['p'], row['p_common'])
      out.append(
        f'{name}: {row["predictor"]} and the overall gain: within models r '
        f'{row["within_model"]:+.2f} ({interval(row["within_model_low"], row["within_model_high"])}'
        f'; {row["n_models"]} models, {row["n_datasets"]} data sets), pooled {row["pooled"]:+.2f}'
        f'{partial}; p {p:.2g}, corrected for {len(part["tests"])} tests {row["p_holm"]:.2g}: '
        f'{word}.'
      )
    found = [r for r in part['tests'] if r['finding'] and r['benchmark'] != first]
    told = ', '.join(
      f'{r["predictor"]} on {table.short(r["benchmark"])} {r["within_model"]:+.2f}' for r in found
    )
    if any(r['benchmark'] != first for r in part['tests']):
      out.append(f'{name}, single benchmarks, after correction: {told or "none"}.')
    for rival, row in part['rivals'].items():
      if known(row['low']) and (row['low'] > 0 or row['high'] < 0):
        word = 'closer' if row['difference'] > 0 else 'less close'
        out.append(
          f'{name}: perplexity is {word} to gains than {rival}: |r| differs by '
          f'{row["difference"]:+.2f} ({interval(row["low"], row["high"])}).'
        )
  return out


def _say_alone(name: str, part: Answer) -> list[str]:
  """Of a study with one model."""
  first = part['alone'][0]['benchmark']
  out = [
    f'{name}: of one model, so nothing here says what other models would show; intervals are over '
    'its data sets.'
  ]
  for row in part['alone']:
    if row['benchmark'] == first:
      word = 'a finding' if row['finding'] else 'no finding'
      out.append(
        f'{name}: {row["predictor"]} and the overall gain: rank correlation {row["rho"]:+.2f} '
        f'({interval(row["low"], row["high"])}; {row["n"]} data sets); p {row["p"]:.2g}, corrected '
        f'for {len(part["alone"])} tests {row["p_holm"]:.2g}: {word}.'
      )
  return out


def _draw_predictors(answer: Answer) -> list[figures.Figure]:
  out = []
  for name, part in _made(answer).items():
    if 'alone' in part:
      caption = (
        f'Rank correlation of predictor and gain over data sets of one model, {name}; hover for '
        'its 95 % interval and p after correction for all tests.'
      )
      out.append(_map(name, caption, part['alone'], 'rho', ('low', 'high', 'p_holm', 'n')))
    else:
      caption = (
        f'Correlation of predictor and gain within models, {name}; hover for its 95 % interval, '
        'the pooled and the partial r, and p after correction for all tests.'
      )
      more = ('within_model_low', 'within_model_high', 'pooled', 'partial', 'p_holm', 'n_pairs')
      out.append(_map(name, caption, part['tests'], 'within_model', more))
  return out


def _map(
  name: str, caption: str, tests: Sequence[Answer], shown: str, more: Sequence[str]
) -> figures.Figure:
  """Predictors by benchmarks; what a pair was not tested for is empty."""
  predictors, columns = (
    list(dict.fromkeys(test[key] for test in tests)) for key in ('predictor', 'benchmark')
  )
  cell = {(test['predictor'], test['benchmark']): test for test in tests}
  get = lambda key: [[cell.get((p, c), {}).get(key) for c in columns] for p in predictors]
  return figures.heatmap(
    f'predictors_{name}',
    caption,
    predictors,
    [table.short(c) for c in columns],
    get(shown),
    limit=1.0,
    digits=2,
    more={key: get(key) for key in more},
  )


def _say_layers(answer: Answer) -> list[str]:
  out = []
  for name, part in answer.items():
    depths, change = part['depths'], part['change']
    most, least = (f(range(len(change)), key=change.__getitem__) for f in (max, min))
    sizes = {m: sum(v) / len(v) for m, v in part['modules'].items()}
    ranked = sorted(sizes, key=lambda m: -sizes[m])
    percent = lambda share: f'{100 * share:.3g} %'
    told = ', '.join(f'{m} {percent(sizes[m])}' for m in ranked)
    out.append(
      f'{name}: weights moved most at depth {depths[most]:.2f} ({percent(change[most])} of their '
      f'norm) and least at {depths[least]:.2f} ({percent(change[least])}); by kind of module: '
      f'{told}.'
    )
    found = part['by_depth']
    if alone := part['alone']:
      out.append(
        f'{name}, change and overall gain over {alone["n"]} data sets of one model, middle third '
        f'of depths less the outer ones: {alone["value"]:+.2f} '
        f'({interval(alone["low"], alone["high"])}).'
      )
    elif 'skipped' in found:
      out.append(f'{name}: whether that goes with gains is not said: {found["skipped"]}.')
    else:
      out += _say_depth(name, depths, found)
    if 'skipped' not in part['across']:
      c = part['across']['C']
      out.append(
        f'{name}: which data sets move a depth most is alike between models with r '
        f'{min(c):.2f} to {max(c):.2f} over depths.'
      )
  return out


def _say_depth(name: str, depths: Sequence[float], found: Answer) -> list[str]:
  head = f'{name}, change and overall gain over data sets'
  tail = f'{found["n_models"]} models, {found["n_datasets"]} data sets'
  if found['peak'] is None:
    return [f'{head}: not defined at all depths ({tail}).']
  at = found['peak']
  inside = [depths[i] for i in found['peak_set']]
  bounds = interval(found['mean_low'][at], found['mean_high'][at])
  middle = interval(found['middle_low'], found['middle_high'])
  sure = found['middle_low'] > 0 or found['middle_high'] < 0
  return [
    f'{head}: r is largest at depth {depths[at]:.2f} ({found["mean"][at]:+.2f}, {bounds}; {tail}); '
    f'the true peak may lie anywhere from {min(inside):.2f} to {max(inside):.2f}.',
    f'{name}, middle third of depths less the outer ones: {found["middle"]:+.2f} ({middle}): '
    f'{"decided" if sure else "undecided"}.',
  ]


def _draw_layers(answer: Answer) -> list[figures.Figure]:
  out = []
  line = lambda part, values: list(zip(part['depths'], values, strict=True))
  lines = {name: line(part, [100 * v for v in part['change']]) for name, part in answer.items()}
  text = 'Mean change of weights by depth, in % of their norm (linear modules of each layer).'
  out.append(figures.curves('layers_change', text, lines, ('depth', '%')))
  for name, part in answer.items():
    lines = {m: line(part, [100 * v for v in values]) for m, values in part['modules'].items()}
    text = f'The same by kind of module, {name}.'
    out.append(figures.curves(f'layers_modules_{name}', text, lines, ('depth', '%')))
    found = part['by_depth']
    if 'skipped' not in found:
      kinds = ('mean', 'mean_low', 'mean_high', 'pooled', 'partial')
      words = dict(zip(kinds, ('r', 'low', 'high', 'pooled', 'given whole change'), strict=True))
      lines = {words[k]: line(part, found[k]) for k in kinds if k in found}
      text = f'Correlation of change and overall gain by depth, {name}, with its 95 % interval.'
      out.append(figures.curves(f'layers_gain_{name}', text, lines, ('depth', 'r')))
  return out


SAY = {
  'predictors': _say_predictors,
  'layers': _say_layers,
  **models_told.SAY,
}
DRAW = {
  'predictors': _draw_predictors,
  'layers': _draw_layers,
  **models_told.DRAW,
}
