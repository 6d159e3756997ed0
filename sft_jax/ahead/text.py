"""A plan for chips that are not here, as text and as JSON."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from sft_jax.ahead import asked, compiled, estimate, evaluation, hours, plan
from sft_jax.ahead.setting import Setting
from sft_jax.parallel import hlo, roofline, topology
from sft_jax.utils import words

_KINDS = ('parameters', 'optimiser', 'gradients', 'logits', 'cache', 'activations')


def as_json(found: Sequence[plan.Planned], config: Any) -> dict[str, Any]:
  """Everything the plan found, in bytes, seconds and hours."""
  each = [evaluation.asked_of(one.part.setting, config) for one in found]
  programs = [_program(*pair, config) for pair in zip(found, each, strict=True)]
  kinds = list(hours.KINDS)
  if all(planned.best for planned in found):
    kinds += [f'{kind}_best' for kind in hours.KINDS]
  total = {kind: sum(p['chip_hours'][kind] for p in programs) for kind in kinds}
  chips = found[0].part.setting.topology.chips if found else 1
  spent = sum(total[kind] for kind in kinds[-len(hours.KINDS) :])
  out: dict[str, Any] = {
    'topology': config.plan.topology,
    'chips': chips,
    'programs': programs,
    'chip_hours': total,
    'days': spent / chips / 24,
    'not_counted': sorted({name for one in each for name in one.unknown}),
  }
  if config.plan.price:
    out['cost'] = spent * config.plan.price
  return out


def _program(planned: plan.Planned, each: asked.Asked, config: Any) -> dict[str, Any]:
  setting, part = planned.part.setting, planned.part
  needed = estimate.model_flops(setting)
  peak_flops = setting.topology.chips * setting.topology.chip.flops
  out = {
    'model': setting.spec.base,
    'method': setting.spec.method,
    'runs': part.runs,
    'cohorts': part.cohorts,
    'steps': part.steps,
    'setting': setting.overrides(),
    'compiled': planned.train is not None,
    'fits': planned.fits,
    'peak_bytes': planned.peak,
    'chip_bytes': setting.topology.usable,
    'bytes': planned.train.kinds if planned.train else planned.estimated,
    'estimated_bytes': sum(planned.estimated.values()),
    'model_flops_a_step': needed,
    'bound_s': _resources(planned.bound),
    'binding': planned.bound.binding,
    'tokens_per_s': setting.tokens / planned.bound.seconds,
    'mfu_bound': needed / peak_flops / planned.bound.seconds,
    'asked': {
      'snapshots': part.snapshots,
      'bases': part.bases,
      'read_tokens': each.read,
      'written_tokens': each.written,
      'held_bytes': evaluation.held_bytes(setting, config),
    },
    'chip_hours': hours.hours(planned, config, each),
    'evaluation': {name: _evaluation(one) for name, one in planned.evals.items()},
    'best': [
      {
        'setting': one.setting.overrides(),
        'topology': one.setting.topology.name,
        'copies': one.copies,
        'bytes': one.bytes,
        'compiled_bytes': planned.peaks.get(i),
        'tokens_per_s': one.rate,
      }
      for i, one in enumerate(planned.best)
    ],
  }
  if planned.train:
    out['collectives'] = hlo.sent_by_kind(planned.train.collectives)
    out['largest'] = [
      {'bytes': b.size, 'shape': b.shape, 'of': b.source} for b in planned.train.largest
    ]
    out['refused'] = planned.train.refused
  return out


def _resources(bound: roofline.Bound) -> dict[str, float]:
  each = {'compute': bound.compute, 'memory': bound.memory, 'network': bound.network}
  return each | ({'launch': bound.launch} if bound.in_turn else {})


def _evaluation(program: compiled.Program) -> dict[str, Any]:
  return {
    'peak_bytes': program.peak,
    'bytes': program.kinds,
    'refused': program.refused,
    'collectives': hlo.sent_by_kind(program.collectives),
  }


def lines(found: Sequence[plan.Planned], config: Any, command: Sequence[str] = ()) -> list[str]:
  """What is said of a plan; `command` runs the config as it is (see `launch_line`)."""
  told = as_json(found, config)
  whole = topology.parse(config.plan.topology)
  chip = whole.chip
  out = [
    f'{whole.name}: {whole.chips} x {chip.name}, {whole.usable / topology.GIB:.2f} GiB, '
    f'{chip.flops / 1e12:.0f} TFLOP/s bf16, {chip.bandwidth / 1e9:.0f} GB/s each ({chip.source})'
  ]
  for planned, one in zip(found, told['programs'], strict=True):
    out += ['', *_part_lines(planned, one, config, command)]
  return [*out, '', *_total_lines(found, told, config)]


def _total_lines(found: Sequence[plan.Planned], told: dict[str, Any], config: Any) -> list[str]:
  """Hours of everything, what they assume, and what they leave out."""
  spent, setting = told['chip_hours'], found[0].part.setting
  train, other = (hours.share(kind, setting, config) for kind in ('train', 'score'))
  percent = lambda share: f'{100 * share:.3g}%'
  at = percent(train) + ('' if train == other else f' (training) and {percent(other)}')
  out = [f'hours at {at} of what chips allow (config.plan.attained), an assumption:']
  words_of = {
    'train': '',
    'score': '  (prompts of evaluations)',
    'decode': '  (at most: every answer as long as it may be)',
  }
  for kind in hours.KINDS:
    value, best = spent[kind], spent.get(f'{kind}_best')
    if value:
      better = '' if best is None else f'; as found best {_short(best)}'
      out.append(f'  {kind:<8}{_short(value)} chip-hours{better}{words_of[kind]}')
  partly = any(program['steps'] == 0 for program in told['programs'])
  if not any(spent.values()):
    out.append('  unknown: set config.data.size, and config.plan.scored and written for evaluation')
  else:
    # No sum that somebody might take for all of it.
    lacks = ', and training that is not counted' if partly else ''
    out.append(f'  {_time(told["days"])} on {words.count(told["chips"], "chip")}{lacks}')
  if partly:
    out.append('  training is not counted in full: set config.data.size where it is not known')
  asked_of = {(p['asked']['read_tokens'], p['asked']['written_tokens']) for p in told['programs']}
  for read, written in sorted(asked_of):
    out.append(f'  a snapshot reads {read:,.0f} tokens and writes at most {written:,.0f}')
  if told['not_counted']:
    out.append(f'  not counted: {", ".join(told["not_counted"])}')
  if config.plan.reference:
    out.append(f'  for comparison: {config.plan.reference}')
  if 'cost' in told:
    out.append(f'  {told["cost"]:,.0f} at {config.plan.price:g} a chip-hour')
  return out


def _short(value: float) -> str:
  """With one decimal, or what tells a small number from none."""
  return f'{value:,.1f}' if value >= 0.1 else f'{value:.1g}'


def _time(days: float) -> str:
  for unit, share in (('days', 1), ('hours', 24), ('minutes', 24 * 60)):
    if days * share >= 1:
      return f'{days * share:,.1f} {unit}'
  return f'{_short(days * 24 * 3600)} seconds'


def _part_lines(
  planned: plan.Planned, one: dict[str, Any], config: Any, command: Sequence[str]
) -> list[str]:
  setting = planned.part.setting
  data, fsdp, tensor = setting.mesh
  rows = setting.micros * setting.rows
  out = [
    f'{setting.spec.base}, {setting.spec.method}, {words.count(setting.runs, "run")} at '
    f'once: mesh {data} x {fsdp} x {tensor}, {setting.micros} x {setting.rows} rows of '
    f'{setting.length} tokens, remat {setting.remat}'
  ]
  if rows > setting.needed:
    out.append(f'  {rows - setting.needed} of {rows} rows are padding: the batch has no more')
  how = 'compiled' if one['compiled'] else 'counted, not compiled'
  fits = 'fits' if one['fits'] else 'does not fit'
  out.append(f'  {_gib(one["peak_bytes"])} on each chip ({how}): {fits}')
  kinds = one['bytes']
  parts = [f'{kind} {_gib(kinds[kind])}' for kind in _KINDS if kind in kinds]
  out.append(f'  {", ".join(parts)}')
  if one.get('collectives'):
    sent = ', '.join(f'{kind} {_gib(size)}' for kind, size in one['collectives'].items())
    out.append(f'  sent by each chip a step: {sent}')
  how = 'kernels one after another' if planned.bound.in_turn else 'roofline'
  times = ', '.join(f'{name} {_seconds(value)}' for name, value in one['bound_s'].items())
  out.append(
    f'  {how} of a step: {times}; {one["binding"]} binds, {one["tokens_per_s"]:,.0f} tokens/s, '
    f'at most {one["mfu_bound"]:.0%} MFU'
  )
  for name, program in one['evaluation'].items():
    out.append(
      f'  {name}: {_gib(program["peak_bytes"])} on each chip {program["refused"]}'.rstrip()
    )
  for best in one['best'][:1]:
    beside = f', {best["copies"]} side by side on {best["topology"]} each' * (best['copies'] > 1)
    size = best['compiled_bytes']
    known = (
      f'{_gib(size)} compiled' if size and math.isfinite(size) else f'{_gib(best["bytes"])} counted'
    )
    out.append(f'  best found{beside}: {best["tokens_per_s"]:,.0f} tokens/s, {known}')
    out.append(f'    {launch_line(planned.best[0].setting, config, command)}')
  return out


def launch_line(setting: Setting, config: Any, command: Sequence[str]) -> str:
  """What runs the setting, for a shell: a command, and the flags by which the setting differs.

  Args:
    setting: What to run.
    config: What `command` gives.
    command: Words that run the config as it is; none gives the flags alone.
  """
  changed = {}
  for key, value in setting.overrides().items():
    section, name = key.split('.')
    if config[section][name] != value:
      changed[f'--config.{key}'] = value
  # What is given again would count all the same, and only confuse.
  again = lambda word: '=' in word and word.partition('=')[0] in changed
  kept = [word for word in command if not again(word)]
  line = shlex.join([*kept, *(f'{name}={value}' for name, value in changed.items())])
  if command and setting.topology.chip.platform == 'cuda':
    line = f'XLA_PYTHON_CLIENT_MEM_FRACTION={topology.GPU_SHARE} {line}'
  return line


def _gib(size: float) -> str:
  return f'{size / topology.GIB:.2f} GiB'


def _seconds(value: float) -> str:
  return f'{value:.2f} s' if value >= 1 else f'{1000 * value:.1f} ms'
