"""Where measurements put what they found: a page to read and all numbers as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def tell(title: str, about: str, found: Mapping[str, Any], out: str) -> None:
  """Prints and writes a page of one table: what was found, a line each.

  Args:
    title: Of the page.
    about: A script's docstring, whose first line says how it is called.
    found: What was measured.
    out: As in `write`.
  """
  lines = [f'# {title}', '', about.split('\n', 2)[2].strip(), '', '| | |', '|---|---|']
  lines += [f'| {key} | {value} |' for key, value in found.items()]
  print('\n'.join(lines))
  write(out, lines, found)


def write(out: str, lines: Sequence[str], numbers: Any) -> None:
  """Writes OUT.md and OUT.json; nothing where `out` is empty."""
  if out:
    Path(f'{out}.md').write_text('\n'.join([*lines, '']))
    Path(f'{out}.json').write_text(json.dumps(numbers, indent=1) + '\n')
