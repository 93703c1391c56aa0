"""What the tests share; a test imports it as `from helpers.tiny import build`.

| | |
|---|---|
| `command_line` | the command in this process (`run`, `works`) or its own (`process`); `refused`: its one sentence |
| `cli_inputs` | two models, prompts, and runs on them for tests of the command line |
| `processes` | several processes of one command under torchrun; their environment |
| `jobs`, `slurm` | the jobs of a sweep in this process; a cluster of one node |
| `chromium`, `figures` | a page as a browser draws it; the contents of plotly figures |
| `tiny` | tiny random models of all families, plain and hooked, in float64 |
| `oracle` | the parts of a plain model by name, and what goes through them |
| `comparisons` | scores of the tiny models beside the same quantities of the oracle |
| `interventions`, `untied`, `grafted`, `recall_cases` | plain models with values or weights replaced |
| `architectures`, `gguf_files` | models of every architecture; GGUF files of them |
| `facts_fixtures`, `folders` | checkpoints on disk, their tokenizers and facts; how they are edited or damaged |
| `model_pairs`, `chat_models`, `paper_models` | checkpoints that differ a little; with chat templates; with the paper's words |
| `plain_finetuning` | the training loop that finetuning is held to |
| `tiny_organisms`, `pretrained` | organisms that pretrain in a second; SmolLM2 |
| `synthetic_scores` | scores with known numbers, for what uses scores |
| `readers_records` | records of every public format of facts |
| `fuzz` | every file that a command takes, damaged; `fuzz.damage` has the kinds of damage |
| `parallel_cases`, `sharded_script` | what the ranks of a launch run |

`tests/programs.py` and `tests/forms.py` are measurements as well, which the docs tell to run.
"""
