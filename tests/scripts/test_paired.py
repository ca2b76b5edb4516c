"""scripts/paired.py: its arguments, and ratios worked out by hand from invented decodings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from made import costs_for, made
from made_up import made_up
from naming import naming
from script_module import script_module
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.guard import Guard
from selfdraft.drafters.pool import PoolConfig
from selfdraft.drafters.presets import configured
from selfdraft.drafters.suffix import Suffix
from selfdraft.models.target import Target
from selfdraft.models.tiny import tiny_model
from stub_target import StubTarget, cycle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def paired() -> ModuleType:
    return script_module("paired")


def test_a_row_compares_with_the_first_prompt_by_prompt_and_over_all(paired: ModuleType) -> None:
    first = [made_up(1.0, 10, 10), made_up(1.0, 10, 10), made_up(1.0, 40, 40)]
    mine = [made_up(1.0, 20, 5), made_up(2.0, 10, 5), made_up(1.0, 30, 10)]
    cells = paired.row("pool", mine, first, Counter(exact=2, tie=1)).strip("| ").split(" | ")
    spec, forward, tokens, median, total, certificates = cells
    assert (spec, forward, tokens, certificates) == ("pool", "3.00", "15.0", "2 / 1 / 0")
    assert median.startswith("0.750 [0.500, 2.000]") and total.startswith(f"{15 / 20:.3f} [")


def test_every_configuration_decodes_every_prompt(paired: ModuleType) -> None:
    target = StubTarget(cycle(5))
    decoders = [
        Decoder(target, made(target, configured(name)), Stopping(frozenset(), 9))
        for name in ("none", "prompt_lookup", "suffix")
    ]
    runs = paired.measure(decoders, [[1, 2], [1, 2, 3], [3]])
    assert [[run.output[0] for run in of_one] for of_one in runs] == [[3, 4, 4]] * 3
    assert sum(run.counts.target_forwards for run in runs[0]) == 27


def test_the_fastest_of_several_repeats_counts(paired: ModuleType) -> None:
    class Slower:
        tries = 0

        def decode(self, prompt: list[int]) -> Generation:
            self.tries += 1
            return made_up(float(self.tries), 10, 10)

    decoder = Slower()
    ((first, second),) = paired.measure([decoder], [[1], [2]], repeats=3)
    assert decoder.tries == 1 + 2 * 3
    assert (first.clock.decode_s, second.clock.decode_s) == (2.0, 5.0)


def test_a_text_other_than_that_of_plain_decoding_is_a_mismatch(paired: ModuleType) -> None:
    target = Target(tiny_model("llama"))
    decoder = Decoder(target, made(target, configured("none")), Stopping(frozenset(), 6))
    plain = [decoder.decode([5, 17, 3]), decoder.decode([9, 4])]
    wrong = replace(plain[1], output=[(plain[1].output[0] + 1) % target.vocab_size, *plain[1].output[1:]])
    assert paired.verdicts(Certifier(target), [plain[0], wrong], plain) == {"exact": 1, "mismatch": 1}


def test_options_are_passed_to_the_drafter(paired: ModuleType) -> None:
    assert paired.config_of("pool sources=[suffix] edges=2") == PoolConfig(sources=["suffix"], edges=2)
    assert paired.config_of("guarded pool edges=2") == PoolConfig(edges=2)


def test_options_of_the_path_are_given_like_those_of_the_drafter(paired: ModuleType) -> None:
    for spec, config in {
        "layer_skip sparsity=0.3 draft_length=2": configured("layer_skip", sparsity=0.3, draft_length=2),
        "layer_skip skip_attention=[1,2] siblings=true": configured("layer_skip", skip_attention=[1, 2], siblings=True),
        "guarded jacobi path=swift enough=1e-1 init=ngram": configured(
            "jacobi", path="swift", enough=0.1, init="ngram"
        ),
        "early_exit exit_layer=null": configured("early_exit"),
        "pool adapter=some/folder": configured("pool", adapter="some/folder"),
    }.items():
        assert paired.config_of(spec) == config, spec


def test_the_word_guarded_adds_a_guard(paired: ModuleType) -> None:
    target = StubTarget(cycle(5))
    guarded, free = (paired.drafter_of(spec, target, costs_for(target)) for spec in ("guarded suffix", "suffix"))
    assert isinstance(guarded, Guard) and type(guarded.inner) is type(free) is Suffix


def test_every_family_has_its_own_median(paired: ModuleType) -> None:
    first = [made_up(1.0, 10, 10)] * 4
    mine = [made_up(1.0, 20, 5), made_up(2.0, 10, 5), made_up(1.0, 30, 10), made_up(1.0, 10, 10)]
    assert paired.by_family("pool", mine, first, ["qa", "rag", "qa", "rag"]) == "| pool | 2.500 | 0.750 |"


def test_wrong_arguments_give_one_clear_line(paired: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in [
        (["nowhere.jsonl", "pool"], "There is no file nowhere.jsonl"),
        (["nowhere.jsonl", "polo"], "there is no drafter 'polo'; choose one of none, "),
        (["nowhere.jsonl", ""], "there is no drafter ''"),
        (["nowhere.jsonl", "guarded"], "there is no drafter ''"),
        (["nowhere.jsonl", "pool sources=suffix"], "drafter.sources='suffix': must be a list, each item text"),
        (["nowhere.jsonl", "pool edgs=3"], "drafter=pool with path full has no option 'edgs'; there are branches, "),
        (["nowhere.jsonl", "suffix edges=3"], "drafter.edges: no such option; there are name, max_nodes, "),
        (["nowhere.jsonl", "pool edges"], "'pool edges': write option=value, not 'edges'"),
        (["nowhere.jsonl", "pool name=chain"], "'pool name=chain': write option=value, not 'name=chain'"),
        (["nowhere.jsonl", "pool edges=["], "'pool edges=[': the value of edges cannot be read"),
        (["nowhere.jsonl", "pool edges=${"], "'pool edges=${': the value of edges cannot be read"),
        (["nowhere.jsonl", "pool edges=2026-99-99"], "drafter.edges='2026-99-99': must be an integer"),
        (["nowhere.jsonl", "pool path=nowhere"], "there is no path 'nowhere'; choose one of full, "),
        (["nowhere.jsonl", "pool path=[full]"], "there is no path "),
        (["nowhere.jsonl", "pool path=trained"], "drafter.path.adapter is needed with the path trained"),
        (["nowhere.jsonl", "suffix path=full"], "drafter=suffix runs no part of the model: it takes no path"),
        (["nowhere.jsonl", "layer_skip exit_layer=2"], "drafter=layer_skip with path layer_skip has no option "),
        (["nowhere.jsonl", "pool edges=0"], "drafter.edges=0: must be at least 1"),
        (["nowhere.jsonl", "pool", "--tokens", "0"], "--per-family, --tokens and --repeats: at least 1"),
    ]:
        with naming(given, said):
            assert paired.main(given) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"paired: {said}")
