"""Shards of DeepSpeed and FSDP: the sentence that refuses them has the command that merges them."""

import re
import shlex

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate.commands.merge import merge_command, merge_command_parser
from helpers.tiny import build, tokenizer

from ecstruct import InputError, checkpoints, load

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@pytest.fixture
def plain():
    return build("llama", dtype=torch.float32)


def save_but_weights(plain, folder):
    plain.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()


def refusal(source):
    with pytest.raises(InputError) as caught:
        load(source)
    return str(caught.value)


def command(sentence):
    (found,) = re.findall("`(.*)`", sentence)
    return shlex.split(found)


@pytest.mark.parametrize("part", ["pytorch_model_fsdp_0", "."])
def test_the_command_for_shards_of_fsdp_makes_a_folder_that_is_read(tmp_path, plain, part):
    folder = tmp_path / "checkpoint-500"
    save_but_weights(plain, folder)
    dcp.save({"model": plain.state_dict()}, checkpoint_id=folder / part, no_dist=True)
    dcp.save({"step": torch.ones(2)}, checkpoint_id=folder / "optimizer_0", no_dist=True)

    program, *arguments = command(refusal(folder))
    assert program == "accelerate" and arguments.pop(0) == "merge-weights"
    merge_command(merge_command_parser().parse_args(arguments))
    expected = plain.model.layers[1].mlp.up_proj.weight
    assert torch.equal(load(folder, device="cpu").blocks[1].mlp.get_submodule("in").weight, expected)


def test_shards_that_a_trainer_saved_without_a_configuration(tmp_path, plain):
    folder = tmp_path / "run" / "checkpoint-500"
    dcp.save({"model": plain.state_dict()}, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    assert refusal(folder) == (
        f"the folder {folder} has the shards of a training with FSDP (torch.distributed.checkpoint), one "
        "for every process: merge them with "
        f"`accelerate merge-weights {folder}/pytorch_model_fsdp_0 {folder}`, "
        "copy the config.json and the tokenizer of the model that was trained into it, and give the folder "
        "again."
    )
    assert checkpoints(tmp_path / "run") == {500: str(folder)}
    assert refusal(f"{tmp_path / 'run'}@500") == refusal(folder)


def shards_of_zero(run):
    step = run / "global_step500"
    step.mkdir(parents=True)
    for rank in range(2):
        (step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        (step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").touch()
    return step


def test_shards_of_deepspeed(tmp_path, plain):
    folder = tmp_path / "checkpoint-500"
    save_but_weights(plain, folder)
    step = shards_of_zero(folder)
    assert command(refusal(folder)) == (
        ["python", "-m", "deepspeed.utils.zero_to_fp32", str(folder), str(folder), "--safe_serialization"]
    )
    (folder / "zero_to_fp32.py").touch()
    script = ["python", str(folder / "zero_to_fp32.py"), str(folder)]
    assert command(refusal(folder)) == [*script, str(folder), "--safe_serialization"]
    assert command(refusal(step)) == [*script, str(step), "--safe_serialization", "--tag", "global_step500"]


def test_shards_beside_whole_weights_do_not_matter(tmp_path, plain):
    plain.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    shards_of_zero(tmp_path)
    load(tmp_path, device="cpu")
