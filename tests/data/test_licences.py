"""Under which licences data are."""

import pytest

from sft_jax.data import licences
from sft_jax.data.named import DATASETS
from sft_jax.utils.errors import UserError


def test_of_named_data_sets_and_their_paths():
  assert licences.of('lima') == {'lima': DATASETS['lima']['licence']}
  mixed = licences.of('mix:lima=0.5,gsm8k=0.5')
  assert mixed == {name: DATASETS[name]['licence'] for name in ('lima', 'gsm8k')}
  # By where they are read, too, whatever part of them.
  for path in ('hf:openai/gsm8k', 'hf:openai/gsm8k:socratic@train', 'hf:openai/gsm8k/x.jsonl'):
    assert licences.of('', path) == {path: DATASETS['gsm8k']['licence']}
  for path in ('hf:openai/gsm8k-more', 'hf:other/gsm8k', 'openai/gsm8k', 's3://bucket/lima.jsonl'):
    assert licences.of('', path) == {path: ''}
  with pytest.raises(UserError, match='unknown data set'):
    licences.of('lina')


def test_of_files(tmp_path):
  file = tmp_path / 'lima.json'
  file.write_text('[]')
  # A file that is called as a named set need not be it.
  assert licences.of('', str(file)) == {str(file): ''}
  (tmp_path / 'README.md').write_text('---\nlicense: odc-by\n---\n')
  assert licences.of('', str(file)) == {str(file): 'odc-by'}
  assert licences.of('', f'hf:{tmp_path}') == {f'hf:{tmp_path}': 'odc-by'}
  mixed = licences.of(f'mix:lima=0.5,{file}=0.5')
  assert mixed == {'lima': DATASETS['lima']['licence'], str(file): 'odc-by'}
