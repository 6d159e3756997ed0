"""How a selection of examples within a data set is written, and how many it keeps.

`ppl:low:0.5` is the half of the examples whose response has the lowest perplexity under the base;
`mid` are those around the median, `high` the other end. Not for the perplexities themselves:
`execution/selected.py`.
"""

from typing import NamedTuple

from sft_jax.utils.errors import UserError

ENDS = ('low', 'mid', 'high')


class Selection(NamedTuple):
  """Which end of the examples in order of perplexity, and what share of them."""

  end: str
  share: float

  def count(self, examples: int) -> int:
    """Examples that are kept of so many: the share rounded, and at least one."""
    return min(examples, max(1, round(self.share * examples)))


def parse(text: str) -> Selection | None:
  """What `config.data.select` says; None where it is ''.

  Raises:
    UserError: it is not of that form.
  """
  if not text:
    return None
  kind, _, rest = text.partition(':')
  end, _, number = rest.partition(':')
  try:
    share = float(number)
  except ValueError:
    share = 0.0
  if kind != 'ppl' or end not in ENDS or not 0 < share < 1:
    forms = ', '.join(f'ppl:{name}:SHARE' for name in ENDS)
    raise UserError(
      f'{text!r} selects nothing that is known',
      'config.data.select',
      f"give one of {forms} with a share between 0 and 1, such as ppl:low:0.5, or '' for all",
    )
  return Selection(end, share)


def canonical(text: str) -> str:
  """One spelling for one selection: `ppl:low:.50` is `ppl:low:0.5`. Raises as `parse`."""
  found = parse(text)
  return f'ppl:{found.end}:{found.share:.10g}' if found else ''
