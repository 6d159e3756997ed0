"""Where measurements put what they found: a page to read and all numbers as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(out: str, lines: Sequence[str], numbers: Any) -> None:
  """Writes OUT.md and OUT.json; nothing where `out` is empty."""
  if out:
    Path(f'{out}.md').write_text('\n'.join([*lines, '']))
    Path(f'{out}.json').write_text(json.dumps(numbers, indent=1) + '\n')
