"""`--mode=report`: the analysis of a result table as one page, its numbers as JSON and CSV.

Writes `report/index.html` (opens without a network), `report/findings.json` and, for each figure,
`report/csv/NAME.csv`.
"""

import html
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sft_jax.analysis import checks, figures, findings, measured, mend, pictures, plain, table
from sft_jax.utils import io, log, words
from sft_jax.utils.errors import UserError

# Checks whose findings change what is analysed, where config.report.checks is 'all'. Mixed columns
# are left out by name only: a released column that no average uses does no harm.
_MENDING = ('scale', 'range', 'doubled', 'constant', 'mixed')
# Questions in the order in which findings are told on a terminal, and characters of each.
_FIRST = ('Q1', 'predictors', 'Q5', 'grafts', 'Q6', 'Q7', 'Q9', 'layers', 'Q10')
_LONGEST = 320


def report(config: Any, workdir: str) -> dict[str, Any]:
  """Analyses the table of a study, or `config.report.table`, and writes the report.

  Args:
    config: See `configs/base.py`.
    workdir: A study's, or where to write the report on another table.

  Returns:
    {'report': path of the page, 'findings': that of the numbers, 'rows', 'faults', 'skipped'}.

  Raises:
    UserError: no table, or one of which nothing can be said.
  """
  source = config.report.table or os.path.join(workdir, 'results.csv')
  which = _which(config.report.checks)
  if config.report.bootstrap < 200:
    raise UserError(
      f'{config.report.bootstrap} draws give no interval', 'config.report.bootstrap', 'give 200+'
    )
  frame = table.read(source)
  # Probes' tables lie beside the results they belong to.
  place = os.path.dirname(os.path.abspath(source)) if not io.is_remote(source) else ''
  told = analyse(frame, which, config.report.bootstrap, config.report.seed, place)
  directory = epath.Path(workdir) / 'report'
  write(directory, os.path.basename(source), told)
  for sentence in first_findings(told['answers']):
    log.say(f'- {textwrap.shorten(sentence, _LONGEST, placeholder=" …")}')
  skipped = {key: part['skipped'] for key, part in told['answers'].items() if 'skipped' in part}
  for key, why in skipped.items():
    log.say(f'{key} {findings.TITLES[key]}: skipped, {why}')
  faults = sum(f.severity == 'fault' for f in told['found'])
  rows, found = words.count(len(frame), 'row'), words.count(faults, 'fault')
  log.say(f'{rows}, {found} found; the report is {directory}/index.html')
  return {
    'report': str(directory / 'index.html'),
    'findings': str(directory / 'findings.json'),
    'rows': len(frame),
    'faults': faults,
    'skipped': skipped,
  }


def analyse(
  frame: Any,
  which: Sequence[str] = tuple(checks.CHECKS),
  resamples: int = 2000,
  seed: int = 0,
  place: str = '',
) -> dict[str, Any]:
  """Checks a table, mends what was asked for, and answers all questions.

  Args:
    frame: As `table.read` gives it.
    which: Checks that are acted upon.
    resamples: Draws for each interval.
    seed: Of the draws.
    place: The workdir of the study it is of, for what was measured beside scores; '' for none.

  Returns:
    {'answers', 'extra', 'found', 'changes', 'notes', 'about'}.

  Raises:
    UserError: the table allows no analysis at all.
  """
  found = checks.run(frame)
  mended, changes = mend.mend(frame, found, [name for name in which if name in _MENDING])
  trusted = 'base_copy' not in which
  study = findings.study(mended, found, resamples, seed, trust_bases=trusted)
  if not study.columns:
    how = f'evaluate more: {" ".join(changes)}' if changes else 'evaluate first'
    raise UserError('no benchmark has a score to analyse', 'the table', how)
  answers = findings.answers(study)
  if all(findings.is_skipped(part) for part in answers.values()):
    reasons = dict.fromkeys(part['skipped'] for part in answers.values())
    raise UserError('nothing can be said of this table', 'the table', '; '.join(reasons))
  answers |= measured.answers(study, place)
  trained = frame[~table.is_base(frame)]
  about = {
    'rows': len(frame),
    'trained_rows': len(trained),
    'models': table.models(frame),
    'strict': study.strict,
    'benchmarks': study.columns,
    'not_averaged': [
      c for c in table.benchmarks(frame) if c not in study.columns and frame[c].notna().any()
    ],
    'scale': '0-100',
    'missing': 'skipped; n says how many values a mean is of',
    'bootstrap': resamples,
    'seed': seed,
  }
  return {
    'answers': answers,
    'extra': findings.parts_of_gains(study),
    'found': found,
    'changes': changes,
    'notes': list(frame.attrs.get('notes', ())),
    'about': about,
  }


def first_findings(answers: Mapping[str, Any], most: int = 3) -> list[str]:
  """Sentences that a reader would ask for first, of one question at most two."""
  out: list[str] = []
  for key in _FIRST:
    if key in answers and not findings.is_skipped(answers[key]):
      out += plain.sentences(key, answers[key])[:2]
  return out[:most]


def write(directory: epath.PathLike, source: str, told: Mapping[str, Any]) -> None:
  """Writes page, JSON and CSV files of what `analyse` gave.

  Raises:
    UserError: they cannot be written.
  """
  place = epath.Path(directory)
  numbers = {
    **told['answers'],
    'about': told['about'],
    'faults': checks.as_json(told['found']),
    'changes': told['changes'],
    'notes': told['notes'],
    **told['extra'],
  }
  sections = {}
  for key, answer in told['answers'].items():
    drawn = pictures.draw(key, answer)
    sections[key] = (plain.sentences(key, answer), drawn)
    for figure in drawn:
      io.write_text_atomic(place / 'csv' / f'{figure.name}.csv', figure.csv())
  numbers['sentences'] = {key: said for key, (said, _) in sections.items()}
  io.write_json_atomic(place / 'findings.json', numbers)
  io.write_text_atomic(place / 'index.html', page(source, told, sections))


def page(
  source: str,
  told: Mapping[str, Any],
  sections: Mapping[str, tuple[Sequence[str], Sequence[figures.Figure]]],
) -> str:
  """The page as text; everything it shows is in it."""
  about = told['about']
  links = ''.join(f'<a href="#{key}">{html.escape(findings.TITLES[key])}</a>' for key in sections)
  parts = [
    f'<h1>What training did: {html.escape(source)}</h1>',
    f'<nav>{links}<a href="#checks">Checks of the table</a></nav>',
    f'<p>{words.count(about["rows"], "row")}, {words.count(len(about["models"]), "model")}, '
    f'{words.count(len(about["benchmarks"]), "benchmark")} in averages. '
    'Scores are on 0–100, gains in points against the untrained model; what is missing is '
    'skipped. Intervals are 95 %, over models (Student): they say how findings carry '
    'over to other models, not how much a run would differ if repeated.</p>',
    _checked(told),
  ]
  for key, (said, drawn) in sections.items():
    parts.append(f'<h2 id="{key}">{html.escape(findings.TITLES[key])}</h2>')
    parts.append('<ul>' + ''.join(f'<li>{html.escape(s)}</li>' for s in said) + '</ul>')
    shown = [f for f in drawn if not f.name.startswith('Q1_model_')]
    parts += [_figure(f) for f in shown]
    if rest := [f for f in drawn if f not in shown]:
      inner = ''.join(_figure(f) for f in rest)
      parts.append(f'<details><summary>Model by model ({len(rest)})</summary>{inner}</details>')
  parts.append(_extra(told['extra']))
  body = '\n'.join(parts)
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<title>Report on {html.escape(source)}</title><style>{_STYLE}</style></head>'
    f'<body>{body}<div id="tip"></div><script>{_SCRIPT}</script></body></html>\n'
  )


def _checked(told: Mapping[str, Any]) -> str:
  out = ['<h2 id="checks">Checks of the table</h2>']
  if not told['found']:
    out.append('<p>Nothing amiss was found.</p>')
  rows = ''.join(
    f'<tr class="{f.severity}"><td>{f.severity}</td><td>{f.check}</td>'
    f'<td>{html.escape(f.text)}</td></tr>'
    for f in told['found']
  )
  out.append(f'<table>{rows}</table>')
  about = told['about']
  strict = ', '.join(about['strict']) or 'none'
  out.append(f'<p>Models with sound bases (“strict”): {html.escape(strict)}.</p>')
  if about['not_averaged']:
    names = ', '.join(about['not_averaged'])
    out.append(f'<p>Scores that no average uses: {html.escape(names)}.</p>')
  said = [*told['notes'], *told['changes']]
  if said:
    out.append('<ul>' + ''.join(f'<li>{html.escape(s)}</li>' for s in said) + '</ul>')
  return ''.join(out)


def _figure(figure: figures.Figure) -> str:
  caption = html.escape(figure.caption)
  return (
    f'<figure><figcaption>{caption} <a href="csv/{figure.name}.csv">numbers</a></figcaption>'
    f'{figure.svg}</figure>'
  )


def _extra(extra: Mapping[str, Any]) -> str:
  """Format against ability, and contamination."""
  out = ['<h2>Format and ability; items seen in training</h2>']
  split, shared = extra['split'], extra['contaminated']
  if findings.is_skipped(split):
    out.append(f'<p>The split of gains is not said: {html.escape(split["skipped"])}.</p>')
  else:
    head = '<tr><th>data</th><th>benchmark</th><th>gain</th><th>format</th><th>ability</th></tr>'
    rows = ''.join(
      f'<tr><td>{html.escape(d)}</td><td>{html.escape(c)}</td>'
      + ''.join(f'<td>{_number(v[k])}</td>' for k in ('gain', 'format', 'ability'))
      + '</tr>'
      for d, cells in split.items()
      for c, v in cells.items()
    )
    out.append(f'<table>{head}{rows}</table>')
  if findings.is_skipped(shared):
    out.append(f'<p>Contamination is not said: {html.escape(shared["skipped"])}.</p>')
  elif not shared['pairs']:
    out.append('<p>No training data held items of a benchmark.</p>')
  for pair in shared.get('pairs', ()):
    held = words.count(pair['items'], 'item')
    text = f'{pair["data_name"]} holds {held} of {pair["benchmark"]}.'
    out.append(f'<p class="fault">{html.escape(text)}</p>')
  return ''.join(out)


def _number(value: float | None) -> str:
  return '–' if value is None else f'{value:+.1f}'


def _which(wanted: str) -> list[str]:
  """Names of checks: 'all', 'none', or a list.

  Raises:
    UserError: no such check.
  """
  if wanted in ('all', 'none'):
    return list(checks.CHECKS) if wanted == 'all' else []
  names = [name.strip() for name in wanted.split(',') if name.strip()]
  for name in names:
    if name not in checks.CHECKS:
      raise UserError(
        f'{name!r} is no check',
        'config.report.checks',
        f'use all, none or {", ".join(checks.CHECKS)}',
      )
  return names


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:24px auto;padding:0 20px;color:#111}
body{background:#fff;overflow-wrap:break-word}table{display:block;overflow-x:auto}
h2{margin-top:40px;border-bottom:1px solid #ccc}nav a{margin-right:14px;display:inline-block}
figure{margin:18px 0;overflow-x:auto}figcaption{margin-bottom:6px;color:#333}
svg{display:block;font:12px system-ui,sans-serif}svg .r{text-anchor:end}svg .c{text-anchor:middle}
svg .g{stroke:#ddd}svg .z{stroke:#555}svg .e{stroke:#111;stroke-width:1.5;fill:none}
svg .f{fill:#fafafa;stroke:#ccc}svg [data-t]:hover rect,svg circle:hover{stroke:#000}
table{border-collapse:collapse}td,th{border:1px solid #ddd;padding:4px 8px;text-align:left;
vertical-align:top}.fault td:first-child,p.fault{color:#b2182b;font-weight:600}
#tip{position:fixed;display:none;background:#222;color:#fff;padding:5px 9px;border-radius:4px;
font-size:13px;max-width:520px;pointer-events:none}
"""
_SCRIPT = """
const tip=document.getElementById('tip');
document.addEventListener('mousemove',e=>{
const t=e.target.closest('[data-t]');
if(!t){tip.style.display='none';return}
tip.textContent=t.dataset.t;tip.style.display='block';
const w=tip.offsetWidth,h=tip.offsetHeight;
tip.style.left=Math.min(e.clientX+14,innerWidth-w-8)+'px';
tip.style.top=Math.min(e.clientY+14,innerHeight-h-8)+'px'});
"""
