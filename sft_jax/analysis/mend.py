"""A table without the faults that the checks found. Not for finding them: `checks.py`."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sft_jax.analysis import checks
from sft_jax.utils import words

if TYPE_CHECKING:
  import pandas as pd


def mend(
  frame: 'pd.DataFrame', findings: Sequence[checks.Finding], which: Collection[str]
) -> tuple['pd.DataFrame', list[str]]:
  """A table without what some checks found: scales set right, mixed and empty columns left out.

  Args:
    frame: As `table.read` gives it.
    findings: Of `run` on it.
    which: Names of checks that are acted upon.

  Returns:
    The new table, and a sentence for each change.
  """
  out, said = frame.copy(), []
  kept = _all_there_is(frame, findings, which)
  if kept:
    why = 'kept, though nearly constant or of few rows, as there is no other score'
    said.append(f'{", ".join(kept)}: {why}.')
  for finding in findings:
    if finding.check not in which:
      continue
    if finding.check == 'scale':
      columns = list(finding.columns)
      out.loc[list(finding.rows), columns] = frame.loc[list(finding.rows), columns] * 100
      said.append(f'{", ".join(columns)}: {words.count(len(finding.rows), "row")} times 100.')
    elif finding.check in ('mixed', 'constant'):
      gone = [c for c in finding.columns if c in out and c not in kept]
      out = out.drop(columns=gone)
      # That there is nothing in a column is said once, by the check.
      if gone and frame[gone].notna().any(axis=None):
        said.append(f'{", ".join(gone)}: left out ({finding.check}).')
    elif finding.check == 'range':
      for column in finding.columns:
        wrong = (out[column] < 0) | (out[column] > 100)
        out.loc[wrong, column] = np.nan
        scores = words.count(int(wrong.sum()), 'impossible score')
        said.append(f'{column}: {scores} taken as missing.')
    elif finding.check == 'doubled':
      out = out.drop(index=[row for row in finding.rows if row in out.index])
      said.append(f'Used once: {words.count(len(finding.rows), "row")} found twice.')
  out.attrs = dict(frame.attrs)
  return out, said


def _all_there_is(
  frame: 'pd.DataFrame', findings: Sequence[checks.Finding], which: Collection[str]
) -> list[str]:
  """Constant scores where no other would be left: that nothing moves them is then what is found."""
  gone = {
    kind: {c for f in findings if f.check == kind and kind in which for c in f.columns}
    for kind in ('mixed', 'constant')
  }
  left = [c for c in checks.scores(frame) if c not in gone['mixed']]
  return left if set(left) <= gone['constant'] else []
