"""Chat templates in the styles of common models, written for these tests.

Each leaves out what these tests do not need (tools, images). `STYLES` says what a style does.
"""

import dataclasses

_ALTERNATE = (
  "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)
# The system text apart from the turns, as `system` ('' where there is none).
_SPLIT = (
  "{% if messages[0]['role'] == 'system' %}"
  "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
  "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
)

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_DEFAULT = (
  "{% if messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA2 = (
  _SPLIT + _ALTERNATE + '{% for m in turns %}'
  '{% if loop.first and system %}'
  "{% set c = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
  "{% else %}{% set c = m['content'] %}{% endif %}"
  "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}"
  "{% else %}{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
  "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>"
  "\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
  '{% if add_generation_prompt %}'
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_DATED = (
  "{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}"
  "{% else %}{% set date = '26 Jul 2024' %}{% endif %}" + _SPLIT + '{{ bos_token }}'
  "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date + '\n\n' + system "
  "+ '<|eot_id|>' }}{% for m in turns %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>"
  "\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
  '{% if add_generation_prompt %}'
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}{% set turns = messages %}"
  + _ALTERNATE
  + "{% for m in turns %}{% set role = 'model' if m['role'] == 'assistant' else 'user' %}"
  "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The system text goes into the last question.
MISTRAL_V3 = (
  _SPLIT + _ALTERNATE + '{{ bos_token }}{% for m in turns %}'
  "{% if m['role'] == 'user' %}{% if system and m == (turns | selectattr('role', 'equalto', 'user')"
  " | list)[-1] %}{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
  "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}"
  "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
# Ends a conversation, not a turn, with the end of sequence.
PHI3 = (
  "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Role marks are plain text.
ZEPHYR = (
  "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Drops the reasoning of earlier turns, and opens the last answer with a thought, empty if need be.
REASONING = (
  '{% for m in messages %}'
  "{% set c = m['content'].split('</think>')[-1].lstrip('\n') %}"
  "{% set thought = m['content'].split('</think>')[0].replace('<think>', '').strip() "
  "if '</think>' in m['content'] else '' %}"
  "{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
  "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
  "{{ c + '<|im_end|>\n' }}"
  "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The prompt itself opens the thought.
PROMPTED_REASONING = (
  REASONING.removesuffix("{{ '<|im_start|>assistant\n' }}{% endif %}")
  + "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# No token ends an answer.
ENDLESS = (
  "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Style:
  """What a template does.

  Attributes:
    template: The template.
    marks: Its tokens, besides <s> and </s>.
    stop: What ends an answer, with a space before it where the template puts one.
    before: What precedes an answer and is not in the prompt.
    strips: Whether answers are stripped.
    system: Whether it takes a system text.
    alternates: Whether it refuses two questions in a row.
  """

  template: str
  marks: tuple[str, ...]
  stop: str
  before: str = ''
  strips: bool = False
  system: bool = True
  alternates: bool = False


_IM = ('<|im_start|>', '<|im_end|>')
_HEADER = ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
STYLES = {
  'chatml': Style(CHATML, _IM, '<|im_end|>'),
  'chatml-default': Style(CHATML_DEFAULT, _IM, '<|im_end|>'),
  'llama2': Style(LLAMA2, (), ' </s>', before=' ', strips=True, alternates=True),
  'llama3': Style(LLAMA3, _HEADER, '<|eot_id|>', strips=True),
  'llama3-dated': Style(LLAMA3_DATED, _HEADER, '<|eot_id|>', strips=True),
  'gemma': Style(
    GEMMA,
    ('<start_of_turn>', '<end_of_turn>'),
    '<end_of_turn>',
    strips=True,
    system=False,
    alternates=True,
  ),
  'mistral-v3': Style(
    MISTRAL_V3, ('[INST]', '[/INST]'), '</s>', before=' ', strips=True, alternates=True
  ),
  'phi3': Style(PHI3, ('<|user|>', '<|assistant|>', '<|system|>', '<|end|>'), '<|end|>'),
  'zephyr': Style(ZEPHYR, (), '</s>'),
}
