"""What `gpu.py` measures, as settings of the product's own, and what its plan says of them.

Imports jax inside functions only: the peers' side reads the tables here too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sft_jax.models import published

LLAMA3, SMOLLM2, TOY = 'meta-llama/Meta-Llama-3-8B', 'HuggingFaceTB/SmolLM2-135M', 'toy'
# Beside those of `published`: SmolLM2's `config.json`, and a model of no size.
_LLAMA = {'architectures': ['LlamaForCausalLM'], 'rms_norm_eps': 1e-5, 'tie_word_embeddings': True}
_MODELS: dict[str, dict[str, Any]] = {
  SMOLLM2: _LLAMA
  | {
    'hidden_size': 576,
    'intermediate_size': 1536,
    'max_position_embeddings': 8192,
    'num_attention_heads': 9,
    'num_hidden_layers': 30,
    'num_key_value_heads': 3,
    'rope_theta': 100000.0,
    'vocab_size': 49152,
  },
  TOY: _LLAMA
  | {
    'hidden_size': 64,
    'intermediate_size': 128,
    'max_position_embeddings': 1024,
    'num_attention_heads': 4,
    'num_hidden_layers': 2,
    'num_key_value_heads': 2,
    'vocab_size': 512,
  },
}

# Rows in memory at once, attention and what layers compute again: the first that fits is taken.
_PLAIN = ((2, 'xla', 'dots'), (1, 'xla', 'dots'), (1, 'xla', 'full'))
_DEEP = ((2, 'cudnn', 'dots'), (2, 'cudnn', 'full'), *_PLAIN)
_WIDE = ((4, 'cudnn', 'dots'), (2, 'cudnn', 'dots'), *_PLAIN)
# The same of transformers: rows at once, and whether layers are computed again.
_PEER = ((4, False), (2, False), (1, False), (2, True), (1, True))

# 8B with float32 parameters, gradients and Adam takes 128 GB: the part that trains all of them has
# 8 of the 32 layers. `rows` are those of an optimiser step of the peer; of ours, `tries` has them.
PARTS: dict[str, dict[str, Any]] = {
  'full': {
    'kind': 'train',
    'about': 'full SFT of Llama-3-8B cut to 8 of its 32 layers, float32 parameters and Adam, bf16 '
    'compute, packed rows of 4,096',
    'model': LLAMA3,
    'layers': 8,
    'method': 'full',
    'length': 4096,
    'documents': 4,
    'chunk': 2048,
    'tries': _WIDE,
    'peer': _PEER,
    'rows': 4,
  },
  'decode': {
    'kind': 'decode',
    'about': 'greedy decoding of Llama-3-8B in bf16 from prompts of 128 tokens: a step, as the '
    'difference between 96 and 32 new tokens',
    'model': LLAMA3,
    'batches': (1, 32, 128),
    'prompt': 128,
    'new': (32, 96),
    'peer': True,
  },
  'lora-cut': {
    'kind': 'train',
    'about': 'LoRA (r 8, all linear maps) of the same 8 layers, bf16 base',
    'model': LLAMA3,
    'layers': 8,
    'method': 'lora',
    'length': 4096,
    'documents': 4,
    'chunk': 2048,
    'tries': _WIDE,
  },
  'cohort': {
    'kind': 'cohort',
    'about': '16 LoRA runs of SmolLM2-135M as one program, a row of 1,024 tokens each, beside the '
    'program of one run sixteen times; the peer trains one run',
    'model': SMOLLM2,
    'method': 'lora',
    'runs': 16,
    'length': 1024,
    'documents': 8,
    'tries': ((16, 'cudnn', 'dots'), (16, 'xla', 'dots'), (16, 'xla', 'full')),
    'peer': ((1, False),),
    'rows': 1,
    'repeats': 20,
  },
  'lora': {
    'kind': 'train',
    'about': 'LoRA (r 8, all linear maps) of the whole Llama-3-8B, bf16 base',
    'model': LLAMA3,
    'method': 'lora',
    'length': 4096,
    'documents': 4,
    'chunk': 2048,
    'tries': _DEEP,
    'peer': _PEER[1:],
    'rows': 2,
  },
  'score': {
    'kind': 'score',
    'about': 'scoring of multiple-choice questions by Llama-3-8B in bf16: 4 beginnings of 768 '
    'tokens, 16 questions of 96 each, 4 answers of 8 each',
    'model': LLAMA3,
    'beginnings': 4,
    'questions': 16,
    'answers': 4,
    'sizes': (768, 96, 8),
    # The peer computes each text whole, so a part of them tells its rate.
    'peer': {'texts': 64, 'batch': 16},
  },
  'lora-int8': {
    'kind': 'train',
    'about': 'LoRA of the whole Llama-3-8B, int8 base',
    'model': LLAMA3,
    'method': 'lora',
    'quantize': 'int8',
    'length': 4096,
    'documents': 4,
    'chunk': 2048,
    'tries': _DEEP,
  },
}
# What differs at toy size, by kind.
_TOYS: dict[str, dict[str, Any]] = {
  'train': {'length': 64, 'chunk': 32, 'tries': ((2, 'auto', 'dots'),), 'rows': 2},
  'cohort': {'length': 32, 'runs': 4, 'tries': ((4, 'auto', 'dots'),), 'repeats': 1},
  'decode': {'batches': (1, 2), 'prompt': 8, 'new': (8, 16)},
  'score': {'beginnings': 1, 'questions': 4, 'sizes': (96, 16, 4)},
}
_TOY_PEERS = {'train': ((2, False),), 'cohort': ((1, False),), 'score': {'texts': 4, 'batch': 4}}


def task(part: str, side: str, toy: bool, topology: str = '') -> dict[str, Any]:
  """What a process is told, all of it JSON.

  Args:
    part: A name of `PARTS`.
    side: ours | peer | plan.
    toy: Sizes that a CPU can take.
    topology: The chip, as `topology.parse` reads it; '' where plans do not know it.
  """
  told = {'part': part, 'side': side, 'toy': toy, 'topology': topology, **PARTS[part]}
  raw = raw_config(told['model'])
  if toy:
    told |= {'model': TOY} | _TOYS[told['kind']]
    raw = raw_config(TOY)
    if 'peer' in told:
      told['peer'] = _TOY_PEERS.get(told['kind'], True)
  elif 'layers' in told:
    raw = raw | {'num_hidden_layers': told['layers']}
  return told | {'raw': raw, 'whole': raw_config(told['model'])}


def raw_config(model: str) -> dict[str, Any]:
  """The `config.json` of a model measured here."""
  return _MODELS[model] if model in _MODELS else published.raw_config(model)


def setting(told: Mapping[str, Any], attempt: tuple[int, str, str], runs: int = 0) -> Any:
  """The product's setting of a task on one chip.

  Args:
    told: From `task`.
    attempt: Rows of all runs at once, attention, remat.
    runs: Of a cohort; 0 for what the task has.
  """
  from configs import base
  from sft_jax import spec as spec_lib
  from sft_jax.ahead.setting import Setting
  from sft_jax.models.config import ModelConfig
  from sft_jax.parallel import topology

  rows, attention, remat = attempt
  runs = runs or told.get('runs', 1)
  config = base.get_config()
  # No data are read: a row says what there is to learn.
  config.model.path, config.data.name = told['model'], 'lima'
  config.train.method = told.get('method', 'full')
  config.model.quantize = told.get('quantize', 'none')
  config.lora.dropout = 0.0
  spec = spec_lib.from_config(config, 'cpu' if told['toy'] else 'gpu')
  if 'method' not in told:  # What is evaluated lies in the type it is computed in.
    spec = dataclasses.replace(spec, param_dtype=spec.compute_dtype)
  chips = topology.parse(told['topology'] or 'h100:1')
  cfg, length = ModelConfig.from_hf(told['raw']), told.get('length', 512)
  filled, chunk = rows // runs, told.get('chunk', 512)
  documents = told.get('documents', 0)
  return Setting(
    cfg, spec, chips, (1, 1, 1), runs, rows, 1, filled, length, remat, chunk, attention, documents
  )


def attempted(report: Mapping[str, Any]) -> tuple[int, str, str]:
  """Which attempt a report of ours is of; of an evaluation, the usual setting."""
  if 'remat' in report:
    return report['rows'], report['attention'], report['remat']
  return 1, 'auto', 'full'


def document_lengths(length: int, documents: int) -> list[int]:
  """Uneven lengths that fill a row: as 1, 2, 3, … to each other."""
  whole = documents * (documents + 1) // 2
  lengths = [length * size // whole for size in range(1, documents + 1)]
  return [*lengths[:-1], length - sum(lengths[:-1])]


def texts(told: Mapping[str, Any], vocab: int) -> list[np.ndarray]:
  """Questions that share a beginning, and the answers of each, whole: `[n]` ids each."""
  rng = np.random.default_rng(0)
  draw = lambda size: rng.integers(0, vocab, size).astype(np.int32)
  shared, own, answer = told['sizes']
  out = []
  for _ in range(told['beginnings']):
    beginning = draw(shared)
    for _ in range(told['questions']):
      question = np.concatenate([beginning, draw(own)])
      out += [np.concatenate([question, draw(answer)]) for _ in range(told['answers'])]
  return out


def flops_per_token(one: Any, document: float) -> float:
  """Training FLOPs a token, causal, in documents of so many tokens (`chips.flops_per_token`)."""
  from sft_jax.ahead import estimate
  from sft_jax.utils import chips

  count = estimate.counts(one)
  width = one.cfg.num_heads * one.cfg.head_dim
  adapter = count.adapter if one.is_lora else None
  return chips.flops_per_token(count.matmul, one.cfg.num_layers, width, document, adapter)


def planned(one: Any, ceilings: Mapping[str, float], **changes: float) -> dict[str, float]:
  """What the plan says without compiling.

  Args:
    one: The setting.
    ceilings: {'matmul': FLOP/s, 'copy': bytes/s} as measured here, or empty.
    changes: Of `config.plan` and `config.eval`: scored, written, room (tokens) and slots.

  Returns:
    {'bytes', 'train', 'score', 'decode' (seconds, for one step or the given tokens), 'least' (of a
    step, on the measured ceilings)}.
  """
  from configs import base
  from sft_jax.ahead import asked, estimate, hours, kernels, plan

  config = base.get_config()
  # Nothing but the tokens that are given.
  config.eval.tasks = ''
  config.plan.scored = float(changes.get('scored', 0))
  config.plan.written = float(changes.get('written', 0))
  config.plan.room = int(changes.get('room', config.plan.room))
  config.eval.slots = int(changes.get('slots', 1))
  work = estimate.work(one)
  bound = kernels.bound(one)
  kinds = estimate.memory(one)
  part = plan.Part(one, cohorts=1, runs=one.runs, steps=1, snapshots=1)
  known = plan.Planned(part, None, {}, bound, kinds, [], {})
  found = hours.hours(known, config, asked.asked(config, 0.0))
  out = {name: 3600 * value for name, value in found.items()}
  if ceilings:
    out['least'] = max(work.flops / ceilings['matmul'], work.moved / ceilings['copy'])
  return out | {'bytes': sum(kinds.values())}


def compiled_bytes(told: Mapping[str, Any], attempt: tuple[int, str, str]) -> dict[str, Any]:
  """What the plan says of memory when it compiles for the chip; needs no chip, but its compiler."""
  from configs import base
  from sft_jax.ahead import compiled
  from sft_jax.evals import caches
  from sft_jax.parallel import topology

  one = setting(told, attempt)
  if why := topology.unable(one.topology):
    return {'failed': why}
  if told['kind'] == 'score':
    tokens = base.get_config().eval.tokens_per_batch
    rows = max(1, tokens // compiled.loglik.ROW)
    program = compiled.score(one, rows, beginnings=rows)
  elif told['kind'] == 'decode':
    most = room(told)
    program = compiled.decode(one, max(told['batches']), most, before=caches.smaller(most))
  else:
    program = compiled.train(one)
  return {'bytes': program.peak, 'refused': program.refused}


def room(told: Mapping[str, Any]) -> int:
  """Tokens that the cache of a text has room for at the end of the longer decoding."""
  return -(-(told['prompt'] + max(told['new'])) // 128) * 128
