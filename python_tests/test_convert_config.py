"""The settings of a conversion that cannot be."""

from dataclasses import replace

import pytest
from convert_tools import QUICK


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("block_size", 13, 12), ("block_size", 0, 1), ("half_life_ratio", 0.0, 1e-6),
        ("half_life_ratio", 1.1, 1.0),
        ("half_life_ratio", -0.1, None), ("attention", "causal", "bidirectional"), ("min_level", 0.0, 1e-6),
        ("min_level", 1.0, 0.99), ("views", 0, 2), ("noisy_length", 3, 4), ("noisy_length", 13, 12),
        ("steps", 0, 1),  # and all that TrainConfig checks
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(field, wrong, right):
    replace(QUICK, **{field: right})
    with pytest.raises(ValueError, match=field):
        replace(QUICK, **{field: wrong})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 0}, "views must be at least 1"),
        ({"noisy_length": 2}, r"noisy_length must be in block_size … length \(4 … 12\)"),
        ({"views": 2, "token_shift": True}, "without token_shift"),
        ({"noisy_length": 8, "attention": "bidirectional"}, "for attention 'block_diff'"),
        ({"views": 2, "attention": "no_clean_context"}, "for attention 'block_diff'"),
    ],
)
def test_unfit_views_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **settings)


def test_plain_noise_goes_with_every_attention():
    for attention in ("block_diff", "no_clean_context", "bidirectional"):
        for token_shift in (False, True):
            replace(QUICK, attention=attention, token_shift=token_shift)
