"""Figures as inline SVG, each with its numbers as CSV. Elements with `data-t` tell it when hovered.

Not for what is drawn: that is `report.py`. Nothing is fetched; a figure is plain text.
"""

import csv
import dataclasses
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

_ROW, _LABEL, _TOP = 24, 190, 124
_COLOURS = ('#3366aa', '#cc5533', '#449966', '#8855aa', '#aa8822', '#555555', '#22aabb', '#bb3377')

_DASHES = ('', ' stroke-dasharray="7 4"', ' stroke-dasharray="2 3"')


@dataclasses.dataclass(frozen=True)
class Figure:
  """A picture and its numbers.

  Attributes:
    name: File name of the CSV, without its ending.
    caption: What is seen, with units and n.
    svg: The picture.
    table: Header and rows of the CSV.
  """

  name: str
  caption: str
  svg: str
  table: tuple[Sequence[str], Sequence[Sequence[Any]]]

  def csv(self) -> str:
    """The numbers; what is unknown is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(self.table[0])
    for row in self.table[1]:
      writer.writerow(['' if not _known(v) else v for v in row])
    return out.getvalue()


def heatmap(
  name: str,
  caption: str,
  rows: Sequence[str],
  columns: Sequence[str],
  values: Sequence[Sequence[float | None]],
  *,
  limit: float,
  digits: int = 1,
  more: Mapping[str, Sequence[Sequence[Any]]] | None = None,
) -> Figure:
  """Cells coloured blue below zero and red above, with their numbers.

  Args:
    name: See `Figure`.
    caption: See `Figure`.
    rows: Labels.
    columns: Labels.
    values: [rows][columns], None where unknown.
    limit: Value of full colour.
    digits: Shown after the point.
    more: Further tables of that shape, told on hovering and written to the CSV: {name: cells}.
  """
  more = more or {}
  # Many columns are narrower, so that the page holds them.
  wide = min(62, max(44, 880 // max(len(columns), 1)))
  parts = []
  for j, label in enumerate(columns):
    x = _LABEL + j * wide + wide / 2
    parts.append(
      f'<text transform="translate({x:.0f},{_TOP - 8}) rotate(-38)">{html.escape(label)}</text>'
    )
  lines: list[list[Any]] = []
  for i, label in enumerate(rows):
    y = _TOP + i * _ROW
    parts.append(f'<text x="{_LABEL - 8}" y="{y + 16}" class="r">{html.escape(label)}</text>')
    for j, column in enumerate(columns):
      value = values[i][j]
      extra = {key: cells[i][j] for key, cells in more.items()}
      lines.append([label, column, value, *extra.values()])
      said = '; '.join(f'{k} {_show(v, 2)}' for k, v in extra.items())
      tip = f'{label} · {column}: {_show(value, 2)}' + (f' ({said})' if said else '')
      fill, ink = _colour(value, limit)
      x = _LABEL + j * wide
      parts.append(
        f'<g data-t="{html.escape(tip)}"><rect x="{x}" y="{y}" width="{wide - 1}" '
        f'height="{_ROW - 1}" fill="{fill}"/><text x="{x + wide / 2:.0f}" y="{y + 16}" class="c" '
        f'fill="{ink}">{_show(value, digits)}</text></g>'
      )
  size = (_LABEL + len(columns) * wide + 130, _TOP + len(rows) * _ROW + 8)
  return Figure(name, caption, _svg(parts, size), (('row', 'column', 'value', *more), lines))


def bars(
  name: str, caption: str, items: Sequence[tuple[str, Mapping[str, Any]]], unit: str = 'points'
) -> Figure:
  """Horizontal bars from zero, with intervals where `low` and `high` are known.

  Args:
    name: See `Figure`.
    caption: See `Figure`.
    items: (label, {'mean', perhaps 'low', 'high', and what else hovering tells}).
    unit: Of the axis.
  """
  found = [item.get(k) for _, item in items for k in ('mean', 'low', 'high')]
  ends = [float(v) for v in found if v is not None and _known(v)]
  low, high = min([0.0, *ends]), max([0.0, *ends])
  ticks = _ticks(low, high)
  low, high = min(low, ticks[0]), max(high, ticks[-1])
  width, top = 560, 12
  at = lambda v: _LABEL + (v - low) / (high - low) * width
  bottom = top + len(items) * _ROW
  parts = [_tick(at(v), top, bottom, v) for v in ticks]
  for i, (label, item) in enumerate(items):
    y, mean = top + i * _ROW, item.get('mean')
    tip = f'{label}: ' + '; '.join(f'{k} {_show(v, 3)}' for k, v in item.items())
    piece = f'<text x="{_LABEL - 8}" y="{y + 16}" class="r">{html.escape(label)}</text>'
    if mean is not None and _known(mean):
      x, w = min(at(0), at(mean)), abs(at(mean) - at(0))
      fill = _COLOURS[1] if mean > 0 else _COLOURS[0]
      piece += f'<rect x="{x:.1f}" y="{y + 4}" width="{w:.1f}" height="16" fill="{fill}"/>'
      if _known(item.get('low')) and _known(item.get('high')):
        a, b = at(item['low']), at(item['high'])
        piece += (
          f'<path d="M{a:.1f} {y + 12}H{b:.1f}M{a:.1f} {y + 8}v8M{b:.1f} {y + 8}v8" class="e"/>'
        )
      right = max(0.0, mean, item['high'] if _known(item.get('high')) else 0.0)
      piece += f'<text x="{at(right) + 6:.1f}" y="{y + 16}">{_show(mean, 2)}</text>'
    parts.append(f'<g data-t="{html.escape(tip)}">{piece}</g>')
  parts.append(f'<text x="{_LABEL + width / 2}" y="{bottom + 34}" class="c">{unit}</text>')
  keys = list(dict.fromkeys(k for _, item in items for k in item))
  lines = [[label, *(item.get(k) for k in keys)] for label, item in items]
  size = (_LABEL + width + 80, bottom + 42)
  return Figure(name, caption, _svg(parts, size), (('name', *keys), lines))


def curves(
  name: str,
  caption: str,
  series: Mapping[str, Sequence[tuple[float, float | None]]],
  labels: tuple[str, str],
) -> Figure:
  """Lines of (x, y) with a legend; an unknown y leaves a gap. Beyond eight lines are dashed too."""
  points = [(x, y) for line in series.values() for x, y in line if y is not None and _known(y)]
  xs, ys = [p[0] for p in points] or [0.0, 1.0], [p[1] for p in points] or [0.0, 1.0]
  ticks, marks = _ticks(min(ys), max(ys)), _ticks(min(xs), max(xs))
  low, high = min(ticks[0], *ys), max(ticks[-1], *ys)
  first, last = min(xs), max(max(xs), min(xs) + 1e-9)
  width, height, left, top = 520, 260, 60, 30
  at_x = lambda v: left + (v - first) / (last - first) * width
  at_y = lambda v: top + height - (v - low) / max(high - low, 1e-9) * height
  parts = [
    f'<path d="M{left} {at_y(v):.1f}h{width}" class="g"/>'
    f'<text x="{left - 6}" y="{at_y(v) + 4:.1f}" class="r">{v:g}</text>'
    for v in ticks
  ]
  parts += [
    f'<text x="{at_x(v):.1f}" y="{top + height + 18}" class="c">{v:g}</text>'
    for v in marks
    if first <= v <= last
  ]
  for i, (label, line) in enumerate(series.items()):
    colour = _COLOURS[i % len(_COLOURS)]
    dash = _DASHES[i // len(_COLOURS) % len(_DASHES)]
    known = [(x, y) for x, y in line if _known(y)]
    path = ' '.join(f'{at_x(x):.1f},{at_y(y):.1f}' for x, y in known)
    stroke = f'fill="none" stroke="{colour}" stroke-width="2"{dash}'
    parts.append(f'<polyline points="{path}" {stroke}/>')
    parts += [
      f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="4" fill="{colour}" '
      f'data-t="{html.escape(f"{label}, {labels[0]} {x:g}: {_show(y, 2)}")}"/>'
      for x, y in known
    ]
    y = top + 14 + i * 20
    parts.append(
      f'<path d="M{left + width + 16} {y - 4}h24" {stroke}/>'
      f'<text x="{left + width + 46}" y="{y}">{html.escape(label)}</text>'
    )
  parts.append(
    f'<text x="{left + width / 2}" y="{top + height + 38}" class="c">'
    f'{html.escape(labels[0])}</text><text x="4" y="14">{html.escape(labels[1])}</text>'
  )
  lines = [[label, x, y] for label, line in series.items() for x, y in line]
  legend = 60 + 7 * max(map(len, series), default=0)
  size = (left + width + max(legend, 250), max(top + height + 46, 30 + 20 * len(series)))
  return Figure(name, caption, _svg(parts, size), (('series', *labels), lines))


def scatter(
  name: str,
  caption: str,
  points: Sequence[tuple[str, str, float, float]],
  labels: tuple[str, str],
) -> Figure:
  """A map of (name, group, x, y): coloured by group, named beside the point."""
  xs, ys = [p[2] for p in points], [p[3] for p in points]
  groups = list(dict.fromkeys(p[1] for p in points))
  width, height, left, top = 560, 380, 40, 16
  span = lambda v: (min(v), max(max(v) - min(v), 1e-9))
  (x0, dx), (y0, dy) = span(xs), span(ys)
  parts = [f'<rect x="{left}" y="{top}" width="{width}" height="{height}" class="f"/>']
  places = [
    (
      left + 30 + (x - x0) / dx * (width - 60),
      top + height - 24 - (y - y0) / dy * (height - 48),
    )
    for _, _, x, y in points
  ]
  shown = _beside(places, [p[0] for p in points], left, left + width)
  for (label, group, x, y), (px, py), (on_left, lower) in zip(points, places, shown, strict=True):
    colour = _COLOURS[groups.index(group) % len(_COLOURS)]
    side = 'class="r" x="-8"' if on_left else 'x="8"'
    parts.append(
      f'<g transform="translate({px:.1f},{py:.1f})" '
      f'data-t="{html.escape(f"{label} {group}: {x:.2f}, {y:.2f}")}"><circle r="5" '
      f'fill="{colour}"/><text {side} y="{4 + lower}">{html.escape(label)}</text></g>'
    )
  parts.append(
    f'<text x="{left + width / 2}" y="{top + height + 20}" class="c">'
    f'{html.escape(labels[0])} → ; {html.escape(labels[1])} ↑</text>'
  )
  size = (left + width + 60, top + height + 30)
  return Figure(name, caption, _svg(parts, size), (('name', 'group', *labels), points))


def _beside(
  places: Sequence[tuple[float, float]], labels: Sequence[str], left: float, right: float
) -> list[tuple[bool, int]]:
  """Where each label goes: left of its point or not, and so much lower; none on another's.

  Where there is no room the first way is taken.
  """
  taken = [(x - 6, x + 6, y - 6, y + 6) for x, y in places]
  out = []
  for own, ((x, y), label) in enumerate(zip(places, labels, strict=True)):
    wide, prefers_left = 7 * len(label), x > left + 0.75 * (right - left)
    ways = [(side, lower) for lower in (0, 12, -12) for side in (prefers_left, not prefers_left)]
    boxes = {
      (side, lower): (x - 8 - wide if side else x + 8, x - 8 if side else x + 8 + wide, y + lower)
      for side, lower in ways
    }
    free = [
      way
      for way, (a, b, middle) in boxes.items()
      if left <= a
      and b <= right + 60
      and not any(
        a < d and c < b and middle - 6 < f and e < middle + 6
        for other, (c, d, e, f) in enumerate(taken)
        if other != own
      )
    ]
    chosen = free[0] if free else ways[0]
    a, b, middle = boxes[chosen]
    taken.append((a, b, middle - 6, middle + 6))
    out.append(chosen)
  return out


def _svg(parts: Sequence[str], size: tuple[float, float]) -> str:
  width, height = (math.ceil(v) for v in size)
  return (
    f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
  )


def _tick(x: float, top: float, bottom: float, value: float) -> str:
  kind = 'z' if value == 0 else 'g'
  return (
    f'<path d="M{x:.1f} {top}V{bottom}" class="{kind}"/>'
    f'<text x="{x:.1f}" y="{bottom + 16}" class="c">{value:g}</text>'
  )


def _ticks(low: float, high: float) -> list[float]:
  """About five round numbers that enclose the range."""
  span = max(high - low, 1e-9)
  step = 10 ** math.floor(math.log10(span / 4))
  step *= next((k for k in (1, 2, 5, 10) if span / (step * k) <= 6), 10)
  # A sum of shares that is 1 but for its last digit ends at 100 %.
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def _colour(value: float | None, limit: float) -> tuple[str, str]:
  """Background and ink of a value."""
  if not _known(value):
    return '#eeeeee', '#777777'
  share = max(-1.0, min(1.0, float(value or 0) / limit)) if limit else 0.0
  end = (178, 24, 43) if share > 0 else (33, 102, 172)
  mix = [round(255 + (c - 255) * abs(share) ** 0.8) for c in end]
  return '#{:02x}{:02x}{:02x}'.format(*mix), '#ffffff' if abs(share) > 0.6 else '#111111'


def _known(value: Any) -> bool:
  return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _show(value: Any, digits: int) -> str:
  if not _known(value):
    return '–'
  return f'{value:.{digits}f}' if isinstance(value, float) else str(value)
