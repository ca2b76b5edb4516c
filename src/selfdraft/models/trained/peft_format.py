"""Write trained draft weights in the format of peft, so that other programs can load them.

LoRA becomes peft's LoRA. Layers that were trained as a whole, and a trained norm, become its `modules_to_save`. Pseudo
tokens, their sampler, the draft vocabulary and the skip set have no place in a peft adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfdraft.core.errors import UserError
from selfdraft.models.families.anatomy import dissect
from selfdraft.models.trained.adapter import Adapter

IN_PEFT = "base_model.model."  # prefix of peft's tensor names


@dataclass(frozen=True)
class PeftAdapter:
    """The contents of a peft adapter.

    Attributes:
        rank: rank of its LoRA; 1 if it has none.
        scale: factor of its LoRA.
        matrices: names of the modules with LoRA.
        whole: names of the modules that were trained as a whole.
        tensors: by peft's names.
    """

    rank: int
    scale: float
    matrices: tuple[str, ...]
    whole: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    def write(self, folder: Path, base: str) -> None:
        """Write the adapter into a folder, which is created if needed.

        Args:
            base: hub id or label of the model that it is for.
        """
        config = LoraConfig(
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=base,
            r=self.rank,
            lora_alpha=self.rank * self.scale if self.matrices else 1,  # peft scales by alpha / rank
            target_modules=list(self.matrices) or DUMMY_TARGET_MODULES,
            modules_to_save=list(self.whole) or None,
        )
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        save_file(dict(self.tensors), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def to_peft(adapter: Adapter, model: PreTrainedModel) -> PeftAdapter:
    """Convert draft-only weights for `model`.

    Raises:
        UserError: none of the tensors has a place in a peft adapter, or the LoRA has several ranks.
    """
    anatomy, names = dissect(model), {id(module): name for name, module in model.named_modules()}
    tensors: dict[str, Tensor] = {}
    matrices: list[str] = []
    ranks: set[int] = set()
    whole: list[str] = []

    def save(module: nn.Module, own: Mapping[str, Tensor]) -> None:
        if own:
            whole.append(names[id(module)])
            tensors.update({f"{whole[-1]}.{name}": tensor for name, tensor in own.items()})

    for index, layer in enumerate(anatomy.layers):
        own, lora = adapter.under(f"layer.{index}."), adapter.under(f"lora.{index}.")
        save(layer, own)
        for name in () if own else sorted({key.rpartition(".")[0] for key in lora}):
            matrices.append(f"{names[id(layer)]}.{name}")
            ranks.add(len(lora[f"{name}.A"]))
            tensors |= {f"{matrices[-1]}.lora_{part}.weight": lora[f"{name}.{part}"] for part in "AB"}
    save(anatomy.norm, adapter.under("norm."))
    if not tensors:
        raise UserError(f"recipe '{adapter.recipe}' trained no LoRA, layer or norm: peft has no place for the rest")
    if len(ranks) > 1:
        raise UserError(f"its LoRA has ranks {sorted(ranks)}: only one rank for all matrices is exported")
    return PeftAdapter(
        rank=ranks.pop() if ranks else 1,
        scale=float(adapter.settings["scale"]),
        matrices=tuple(matrices),
        whole=tuple(whole),
        tensors={f"{IN_PEFT}{name}": tensor.contiguous() for name, tensor in tensors.items()},
    )
