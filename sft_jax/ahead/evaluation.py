"""Seconds and bytes that one evaluation takes on chips, by the roofline of its two programs.

Reading prompts is a batch of `config.eval.tokens_per_batch` tokens after another; writing is one
token for each of `config.eval.slots` texts after another. Not for what is asked: `asked.py`.
"""

import dataclasses
import math
from typing import Any

from sft_jax.ahead import asked, estimate, kernels
from sft_jax.ahead.asked import Asked
from sft_jax.ahead.setting import Setting
from sft_jax.data import pack
from sft_jax.evals import generation, loglik
from sft_jax.parallel import roofline


def asked_of(setting: Setting, config: Any) -> Asked:
  """What the evaluation of a snapshot of these runs asks, examples as long as a plan knows."""
  tokens = setting.filled * setting.length / setting.spec.batch_size
  return asked.asked(config, config.plan.tokens or tokens)


def chip_seconds(
  setting: Setting, snapshots: int, bases: int, each: Asked, config: Any
) -> dict[str, float]:
  """{score, decode: chip-seconds} of evaluations on the chips of a setting.

  Args:
    setting: Whose runs are asked together.
    snapshots: Of all its runs.
    bases: Models as they are, asked one by one.
    each: What is asked of each of them.
    config: See `seconds`.
  """
  together = seconds(setting, each, config)
  alone = seconds(dataclasses.replace(setting, runs=1), each, config)
  times = snapshots / setting.runs
  chips = setting.topology.chips
  return {kind: chips * (times * together[kind] + bases * alone[kind]) for kind in together}


def seconds(setting: Setting, each: Asked, config: Any) -> dict[str, float]:
  """{score, decode: seconds} of one evaluation of all runs of a setting, at most.

  Time between collectives (their latency) is not counted.

  Args:
    setting: Of training: evaluation runs on the same chips, with parameters as they lie.
    each: What is asked of each run.
    config: `eval.tokens_per_batch`, `eval.slots`, `eval.budget_seconds` and `plan.room`.
  """
  rows = batch_rows(setting, config.eval.tokens_per_batch)
  batches = each.read / (rows * loglik.ROW)
  texts = slots(setting, config)
  read = roofline.bound(score_work(setting, rows), setting.topology).seconds
  written = roofline.bound(decode_work(setting, texts, config.plan.room), setting.topology).seconds
  out = {'score': batches * read, 'decode': each.written / texts * written}
  # A budget is of the clock's seconds, these are the roofline's.
  share = config.plan.attained or kernels.ASSUMED
  budget, total = config.eval.budget_seconds * share, sum(out.values())
  if budget and total > budget:
    out = {kind: spent * budget / total for kind, spent in out.items()}
  return out


def batch_rows(setting: Setting, tokens: int) -> int:
  """Rows of `loglik.ROW` tokens of a batch, over all chips."""
  return max(1, tokens // loglik.ROW // setting.shards) * setting.shards


def slots(setting: Setting, config: Any) -> int:
  """Texts of each run that are written at once: as the engine has them, and chips divide them."""
  wanted = min(config.eval.slots, max(1, generation.CACHE_TOKENS // config.plan.room))
  return pack.round_up(wanted, setting.shards)


def score_work(setting: Setting, rows: int) -> roofline.Work:
  """What one chip does to read `rows` rows with each run of the setting."""
  cfg, count, wide = setting.cfg, estimate.counts(setting), estimate.width(setting)
  tokens = setting.runs * rows * loglik.ROW / setting.topology.chips
  # Every score of a row is computed, future ones too.
  scores = 4.0 * cfg.num_layers * cfg.num_heads * cfg.head_dim * loglik.ROW
  flops = tokens * (2.0 * (count.matmul + count.adapter) + scores)
  _, fsdp, tensor = setting.mesh
  # Matrices are put together for each batch.
  kept = estimate.kernel_bytes(setting) if setting.is_lora else wide
  whole = (kept * count.layers + wide * count.head) / tensor
  moved = whole + tokens * wide * cfg.num_layers * estimate.streams(cfg)
  sent = [(fsdp, tensor, (fsdp - 1) / fsdp * whole)]
  sent.append((tensor, 1, estimate.halves_bytes(setting, tokens * tensor)))
  return estimate.spread(setting, roofline.Work(flops, moved), sent)


def decode_work(setting: Setting, texts: int, room: int) -> roofline.Work:
  """What one chip does to write a token of each of `texts` texts of each run."""
  cfg, count, wide = setting.cfg, estimate.counts(setting), estimate.width(setting)
  data, fsdp, tensor = setting.mesh
  mine = setting.runs * texts / setting.topology.chips
  flops = 2.0 * mine * (count.matmul + count.adapter)
  # Matrices stay where they lie: what each part of the components gives is summed over `fsdp`.
  kept = estimate.kernel_bytes(setting) * (count.layers + count.head)
  moved = (kept + 4.0 * setting.runs * count.adapter) / (fsdp * tensor)
  moved += cache_bytes(setting, texts, room)
  heads, shared = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
  each = setting.runs * texts / data
  sums = wide * cfg.num_layers * (heads + 2 * shared + 2 * cfg.intermediate_size)
  sums = each * (sums + 4.0 * cfg.vocab_size) / tensor
  gathered = each * wide * cfg.num_layers * heads / tensor
  share = lambda n: (n - 1) / n
  sent = [(fsdp, tensor, share(fsdp) * (2 * sums + gathered))]
  sent.append((tensor, 1, estimate.halves_bytes(setting, each / fsdp)))
  return estimate.spread(setting, roofline.Work(flops, moved), sent)


def cache_bytes(setting: Setting, texts: int, room: int) -> float:
  """Keys and values of all texts on one chip; whole heads, so `tensor` divides no fewer."""
  cfg = setting.cfg
  heads = math.ceil(cfg.num_kv_heads / setting.mesh[2])
  a_token = 2.0 * estimate.width(setting) * cfg.num_layers * heads * cfg.head_dim
  return setting.runs * texts / setting.shards * room * a_token


def held_bytes(setting: Setting, config: Any) -> float:
  """About what a chip holds while texts are written: parameters, moments and caches."""
  kinds = estimate.memory(setting)
  cache = cache_bytes(setting, slots(setting, config), config.plan.room)
  return kinds['parameters'] + kinds['optimiser'] + cache
