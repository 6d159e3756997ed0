"""The part of JSON Schema (draft 2020-12) that grading needs. No references, no formats.

A keyword that is not known is an error when a schema is read: passed over, it would let wrong
answers count as right.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES = ('null', 'boolean', 'integer', 'number', 'string', 'array', 'object')
_NOTES = ('title', 'description', '$schema')


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
  return _is_number(value) and value == value // 1 >= 0


def _is_list(value: Any) -> bool:
  return isinstance(value, list) and bool(value)


def _is_names(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_types(value: Any) -> bool:
  return all(name in _TYPES for name in value) if _is_list(value) else value in _TYPES


def _is_pattern(value: Any) -> bool:
  try:
    re.compile(value)
  except (re.error, TypeError, OverflowError, RecursionError):
    return False
  return True


def _is_mapping(value: Any) -> bool:
  return isinstance(value, dict)


def _is_bool(value: Any) -> bool:
  return isinstance(value, bool)


# Keyword -> whether its value is in order. What holds further schemas is looked into as well.
_KEYWORDS = {
  'type': _is_types,
  'enum': _is_list,
  'const': lambda value: True,
  'anyOf': _is_list,
  'properties': _is_mapping,
  'required': _is_names,
  'additionalProperties': _is_bool,
  'items': _is_mapping,
  'minItems': _is_count,
  'maxItems': _is_count,
  'minLength': _is_count,
  'maxLength': _is_count,
  'pattern': _is_pattern,
  'minimum': _is_number,
  'maximum': _is_number,
}


def fault(schema: Any, at: str = 'schema') -> str:
  """What is wrong with a schema, in words; '' if nothing."""
  if not isinstance(schema, dict):
    return f'{at} is no object'
  for key, value in schema.items():
    if key in _NOTES:
      continue
    if key not in _KEYWORDS:
      return f'{at} has the keyword {key!r}; known are {", ".join(_KEYWORDS)}'
    if not _KEYWORDS[key](value):
      return f'{at}.{key} cannot be {value!r}'
  return next((what for name, part in _parts(schema) if (what := fault(part, f'{at}.{name}'))), '')


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Schemas within a schema."""
  if 'items' in schema:
    yield 'items', schema['items']
  for name, part in schema.get('properties', {}).items():
    yield f'properties.{name}', part
  for index, part in enumerate(schema.get('anyOf', ())):
    yield f'anyOf[{index}]', part


def is_valid(value: Any, schema: Mapping[str, Any]) -> bool:
  """Whether a JSON value is what a schema without `fault` describes."""
  checks = [
    'type' not in schema or _is_of(value, schema['type']),
    'enum' not in schema or any(same(value, other) for other in schema['enum']),
    'const' not in schema or same(value, schema['const']),
    'anyOf' not in schema or any(is_valid(value, part) for part in schema['anyOf']),
  ]
  if isinstance(value, str):
    checks.append(_within(len(value), schema, 'minLength', 'maxLength'))
    checks.append('pattern' not in schema or bool(re.search(schema['pattern'], value)))
  elif isinstance(value, list):
    checks.append(_within(len(value), schema, 'minItems', 'maxItems'))
    checks.append(all(is_valid(part, schema.get('items', {})) for part in value))
  elif isinstance(value, dict):
    known = schema.get('properties', {})
    checks.append(all(name in value for name in schema.get('required', ())))
    checks.append(schema.get('additionalProperties', True) or set(value) <= set(known))
    checks.append(all(is_valid(value[name], known[name]) for name in known if name in value))
  elif _is_number(value):
    checks.append(_within(value, schema, 'minimum', 'maximum'))
  return all(checks)


def _is_of(value: Any, types: str | list[str]) -> bool:
  names = {
    'null': value is None,
    'boolean': isinstance(value, bool),
    # 1.0 is an integer too.
    'integer': _is_number(value) and value == value // 1,
    'number': _is_number(value),
    'string': isinstance(value, str),
    'array': isinstance(value, list),
    'object': isinstance(value, dict),
  }
  return any(names[name] for name in ([types] if isinstance(types, str) else types))


def _within(size: float, schema: Mapping[str, Any], low: str, high: str) -> bool:
  return schema.get(low, size) <= size <= schema.get(high, size)


def same(value: Any, other: Any) -> bool:
  """Equality of JSON values: 1 is 1.0, and neither is true."""
  if isinstance(value, bool) or isinstance(other, bool):
    return value is other
  if isinstance(value, list) and isinstance(other, list):
    return len(value) == len(other) and all(map(same, value, other))
  if isinstance(value, dict) and isinstance(other, dict):
    return set(value) == set(other) and all(same(value[key], other[key]) for key in value)
  return bool(value == other)
