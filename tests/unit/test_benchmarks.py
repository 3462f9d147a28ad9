"""The page is what the results give, the corpora are the same bytes everywhere, a plot is as its numbers are."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import costs
from benchmarks.corpus import CORPORA, Corpus, checksum
from benchmarks.report import DOCS, kept
from benchmarks.svg import Bar, bars
from pipeline.settings import Settings


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


def test_a_process_is_not_charged_with_the_memory_of_the_benchmark(tmp_path: Path) -> None:
    ours = np.ones(2**24)
    cost = costs.measured(Settings(), tmp_path / "log", [sys.executable, "-c", "x = bytes(range(256)) * 2**17"])
    assert ours.nbytes / 2**20 == 128 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 32 <= cost.peak_mib < 100


def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the last of it"):
        costs.measured(Settings(), tmp_path / "log", [sys.executable, "-c", "raise SystemExit('the last of it')"])
