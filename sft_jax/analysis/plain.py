"""The findings in plain language, with their intervals and how many values they are of.

Each function takes one answer of `findings.py` and gives sentences. A mean is called a gain or a
loss, and a difference decided, only after correction for all that one sentence is picked from.
"""

from collections.abc import Mapping
from typing import Any

from sft_jax.analysis import findings, measured_told, table
from sft_jax.utils import words

Answer = Mapping[str, Any]


def sentences(key: str, answer: Answer) -> list[str]:
  """Findings of the question `key`; of a skipped one its reason."""
  if findings.is_skipped(answer):
    return [f'Not said: {answer["skipped"]}.']
  return _SAY[key](answer)


def _interval(part: Answer) -> str:
  """'+1.2 points (0.3 to 2.1; n = 9)'."""
  if part.get('mean') is None:
    return 'unknown'
  bounds = ''
  if part.get('low') is not None:
    bounds = f'95 % interval {part["low"]:.1f} to {part["high"]:.1f}; '
  return f'{part["mean"]:+.1f} ({bounds}n = {part["n"]})'


def _gains(answer: Answer) -> list[str]:
  out = []
  for name, overall in answer['overall'].items():
    if name.endswith('_strict'):
      continue
    word = 'LoRA' if name == 'lora' else 'Full fine-tuning'
    known = {d: part for d, part in overall.items() if part['mean'] is not None}
    if not known:
      continue
    tables = answer[name], answer['positive'][name]
    if not any(value for held in tables for row in held.values() for value in row.values()):
      out.append(
        f'{word}: no score of any run differs from its untrained model’s; training changed nothing '
        'that these benchmarks see.'
      )
      continue
    ranked = sorted(known, key=lambda d: -known[d]['mean'])
    sure = [d for d in ranked if known[d]['decided']]
    up = [f'{d} {_interval(known[d])}' for d in sure if known[d]['mean'] > 0]
    down = [f'{d} {_interval(known[d])}' for d in sure if known[d]['mean'] < 0]
    rest = [d for d in ranked if d not in sure]
    out.append(
      f'{word}, mean over benchmarks and models: raises scores: {"; ".join(up) or "none"}. Lowers '
      f'them: {"; ".join(down) or "none"}. Undecided: {", ".join(rest) or "none"}.'
    )
    cells = [(v, d, c) for d, row in answer[name].items() for c, v in row.items() if v is not None]
    told = []
    gained = [cell for cell in sorted(cells, reverse=True)[:3] if cell[0] > 0]
    for value, data, column in gained + [cell for cell in sorted(cells)[:3] if cell[0] < 0]:
      low, high = (answer[k][name][data][column] for k in ('low_joint', 'high_joint'))
      n = answer['n'][name][data][column]
      part = {'mean': value, 'low': low, 'high': high, 'n': n}
      told.append(f'{data} on {table.short(column)} {_interval(part)}')
    out.append(
      f'{word}, largest gains and losses (intervals hold for all {len(cells)} cells together): '
      f'{"; ".join(told)}.'
    )
    if changed := answer['sign_differs'].get(name):
      pairs = ', '.join(f'{c["data"]} on {table.short(c["benchmark"])}' for c in changed)
      out.append(
        f'{word}: the sign of {words.count(len(changed), "cell")} hangs on models with doubtful '
        f'bases: {pairs}.'
      )
  return out


def _shares(answer: Answer) -> list[str]:
  mean = answer['mean']
  left = f'; without {", ".join(answer["left_out"])}' if answer['left_out'] else ''
  chance, fits = mean['model_data_chance'], answer['fit_decided']
  by_chance = ''
  if chance == chance:
    where = ', '.join(map(table.short, fits)) or 'no benchmark'
    by_chance = f', of which {min(chance, mean["model_data"]):.0%} is what chance alone gives; '
    by_chance += f'taken by itself, it is more than chance on {where}'
  return [
    f'Of the variance of scores, the model explains {mean["model"]:.0%}, '
    f'the data {mean["data"]:.0%}, full or LoRA {mean["method"]:.1%}, how data and model fit '
    f'{mean["model_data"]:.0%}{by_chance} (mean over benchmarks, {len(answer["models"])} models, '
    f'n = {answer["n"]} runs{left}).'
  ]


def _likeness(answer: Answer) -> list[str]:
  out = []
  for name, part in answer['models'].items():
    if findings.is_skipped(part):
      continue
    bounds = ''
    if part['low'] is not None:
      bounds = f', 95 % interval over models and data sets {part["low"]:.2f} to {part["high"]:.2f}'
    out.append(
      f'Models, {name.replace("_", " ")}: mean r {part["mean"]:.2f} ({part["n"]} pairs{bounds}; '
      f'least {" and ".join(part["min_pair"])} {part["min"]:.2f}, most '
      f'{" and ".join(part["max_pair"])} {part["max"]:.2f}).'
    )
    same, other = part['same_language'], part['different_language']
    if same['n'] and other['n'] and name.endswith('strict'):
      out.append(
        f'Of one pre-training language r is {same["mean"]:.2f} ({same["n"]} pairs), of two '
        f'{other["mean"]:.2f} ({other["n"]}).'
      )
  return out


def _components(answer: Answer) -> list[str]:
  return [
    f'{name.replace("_", " ")}: {part["components_for_90"]} components explain 90 % of how gains '
    f'differ between {part["shape"][0]} data sets (the first {part["cumulative"][0]:.0%}; '
    f'{len(part["models"])} models).'
    for name, part in answer.items()
    if not findings.is_skipped(part)
  ]


_BLOCKS = {
  'core': 'Single data sets',
  'core_strict': 'Sound bases only',
  'mixtures': 'Mixtures',
  'all': 'All data together',
}


def _methods(answer: Answer) -> list[str]:
  out = []
  for block, word in _BLOCKS.items():
    part = answer[block]
    if findings.is_skipped(part):
      continue
    out.append(f'{word}: full less LoRA {_interval(part["benchmarks"]["mean"])}.')
    kinds = {k: v for k, v in part['categories'].items() if k != 'mean'}
    told = '; '.join(f'{k} {_interval(v)}' for k, v in kinds.items())
    if told:
      sure = [k for k, v in kinds.items() if v['decided']]
      out.append(f'{word}, by kind of task: {told}. Decided: {", ".join(sure) or "none"}.')
  agreement = answer['agreement']
  if not findings.is_skipped(agreement):
    r = [v['r'] for v in agreement.values() if v['r'] is not None]
    if r:
      out.append(
        f'Gains of full and LoRA runs of a model correlate with r {min(r):.2f} to {max(r):.2f} '
        f'({len(r)} models).'
      )
  return out


def _epochs(answer: Answer) -> list[str]:
  out = []
  for name, part in answer.items():
    if findings.is_skipped(part):
      continue
    mean = part['spearman']['mean']
    curve = list(part['curve'].items())
    (first, a), (last, b) = curve[0], curve[-1]
    if mean['mean'] is None or a['mean']['mean'] is None or b['mean']['mean'] is None:
      continue
    p = f', p = {mean["p"]:.2g} over models' if mean['p'] is not None else ''
    out.append(
      f'{name.replace("_", " ")}: mean gain {a["mean"]["mean"]:+.1f} at epoch {first}, '
      f'{b["mean"]["mean"]:+.1f} at epoch {last}; rank correlation of epoch and mean score '
      f'{mean["mean"]:+.2f} ({mean["n"]} trajectories{p}).'
    )
  return out


def _sizes(answer: Answer) -> list[str]:
  small, large = answer['sizes']
  out = []
  for key, word in (('all_epochs', 'all epochs'), ('last_epoch', f'epoch {answer["epoch"]:g}')):
    part = answer[key]['benchmarks']
    known = [(c, v) for c, v in part.items() if c != 'mean' and v['decided']]
    sure = [f'{table.short(c)} {_interval(v)}' for c, v in known]
    out.append(
      f'{large:g} records less {small:g}, {word}: {_interval(part["mean"])}, better in '
      f'{part["mean"]["share_positive"]:.0%} of pairs. Decided by benchmark: '
      f'{"; ".join(sure) or "none"}.'
    )
  return out


def _languages(answer: Answer) -> list[str]:
  out = []
  for name, part in answer.items():
    if ':' in name or findings.is_skipped(part):
      continue
    told = []
    for pair, v in part.items():
      if v['pearson'] is not None:
        bounds = f' ({v["low"]:.2f} to {v["high"]:.2f})' if v['low'] is not None else ''
        told.append(f'{pair.replace("_", "–")} r {v["pearson"]:.2f}{bounds}, n = {v["n"]}')
    out.append(f'{name.replace("_", " ")}: {"; ".join(told) or "constant gains"}.')
  return out


def _left_out(answer: Answer) -> list[str]:
  out = []
  for method in ('full', 'lora'):
    ranked = sorted(
      ((v['mean'], x) for x, v in answer[method].items() if v['mean'] is not None), reverse=True
    )
    if ranked:
      told = ', '.join(f'{x} {v:+.1f}' for v, x in ranked)
      out.append(
        f'{method} ({", ".join(answer["models"])}): what each adds to all data together: {told}. '
        f'{answer["n_runs"]} run a cell: no interval, do not read much into it.'
      )
  return out


def _best(answer: Answer) -> list[str]:
  out = [
    f'{table.short(column)}: {row["score"]:.1f} by {row["model_name"]} on {row["data_name"]} '
    f'({row["method"]}, {row["data_size"]:g} records, {row["lr_strategy"]}, epoch {row["epoch"]:g}'
    f'{"; " + str(row["ties"]) + " rows share it" if row["ties"] > 1 else ""}).'
    for column, row in answer.items()
  ]
  return [*out, 'The best of many is lucky as well as good.']


_SAY = {
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
  **measured_told.SAY,
}
