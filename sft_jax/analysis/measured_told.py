"""Sentences and figures of what `measured.py` answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.analysis import figures, table

Answer = Mapping[str, Any]
_WIDEST = 28  # Characters of a row's label.


def _made(answer: Answer) -> dict[str, Any]:
  """The parts that were not skipped."""
  return {k: v for k, v in answer.items() if 'skipped' not in v}


def _bounds(low: float | None, high: float | None) -> str:
  known = low is not None and high is not None and low == low and high == high
  return f'95 % interval {low:+.2f} to {high:+.2f}' if known else 'no interval'


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
      partial = f', given the others {row["partial"]:+.2f}' if _known(row['partial']) else ''
      p = max(row['p'], row['p_common'])
      out.append(
        f'{name}: {row["predictor"]} and the overall gain: within models r '
        f'{row["within_model"]:+.2f} ({_bounds(row["within_model_low"], row["within_model_high"])}'
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
      if _known(row['low']) and (row['low'] > 0 or row['high'] < 0):
        word = 'closer' if row['difference'] > 0 else 'less close'
        out.append(
          f'{name}: perplexity is {word} to gains than {rival}: |r| differs by '
          f'{row["difference"]:+.2f} ({_bounds(row["low"], row["high"])}).'
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
        f'({_bounds(row["low"], row["high"])}; {row["n"]} data sets); p {row["p"]:.2g}, corrected '
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
    told = ', '.join(f'{m} {sizes[m]:.2%}' for m in ranked)
    out.append(
      f'{name}: weights moved most at depth {depths[most]:.2f} ({change[most]:.2%} of their norm) '
      f'and least at {depths[least]:.2f} ({change[least]:.2%}); by kind of module: {told}.'
    )
    found = part['by_depth']
    if alone := part['alone']:
      out.append(
        f'{name}, change and overall gain over {alone["n"]} data sets of one model, middle third '
        f'of depths less the outer ones: {alone["value"]:+.2f} '
        f'({_bounds(alone["low"], alone["high"])}).'
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
  bounds = _bounds(found['mean_low'][at], found['mean_high'][at])
  middle = _bounds(found['middle_low'], found['middle_high'])
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


def _say_dimension(answer: Answer) -> list[str]:
  out = []
  for one in answer['models']:
    sure = [r for r in one['layers'] if abs(r['change']) > 2 * r['change_stderr']]
    most = max(one['layers'], key=lambda r: abs(r['change']))
    out.append(
      f'{_name(one)}: over {one["n"]} texts the dimension changes most at depth '
      f'{most["depth"]:.2f}, from {most["base"]:.1f} to {most["tuned"]:.1f} (± '
      f'{2 * most["change_stderr"]:.1f}); {len(sure)} of {len(one["layers"])} layers change by '
      'more than two standard errors.'
    )
  return out


def _draw_dimension(answer: Answer) -> list[figures.Figure]:
  lines = {
    _name(one): [(r['depth'], r['change']) for r in one['layers']] for one in answer['models']
  }
  text = f'Change of the intrinsic dimension (Gride, k = {answer["k"]}) by depth.'
  return [figures.curves('dimension_change', text, lines, ('depth', 'change'))]


_CLAIMS = {
  'silhouette_by_model': 'how tightly models of one base lie together (silhouette)',
  'silhouette_by_data': 'how tightly models of one data set lie together (silhouette)',
  'purity_by_model': 'share whose nearest model is of the same base',
  'purity_by_data': 'share whose nearest model is of the same data set',
  'convergence': 'spread over data sets at the last epoch over that at the first',
  'size': 'distance from the centre with most data over that with least',
  'method': 'distance of full and LoRA over that of different data sets',
}


def _say_map(answer: Answer) -> list[str]:
  out = []
  for name, part in answer['claims'].items():
    if _known(part['value']):
      bounds = _bounds(part['low'], part['high']).replace('+', '')
      out.append(f'{_CLAIMS[name].capitalize()}: {part["value"]:.2f} ({bounds} over texts).')
  far = [one for one in answer['models'] if 'kl_from_base' in one]
  if far:
    most = max(far, key=lambda one: one['kl_from_base'])
    out.append(
      f'Farthest from its base: {_name(most)}, {most["kl_from_base"]:.2f} nats a text '
      f'({most["kl_low"]:.2f} to {most["kl_high"]:.2f}).'
    )
  return out


def _draw_map(answer: Answer) -> list[figures.Figure]:
  models = answer['models']
  points = [(_label(one), str(one['model_name']), one['x'], one['y']) for one in models]
  text = f'Models by what they find likely ({answer["layout"]}, {answer["n_texts"]} texts).'
  several = len({one['model_name'] for one in models}) > 1
  labels = [f'{one["model_name"]} ' * several + _label(one) for one in models]
  labels = [label if len(label) <= _WIDEST else f'…{label[1 - _WIDEST :]}' for label in labels]
  kl = figures.heatmap(
    'map_kl',
    'KL divergence of the row’s and the column’s model, in nats a text.',
    labels,
    [label[-22:] for label in labels],
    answer['kl'],
    limit=max(max(row) for row in answer['kl']),
    digits=2,
  )
  return [figures.scatter('map', text, points, ('first', 'second')), kl]


def _say_grafts(answer: Answer) -> list[str]:
  out = []
  for one in answer['models']:
    unit, key = ('points', 'gain') if one['benchmarks'] else ('nats', 'nats')
    whole = next(band for band in one['bands'] if band['graft'] == 'all')
    told = []
    for band in one['bands']:
      if band['graft'] == 'all' or not _known(band[key]):
        continue
      word = 'outside of layers' if band['first'] is None else f'layers {band["graft"]}'
      share = f', {band["share"]:.0%} of it' if _known(band['share']) else ''
      r = f'; r of their change and gains {band["r"]:+.2f}' if _known(band['r']) else ''
      told.append(
        f'{word} alone {band[key]:+.2f}{share} ({band["change_share"]:.0%} of the change{r})'
      )
    if not told or not _known(whole[key]):
      continue
    what = f'mean of {len(one["benchmarks"])} benchmarks' if key == 'gain' else 'held-out text'
    head = f'{_graft_name(one)}: all of the change {whole[key]:+.2f} {unit} ({what})'
    out.append('; '.join([head, *told]) + '.')
  out.append(
    'These are effects in one model each; --mode=compare on two of its grafts gives the interval.'
  )
  return out


def _draw_grafts(answer: Answer) -> list[figures.Figure]:
  out = []
  for number, one in enumerate(answer['models']):
    unit, key = ('points', 'gain') if one['benchmarks'] else ('nats', 'nats')
    more = ('change_share', 'share', 'r')
    items = [
      (band['graft'], {'mean': band[key]} | {k: band[k] for k in more}) for band in one['bands']
    ]
    text = (
      f'Effect of bands of layers by themselves, {_graft_name(one)}; hover for their share of the '
      'change and the correlation of change and gain at their depths.'
    )
    out.append(figures.bars(f'grafts_{number}', text, items, unit))
  return out


def _label(one: Answer) -> str:
  """Which model of its base it is."""
  if not one['epoch']:
    return 'base'
  return f'{one["data_name"]} {"LoRA" if one["lora"] else "full"} {one["epoch"]:g}'


def _graft_name(one: Answer) -> str:
  # A model that is no run's is told by its name alone.
  return _name(one) if one['epoch'] else str(one['model_name'])


def _name(one: Answer) -> str:
  if not one['epoch']:
    return f'{one["model_name"]} (base)'
  method = 'LoRA' if one['lora'] else 'full'
  return f'{one["model_name"]}, {one["data_name"]}, {method}, epoch {one["epoch"]:g}'


def _known(value: float | None) -> bool:
  return value is not None and value == value


SAY = {
  'predictors': _say_predictors,
  'layers': _say_layers,
  'dimension': _say_dimension,
  'map': _say_map,
  'grafts': _say_grafts,
}
DRAW = {
  'predictors': _draw_predictors,
  'layers': _draw_layers,
  'dimension': _draw_dimension,
  'map': _draw_map,
  'grafts': _draw_grafts,
}
