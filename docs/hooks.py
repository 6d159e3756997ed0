"""Pages of the site that are made from the code each time it is built.

Nothing of them is kept in the repository, so none can be out of date. Not for prose.
"""

import ast
import html
import io
import pathlib
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]


def on_files(files: Any, config: Any) -> Any:
  """Adds the pages (https://www.mkdocs.org/dev-guide/plugins/#on_files)."""
  from mkdocs.structure.files import File

  # mkdocs is a program of its own, which finds neither `configs` nor a checkout.
  sys.path.insert(0, str(ROOT))
  for path, make in PAGES.items():
    files.append(File.generated(config, path, content=make()))
  return files


def config_page() -> str:
  """Every key of `configs/base.py` with its default, its values and its comment."""
  from configs import base
  from sft_jax import spec

  config = base.get_config()
  factors = {factor.key: factor for factor in spec.FACTORS.values()}
  out = [
    '# Config keys',
    '',
    'Made from `configs/base.py`, where every key is declared once. Any of them is set with '
    '`--config.KEY=VALUE`; a misspelt one is refused with the nearest there is. A **factor** can '
    'change the trained weights: it is part of a run’s identity and has a column in '
    '[the rows](rows.md). Everything else is a setting.',
    '',
  ]
  section = None
  for key, comment in config_comments():
    value = _look_up(config, key)
    if hasattr(value, 'items'):  # what is said of a group of keys
      out += ['', f'## {key}', '', _text(comment), '']
      section = key
      continue
    group = key.split('.')[0] if '.' in key else ''
    if group != section:
      out += ['', f'## {group or "the rest"}', '']
      section = group
    if out[-1] == '':
      out += ['| key | default | values | what |', '|---|---|---|---|']
    told = _text(re.sub(r';? or$', '', comment))
    if key in factors:
      factor = factors[key]
      within = 'may differ' if factor.kind == 'run' else 'is the same'
      told += f' **Factor**, column `{factor.column}`; {within} within a cohort.'
    out.append(f'| `{key}` | `{value!r}` | {_values(key, value)} | {told.strip()} |')
  return '\n'.join(out) + '\n'


def config_comments() -> Iterator[tuple[str, str]]:
  """(dotted key, its comment) in the order of the file; of a group too, where one is said."""
  text = (ROOT / 'configs' / 'base.py').read_text()
  comments = {
    token.start[0]: token.string.lstrip('# ').strip()
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type == tokenize.COMMENT
  }
  lines = text.splitlines()
  (function,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
  for node in function.body:
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)):
      continue
    first, last = node.lineno, node.end_lineno or node.lineno
    above: list[str] = []
    line = first - 1
    while lines[line - 1].lstrip().startswith('#'):
      above.insert(0, comments[line])
      line -= 1
    said = [*above, *(comments[n] for n in range(first, last + 1) if n in comments)]
    key = ast.unparse(node.targets[0]).removeprefix('config.')
    group = isinstance(node.value, ast.Call) and ast.unparse(node.value) == 'ConfigDict()'
    if not group or said:
      yield key, ' '.join(said)


def _look_up(config: Any, key: str) -> Any:
  for part in key.split('.'):
    config = config[part]
  return config


def _values(key: str, value: Any) -> str:
  """Which values a key takes, where `spec.py` says so."""
  from sft_jax import spec

  factor = {factor.key: factor for factor in spec.FACTORS.values()}.get(key)
  allowed = spec.SETTINGS.get(key)
  choices = factor.choices if factor else allowed if isinstance(allowed, tuple) else ()
  if choices:
    return ', '.join(f'`{choice}`' for choice in choices)
  low = factor.low if factor else allowed[0] if isinstance(allowed, range) else allowed
  if isinstance(low, (int, float)):
    return f'{"above" if factor and factor.positive else "at least"} {low:g}'
  return {bool: '`True`, `False`', str: 'text', int: 'whole number', float: 'number'}[type(value)]


def rows_page() -> str:
  """Columns of a row: the released ones, the factors', and what further scores are called."""
  from sft_jax import results, spec

  out = [
    '# Columns of a row',
    '',
    _dedent("""
      A row is one snapshot of one run; the first row of a run is the untrained base (`epoch` 0,
      `data_name` `pretrain`, no `lora`). `rows.jsonl` of a run and `results.csv` and
      `results.parquet` of a study hold the same columns, a superset of those of the table that was
      released with the paper, so that both concatenate. Rows hold nothing that depends on the
      clock.
    """),
    '',
    '## What identifies a row',
    '',
    f'{", ".join(f"`{c}`" for c in results.ROW_KEY)} are unique within a study. The model and its '
    f'training are named by {", ".join(f"`{c}`" for c in results.IDENTITY)}.',
    '',
    '## Factors',
    '',
    'Made from `FACTORS` in `sft_jax/spec.py`. Factors of the adapter are empty in full runs.',
    '',
    '| column | config key | values | within a cohort |',
    '|---|---|---|---|',
  ]
  for factor in spec.FACTORS.values():
    within = 'may differ' if factor.kind == 'run' else 'the same'
    values = _values(factor.key, '')
    out.append(f'| `{factor.column}` | `{factor.key}` | {values} | {within} |')
  out += [
    '',
    '`lora` is true, false, or empty in the row of a base. `data_size` counts the records trained '
    'on.',
    '',
    '## Released columns',
    '',
    'A column with one of these names is filled only by the published measure: same data, all '
    'items, same shots, generation under plain prompts, the published judge.',
    '',
    ', '.join(f'`{c}`' for c in results.RELEASED_COLUMNS),
    '',
    '## Other scores',
    '',
    'Whatever departs from the published measure carries a name that says how:',
    '',
    '| name | what |',
    '|---|---|',
    *(f'| `{name}` | {_text(what)} |' for name, what in _SCORES.items()),
    '',
    f'The best snapshot of a run is the one with the lowest `{results.BEST_BY[0]}` (else '
    f'`{results.BEST_BY[1]}`).',
  ]
  return '\n'.join(out) + '\n'


_SCORES = {
  'NAME-Kshot-ll': 'log-likelihood of given answers, as lm-eval scores them',
  'NAME-Kshot-gen-chat': 'generation under the model’s chat template (or -study)',
  'COLUMN-n200': 'a subset of 200 items; the same items for all models',
  'mtbench-total@MODEL': 'graded by another judge than the published one',
  'COLUMN-stderr, -low, -high, -n': 'standard error, 95 % interval, items',
  'COLUMN-extracted': 'share of outputs in which an answer was found',
  'COLUMN-contaminated-n, -clean': 'items found in the training data, and the score without them',
  'ppl-train-…': 'perplexity of the training data under the untrained base',
  'ppl-heldout-…': 'perplexity of held-out data under the snapshot; -response: of answers alone',
}


def supported_page() -> str:
  """Families, data sets, formats and benchmarks."""
  from sft_jax.data import formats, named
  from sft_jax.evals import benchmarks
  from sft_jax.models import families

  out = [
    '# What is supported',
    '',
    'Made from the tables in the code. Each row is held to its promise by a test.',
    '',
    '## Model families',
    '',
    'Told by `architectures` in the checkpoint’s `config.json`, never by a model’s name. A switch '
    'that is not implemented is refused by its name. Checked against transformers and PEFT.',
    '',
    '| architecture | config keys it reads besides the usual |',
    '|---|---|',
  ]
  for name, family in families.FAMILIES.items():
    out.append(f'| `{name}` | {", ".join(f"`{key}`" for key in sorted(family.defaults))} |')
  out += [
    '',
    'Weights come from safetensors (one file or many) and, for Llama and Mistral, from GGUF files; '
    'never from pickles.',
    '',
    '## Named data sets',
    '',
    'For `config.data.name`. Licences are as published with the data.',
    '',
    '| name | records | licence | source | what |',
    '|---|---|---|---|---|',
  ]
  for name, row in named.DATASETS.items():
    count = f'{row["records"]:,}' if 'records' in row else ''
    cells = (f'`{name}`', count, row['licence'], f'`{row["path"]}`', row['note'])
    out.append('| ' + ' | '.join(_text(cell) for cell in cells) + ' |')
  out += [
    '',
    '## Record shapes',
    '',
    'Of files given by `config.data.path`; found by themselves, or named in `config.data.format`.',
    '',
    '| format | fields |',
    '|---|---|',
    *(f'| `{name}` | {_text(shape)} |' for name, (_, shape, _) in formats.FORMATS.items()),
    '',
    '## Benchmarks',
    '',
    'For `config.eval.tasks`, as `NAME[:Kshot][:READING]`; what is listed first is the default.',
    '',
    '| name | readings | shots | items | published columns | licence of the data |',
    '|---|---|---|---|---|---|',
  ]
  for name, one in benchmarks.BENCHMARKS.items():
    released = [c for reading in one.readings.values() for c in reading.released.values()]
    cells = (
      f'`{name}`',
      ', '.join(one.readings),
      ', '.join(map(str, one.shots)),
      f'{one.size:,}',
      ', '.join(f'`{c}`' for c in released),
      one.licence,
    )
    out.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(out) + '\n'


def messages_page() -> str:
  """Every place in the code that refuses something, by room."""
  out = [
    '# All messages',
    '',
    'Made from the code: every sentence with which sft_jax refuses bad input (exit status 2), as '
    '`error: WHAT (WHERE) — HOW`; … stands for what depends on your input. The ones met most often '
    'are explained under [Errors and remedies](errors.md).',
  ]
  heading = ''
  for module, what, where, how in error_sites():
    room = module.split('.')[0]
    if room != heading:
      out += ['', f'## {room}', '', '| what | where | how |', '|---|---|---|']
      heading = room
    out.append(f'| {_text(what)} | {_text(where)} | {_text(how)} |')
  return '\n'.join(out) + '\n'


def error_sites() -> Iterator[tuple[str, str, str, str]]:
  """(module, what, where, how) of every error that is raised with a text of its own."""
  package = ROOT / 'sft_jax'
  for path in sorted(package.rglob('*.py')):
    module = '.'.join(path.relative_to(package).with_suffix('').parts)
    seen = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, ast.Call) or ast.unparse(node.func).split('.')[-1] not in _ERRORS:
        continue
      given = dict(zip(('what', 'where', 'how'), map(_said, node.args), strict=False))
      given |= {word.arg: _said(word.value) for word in node.keywords if word.arg}
      parts = tuple(given.get(name, '') for name in ('what', 'where', 'how'))
      if parts[0].strip('… ') and parts not in seen:
        seen.add(parts)
        yield module, *parts


_ERRORS = ('UserError', 'OutOfMemory', 'Diverged')


def _said(node: ast.expr) -> str:
  """A text in the code, with … for what is put in."""
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return node.value
  if isinstance(node, ast.JoinedStr):
    return ''.join(_said(part) for part in node.values)
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    return _said(node.left) + _said(node.right)
  return '…'


def _dedent(text: str) -> str:
  return ' '.join(textwrap.dedent(text).split())


def _text(text: str) -> str:
  """Plain text in a cell of a table: neither markup nor a new cell. Code in backticks stays."""
  return (
    re.sub(r'([|*_\[\]])', r'\\\1', html.escape(text, quote=False)) if text[:1] != '`' else text
  )


PAGES: dict[str, Callable[[], str]] = {
  'reference/config.md': config_page,
  'reference/rows.md': rows_page,
  'reference/supported.md': supported_page,
  'reference/messages.md': messages_page,
}
