from __future__ import annotations

import pytest

from agentsched_adapters.prometheus import Sample, samples, total

PAGE = b"""\
# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \\"b\\" \\\\ {c}, d"} 3.0
vllm:num_requests_running{engine="1",} 2 1700000000000
vllm:num_requests_running_created{engine="0"} 1.7e+09
other_vllm:num_requests_running 99
plain 4.5
nan NaN
inf +Inf
less{engine="0"} -Inf
broken{engine="0" 1.0
worse{engine="0"} many
"""


def test_samples_of_exactly_one_name() -> None:
    assert samples(PAGE, "vllm:num_requests_running") == (
        Sample(value=3.0, labels={"engine": "0", "model_name": 'a "b" \\ {c}, d'}),
        Sample(value=2.0, labels={"engine": "1"}),
    )


def test_a_page_may_begin_with_it_and_end_without_a_line_end() -> None:
    assert samples(b"x 1\ny 2", "x") == (Sample(value=1.0),)
    assert samples(b"x 1\ny 2", "y") == (Sample(value=2.0),)


@pytest.mark.parametrize("name", ["broken", "worse", "absent", "plai", "nan", "inf", "less"])
def test_what_cannot_be_read_is_left_out(name: str) -> None:
    assert samples(PAGE, name) == ()


def test_total_takes_the_first_name_that_is_there() -> None:
    assert total(PAGE, "absent", "vllm:num_requests_running", "plain") == 5.0
    assert total(PAGE, "absent") is None
    assert total(b"", "absent") is None
