"""Licences that the files beside a model or data state: in a card, or by the text of a licence."""

import contextlib
import pathlib
import re

# (identifier, what the beginning of its text says), the first that matches counts.
_TEXTS: tuple[tuple[str, str], ...] = (
  ('apache-2.0', r'apache license.{0,40}version 2'),
  ('mit', r'^(the )?mit license|permission is hereby granted, free of charge, to any person'),
  ('bsd-3-clause', r'bsd 3-clause'),
  ('bsd-2-clause', r'bsd 2-clause'),
  ('cc-by-nc-sa-4.0', r'attribution-noncommercial-sharealike 4\.0'),
  ('cc-by-nc-nd-4.0', r'attribution-noncommercial-noderivatives 4\.0'),
  ('cc-by-nc-4.0', r'attribution-noncommercial 4\.0'),
  ('cc-by-sa-4.0', r'attribution-sharealike 4\.0'),
  ('cc-by-nd-4.0', r'attribution-noderivatives 4\.0'),
  ('cc-by-4.0', r'attribution 4\.0 international'),
  ('cc0-1.0', r'cc0 1\.0|creative commons legal code cc0'),
  ('agpl-3.0', r'gnu affero general public license'),
  ('lgpl-3.0', r'gnu lesser general public license version 3'),
  ('gpl-3.0', r'gnu general public license version 3'),
  ('gpl-2.0', r'gnu general public license version 2'),
)
_BEGINNING = 600
_NAMES = ('LICENSE', 'LICENSE.txt', 'LICENSE.md', 'LICENCE', 'LICENCE.txt', 'LICENCE.md')


def stated(card: str) -> str:
  """`license:` of the YAML head of a card; several are joined; '' where it says none."""
  head = card[3:].partition('\n---')[0] if card.startswith('---') else ''
  found = re.search(r'^license:[ \t]*(?:\n((?:[ \t]*-[^\n]*\n?)+)|([^\n]*))', head, re.MULTILINE)
  if not found:
    return ''
  named = re.findall(r'[\w][\w.+-]*', found[1] or (found[2] or '').partition(' #')[0])
  other = re.search(r'^license_name:\s*["\']?([^"\'\n]+)', head, re.MULTILINE)
  if named == ['other'] and other:
    return other[1].strip()
  return ', '.join(named)


def named(text: str) -> str:
  """The identifier of a licence by how its text begins; '' for one not known."""
  beginning = ' '.join(text[:_BEGINNING].split()).lower().lstrip('# ')
  return next((name for name, begins in _TEXTS if re.search(begins, beginning)), '')


def licence(place: pathlib.Path) -> str:
  """The licence that the files of a directory, or beside a file, state; '' where none does.

  Of a file NAME.KIND its own card NAME.md is asked first, then README.md, then the text of a
  licence; of a directory the last two.
  """
  directory = place if place.is_dir() else place.parent
  cards = [directory / 'README.md']
  if not place.is_dir():
    cards.insert(0, directory / f'{place.name.partition(".")[0]}.md')
  # One that cannot be read states nothing.
  with contextlib.suppress(OSError):
    for card in cards:
      if card.is_file() and (found := stated(_text(card))):
        return found
    for name in _NAMES:
      if (file := directory / name).is_file():
        return named(_text(file)) or f'see its {name}'
  return ''


def _text(file: pathlib.Path) -> str:
  return file.read_text(encoding='utf-8', errors='replace')
