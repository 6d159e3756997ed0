"""Licences as the files beside a model or data state them."""

import pytest

from sft_jax.utils import cards


@pytest.mark.parametrize(
  'card, licence',
  [
    ('---\nlicense: mit\n---\nlicense: other\n', 'mit'),
    ('---\nlanguage: en\nlicense: "cc-by-4.0"  # as its source\n---\n', 'cc-by-4.0'),
    ('---\nlicense:\n- cc-by-sa-3.0\n- gfdl\ntags: [x]\n---\n', 'cc-by-sa-3.0, gfdl'),
    ('---\nlicense: other\nlicense_name: Our Own 1.0\n---\n', 'Our Own 1.0'),
    ('---\nlicense: other\n---\n', 'other'),
    ('---\ntags: [x]\n---\nlicense: mit\n', ''),
    ('license: mit\n', ''),
    ('---\nlicense:\n---\n', ''),
  ],
)
def test_the_head_of_a_card(card, licence):
  assert cards.stated(card) == licence


@pytest.mark.parametrize(
  'text, licence',
  [
    ('\n   Apache License\n   Version 2.0, January 2004\n http://www.apache.org/', 'apache-2.0'),
    ('MIT License\n\nCopyright (c) 2020 Somebody\n', 'mit'),
    ('Copyright X\n\nPermission is hereby granted, free of charge, to any person\n', 'mit'),
    ('BSD 3-Clause License\n', 'bsd-3-clause'),
    ('Creative Commons Attribution-NonCommercial 4.0 International\n', 'cc-by-nc-4.0'),
    ('Attribution 4.0 International\n\n====', 'cc-by-4.0'),
    ('Attribution-ShareAlike 4.0 International\n', 'cc-by-sa-4.0'),
    ('All rights reserved. Not under the Apache terms.\n', ''),
  ],
)
def test_the_text_of_a_licence(text, licence):
  assert cards.named(text) == licence


def test_what_is_nearest_says_it(tmp_path):
  data = tmp_path / 'sums.jsonl.gz'
  data.write_bytes(b'')
  assert cards.licence(data) == cards.licence(tmp_path) == ''
  (tmp_path / 'LICENSE.txt').write_text('Ask us.')
  assert cards.licence(data) == 'see its LICENSE.txt'
  (tmp_path / 'LICENSE').write_text('MIT License')
  assert cards.licence(data) == cards.licence(tmp_path) == 'mit'
  (tmp_path / 'README.md').write_text('---\nlicense: cc0-1.0\n---\n')
  assert cards.licence(data) == cards.licence(tmp_path) == 'cc0-1.0'
  (tmp_path / 'sums.md').write_text('---\nlicense: cc-by-4.0\n---\n')
  assert cards.licence(data) == 'cc-by-4.0' and cards.licence(tmp_path) == 'cc0-1.0'
  # One that cannot be read states nothing, and is no error: it is asked for at the very end.
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'README.md').mkdir()
  assert cards.licence(tmp_path / 'other') == ''
