"""Peak memory and time of the layer report of a 16 GB pair: `python -m benchmarks.layer_report`.

Both checkpoints are of an 8B Llama's shape in bfloat16, mostly holes in sparse files, so that they
need no room; reading them is as much work as if they did not. In one layer of the second, values of
1 are written into a matrix, whose norm must come out and every other be 0.
"""

import argparse
import json
import resource
import struct
import tempfile
import time
from pathlib import Path

from sft_jax.evals.probes import layer_report
from sft_jax.models import families, hf, source
from sft_jax.models.config import ModelConfig

MEMORY_BAR = 2 << 30
PLANTED_LAYER, PLANTED = 15, 10_000
_ONE = b'\x80\x3f'  # 1.0 in bfloat16


def write(directory: Path, layers: int, planted: bool) -> int:
  """Writes a sparse checkpoint; returns the bytes of its tensors."""
  config = {
    'architectures': ['LlamaForCausalLM'],
    'hidden_size': 4096,
    'intermediate_size': 14336,
    'num_hidden_layers': layers,
    'num_attention_heads': 32,
    'num_key_value_heads': 8,
    'vocab_size': 128_256,
    'rms_norm_eps': 1e-5,
  }
  directory.mkdir()
  (directory / 'config.json').write_text(json.dumps(config))
  cfg = ModelConfig.from_hf(config)
  header, end, place = {}, 0, 0
  for row in families.rows(cfg):
    for layer, name in enumerate(hf.hf_names(row, cfg)):
      shape = families.stored_shape(row, cfg)
      size = 2
      for axis in shape:
        size *= axis
      header[name] = {'dtype': 'BF16', 'shape': list(shape), 'data_offsets': [end, end + size]}
      if row.path == 'layers/mlp/up/kernel' and layer == PLANTED_LAYER:
        place = end
      end += size
  text = json.dumps(header).encode()
  with open(directory / 'model.safetensors', 'wb') as f:
    f.write(struct.pack('<Q', len(text)) + text)
    f.truncate(8 + len(text) + end)
    if planted:
      f.seek(8 + len(text) + place)
      f.write(_ONE * PLANTED)
  return end


def main() -> None:
  """Prints figures and whether the bar is met."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--layers', type=int, default=32)
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    places = [Path(directory) / name for name in ('base', 'tuned')]
    sizes = [write(place, given.layers, i == 1) for i, place in enumerate(places)]
    began = time.monotonic()
    found = layer_report.layer_report(*(source.resolve(str(place)) for place in places))
    seconds = time.monotonic() - began
  want = [PLANTED**0.5 if layer == PLANTED_LAYER else 0.0 for layer in range(given.layers)]
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(f'two checkpoints of {sizes[0] / 1e9:.1f} GB: {seconds:.0f} s, peak {peak / 1e9:.2f} GB')
  print(f'memory {"met" if peak <= MEMORY_BAR else "MISSED"} (bar {MEMORY_BAR / 1e9:.2f} GB)')
  print(f'planted change {"found" if found["all"]["norm"] == want else "NOT FOUND"}')


if __name__ == '__main__':
  main()
