"""Clean tables of the released shape: sound bases, k/n scores, no copies; seeded."""

import numpy as np
import pandas as pd

from sft_jax import results

DATA = [f'data{i}' for i in range(10)]
_ITEMS = {
  **{'math-0shot': 5000, 'gsm8k-0shot': 1319, 'gsm8k-4shot': 1319, 'humaneval-0shot': 164},
  **{'mbpp-0shot': 257, 'mbpp_4shot': 257, 'hellaswag-0shot': 10042, 'hellaswag-10shot': 10042},
  **{'nq-0shot': 3610, 'nq-1shot': 3610, 'nq-5shot': 3610, 'nq-25shot': 3610},
  **{'BoolQ-0shot': 3270, 'BoolQ-5shot': 3270},
}
_SUBJECTS = {'mmlu-0shot': 57, 'mmlu-5shot': 57, 'jmmlu-0shot': 57, 'cmmlu-0shot': 67}


def clean(seed: int, models: int = 11) -> pd.DataFrame:
  """As the released file is written: same blocks, header and scales; scores depend on the row."""
  rng = np.random.default_rng(seed)
  names = [f'model{i}' for i in range(models)]
  meta = [(m, 'pretrain', None, 0, 0.0, None) for m in names]
  for m in names:
    meta += [(m, d, a, 10, 1000.0, 'cosine') for d in DATA for a in (False, True)]
    meta += [(m, 'all', a, e, 10000.0, 'cosine') for a in (False, True) for e in range(1, 11)]
  for m in names[:3]:
    for size in (1000.0, 20000.0):
      meta += [(m, d, False, e, size, 'constant') for d in DATA for e in range(1, 11)]
  meta += [(names[0], f'w/o-{d}', a, 10, 9000.0, 'cosine') for d in DATA for a in (False, True)]
  frame = pd.DataFrame(
    meta, columns=['model_name', 'data_name', 'lora', 'epoch', 'data_size', 'lr_strategy']
  )
  for column in results.RELEASED_COLUMNS:
    if column not in frame and not column.startswith('LongBench'):
      frame[column] = _scores(rng, frame, column)
  return frame[[c for c in results.RELEASED_COLUMNS if c in frame]]


def _scores(rng: np.random.Generator, frame: pd.DataFrame, column: str) -> np.ndarray:
  skill = {m: rng.uniform(35, 65) for m in frame['model_name'].unique()}
  lift = {d: rng.normal(3, 4) for d in frame['data_name'].unique()} | {'pretrain': 0.0}
  rate = (
    frame['model_name'].map(skill) + frame['data_name'].map(lift) + rng.normal(0, 3, len(frame))
  )
  share = np.clip(rate.to_numpy() / 100, 0.01, 0.99)
  if column in _ITEMS:
    n = _ITEMS[column]
    return np.round(100 * rng.binomial(n, share) / n, 2)
  if column in _SUBJECTS:
    subjects = rng.binomial(200, share[:, None], (len(frame), _SUBJECTS[column])) / 2
    return subjects.mean(axis=1)
  if column.startswith('Truthful'):
    return np.round(rng.binomial(817, share) / 817, 2)
  if column.startswith('mtbench'):
    n = 160 if column == 'mtbench-total' else 20
    return np.round(1 + 9 * rng.binomial(9 * n, share) / (9 * n), 2)
  return np.round(100 * rng.binomial(805, share) / 805 * 0.2, 2)
