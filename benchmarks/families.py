"""Prints how far each family is from transformers and PEFT: `python -m benchmarks.families`.

Tiny random models with every switch active, float32 unless the column says otherwise. Distances
are the largest difference of logits over the largest logit; `bf16 ratio` is our root-mean-square
distance to float32 over transformers' own. `tests/models/test_families.py` asserts the same.
"""

import argparse
import importlib.metadata
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from tests import zoo
from tests.models.conftest import tiny_tokenizer

PACKAGES = ('jax', 'transformers', 'torch', 'peft')
COLUMNS = ('logits', 'packed', 'cache', 'export', 'PEFT', 'bf16 ratio', 'int8', 'int4')


def row(name: str, scratch: Path) -> list[float]:
  """The figures of one variant."""
  specimen = zoo.build(name, scratch / 'model', tiny_tokenizer())
  return [
    zoo.distance(specimen.ours(zoo.texts()), specimen.theirs(zoo.texts())),
    zoo.packed_distance(specimen),
    zoo.cached_distance(specimen),
    zoo.export_distance(specimen, scratch / 'export'),
    zoo.peft_distance(specimen, scratch / 'peft'),
    zoo.bfloat16_ratio(specimen),
    zoo.quantized_distance(specimen, 'int8'),
    zoo.quantized_distance(specimen, 'int4'),
  ]


def main() -> None:
  """Prints a Markdown table of the variants named, or of all; a line as soon as it is known."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('variants', nargs='*', help='all where none is named')
  parser.add_argument('--out', default='', help='writes OUT.md and OUT.json')
  args = parser.parse_args()
  versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in PACKAGES)
  command = ' '.join(['python -m benchmarks.families', *sys.argv[1:]])
  lines = ['# Every family beside transformers and PEFT', '', f'`{command}`, {versions}.', '']
  lines += ['| variant | ' + ' | '.join(COLUMNS) + ' |', '|---|' + '---|' * len(COLUMNS)]
  print('\n'.join(lines))
  numbers = {}
  for name in args.variants or zoo.VARIANTS:
    with tempfile.TemporaryDirectory() as scratch:
      figures = row(name, Path(scratch))
    named = zip(COLUMNS, figures, strict=True)
    cells = [f'{x:.2f}' if column == 'bf16 ratio' else f'{x:.1e}' for column, x in named]
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    print(lines[-1], flush=True)
    numbers[name] = dict(zip(COLUMNS, figures, strict=True))
  report.write(args.out, lines, numbers)


if __name__ == '__main__':
  main()
