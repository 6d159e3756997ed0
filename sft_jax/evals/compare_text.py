"""A comparison for people and programs: lines of text, one JSON object, a page of outputs."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.evals.compare import Comparison
from sft_jax.evals.stats import FEWEST, Estimate
from sft_jax.utils import words

_STYLE = """
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 90em; padding: 0 1em }
body { background: #fff; color: #111 } .wide { overflow-x: auto }
@media (max-width: 40em) { .pair { grid-template-columns: 1fr !important } }
table { border-collapse: collapse } th, td { padding: .2em .8em; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #8884 }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1em }
pre { background: #8881; margin: .3em 0; padding: .6em }
pre { white-space: pre-wrap; word-break: break-word }
.up { color: #187a3c } .down { color: #b3261e } section { margin: 1.2em 0 }
"""
# Of a text and of each line of it, and of the items that differ, on a terminal; the page has all.
_MOST_LINES, _MOST_WIDTH, _MOST_IDS = 12, 400, 20
_HEAD = ('task', 'items', 'A', 'B', 'B − A', '95 % interval', 'p', 'detectable', 'better', 'worse')
_LEGEND = (
  'Interval: paired, score method. p: exact sign test over items. Detectable: the smallest '
  'difference that 80 % of such comparisons would find. Better, worse: items where B scores '
  'higher, lower.'
)


def lines(
  names: tuple[str, str], comparisons: Sequence[Comparison], examples: int = 0
) -> list[str]:
  """A table, where differences come from, and the items that differ.

  Args:
    names: What the two rows are called.
    comparisons: One for each task.
    examples: Most items that are shown of each task.
  """
  rows = [list(_HEAD), *(_cells(one) for one in comparisons)]
  widths = [max(len(row[at]) for row in rows) for at in range(len(_HEAD))]
  out = [f'A: {names[0]}', f'B: {names[1]}', '']
  for row in rows:
    cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    out.append('  '.join([row[0].ljust(widths[0]), *cells]))
  out += ['', _LEGEND, *_caveats(comparisons)]
  for one in comparisons:
    parts = [*_split_lines(one), *_clean_lines(one)]
    if one.disagree:
      parts.append(f'they differ on {_ids([a["id"] for a, _ in one.disagree])}')
    if parts:
      out += ['', _task(one), *(f'  {text}' for text in parts)]
    for a, b in one.disagree[:examples]:
      out += ['', f'{_task(one)}, item {a["id"]}: {_marks(one, a, b)}']
      if 'prompt' in a:
        out += _indented('question', a['prompt'])
      out += [*_indented('A', _output(a)), *_indented('B', _output(b))]
  return out


def _ids(ids: Sequence[str]) -> str:
  shown = ', '.join(ids[:_MOST_IDS])
  rest = len(ids) - _MOST_IDS
  return shown + (f' and {words.count(rest, "further item")}' if rest > 0 else '')


def _task(one: Comparison) -> str:
  return str(one.about['task'])


def _indented(name: str, text: str) -> list[str]:
  """A text as lines under a name, its beginning where it is long."""
  shown = lambda line: line if len(line) <= _MOST_WIDTH else f'{line[:_MOST_WIDTH]}…'
  first, *rest = map(shown, text.splitlines() or [''])
  cut = len(rest) >= _MOST_LINES
  rest = [*rest[: _MOST_LINES - 1], '…'] if cut else rest
  return [f'  {name}: {first}', *(f'     {line}' for line in rest)]


def _cells(one: Comparison) -> list[str]:
  interval = _interval(one.difference, one.n).strip() or '–'
  a, b = (f'{score:.2f}' for score in one.scores)
  shift = f'{one.difference.mean:+.2f}'
  reach = '–' if one.detectable is None else f'{one.detectable:.2f}'
  return [
    *(_task(one), str(one.n), a, b, shift, interval, f'{one.p:.3g}', reach),
    *(str(one.better), str(one.worse)),
  ]


def _caveats(comparisons: Sequence[Comparison]) -> list[str]:
  out = []
  if len(comparisons) > 1:
    out.append(
      f'{len(comparisons)} tasks: without any true difference, one interval in 20 leaves out 0.'
    )
  for one in comparisons:
    if one.left_out:
      left_out = words.count(one.left_out, 'item')
      out.append(f'{_task(one)}: {left_out} left out, not graded in both.')
    if one.shots_differ:
      differ = words.count(one.shots_differ, 'item')
      out.append(f'{_task(one)}: {differ} had different numbers of shots.')
    if one.n < FEWEST:
      items = words.count(one.n, 'item')
      out.append(f'{_task(one)}: {items}, too few for an interval; {FEWEST} have one.')
  return out


def _split_lines(one: Comparison) -> list[str]:
  split = one.split
  if split is None:
    return []
  out = [f'answers found: {split.extracted[0]:.1f} % and {split.extracted[1]:.1f} % of outputs']
  if split.given_both is not None:
    given = f'{split.given_both.mean:+.2f}{_interval(split.given_both, split.both)}'
    out.append(f'where found in both ({words.count(split.both, "item")}): {given}')
  out.append(
    f'of {one.difference.mean:+.2f}: {split.ability:+.2f} from better or worse answers there, '
    f'{split.form:+.2f} from answers found in one only'
  )
  return out


def _clean_lines(one: Comparison) -> list[str]:
  clean = one.clean
  if clean is None:
    return []
  if not clean.contaminated:
    return ['none of the items was found in the training data']
  were = words.count(clean.contaminated, 'item was', 'items were')
  out = f'{were} found in the training data'
  if clean.difference is None:
    return [f'{out}: no clean ones are left']
  given = f'{clean.difference.mean:+.2f}{_interval(clean.difference, clean.n)}'
  return [f'{out}; on the {words.count(clean.n, "other")}: {given}']


def _interval(one: Estimate, items: int) -> str:
  """As people read it; '' where there is none, or too few items for one to mean much."""
  if one.low is None or one.high is None or items < FEWEST:
    return ''
  return f' [{one.low:+.2f}, {one.high:+.2f}]'


def _marks(one: Comparison, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
  measure = one.about['measures'][0]
  return f'{measure} {a["scores"][measure]:g} and {b["scores"][measure]:g}'


def _output(record: Mapping[str, Any]) -> str:
  """What was written, or chosen."""
  output = record.get('output', record.get('extracted'))
  if isinstance(output, list):
    return '\n---\n'.join(output)
  return output or ''


def report(names: tuple[str, str], comparisons: Sequence[Comparison]) -> dict[str, Any]:
  """Everything as one JSON object; of the items that differ only the ids and scores."""
  return {
    'rows': list(names),
    'tasks': {
      _task(one): {
        'about': dict(one.about),
        'n': one.n,
        'left-out': one.left_out,
        'shots-differ': one.shots_differ,
        'scores': list(one.scores),
        'difference': one.difference._asdict(),
        'p': one.p,
        'better': one.better,
        'worse': one.worse,
        'detectable': one.detectable,
        'split': one.split
        and {
          'extracted': list(one.split.extracted),
          'both': one.split.both,
          'given-both': one.split.given_both and one.split.given_both._asdict(),
          'ability': one.split.ability,
          'form': one.split.form,
        },
        'clean': one.clean
        and {
          'n': one.clean.n,
          'contaminated-n': one.clean.contaminated,
          'difference': one.clean.difference and one.clean.difference._asdict(),
        },
        'disagree': [
          {'id': a['id'], 'scores': [r['scores'][one.about['measures'][0]] for r in (a, b)]}
          for a, b in one.disagree
        ],
      }
      for one in comparisons
    },
  }


def page(names: tuple[str, str], comparisons: Sequence[Comparison], most: int = 500) -> str:
  """One HTML file, complete in itself: the table, and outputs side by side where scores differ.

  Args:
    names: What the two rows are called.
    comparisons: One for each task.
    most: Most items shown of each task.
  """
  escape = html.escape
  cells = lambda row, tag: ''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)
  rows = ''.join(f'<tr>{cells(_cells(one), "td")}</tr>\n' for one in comparisons)
  notes = ''.join(f'<p>{escape(text)}</p>\n' for text in (_LEGEND, *_caveats(comparisons)))
  title = f'{names[0]} and {names[1]}'
  parts = [
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">',
    # Nothing is loaded and no script runs, whatever a model wrote.
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
    f'<title>{escape(title)}</title><style>{_STYLE}</style></head><body>',
    f'<h1>Comparison</h1>\n<p>A: {escape(names[0])}<br>B: {escape(names[1])}</p>',
    f'<div class="wide"><table><tr>{cells(_HEAD, "th")}</tr>\n{rows}</table></div>\n{notes}',
  ]
  for one in comparisons:
    parts.append(f'<h2>{escape(_task(one))}</h2>')
    details = (*_split_lines(one), *_clean_lines(one))
    parts += [f'<p>{escape(text)}</p>' for text in details]
    parts += [_section(one, a, b) for a, b in one.disagree[:most]]
    if len(one.disagree) > most:
      rest = words.count(len(one.disagree) - most, 'further item')
      parts.append(f'<p>Not shown: {rest}.</p>')
  return '\n'.join([*parts, '</body></html>\n'])


def _section(one: Comparison, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
  measure = one.about['measures'][0]
  mark = 'up' if b['scores'][measure] > a['scores'][measure] else 'down'
  group = f' ({a["group"]})' if a.get('group') else ''
  head = html.escape(f'{a["id"]}{group}: {_marks(one, a, b)}')
  out = [f'<section><h3 class="{mark}">{head}</h3>']
  for name in ('prompt', 'gold'):
    if a.get(name) is not None:
      text = a[name] if isinstance(a[name], str) else json.dumps(a[name], ensure_ascii=False)
      out.append(f'<details><summary>{name}</summary><pre>{html.escape(text)}</pre></details>')
  out.append('<div class="pair">')
  for name, record in (('A', a), ('B', b)):
    found = record.get('extracted')
    said = 'no answer found' if found is None else f'answer: {found}'
    out.append(f'<div>{name}, {html.escape(said)}<pre>{html.escape(_output(record))}</pre></div>')
  return '\n'.join([*out, '</div></section>'])
