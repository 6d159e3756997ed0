"""What the hardware holds and can do: memory in use, FLOPs counted, utilisation. Not for meshes."""

import os
import sys

# Dense bf16 peak, FLOP/s a chip, by a part of jax's `device_kind`; the first match counts.
CHIP_PEAKS: tuple[tuple[str, float], ...] = (
  ('B200', 2250e12),
  ('H100 PCIe', 756e12),
  ('H100 NVL', 835e12),
  ('H100', 989e12),
  ('H200', 989e12),
  ('GH200', 989e12),
  ('A100', 312e12),
  ('TPU v6', 918e12),
  ('TPU v5 lite', 197e12),
  ('TPU v5e', 197e12),
  ('TPU v5', 459e12),
  ('TPU v4', 275e12),
)


def memory_stats() -> dict[str, float]:
  """Memory in bytes: {'device-bytes', 'device-bytes-peak'} of the fullest local device, where it
  tells, and {'host-bytes', 'host-bytes-peak'} resident in this process."""
  import jax

  stats: dict[str, float] = {}
  for device in jax.local_devices():
    try:
      found = device.memory_stats() or {}
    except (RuntimeError, NotImplementedError):  # devices of some platforms cannot tell
      found = {}
    for name, key in (('device-bytes', 'bytes_in_use'), ('device-bytes-peak', 'peak_bytes_in_use')):
      if key in found:
        stats[name] = max(stats.get(name, 0.0), float(found[key]))
  return {**stats, **_host_memory()}


def _host_memory() -> dict[str, float]:
  stats: dict[str, float] = {}
  if os.path.exists('/proc/self/statm'):
    with open('/proc/self/statm') as f:
      stats['host-bytes'] = float(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  try:
    import resource  # absent on Windows

    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == 'darwin' else 1024
    peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    # The kernel counts the two at different moments.
    stats['host-bytes-peak'] = max(peak, stats.get('host-bytes', 0.0))
  except ImportError:
    pass
  return stats


def flops_per_token(
  matmul_params: int,
  num_layers: int,
  width: int,
  length: float,
  adapter_params: int | None = None,
) -> float:
  """Training FLOPs of one token, counted as 6·N + 6·L·d·S with causal attention.

  Rematerialisation is not counted. With a frozen base (LoRA) no gradient of its weights is
  computed: 4·N + 6·N_adapter + 6·L·d·S.

  Args:
    matmul_params: N, parameters that multiply activations: with the head, without the embedding.
    num_layers: L.
    width: d, number of heads × size of a head.
    length: S, tokens a row (mean length of an example where rows are packed).
    adapter_params: N_adapter of one run, or None when the base is trained.
  """
  attention = 6.0 * num_layers * width * length
  if adapter_params is None:
    return 6.0 * matmul_params + attention
  return 4.0 * matmul_params + 6.0 * adapter_params + attention


def mfu(flops_per_s: float, device_kind: str) -> float | None:
  """Model FLOP utilisation of one chip: share of its dense bf16 peak; None for an unknown chip.

  Args:
    flops_per_s: FLOP/s of one chip, counted by `flops_per_token`.
    device_kind: `jax.Device.device_kind`.
  """
  for name, peak in CHIP_PEAKS:
    if name.lower() in device_kind.lower():
      return flops_per_s / peak
  return None
