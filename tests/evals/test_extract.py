"""Shared extractors, oddities included: scores of the published table depend on them."""

import pytest

from sft_jax.evals import extract


@pytest.mark.parametrize(
  'text, first, last',
  [
    ('Yes', 'Y', 'Y'),
    ('The answer is (C)', 'T', 'C'),
    ('Answer: D', 'A', 'D'),
    ('b. É', 'É', 'É'),
    ('none here, 答案', '', ''),
    ('', '', ''),
  ],
)
def test_first_and_last_capital(text, first, last):
  assert extract.first_capital(text) == first
  assert extract.last_capital(text) == last
  assert extract.has_capital(text) == bool(first)


@pytest.mark.parametrize('text', ['yes, B', 'x' * 50, 'The answer is (C)', 'a\nb\nÇ'])
def test_nothing_after_a_capital_changes_the_first(text):
  for cut in range(len(text)):
    if extract.has_capital(text[:cut]):
      assert extract.first_capital(text[:cut]) == extract.first_capital(text)


@pytest.mark.parametrize(
  'text, option',
  [
    ('B', 'B'),
    ('  C.\n', 'C'),
    ('Based on the text', 'B'),
    ('Answer to follow', 'A'),
    (
      'ANSWER: d',
      'A',
    ),  # that pattern ignores case and finds no option, so it is any letter at last
    ('answer : D', 'D'),
    ('A seems right at first, but the answer is: D', 'D'),
    ('Looking at A, The answer is (B)', 'B'),
    ('The answer is **C**', 'C'),
    ('The answer is option B', 'B'),
    ('The correct answer is option: C', 'C'),
    ('Not A: the correct answer is, so to say,\n\\boxed{D} surely', 'D'),
    ('The answer to the question is (A)', 'A'),
    ('答案是 D', 'D'),
    ('答案：C', 'C'),
    ('答案选项应该是B', 'B'),
    ('我选择 B', 'B'),
    ('B 是正确的，A 不是', 'B'),
    ('A 和 B 都不对，因此C。', 'C'),
    ('only 1. D', 'D'),
    ('C 只有B是错', 'B'),
    # A comma is missing in the list of OpenCompass, so its two patterns match together only.
    ('C 只有B是对', 'C'),
    ('C 故B 吧', 'C'),
    ('C 故A只有B是对', 'A'),
    # The group holds the space before the letter, no option: the next pattern decides.
    ('x say B or so, C: perhaps', 'C'),
    ('B or so, C: perhaps', 'B'),
    ('no letter', ''),
    ('', ''),
  ],
)
def test_first_option(text, option):
  assert extract.first_option(text, 'ABCD') == option


def test_first_option_knows_its_options_and_the_cushion():
  assert extract.first_option('The answer is E', 'ABCDE') == 'E'
  assert extract.first_option('The answer is E', 'ABCD') == ''
  assert extract.first_option('thus (B)', 'ABCD') == 'B'
  assert extract.first_option('thus (B)', 'ABCD', cushion=False) == ''


def test_last_option():
  assert extract.last_option('A, no: B. See', 'ABCD') == 'B'
  assert extract.last_option('none', 'ABCD') == ''


def test_match_answer_pattern():
  simple_evals = r'(?i)ANSWER\s*:\s*([A-D])'
  assert extract.match_answer_pattern('Answer: A\nANSWER: B', simple_evals) == 'A'
  assert extract.match_answer_pattern('Answer: both', simple_evals) == 'b'
  assert extract.match_answer_pattern('答案：B', '答案:\\s*([A-D])') == ''  # a full-width colon


@pytest.mark.parametrize(
  'text, out',
  [
    ('The  "Great" Wall, China', 'Great Wall'),
    ('R. H. Thomson', 'R'),
    ('September 14, 2008', 'September 14'),
    ('An apple\nand', 'apple'),
    ('---', ''),
    ('.49', ''),
    ('the', ''),
    ('Anthem', 'Anthem'),
  ],
)
def test_general_postprocess(text, out):
  assert extract.general_postprocess(text) == out


@pytest.mark.parametrize(
  'text, number',
  [('1,234', '234'), ('10-5', '-5'), ('3.50.', '3.50'), ('1 then 2 apples', '2'), ('none', '')],
)
def test_last_number(text, number):
  assert extract.last_number(text) == number


@pytest.mark.parametrize(
  'text, content',
  [
    (r'\boxed{1} or \boxed{\frac{1}{2}}.', r'\frac{1}{2}'),
    (r'\boxed{{5}}', '{5}'),
    (r'\boxed{1} then \boxed{2', ''),
    (r'\boxed 5', ''),
    (r'\fbox{5}', ''),
    (r'\boxed{}', ''),
    ('{5}', ''),
    ('', ''),
  ],
)
def test_last_boxed(text, content):
  assert extract.last_boxed(text) == content


def test_squad():
  assert extract.squad_normalised(' The U.S.A., an  (old) country_club ') == 'usa old countryclub'
  assert extract.same_answer('the Beatles', 'Beatles!')
  assert not extract.same_answer('Beatles', 'The Rolling Stones')
  # Normalised, all of these are empty.
  assert extract.same_answer(' ---', '---')
  assert not extract.same_answer('', '---') and not extract.same_answer('---', '')
  assert not extract.same_answer('The', 'A')


def test_token_f1():
  assert extract.token_f1('the red house', 'a red house') == 1
  # 1 of 2 words and 1 of 3: 2 * 1 / (2 + 3)
  assert extract.token_f1('red car', 'big red house') == pytest.approx(0.4)
  assert extract.token_f1('red red', 'red') == pytest.approx(2 / 3)
  assert extract.token_f1('car', 'red house') == 0
  assert extract.token_f1('', 'red house') == extract.token_f1('', '---') == 0
  assert extract.token_f1('---', '---') == 1
