"""Answer prompts with OpenVINO GenAI:  python -I run_openvino.py SETTINGS

See run_llama_cpp.py for SETTINGS, input and output.
"""

import json
import sys
import time

import numpy as np
import openvino
import openvino_genai

LOOKUP_TOKENS, LOOKUP_NGRAM = 5, 3  # the values in its examples


def main() -> None:
    """Load the file, then answer until the input ends."""
    settings = json.loads(sys.argv[1])
    begun = time.perf_counter()
    more = {"prompt_lookup": True} if settings["lookup"] else {}
    pipe = openvino_genai.LLMPipeline(settings["file"], "CPU", INFERENCE_NUM_THREADS=settings["threads"], **more)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.stop_token_ids = settings["tokens"], set(settings["eos"])
    config.do_sample = False
    if settings["lookup"]:
        config.num_assistant_tokens, config.max_ngram_size = LOOKUP_TOKENS, LOOKUP_NGRAM
    print(json.dumps({"load_s": time.perf_counter() - begun}), flush=True)
    for line in sys.stdin:
        ids = np.array([json.loads(line)], dtype=np.int64)
        given = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        begun = time.perf_counter()
        out = pipe.generate(given, config)
        latency = time.perf_counter() - begun
        first = out.perf_metrics.get_ttft().mean / 1e3
        told = {"output": list(out.tokens[0]), "first_s": first, "latency_s": latency, "first_tokens": 1}
        print(json.dumps(told), flush=True)


main()
