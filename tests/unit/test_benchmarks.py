"""The page is what the results give, the corpora are the same bytes everywhere, a plot is as its numbers are."""

import pytest

from benchmarks.corpus import CORPORA, Corpus, checksum
from benchmarks.report import DOCS, kept
from benchmarks.svg import Bar, bars


@pytest.mark.parametrize("name", kept())
def test_a_page_is_what_the_results_give(name: str) -> None:
    assert (DOCS / name).read_text() == kept()[name], "run `make bench-page`"


@pytest.mark.parametrize("corpus", [each for each in CORPORA if each.name != "sparse"], ids=lambda each: each.name)
def test_a_corpus_is_the_same_everywhere(corpus: Corpus) -> None:
    assert checksum(corpus) == corpus.checksum


def test_a_bar_is_as_long_as_its_value() -> None:
    chart = bars("Title <&>", "us", [Bar("one", 1.0, 1.0, 1.0), Bar("two", 2.0, 1.0, 4.0)])
    assert "Title &lt;&amp;&gt;" in chart
    assert [f'width="{width}"' in chart for width in ("120.0", "240.0")] == [True, True]
