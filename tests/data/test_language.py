"""In which languages texts are written."""

import pytest

from sft_jax.data import datasets, language


@pytest.mark.parametrize(
  ('text', 'code'),
  [
    ('Wie heißt die Hauptstadt von Frankreich? Paris.', 'de'),
    ('¿Cuál es la capital de Francia? Es París, sin duda alguna.', 'es'),
    ('What is the capital of France? It is Paris, of course.', 'en'),
    ('敏捷的棕色狐狸跳过了懒狗 OK', 'zh'),
    ('素早い茶色の狐がのろまな犬を飛び越える', 'ja'),
    ('Быстрая коричневая лиса прыгает через собаку', 'ru'),
  ],
)
def test_languages(text, code):
  assert language.shares([text, '']) == {code: 1.0}


def test_shares_are_of_what_is_sure():
  english, german = 'What is it that you want from me?', 'Was ist es, das du von mir willst?'
  assert language.shares([english, english, german, '3 + 4 = 7']) == {'en': 2 / 3, 'de': 1 / 3}
  for none in ([], [''], ['3 + 4 = 7'], [english, '3 + 4', 'x = y', 'f(x)'], ['ok', 'yes']):
    assert language.shares(none) == {}


@pytest.mark.parametrize(
  ('file', 'code'),
  [
    ('code_alpaca_2k.json', 'en'),
    ('numinamath_cot_sharegpt_1k.jsonl', 'en'),
    ('gsm8k_train.jsonl', 'en'),
    ('triviaqa_rows0-1499.jsonl', 'en'),
    ('sharegpt_zh_500.jsonl', 'zh'),
  ],
)
def test_real_data(data_dir, file, code):
  records, _ = datasets.load_records(path=str(data_dir / 'train' / file), heldout_share=0)
  found = language.shares(' '.join(record.contents) for record in records[:200])
  assert found[code] > 0.97 and next(iter(found)) == code
