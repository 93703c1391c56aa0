"""What the tests share; a test imports it as `from helpers.tiny import build`.

Commands and processes:
    command_line: a command in this process (`run`, `works`); `refused`: its sentence
    cli_inputs: two models, prompts, and runs on them
    processes: a command, or ranks of a script (`parallel_cases`, `sharded_script`), in processes of their
        own; a process that holds a lock
    jobs, slurm: the jobs of a sweep in this process; a cluster of one node
    chromium, figures: a page as a browser draws it; the contents of plotly figures
    fuzz: every file that a command takes, damaged (`fuzz.damage`: the kinds of damage)

Models and oracles:
    tiny: random models of all families, plain and hooked, in float64
    oracle: the parts of a plain model by name, and what goes through them
    comparisons: scores of the tiny models beside the same quantities of the oracle
    interventions, untied, grafted, recall_cases: plain models with values or weights replaced
    architectures, gguf_files: models of every architecture, and GGUF files
    plain_finetuning: the training loop that finetuning is held to
    tiny_organisms, pretrained: organisms that pretrain in a second; SmolLM2

Files and results:
    facts_fixtures, folders: checkpoints on disk, their tokenizers and facts; how to edit and damage them
    model_pairs, chat_models, paper_models: checkpoints that differ, chat, or read the paper's prompts
    readers_records: records of every public format of facts
    synthetic_scores: scores with known numbers, for what uses scores

`tests/programs.py` and `tests/forms.py` are measurements as well, which the docs tell to run.
"""
