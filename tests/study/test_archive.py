"""What a workdir takes is counted, and a quota holds before anything is written."""

import json

import pytest

from sft_jax.study import archive
from sft_jax.utils.errors import UserError


def put(path, size=10):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(b'x' * size)


def make_run(run, scores=((10, 3.0), (20, 2.0), (30, 2.5)), done=True):
  for step, _ in scores:
    put(run / 'weights' / str(step) / 'weights.safetensors', 1000)
  rows = [{'run-id': 'r', 'step': 0, 'ppl-heldout': 1.0}]
  rows += [{'run-id': 'r', 'step': step, 'ppl-heldout': score} for step, score in scores]
  (run / 'rows.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  put(run / 'checkpoints' / '30' / 'state', 5000)
  put(run / 'export' / 'delta' / 'model.sftdelta', 300)
  put(run / 'export' / 'peft' / 'adapter_model.safetensors', 200)
  put(run / 'samples' / 'gsm8k-30.jsonl', 40)
  put(run / 'metrics.jsonl', 70)
  if done:
    put(run / 'done.json', 5)
  return run


def test_usage_counts_by_kind(tmp_path):
  make_run(tmp_path / 'runs' / 'a')
  put(tmp_path / 'study.json', 11)
  put(tmp_path / 'results.csv', 13)
  put(tmp_path / 'cohorts' / 'c' / 'part-0' / 'checkpoints' / '3' / 'x', 900)
  put(tmp_path / 'cohorts' / 'c' / 'lease.json', 7)
  uses = archive.usage(tmp_path)
  sizes = {kind: use.bytes for kind, use in uses.items() if use.bytes}
  rows = (tmp_path / 'runs' / 'a' / 'rows.jsonl').stat().st_size
  assert sizes == {
    'training state': 5900,
    'weights': 3000,
    'deltas': 300,
    'exports': 200,
    'answers': 40,
    'logs': 70,
    'tables': 13,
    'records': 11 + 7 + 5 + rows,
  }
  assert uses['weights'].files == 7  # with its directories
  assert sum(use.files for use in uses.values()) == len(list(tmp_path.rglob('*')))
  text = archive.lines(uses)
  assert text[0].split()[:2] == ['training', 'state'] and '5.9 kB' in text[0]
  assert text[-1].startswith('together')


@pytest.mark.parametrize('unit', ['bytes', 'files'])
def test_a_full_quota_is_one_line_before_anything(tmp_path, unit):
  make_run(tmp_path / 'runs' / 'a')
  used = sum(getattr(use, unit) for use in archive.usage(tmp_path).values())
  room = {'bytes': 1_380, 'files': 8}[unit]
  quota = archive.Quota(**{unit: used + room})
  with pytest.raises(UserError) as caught:
    quota.require(tmp_path, 2000, 9, 'the delta of run a')
  text = str(caught.value)
  says = {
    'bytes': ('takes 2 kB', '1.38 kB are left'),
    'files': ('takes 9 files', '8 files are left'),
  }
  assert 'the delta of run a' in text and all(part in text for part in says[unit])
  assert 'training state' in text and '\n' not in text
  quota.require(tmp_path, 1380, 8, 'the delta of run a')


def test_the_disk_is_a_quota_too(tmp_path):
  archive.Quota().require(tmp_path, 10)
  with pytest.raises(UserError, match='free on the disk'):
    archive.Quota().require(tmp_path, 1 << 62)
