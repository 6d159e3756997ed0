"""The figures of each question, drawn from its answer in `findings.py` and from nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.analysis import figures, findings, measured_told, table

Answer = Mapping[str, Any]
_POINTS = 30.0  # Points of full colour in maps of gains.


def draw(key: str, answer: Answer) -> list[figures.Figure]:
  """Figures of the question `key`; none where it was skipped."""
  if findings.is_skipped(answer) or key not in _DRAW:
    return []
  return _DRAW[key](answer)


def _grid(values: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str]]:
  rows = sorted(values)
  return rows, list(values[rows[0]]) if rows else []


def _cells(values: Answer, rows: Sequence[str], columns: Sequence[str]) -> list[list[Any]]:
  return [[values[r].get(c) for c in columns] for r in rows]


def _gains(answer: Answer) -> list[figures.Figure]:
  out = []
  names = [n for n in ('full', 'full_strict', 'lora', 'lora_strict') if n in answer['n']]
  for name in names:
    rows, columns = _grid(answer[name])
    more = {k: _cells(answer[k][name], rows, columns) for k in ('n', 'positive', 'low', 'high')}
    kind = 'models with sound bases' if name.endswith('strict') else 'all models'
    out.append(
      figures.heatmap(
        f'Q1_{name}',
        f'Mean gain in points, {name.split("_")[0]}, {kind}; hover for n, the share of models that '
        'gain, and the 95 % interval.',
        rows,
        [table.short(c) for c in columns],
        _cells(answer[name], rows, columns),
        limit=_POINTS,
        more=more,
      )
    )
    overall = answer['overall'][name]
    ranked = sorted(overall.items(), key=lambda item: -(item[1]['mean'] or 0))
    text = f'Mean over benchmarks, {name.split("_")[0]}, {kind}; 95 % intervals over models.'
    out.append(figures.bars(f'Q1_{name}_overall', text, ranked))
  for name, models in answer['per_model'].items():
    for model, cells in models.items():
      rows, columns = _grid(cells)
      out.append(
        figures.heatmap(
          f'Q1_model_{name}_{_file(model)}',
          f'Gain in points, {model}, {name}; one run a cell.',
          rows,
          [table.short(c) for c in columns],
          _cells(cells, rows, columns),
          limit=_POINTS,
        )
      )
  return out


def _shares(answer: Answer) -> list[figures.Figure]:
  known = {c: part for c, part in answer['shares'].items() if part}
  keys = ('model', 'data', 'method', 'model_data', 'rest')
  rows = [*known, 'mean']
  values = [[100 * (known.get(c) or answer['mean'])[k] for k in keys] for c in rows]
  text = f'Share of the variance of scores in %, {len(answer["models"])} models.'
  labels = [table.short(c) for c in rows]
  titles = ['model', 'data', 'method', 'model × data', 'rest']
  return [figures.heatmap('Q2_shares', text, labels, titles, values, limit=100)]


def _likeness(answer: Answer) -> list[figures.Figure]:
  out = []
  kinds = [(f'models_{k}', v) for k, v in answer['models'].items()]
  kinds += [
    (f'{kind}_{k}', v) for kind in ('datasets', 'benchmarks') for k, v in answer[kind].items()
  ]
  for name, part in kinds:
    if findings.is_skipped(part):
      continue
    names = part['order']
    out.append(
      figures.heatmap(
        f'Q3_{name}',
        f'Correlation of gains, {name.replace("_", " ")}; in the order of clusters.',
        [table.short(n) for n in names],
        [_cut(table.short(n)) for n in names],
        _cells(part['matrix'], names, names),
        limit=1.0,
        digits=2,
      )
    )
  return out


def _components(answer: Answer) -> list[figures.Figure]:
  made = {k: v for k, v in answer.items() if not findings.is_skipped(v)}
  lines: dict[str, list[tuple[float, float | None]]] = {
    name.replace('_', ' '): [(i + 1, 100 * v) for i, v in enumerate(part['cumulative'])]
    for name, part in made.items()
  }
  text = 'Variance of gains that the first components explain together, in %.'
  out = [figures.curves('Q4_explained', text, lines, ('components', '%'))]
  for name, part in made.items():
    if name.endswith('_strict') or min(len(s) for s in part['scores'].values()) < 2:
      continue
    points = [(data, '', s[0], s[1]) for data, s in part['scores'].items()]
    first, second = (f'component {i + 1} ({100 * part["explained"][i]:.0f} %)' for i in (0, 1))
    text = f'Data sets on the first two components of their gains, {name}.'
    out.append(figures.scatter(f'Q4_map_{name}', text, points, (first, second)))
  return out


def _methods(answer: Answer) -> list[figures.Figure]:
  out = []
  for block in ('core', 'core_strict', 'mixtures', 'all'):
    part = answer[block]
    if findings.is_skipped(part):
      continue
    items = [(table.short(c), v) for c, v in part['benchmarks'].items()]
    items += [(c, v) for c, v in part['categories'].items() if c != 'mean']
    text = (
      f'Full less LoRA, {block.replace("_", " ")}, {part["n"]} pairs; 95 % intervals over models.'
    )
    out.append(figures.bars(f'Q5_{block}', text, items))
  if not findings.is_skipped(answer['agreement']):
    rows = [(m, {'mean': v['r'], **v}) for m, v in answer['agreement'].items()]
    text = 'Correlation of full and LoRA gains of each model over (data, benchmark).'
    out.append(figures.bars('Q5_agreement', text, rows, unit='r'))
  return out


def _epochs(answer: Answer) -> list[figures.Figure]:
  made = {k: v for k, v in answer.items() if not findings.is_skipped(v)}
  if not made:
    return []
  mean: dict[str, list[tuple[float, float | None]]] = {
    k.replace('_', ' '): [(float(e), v['mean']['mean']) for e, v in part['curve'].items()]
    for k, part in made.items()
  }
  out = [figures.curves('Q6_mean', 'Mean gain by epoch, in points.', mean, ('epoch', 'gain'))]
  columns = list(next(iter(made.values()))['spearman'])
  text = 'Mean rank correlation of epoch and score over trajectories.'
  kinds = list(made)
  grid = [[made[k]['spearman'][c]['mean'] for c in columns] for k in kinds]
  n = [[made[k]['spearman'][c]['n'] for c in columns] for k in kinds]
  labels = [table.short(c) for c in columns]
  names = [k.replace('_', ' ') for k in kinds]
  return [
    *out,
    figures.heatmap('Q6_spearman', text, names, labels, grid, limit=1.0, digits=2, more={'n': n}),
  ]


def _sizes(answer: Answer) -> list[figures.Figure]:
  small, large = answer['sizes']
  out = []
  for key in ('all_epochs', 'last_epoch'):
    items = [(table.short(c), v) for c, v in answer[key]['benchmarks'].items()]
    text = f'Scores with {large:g} records less {small:g}, {key.replace("_", " ")}.'
    out.append(figures.bars(f'Q7_{key}', text, items))
  return out


def _languages(answer: Answer) -> list[figures.Figure]:
  made = {k: v for k, v in answer.items() if not findings.is_skipped(v)}
  pairs = list(dict.fromkeys(p for part in made.values() for p in part))
  get = lambda part, pair, key: part[pair][key] if pair in part else None
  fields = ('spearman', 'n', 'low', 'high')
  more = {f: [[get(part, p, f) for p in pairs] for part in made.values()] for f in fields}
  grid = [[get(part, p, 'pearson') for p in pairs] for part in made.values()]
  rows = [k.replace('core_model:', '').replace('_', ' ') for k in made]
  labels = [p.replace('_', '–') for p in pairs]
  text = 'Pearson’s r of gains; hover for Spearman’s, n, the interval over models and data sets.'
  return [figures.heatmap('Q8_languages', text, rows, labels, grid, limit=1.0, digits=2, more=more)]


def _left_out(answer: Answer) -> list[figures.Figure]:
  out = []
  for method in ('full', 'lora'):
    if not answer[method]:
      continue
    rows, columns = _grid(answer[method])
    out.append(
      figures.heatmap(
        f'Q9_{method}',
        f'Score of all data less that without the row’s, {method}; {answer["n_runs"]} run a cell.',
        rows,
        [table.short(c) for c in columns],
        _cells(answer[method], rows, columns),
        limit=15.0,
      )
    )
  return out


def _best(answer: Answer) -> list[figures.Figure]:
  items = [
    (table.short(c), {'mean': row['score'], **{k: str(v) for k, v in row.items() if k != 'score'}})
    for c, row in answer.items()
  ]
  return [figures.bars('Q10_best', 'Best score of each benchmark; hover for the run.', items)]


def _cut(name: str, most: int = 26) -> str:
  return name if len(name) <= most else f'{name[: most - 1]}…'


def _file(name: str) -> str:
  return ''.join(c if c.isalnum() or c in '-.' else '_' for c in name)


_DRAW = {
  'Q1': _gains,
  'Q2': _shares,
  'Q3': _likeness,
  'Q4': _components,
  'Q5': _methods,
  'Q6': _epochs,
  'Q7': _sizes,
  'Q8': _languages,
  'Q9': _left_out,
  'Q10': _best,
  **measured_told.DRAW,
}
