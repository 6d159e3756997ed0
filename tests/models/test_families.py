"""Every family, with each of its switches active, against transformers and PEFT."""

import pytest

pytest.importorskip('torch')

from sft_jax.models import families
from tests import zoo
from tests.models.conftest import tiny_tokenizer

TOLERANCE = 2e-5


@pytest.fixture(scope='module', params=zoo.VARIANTS)
def specimen(request, tmp_path_factory):
  return zoo.build(request.param, tmp_path_factory.mktemp('zoo') / 'model', tiny_tokenizer())


def test_every_family_is_in_the_zoo():
  import transformers

  seen = {getattr(transformers, kind)().model_type for kind, _ in zoo.VARIANTS.values()}
  assert len(seen) == len(families.FAMILIES), 'a family without a specimen'


def test_logits_are_those_of_transformers(specimen):
  assert zoo.distance(specimen.ours(zoo.texts()), specimen.theirs(zoo.texts())) <= TOLERANCE


def test_a_packed_row_is_each_text_alone_in_transformers(specimen):
  assert zoo.packed_distance(specimen) <= TOLERANCE


def test_decoding_with_a_cache_equals_the_forward(specimen):
  assert zoo.cached_distance(specimen) <= TOLERANCE


def test_export_opens_in_transformers_and_reads_back_bit_for_bit(specimen, tmp_path):
  assert zoo.export_distance(specimen, tmp_path / 'out') <= TOLERANCE


def test_adapters_go_to_peft_and_back(specimen, tmp_path):
  assert zoo.peft_distance(specimen, tmp_path / 'all') <= TOLERANCE
  some = 'layers/attn/(q|v),layers/mlp/up'
  assert zoo.peft_distance(specimen, tmp_path / 'some', some) <= TOLERANCE


def test_bfloat16_is_as_close_as_transformers(specimen):
  assert zoo.bfloat16_ratio(specimen) <= 1.2


@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_an_integer_base_is_the_kernels_it_stands_for(specimen, kind):
  assert zoo.quantized_distance(specimen, kind) <= TOLERANCE
