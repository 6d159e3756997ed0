"""The benchmark's command line, its arithmetic, and a tiny run of both sides."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from benchmarks import suite, train_cpu
from tests.conftest import REPOSITORY
from tests.evals.tasks import choice_files

SCRIPT = str(REPOSITORY / 'benchmarks' / 'train_cpu.py')


def run(rate, memory, losses):
  return {
    'examples-per-second': rate,
    'cpu-seconds-per-example': 2 / rate,
    'peak-rss-bytes': memory * 2**30,
    'seconds-to-first-step': 20.0,
    'losses': losses,
  }


def test_help():
  done = subprocess.run([sys.executable, SCRIPT, '--help'], capture_output=True, text=True)
  assert done.returncode == 0 and '--layouts' in done.stdout


@pytest.mark.parametrize(
  'argument, says',
  [
    ('--methods=qlora', 'unknown qlora'),
    ('--layouts=ragged', 'unknown ragged'),
    ('--records=8', 'more than one step'),
    ('--data=absent.json', 'no such file'),
  ],
)
def test_bad_arguments(argument, says, capsys):
  with pytest.raises(SystemExit) as stopped:
    train_cpu.parse([f'--data={SCRIPT}', argument])
  assert stopped.value.code == 2
  assert says in capsys.readouterr().err


def test_compares_medians_with_the_faster_setting():
  runs = {
    'trl': [run(0.5, 6, [2.0, 1.5])] * 3,
    'trl-no-checkpointing': [run(rate, 9, [2.0, 1.5]) for rate in (0.1, 0.6, 0.7)],
    'padded': [run(rate, 8, [2.0, 1.5 + 2e-3]) for rate in (0.9, 0.61, 0.2)],
    'packed': [run(1.1, 10, [2.0, 1.5])],
  }
  rows = {row['side']: row for row in train_cpu.compare({'full': runs})}
  padded, packed = rows['ours-padded'], rows['ours-packed']
  assert padded['compared-with'] == 'trl-no-checkpointing'
  assert padded['speed-ratio'] == pytest.approx(0.61 / 0.6)
  assert padded['speed-met'] and not packed['speed-met']  # 1.83 is below 2
  assert padded['memory-ratio'] == pytest.approx(8 / 9) and padded['memory-met']
  assert padded['memory-ratio-to-smallest'] == pytest.approx(8 / 6)
  assert not packed['memory-met']
  assert not padded['losses-met'] and packed['losses-met']
  assert 'speed-ratio' not in rows['trl']
  lines = train_cpu.table(list(rows.values()))
  assert len(lines) == 2 + len(rows)
  assert len({line.count('|') for line in lines}) == 1
  assert '≥ 2: MISSED' in lines[-1]


def test_slower_setting():
  runs = {name: [run(rate, 1, [])] for name, rate in zip(train_cpu.TRL, (0.5, 0.4), strict=True)}
  assert train_cpu.slower_trl(runs) == {'trl-no-checkpointing'}
  assert train_cpu.slower_trl({}) == set()


@pytest.mark.slow
@pytest.mark.skipif('SFT_JAX_SLOW' not in os.environ, reason='half a minute: set SFT_JAX_SLOW=1')
def test_tiny_run(tmp_path):
  """Both sides, LoRA, on a random model: losses agree and the result is written."""
  pytest.importorskip('trl')
  pytest.importorskip('peft')
  from tests.models import conftest as models

  records = [
    {'instruction': f'Add {i} and {i}.', 'input': '', 'output': f'That is {2 * i}.'}
    for i in range(3)
  ]
  (tmp_path / 'records.json').write_text(json.dumps(records))
  model = models.write_tiny_llama(tmp_path / 'model')
  done = subprocess.run(
    [
      *(sys.executable, SCRIPT, '--records=3', '--batch-size=2', '--runs=1', '--methods=lora'),
      *('--trl=trl', '--layouts=packed', '--override=train.max_length=128'),
      *(f'--model={model}', f'--data={tmp_path / "records.json"}', f'--out={tmp_path / "out"}'),
    ],
    cwd=tmp_path,
    env={**os.environ, 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / 'out.json').read_text())
  assert [row['side'] for row in result['rows']] == ['trl', 'ours-packed']
  assert result['rows'][1]['loss-difference'] < 1e-4
  assert len(result['runs']['lora']['packed'][0]['losses']) == 2
  assert 'ours-packed' in (tmp_path / 'out.md').read_text()


def test_a_benchmark_as_tokens(tiny_files, tmp_path):
  """First into an empty cache, then from it; in this process."""
  (tmp_path / 'data').mkdir()
  choice_files.write(tmp_path / 'data')
  given = {'data': str(tmp_path / 'data'), 'task': 'cmmlu:2shot:ll', 'template': 'raw'}
  args = argparse.Namespace(**given, window=512, cache=str(tmp_path / 'cache'), check=True)
  first, cached = (suite.prepare(args, str(tiny_files[0])) for _ in range(2))
  assert first['questions'] == first['checked'] == first['equal'] == 6
  times = {'load-seconds', 'seconds', 'cpu-seconds', 'whole-seconds'}
  assert {k: v for k, v in first.items() if k not in times} == {
    k: v for k, v in cached.items() if k not in times
  }
  lines = suite.table([{'first': {**first, 'seconds': 1}, 'cached': {**cached, 'seconds': 0.1}}])
  assert lines[-1].endswith('| 6 of 6 | met |') and len({line.count('|') for line in lines}) == 1
  slow = suite.table([{'first': {**first, 'seconds': 1}, 'cached': {**cached, 'seconds': 1.1}}])
  assert 'MISSED' in slow[-1]
