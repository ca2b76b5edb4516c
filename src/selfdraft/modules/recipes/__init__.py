"""The recipes of task=finetune, by name."""

from selfdraft.modules.finetune import FinetuneModule
from selfdraft.modules.recipes.consistency import Consistency
from selfdraft.modules.recipes.exit_adapter import ExitAdapter
from selfdraft.modules.recipes.fused_jacobi import FusedJacobiRecipe
from selfdraft.modules.recipes.jump import Jump
from selfdraft.modules.recipes.pseudo_tokens import PseudoTokensRecipe
from selfdraft.modules.recipes.sparse_distill import SparseDistill

RECIPES: dict[str, type[FinetuneModule]] = {
    recipe.Config().name: recipe
    for recipe in (SparseDistill, ExitAdapter, PseudoTokensRecipe, Consistency, FusedJacobiRecipe, Jump)
}
