"""How a mixture of data sets is written, and how many records each of its parts gives.

`mix:a=0.7,b=0.3` names its parts and their shares, `mix:a,b` parts of equal shares; `all` is the
study's ten data sets in equal shares, `without:lima` the same without one. Not for which data sets
there are: `data/datasets.py`.
"""

import fractions
import math
import re
from collections.abc import Mapping

from sft_jax.utils.errors import UserError

_WHERE = 'config.data.name'
_HOW = 'write mix:alpaca_cleaned=0.7,lima=0.3, all, or without:lima'
# Written for a data set left out: by us, by the study's table, and where names become files.
_WITHOUT = ('without:', 'w/o-')


def weights(name: str) -> dict[str, int]:
  """{part: share} of a `mix:` name, in its smallest whole numbers and sorted; {} of other names.

  Raises:
    UserError: no shares, a part twice, a share that is not a positive number.
  """
  if not name.startswith('mix:'):
    return {}
  shares: dict[str, fractions.Fraction] = {}
  for part in name.removeprefix('mix:').split(','):
    text = part if '=' in part else f'{part}=1'
    key, _, value = (piece.strip() for piece in text.rpartition('='))
    if not key or not re.fullmatch(r'\d+(\.\d*)?|\.\d+|\d+/\d+', value):
      raise UserError(f'{part.strip()!r} is no part of a mixture', _WHERE, _HOW)
    if key in shares:
      raise UserError(f'{key!r} stands twice in a mixture', _WHERE, 'give each part one share')
    numerator, _, denominator = value.partition('/')
    if (denominator and not int(denominator)) or not fractions.Fraction(numerator):
      raise UserError(f'the share of {key!r} is {value}', _WHERE, 'give shares above 0')
    shares[key] = fractions.Fraction(numerator) / int(denominator or 1)
  common = math.lcm(*(share.denominator for share in shares.values()))
  whole = {key: int(share * common) for key, share in sorted(shares.items())}
  divisor = math.gcd(*whole.values())
  return {key: share // divisor for key, share in whole.items()}


def written(shares: Mapping[str, float]) -> str:
  """The name of a mixture given as {part: share}; `weights` says whether it is one."""
  return 'mix:' + ','.join(f'{part}={share}' for part, share in shares.items())


def left_out(name: str) -> str:
  """The data set that `without:NAME` leaves out; '' of other names."""
  for prefix in _WITHOUT:
    if name.startswith(prefix):
      return name.removeprefix(prefix).strip()
  return ''


def canonical(name: str) -> str:
  """One spelling for one data set: `mix:b=3,a=7` and `mix:a=0.7,b=0.3` are `mix:a=7,b=3`.

  Equal shares are left out: `mix:a=2,b=2` is `mix:a,b`.

  Raises:
    UserError: see `weights`; nothing named that is to be left out.
  """
  if name.startswith('mix:'):
    shares = weights(name)
    equal = set(shares.values()) == {1}
    return 'mix:' + ','.join(key if equal else f'{key}={share}' for key, share in shares.items())
  if name.startswith(_WITHOUT):
    if not left_out(name):
      raise UserError(f'{name!r} leaves nothing out', _WHERE, _HOW)
    return f'{_WITHOUT[0]}{left_out(name)}'
  return name


def table_name(name: str) -> str:
  """The name in the result table: `without:lima` is the published `w/o-lima`."""
  return f'{_WITHOUT[1]}{left_out(name)}' if left_out(name) else name


def counts(shares: Mapping[str, int], total: int) -> dict[str, int]:
  """Records each part gives to a mixture of `total`: exact, by largest remainder.

  Of equal remainders the part that comes first in `shares` gets the record.
  """
  whole = sum(shares.values())
  out = {key: total * share // whole for key, share in shares.items()}
  remainders = {key: total * share % whole for key, share in shares.items()}
  order = sorted(shares, key=lambda key: -remainders[key])  # stable
  for key in order[: total - sum(out.values())]:
    out[key] += 1
  return out


def largest(shares: Mapping[str, int], available: Mapping[str, int]) -> int:
  """The most records a mixture can have of parts with so many."""
  whole = sum(shares.values())
  # A part gives less than one record more than its share.
  total = min((available[key] + 1) * whole // share for key, share in shares.items())
  while any(count > available[key] for key, count in counts(shares, total).items()):
    total -= 1
  return total
