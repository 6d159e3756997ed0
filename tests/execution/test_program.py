"""The compiled side of a run, end to end."""

import json

from tests import tiny


def test_layers_outside_a_band_do_not_move_whatever_the_compute_dtype(tiny_files, tmp_path):
  """The base is compared in the type training began from, not in that of its products."""
  config = tiny.config(
    *tiny_files, train__method='full', train__layers='0:1', train__compute_dtype='bfloat16'
  )
  tiny.run(tmp_path / 'run', config)
  last = json.loads((tmp_path / 'run' / 'layers.jsonl').read_text().splitlines()[-1])
  for module, change in last['modules'].items():
    assert change['norm'][0] > 0, module
    assert change['norm'][1:] == [0.0] * (len(change['norm']) - 1), module
