"""A decision as one page (HTML, complete in itself) and as Markdown, from its plain values.

Not for deciding: `choose.py`, whose `as_json` these are made of.
"""

import html
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.study import race, race_budget, race_stats
from sft_jax.utils import io, words

_STYLE = (
  'body{font:16px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#222;'
  'background:#fff}table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em;'
  'text-align:left;border-bottom:1px solid #ddd;vertical-align:top}td:nth-child(2){'
  'white-space:nowrap}td:first-child,.answer{overflow-wrap:anywhere}td:first-child{min-width:8em}'
  'pre{white-space:pre-wrap;background:#f6f6f6;'
  'padding:.6em;overflow-wrap:anywhere}.pair{display:flex;gap:1em}.pair>div{flex:1;min-width:0}'
  'h1{font-size:1.6em}.answer{font-size:1.3em}svg text{font:12px system-ui,sans-serif}'
  # On a narrow screen what is wide is scrolled, not shrunk.
  '.wide{overflow-x:auto}svg{min-width:560px;max-width:900px}'
  '@media(max-width:40em){.pair{display:block}td{min-width:4em}}'
)
_COLOURS = ('#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#8c564b', '#e377c2', '#17becf', '#bcbd22')
_HEAD = (
  *('candidate', 'gain, points (95 %)', 'at', 'runs', 'form', 'guards', 'licence'),
  'what became of it',
)
_WIDTH, _HEIGHT, _LEGEND = 640, 280, 18
_VIEWPORT = '<meta name="viewport" content="width=device-width,initial-scale=1">'


def write(directory: str, decision: Mapping[str, Any]) -> str:
  """Writes `decision.html`, `.md` and `.json`; returns the page's path.

  Args:
    directory: Where to.
    decision: From `choose.as_json`, with any of `licences` ({candidate: licence of its data}),
      `command` (what trains the chosen recipe in full), `examples` (outputs side by side:
      {'prompt', 'base', 'chosen'} each), `unit` (of costs), `base` ({'name', 'licence'}) and
      `endpoint` ({'name', 'gain', 'pick-over'}).

  Raises:
    UserError: they cannot be written.
  """
  value = complete(decision)
  page = os.path.join(directory, 'decision.html')
  io.write_json_atomic(os.path.join(directory, 'decision.json'), value)
  io.write_text_atomic(os.path.join(directory, 'decision.md'), markdown(value))
  io.write_text_atomic(page, html_page(value))
  return page


def complete(decision: Mapping[str, Any]) -> dict[str, Any]:
  """A decision with nothing in place of what it does not say."""
  nothing: dict[str, Any] = {
    **{
      'licences': {},
      'guard-limits': {},
      'questions': {},
      'examples': [],
      'endpoint': None,
      'base': None,
    },
    **dict.fromkeys(('command', 'unit'), ''),
  }
  return {**nothing, **decision}


def answer(value: Mapping[str, Any]) -> str:
  """The decision in a sentence."""
  if value['decision'] == 'none beats the base':
    return _none(value)
  pick = _found(value, value['pick']['candidate'])
  gain = f'{pick["candidate"]} gains {_interval(pick["gain"])} points over the base'
  if value['decision'] == 'winner':
    return f'Train on {pick["candidate"]}: it wins. {gain}.'
  names = ', '.join(one['candidate'] for one in value['members'])
  open_ = [one['candidate'] for one in value['open']]
  left = f' Dropped, for the cost, before that was settled: {", ".join(open_)}.' if open_ else ''
  return f'A tie: the best is among {names}. Of them {gain}, the most expected.{left}'


def _none(value: Mapping[str, Any]) -> str:
  """That none beats the base, or none of those that keep the guards."""
  fell = [
    f'{one["candidate"]} gains {_interval(one["gain"])} points, but {one["why"]}.'
    for one in value['candidates']
    if one['state'] == race.GUARD and one['gain'] and one['gain']['low'] > 0
  ]
  if not fell:
    return 'None of the candidates is shown to beat the base.'
  return ' '.join(('No candidate that keeps the guards is shown to beat the base.', *fell))


def cost(value: Mapping[str, Any]) -> str:
  """What was spent, in a sentence."""
  told = lambda amount: race_budget.told(amount, value['unit'])
  share = value['spent'] / value['full-cost'] if value['full-cost'] else 0.0
  most = f' of the {told(value["budget"])} given' if value['budget'] is not None else ''
  return (
    f'It cost {told(value["spent"])}{most}; training everything at full size would cost '
    f'{told(value["full-cost"])} ({share:.0%} of that was spent).'
  )


def _asked(value: Mapping[str, Any]) -> str:
  """What was to be improved, in a sentence."""
  asked = lambda task: words.count(value['questions'].get(task, 0), 'question')
  targets = [f'{task} ({asked(task)})' for task in value['targets']]
  limits = value['guard-limits'].items()
  guards = [f'{task} (at least {least:+g}, {asked(task)})' for task, least in limits]
  kept = f' Guarded: {", ".join(guards)}.' if guards else ''
  base = value['base']
  of = f' The base: {base["name"]} (licence: {base["licence"]}).' if base else ''
  return f'To be improved: {", ".join(targets)}.{kept}{of}'


def _sentences(value: Mapping[str, Any]) -> list[str]:
  told = (cost(value), _asked(value), _form(value))
  return [text for text in told if text]


def _form(value: Mapping[str, Any]) -> str:
  """What the column of form is, where it says something."""
  if not any(round(one['form'] or 0.0, 1) for one in value['candidates']):
    return ''
  how = 'which are part of the gain' if value.get('form-counts') else 'which the gain leaves out'
  return f'Form: points of items in which no answer of the base was found, {how}.'


def _found(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  return next(one for one in value['candidates'] if one['candidate'] == name)


def _interval(gain: Mapping[str, float] | None) -> str:
  if gain is None:
    return ''
  mean, low, high = (_points(gain[key]) for key in ('mean', 'low', 'high'))
  still = race_stats.nothing_changed(gain['mean'], gain['stderr'])
  return f'{mean} (nothing changed)' if still else f'{mean} ({low} to {high})'


def _points(value: float) -> str:
  """With its sign; what rounds to nothing is +0.0."""
  return f'{round(value, 1) + 0.0:+.1f}'


def _cells(value: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
  rate = f' at {one["learning-rate"]:g}' if one['learning-rate'] else ''
  member = any(other['candidate'] == one['candidate'] for other in value['members'])
  guards = '; '.join(f'{task} {_interval(gain)}' for task, gain in one['guards'].items())
  return [
    f'{one["candidate"]}{rate}',
    _interval(one['gain']),
    one['rung'] or '',
    str(one['runs'] or ''),
    '' if one['form'] is None else _points(one['form']),
    guards,
    value['licences'].get(one['candidate'], ''),
    'named' if member else one['why'],
  ]


def _rows(value: Mapping[str, Any]) -> list[list[str]]:
  """The table: every candidate, and the served model that is to be beaten."""
  rows = [_cells(value, one) for one in value['candidates']]
  if served := value['endpoint']:
    rows.append([served['name'], _interval(served['gain']), *[''] * 5, _against(served)])
  return rows


def _against(served: Mapping[str, Any]) -> str:
  """How the pick compares with the served model."""
  over = served['pick-over']
  if over is None:
    return 'a served model, to be beaten'
  how = 'not shown to differ from it'
  if over['low'] > 0 or over['high'] < 0:
    how = 'better than it' if over['low'] > 0 else 'worse than it'
  return f'a served model; the pick is {how}: {_interval(over)}'


def markdown(value: Mapping[str, Any]) -> str:
  """The decision as Markdown; takes what `write` writes as JSON."""
  clean = lambda cell: cell.replace('|', '\\|').replace('\n', ' ')
  row = lambda cells: f'| {" | ".join(map(clean, cells))} |'
  out = ['# Which data to train on', '', answer(value), '']
  out += [line for text in _sentences(value) for line in (text, '')]
  out += [row(_HEAD), row(['---'] * len(_HEAD))]
  out += map(row, _rows(value))
  out += ['', *(f'- {fact}' for fact in (*value['facts'], *value['steps']))]
  if value['command']:
    out += ['', 'To train it in full:', '', '```sh', value['command'], '```']
  return '\n'.join(out) + '\n'


def html_page(value: Mapping[str, Any]) -> str:
  """The decision as a page that loads nothing; takes what `write` writes as JSON."""
  escape = html.escape
  cells = lambda row, tag: ''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)
  rows = ''.join(f'<tr>{cells(row, "td")}</tr>\n' for row in _rows(value))
  out = [
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{_VIEWPORT}',
    # Nothing is loaded and no script runs, whatever a model wrote.
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
    f'<title>Which data to train on</title><style>{_STYLE}</style></head><body>',
    f'<h1>Which data to train on</h1>\n<p class="answer">{escape(answer(value))}</p>',
    ''.join(f'<p>{escape(text)}</p>\n' for text in _sentences(value)),
    f'<div class="wide"><table><tr>{cells(_HEAD, "th")}</tr>\n{rows}</table></div>',
    '<h2>The race</h2>\n<p>Points over the base by number of examples, with 95 % intervals.</p>\n'
    f'<div class="wide">{_curves(value)}</div>',
    _list(value['steps']),
    f'<h2>To know</h2>\n{_list(value["facts"])}' if value['facts'] else '',
  ]
  if value['command']:
    out.append(f'<h2>To train it in full</h2>\n<pre>{escape(value["command"])}</pre>')
  if value['examples']:
    out.append(
      '<h2>What they write</h2>\n<p>Items that the chosen one does better than the base, by one run'
      ' of it.</p>'
    )
  for one in value['examples']:
    sides = ''.join(
      f'<div>{name}<pre>{escape(one[name])}</pre></div>' for name in ('base', 'chosen')
    )
    out.append(f'<pre>{escape(one["prompt"])}</pre><div class="pair">{sides}</div>')
  return '\n'.join([*out, '</body></html>\n'])


def _list(texts: Sequence[str]) -> str:
  return ''.join(['<ul>', *(f'<li>{html.escape(text)}</li>\n' for text in texts), '</ul>'])


def _curves(value: Mapping[str, Any]) -> str:
  """Gain of every candidate at every rung, with 95 % intervals, as SVG."""
  rungs = list(dict.fromkeys(at['rung'] for one in value['candidates'] for at in one['curve']))
  points = [at for one in value['candidates'] for at in one['curve']]
  if not points:
    return ''
  # At least a point is seen, or nothing at all would look large.
  low = min(-0.5, *(at['low'] for at in points))
  high = max(0.5, *(at['high'] for at in points))
  count, part = len(value['candidates']), (_WIDTH - 220) / len(rungs)
  # Beside each other, within the part of their rung.
  apart = min(6.0, 0.7 * part / count)
  height = max(_HEIGHT, 24 + 16 * count)
  scale = (height - 40) / max(high - low, 1e-9)
  middle = lambda rung: 60 + (rungs.index(rung) + 0.5) * part
  across = lambda rung, i: middle(rung) + apart * (i - (count - 1) / 2)
  down = lambda gain: 10 + (high - gain) * scale
  parts = [
    f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="gains by size of the data">',
    f'<line x1="50" x2="{_WIDTH - 160}" y1="{down(0):.1f}" y2="{down(0):.1f}" stroke="#999"/>',
    f'<text x="4" y="{down(0) + 4:.1f}">base</text>',
    # Where there is room beside the base.
    *(
      f'<text x="4" y="{down(end) + 4:.1f}">{end:+.1f}</text>'
      for end in (high, low)
      if abs(down(end) - down(0)) > 14
    ),
    *(
      f'<text x="{middle(r):.1f}" y="{height - 6}" text-anchor="middle">'
      f'{html.escape(r.removesuffix(" examples"))}</text>'
      for r in rungs
    ),
  ]
  for i, one in enumerate(value['candidates']):
    again, colour = i // len(_COLOURS), _COLOURS[i % len(_COLOURS)]
    dash = f' stroke-dasharray="{9 / again:.0f} 3"' if again else ''
    look = f'fill="none" stroke="{colour}"{dash}'
    path = [(across(at['rung'], i), at) for at in one['curve']]
    if not path:
      continue
    line = ' '.join(f'{x:.1f},{down(at["mean"]):.1f}' for x, at in path)
    parts.append(f'<polyline points="{line}" {look} stroke-width="2"/>')
    for x, at in path:
      ends = f'y1="{down(at["low"]):.1f}" y2="{down(at["high"]):.1f}"'
      parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{colour}"/>')
      parts.append(f'<circle cx="{x:.1f}" cy="{down(at["mean"]):.1f}" r="3" fill="{colour}"/>')
    name = one['candidate']
    name = html.escape(name if len(name) <= _LEGEND else f'{name[: _LEGEND - 1]}…')
    swatch = f'<path d="M{_WIDTH - 155} {16 + 16 * i}h16" {look} stroke-width="4"/>'
    parts.append(f'{swatch}<text x="{_WIDTH - 135}" y="{20 + 16 * i}">{name}</text>')
  return '\n'.join([*parts, '</svg>'])
