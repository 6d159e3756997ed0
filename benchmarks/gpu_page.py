"""What `gpu.py` makes of its measurements: medians, bars and the page. Measures nothing."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]
Cells = Sequence[str]

GIB = 2**30
# What is held to a bar: how `numbers` calls it, and at least how much it is.
BARS = (
  ('full SFT: causal MFU of the nominal peak', 'full-mfu', 0.5),
  ('full SFT beside torch', 'full-ratio', 1.2),
  ('LoRA over full SFT, same layers', 'lora-over-full', 1.3),
  ('cohort of 16 over sixteen in sequence', 'cohort-over-sequence', 3.0),
  ('decode at batch 128: share of the copy-bandwidth roofline', 'decode-share-128', 0.6),
  ('decode at batch 128 beside `generate`', 'decode-ratio-128', 4.0),
)
# At most how far the plan is off, in each of so many programs at least.
PLAN_BARS = (('plan: peak memory', 'bytes', 0.05), ('plan: step time', 'seconds', 0.2))
PROGRAMS = 6
# Kernels of a program on the page; the file has more.
KERNELS = 8
_WORDS = {True: 'met', False: 'MISSED'}


def median(found: Found, part: str, side: str, name: str) -> float | None:
  """Of the rounds' medians of what was timed, in seconds; None where nothing was."""
  rounds = [
    statistics.median(one['seconds'][name])
    for one in found['parts'].get(part, {}).get(side, ())
    if name in one.get('seconds', {})
  ]
  return statistics.median(rounds) if rounds else None


def first(found: Found, part: str, side: str) -> Mapping[str, Any]:
  """The first report of a side that measured anything, or {}."""
  reports = found['parts'].get(part, {}).get(side, ())
  return next((one for one in reports if 'seconds' in one), {})


def _rate(found: Found, part: str, side: str, name: str, unit: str) -> float | None:
  """What a side did of `unit` in a second."""
  seconds = median(found, part, side, name)
  return first(found, part, side)[unit] / seconds if seconds else None


def numbers(found: Found) -> dict[str, float]:
  """What follows from the measurements, as far as they were made."""
  out: dict[str, float | None] = {}
  chip = found['ceilings']
  for part in ('full', 'lora-cut', 'lora', 'lora-int8', 'score'):
    name, unit = ('pass', 'texts') if part == 'score' else ('step', 'tokens')
    ours, peer = (_rate(found, part, side, name, unit) for side in ('ours', 'peer'))
    out |= {f'{part}-ours-rate': ours, f'{part}-ratio': _over(ours, peer)}
    report = first(found, part, 'ours')
    if ours and chip.get('nominal') and 'flops-per-token' in report:
      did = ours * report['flops-per-token']
      out[f'{part}-mfu'] = did / chip['nominal']
      out[f'{part}-whole-rate'] = did / report['whole-flops-per-token']
  out['lora-over-full'] = _over(out['lora-cut-ours-rate'], out['full-ours-rate'])
  together = _rate(found, 'cohort', 'ours', 'step', 'tokens')
  alone = _rate(found, 'cohort', 'ours', 'sequence', 'tokens')
  out['cohort-over-sequence'] = _over(together, alone)
  out['cohort-ratio'] = _over(together, _rate(found, 'cohort', 'peer', 'step', 'tokens'))
  read = first(found, 'decode', 'ours').get('read-bytes', {})
  for size in read:
    ours, peer = (median(found, 'decode', side, size) for side in ('ours', 'peer'))
    out[f'decode-share-{size}'] = _over(read[size] / chip['copy'], ours)
    out[f'decode-ratio-{size}'] = _over(peer, ours)
  return {name: value for name, value in out.items() if value is not None}


def _over(one: float | None, other: float | None) -> float | None:
  return one / other if one and other else None


def predictions(found: Found) -> list[dict[str, Any]]:
  """A row for each program: {part, bytes, seconds: (planned, measured)}; none of a chip that the
  plan does not know."""
  rows: list[dict[str, Any]] = []
  if not found['chip']:
    return rows
  for part, sides in found['parts'].items():
    report = first(found, part, 'ours')
    if not sides or 'plan-seconds' not in report:
      continue
    if part == 'decode':
      size = max(report['seconds'], key=int)
      name, told, peak = size, report['plan-seconds'][size], report['peak-bytes'][size]
    else:
      name = 'pass' if part == 'score' else 'step'
      told, peak = report['plan-seconds'], report['peak-bytes']
    compiled = found['plans'].get(part, {}).get('bytes')
    counted = report.get('counted-bytes')
    row = {'part': part, 'how': 'compiled' if compiled else 'counted'}
    row['bytes'] = (compiled or counted, peak)
    row['seconds'] = (told, median(found, part, 'ours', name))
    rows.append(row | {'least': report.get('least-seconds'), 'here': report.get('compiled-bytes')})
  return rows


def off(pair: Sequence[float | None]) -> float | None:
  """By what share of the measurement a prediction is off."""
  planned, measured = pair
  return planned / measured - 1 if planned and measured else None


def judge(found: Found) -> list[tuple[str, str, str, str]]:
  """(what, value, bar, met | MISSED | not judged) of every bar; nothing without a GPU."""
  if not found['gpu']:
    return []
  known, out = numbers(found), []
  for what, name, bar in BARS:
    if name in known:
      out.append((what, f'{known[name]:.2f}', f'≥ {bar:g}', _WORDS[known[name] >= bar]))
    else:
      out.append((what, '', f'≥ {bar:g}', 'not judged'))
  for what, name, bar in PLAN_BARS:
    errors = [error for row in predictions(found) if (error := off(row[name])) is not None]
    limit = f'within {bar:.0%} in at least {PROGRAMS}'
    if not errors:
      out.append((what, '', limit, 'not judged'))
      continue
    within = sum(abs(error) <= bar for error in errors)
    value = f'{within} of {len(errors)} within; the worst {max(errors, key=abs):+.0%}'
    # One that is off misses the bar, however few there are.
    enough = 'not judged' if within == len(errors) < PROGRAMS else _WORDS[within == len(errors)]
    out.append((what, value, limit, enough))
  return out


def page(found: Found) -> list[str]:
  """The result as Markdown."""
  facts, gpu = found['facts'], found['gpu']
  title = f'# On one {found["ceilings"]["device"]}' if gpu else '# Not measured on a GPU'
  lines = [
    title,
    '',
    f'`{facts["command"]}`',
    '',
    f'{facts["date"]}, {facts["machine"]}; {_versions(facts)}.',
  ]
  if gpu:
    lines += ['', *_figures(found)]
  else:
    lines += ['', 'Toy sizes on a CPU: what ran, ran. No figure is claimed and no bar judged.']
    ran = [
      (part, side, 'ran' if 'seconds' in reports[0] else reports[0]['failed'])
      for part, sides in found['parts'].items()
      for side, reports in sides.items()
    ]
    lines += ['', *_table(('part', 'side', ''), ran)]
  if found['left-out']:
    lines += ['', 'Left out:', *(f'- {name}: {why}' for name, why in found['left-out'].items())]
  return lines


def _figures(found: Found) -> list[str]:
  chip, known = found['ceilings'], numbers(found)
  share = f' ({chip["matmul"] / chip["nominal"]:.0%} of nominal)' if chip.get('nominal') else ''
  lines = [
    f'Ceilings: products {chip["matmul"] / 1e12:.0f} TFLOP/s{share}, copies '
    f'{chip["copy"] / 1e9:,.0f} GB/s read and written. Medians of rounds.',
    '',
    *_table(('bar', 'value', '', ''), judge(found)),
    '',
    *(f'- `{part}`: {about}.' for part, about in found['about'].items() if part in found['parts']),
    '',
    *_table(('part', 'side', 'rounds', 'rate', 'peak GiB', 'how'), _sides(found, known)),
  ]
  if 'full-whole-rate' in known:
    lines += [
      '',
      f'At the MFU of its 8 layers ({known["full-mfu"]:.1%}) the whole 8B would learn '
      f'{known["full-whole-rate"]:,.0f} tokens/s (reckoned; half of the peak, with documents of '
      f'these lengths, is {known["full-whole-rate"] / known["full-mfu"] / 2:,.0f}).',
    ]
  rows = [
    (
      row['part'],
      row['how'],
      *(_gib(size) for size in (row['here'], *row['bytes'])),
      _signed(off(row['bytes'])),
      *(_seconds(value) for value in (row['least'], *row['seconds'])),
      _signed(off(row['seconds'])),
    )
    for row in predictions(found)
  ]
  head = ('program', 'plan', 'compiled here GiB', 'plan GiB', 'peak GiB', 'off')
  head += ('least s', 'plan s', 'measured s', 'off')
  told = 'Plan: bytes as compiled without the chip (else as counted), time as the least it takes '
  told += 'over `config.plan.attained`. Least: the roofline on the ceilings measured here.'
  if again := found.get('planned'):
    told += f' Planned later: `{again["command"]}`, {again["date"]}; {_versions(again)}.'
  return [*lines, '', told, '', *_table(head, rows), *_kernels(found)]


def _kernels(found: Found) -> list[str]:
  """Where the time of our programs went, if that was asked for."""
  rows: list[Cells] = []
  for part in found['parts']:
    for name, spent in first(found, part, 'ours').get('kernels', {}).items():
      whole = sum(spent.values())
      rows += [(part, name, kernel, f'{s / whole:.1%}') for kernel, s in _longest(spent)]
      rows.append((part, name, 'idle', f'{spent.get("idle", 0.0) / whole:.1%}'))
  head = ('part', 'timed', f'the {KERNELS} longest kernels of one call', 'of its time, profiled')
  return ['', *_table(head, rows)] if rows else []


def _longest(spent: Mapping[str, float]) -> list[tuple[str, float]]:
  named = [(name, seconds) for name, seconds in spent.items() if name not in ('others', 'idle')]
  return named[:KERNELS]


def _sides(found: Found, known: Mapping[str, float]) -> list[Cells]:
  """A row for each side of each part, and for each batch size of decoding."""
  rows: list[Cells] = []
  for part, sides in found['parts'].items():
    for side, reports in sides.items():
      report = first(found, part, side)
      if 'failed' in reports[-1]:
        rows.append((part, side, str(len(reports)), '', '', f'FAILED: {reports[-1]["failed"]}'))
      for name, _ in report.get('seconds', {}).items():
        seconds = median(found, part, side, name)
        assert seconds is not None
        peak = report['peak-bytes']
        rate, how = _told(known, part, side, name, report, seconds)
        size = peak[name] if isinstance(peak, dict) else peak
        rows.append((part, side, str(len(reports)), rate, _gib(size), how))
  return rows


def _told(
  known: Mapping[str, float], part: str, side: str, name: str, report: Found, seconds: float
) -> tuple[str, str]:
  """Rate and remarks of one measurement."""
  if part == 'decode':
    how = [f'batch {name}, {1000 * seconds:.2f} ms a step']
    if side == 'ours':
      how += [f'{known[f"decode-share-{name}"]:.0%} of the copy roofline']
      if f'decode-ratio-{name}' in known:
        how += [f'{known[f"decode-ratio-{name}"]:.1f} × the peer']
    return f'{int(name) / seconds:,.0f} tokens/s', ', '.join(how)
  if part == 'score':
    how = (
      [f'{known["score-ratio"]:.1f} × the peer']
      if side == 'ours' and 'score-ratio' in known
      else []
    )
    if side == 'ours':
      how.append(f'{report["computed-tokens"]:,} of {report["given-tokens"]:,} tokens computed')
    return f'{report["texts"] / seconds:,.1f} texts/s', ', '.join(how)
  if side == 'peer':
    again = 'recomputed' if report['recomputation'] else 'kept'
    return (
      f'{report["tokens"] / seconds:,.0f} tokens/s',
      f'rows {report["rows"]}, activations {again}',
    )
  how = ['one run after another'] if name == 'sequence' else []
  if name == 'step':
    how.append(
      f'rows {report["rows"]}, {report["attention"]} attention, remat {report["remat"]}, '
      f'loss_chunk {report["chunk"]}'
    )
    if f'{part}-mfu' in known:
      how.append(f'MFU {known[f"{part}-mfu"]:.1%}')
    if f'{part}-ratio' in known:
      how.append(f'{known[f"{part}-ratio"]:.2f} × the peer')
    how += [f'not {note}' for note in report['notes']]
  return f'{report["tokens"] / seconds:,.0f} tokens/s', ', '.join(how)


def _versions(facts: Mapping[str, Any]) -> str:
  return ', '.join(f'{name} {version}' for name, version in facts['versions'].items())


def _table(head: Cells, rows: Sequence[Cells]) -> list[str]:
  lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
  return lines + ['| ' + ' | '.join(cell.replace('|', '/') for cell in row) + ' |' for row in rows]


def _gib(size: float | None) -> str:
  return f'{size / GIB:.2f}' if size else ''


def _seconds(value: float | None) -> str:
  return f'{value:.4g}' if value else ''


def _signed(share: float | None) -> str:
  return '' if share is None else f'{share:+.1%}'
