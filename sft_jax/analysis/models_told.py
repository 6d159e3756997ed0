"""Sentences and figures of what `measured.py` answers of models: dimension, map, grafts."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.analysis import figures

Answer = Mapping[str, Any]
_WIDEST = 28  # Characters of a row's label.
_MOST_SHARE = 2.0


def interval(low: float | None, high: float | None) -> str:
  """An interval in words, for what has a sign."""
  if not known(low) or not known(high):
    return 'no interval'
  return f'95 % interval {low:+.2f} to {high:+.2f}'


def _say_dimension(answer: Answer) -> list[str]:
  out, still = [], []
  for one in answer['models']:
    sure = [r for r in one['layers'] if abs(r['change']) > 2 * r['change_stderr']]
    most = max(one['layers'], key=lambda r: abs(r['change']))
    if not sure:
      still.append(most)
      continue
    out.append(
      f'{_name(one)}: over {one["n"]} texts the dimension changes most at depth '
      f'{most["depth"]:.2f}, from {most["base"]:.1f} to {most["tuned"]:.1f} (± '
      f'{2 * most["change_stderr"]:.1f}); {len(sure)} of {len(one["layers"])} layers change by '
      'more than two standard errors.'
    )
  if still:
    most = max(still, key=lambda r: abs(r['change']))
    out.append(
      f'In no layer of {len(still)} of {len(answer["models"])} models does the dimension, over '
      f'{answer["models"][0]["n"]} texts, change by more than two standard errors; their largest '
      f'change is {most["change"]:+.1f} (± {2 * most["change_stderr"]:.1f}) at depth '
      f'{most["depth"]:.2f}.'
    )
  return out


def _draw_dimension(answer: Answer) -> list[figures.Figure]:
  models = _sorted(answer['models'])
  names = _short_names(models)
  lines = {
    name: [(r['depth'], r['change']) for r in one['layers']]
    for name, one in zip(names, models, strict=True)
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
    if known(part['value']):
      bounds = interval(part['low'], part['high']).replace('+', '')
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
  labels = _short_names(models)
  order = [models.index(one) for one in _sorted(models)]
  kl = figures.heatmap(
    'map_kl',
    'KL divergence of the row’s and the column’s model, in nats a text.',
    [labels[i] for i in order],
    [labels[i][-22:] for i in order],
    [[answer['kl'][i][j] for j in order] for i in order],
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
      if band['graft'] == 'all' or not known(band[key]):
        continue
      word = 'outside of layers' if band['first'] is None else f'layers {band["graft"]}'
      # Of next to nothing a share says nothing.
      told_share = known(band['share']) and abs(band['share']) <= _MOST_SHARE
      share = f', {band["share"]:.0%} of it' if told_share else ''
      r = f'; r of their change and gains {band["r"]:+.2f}' if known(band['r']) else ''
      sure = f' ({interval(band["low"], band["high"])})' if key == 'gain' else ''
      told.append(
        f'{word} alone {band[key]:+.2f}{sure}{share} ({band["change_share"]:.0%} of the change{r})'
      )
    if not told or not known(whole[key]):
      continue
    what = f'mean of {len(one["benchmarks"])} benchmarks' if key == 'gain' else 'held-out text'
    head = f'{_graft_name(one)}: all of the change {whole[key]:+.2f} {unit} ({what})'
    out.append('; '.join([head, *told]) + '.')
  end = 'of held-out text there is no interval.'
  if any(one['benchmarks'] for one in answer['models']):
    end = 'intervals are over items, and --mode=compare on two grafts says which items differ.'
  out.append(f'These are effects in one model each; {end}')
  return out


def _draw_grafts(answer: Answer) -> list[figures.Figure]:
  out = []
  for number, one in enumerate(answer['models']):
    unit, key = ('points', 'gain') if one['benchmarks'] else ('nats', 'nats')
    more = ('change_share', 'share', 'r', *(('low', 'high') if key == 'gain' else ()))
    items = [
      (band['graft'], {'mean': band[key]} | {k: band[k] for k in more}) for band in one['bands']
    ]
    text = (
      f'Effect of bands of layers by themselves, {_graft_name(one)}; hover for their share of the '
      'change and the correlation of change and gain at their depths.'
    )
    out.append(figures.bars(f'grafts_{number}', text, items, unit))
  return out


def _sorted(models: Sequence[Answer]) -> list[Answer]:
  """The base of each model, then its fine-tunes, methods of one data set side by side."""
  return sorted(models, key=lambda one: (str(one['model_name']), bool(one['epoch']), _label(one)))


def _short_names(models: Sequence[Answer]) -> list[str]:
  """What tells them apart, its end where it is long; without the base's name where all share it."""
  several = len({one['model_name'] for one in models}) > 1
  labels = [f'{one["model_name"]} ' * several + _label(one) for one in models]
  # Such as of other seeds.
  again = [labels[:i].count(label) for i, label in enumerate(labels)]
  labels = [f'{label} ({n + 1})' if n else label for label, n in zip(labels, again, strict=True)]
  return [label if len(label) <= _WIDEST else f'…{label[1 - _WIDEST :]}' for label in labels]


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


def known(value: float | None) -> bool:
  """Whether there is a number."""
  return value is not None and value == value


SAY = {
  'dimension': _say_dimension,
  'map': _say_map,
  'grafts': _say_grafts,
}
DRAW = {
  'dimension': _draw_dimension,
  'map': _draw_map,
  'grafts': _draw_grafts,
}
