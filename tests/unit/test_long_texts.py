"""The bound of texts that are tokenized; the tokenizer is made up."""

from types import SimpleNamespace
from typing import Any

import pytest

from hxp_enterprise_llm.worker import long_texts
from hxp_enterprise_llm.worker.long_texts import CHARACTERS_PER_TOKEN, LEAST
from hxp_enterprise_llm.worker.traffic import Traffic


class Tokenizer:
    """A tokenizer that returns what it is given."""

    @long_texts.bounded
    def encode(self, text: Any, text_pair: Any = None, **named: Any) -> Any:
        return text, text_pair, named


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(Traffic, "engine", SimpleNamespace(longest_prompt=request.param))


@pytest.mark.parametrize(
    ("model", "most"),
    [(1, LEAST), (LEAST // CHARACTERS_PER_TOKEN + 1, LEAST + CHARACTERS_PER_TOKEN)],
    indirect=["model"],
    ids=["least", "by the model"],
)
@pytest.mark.usefixtures("model")
def test_text_that_the_model_could_not_take_is_refused(most: int) -> None:
    half, tokenizer = "x" * (most // 2), Tokenizer()
    for text, pair in (
        ("x" * most, None),
        ([half, half], None),
        (half, half),
        ([(half, half)], None),
        ([half], [half]),
    ):
        assert tokenizer.encode(text, text_pair=pair, verbose=True) == (text, pair, {"verbose": True})
    too_long = half + "x"
    for text, pair in (
        ("x" * (most + 1), None),
        ([half, too_long], None),
        (half, too_long),
        ([(half, too_long)], None),
        ([half], [too_long]),
    ):
        with pytest.raises(ValueError) as refused:
            tokenizer.encode(text=text, text_pair=pair)
        assert str(most) in str(refused.value)


def test_model_that_loads_may_tokenize_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Traffic, "engine", None)
    text = "x" * (LEAST + 1)
    assert Tokenizer().encode(text) == (text, None, {})


@pytest.mark.parametrize("model", [1], indirect=True)
@pytest.mark.usefixtures("model")
def test_tokens_are_no_text() -> None:
    assert Tokenizer().encode([1, 2, 3]) == ([1, 2, 3], None, {})
