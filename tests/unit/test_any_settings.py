"""Whatever stands in the environment is taken as it is meant, or refused by its name."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro import Settings, SetupError

SECRETS = ("password", "token", "nkey_seed")
NUMBERS = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if field.annotation in {int, float}
}
LETTERS = st.characters(codec="utf-8", exclude_characters="\x00")
TEXTS = st.text(LETTERS, max_size=20) | st.sampled_from(
    ["", " ", "0", "-1", "1e999", "nan", "inf", "٣", "1_000", "true", "null", "{}", "[", "²", "5s"]
)


def loaded(**environment: str) -> Settings:
    """Load settings with nothing else of ours in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("BUSMICRO_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(f"BUSMICRO_{name.upper()}", value)
        return Settings.load()


@given(st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), TEXTS, max_size=4))
def test_any_environment_is_taken_or_refused_by_name(environment: dict[str, str]):
    """No text of a variable ends otherwise than as settings, or as `SetupError` that names it."""
    try:
        taken = loaded(**environment)
    except SetupError as wrong:
        said = str(wrong)
        assert any(f"BUSMICRO_{name.upper()}" in said for name in environment)
    else:
        assert all(getattr(taken, name) >= 0 for name in NUMBERS)
        assert taken.ping_interval > 0


@given(
    st.sampled_from(sorted(NUMBERS)),
    st.integers(1, 65_536) | st.floats(1, 65_536, allow_nan=False),
)
def test_number_is_read_as_it_was_written(name: str, number: float):
    """What a deployment writes is what the process goes by."""
    if NUMBERS[name] is int:
        number = int(number)

    assert getattr(loaded(**{name: str(number)}), name) == number


@given(st.sampled_from(SECRETS), st.text(st.sampled_from("abcXYZ019-/"), min_size=12, max_size=40))
def test_no_secret_is_shown_with_what_is_wrong(name: str, secret: str):
    """A wrong setting beside it does not bring a secret to light, nor does showing them all."""
    with pytest.raises(SetupError) as refused:
        loaded(**{name: secret}, ping_interval="never")

    assert secret not in str(refused.value)
    assert secret not in repr(loaded(**{name: secret}))
