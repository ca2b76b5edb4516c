"""`python run.py --help`: the groups with their choices, read from conf/, and commands to start from."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore

EXAMPLES = """\
python run.py drafter=jacobi                                     compare with autoregressive decoding
python run.py drafter=layer_skip model.dtype=float32             another drafter, another dtype
python run.py drafter=jacobi drafter/path=swift                  another path: a part of the model refines the block
python run.py dataset=jsonl dataset.path=F dataset.per_category=4
python run.py task=generate prompt="Why is the sky blue?"        stream one answer
python run.py task=trace drafter=lookahead                       show every step of one
python run.py task=calibrate drafter=layer_skip                  search what to skip; take it with drafter.from
python run.py task=distill_data drafter=prompt_lookup decoding.batch_size=8      texts to learn from
python run.py -m drafter.window=4,8 drafter.refine_steps=1,2     a sweep: one process and folder a job
"""


def groups_under(conf: Path) -> list[str]:
    """Return the names of all groups, those in another group included, such as drafter/path."""
    return sorted(folder.relative_to(conf).as_posix() for folder in conf.rglob("*") if folder.is_dir())


def choices_in(group: Path) -> list[str]:
    """Return the names of a group's choices."""
    return sorted(file.stem for file in group.glob("*.yaml"))


def register_help(conf: Path) -> None:
    """Store the help page as Hydra's `hydra/help: selfdraft`."""
    choices = "\n".join(f"  {group:<14}{', '.join(choices_in(conf / group))}" for group in groups_under(conf))
    examples = "\n".join(f"  {line}" for line in EXAMPLES.splitlines())
    page = (
        "SelfDraft: lossless self-speculative decoding, configured, certified and timed.\n\n"
        f"Choose a group's file with group=choice, an option with group.option=value:\n{choices}\n\n"
        f"For example:\n{examples}\n\n"
        "The configuration as it stands now (python run.py --cfg job shows it resolved):\n\n$CONFIG\n"
    )
    # Hydra fills in $CONFIG, the only dollar sign of the page.
    node = {"app_name": "selfdraft", "header": "", "footer": "", "template": page}
    ConfigStore.instance().store(group="hydra/help", name="selfdraft", node=node)
