"""One side of `gpu.py` that runs on jax, in a process of its own: our programs, or their plan.

  python -m benchmarks.gpu_jobs TASK.json

Prints what it has found so far as a line of JSON, the last of which counts. Programs are the
product's: the train step, scoring and the generation engine. Each is compiled from shapes before
any weight is made, and weights are made a layer at a time, so that nothing but the program itself
sets the peak of memory.
"""

import functools
import gc
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gpu_profile, gpu_shapes
from sft_jax.ahead import estimate
from sft_jax.ahead import setting as setting_lib
from sft_jax.ahead.setting import Setting
from sft_jax.data import pack
from sft_jax.evals import caches, generation, layout, loglik
from sft_jax.evals import model as eval_model
from sft_jax.interactive import doctor_bench
from sft_jax.models import hf
from sft_jax.parallel import mesh as mesh_lib
from sft_jax.train import optimizer
from sft_jax.train.state import init_state
from sft_jax.utils import chips, trees

Report = dict[str, Any]
Tell = Callable[[Report], None]
# Steps before the clock runs, then rounds of so many.
_WARM, _ROUNDS, _STEPS = 2, 3, 3


def ceilings() -> Report:
  """What the device gives: {'matmul': FLOP/s of square products, 'copy': bytes/s, read and written,
  'nominal': published FLOP/s or None} and what it is."""
  device = jax.devices()[0]
  on_gpu = device.platform == 'gpu'
  size, count = (16384, 2**30) if on_gpu else (256, 2**20)
  dtype = jnp.bfloat16 if on_gpu else jnp.float32
  # Drawn: a chip takes less power, and so runs faster, on numbers that are all alike.
  square = jax.jit(lambda: jax.random.normal(jax.random.key(0), (size, size), dtype))()
  seconds = doctor_bench.shortest(jax.jit(lambda x: x @ x), square, 10)
  del square
  vector = jnp.ones(count, jnp.float32)
  stats = device.memory_stats() or {}
  return {
    'platform': device.platform,
    'device': device.device_kind,
    'devices': jax.device_count(),
    'memory-limit': stats.get('bytes_limit'),
    'nominal': next((1 / share for share in (chips.mfu(1.0, device.device_kind),) if share), None),
    'matmul': 2 * size**3 / seconds,
    'copy': 2 * vector.nbytes / doctor_bench.shortest(jax.jit(lambda x: x + 1), vector, 10),
  }


def drawn(shapes: trees.Tree, seed: int = 0) -> trees.Tree:
  """Random parameters, or a fresh adapter, of these shapes and places."""
  out = {}
  for number, (path, leaf) in enumerate(sorted(trees.flatten(shapes).items())):
    draw = functools.partial(_draw, path.rpartition('/')[2], leaf.shape, leaf.dtype)
    key = jax.random.fold_in(jax.random.key(seed), number)
    out[path] = jax.jit(draw, out_shardings=leaf.sharding)(key)
  return trees.unflatten(out)


def _draw(name: str, shape: tuple[int, ...], dtype: Any, key: jax.Array) -> jax.Array:
  if name in ('scale', 'bias', 'lora_b'):
    return jnp.full(shape, name == 'scale', dtype)
  if name == 'kernel_scale':  # Of the integers below: kernels as wide as the others.
    return jnp.full(shape, 0.02 / 73, dtype)
  if len(shape) > 2:
    one = functools.partial(_draw, name, shape[1:], dtype)
    return jax.lax.map(one, jax.random.split(key, shape[0]))
  if jnp.issubdtype(dtype, jnp.integer):
    return jax.random.randint(key, shape, -127, 128, dtype)
  return 0.02 * jax.random.normal(key, shape, dtype)


class Training:
  """A train step as `execution/cohort.py` makes it, compiled ahead from shapes."""

  def __init__(self, one: Setting):
    """Compiles; makes no arrays."""
    self.setting, self.mesh = one, mesh_lib.make_mesh(1, 1, 1, jax.devices()[:1])
    self._held = setting_lib.weights(one, self.mesh)
    self._shapes = setting_lib.train_state(one, self._held)
    self._places: Any = setting_lib.train_batch(one, self.mesh)
    step = setting_lib.train_step(one, self._held)
    began = time.perf_counter()
    self.program = step.lower(self._held.base, self._shapes, self._places).compile()
    self.compile_seconds = time.perf_counter() - began
    self.base, self._state, self._batch = None, None, None
    self.losses: list[float] = []

  def bytes(self) -> float | None:
    """What the compiler says of memory; None where a kept program does not tell."""
    stats = self.program.memory_analysis()
    if not (stats and stats.peak_memory_in_bytes):
      return None
    return float(stats.peak_memory_in_bytes + stats.generated_code_size_in_bytes)

  def start(self, documents: int, base: Any = None) -> None:
    """Makes weights (but for a base given), state and a batch of so many documents a row."""
    one = self.setting
    self.base = drawn(self._held.base) if base is None and self._held.base else base
    cfg = hf.padded_for(one.cfg, self.mesh)
    # As long as needed: a run that is over is frozen.
    hypers = optimizer.make_hypers(cfg, learning_rate=1e-5, total_steps=10**6, lora_scale=4.0)
    trained = drawn(self._held.trained, 1)
    state = init_state(trained, [hypers] * one.runs, method=one.spec.method, mesh=self.mesh)
    put = lambda array, like: jax.device_put(array, like.sharding)
    self._state = jax.tree.map(put, state, self._shapes)
    self._batch = jax.tree.map(put, batch(one, documents), self._places)

  def steps(self, count: int) -> float:
    """Seconds of a step, of so many after one another.

    Raises:
      ArithmeticError: a loss that is no number: what was measured is then no training.
    """
    began = time.perf_counter()
    for _ in range(count):
      self._state, metrics = self.program(self.base, self._state, self._batch)
    loss = np.asarray(metrics['loss'])
    seconds = (time.perf_counter() - began) / count
    if not np.isfinite(loss).all():
      raise ArithmeticError(f'losses {loss} after {len(self.losses)} rounds')
    self.losses.append(float(loss.mean()))
    return seconds


def batch(one: Setting, documents: int) -> dict[str, np.ndarray]:
  """Random rows full of documents, all tokens supervised, as the loader lays them out."""
  rng = np.random.default_rng(0)
  rows, lengths = one.rows, gpu_shapes.document_lengths(one.length, documents)
  examples = [doctor_bench.drawn(rng, one.cfg.vocab_size, length) for length in lengths * rows]
  members = np.arange(len(examples)).reshape(rows, -1).tolist()
  lead = (one.lanes, one.micros, rows // one.lanes // one.micros)
  arrays = {
    name: array.reshape(*lead, one.length)
    for name, array in pack.fill(examples, members, one.length).items()
  }
  arrays['run'] = np.arange(one.lanes, dtype=np.int32)[:, None].repeat(one.micros, 1)
  return arrays | {'micro': np.asarray(one.micros, np.int32)}


def _running(told: Mapping[str, Any]) -> tuple[Training, Report]:
  """Training by the first of a task's attempts that has room, warm, and what there is to tell."""
  limit = (jax.devices()[0].memory_stats() or {}).get('bytes_limit', math.inf)
  notes, clean = [], True
  for attempt in map(tuple, told['tries']):
    made, started = None, False
    try:
      made = Training(gpu_shapes.setting(told, attempt))
      if (size := made.bytes() or 0) > limit:
        raise MemoryError(f'{size / 2**30:.1f} GiB of {limit / 2**30:.1f}')
      started = True
      made.start(told['documents'])
      made.steps(_WARM)
    except Exception as e:  # XLA and cuDNN raise types of their own.
      notes.append(f'{attempt}: {_line(e)}')
      clean = clean and not started
    else:
      # The mark of a device cannot be set back after what did not fit.
      peak = _peak() if clean else {'peak-bytes': None}
      return made, _about(told, made, attempt) | {'notes': notes, **peak}
    made = None
    gc.collect()
  raise MemoryError(f'nothing fits: {"; ".join(notes)}')


def _line(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:300]


def _about(told: Mapping[str, Any], run: Training, attempt: Any) -> Report:
  """What a training part is, and what the plan says of it."""
  one, documents = run.setting, gpu_shapes.document_lengths(told['length'], told['documents'])
  # A token of a document of length n is one of n: attention is counted as documents need it.
  mean = sum(n * n for n in documents) / sum(documents)
  whole = gpu_shapes.setting({**told, 'raw': told['whole']}, attempt)
  plan = gpu_shapes.planned(one, told.get('ceilings', {}))
  return {
    'rows': attempt[0],
    'attention': attempt[1],
    'remat': attempt[2],
    'tokens': one.tokens,
    'parameters': estimate.counts(one).all,
    'flops-per-token': gpu_shapes.flops_per_token(one, mean),
    'whole-flops-per-token': gpu_shapes.flops_per_token(whole, mean),
    'compile-seconds': run.compile_seconds,
    'compiled-bytes': run.bytes(),
    'plan-seconds': plan['train'],
    'least-seconds': plan.get('least'),
    'counted-bytes': plan['bytes'],
    'chunk': one.chunk,
  }


def train(told: Mapping[str, Any], tell: Tell) -> None:
  """A step of one run."""
  run, report = _running(told)
  seconds = [run.steps(_STEPS) for _ in range(_ROUNDS)]
  report |= {'seconds': {'step': seconds}, 'losses': run.losses}
  tell(report)
  if told.get('profile'):
    tell(report | {'kernels': {'step': gpu_profile.kernels(lambda: run.steps(1))}})


def cohort(told: Mapping[str, Any], tell: Tell) -> None:
  """A step of all runs as one program, and of one run as often as there are runs, in turns."""
  together, report = _running(told)
  runs, steps = told['runs'], told['repeats']
  attempt = (report['rows'] // runs, report['attention'], report['remat'])
  alone = Training(gpu_shapes.setting(told, attempt, runs=1))
  alone.start(told['documents'], together.base)
  alone.steps(_WARM)
  seconds: dict[str, list[float]] = {'step': [], 'sequence': []}
  for _ in range(_ROUNDS):
    seconds['step'].append(together.steps(steps))
    # Runs of one shape take equally long: a few of them tell.
    seconds['sequence'].append(runs * alone.steps(4 * steps))
    tell(report | {'seconds': seconds, 'losses': together.losses})
  if told.get('profile'):
    spent = {
      'step': gpu_profile.kernels(lambda: together.steps(1)),
      'sequence': gpu_profile.kernels(lambda: alone.steps(1)),
    }
    tell(report | {'seconds': seconds, 'losses': together.losses, 'kernels': spent})


def _subject(told: Mapping[str, Any]) -> tuple[Setting, eval_model.Subject]:
  """A base to evaluate, in its compute type."""
  one = gpu_shapes.setting(told, (1, 'auto', 'full'))
  mesh = mesh_lib.make_mesh(1, 1, 1, jax.devices()[:1])
  params = drawn(setting_lib.weights(one, mesh).trained)
  cfg = hf.padded_for(one.cfg, mesh)
  return one, eval_model.single(cfg, params, jnp.dtype(one.spec.compute_dtype), mesh)


def score(told: Mapping[str, Any], tell: Tell) -> None:
  """Log-likelihoods of answers, beginnings computed once."""
  one, subject = _subject(told)
  asked = [
    loglik.Text(ids, len(ids) - told['sizes'][2])
    for ids in gpu_shapes.texts(told, one.cfg.vocab_size)
  ]
  laid = layout.plan(asked, loglik.ROW, subject.model.sharing)
  plan = gpu_shapes.planned(one, {}, scored=laid.tokens)
  report = {
    'texts': len(asked),
    'given-tokens': sum(len(text.ids) for text in asked),
    'computed-tokens': laid.tokens,
    'plan-seconds': plan['score'],
  }
  scored = loglik.score(subject, asked)
  if not all(np.isfinite(each.logprobs).all() for each in scored):
    raise ArithmeticError('log-likelihoods that are no numbers')
  seconds = []
  for _ in range(_ROUNDS):
    began = time.perf_counter()
    loglik.score(subject, asked)
    seconds.append(time.perf_counter() - began)
  report |= {'seconds': {'pass': seconds}, **_peak()}
  tell(report)
  if told.get('profile'):
    tell(report | {'kernels': {'pass': gpu_profile.kernels(lambda: loglik.score(subject, asked))}})


def decode(told: Mapping[str, Any], tell: Tell) -> None:
  """Steps of greedy decoding at several batch sizes, the smallest first."""
  one, subject = _subject(told)
  count, cfg = estimate.counts(one), one.cfg
  wide = jnp.dtype(one.spec.compute_dtype).itemsize
  report: Report = {'seconds': {}, 'read-bytes': {}, 'plan-seconds': {}, 'peak-bytes': {}}
  few, many = told['new']
  prompts = np.random.default_rng(0).integers(
    0, cfg.vocab_size, (max(told['batches']), told['prompt'])
  )
  for size in told['batches']:
    slots = max(size, caches.FEWEST)
    engine = generation.Engine(subject, lambda prompt, new: '', (), slots=slots)

    def write(new: int, engine: Any = engine, size: int = size) -> float:
      asked = [generation.Request(prompt.tolist(), new) for prompt in prompts[:size]]
      began = time.perf_counter()
      (outputs,) = engine.generate(asked)
      seconds = time.perf_counter() - began
      assert all(len(output.ids) == new for output in outputs)
      return seconds

    write(few), write(many)
    seconds = [(write(many) - write(few)) / (many - few) for _ in range(_ROUNDS)]
    name = str(size)
    report['seconds'][name] = seconds
    # Weights but for the token table, and what the caches hold halfway.
    held = told['prompt'] + (few + many) / 2
    kept = size * held * 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim
    report['read-bytes'][name] = wide * (count.matmul + count.small + kept)
    changes = {'written': size, 'room': gpu_shapes.room(told), 'slots': size}
    report['plan-seconds'][name] = gpu_shapes.planned(one, {}, **changes)['decode']
    report['peak-bytes'][name] = _peak()['peak-bytes']
    tell(report)
    if told.get('profile'):
      spent = gpu_profile.kernels(lambda write=write: write(few))
      report.setdefault('kernels', {})[name] = spent
      tell(report)


def _peak() -> Report:
  """Most bytes the device has held in this process; None where it does not tell."""
  stats = chips.memory_stats()
  return {'peak-bytes': stats.get('device-bytes-peak')}


def work(told: Mapping[str, Any], tell: Tell) -> None:
  """Does a task; `tell` gets what has been found so far."""
  if told['side'] == 'ceilings':
    tell(ceilings())
  elif told['side'] == 'plan':
    tell(gpu_shapes.compiled_bytes(told, tuple(told['attempt'])))
  else:
    {'train': train, 'cohort': cohort, 'score': score, 'decode': decode}[told['kind']](told, tell)


if __name__ == '__main__':
  given = json.loads(Path(sys.argv[1]).read_text())
  work(given, lambda found: print(json.dumps(found), flush=True))
