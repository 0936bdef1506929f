"""A Hugging Face Trainer in two clouds; `mpirun -n 2 python examples/hf_trainer.py [--lora]`.

A tiny Llama with random weights learns the bytes of Python's standard library, another half of the
modules in each cloud. With --lora (needs peft) only adapters are trained and exchanged.
"""

import os
import sys
from pathlib import Path
from tempfile import mkdtemp

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from pyfedcomm.integrations.hf import CrossCloudCallback
from pyfedcomm.sync import SyncConfig

callback = CrossCloudCallback(SyncConfig(rule="fedavg", local_steps=10), clouds="2")

modules = sorted(Path(os.__file__).parent.glob("*.py"))[callback.topology.rank :: 2]
text = b"".join(path.read_bytes() for path in modules)[: 2000 * 64]
rows = torch.tensor(list(text[: len(text) // 64 * 64])).view(-1, 64)
data = [{"input_ids": row, "labels": row} for row in rows]

torch.manual_seed(0)  # the same initial model in every cloud
llama = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
)
model: torch.nn.Module = llama
if "--lora" in sys.argv:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama, LoraConfig(r=4, target_modules="all-linear"))

args = TrainingArguments(
    output_dir=mkdtemp(),
    max_steps=60,
    per_device_train_batch_size=8,
    learning_rate=3e-3,
    logging_steps=20,
    save_strategy="no",
    report_to="none",
    dataloader_pin_memory=torch.cuda.is_available(),
    disable_tqdm=True,
)
trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[callback])
trainer.train()
if callback.topology.rank == 0:
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(f"losses {losses}; equal parameters in all clouds: {callback.bit_identical}")
