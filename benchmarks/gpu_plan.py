"""What the plan of today says of what `gpu.py` measured; needs no GPU, but jax's CUDA plugin.

  python -m benchmarks.gpu_plan --of=benchmarks/results/gpu

Rewrites the plan's columns of OF.json and OF.md, and nothing that was measured.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks import gpu, gpu_page, gpu_shapes, report
from sft_jax.parallel import topology


def replan(found: dict[str, Any]) -> None:
  """Puts the plan of each part in place of the one that is there.

  Args:
    found: What `gpu.measure` returns.
  """
  for part, sides in found['parts'].items():
    told = gpu_shapes.task(part, 'plan', False, f'{found["chip"]}:1')
    mine = [one for one in sides.get('ours', ()) if 'seconds' in one]
    if not mine:
      continue
    measured = mine[0]
    attempt = gpu_shapes.attempted(measured)
    gpu.say(part)
    found['plans'][part] = gpu_shapes.compiled_bytes(told, attempt)
    one = gpu_shapes.setting(told, attempt)
    for again in mine:
      again |= seconds(told, one, again, found['ceilings'])


def seconds(
  told: dict[str, Any], one: Any, measured: dict[str, Any], ceilings: dict[str, float]
) -> dict[str, Any]:
  """The plan's part of a report."""
  if told['kind'] == 'score':
    plan = gpu_shapes.planned(one, {}, scored=measured['computed-tokens'])
    return {'plan-seconds': plan['score']}
  if told['kind'] == 'decode':
    room = gpu_shapes.room(told)
    each = {
      size: gpu_shapes.planned(one, {}, written=int(size), room=room, slots=int(size))['decode']
      for size in measured['seconds']
    }
    return {'plan-seconds': each}
  plan = gpu_shapes.planned(one, ceilings)
  names = {'plan-seconds': 'train', 'least-seconds': 'least', 'counted-bytes': 'bytes'}
  return {name: plan[key] for name, key in names.items()}


def main() -> None:
  """Plans again and writes."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--of', required=True, help='OF.json and OF.md of benchmarks.gpu')
  args = parser.parse_args()
  path = Path(f'{args.of}.json')
  if not path.is_file():
    parser.error(f'--of: there is no {path}; python -m benchmarks.gpu --out={args.of} makes it')
  try:
    found = json.loads(path.read_text())
  except ValueError as e:
    parser.error(f'--of: {path} is no JSON: {e}')
  if not (isinstance(found, dict) and {'chip', 'parts', 'facts', 'ceilings'} <= found.keys()):
    parser.error(f'--of: {path} is no result of benchmarks.gpu')
  if found['chip'] not in topology.CHIPS or not found['parts'].keys() <= gpu_shapes.PARTS.keys():
    parser.error(f'--of: {path} was not measured on a GPU that plans know')
  if why := topology.unable(topology.parse(f'{found["chip"]}:1')):
    parser.error(f'nothing here compiles for it: {why}')
  replan(found)
  facts = gpu.about(argparse.Namespace(command=[]))
  command = shlex.join(['python', '-m', 'benchmarks.gpu_plan', *sys.argv[1:]])
  found['planned'] = facts | {'command': command}
  report.write(args.of, gpu_page.page(found), found)


if __name__ == '__main__':
  main()
