"""Log-likelihood vectors: one number a probe text, by which models become points.

The texts are the same for all models; what reads them: `analysis/vectors.py`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from sft_jax.data import tokenize
from sft_jax.evals import loglik
from sft_jax.evals.model import Subject
from sft_jax.utils import tables
from sft_jax.utils.errors import UserError

FORMAT = 1
SPANS = ('whole', 'answer')


class ProbeText(NamedTuple):
  """A text to score: `prompt` and `answer` one after the other, from a task (or '')."""

  prompt: str
  answer: str
  task: str = ''


def choose(
  texts: Mapping[str, Sequence[ProbeText]], each: int = 150, seed: int = 42
) -> list[ProbeText]:
  """As many texts of each task, the same whatever the order they come in.

  Args:
    texts: {task: texts}.
    each: Of every task; the study took 150 of 13.
    seed: Of the choice, which is by a hash of seed and contents.

  Raises:
    UserError: a task has fewer.
  """
  chosen = []
  for task in sorted(texts):
    different = {json.dumps([text.prompt, text.answer]): text for text in texts[task]}
    if len(different) < each:
      raise UserError(
        f'{len(different)} different texts, {each} are wanted',
        f'probe texts of {task or "no task"}',
        'ask for fewer of each task (config.probe.each), or leave this task out',
      )
    rank = lambda key: hashlib.sha256(f'{seed}/{key}'.encode()).hexdigest()
    chosen += [different[key]._replace(task=task) for key in sorted(different, key=rank)[:each]]
  return chosen


def digest(texts: Sequence[ProbeText]) -> str:
  """Hash of the probe texts: vectors of different ones must not be set side by side."""
  listed = json.dumps([[text.prompt, text.answer] for text in texts])
  return hashlib.sha256(listed.encode('utf-8', 'surrogatepass')).hexdigest()[:16]


def encode(
  texts: Sequence[ProbeText], tokenizer: Any, window: int, span: str = 'whole'
) -> tuple[list[loglik.Text], np.ndarray]:
  """Tokens of probe texts, and the UTF-8 bytes that are scored of each.

  A text is tokenised whole, behind what the tokenizer itself puts before texts; without such a
  token the first one has no prediction. What exceeds the window is cut off at the end.

  Args:
    texts: Probe texts.
    tokenizer: A fast tokenizer.
    window: Longest text in tokens.
    span: 'whole', or 'answer' given the prompt.

  Raises:
    UserError: an unknown span, or nothing of a text is left to score.
  """
  if span not in SPANS:
    raise UserError(f'no span {span!r}', how=f'one of {", ".join(SPANS)}')
  before = list(tokenize.bos_prefix(tokenizer))
  out, sizes = [], []
  for number, text in enumerate(texts):
    encoded = tokenizer(
      text.prompt + text.answer, add_special_tokens=False, return_offsets_mapping=True
    )
    ends = [end for _, end in encoded['offset_mapping']]
    ids = np.array([*before, *encoded['input_ids']], np.int32)[:window]
    first = 0
    if span == 'answer':
      first = sum(end <= len(text.prompt) for end in ends)
    start = max(1, len(before) + first)
    if start >= len(ids):
      raise UserError(
        f'nothing of it can be scored in {window} tokens',
        f'probe text {number} {text.task}'.rstrip(),
        'leave it out, or give it an answer' if span == 'answer' else 'leave it out',
      )
    scored = ends[start - len(before) - 1] if start > len(before) else 0
    whole = text.prompt + text.answer
    sizes.append(len(whole[scored : ends[len(ids) - len(before) - 1]].encode()))
    out.append(loglik.Text(ids, start))
  return out, np.array(sizes, np.int64)


def loglik_vector(
  subject: Subject, texts: Sequence[loglik.Text], tokens_per_batch: int = 4096
) -> np.ndarray:
  """Log-likelihood of each text in nats, float64 `[N]`; of R runs at once `[R, N]`."""
  scored = loglik.score(subject, texts, tokens_per_batch)
  return np.stack([loglik.sums(one)[0] for one in scored], axis=-1)


def write(
  path: epath.PathLike,
  subject: Subject,
  tokenizer: Any,
  texts: Sequence[ProbeText],
  about: Mapping[str, Any],
  span: str = 'whole',
  tokens_per_batch: int = 4096,
) -> np.ndarray:
  """Scores probe texts and writes a table: `loglik`, `tokens` and `bytes` of each.

  Args:
    path: Where; `.npz`.
    subject: One model, or several runs.
    tokenizer: Its tokenizer.
    texts: Probe texts.
    about: What the model is, as in its row (`model_name`, `data_name`, `lora`, `epoch`, …).
    span: See `encode`.
    tokens_per_batch: Tokens on all devices at once.

  Returns:
    What `loglik_vector` gives.
  """
  encoded, sizes = encode(texts, tokenizer, subject.model.max_length, span)
  vector = loglik_vector(subject, encoded, tokens_per_batch)
  counts = np.array([len(text.ids) - text.start for text in encoded], np.int64)
  tasks = np.array([text.task for text in texts])
  facts = {'probe': 'loglik_vector', 'format': FORMAT, 'span': span, 'texts': digest(texts)}
  arrays = {'loglik': vector, 'tokens': counts, 'bytes': sizes, 'tasks': tasks}
  tables.write_arrays(path, arrays, {**about, **facts})
  return vector
