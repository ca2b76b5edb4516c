"""What other engines call a drafter: their settings, where they have it.

Names and values from vLLM's docs (features/speculative_decoding), llama.cpp's docs/speculative.md and transformers'
GenerationConfig, as of November 2026.
"""

from __future__ import annotations

import json

from selfdraft.drafters.base import DrafterConfig, PathDrafterConfig
from selfdraft.drafters.paths.early_exit import EarlyExitConfig
from selfdraft.drafters.prompt_lookup import PromptLookupConfig


def equivalents(config: DrafterConfig) -> dict[str, str]:
    """Return the settings for the same method by engine; an empty text for one that does not have it."""
    found = {"vLLM": "", "llama.cpp": "", "transformers": ""}
    if isinstance(config, PromptLookupConfig):
        settings = {
            "method": "ngram",
            "num_speculative_tokens": config.draft_length,
            "prompt_lookup_max": config.ngram_max,
            "prompt_lookup_min": config.ngram_min,
        }
        found["vLLM"] = f"--speculative-config '{json.dumps(settings)}'"
        found["llama.cpp"] = f"--spec-type ngram-simple --draft-max {config.draft_length}"
        found["transformers"] = (
            f"generate(…, prompt_lookup_num_tokens={config.draft_length}, max_matching_ngram_size={config.ngram_max})"
        )
    elif config.name == "suffix":
        found["vLLM"] = f"--speculative-config '{json.dumps({'method': 'suffix'})}'"
    elif isinstance(config, PathDrafterConfig) and isinstance(config.path, EarlyExitConfig) and config.name == "chain":
        layer = "<half of the layers>" if config.path.exit_layer is None else config.path.exit_layer
        found["transformers"] = f"generate(…, assistant_early_exit={layer})"
    return found


def without(config: DrafterConfig) -> str:
    """Return a sentence that names the engines that do not have this method; empty if all have it."""
    missing = [engine for engine, settings in equivalents(config).items() if not settings]
    return f"{' and '.join(missing)}: no setting does the same" if missing else ""
