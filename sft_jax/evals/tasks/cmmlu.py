"""CMMLU: 67 exam subjects in Chinese (arXiv 2306.09212).

`ll` is lm-eval 0.4.13's `cmmlu`: shots are the first of the subject's dev file, ' A' follows a
full-width colon, the score is the mean over questions; its acc_norm is the same number, as letters
are equally long. `gen` is OpenCompass's cmmlu_0shot_cot_gen_305931, with the mean of the subjects'
means: an answer counts only after '答案' and an ASCII colon, so '答案：B' is wrong. With shots,
`gen` puts '答案: B' after each question of that form; that is ours, the published table has none.
"""

import re
from collections.abc import Sequence

from sft_jax.evals import extract, parse
from sft_jax.evals.benchmark import Benchmark, Choose, Files, Generate, Grade, Item, Prompt, Round
from sft_jax.evals.tasks import exams, variants

_HUB = 'haonan-li/cmmlu'
_ANSWER = r'(?i)答案\s*:\s*[\W]*([A-D])[\W]*'

SUBJECTS = {
  'agronomy': '农学',
  'anatomy': '解剖学',
  'ancient_chinese': '古汉语',
  'arts': '艺术学',
  'astronomy': '天文学',
  'business_ethics': '商业伦理',
  'chinese_civil_service_exam': '中国公务员考试',
  'chinese_driving_rule': '中国驾驶规则',
  'chinese_food_culture': '中国饮食文化',
  'chinese_foreign_policy': '中国外交政策',
  'chinese_history': '中国历史',
  'chinese_literature': '中国文学',
  'chinese_teacher_qualification': '中国教师资格',
  'clinical_knowledge': '临床知识',
  'college_actuarial_science': '大学精算学',
  'college_education': '大学教育学',
  'college_engineering_hydrology': '大学工程水文学',
  'college_law': '大学法律',
  'college_mathematics': '大学数学',
  'college_medical_statistics': '大学医学统计',
  'college_medicine': '大学医学',
  'computer_science': '计算机科学',
  'computer_security': '计算机安全',
  'conceptual_physics': '概念物理学',
  'construction_project_management': '建设工程管理',
  'economics': '经济学',
  'education': '教育学',
  'electrical_engineering': '电气工程',
  'elementary_chinese': '小学语文',
  'elementary_commonsense': '小学常识',
  'elementary_information_and_technology': '小学信息技术',
  'elementary_mathematics': '初等数学',
  'ethnology': '民族学',
  'food_science': '食品科学',
  'genetics': '遗传学',
  'global_facts': '全球事实',
  'high_school_biology': '高中生物',
  'high_school_chemistry': '高中化学',
  'high_school_geography': '高中地理',
  'high_school_mathematics': '高中数学',
  'high_school_physics': '高中物理学',
  'high_school_politics': '高中政治',
  'human_sexuality': '人类性行为',
  'international_law': '国际法学',
  'journalism': '新闻学',
  'jurisprudence': '法理学',
  'legal_and_moral_basis': '法律与道德基础',
  'logical': '逻辑学',
  'machine_learning': '机器学习',
  'management': '管理学',
  'marketing': '市场营销',
  'marxist_theory': '马克思主义理论',
  'modern_chinese': '现代汉语',
  'nutrition': '营养学',
  'philosophy': '哲学',
  'professional_accounting': '专业会计',
  'professional_law': '专业法学',
  'professional_medicine': '专业医学',
  'professional_psychology': '专业心理学',
  'public_relations': '公共关系',
  'security_study': '安全研究',
  'sociology': '社会学',
  'sports_science': '体育学',
  'traditional_chinese_medicine': '中医中药',
  'virology': '病毒学',
  'world_history': '世界历史',
  'world_religions': '世界宗教',
}


def read(files: Files) -> tuple[list[Item], list[Item]]:
  """Test questions, and the five dev questions of each subject."""
  items = _split(files, 'test', '')
  return exams.by_subjects('cmmlu', items, len(SUBJECTS)), _split(files, 'dev', 'dev/')


def _split(files: Files, split: str, prefix: str) -> list[Item]:
  return [
    item
    for subject in exams.subjects_in(files, f'cmmlu/{split}/*.csv', '.csv', tuple(SUBJECTS))
    for item in exams.subject_items(
      files.rows(f'cmmlu/{split}/{subject}.csv', hub=f'{_HUB}:{subject}@{split}'), subject, prefix
    )
  ]


def ask_ll(item: Item, shots: Sequence[Item]) -> Prompt:
  """lm-eval's prompt."""
  head = f'以下是关于{SUBJECTS[item.group]}的单项选择题，请直接给出正确答案的选项。\n\n'
  return exams.letter_prompt(item, shots, head, '答案：')


def ask_gen(item: Item, shots: Sequence[Item]) -> Prompt:
  """OpenCompass's prompt; the shots are in our form."""
  return Prompt(
    question=_question(item),
    shots=tuple(
      (*_question(shot), Round('assistant', f'答案: {exams.letter_of(shot)}')) for shot in shots
    ),
  )


def _question(item: Item) -> tuple[Round]:
  text = (
    f'请回答以下关于{SUBJECTS[item.group]}的单项选择题, '
    "你回答的最后一行**必须**是以下格式 '答案: $选项' (不带引号), "
    '其中选项是ABCD之一. 请在回答之前一步步思考.\n\n'
    f'{item.fields["question"]}\n\n{parse.lettered(item.fields["choices"], ") ")}'
  )
  return (Round('user', text),)


def grade(output: str, item: Item) -> Grade:
  """The first answer in the form asked for; the class is A to D in either case, but 'b' is not
  'B'."""
  found = extract.match_answer_pattern(output, _ANSWER) or None
  return parse.graded_answer(found, found == exams.letter_of(item))


def settled(text: str) -> bool:
  """Whether an answer was given: the first one counts."""
  return re.search(_ANSWER, text) is not None


_ITEM, *_SHOTS = exams.example(
  (
    ('黄河流入', ('东海', '渤海', '南海', '黄海'), 'B'),
    ('中国最长的河流是 ', ('长江', '黄河', '珠江', '淮河'), 'A'),
    ('北京位于', ('华南', '西南', '华东', '华北'), 'D'),
  ),
  'high_school_geography',
)

BENCHMARK = Benchmark(
  name='cmmlu',
  version=1,
  read=read,
  readings={
    'll': Choose(ask=ask_ll, choices=exams.letters, grade=exams.choose_letter),
    'gen': Generate(
      ask=ask_gen,
      grade=grade,
      max_new=256,
      settled=settled,
      macro=True,
      released={0: 'cmmlu-0shot'},
    ),
  },
  shots=(0, 5),
  size=11582,
  example=(_ITEM, tuple(_SHOTS)),
  prompt_hash={'ll': '2d084cbbe1fe', 'gen': 'a5b3ee51c10d'},
  licence='CC BY-NC-SA 4.0',
  variant=variants.variant,
)
