"""What training would learn from: counts, masks, stop tokens, duplicates, overlap.

Made before training, printed and saved. It changes nothing; `Audit.check` stops a run.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sft_jax.data.formats import Record
from sft_jax.data.overlap import NgramIndex, near_duplicates, ngram_overlap
from sft_jax.data.tokenize import Dropped, Example, bos_prefix, stop_ids, without
from sft_jax.utils import words
from sft_jax.utils.errors import UserError

__all__ = ['Audit', 'audit', 'ngram_overlap']

_BAR = 40  # characters of the longest bar


@dataclasses.dataclass(frozen=True)
class Audit:
  """The findings.

  Attributes:
    read, kept, truncated: Records.
    dropped: {reason: records}.
    dropped_at: {reason: where the first few are}.
    tokens, supervised: Tokens of the kept examples, and those with a loss weight.
    stops: Kept examples whose last supervised token is a stop token.
    doubled_bos, missing_bos: Kept examples that start with BOS twice, or without the BOS that the
      tokenizer's own rule puts first.
    lengths: Tokens: {'min', 'median', 'mean', 'p95', 'max'}.
    histogram: (shortest, longest, examples), by powers of two.
    exact_duplicates: Records whose content (case and spacing evened out) occurred before.
    near_duplicates: Further records that resemble an earlier one, and where the first few are.
    heldout: Held-out records that can be measured; heldout_overlap those of them that
      overlap a training record; heldout_dropped further ones that cannot.
    benchmarks: {file: (items that overlap a training record, items)}, see `NgramIndex`.
    contaminated: {file: indices of those items}.
  """

  read: int
  kept: int
  truncated: int
  dropped: dict[str, int]
  dropped_at: dict[str, list[str]]
  tokens: int
  supervised: int
  stops: int
  doubled_bos: int
  missing_bos: int
  lengths: dict[str, float]
  histogram: list[tuple[int, int, int]]
  exact_duplicates: int
  near_duplicates: int
  near_duplicates_at: list[tuple[str, str]]
  heldout: int
  heldout_overlap: int
  heldout_dropped: int
  benchmarks: dict[str, tuple[int, int]]
  contaminated: dict[str, list[int]]

  @property
  def supervised_share(self) -> float:
    """Supervised tokens of all tokens."""
    return self.supervised / max(1, self.tokens)

  @property
  def stop_share(self) -> float:
    """Kept examples whose last supervised token is a stop token."""
    return self.stops / max(1, self.kept)

  def as_json(self) -> dict[str, Any]:
    """Plain values, with the shares."""
    return {
      **dataclasses.asdict(self),
      'supervised_share': self.supervised_share,
      'stop_share': self.stop_share,
    }

  def lines(self) -> list[str]:
    """The findings for a terminal."""
    lines = [
      f'records      {self.read:,} read, {self.kept:,} kept ({self.truncated:,} truncated), '
      f'{sum(self.dropped.values()):,} dropped'
    ]
    for reason, count in self.dropped.items():
      lines.append(f'  dropped    {count:,}: {reason} ({", ".join(self.dropped_at[reason])})')
    lines += [
      f'tokens       {self.tokens:,}, {self.supervised_share:.1%} supervised',
      f'stop token   last supervised token of {self.stop_share:.1%} of the examples',
      f'BOS          {self.doubled_bos:,} doubled, {self.missing_bos:,} missing',
      f'duplicates   {self.exact_duplicates:,} exact, {self.near_duplicates:,} near',
    ]
    for later, earlier in self.near_duplicates_at:
      lines.append(f'  near       {later} and {earlier}')
    more = f' ({self.heldout_dropped:,} dropped)' if self.heldout_dropped else ''
    if self.heldout:
      lines.append(
        f'held out     {words.count(self.heldout, "record")}{more}, {self.heldout_overlap:,} '
        'in training records'
      )
    else:
      lines.append(f'held out     no records{more}: there is no held-out perplexity')
    for path, (hits, total) in self.benchmarks.items():
      items = words.count(total, 'item')
      lines.append(f'overlap      {hits:,} of {items} of {path} in training records')
    if self.lengths:
      shown = ', '.join(f'{name} {value:,.0f}' for name, value in self.lengths.items())
      lines.append(f'length       {shown} tokens')
    most = max((count for *_, count in self.histogram), default=1)
    for shortest, longest, count in self.histogram:
      bar = '#' * max(int(count > 0), round(_BAR * count / most))
      lines.append(f'  {f"{shortest}-{longest}":>12} {count:>7,} {bar}'.rstrip())
    return lines

  def check(self) -> None:
    """Raises UserError when there is nothing to learn from."""
    if not self.kept:
      where = next((places[0] for places in self.dropped_at.values()), 'the training data')
      reasons = '; '.join(f'{count} {reason}' for reason, count in self.dropped.items())
      raise UserError(
        f'no record is left to train on: {reasons or "there were none"}',
        where=where,
        how='see the reasons; raise config.train.max_length if records are too long',
      )


def audit(
  records: Sequence[Record],
  examples: Sequence[Example],
  dropped: Sequence[Dropped],
  heldout: Sequence[Record],
  bench_files: Sequence[str],
  tokenizer: Any,
  template: str = 'study',
  heldout_dropped: Sequence[Dropped] = (),
) -> Audit:
  """Looks at training data.

  Args:
    records: The training records, of which `examples` and `dropped` were made.
    examples: What is trained on. Each has a supervised token, or it had been dropped.
    dropped: What is not.
    heldout: Records kept for evaluation.
    bench_files: Benchmark files or folders; see `overlap.read_benchmark`.
    tokenizer: The tokenizer of the examples.
    template: The template of the examples; says which tokens are stop tokens.
    heldout_dropped: Those of `heldout` that could not be made examples.

  Raises:
    UserError: A benchmark file that cannot be read.
  """
  reasons = Counter(item.reason for item in dropped)
  stops = np.array(stop_ids(tokenizer, template), np.int64)
  prefix = np.array(bos_prefix(tokenizer), np.int64)
  bos = tokenizer.bos_token_id
  supervised = [np.flatnonzero(e.loss_weight > 0) for e in examples]
  lengths = np.array([len(e) for e in examples], np.int64)
  keys = Counter(record.key for record in records)
  near = near_duplicates(records)
  trained = without(records, dropped)
  measured = without(heldout, heldout_dropped)
  index = NgramIndex(trained)
  overlaps = ngram_overlap(trained, bench_files, index=index)
  return Audit(
    read=len(records),
    kept=len(examples),
    truncated=sum(e.truncated for e in examples),
    dropped=dict(reasons.most_common()),
    dropped_at={r: [d.record.source for d in dropped if d.reason == r][:3] for r in reasons},
    tokens=int(lengths.sum()),
    supervised=sum(map(len, supervised)),
    stops=sum(
      bool(np.isin(e.ids[places[-1]], stops))
      for e, places in zip(examples, supervised, strict=True)
    ),
    doubled_bos=sum(bos is not None and bool((e.ids[:2] == bos).sum() == 2) for e in examples),
    missing_bos=sum(not np.array_equal(e.ids[: len(prefix)], prefix) for e in examples),
    lengths=_summary(lengths),
    histogram=_histogram(lengths),
    exact_duplicates=len(records) - len(keys),
    near_duplicates=len(near),
    near_duplicates_at=[(records[a].source, records[b].source) for a, b in near[:3]],
    heldout=len(measured),
    heldout_overlap=len(index.hits([list(record.contents) for record in measured])),
    heldout_dropped=len(heldout_dropped),
    benchmarks={path: (len(hits), total) for path, (hits, total) in overlaps.items()},
    contaminated={path: hits for path, (hits, _) in overlaps.items()},
  )


def _summary(lengths: np.ndarray) -> dict[str, float]:
  if not len(lengths):
    return {}
  return {
    'min': float(lengths.min()),
    'median': float(np.median(lengths)),
    'mean': float(lengths.mean()),
    'p95': float(np.percentile(lengths, 95)),
    'max': float(lengths.max()),
  }


def _histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
  if not len(lengths):
    return []
  powers = np.floor(np.log2(lengths)).astype(np.int64)
  return [
    (2**power, 2 ** (power + 1) - 1, int((powers == power).sum()))
    for power in range(int(powers.min()), int(powers.max()) + 1)
  ]
