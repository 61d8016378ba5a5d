"""What verifying a token costs, for each algorithm: the first time, and again."""

from __future__ import annotations

import time

import pytest

from bad_tokens import ALGORITHMS, foreign_key, make_of, tokens
from conftest import report
from signing_keys import HMAC
from ssehub.errors import TokenError
from ssehub.tokens import Tokens

COUNT = 500


def microseconds(own: Tokens, signed: list[str]) -> float:
    start = time.process_time()
    for token in signed:
        own.verify(token)
    return (time.process_time() - start) / len(signed) * 1e6


@pytest.mark.only_soak
@pytest.mark.soak
@pytest.mark.alone
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_token_that_is_verified_again_costs_less_if_it_is_signed_with_a_key(algorithm: str) -> None:
    make = make_of(algorithm)
    signed = [make(jti=str(number)) for number in range(COUNT)]
    first, again = [], []

    for _ in range(7):
        own = tokens()
        first.append(microseconds(own, signed))
        again.append(microseconds(own, signed))

    report(f"{algorithm:8} {min(first):6.1f} µs, again {min(again):5.1f} µs")
    assert min(first) < 5_000
    assert algorithm in HMAC or min(again) < min(first) / 3


@pytest.mark.only_soak
@pytest.mark.soak
@pytest.mark.alone
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_b13_forged_token_costs_no_more_than_a_valid_one_that_is_new(algorithm: str) -> None:
    valid, forged = (
        [make_of(algorithm, key)(jti=str(number)) for number in range(COUNT)] for key in (None, foreign_key(algorithm))
    )
    accepted, refused = [], []

    for _ in range(7):
        own = tokens()
        accepted.append(microseconds(own, valid))
        start = time.process_time()
        for token in forged:
            with pytest.raises(TokenError):
                own.verify(token)
        refused.append((time.process_time() - start) / COUNT * 1e6)

    report(f"{algorithm:8} valid {min(accepted):6.1f} µs, forged {min(refused):6.1f} µs")
    assert min(refused) < 2 * min(accepted) + 30
