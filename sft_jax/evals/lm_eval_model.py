"""Our engines as a model of lm-evaluation-harness, so that all its tasks run on them.

  from sft_jax.evals import lm_eval_model
  lm_eval.simple_evaluate(model=lm_eval_model.make(subject, tokenizer, stop_ids), tasks=[...])

What is scored is what its own `hf` model scores: tokens by the tokenizer's rule, the same cuts
between context and continuation, the same windows. lm_eval is needed only here.
"""

import collections
import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sft_jax.evals.answers import Answers
from sft_jax.evals.asking import scored, written
from sft_jax.evals.generation import UNDEFINED, Request
from sft_jax.evals.layout import Text
from sft_jax.evals.model import Subject
from sft_jax.utils.errors import UserError

_NEW = 256  # lm-eval's own default of new tokens


class _Ours:
  """What lm-eval asks of a model, but for the base class: lm_eval is imported when one is made."""

  def __init__(
    self,
    subject: Subject,
    tokenizer: Any,
    stop_ids: Sequence[int],
    window: int,
    tokens_per_batch: int,
    slots: int,
    answers: Answers,
  ):
    super().__init__()
    self._answers = answers
    self._subject, self._tokenizer, self._stop_ids = subject, tokenizer, stop_ids
    self._window, self._tokens_per_batch, self._slots = window, tokens_per_batch, slots
    self.undefined = False  # Whether the model has computed what is no number.

  @property
  def eot_token_id(self) -> int:
    return int(self._tokenizer.eos_token_id)

  @property
  def prefix_token_id(self) -> int:
    bos = self._tokenizer.bos_token_id
    return self.eot_token_id if bos is None else int(bos)

  @property
  def tokenizer_name(self) -> str:
    return str(self._tokenizer.name_or_path).replace('/', '__')

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    return self._tokenizer.chat_template if chat_template else None

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    return self._tokenizer.apply_chat_template(
      chat_history,
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=not add_generation_prompt,
    )

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    # A text under a chat template may begin with the beginning of text already.
    bos = self._tokenizer.bos_token
    if add_special_tokens is None:
      add_special_tokens = not (bos and string.startswith(bos))
    return self._tokenizer.encode(string, add_special_tokens=add_special_tokens)

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    texts = []
    for _, context, continuation in requests:
      ids = [*context, *continuation][-(self._window + 1) :]
      texts.append(Text(np.asarray(ids, np.int32), max(1, len(ids) - len(continuation))))
    (found,) = scored(self._subject, texts, [self._answers], self._tokens_per_batch)
    self.undefined |= any(math.isnan(logprob) for logprob, _ in found)
    return found

  def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
    from lm_eval import utils

    windows: list[Any] = []
    owners: list[int] = []
    for number, request in enumerate(requests):
      pairs = utils.get_rolling_token_windows(
        token_list=self.tok_encode(request.args[0]),
        prefix_token=self.prefix_token_id,
        max_seq_len=self._window,
        context_len=1,
      )
      for pair in map(utils.make_disjoint_window, pairs):
        windows.append((None, *pair))
        owners.append(number)
    totals = [0.0] * len(requests)
    for number, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
      totals[number] += logprob
    return totals

  def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
    # A request put several times (`repeats`) is to give several samples: each has its own seed.
    again: collections.Counter[str] = collections.Counter()
    # Texts do not show special tokens: one that is to end them is looked for by its id.
    added = self._tokenizer.added_tokens_decoder.items()
    special = {token.content: number for number, token in added if token.special}
    groups: dict[frozenset[int], list[tuple[int, Request]]] = {}
    for index, request in enumerate(requests):
      context, how = copy.deepcopy(request.args)
      asked = self._request(context, how, again[context])
      again[context] += 1
      more = frozenset(special[stop] for stop in asked.stops if stop in special)
      more -= frozenset(self._stop_ids)
      groups.setdefault(more, []).append((index, asked))
    texts = [''] * len(requests)
    for more, members in groups.items():
      (outputs,) = written(
        self._subject,
        [asked for _, asked in members],
        [self._answers],
        self._tokenizer,
        [*self._stop_ids, *sorted(more)],
        slots=self._slots,
        tokens_per_batch=self._tokens_per_batch,
      )
      self.undefined |= any(output['finish'] == UNDEFINED for output in outputs)
      for (index, _), output in zip(members, outputs, strict=True):
        texts[index] = output['text']
    return texts

  def _request(self, context: str, how: dict[str, Any], again: int) -> Request:
    until = how.get('until') or []
    stops = [until] if isinstance(until, str) else list(until)
    given = [how[name] for name in ('max_gen_toks', 'max_new_tokens', 'max_tokens') if name in how]
    new = int(given[0]) if given else _NEW
    warm = float(how.get('temperature') or 0.0) if how.get('do_sample') else 0.0
    if new >= self._window:
      # As lm-eval's `hf` does: hardly anything of the question would be left.
      raise UserError(
        f'{new} new tokens leave no room in a window of {self._window}',
        'max_gen_toks',
        'give the task a smaller one in its generation_kwargs, or take a model of a longer window',
      )
    ids = self.tok_encode(context)[-(self._window - new) :]
    # An empty stop would end every text at once.
    stops = [stop for stop in stops if stop]
    # Of the first it is what was given, and 0 for what is not drawn: then all are one request.
    seed = (int(how.get('seed') or 0) + 0x9E3779B1 * again) % 2**32 if warm else 0
    return Request(tuple(ids), new, tuple(stops), temperature=warm, seed=seed)


def make(
  subject: Subject,
  tokenizer: Any,
  stop_ids: Sequence[int],
  *,
  max_length: int = 0,
  tokens_per_batch: int = 4096,
  slots: int = 32,
  answers: Answers | None = None,
) -> Any:
  """An `lm_eval.api.model.LM` of a single model.

  Args:
    subject: The model.
    tokenizer: A fast transformers tokenizer.
    stop_ids: Tokens that end what it writes.
    max_length: Window in tokens; 0 for the model's own.
    tokens_per_batch: Tokens on all devices at once.
    slots: Texts that are written at once.
    answers: What it has answered before, and where new answers go; None remembers them as
      long as this model lives.
  """
  from lm_eval.api.model import TemplateLM

  window = max_length or subject.model.max_length

  class Model(_Ours, TemplateLM):
    """See `make`."""

  kept = Answers() if answers is None else answers
  return Model(subject, tokenizer, stop_ids, window, tokens_per_batch, slots, kept)
