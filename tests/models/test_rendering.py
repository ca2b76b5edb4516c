"""A chat template is untrusted code: it renders as in transformers, or is stopped with one clear line."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from selfdraft.core.errors import UserError
from selfdraft.models.loading import rendering
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.rendering import MAX_TEMPLATE, MAX_TEXT, render
from selfdraft.models.loading.tiny import TINY_TEMPLATE, tiny_tokenizer

MESSAGES = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "5 µm"}]
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"


def rendered(template: str) -> str:
    return render(template, MESSAGES, {"bos_token": "<s>"}, answer=True)


@pytest.mark.parametrize(
    "template",
    [
        TINY_TEMPLATE,
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}\n  [{{ m.role | upper }}] {% endif %}"
        "{{ m['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}>{% else %}.{% endif %}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
        "{% generation %}{{ messages[1].content }}{% endgeneration %}{{ strftime_now('%Y')[:2] }}{{ nothing }}",
    ],
)
@pytest.mark.parametrize("answer", [True, False])
def test_rendering_equals_that_of_transformers(template: str, answer: bool) -> None:
    tokenizer = tiny_tokenizer()
    expected = tokenizer.apply_chat_template(
        MESSAGES, chat_template=template, add_generation_prompt=answer, tokenize=False
    )
    assert render(template, MESSAGES, tokenizer.special_tokens_map, answer=answer) == expected


def test_a_chat_is_encoded_as_by_transformers() -> None:
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer()
    tokenizer.chat_template = TINY_TEMPLATE + "{{ bos_token }}"
    ids = Chat(tokenizer).encode([(m["role"], m["content"]) for m in MESSAGES])
    assert ids == tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert tokenizer.bos_token_id in ids


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system prompt') }}", "no system prompt"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[9].content.x }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{% for i in range(999999) %}x{% endfor %}", "OverflowError"),
        (f"{{{{ 'x' * {MAX_TEXT + 1000} }}}}", "characters of one conversation"),
        ("x" * (MAX_TEMPLATE + 1), "more than 1,000,000 are refused"),
    ],
)
def test_a_failing_template_gives_one_clear_line(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        rendered(template)
    assert str(caught.value).startswith("the chat template ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        NESTED,
        "{{ 'a' * 30000000000 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ (9 ** 9999999) ** 99999 }}",
    ],
    ids=["time", "memory at once", "memory bit by bit", "time in one instruction"],
)
def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    rendered("ready")  # starting the process takes longer than the time that is given here
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(UserError, match="the chat template was stopped"):
        rendered(template)
    assert time.monotonic() - begin < 30
    monkeypatch.undo()
    assert rendered("{{ messages[0].content }}") == "Größe?"  # and the next one is served


def test_threads_get_their_own_results() -> None:
    def one(number: int) -> str:
        return render("{{ n }}", MESSAGES, {"n": number}, answer=True)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(40))) == [str(number) for number in range(40)]


@pytest.mark.slow
def test_the_process_gets_no_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(rendering, "_RENDERER", renderer := rendering._Renderer())
    try:
        assert rendered("{{ messages[0].content }}") == "Größe?"
        environ = Path(f"/proc/{renderer._process.pid}/environ").read_text()
    finally:
        renderer.close()
    assert "secret" not in environ and "PATH=" in environ


@pytest.mark.slow
def test_a_process_that_does_not_start_is_not_blamed_on_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering._RENDERER.close()
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "MODULE", "selfdraft.no_such_module")
        with pytest.raises(UserError, match="does not start"):
            rendered(TINY_TEMPLATE)
    assert rendered("{{ bos_token }}") == "<s>"


@pytest.mark.slow
def test_no_file_of_the_working_directory_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jinja2.py", "json.py", "selfdraft.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    rendering._RENDERER.close()  # so that it starts anew, from here
    assert rendered("{{ bos_token }}") == "<s>"
    assert not (tmp_path / "was run").exists()
