"""One side of `train_cpu.py` in a process of its own: reads a task, trains, prints one JSON line.

  python -m benchmarks.train_sides TASK.json

Both sides report the same numbers, taken at the same moments: the end of each optimiser step.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Task = Mapping[str, Any]

# What the two sides must share beside data and weights; the rest is each side's default.
EPOCHS, MAX_LENGTH, LEARNING_RATE = 1, 1024, {'full': 2e-5, 'lora': 2e-4}
RANK, ALPHA = 8, 32
MICRO_TOKENS = 1024  # the runner's own limit on a CPU


class Clock:
  """Wall and processor time at the end of each optimiser step."""

  def __init__(self, spawned: float):
    """`spawned`: `time.time()` at which the process was asked for."""
    self._spawned = spawned
    self.marks: list[tuple[float, float]] = []
    self.losses: list[float] = []
    self.notes: dict[str, Any] = {}

  def since_spawn(self) -> float:
    """Seconds since the process was asked for."""
    return time.time() - self._spawned

  def ready(self) -> None:
    """Everything is loaded and compiled; the first step begins."""
    self.notes['seconds-until-ready'] = self.since_spawn()

  def step_done(self) -> None:
    """Marks the end of an optimiser step."""
    if not self.marks:
      self.notes['seconds-to-first-step'] = self.since_spawn()
    self.marks.append((time.perf_counter(), time.process_time()))

  def report(self, examples: list[int]) -> dict[str, Any]:
    """Rates over all steps but the first; `examples` in each step."""
    (wall, cpu), (wall_end, cpu_end) = self.marks[0], self.marks[-1]
    timed = sum(examples[1:])
    return {
      'examples-per-second': timed / (wall_end - wall) if timed else None,
      'cpu-seconds-per-example': (cpu_end - cpu) / timed if timed else None,
      'peak-rss-bytes': peak_rss(),
      'losses': self.losses,
      **self.notes,
    }


def peak_rss() -> int:
  """Most bytes this process has had resident.

  Linux's own mark of this address space where it has one: `ru_maxrss` starts at the size of the
  process that forked it.
  """
  status = Path('/proc/self/status')
  if status.exists():
    for line in status.read_text().splitlines():
      if line.startswith('VmHWM:'):
        return 1024 * int(line.split()[1])
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else 1024 * peak


def cores() -> int:
  """Cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _our_run(task: Task, model: str) -> Any:
  """A run as `sft_jax.main` makes it; nothing is written into its workdir."""
  from configs import base
  from sft_jax.execution import runner
  from sft_jax.train import loop

  config = base.get_config()
  config.model.path = model
  config.data.path = os.path.join(task['work'], 'records.jsonl')
  config.data.template = 'chat'
  config.data.heldout_share = 0.0
  config.train.method = task['method']
  config.train.epochs = float(EPOCHS)
  config.train.batch_size = task['batch_size']
  config.train.learning_rate = LEARNING_RATE[task['method']]
  config.train.schedule = 'linear'
  config.train.max_length = MAX_LENGTH
  config.train.compute_dtype = 'float32'
  config.lora.rank, config.lora.alpha, config.lora.dropout = RANK, float(ALPHA), 0.0
  config.mesh.allow_idle = True
  config.update_from_flattened_dict(task.get('overrides', {}))
  return runner.Run(config, os.path.join(task['work'], 'unused'), loop.StopSignal())


def prepare(task: Task) -> dict[str, Any]:
  """Writes weights (float32), initial adapters and token ids that both sides start from."""
  import numpy as np

  work = task['work']
  job = _our_run({**task, 'method': 'full'}, task['model'])
  _, state = job.alone().start()
  model = os.path.join(work, 'model')
  job.program.export(model, state.trained, format='hf', dtype='float32', card={}, stop_ids=())
  examples = [job.data.train[i] for i in job.loader.runs[0][1].order(0)]
  rows = [
    {
      'input_ids': e.ids.tolist(),
      'labels': np.where(e.loss_weight > 0, e.ids, -100).tolist(),
    }
    for e in examples
  ]
  Path(work, 'examples.json').write_text(json.dumps(rows))
  job = _our_run({**task, 'method': 'lora'}, model)
  _, state = job.alone().start()
  adapter = os.path.join(work, 'adapter')
  job.program.export(adapter, state.trained, format='peft', dtype='float32', card={}, stop_ids=())
  return {
    'examples': len(rows),
    'tokens': sum(len(row['input_ids']) for row in rows),
    'supervised': sum(label != -100 for row in rows for label in row['labels']),
    'longest': max(len(row['input_ids']) for row in rows),
  }


def ours(task: Task, clock: Clock) -> dict[str, Any]:
  """sft_jax: the runner's own model, data, loader and step, one compiled program per shape."""
  job = _our_run(task, os.path.join(task['work'], 'model'))
  loader = _loader(job, task)
  cohort = job.alone()
  base, state = cohort.start()
  step = cohort.make_step(state)
  place = lambda index: loader.put(loader.batch(index), job.program.mesh)
  began = time.perf_counter()
  programs: dict[int, Any] = {}
  for index in range(loader.total_steps):
    if loader.step_length(index) not in programs:
      lowered = step.lower(base, state, place(index))
      programs[loader.step_length(index)] = lowered.compile()
  clock.notes['compile-seconds'] = time.perf_counter() - began
  clock.notes['programs'] = len(programs)
  clock.notes['shape'] = loader.shape
  clock.ready()
  from sft_jax.data.loader import Prefetch

  prefetch = Prefetch(place, loader.total_steps)
  for index in range(loader.total_steps):
    state, metrics = programs[loader.step_length(index)](base, state, prefetch(index))
    clock.losses.append(float(metrics['loss'][0]))
    clock.step_done()
  prefetch.close()
  slots = [int(loader.padded(i)[0] + loader.tokens(i)[0]) for i in range(loader.total_steps)]
  clock.notes['tokens-computed'] = sum(slots)
  sampler = loader.runs[0][1]
  return clock.report([len(sampler.indices(i)) for i in range(loader.total_steps)])


def _loader(job: Any, task: Task) -> Any:
  """The runner's packed loader, or TRL's layout: all examples of a step padded to its longest.

  Padded rows go through the model in microbatches of as many tokens as the runner's; what a step
  computes is unchanged.
  """
  from sft_jax.data.loader import Loader

  options = task.get('loader', {})
  if task['layout'] == 'packed' and not options:
    return job.loader
  options = {'tokens_per_micro': MICRO_TOKENS, **options}
  if task['layout'] == 'packed':
    return Loader(job.loader.runs, layout='packed', **options)
  return Loader(job.loader.runs, layout='padded', pad_multiple=task['pad_multiple'], **options)


def trl(task: Task, clock: Clock) -> dict[str, Any]:
  """TRL's SFTTrainer on the same tokens and labels, in the same order, from the same weights."""
  import datasets
  import torch
  import transformers
  from trl import SFTConfig, SFTTrainer

  torch.set_num_threads(cores())
  transformers.utils.logging.set_verbosity_error()
  datasets.disable_progress_bars()
  rows = json.loads(Path(task['work'], 'examples.json').read_text())
  directory = os.path.join(task['work'], 'model')
  model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
  if task['method'] == 'lora':
    import peft

    adapter = os.path.join(task['work'], 'adapter')
    model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)

  class Trainer(SFTTrainer):
    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
      if not clock.losses:
        clock.ready()
      loss = super().training_step(*args, **kwargs)
      clock.losses.append(float(loss))
      return loss

  class Marks(transformers.TrainerCallback):
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
      clock.step_done()

  settings = SFTConfig(
    output_dir=os.path.join(task['work'], 'trl'),
    per_device_train_batch_size=task['batch_size'],
    num_train_epochs=EPOCHS,
    max_length=MAX_LENGTH,
    learning_rate=LEARNING_RATE[task['method']],
    train_sampling_strategy='sequential',
    bf16=False,
    use_cpu=True,
    logging_steps=1,
    save_strategy='no',
    report_to='none',
    disable_tqdm=True,
    **task['trl'],
  )
  trainer = Trainer(
    model=model,
    args=settings,
    train_dataset=datasets.Dataset.from_list(rows),
    processing_class=transformers.AutoTokenizer.from_pretrained(directory),
    callbacks=[Marks()],
  )
  trainer.remove_callback(transformers.PrinterCallback)
  trainer.train()
  clock.notes['gradient-checkpointing'] = settings.gradient_checkpointing
  clock.notes['threads'] = torch.get_num_threads()
  size = task['batch_size']
  return clock.report([len(rows[i : i + size]) for i in range(0, len(rows), size)])


def main() -> None:
  """Does the task in the file named on the command line."""
  task = json.loads(Path(sys.argv[1]).read_text())
  clock = Clock(task['spawned'])
  if task['side'] == 'prepare':
    result = prepare(task)
  elif task['side'] == 'ours':
    result = ours(task, clock)
  else:
    result = trl(task, clock)
  print(json.dumps(result), flush=True)


if __name__ == '__main__':
  main()
