"""The page of the small study: verdicts by the rules of docs/results.md, and tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.small_study_found import KINDS, NAMED, PERPLEXITY, RIVALS
from sft_jax.analysis import resampling

Found = Mapping[str, Any]
WORDS = {'gain': 'gain', 'soft': 'soft gain'}
# Hypothesis -> what is estimated, the value that means nothing, and the sign it predicts.
RULES = {
  'H1': ('ρ of answers’ log perplexity and gain', 0.0, -1),
  'H2': ('size of perplexity’s ρ less that of similarity, of length', 0.0, 1),
  'H3': ('r of change and gain, middle less outer thirds', 0.0, 1),
  'H4': ('ρ of LoRA’s and full’s gains', 0.0, 1),
  'H5': ('models whose middle third brings most, of all', 1 / 3, 1),
  'H6': ('share of variance that is the data sets’, not seeds’', 0.0, 1),
  'H7': ('change of dimension, middle less outer thirds', 0.0, 1),
  'H8': ('distance of methods over that of data sets', 1.0, -1),
}


def estimates(name: str, test: Any) -> list[Found]:
  """Those of which each must agree."""
  if name == 'H2':
    return [test[rival] for rival in NAMED]
  if name == 'H6':
    return [test | {'value': test['icc']}]
  return [test]


def verdict(name: str, test: Any) -> str:
  """supported | refuted | undecided, by intervals alone."""
  _, null, sign = RULES[name]
  held = estimates(name, test)
  if any(not math.isfinite(one['low'] + one['high']) for one in held):
    return 'undecided'
  ends = [(one['low'] - null, one['high'] - null) for one in held]
  if sign < 0:
    ends = [(-high, -low) for low, high in ends]
  if name == 'H6':
    # Seeds would have to be at least half of it.
    return _word(ends[0][0] > 0, held[0]['high'] < 0.5)
  if name == 'H5':
    clear = held[0]['p'] < 0.05
    above = held[0]['value'] > null
    return _word(clear and above, clear and not above)
  return _word(all(low > 0 for low, _ in ends), any(high < 0 for _, high in ends))


def _word(supported: bool, refuted: bool) -> str:
  return 'supported' if supported else 'refuted' if refuted else 'undecided'


def rows(tests: Mapping[str, Any]) -> list[dict[str, Any]]:
  """One for each hypothesis, with p corrected for all of them (Holm)."""
  # Of H2 both must hold, so the larger p counts.
  p = [max(one['p'] for one in estimates(name, tests[name])) for name in RULES]
  held = resampling.holm(p)
  return [
    {
      'name': name,
      'estimates': estimates(name, tests[name]),
      'p': p[at],
      'holm': float(held[at]),
      'verdict': verdict(name, tests[name]),
    }
    for at, name in enumerate(RULES)
  ]


def _interval(one: Found) -> str:
  return (
    f'{one["value" if "value" in one else "rho"]:+.2f} ({one["low"]:+.2f} to {one["high"]:+.2f})'
  )


def lines(found: Found, doc: str) -> list[str]:
  """As Markdown."""
  out = ['# A real small study', '', doc.split('\n', 2)[2].strip(), '']
  told = {kind: rows(found['tests'][kind]) for kind in KINDS}
  out += [
    '## Hypotheses',
    '',
    'Estimates with 95 % intervals, by which the verdicts go; p after Holm’s correction.',
  ]
  out += ['', '| | estimate | on gain | p | verdict | on soft gain | p | verdict |']
  out.append('|---|---|---|---|---|---|---|---|')
  for one, two in zip(*told.values(), strict=True):
    cells = [
      ', '.join(map(_interval, part['estimates'])) + f' | {part["holm"]:.2g} | {part["verdict"]}'
      for part in (one, two)
    ]
    out.append(f'| {one["name"]} | {RULES[one["name"]][0]} | {cells[0]} | {cells[1]} |')
  out += ['', 'H5, H7 and H8 do not depend on gains.', '', *_words(*told.values())]
  out += [*_rivals(found), *_data(found)]
  out += [*_others(found), '## Time', '', 'Of all goes together, on a machine in use.', '']
  out += ['| | s |', '|---|---|']
  return out + [f'| {name} | {seconds:.0f} |' for name, seconds in found['seconds'].items()]


def _words(gain: Sequence[Found], soft: Sequence[Found]) -> list[str]:
  """What agrees with the paper and what does not."""
  names = lambda told, word: ', '.join(one['name'] for one in told if one['verdict'] == word)
  out = []
  for word, text in (
    ('supported', 'Agrees with the paper'),
    ('refuted', 'Contradicts it'),
    ('undecided', 'Undecided, the interval holds both'),
  ):
    held = names(gain, word) or 'none'
    other = names(soft, word) or 'none'
    out.append(f'- {text}: {held}; on soft gain: {other}.')
  sure = [one['name'] for one in gain if one['holm'] < 0.05]
  return [*out, f'- Below 0.05 after Holm’s correction, on gain: {", ".join(sure) or "none"}.', '']


def _rivals(found: Found) -> list[str]:
  out = ['## Perplexity and its rivals', '']
  out += ['| | ρ with gain | \\|ρ\\| of perplexity less its own | ρ with soft gain | the same |']
  out.append('|---|---|---|---|---|')
  first = [f'{found["tests"][kind]["H1"]["rho"]:+.2f} | ' for kind in KINDS]
  out.append(f'| {PERPLEXITY} | {" | ".join(first)} |')
  for name in RIVALS:
    held = [found['tests'][kind]['H2'][name] for kind in KINDS]
    cells = [f'{one["rho"]:+.2f} | {_interval(dict(one))}' for one in held]
    out.append(f'| {name} | {" | ".join(cells)} |')
  return [*out, '']


def _data(found: Found) -> list[str]:
  names = list(found['items'])
  head = ['data', 'gain ± standard error', 'p', *names, 'LoRA', 'full', 'soft gain ±', 'p']
  head += ['log ppl', 'similarity', 'tokens']
  out = [
    '## Data sets',
    '',
    'Points over the base, mean of LoRA and full; p after Holm over ten.',
    '',
  ]
  out += [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
  p = {}
  for kind in KINDS:
    z = [
      abs(found['gains'][kind]['both'][i]) / max(found['each'][name][f'{kind}-stderr'], 1e-12)
      for i, name in enumerate(found['data'])
    ]
    p[kind] = resampling.holm([math.erfc(one / math.sqrt(2)) for one in z])
  known = found['predictors']
  for i, name in enumerate(found['data']):
    each, gain = found['each'][name], found['gains']['gain']
    said = lambda kind, i=i, each=each: (
      f'{found["gains"][kind]["both"][i]:+.1f} ± {each[f"{kind}-stderr"]:.1f} | {p[kind][i]:.2g}'
    )
    cells = [name, said('gain'), *(f'{each["gain"][n]:+.1f}' for n in names)]
    cells += [f'{gain["lora"][i]:+.1f}', f'{gain["full"][i]:+.1f}', said('soft')]
    cells += [f'{known[PERPLEXITY][i]:.2f}', f'{known["similarity"][i]:+.2f}']
    out.append(f'| {" | ".join(cells)} | {known["mean length"][i]:.0f} |')
  base = ', '.join(f'{n} {found["base"][n]:.1f} of {found["items"][n]} items' for n in names)
  return [*out, '', f'The base: {base}.', '']


def ranks(found: Found) -> dict[str, list[str]]:
  """Data sets from best to worst by gain: of all benchmarks, without BoolQ, and standardised."""
  each = {name: found['each'][name]['gain'] for name in found['data']}
  points = np.array([list(gains.values()) for gains in each.values()])
  tasks = list(next(iter(each.values())))
  spread = points.std(0, ddof=1)
  # A benchmark on which nothing moved tells nothing apart.
  standard = points / np.where(spread > 0, spread, np.inf)
  kinds = {
    'all five': points,
    'without BoolQ': points[:, [task != 'boolq' for task in tasks]],
    'standardised': standard,
  }
  order = lambda values: np.argsort(-values.mean(1), kind='stable')
  return {kind: [list(each)[i] for i in order(values)] for kind, values in kinds.items()}


def _others(found: Found) -> list[str]:
  tests = found['tests']['gain']
  seeds, thirds = tests['H6'], tests['H5']['shares'].values()
  share = [sum(one[i] for one in thirds) / len(thirds) for i in range(3)]
  more, r = (found['tests'][kind]['H6'] for kind in KINDS), tests['H3']['r']
  text = ', '.join(f'{one["sd_seeds"]:.2f} and {one["sd_data"]:.2f} ({w})'
                   for one, w in zip(more, WORDS.values(), strict=True))  # fmt: skip
  peak = [max(range(len(one)), key=one.__getitem__) / (len(one) - 1) for one in r]
  return [
    '## Further numbers',
    '',
    f'- Seeds: standard deviation of seeds and of data sets, in points, {text}; '
    f'{seeds["groups"]} data sets with {seeds["repeats"]} seeds.',
    f'- Grafts: of the fall of held-out log perplexity the lower, middle and upper third bring '
    f'{", ".join(f"{s:.0%}" for s in share)} by themselves, mean of {len(thirds)} models.',
    f'- Change and gain correlate most at depth {peak[0]:.2f} (LoRA) and {peak[1]:.2f} (full).',
    *(f'- By gain, {kind}: {", ".join(names)}.' for kind, names in ranks(found).items()),
    '',
  ]
