"""The peer's side of `gpu.py`, in a process of its own: transformers on torch, LoRA by PEFT.

  python -m benchmarks.gpu_peer TASK.json

Random weights of the same shape, rows of as many tokens. As it comes: eager, `sdpa` attention,
fused AdamW, bf16 by autocast over float32 parameters (full) or over a bf16 base (LoRA); of rows at
once and recomputation, the fastest that fits. Its rows are whole texts, which lets `sdpa` take its
fastest kernel; ours are packed documents. Prints what it has found so far as a line of JSON, the
last of which counts. Does not import jax.
"""

import contextlib
import functools
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import gpu_shapes

Report = dict[str, Any]
Tell = Callable[[Report], None]
_WARM, _ROUNDS, _STEPS = 1, 3, 3


def _device(told: Mapping[str, Any]) -> str:
  if told['toy']:
    return 'cpu'
  if not torch.cuda.is_available():
    raise RuntimeError('this torch sees no GPU: install a build with CUDA')
  return 'cuda'


def _wait(device: str) -> None:
  if device == 'cuda':
    torch.cuda.synchronize()


def _model(told: Mapping[str, Any], device: str, dtype: torch.dtype) -> Any:
  """A Llama of the task's shape with random weights, made where they are used."""
  transformers.utils.logging.set_verbosity_error()
  values = {name: value for name, value in told['raw'].items() if name != 'architectures'}
  # Without a token that ends texts, all are as long as was asked.
  ends = dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'))
  config = transformers.LlamaConfig(**values, **ends)
  with torch.device(device):
    make = transformers.AutoModelForCausalLM.from_config
    return make(config, dtype=dtype, attn_implementation='sdpa')


def train(told: Mapping[str, Any], tell: Tell) -> None:
  """An optimiser step of `rows` rows, full or LoRA."""
  device, lora = _device(told), told['method'] == 'lora'
  narrow = lora and not told['toy']
  model = _model(told, device, torch.bfloat16 if narrow else torch.float32)
  if lora:
    import peft

    wanted = peft.LoraConfig(
      r=8, lora_alpha=32, lora_dropout=0.0, target_modules='all-linear', task_type='CAUSAL_LM'
    )
    model = peft.get_peft_model(model, wanted)
  model.train()
  trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
  optimiser = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=device == 'cuda')
  rows = torch.randint(0, told['raw']['vocab_size'], (told['rows'], told['length']), device=device)
  notes = []
  for at_once, again in told['peer']:
    if again:
      options = {'use_reentrant': False}
      model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    step = functools.partial(_step, model, optimiser, trained, rows, at_once, device, told['toy'])
    try:
      for _ in range(_WARM):
        step()
      seconds = [_timed(step, device) for _ in range(_ROUNDS)]
    except torch.OutOfMemoryError:
      notes.append(f'rows {at_once}, recomputation {again}: no room')
    else:
      setting = {'rows': at_once, 'recomputation': again, 'notes': notes}
      tell({'tokens': rows.numel(), 'seconds': {'step': seconds}, **setting, **_peak(device)})
      return
    # Outside of the handler: the error holds on to what did not fit.
    optimiser.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
  raise MemoryError(f'nothing fits: {"; ".join(notes)}')


def _step(
  model: Any, optimiser: Any, trained: Any, rows: Any, at_once: int, device: str, toy: bool
) -> None:
  half = contextlib.nullcontext() if toy else torch.autocast(device, torch.bfloat16)
  for part in rows.split(at_once):
    with half:
      loss = model(input_ids=part, labels=part, use_cache=False).loss
    (loss * len(part) / len(rows)).backward()
  torch.nn.utils.clip_grad_norm_(trained, 1.0)
  optimiser.step()
  optimiser.zero_grad(set_to_none=True)


def _timed(step: Callable[[], None], device: str) -> float:
  """Seconds of a step, of several after one another."""
  _wait(device)
  began = time.perf_counter()
  for _ in range(_STEPS):
    step()
  _wait(device)
  return (time.perf_counter() - began) / _STEPS


@torch.inference_mode()
def score(told: Mapping[str, Any], tell: Tell) -> None:
  """Log-likelihoods of answers, each text whole, logits where they are needed only."""
  device = _device(told)
  model = _model(told, device, torch.float32 if told['toy'] else torch.bfloat16).eval()
  asked = np.stack(gpu_shapes.texts(told, told['raw']['vocab_size']))[: told['peer']['texts']]
  ids = torch.as_tensor(asked, dtype=torch.long, device=device)
  answer = told['sizes'][2]

  def once(part: torch.Tensor) -> torch.Tensor:
    logits = model(part, logits_to_keep=answer + 1, use_cache=False).logits[:, :-1]
    logprobs = logits.float().log_softmax(-1)
    return logprobs.gather(-1, part[:, -answer:, None]).sum((1, 2)).cpu()

  once(ids[: told['peer']['batch']])
  seconds = []
  for _ in range(_ROUNDS):
    began = time.perf_counter()
    for part in ids.split(told['peer']['batch']):
      once(part)
    seconds.append(time.perf_counter() - began)
  tell({'texts': len(ids), 'seconds': {'pass': seconds}, **_peak(device)})


@torch.inference_mode()
def decode(told: Mapping[str, Any], tell: Tell) -> None:
  """Steps of `generate`, greedy, at several batch sizes, the smallest first."""
  device = _device(told)
  model = _model(told, device, torch.float32 if told['toy'] else torch.bfloat16).eval()
  few, many = told['new']
  report: Report = {'seconds': {}}
  for size in told['batches']:
    ids = torch.randint(0, told['raw']['vocab_size'], (size, told['prompt']), device=device)

    def write(new: int, ids: Any = ids) -> float:
      _wait(device)
      began = time.perf_counter()
      mask = torch.ones_like(ids)
      out = model.generate(
        ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
      )
      _wait(device)
      assert out.shape[1] == ids.shape[1] + new
      return time.perf_counter() - began

    write(few), write(many)
    seconds = [(write(many) - write(few)) / (many - few) for _ in range(2)]
    report['seconds'][str(size)] = seconds
    tell(report | _peak(device))


def _peak(device: str) -> Report:
  """Most bytes of tensors in this process; None on a CPU."""
  return {'peak-bytes': torch.cuda.max_memory_allocated() if device == 'cuda' else None}


def work(told: Mapping[str, Any], tell: Tell) -> None:
  """Does a task; `tell` gets what has been found so far."""
  kinds = {'train': train, 'cohort': train, 'score': score, 'decode': decode}
  kinds[told['kind']](told, tell)


if __name__ == '__main__':
  given = json.loads(Path(sys.argv[1]).read_text())
  work(given, lambda found: print(json.dumps(found), flush=True))
