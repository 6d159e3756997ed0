"""Collectives and large buffers of a compiled program, read from its HLO text.

`cost_analysis` of XLA counts the body of a loop once; here each instruction counts as often as the
loops around it turn. Not for FLOPs, which are counted from the model (`roofline.py`).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_BYTES = {
  **dict.fromkeys(('pred', 's8', 'u8', 'f8e4m3fn', 'f8e5m2'), 1.0),
  **dict.fromkeys(('s16', 'u16', 'f16', 'bf16'), 2.0),
  **dict.fromkeys(('s32', 'u32', 'f32'), 4.0),
  **dict.fromkeys(('s64', 'u64', 'f64', 'c64'), 8.0),
  **dict.fromkeys(('s4', 'u4'), 0.5),
}
KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# Their results are views of others', or nothing.
_VIEWS = ('parameter', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'constant', 'conditional')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO: its name, what it computes, the arrays of its result, and the whole line."""

  name: str
  opcode: str
  result: str
  line: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective as one chip takes part in it.

  Attributes:
    kind: One of `KINDS`.
    size: Bytes of its result on a chip.
    group: Chips that take part together.
    far: Whether its groups reach beyond `near` neighbouring devices.
    inside: Chips of a group that are neighbours in this sense; 0 for all.
    times: How often it runs.
    shapes: Arrays of its result.
    source: Where in the traced program it comes from.
    inside_loop: Whether a loop runs it.
  """

  kind: str
  size: float
  group: int
  far: bool
  times: float
  shapes: tuple[str, ...]
  source: str
  inside_loop: bool
  inside: int = 0

  @property
  def sent(self) -> float:
    """Bytes a chip sends, over all times, by the best ring algorithm."""
    n = self.group
    share = {
      'all-gather': (n - 1) / n,
      'all-reduce': 2 * (n - 1) / n,
      'reduce-scatter': float(n - 1),  # of the result, a part of what is reduced
      'all-to-all': (n - 1) / n,
      'collective-permute': 1.0,
    }[self.kind]
    return self.times * self.size * share


@dataclasses.dataclass(frozen=True)
class Buffer:
  """An array that a program makes: its bytes on a chip, type and shape, and where it comes from."""

  size: float
  shape: str
  source: str


class Module:
  """The computations of an HLO module."""

  def __init__(self, text: str):
    """Parses text as `Compiled.as_text()` gives it."""
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = ''
    current: list[Instruction] | None = None
    for line in text.splitlines():
      if current is None:
        head = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
        if head:
          current = self.computations.setdefault(head[2], [])
          self.entry = head[2] if head[1] else self.entry
      elif line == '}':
        current = None
      elif one := _instruction(line):
        current.append(one)
      elif current and not line.startswith('  '):
        # What a kernel says of itself may go over several lines.
        last = current[-1]
        current[-1] = dataclasses.replace(last, line=f'{last.line}{line}')

  def trips(self, loop: Instruction) -> int | None:
    """How often a `while` turns, or None where that depends on data."""
    if known := re.search(r'known_trip_count[^0-9]*(\d+)', loop.line):
      return int(known[1])
    # The TPU's compiler does not say it: a counter is compared with a constant.
    condition = {one.name: one for one in self.computations[_called(loop, 'condition')]}
    test = next(one for one in condition.values() if 'ROOT ' in one.line)
    if test.opcode != 'compare' or 'direction=LT' not in test.line:
      return None
    counter, bound = (condition[name] for name in _operands(test))
    if counter.opcode != 'get-tuple-element' or bound.opcode != 'constant':
      return None
    index = int(_called(counter, 'index'))
    body = {one.name: one for one in self.computations[_called(loop, 'body')]}
    root = next(one for one in body.values() if 'ROOT ' in one.line)
    step = _advance(body, _operands(root)[index]) or 1
    return -(-(_constant(bound) or 0) // step)

  def walk(self, assumed: Sequence[float] = ()) -> Iterator[tuple[Instruction, float, bool]]:
    """Every instruction outside of fusions, how often it runs, and whether in a loop.

    Args:
      assumed: Turns of the loops whose number depends on data, the outermost first; 1 beyond.
    """
    yield from self._walk(self.entry, 1.0, False, tuple(assumed))

  def _walk(
    self, name: str, times: float, looped: bool, assumed: tuple[float, ...]
  ) -> Iterator[tuple[Instruction, float, bool]]:
    for one in self.computations[name]:
      yield one, times, looped
      if one.opcode == 'while':
        turns: float | None = self.trips(one)
        rest = assumed
        if turns is None:
          turns, rest = (assumed[0], assumed[1:]) if assumed else (1.0, ())
        yield from self._walk(_called(one, 'body'), times * turns, True, rest)
      elif one.opcode in ('call', 'async-start', 'conditional'):
        for inner in _callees(one):
          yield from self._walk(inner, times, looped, assumed)

  def collectives(self, assumed: Sequence[float] = (), near: int = 0) -> list[Collective]:
    """All collectives among more than one chip.

    One that a TPU does piece by piece behind other work is written out many times, always with the
    same channel; it counts where it starts, which runs the least often.

    Args:
      assumed: See `walk`.
      near: Devices of a node, numbered one after another; 0 where all are near.
    """
    out: dict[str, Collective] = {}
    for one, times, looped in self.walk(assumed):
      for kind, arrays, line in self._communication(one):
        group, members = _group(line, kind)
        if group < 2 and kind != 'collective-permute':
          continue
        far = near > 0 and any(a // near != b // near for a, b in members)
        size = sum(map(_size, arrays))
        inside = 1 + sum(a // near == b // near for a, b in members) if far else 0
        shapes, where = tuple(arrays), source(one)
        made = Collective(kind, size, group, far, times, shapes, where, looped, inside)
        channel = re.search(r'channel_id=\d+', line)
        key = channel[0] if channel else f'{one.name} {len(out)}'
        if key not in out or times < out[key].times:
          out[key] = made
    return list(out.values())

  def _communication(self, one: Instruction) -> Iterator[tuple[str, list[str], str]]:
    """(kind, arrays of the result, line with its groups) of what an instruction does of that."""
    kind = one.opcode.removesuffix('-start')
    if kind in KINDS:
      arrays = _arrays(one.result)
      if one.opcode.endswith('-start') and kind != 'all-reduce':
        # (operands, results, …): results are what arrives.
        arrays = [a for a in arrays if _size(a) > 8] or arrays
        arrays = arrays[len(arrays) // 2 :]
      yield kind, arrays, one.line
    elif one.opcode == 'fusion':
      name = _called(one, 'calls')
      inner = [found for i in self.computations[name] for found in self._communication(i)]
      if inner and 'all-reduce-scatter' in name:
        # As the TPU's compiler writes a reduce-scatter: a sum of which a part is kept.
        yield 'reduce-scatter', _arrays(one.result), inner[0][2]
      else:
        yield from inner

  def largest(self, count: int = 8) -> list[Buffer]:
    """The largest arrays that are made, equal ones once."""
    found: dict[tuple[str, str], Buffer] = {}
    for one, _, _ in self.walk():
      if one.opcode in _VIEWS or one.opcode.endswith('-done'):
        continue
      for array in _arrays(one.result):
        buffer = Buffer(_size(array), array, source(one))
        found.setdefault((buffer.shape, buffer.source), buffer)
    return sorted(found.values(), key=lambda b: -b.size)[:count]


def sent_by_kind(collectives: Sequence[Collective]) -> dict[str, float]:
  """{kind: bytes a chip sends}, the most first."""
  total: collections.Counter[str] = collections.Counter()
  for one in collectives:
    total[one.kind] += one.sent  # type: ignore[assignment]
  return dict(sorted(((k, float(v)) for k, v in total.items()), key=lambda item: -item[1]))


def source(one: Instruction) -> str:
  """The path of the traced operation, without what only jax's transformations add."""
  match = re.search(r'op_name="([^"]*)"', one.line)
  if not match:
    return one.name
  parts = [p for p in match[1].split('/') if p not in ('closed_call', 'checkpoint')]
  return '/'.join(parts[1:] or parts)


def _instruction(line: str) -> Instruction | None:
  match = re.match(r'\s+(?:ROOT )?%?([\w.\-]+) = ', line)
  if not match:
    return None
  rest = line[match.end() :]
  if rest.startswith('('):
    depth, end = 0, 0
    for end, char in enumerate(rest):  # noqa: B007
      depth += (char == '(') - (char == ')')
      if not depth:
        break
    result, rest = rest[: end + 1], rest[end + 1 :].lstrip()
  else:
    result, _, rest = rest.partition(' ')
  opcode = re.match(r'([\w\-]+)\(', rest)
  return Instruction(match[1], opcode[1], result, line) if opcode else None


def _operands(one: Instruction) -> list[str]:
  """Names of what an instruction is computed from."""
  rest = one.line.split(f' {one.opcode}(', 1)[1]
  depth, end = 1, 0
  for end, char in enumerate(rest):  # noqa: B007
    depth += (char == '(') - (char == ')')
    if not depth:
      break
  return re.findall(r'%([\w.\-]+)', rest[:end])


def _constant(one: Instruction) -> int | None:
  match = re.search(r' constant\((-?\d+)\)', one.line)
  return int(match[1]) if match else None


def _advance(body: Mapping[str, Instruction], name: str) -> int:
  """What a loop's body adds to the counter that `name` is the next value of."""
  total = 0
  while (one := body[name]).opcode in ('add', 'copy', 'bitcast'):
    operands = [body[operand] for operand in _operands(one)]
    total += sum(_constant(operand) or 0 for operand in operands)
    name = next((o.name for o in operands if o.opcode != 'constant'), '')
    if not name:
      return 0
  return total


def _called(one: Instruction, what: str) -> str:
  match = re.search(rf'{what}=%?([\w.\-]+)', one.line)
  assert match is not None, one.line
  return match[1]


def _callees(one: Instruction) -> list[str]:
  names = re.findall(
    r'(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)', one.line
  )
  if branches := re.search(r'branch_computations=\{([^}]*)\}', one.line):
    names += re.findall(r'[\w.\-]+', branches[1])
  return names


def _arrays(result: str) -> list[str]:
  """`f32[2,3]` of each array of a result."""
  found = re.findall(r'([a-z]\w*)\[([\d,]*)\]', result)
  return [f'{kind}[{sides}]' for kind, sides in found if kind in _BYTES]


def _size(array: str) -> float:
  kind, _, sides = array.partition('[')
  return _BYTES[kind] * math.prod(int(side) for side in sides.rstrip(']').split(',') if side)


def _group(line: str, kind: str) -> tuple[int, list[tuple[int, int]]]:
  """Chips that take part together, and pairs of devices that talk."""
  if kind == 'collective-permute':
    found = re.search(r'source_target_pairs=\{(.*?)\}\}', line)
    numbers = [int(n) for n in re.findall(r'\d+', found[1])] if found else []
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    return len(pairs), pairs
  if match := re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line):
    sides = [int(n) for n in match[3].split(',')]
    order = [int(n) for n in match[4].split(',')] if match[4] else list(range(len(sides)))
    first = _transposed(sides, order)[: int(match[2])]
    return int(match[2]), [(first[0], other) for other in first[1:]]
  if match := re.search(r'replica_groups=\{\{([\d,]*)\}', line):
    first = [int(n) for n in match[1].split(',') if n]
    return len(first), [(first[0], other) for other in first[1:]]
  if match := re.search(r'replica_groups=(?:@\w+|mesh)\[(.*?)\] ?\{(.*?)\}', line):
    axes = {name: int(size) for name, size in re.findall(r"'([\w]+)'=(\d+)", match[1])}
    named = re.findall(r"'([\w]+)'", match[2])
    stride, strides = 1, {}
    for name, size in reversed(axes.items()):
      strides[name] = stride
      stride *= size
    members = [0]
    for name in named:
      members = [m + i * strides[name] for m in members for i in range(axes[name])]
    return len(members), [(0, other) for other in members[1:]]
  return 1, []


def _transposed(sides: Sequence[int], order: Sequence[int]) -> list[int]:
  """Numbers 0, 1, … of an array of these sides, read along its axes in this order."""
  strides = [math.prod(sides[i + 1 :]) for i in range(len(sides))]
  numbers = [0]
  for axis in order:
    numbers = [n + i * strides[axis] for n in numbers for i in range(sides[axis])]
  return numbers
