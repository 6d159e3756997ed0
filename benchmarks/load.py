"""Peak host memory and bytes read while a checkpoint is loaded: `python -m benchmarks.load`.

Writes a synthetic bfloat16 checkpoint of Llama shape (8 GB by default) into a temporary directory,
then loads it in fresh processes: on one device, over a mesh of 8 fake devices, and as one of two
processes that own half of such a mesh each. Memory is the kernel's high-water mark less what the
process held before loading; bytes are those the safetensors library was asked for, and, where the
kernel counts them, those it read. `--out` writes the figures.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report

REPOSITORY = Path(__file__).resolve().parents[1]
MEMORY_BAR, BYTES_BAR = 1.15, 1.1


def write(directory: Path, layers: int) -> int:
  """Writes the checkpoint, a shard a layer; returns its bytes of parameters."""
  import ml_dtypes
  import numpy as np
  from safetensors.numpy import save_file

  hidden, width, vocab = 4096, 14336, 32000
  config = {
    'architectures': ['LlamaForCausalLM'],
    'hidden_size': hidden,
    'intermediate_size': width,
    'num_hidden_layers': layers,
    'num_attention_heads': 32,
    'num_key_value_heads': 8,
    'vocab_size': vocab,
    'rms_norm_eps': 1e-5,
  }
  (directory / 'config.json').write_text(json.dumps(config))
  noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(ml_dtypes.bfloat16)

  def tensor(*shape: int) -> Any:
    return np.resize(noise, shape)

  shards: dict[str, dict[str, Any]] = {
    'top': {
      'model.embed_tokens.weight': tensor(vocab, hidden),
      'model.norm.weight': tensor(hidden),
      'lm_head.weight': tensor(vocab, hidden),
    }
  }
  sizes = {'q': hidden, 'k': 1024, 'v': 1024, 'o': hidden}
  index: dict[str, str] = {}
  total = 0
  for layer in [None, *range(layers)]:
    if layer is not None:
      stem = f'model.layers.{layer}'
      shard = {f'{stem}.self_attn.{n}_proj.weight': tensor(s, hidden) for n, s in sizes.items()}
      shard |= {
        f'{stem}.mlp.gate_proj.weight': tensor(width, hidden),
        f'{stem}.mlp.up_proj.weight': tensor(width, hidden),
        f'{stem}.mlp.down_proj.weight': tensor(hidden, width),
        f'{stem}.input_layernorm.weight': tensor(hidden),
        f'{stem}.post_attention_layernorm.weight': tensor(hidden),
      }
    else:
      shard = shards['top']
    file = f'model-{"top" if layer is None else layer}.safetensors'
    save_file(shard, directory / file)
    index |= dict.fromkeys(shard, file)
    total += sum(value.nbytes for value in shard.values())
  (directory / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  return total


def load(directory: str, process: int, processes: int, address: str) -> dict[str, Any]:
  """Loads the checkpoint in this process and says what it took."""
  import jax
  import jax.numpy as jnp

  from benchmarks.train_sides import peak_rss
  from sft_jax.models import hf, hf_dir, source
  from sft_jax.models.config import ModelConfig
  from sft_jax.parallel import mesh as mesh_lib
  from sft_jax.utils import trees

  if processes > 1:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(address, processes, process)
  asked = 0
  read = hf_dir.HfCheckpoint.read

  def counted(self: Any, name: str, index: Any = ()) -> Any:
    nonlocal asked
    value = read(self, name, index)
    asked += value.nbytes
    return value

  hf_dir.HfCheckpoint.read = counted  # type: ignore[method-assign]
  checkpoint = source.resolve(directory)
  cfg = ModelConfig.from_hf(checkpoint.config)
  mesh = mesh_lib.make_mesh(1, -1, 1)
  jax.block_until_ready(jnp.zeros(8) + 1)
  before, began = peak_rss(), time.perf_counter()
  params = jax.block_until_ready(hf.load_params(checkpoint, cfg, mesh, jnp.bfloat16))
  seconds = time.perf_counter() - began
  own = sum(
    shard.data.nbytes
    for leaf in trees.flatten(params).values()
    for shard in leaf.addressable_shards
  )
  return {
    'devices': jax.device_count(),
    'processes': processes,
    'own-bytes': own,
    'memory-ratio': (peak_rss() - before) / own,
    'bytes-asked-ratio': asked / own,
    'seconds': seconds,
  }


def run(directory: Path, devices: int, processes: int) -> list[dict[str, Any]]:
  """`load` in fresh processes."""
  each = devices // processes
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={each}',
  }
  address = f'127.0.0.1:{20000 + os.getpid() % 20000}'
  command = [sys.executable, '-m', 'benchmarks.load', '--load', str(directory)]
  started = [
    subprocess.Popen(
      [*command, '--process', str(i), '--processes', str(processes), '--address', address],
      cwd=REPOSITORY,
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]
  outputs = [process.communicate()[0] for process in started]
  if any(process.returncode for process in started):
    sys.exit('a process failed')
  return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
  """Writes, loads, prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--layers', type=int, default=18, help='18 make 8.3 GB')
  parser.add_argument('--out', default='')
  parser.add_argument('--load', default='')
  parser.add_argument('--process', type=int, default=0)
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--address', default='')
  args = parser.parse_args()
  if args.load:
    print(json.dumps(load(args.load, args.process, args.processes, args.address)))
    return
  with tempfile.TemporaryDirectory(prefix='load-') as scratch:
    size = write(Path(scratch), args.layers)
    rows = [
      row
      for devices, count in ((1, 1), (8, 1), (8, 2))
      for row in run(Path(scratch), devices, count)
    ]
  lines = [
    f'{size / 1e9:.2f} GB of bfloat16 parameters, {os.cpu_count()} cores, {platform.machine()}.',
    '',
    '| devices | processes | own GB | peak memory / own | bytes asked / own | seconds | bars |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    met = row['memory-ratio'] <= MEMORY_BAR and row['bytes-asked-ratio'] <= BYTES_BAR
    lines.append(
      f'| {row["devices"]} | {row["processes"]} | {row["own-bytes"] / 1e9:.2f} '
      f'| {row["memory-ratio"]:.3f} | {row["bytes-asked-ratio"]:.3f} | {row["seconds"]:.0f} '
      f'| {"met" if met else "MISSED"} |'
    )
  print('\n'.join(lines))
  command = ' '.join(['python -m benchmarks.load', *sys.argv[1:]])
  title = ['# Memory and bytes of loading', '', f'`{command}`', '']
  report.write(args.out, [*title, *lines], {'bytes': size, 'rows': rows})


if __name__ == '__main__':
  main()
