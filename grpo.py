"""Tokens, rollouts and learning for multi-turn RL of a language-model agent (UserRL, arXiv 2509.19736).

How a policy talks and how it learns, in one file that works when copied alone into an empty folder:

  tokens     a chat is encoded piece by piece, each piece once; what was sampled is never decoded and re-encoded
  engine     one KV-cache row per conversation; user replies are appended to the row, finished rows are refilled
  learning   clipped policy gradient (GRPO and its variants) with one advantage per turn, and SFT by the same code
  processes  each plays and learns from its share, gradients and divisors are summed (gloo or NCCL)
  checkpoint Hugging Face format plus what resuming needs; no pickle; killed at any instant, one complete copy remains
  a run      what programs share that train with this file: folder, settings, phases, processes, Ctrl-C

An environment is known only by its methods (`rollout` lists them), a reward only as a number per turn.

Left out, on purpose: top-k / top-p / repetition penalties (the trained distribution must be the sampled one), dropout
(models stay in eval mode), autocast (sampler and trainer must agree), paged attention, tensor parallelism, speculative
decoding, sliding-window and linear-attention models (refused, not mishandled). Memory is the plain sum of weights,
gradients and moments; where it is too much: bfloat16 weights, layers that are recomputed, LoRA.

    python grpo.py             self-checks, then a benchmark against transformers' generate  (--quick: smaller)
    python grpo.py --shape=0.6B   decode steps on a GPU against its memory bandwidth  (also 1.7B, 4B, tiny)
"""

from __future__ import annotations

import os
import signal
import threading

# The imports take seconds. A Ctrl-C in the midst of them ends the process at once, not in a traceback of theirs.
first_thread = threading.current_thread() is threading.main_thread()
if first_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_with(pipe):
    """On a thread: end this process as soon as the one that holds the other end of the pipe is gone."""
    os.read(pipe, 1)
    os._exit(3)


if "GRPO_PIPE" in os.environ:                                           # the first process of a run started this one
    threading.Thread(target=end_with, args=[int(os.environ["GRPO_PIPE"])], daemon=True).start()

# Idle OpenMP threads sleep instead of spinning: beside one other busy process on two cores, spinning made
# a decode step 30 times slower. Read when torch is first imported; set the variable to choose otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import contextlib
import dataclasses
import difflib
import fcntl
import importlib.util
import inspect
import json
import math
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint
from transformers import (AttentionInterface, AutoModelForCausalLM, AutoTokenizer, Cache,
                          PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM)
from transformers.cache_utils import StaticLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()  # a bar per checkpoint drowns the step lines
# Our own programs stay so until their settings are read, see `dying_at_once`.
ours = os.path.basename(sys.argv[0]) in ("userrl.py", "userlm_r1.py")
if first_thread and signal.getsignal(signal.SIGINT) is signal.SIG_DFL and not ours:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class PolicyError(ValueError):
    """A model or checkpoint cannot be used; the message is one line that says which and why."""


# ------------------------------------------------------------------------------------------------ models and tokens

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                 "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def tiny_policy(texts, *, vocab_size=2048, hidden=128, layers=2, heads=4, kv_heads=2, head_dim=64, ffn=256,
                max_len=4096, init=0.1, mimetic=False, seed=0):
    """A Qwen3-architecture model with random weights and a byte-level BPE tokenizer trained on `texts`.

    `mimetic` starts attention where training would bring it: query @ key near the identity, value @ output near its
    negative (Trockman & Kolter 2023, arXiv 2305.09828), and one number the same in all embeddings, so that heads can
    attend by position alone. Such a model learns to look up "what followed this word" several times sooner.
    """
    bpe = Tokenizer(models.BPE())
    # A newline is always its own token, so that "user\n" + text encodes to the tokens of its two halves. The
    # alphabet is all 256 bytes: any text can be encoded.
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, START, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=END,
                                        extra_special_tokens=[START], clean_up_tokenization_spaces=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=ffn, max_position_embeddings=max_len,
        tie_word_embeddings=True, dtype="float32", initializer_range=init, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    # The caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    if mimetic:
        with torch.no_grad():
            # The embeddings are tied to the output: this adds the same to all logits.
            model.get_input_embeddings().weight[:, 0] = 10 * init
            for a in (layer.self_attn for layer in model.model.layers):
                # The first of the query heads that share a key becomes that key.
                q = a.q_proj.weight.view(kv_heads, -1, hidden)[:, :head_dim]
                v = a.v_proj.weight.view(kv_heads, 1, head_dim, hidden).expand(-1, heads // kv_heads, -1, -1)
                a.k_proj.weight.copy_(q.flatten(0, 1))
                a.o_proj.weight.copy_(-v.reshape(-1, hidden).T)
    return model.eval(), tokenizer


def load_policy(name_or_path, device=None, dtype=None):
    """(model, tokenizer) of a decoder-only Hugging Face chat checkpoint, in its own dtype by default.

    By its folder, by the run folder that holds it, by its name on the hub (ORG/NAME), or a .gguf file, which is
    unpacked (gguf and accelerate must be installed). A name that looks like a path is never looked up on the hub.
    PolicyError if it cannot be used.
    """
    given, name = str(name_or_path), checkpoint_of(name_or_path)
    packed = name.endswith(".gguf") and os.path.isfile(name)
    path_like = given.startswith((".", "/", "~", "runs/")) or given.endswith(("/", ".gguf")) or given.count("/") > 1
    if (path_like or "\\" in given or not given) and not os.path.isdir(name) and not packed:
        raise PolicyError(f"no checkpoint at {given!r}: the folder does not exist")
    for file, sum_then in ((marker(name) or {}).get("files") or {}).items():
        if file != OPTIMIZER:
            unchanged(name, file, sum_then)
    options = {"local_files_only": os.path.isdir(name) or packed}  # then no hub is asked
    place = name
    if packed:
        missing = [package for package in ("gguf", "accelerate") if not importlib.util.find_spec(package)]
        if missing:
            raise PolicyError(f"{given} needs a package that is not installed: pip install {' '.join(missing)}")
        place, options["gguf_file"] = os.path.split(os.path.abspath(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype or "auto", use_safetensors=True, **options)
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    except Exception as error:  # what damaged files make of three libraries is of every kind, plain Exception too
        raise PolicyError(f"cannot load a policy from {name}: {reason(error)}") from error
    check_decoder(model, tokenizer, name)
    fit_chat(tokenizer)
    for key in ("is_local", "local_files_only", "gguf_file"):  # how it was found is not part of it, and not to be saved
        tokenizer.init_kwargs.pop(key, None)
    if packed:
        del model.config.quantization_config  # it is unpacked, and will be saved so
        model.hf_quantizer = None
    # Views of the mapped file lie at odd addresses, where a CPU's last bits come out differently.
    for p in model.parameters():
        p.data = p.data.clone()
    return model, tokenizer


@torch.no_grad()
def check_decoder(model, tokenizer, name):
    """PolicyError for an encoder, whose tokens see those after them, and for a vocabulary that is not the model's."""
    if len(tokenizer) > (size := model.get_input_embeddings().num_embeddings):
        raise PolicyError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {size}")
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device)  # two texts that differ at their end
    one, other = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :3].float()  # [3, hidden] each
    if (one - other).abs().max() > 1e-3 * one.abs().max():
        raise PolicyError(f"{name} is an encoder ({model.config.model_type}): a policy must be a decoder, which writes")


@lru_cache(maxsize=1 << 16)  # system prompts and feedback texts repeat
def encode(tokenizer, text):
    """Ids of plain text. A literal "<|im_end|>" in it is spelled out in bytes: no user can forge a turn."""
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


# A conversation is written in pieces that are cut out of the model's own chat template: it is rendered with gaps in
# place of what is said. So nothing is ever re-encoded, and a thought stays where it was sampled, also where the
# template would drop it from older turns.
GAPS = "@gap-0@", "@gap-1@", "@gap-2@", "@gap-3@"
TOOLS = """{}

Your tools, as JSON schemas:
<tools>
{}
</tools>
Each of your turns is one call of a tool, as JSON between two tags:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


class Chat(NamedTuple):
    """What is fixed in the conversations of a model, see `chat_of`."""
    end: int            # the token that ends a turn
    after: str          # what stands between it and the next message
    prompt: str         # what stands before the model speaks


def chat_key(tokenizer):
    """The chat template and whether the model thinks before it speaks: what the rendering depends on.

    The second is the attribute `thinking` of the tokenizer, for templates that know enable_thinking (Qwen3).
    """
    template = tokenizer.chat_template or CHAT_TEMPLATE
    template = template["default"] if isinstance(template, dict) else template
    return tokenizer, template, bool(getattr(tokenizer, "thinking", False))


@lru_cache(maxsize=512)
def chat_text(key, roles, tools="", prompt=False):
    """The template's text for messages of those roles, with a gap for the content of each.

    tools: their schemas as JSON, or ""; prompt: with what stands before the model speaks. Where the template does not
    show tools, or not as <tool_call>, the system prompt does.
    """
    tokenizer, template, thinking = key
    messages = [{"role": role, "content": gap} for role, gap in zip(roles, GAPS)]
    options = dict(tokenize=False, add_generation_prompt=prompt, chat_template=template, enable_thinking=thinking)
    if tools:
        schemas = json.loads(tools)
        with contextlib.suppress(Exception):  # of a template that knows no tools
            text = tokenizer.apply_chat_template(messages, tools=schemas, **options)
            if "<tool_call>" in text and schemas[0]["function"]["name"] in text:
                return text
        messages[0]["content"] = TOOLS.format(GAPS[0], "\n".join(map(json.dumps, schemas)))
    text = tokenizer.apply_chat_template(messages, **options)
    # some end what is no prompt with the end of the text (Phi)
    return text if prompt else text.removesuffix(tokenizer.eos_token or "")


@lru_cache(maxsize=512)
def pieces(tokenizer, text):
    """A template's text, cut at its special tokens: their ids, and between them lists [words, gap, words, ...]."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    cuts = "|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)"
    parts = [part for part in re.split(f"({cuts})", text) if part]
    return [tokenizer.convert_tokens_to_ids(part) if part in special else re.split("(@gap-[0-3]@)", part)
            for part in parts]


def filled(tokenizer, text, *said):
    """Ids of a template's text, its gaps filled, by their numbers, with what was said; where the last words stand."""
    ids, heard = [], range(0)
    said = dict(zip([gap for gap in GAPS if gap in text], said, strict=True))
    for piece in pieces(tokenizer, text):
        if isinstance(piece, int):
            ids.append(piece)
            continue
        tokens = encode(tokenizer, "".join(said.get(part, part) for part in piece))
        if len(piece) > 1:
            # A token that joins the header's newline to one of the words counts as header.
            header, footer = len(encode(tokenizer, piece[0])), len(encode(tokenizer, piece[-1]))
            heard = range(len(ids) + header, len(ids) + len(tokens) - footer)
        ids += tokens
    return ids, heard


def chat_of(tokenizer):
    """The `Chat` of a model; PolicyError if its template cannot be cut into pieces."""
    return cut_chat(chat_key(tokenizer))


@lru_cache(maxsize=64)
def cut_chat(key):
    tokenizer, template, _ = key
    name = tokenizer.name_or_path or "this model"
    if template == CHAT_TEMPLATE and not {START, END} <= tokenizer.get_vocab().keys():
        raise PolicyError(f"{name} has no chat template, and no {START} / {END} for a plain one: take a chat model")
    talk = "system", "user", "assistant", "user"
    opening, prompted = chat_text(key, talk[:2]), chat_text(key, talk[:2], "", True)
    between = chat_text(key, talk).partition(GAPS[2])[2].partition(GAPS[3])[0]
    last = chat_text(key, talk[:3]).partition(GAPS[2])[2]
    first = (pieces(tokenizer, between) or [None])[0]
    if not isinstance(first, int):
        raise PolicyError(f"{name} has no end-of-turn token: its chat template ends a turn with {between[:20]!r}")
    end = tokenizer.convert_ids_to_tokens(first)
    after = last.removeprefix(end) if last.startswith(end) and between.startswith(last) else ""
    return Chat(first, after, prompted.removeprefix(opening))


def opening_ids(tokenizer, messages, tools=None):
    """Ids of the messages that begin a conversation, and how many that were: a system prompt and the user's first
    message, or the first of another kind. A template may put a text of its own before it. tools: schemas to show."""
    roles = tuple(m["role"] for m in messages[:2])
    count = 2 if roles == ("system", "user") else int(roles[:1] != ("assistant",))
    if not count:
        return [], 0
    text = chat_text(chat_key(tokenizer), roles[:count], json.dumps(tools) if tools else "")
    return filled(tokenizer, text, *(m["content"] for m in messages[:count]))[0], count


@lru_cache(maxsize=64)
def block_text(key, role):
    """The template's text of a message of that role, after a turn of the model."""
    tokenizer, chat = key[0], cut_chat(key)
    try:
        text = chat_text(key, ("system", "user", "assistant", role))
    except Exception:  # a template without that role
        if role == "user":
            raise
        return block_text(key, "user")
    close = tokenizer.convert_ids_to_tokens(chat.end) + chat.after
    return text.partition(GAPS[2])[2].removeprefix(close)


def message_ids(tokenizer, role, content):
    """<|im_start|>role\n content <|im_end|>\n, or what the model's template has for it, all of it forced (mask 0)."""
    return filled(tokenizer, block_text(chat_key(tokenizer), role), content)[0]


def reply_ids(tokenizer):
    """<|im_start|>assistant\n: what stands before the model speaks."""
    return filled(tokenizer, chat_of(tokenizer).prompt)[0]


def opens_thought(tokenizer):
    """Does the template begin the model's thought for it (R1)? Then it samples the rest of one, and closes it."""
    return chat_of(tokenizer).prompt.rstrip().endswith("<think>")


def fit_chat(tokenizer):
    """Make sure that a conversation's rendering begins with the rendering of each of its beginnings, token by token.

    The engine only appends. Where the model's template does otherwise (thoughts left out of older turns aside), or
    where there is none, conversations are written as ChatML, and a line says so; PolicyError without its tokens.
    """
    trouble = "has no chat template"
    if tokenizer.chat_template:
        try:
            trouble = chat_trouble(tokenizer)
        except PolicyError as error:
            trouble = str(error)
        except Exception as error:  # jinja's, or what the template raises itself
            trouble = f"has a chat template that cannot be used: {reason(error)}"
        if not trouble:
            return
    name = tokenizer.name_or_path or "this model"
    if not {START, END} <= tokenizer.get_vocab().keys():
        why = trouble if name in trouble else f"{name} {trouble}"
        raise PolicyError(f"{why}; and it has no {START} / {END} for ChatML: a chat model is needed")
    tokenizer.chat_template = CHAT_TEMPLATE
    if rank() == 0:
        print(f"! {trouble if name in trouble else f'{name} {trouble}'}: its conversations are written as ChatML",
              flush=True)


def chat_trouble(tokenizer):
    """Why conversations cannot be written in pieces of the model's own template; "" if they can."""
    talk = [{"role": "system", "content": "Be brief.\n\nOne line."}, {"role": "user", "content": "Hi! 1 + 2?"}]
    for text in ("[answer] 3", '{"a": 1}'):
        talk += [{"role": "assistant", "content": text}, {"role": "user", "content": "No, it isn't.\nAgain"}]
    key = chat_key(tokenizer)
    for count in (2, 4, 6):
        ours = demo_trajectory(tokenizer, talk[:count]).ids + reply_ids(tokenizer)
        theirs = tokenizer.apply_chat_template(talk[:count], add_generation_prompt=True, chat_template=key[1],
                                               enable_thinking=key[2], return_dict=False)
        one, other = (re.sub(r"<think>.*?</think>\s*", "", tokenizer.decode(ids), flags=re.S)
                      for ids in (ours, theirs))
        thinks = "<think>" in tokenizer.decode(theirs) + tokenizer.decode(ours)
        if ours != theirs and not (thinks and one == other):
            return "has a chat template that changes what stands before when the conversation goes on"
    return ""


@dataclass
class Trajectory:
    """One conversation as tokens. `ids`, `mask`, `logps`, `turn` are parallel and grow only by `extend`.

    mask    1 = sampled (the sampled <|im_end|> too), 0 = forced: prompts, user replies, an imposed <|im_end|>
    logps   log-prob at sampling time under the tempered distribution; 0 where the mask is 0
    turn    index of the assistant turn (0, 1, ...) of a sampled token; -1 for every other token
    heard   where in `ids` the user's replies stand: their words and <|im_end|>, no role, no newline; not the opening
    status  done | truncated (the environment's turn limit) | length (context full) | user_error (leave it out)
    error   how the user failed, in one line: "ConnectionError: refused"
    `turn_rewards` and `infos` hold one entry per finished turn; `messages` is the text view, for logs only.
    """
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    heard: list[int] = field(default_factory=list)
    turn_rewards: list[float] = field(default_factory=list)
    infos: list[dict] = field(default_factory=list)
    messages: list[dict] = field(default_factory=list)
    status: str = ""
    error: str = ""
    group: object = None

    def extend(self, ids, mask, logps=None, turn=-1):
        """Append tokens; `mask` is a list or one value for all, `turn` belongs to the tokens with mask 1."""
        mask = [mask] * len(ids) if isinstance(mask, int) else list(mask)
        logps = [0.0] * len(ids) if logps is None else list(logps)
        assert len(ids) == len(mask) == len(logps), f"ids {len(ids)}, mask {len(mask)}, logps {len(logps)} differ"
        assert self.ids or not mask or not mask[0], "the first token has no predecessor and cannot be trained"
        assert turn >= 0 or not any(mask), "trained tokens need their turn"
        self.ids += ids
        self.mask += mask
        self.logps += logps
        self.turn += [turn if m else -1 for m in mask]

    def hear(self, tokenizer, reply, role="user"):
        """Append what the user (or the "tool") replies, a message of forced tokens, and note where its words are."""
        ids, words = filled(tokenizer, block_text(chat_key(tokenizer), role), reply)
        end = chat_of(tokenizer).end
        heard = [at for at in range(words.start, len(ids)) if at in words or ids[at] == end]
        self.heard += [len(self.ids) + at for at in heard]
        self.extend(ids, 0)

    @property
    def tokens(self):
        """Trained tokens of each turn; a turn that earned nothing, or has no trained token, keeps its place."""
        turns = max(len(self.turn_rewards), max(self.turn, default=-1) + 1)
        return [self.turn.count(t) for t in range(turns)]


def demo_trajectory(tokenizer, messages, tools=None):
    """A written conversation as a trajectory: assistant contents and their <|im_end|> are trained (SFT).

    messages: [{"role": system | user | assistant | tool, "content": text}]; tools: schemas that the opening shows.
    """
    traj, chat, said = Trajectory(messages=list(messages), status="done"), chat_of(tokenizer), 0
    opening, first = opening_ids(tokenizer, messages, tools)
    traj.extend(opening, 0)
    for i, m in enumerate(messages[first:], first + 1):
        if m["role"] in ("user", "tool") and said:
            traj.hear(tokenizer, m["content"], m["role"])
            continue
        if m["role"] != "assistant":
            traj.extend(message_ids(tokenizer, m["role"], m["content"]), 0)
            continue
        traj.extend(reply_ids(tokenizer), 0)
        words = m["content"]
        if opens_thought(tokenizer):
            words = words.removeprefix("<think>").lstrip("\n") if "</think>" in words else "\n</think>\n\n" + words
        traj.extend([*encode(tokenizer, words), chat.end], 1, turn=said)
        said += 1
        if i < len(messages):
            traj.extend(list(encode(tokenizer, chat.after)), 0)
    traj.turn_rewards, traj.infos = [0.0] * said, [{} for _ in range(said)]
    return traj


def text_trajectory(tokenizer, text):
    """Plain text, every token trained and <|endoftext|> at its end: a stand-in for pre-training."""
    pad = tokenizer.pad_token_id
    traj = Trajectory(status="done", turn_rewards=[0.0], infos=[{}])
    traj.extend([pad], 0)  # the predecessor of the first token
    traj.extend([*encode(tokenizer, text), pad], 1, turn=0)
    return traj


# ------------------------------------------------------------------------------------------------ models that must fit

LORA_SCALE = 2.0  # alpha / rank: the rank changes how much can be learned, not how fast


def add_lora(model, rank, seed=0):
    """Freeze a model; its linear layers learn corrections of low rank instead (LoRA, arXiv 2106.09685):

    y = W x + 2 B A x, A [rank, in] random and B [out, rank] zero, so that nothing changes at first. Embeddings, norms
    and head stay as they are. Corrections that are there already become part of W. PolicyError without linear layers.
    """
    head = model.get_output_embeddings()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    if not linears:
        raise PolicyError("--lora: this model has no linear layers")
    model.requires_grad_(False)
    for name, linear in linears.items():
        if hasattr(linear, "lora_a"):
            linear.weight.data = corrected(linear)
        else:
            linear.register_forward_hook(correct)
        rng = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
        a = (2 * torch.rand(rank, linear.in_features, generator=rng) - 1) / math.sqrt(linear.in_features)
        # In the weights' own dtype: float32 masters come with the optimiser, and what samples is what learns.
        linear.lora_a = torch.nn.Parameter(a.to(linear.weight))
        linear.lora_b = torch.nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        linear.lora_on = True


def correct(linear, inputs, output):
    """Forward hook: a linear layer's output with its correction."""
    if linear.lora_on:
        return output + LORA_SCALE * F.linear(F.linear(inputs[0], linear.lora_a), linear.lora_b)


def adapted(model):
    """Name -> linear layer, of those that have a correction."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_a")}


def lora_rank(model):
    """The rank of its corrections; 0 without."""
    return next((len(linear.lora_a) for linear in adapted(model).values()), 0)


@torch.no_grad()
def corrected(linear):
    """A linear layer's weight with its correction, added in float32. In bf16 what is below half of a weight's last
    digit, 1/512 of it, is then rounded away."""
    change = LORA_SCALE * linear.lora_b.float() @ linear.lora_a.float()
    return (linear.weight.float() + change).to(linear.weight)


@contextlib.contextmanager
def without_lora(model):
    """The model is here what it was before its corrections: the reference of a KL, without a second copy."""
    layers = adapted(model).values()
    for layer in layers:
        layer.lora_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.lora_on = True


def plain_weights(model):
    """Name -> weight, with corrections added: what transformers loads as any other checkpoint."""
    weights = {name: w for name, w in model.state_dict().items() if not name.endswith((".lora_a", ".lora_b"))}
    return weights | {f"{name}.weight": corrected(linear) for name, linear in adapted(model).items()}


def cast(model, dtype):
    """The model with weights of that dtype ("": as they are). Its buffers stay: in bf16 the frequencies of rotary
    positions would put token 1000 three places away."""
    for p in model.parameters() if dtype else []:
        p.data = p.data.to(getattr(torch, dtype))
    return model


def recompute_layers(model):
    """Gradient checkpointing: of each layer only the input is kept, its insides are computed again in the backward
    pass. A third more work, and memory for one layer in place of all. PolicyError if the layers are not to be found.

    The model's own switch works in train mode alone, and here models stay in eval mode.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise PolicyError("--checkpointing: this model does not show its layers")
    for layer in layers:
        layer.forward = partial(recomputed, layer.forward)


def recomputed(forward, *args, **kwargs):
    """forward(...), whose insides are kept only where no gradient will ask for them."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def head_of(model):
    """(weight [V, hidden], bias [V] or None) that make logits, in float32. A bf16 product would round a logit of 20 by
    up to 0.06, which is more than an RL step changes."""
    head = model.get_output_embeddings()
    return head.weight.float(), None if head.bias is None else head.bias.float()


def logits_of(model, hidden):
    """Float32 logits [..., V] of hidden states [..., hidden]."""
    return F.linear(hidden.float(), *head_of(model))


# ------------------------------------------------------------------------------------------------ engine

def check_attention(config, length):
    """PolicyError if a model's layers do not all attend to everything before, in conversations of that length."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [f"{'sliding' if window else 'full'}_attention"])
    odd = kinds - {"full_attention", "sliding_attention"}
    if odd or (kinds != {"full_attention"} and window < length):
        raise PolicyError(f"layers of kind {sorted(kinds)} (window {window}) have no ragged cache here")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        known = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if length >= known:
            raise PolicyError(f"its rotary positions change where a call is longer than {known} tokens, and with them "
                              f"what the cache holds: keep --context below")


DEAF = "this model does not pass on to its attention what is meant for it: no ragged cache here"


def check_backend(model):
    """PolicyError if a model's attention cannot be replaced, or has no plain keys and values for the cache."""
    config = model.config
    if not getattr(model, "_supports_attention_backend", False) or not hasattr(config, "num_attention_heads") \
            or getattr(config, "kv_lora_rank", None):
        raise PolicyError(f"a model of type {config.model_type} has an attention that cannot be replaced: no ragged "
                          "cache here")


def check_extras(kwargs):
    """PolicyError if a layer asks its attention for more than products and a softmax."""
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise PolicyError("attention with soft caps, sinks or position biases has no ragged cache here")


@contextlib.contextmanager
def attending(model, how):
    """The model attends through the function registered by that name here, and as before afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation(how)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def tail_mask(T, S, like):
    """What the last T tokens of S see, for `tail_attention`: a GPU's kernels know it, else made once for all layers."""
    if T == S or like.is_cuda:
        return causal_lower_right(T, S)
    return torch.full((T, S), -math.inf, dtype=like.dtype, device=like.device).triu_(S - T + 1)


def tail_attention(query, key, value, mask, scaling):
    """Attention of a conversation's last T tokens over all S of it: [1, H, T, D] x [1, kv, S, D] -> [1, T, H, D]."""
    if query.is_cuda and query.dtype == torch.float32:
        # of a GPU's kernels the one for float32 knows no heads that share keys: all scores would be kept, T x S a head
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2)


def ragged_attention(module, query, key, value, attention_mask, scaling=None, tails=None, **kwargs):
    """Attention over cache views. The query heads that share a KV head are laid side by side as extra query rows,
    so keys and values are read in place: repeating them per head would copy the whole cache at every step.

    With `tails`, (row, its new tokens, its length, mask) each, the queries are the new tokens of one after the other.
    """
    check_extras(kwargs)
    if tails:
        parts = zip(query.split([count for _, count, *_ in tails], 2), tails)
        out = [tail_attention(q, key[row, None, :, :length], value[row, None, :, :length], mask, scaling)
               for q, (row, _, length, mask) in parts]
        return torch.cat(out, 1), None
    if attention_mask is None:
        raise PolicyError(DEAF)
    B, H, T, D = query.shape  # rows, query heads, new tokens, head size
    query = query.reshape(B, key.shape[1], -1, D)  # [B, kv, H/kv * T, D]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(B, H, T, -1).transpose(1, 2), None  # [B, T, H, D]


AttentionInterface.register("ragged", ragged_attention)


class RowLayer(StaticLayer):
    """One layer of the engine's cache: new keys and values are scattered to each row's own positions.

    `plan` is what the engine sets for one forward pass: rows and positions to write, both [B, T] or broadcast to it,
    rows (a slice) and number of positions to read. For the model the length stays 0: calls bring positions and mask.
    """
    plan = None

    def __init__(self, keys, values):
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, keys, values, *args, **kwargs):  # [B, kv, T, D]
        rows, at, read, longest = self.plan
        self.keys[rows, :, at] = keys.transpose(1, 2)  # [B, T, kv, D]
        self.values[rows, :, at] = values.transpose(1, 2)
        return self.keys[read, :, :longest], self.values[read, :, :longest]


def captured(step, pool):
    """(What does `step` again, as a CUDA graph; the memory that graphs share). Its tensors stay where they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # what is set up at the first call must not be captured
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        step()
    return graph.replay, graph.pool()


def draw(probs, uniform, size=64):
    """Words [B, 1] by inverse CDF: probs [B, V] float32, uniform [B] in [0, 1), float64.

    Sums are float64, since float32 loses the tail of 151k words; first of blocks of words, then within one block.
    A cumulative sum over all words took longer than the rest of sampling.
    """
    B, V = probs.shape
    probs = F.pad(probs, (0, -V % size)).view(B, -1, size)
    blocks = probs.sum(-1, dtype=torch.float64).cumsum(-1)  # [B, V / size]
    # rounding must not lead beyond the last likely word
    goal = uniform.clamp(max=1 - 1e-15)[:, None] * blocks[:, -1:]
    block = torch.searchsorted(blocks, goal, right=True).clamp_(max=blocks.shape[1] - 1)  # of NaN it is beyond
    goal = goal - F.pad(blocks, (1, 0)).gather(1, block)
    inside = probs[torch.arange(B, device=probs.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    goal = torch.minimum(goal, inside[:, -1:] * (1 - 1e-15))
    return (block * size + torch.searchsorted(inside, goal, right=True)).clamp_(max=V - 1)


class Engine:
    """A KV cache of `rows` conversations of up to `max_len` tokens, preallocated and written in place.

    The cache is only valid for the weights that filled it: `rollout` starts with `reset`, so an optimiser step
    between two rollouts can never meet old keys.
    """

    def __init__(self, model, tokenizer, rows=64, max_len=2048, graphs=True):
        config = model.config
        check_backend(model)
        check_attention(config, max_len)
        for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise PolicyError(f"models that rescale their logits ({name}) are not supported")
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.max_len = min(max_len, getattr(config, "max_position_embeddings", max_len))
        self.end = self.stop = chat_of(tokenizer).end  # `stop` ends a turn when sampled
        heads = config.num_attention_heads
        kv = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        # [K|V, layer, row, kv, position, D]. One position beyond max_len takes the padding of ragged appends.
        # Zeros, not empty: a masked NaN is still a NaN.
        shape = 2, config.num_hidden_layers, rows, kv, self.max_len + 1, size
        self.kv = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.cache = Cache(layers=[RowLayer(k, v) for k, v in zip(*self.kv)])
        # decode steps as CUDA graphs: (rows, length) -> inputs, graph, memory; and their common result
        self.graphs, self.steps = graphs and self.kv.is_cuda, {}
        self.logits = torch.zeros(rows if self.graphs else 0, config.vocab_size, device=model.device)
        self.reset()

    def reset(self):
        """Forget everything. The host knows all lengths, so that no step has to ask the device."""
        self.length = np.zeros(self.rows, np.int64)
        # what each row's cache begins with, and whether that is already computed
        self.prompt = np.full((self.rows, self.max_len), -1, np.int64)
        self.ready = np.zeros(self.rows, bool)

    def tensor(self, array):
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.kv.device, non_blocking=True)

    def feed(self, rows, ids, count):
        """Append ids[b, :count[b]] to row rows[b] and return float32 logits after the last, where count > 0.

        rows [B] distinct, ids [B, T] right-padded, count [B]. One token each for neighbours is a decode step: there
        a row with count 0 rides along unchanged, for a view of neighbours costs nothing and a gather copies them.
        All else is packed: one row of tokens without padding, each attending within its own row of the cache.
        """
        live, new = np.flatnonzero(count), np.arange(ids.shape[1])
        at = np.minimum(self.length[rows][:, None] + new, self.max_len)  # [B, T]
        self.length[rows] += count
        longest = int(self.length[rows].max())
        if len(new) == 1 and (np.diff(rows) == 1).all():
            if self.graphs and rows[0] == 0:
                return self.replay(ids, at, longest)[self.tensor(live)]
            last = self.decode(int(rows[0]), self.tensor(ids), self.tensor(at), -(-longest // 16) * 16)[:, 0]
            last = last[self.tensor(live)]  # [live, hidden]
        else:
            real = new < count[:, None]
            ids, at, index = (self.tensor(x[real][None]) for x in (ids, at, np.broadcast_to(rows[:, None], at.shape)))
            tails = [(int(rows[b]), int(count[b]), int(self.length[rows[b]])) for b in live]
            tails = [(row, new, length, tail_mask(new, length, self.kv)) for row, new, length in tails]
            hidden = self.forward(ids, at, (index, at, slice(None), longest), tails=tails)  # [1, N, hidden]
            last = hidden[0, self.tensor(count.cumsum()[live] - 1)]
        return logits_of(self.model, last)  # [live, V]

    def forward(self, ids, at, plan, **how):
        """Hidden states [B, T, hidden] of tokens ids [B, T] at positions at [B, T]; plan as in `RowLayer`."""
        for layer in self.cache.layers:
            layer.plan = plan
        return self.model.base_model(input_ids=ids, position_ids=at, past_key_values=self.cache, use_cache=True,
                                     **how).last_hidden_state

    def decode(self, first, ids, at, longest):
        """Hidden states [B, 1, hidden] after one more token in each of B rows from the first; ids, at [B, 1]."""
        longest = min(longest, self.max_len)
        seen = torch.arange(longest, device=at.device) <= at[:, None, :, None]  # [B, 1, 1, L]
        mask = torch.zeros(seen.shape, dtype=self.kv.dtype, device=at.device).masked_fill_(~seen, -math.inf)
        index = torch.arange(first, first + len(at), device=at.device)[:, None]
        plan = index, at, slice(first, first + len(at)), longest
        return self.forward(ids, at, plan, attention_mask=mask)

    def replay(self, ids, at, longest):
        """Float32 logits [B, V] after one more token in each of the first B rows, by a CUDA graph: launching the
        kernels of a step one by one takes longer than their work. A graph is of a number of rows (a power of two) and
        a length (a multiple of 256), and reads weights and cache where they lie: it outlives optimiser steps."""
        B = len(ids)
        rows, longest = min(self.rows, 1 << (B - 1).bit_length()), -(-longest // 256) * 256
        new = torch.zeros(2, rows, 1, dtype=torch.int64, device=self.kv.device)
        inputs, graph, _ = self.steps.get((rows, longest), (new, None, None))
        # rows beyond B write where nobody reads
        inputs[1].fill_(self.max_len)
        inputs[:, :B] = self.tensor(np.stack([ids, at]))
        if graph is None:
            def step():
                hidden = self.decode(0, *inputs, longest)[:, 0]
                self.logits[:rows] = logits_of(self.model, hidden)
            # all share the memory of the others, if there are others: it is gone with the last of them
            pool = next((pool for *_, pool in self.steps.values()), None)
            try:
                graph, pool = captured(step, pool)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise PolicyError(f"a decode step of this model cannot be captured, try --graphs=False: {reason(error)}"
                                  ) from error
            self.steps[rows, longest] = inputs, graph, pool
        graph()
        return self.logits[:B]

    def share(self, row, ids):
        """Start `row` with the longest beginning of `ids` that some row's cache already holds: the positions are
        copied, not computed. False if a prompt of this very batch will soon hold more: then the caller waits."""
        same = (self.prompt[:, :len(ids)] == ids).cumprod(1).sum(1)  # [rows], tokens shared with each
        same = np.minimum(same, len(ids) - 1)  # the last token is fed, for its logits
        held, coming = np.where(self.ready, same, 0), np.where(self.ready, 0, same)
        donor, n = int(held.argmax()), int(held.max())
        if coming.max() > n + 16:
            return False
        if n and donor != row:
            self.kv[:, :, row, :, :n] = self.kv[:, :, donor, :, :n]
        self.length[row], self.ready[row] = n, False
        self.prompt[row] = -1
        self.prompt[row, :len(ids)] = ids
        return True

    def move(self, source, target):
        """Row `source` becomes row `target`."""
        n = int(self.length[source])
        self.kv[:, :, target, :, :n] = self.kv[:, :, source, :, :n]
        for a in (self.length, self.prompt, self.ready):
            a[target] = a[source]

    def sample(self, logits, uniform, temperature=1.0, greedy=False):
        """Next tokens and their log-probs, [B] each, by inverse CDF from one uniform number per row: a row's choice
        depends on nothing but its own logits and its own random numbers. The one device sync of a step."""
        if greedy:
            token = logits.argmax(-1, keepdim=True)  # [B, 1]
        else:
            logits = logits / temperature  # [B, V] float32
            token = draw(logits.softmax(-1), self.tensor(uniform))
        logp = logits.gather(-1, token)[:, 0] - logits.logsumexp(-1)  # [B]
        both = torch.stack([token[:, 0].double(), logp.double()]).cpu().numpy()
        if np.isnan(both[1]).any():
            raise PolicyError("the policy's logits are no numbers: its weights are damaged, or have diverged")
        return both[0].astype(np.int64), both[1]


# ------------------------------------------------------------------------------------------------ rollout

class Talk:
    """A conversation in progress: its environment, its trajectory, its own random numbers, its cache row."""

    def __init__(self, engine, env, seed, group):
        self.engine, self.env, self.row = engine, env, None
        self.rng = np.random.default_rng(seed)
        first, _ = env.reset()
        opening = [{"role": "system", "content": env.system_prompt}, {"role": "user", "content": first}]
        tools = getattr(env, "tools", None)
        self.role = "tool" if tools else "user"
        self.traj = demo_trajectory(engine.tokenizer, opening, tools)
        self.traj.extend(reply_ids(engine.tokenizer), 0)
        # The prompt alone may leave no room for a token and <|im_end|>.
        full = len(self.traj.ids) + 2 > engine.max_len
        self.traj.status, self.traj.group = "length" if full else "", group

    def act(self, ids, logps):
        """Hand the turn's sampled tokens to the environment."""
        self.said = ids, logps
        text = self.engine.tokenizer.decode(ids[:-1] if ids[-1] == self.engine.stop else ids)
        if opens_thought(self.engine.tokenizer):
            text = "<think>\n" + text
        self.traj.messages.append({"role": "assistant", "content": text})
        self.steps = self.env.turn(text)
        self.advance(None)

    def advance(self, reply):
        """Run the environment to its next question (it `asks` its user the `query`) or to the end of its turn."""
        self.asks = False
        try:
            if isinstance(reply, Exception):
                raise reply
            self.query, self.asks = self.steps.send(reply), True
        except StopIteration as stop:
            self.finish(*stop.value)
        except Exception as error:
            # The environment may have asked the world itself (a search engine). Anything else is a bug.
            if error is not reply and not getattr(error, "user_error", False):
                raise
            # A user that fails is not a wrong move: nothing of this turn is trained.
            self.steps.close()
            self.traj.extend(self.said[0], 0)
            self.traj.status = "user_error"
            self.traj.error = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")

    def finish(self, feedback, reward, terminated, truncated, info):
        """Write the turn into the trajectory, and what stands before the next one."""
        engine, traj, (ids, logps) = self.engine, self.traj, self.said
        traj.extend(ids, 1, logps, turn=len(traj.turn_rewards))
        traj.turn_rewards.append(float(reward))
        traj.infos.append(info)
        traj.messages.append({"role": self.role, "content": feedback})
        # <|im_end|> is imposed where the turn ran out of tokens
        end = [] if ids[-1] == engine.stop else [engine.end]
        if terminated or truncated:
            traj.status = "done" if terminated else "truncated"
            return traj.extend(end, 0)
        between, prompt = encode(engine.tokenizer, chat_of(engine.tokenizer).after), reply_ids(engine.tokenizer)
        more = [*end, *between, *message_ids(engine.tokenizer, self.role, feedback), *prompt]
        if len(traj.ids) + len(more) + 2 > engine.max_len:
            traj.status = "length"
            return traj.extend(end, 0)
        traj.extend([*end, *between], 0)
        traj.hear(engine.tokenizer, feedback, self.role)
        traj.extend(prompt, 0)


def must_fit(engine, envs):
    """ValueError if in none of the environments (name -> environment) the opening leaves room for a turn."""
    full = [name for name, env in envs.items() if Talk(engine, env, 0, None).traj.status]
    if len(full) == len(envs):
        raise ValueError(f"--context: {engine.max_len} tokens are full before the first turn")
    if full:
        print(f"! {', '.join(full)}: the context, {engine.max_len} tokens, is full before the first turn", flush=True)


def ask(user, queries):
    """A user's replies. If it fails (OSError, or an exception with `user_error`), its exception is every reply;
    anything else that it raises is a bug, and goes on up."""
    try:
        replies = list(user.answer(queries))
    except Exception as error:
        if isinstance(error, OSError) or getattr(error, "user_error", False):
            return [error] * len(queries)
        if isinstance(error, ValueError):       # which `attempt` takes for a mistyped setting, without a traceback
            raise RuntimeError(f"{type(user).__name__}.answer is broken") from error
        raise
    if len(replies) != len(queries):
        raise RuntimeError(f"{type(user).__name__}.answer gave {len(replies)} replies to {len(queries)} queries")
    return replies


def batches(lengths, budget):
    """Indices packed by length into batches of at most `budget` padded tokens and little padding."""
    out = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        n = lengths[i]
        if not out or (len(out[-1]) + 1) * n > budget or n > 2 * lengths[out[-1][0]] + 32:
            out.append([])
        out[-1].append(i)
    return out


def padded(lists):
    """Lists of ids as one right-padded [B, T] array."""
    out = np.zeros((len(lists), max(map(len, lists))), np.int64)
    for row, ids in zip(out, lists):
        row[:len(ids)] = ids
    return out


class Rows:
    """The engine's rows and the conversations in them. A conversation is in one place at a time:

        queue ─────▶ prefill ─────▶ decoding ─────▶ asking ─────▶ done
        has no       its prompt     samples a       its user has  its status is set,
        row yet      is to be fed   token a step    a question    its row is free
                                       ▲               │
                                       └─── waiting ◀──┘
                                    its feedback is to be fed

    A turn may end with its first token, fed or decoded; one that asks nobody goes straight to waiting or done, one may
    ask several times; a prompt too long for the context is done at once.
    """

    def __init__(self, engine, queue, width, sampling, clock):
        n, self.tick = engine.rows, time.perf_counter()
        self.engine, self.width, self.sampling, self.clock = engine, width, sampling, clock
        # all talks that have begun, the one in each row, the number of rows in use
        self.talks, self.at, self.used = [], [None] * n, 0
        # `asking` holds, by future, those whose user answers on a thread; all others hear their reply at once
        self.queue, self.prefill, self.waiting, self.asking = deque(queue), [], [], {}
        self.pool = ThreadPoolExecutor(max_workers=n)
        # each row's turn: tokens, their log-probs, the numbers that draw them; how many there are, and may be
        self.tokens, self.logps = np.zeros((n, width), np.int64), np.zeros((n, width))
        self.uniform, self.decoding = np.zeros((n, width)), np.zeros(n, bool)
        self.made, self.limit = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def lap(self, key):
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.clock[key] += now - self.tick
        self.tick = now

    def seat(self):
        """New conversations take free rows. Where none is left to come, those in use move together to the front."""
        for row in range(self.engine.rows):
            while self.queue and self.at[row] is None:
                talk = Talk(self.engine, *self.queue.popleft())
                self.talks.append(talk)
                if not talk.traj.status:
                    self.at[row], talk.row = talk, row
                    self.prefill.append(talk)
        used = [row for row, talk in enumerate(self.at) if talk]
        self.used = len(used)
        for hole in [row for row in range(self.used) if not self.at[row]]:
            last = used.pop()
            self.engine.move(last, hole)
            for a in (self.tokens, self.logps, self.uniform, self.decoding, self.made, self.limit):
                a[hole] = a[last]
            self.at[hole], self.at[last], self.decoding[last] = self.at[last], None, False
            self.at[hole].row = hole
        self.lap("other")

    def forward(self):
        """Pass the model once, over prompts, feedback, or a token a row; returns the rows whose turn is over."""
        decoding = self.decoding.any()
        if self.prefill:
            # a prompt that shares one that is fed just now waits for it
            talks = [t for t in self.prefill if self.engine.share(t.row, t.traj.ids)]
            self.prefill = [t for t in self.prefill if t not in talks]
            self.clock["copied"] += int(sum(self.engine.length[t.row] for t in talks))
            return self.feed(talks)
        # an eighth of the rows at once: measured best, all at once is 1.8 times slower, one by one 1.07
        if self.waiting and (len(self.waiting) * 8 >= self.used or not decoding):
            talks, self.waiting = self.waiting, []
            return self.feed(talks)
        return self.decode() if decoding else []

    def feed(self, talks):
        """Feed what each trajectory holds beyond its cache, and sample the first token of the turn."""
        engine, ended = self.engine, []
        parts = 1 + sum(len(t.traj.ids) - int(engine.length[t.row]) for t in talks) // 8192
        for part in range(min(parts, len(talks))):
            batch = talks[part::parts]
            rows = np.array([t.row for t in batch])
            todo = [t.traj.ids[engine.length[t.row]:] for t in batch]
            count = np.array([len(ids) for ids in todo])
            self.uniform[rows] = [t.rng.random(self.width) for t in batch]
            self.made[rows] = 0
            # one place is kept for <|im_end|>
            self.limit[rows] = np.minimum(self.width, engine.max_len - engine.length[rows] - count - 1)
            ended.extend(self.emit(rows, engine.feed(rows, padded(todo), count)))
            engine.ready[rows] = True
            self.clock["prompt"] += int(count.sum())
        self.lap("prefill")
        return ended

    def decode(self):
        """A token for every row that decodes; the others ride along."""
        rows, decoding = np.arange(self.used), self.decoding[:self.used]
        last = self.tokens[rows, np.maximum(self.made[rows] - 1, 0)]
        live = np.flatnonzero(decoding)
        ended = self.emit(live, self.engine.feed(rows, last[:, None], decoding.astype(np.int64)))
        self.clock["steps"] += 1
        self.lap("decode")
        return ended

    def emit(self, rows, logits):
        """Sample a token for each of the rows; returns those whose turn is over."""
        made = self.made[rows]
        token, logp = self.engine.sample(logits, self.uniform[rows, made], *self.sampling)
        self.tokens[rows, made], self.logps[rows, made] = token, logp
        self.made[rows] += 1
        over = (token == self.engine.stop) | (self.made[rows] >= self.limit[rows])
        self.decoding[rows] = ~over
        self.clock["sampled"] += len(rows)
        return rows[over]

    def hear(self, ended):
        """Hand turns that are over to their environments."""
        talks = [self.at[row] for row in ended]
        for talk in talks:
            n = self.made[talk.row]
            talk.act(self.tokens[talk.row, :n].tolist(), self.logps[talk.row, :n].tolist())
        self.settle(talks)

    def settle(self, talks):
        """Talks whose environments have moved ask their users, wait to be fed, or leave their rows."""
        while talks:
            for talk in talks:
                if talk.traj.status:
                    self.at[talk.row] = None
                elif not talk.asks:
                    self.waiting.append(talk)
            talks = self.consult([t for t in talks if t.asks])
        self.lap("user")

    def consult(self, asking):
        """Carry questions to their users, one batch a user; returns the talks that heard a reply."""
        users, heard = {}, []
        for talk in asking:
            users.setdefault(id(talk.env.user), []).append(talk)
        for talks in users.values():
            user = talks[0].env.user
            if getattr(user, "slow", False):
                for talk in talks:
                    self.asking[self.pool.submit(ask, user, [talk.query])] = talk
                continue
            for talk, reply in zip(talks, ask(user, [t.query for t in talks])):
                talk.advance(reply)
            heard += talks
        return heard

    def collect(self):
        """Replies of users on threads. They are only waited for if there is nothing else to do."""
        idle = not (self.prefill or self.waiting or self.decoding.any())
        for future in wait(self.asking, None if idle else 0, FIRST_COMPLETED).done:
            talk = self.asking.pop(future)
            talk.advance(future.result()[0])
            self.settle([talk])


def rollout(engine, envs, *, groups=None, seeds=None, temperature=1.0, max_new_tokens=64, greedy=False, clock=None):
    """Play one conversation per environment, at most `engine.rows` at a time; trajectories in the order of `envs`.

    An environment has `reset() -> (first user text, info)`, `system_prompt` (read after reset), `turn(action)` (a
    generator that yields queries to its user, is sent the replies and returns feedback, reward, terminated,
    truncated, info) and, if it ever asks, `user.answer(queries) -> replies`. Users with `slow = True` answer on
    threads, one query a call, while other rows go on. A user fails by an Exception in place of a reply, or by raising
    OSError or what has a true `user_error`: that ends the episode as user_error. All else it raises is raised here.
    A conversation draws from a generator seeded by `seeds[i]` (a tuple of ints), `max_new_tokens` numbers a turn:
    what it says depends neither on its neighbours in the batch nor on global state. `greedy` takes the argmax and
    records log-probs at temperature 1. `clock` collects seconds and counts. `Rows` draws a conversation's life.
    """
    clock = {} if clock is None else clock
    for key in ("prefill", "decode", "user", "other", "sampled", "prompt", "copied", "steps"):
        clock.setdefault(key, 0)
    engine.reset()
    seeds = seeds or [(0, i) for i in range(len(envs))]
    queue = zip(envs, seeds, groups or range(len(envs)), strict=True)
    rows = Rows(engine, queue, max_new_tokens, (temperature, greedy), clock)
    try:
        with torch.inference_mode(), attending(engine.model, "ragged"):
            while rows.queue or any(rows.at):
                # New conversations take free rows.
                rows.seat()
                # Slow users have replied, or not yet.
                if rows.asking:
                    rows.collect()
                # The model reads new prompts, or feedback, or says one more token in every turn under way.
                ended = rows.forward()
                # Turns that are over go to the environments, their questions to the users, the replies back.
                rows.hear(ended)
    finally:
        rows.pool.shutdown(wait=False, cancel_futures=True)
    return [talk.traj for talk in rows.talks]


# ------------------------------------------------------------------------------------------------ log-probs and loss

def packs(model, trajs):
    """Whether a model can learn from a `Pack` of them: its attention is a function that can be replaced, over
    everything before. Others learn from padded batches."""
    try:
        check_attention(model.config, max((len(t.ids) for t in trajs), default=0))
    except PolicyError:
        return False
    capped = getattr(model.config, "attn_logit_softcapping", None)
    return getattr(model, "_supports_attention_backend", False) and not capped


@contextlib.contextmanager
def micro_batches(model, trajs, budget):
    """Indices of the trajectories that train something, in batches of at most `budget` tokens, those of a `Pack` or
    padded ones; meanwhile the model attends accordingly."""
    some = [i for i, t in enumerate(trajs) if any(t.mask)]
    if not packs(model, trajs):
        yield [[some[k] for k in batch] for batch in batches([len(trajs[i].ids) for i in some], budget)]
        return
    out, used, last = [], 0, []
    # sorted, those that begin alike are neighbours
    for i in sorted(some, key=lambda i: trajs[i].ids):
        ids = trajs[i].ids
        used += len(ids) - shared(last, ids)
        if not out or used > budget:
            out.append([])
            used = len(ids)
        out[-1].append(i)
        last = ids
    with attending(model, "packed"):
        yield out


def shared(a, b):
    """How many tokens two lists of ids begin with in common, down to a multiple of 16: a pack of few, long pieces."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.array(a[:n]) != np.array(b[:n]))
    n = int(differ[0]) if len(differ) else n
    return n - n % 16


class Pack:
    """Conversations in one row of tokens, without padding: what several begin with, a group's prompt, stands there
    once. Each token has the position that it has in its conversation, and sees what comes before it there.

    place     per conversation where its tokens stand, [its length]; ids, at: token and position of each place, [N]
    sizes     the row is cut into pieces where conversations part, and on a CPU after 128 tokens: what a piece sees is
              computed as a rectangle, whose unseen corner stays small (a GPU's kernels skip it by themselves)
    ways      per piece the pieces that it sees, in order, itself the last; masks for `tail_attention`
    rows      places whose hidden state is wanted, as [R]: last_layer attends only there
    counts, last_masks  how many of them each piece has, and what they see, [1, 1, count, size of the way]
    """

    def __init__(self, model, trajs, wanted):
        """wanted: per conversation the places in it, [n], whose last hidden state will be read."""
        n, self.place, last, device = 0, [], [], model.device
        for t in trajs:
            same = shared(last, t.ids)
            begin = self.place[-1][:same] if same else np.arange(0)
            self.place.append(np.concatenate([begin, n + np.arange(len(t.ids) - same)]))
            n, last = n + len(t.ids) - same, t.ids
        self.ids, self.at = np.zeros((2, n), np.int64)
        for t, place in zip(trajs, self.place):
            self.ids[place], self.at[place] = t.ids, np.arange(len(place))
        starts = self.cut(n, 128 if device.type == "cpu" else n)
        rows = np.unique(np.concatenate([place[w] for place, w in zip(self.place, wanted)]))
        owner = np.searchsorted(starts, rows, "right") - 1
        self.counts = np.bincount(owner, minlength=len(starts)).tolist()
        self.rows, self.last_masks = torch.from_numpy(rows).to(device), []
        self.last_layer = model.config.num_hidden_layers - 1
        seen = [sum(self.sizes[piece] for piece in way) for way in self.ways]
        like = torch.empty(0, dtype=model.dtype, device=device)
        self.masks = [tail_mask(size, S, like) for size, S in zip(self.sizes, seen)]
        for at, S in zip(np.split(self.at[rows], np.cumsum(self.counts)), seen):
            sees = np.arange(S) <= at[:, None]
            self.last_masks.append(torch.from_numpy(sees).to(device)[None, None])

    def cut(self, n, most):
        """Find the pieces, of at most `most` tokens; returns where they start, [pieces]."""
        ends = {n}
        for place in self.place:
            jumps = np.flatnonzero(np.diff(place) != 1)
            ends |= {int(place[0]), *(place[jumps] + 1).tolist(), *place[jumps + 1].tolist()}
        ends = sorted(ends)
        starts = [start for a, b in zip(ends, ends[1:]) for start in range(a, b, most)]
        self.sizes, self.ways = np.diff([*starts, n]).tolist(), [None] * len(starts)
        number = {start: piece for piece, start in enumerate(starts)}
        for place in self.place:
            way = [number[p] for p in place.tolist() if p in number]
            for k, piece in enumerate(way):
                self.ways[piece] = way[:k + 1]
        return starts


def packed_attention(module, query, key, value, attention_mask, scaling=None, pack=None, **kwargs):
    """Attention of a `Pack`, piece by piece: each sees its way alone."""
    check_extras(kwargs)
    if pack is None:
        raise PolicyError(DEAF)
    last = getattr(module, "layer_idx", None) == pack.last_layer
    keys, values, out = key.split(pack.sizes, 2), value.split(pack.sizes, 2), []  # [1, kv, size, D]
    queries = query.index_select(2, pack.rows).split(pack.counts, 2) if last else query.split(pack.sizes, 2)
    for q, way, mask in zip(queries, pack.ways, pack.last_masks if last else pack.masks):
        if not q.shape[2]:
            continue
        k, v = (torch.cat([each[piece] for piece in way], 2) for each in (keys, values))
        if last:
            mask = mask.repeat(1, 1, query.shape[1] // key.shape[1], 1)
            out.append(ragged_attention(module, q, k, v, mask, scaling)[0])
        else:
            out.append(tail_attention(q, k, v, mask, scaling))
    out = torch.cat(out, 1)  # [1, N or R, H, D]
    if last:
        whole = out.new_zeros(1, query.shape[2], *out.shape[2:])
        out = whole.index_copy(1, pack.rows, out)
    return out, None


AttentionInterface.register("packed", packed_attention)


def said_and_heard(model, trajs, temperature=1.0, echo=0.0):
    """Log-probs of the trained tokens of some trajectories, [N], and with echo > 0 of their `heard` ones, [M].

    Both by one forward pass, flat float32 in order, with gradients if enabled. `temperature` is the sampler's; nobody
    sampled what was heard, it is scored at 1. Without echo the second is None, and costs nothing.
    """
    said = [np.flatnonzero(t.mask) for t in trajs]
    heard = [np.array(t.heard if echo else [], np.int64) for t in trajs]
    # the token at t is predicted at t - 1
    before = [np.concatenate(both) - 1 for both in zip(said, heard)]
    if getattr(model.config, "_attn_implementation", "") == "packed":
        pack = Pack(model, trajs, before)
        ids, at = torch.from_numpy(np.stack([pack.ids, pack.at])).to(model.device)[:, None]  # [1, N] each
        out, place = model.base_model(input_ids=ids, position_ids=at, use_cache=False, pack=pack), pack.place
    else:
        ids = torch.from_numpy(padded([t.ids for t in trajs])).to(model.device)  # [B, T]
        # No attention mask: padding is on the right, so the causal mask already hides it from every real token.
        out = model.base_model(input_ids=ids, use_cache=False)
        place = np.arange(ids.numel()).reshape(ids.shape)
    hidden, ids = out.last_hidden_state.flatten(0, 1), ids.flatten()  # [places, hidden], [places]

    def logps(columns, temperature):
        at = np.concatenate([row[c] for row, c in zip(place, columns)])
        previous = np.concatenate([row[c - 1] for row, c in zip(place, columns)])
        # a token that conversations share is scored once
        at, first, again = np.unique(at, return_index=True, return_inverse=True)
        at, previous, again = (torch.from_numpy(i).to(model.device) for i in (at, previous[first], again))
        return logps_at(model, hidden.index_select(0, previous), ids[at], temperature).index_select(0, again)

    return logps(said, temperature), logps(heard, 1.0) if echo else None


def logps_at(model, hidden, target, temperature):
    """Log-probs of the tokens target [N], [N] float32, given the hidden states [N, hidden] that predict them.

    Logits exist only where a token is wanted, float32 only a chunk at a time; more than one chunk (a large
    vocabulary) is recomputed in the backward pass instead of kept: 8k tokens x 151k words would be 5 GB.
    """

    # once: what each chunk had of its own, their gradients were added in the weights' dtype
    head = head_of(model)

    def chunk_logps(h, y):
        logits = F.linear(h.float(), *head)  # [n, V]
        if temperature != 1:
            logits = logits / temperature
        return logits.gather(-1, y[:, None])[:, 0] - logits.logsumexp(-1)

    size = max(1, (1 << 24) // model.config.vocab_size)
    chunks = list(zip(hidden.split(size), target.split(size)))
    if len(chunks) > 1 and torch.is_grad_enabled():
        return torch.cat([checkpoint(chunk_logps, h, y, use_reentrant=False) for h, y in chunks])
    return torch.cat([chunk_logps(h, y) for h, y in chunks])


def token_logps(model, trajs, temperature=1.0, micro_tokens=16384):
    """Per trajectory the log-prob of every token, parallel to `ids` (0.0 where the mask is 0), without gradients:
    reference log-probs for the KL term, and the check that trainer and sampler agree."""
    out = [[0.0] * len(t.ids) for t in trajs]
    with torch.inference_mode(), micro_batches(model, trajs, micro_tokens) as parts:
        for batch in parts:
            said, _ = said_and_heard(model, [trajs[i] for i in batch], temperature)
            values = iter(said.tolist())
            for i in batch:
                out[i] = [next(values) if m else 0.0 for m in trajs[i].mask]
    return out


def policy_loss(logp, old_logp, adv, *, clip_low=0.2, clip_high=0.2, clip_dual=0.0, kl_coef=0.0, ref_logp=None,
                sequence=None):
    """Clipped policy gradient per token, all arguments [N]: -min(rho A, clip(rho, 1 - low, 1 + high) A).

    clip_high > clip_low is DAPO's clip-higher. clip_dual = c > 1 is the dual clip (arXiv 1912.09729, eq. 5): where
    A < 0 the loss is at most -c A, so that a token far more likely than when it was sampled cannot outweigh a whole
    batch. `kl_coef` adds the k3 estimate of KL(policy || reference), expm1(d) - d with d = ref_logp - logp, which is
    never negative. `sequence` [N] (a trajectory number per token) turns on GSPO (arXiv 2507.18071): rho is the
    geometric mean over the trajectory, the gradient stays per token.
    Returns (loss [N], stats [N] each).
    """
    d = logp - old_logp
    if sequence is not None:
        n = int(sequence.max()) + 1
        mean = torch.zeros(n, device=d.device).index_add(0, sequence, d.detach())
        mean = mean / torch.bincount(sequence, minlength=n).clamp(min=1)
        d = mean[sequence] + logp - logp.detach()
    ratio = d.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    # The min is over the two products: it picks the pessimistic one for either sign of A.
    loss, cut = -torch.minimum(ratio * adv, clipped * adv), clipped * adv < ratio * adv
    if clip_dual:
        far = (adv < 0) & (ratio > clip_dual)
        loss, cut = torch.where(far, -clip_dual * adv, loss), cut | far
    stats = {"ratio": ratio.detach(), "clip": cut.detach().float()}
    if kl_coef:
        to_ref = ref_logp - logp
        kl = torch.expm1(to_ref) - to_ref
        loss, stats["kl_ref"] = loss + kl_coef * kl, kl.detach()
    return loss, stats


# ------------------------------------------------------------------------------------------------ processes

THREADS = torch.get_num_threads()                                       # of a process that works alone


def rank():
    """Number of this process among those that train together: 0 keeps the run folder and prints."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world():
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def check_place():
    """ValueError if the environment says which of how many processes this is, but not as torchrun or `join` do."""
    place, size = (os.environ.get(key) for key in ("RANK", "WORLD_SIZE"))
    if (place, size) == (None, None) or dist.is_initialized():
        return
    numbers = [text for text in (place, size, os.environ.get("MASTER_PORT")) if re.fullmatch("[0-9]{1,5}", text or "")]
    if len(numbers) < 3 or int(place) >= int(size):
        raise ValueError(f"RANK={place} and WORLD_SIZE={size} are set, but not as torchrun sets them: unset both")


def join(workers, program, device=""):
    """Make one of `workers` processes: under torchrun join the others, else start them as `python` + program.

    Each plays and learns from its share of the tasks, gradients are summed. On a CPU two processes of one thread were
    1.7 times as fast as one process of two: in a model this small, threads mostly wait for each other. Returns the
    processes started here, for `leave`. ValueError if one ends before all have met. Later, at any moment, one that dies
    ends the others within seconds.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        gpu = torch.cuda.is_available() and device != "cpu"
        if ":" in device:
            raise ValueError(f"--device={device}: torchrun gives each process a GPU of its own")
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("nccl" if gpu else "gloo")
        if rank():
            sys.stdout = open(os.devnull, "w", errors="replace")        # the first process says it for all
        return []
    if "RANK" not in os.environ and workers < 2:
        return []
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if "RANK" in os.environ:
        workers, port, started = world(), int(os.environ["MASTER_PORT"]), []
        store = dist.TCPStore("127.0.0.1", port, workers, False, timeout=timedelta(seconds=8))
    else:
        store = meeting_place(workers)
        shared = {**os.environ, "WORLD_SIZE": str(workers), "MASTER_PORT": str(store.port), "GRPO_CALL": str(calls)}
        started = [spawn(program, {**shared, "RANK": str(i)}) for i in range(1, workers)]
        threading.Thread(target=watch, args=[started], daemon=True).start()
    store.set(f"here {rank()}", "")
    while not store.check([f"here {i}" for i in range(workers)]):       # nobody waits for one that will not come
        if interrupted:
            leave(started, patience=0)
            raise KeyboardInterrupt
        if any(process.poll() is not None for process in started):
            last_words = leave(started).strip().split("\n")[-1]
            raise ValueError(f"another process of this run ended before it joined: {last_words or 'without a word'}")
        time.sleep(0.05)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    dist.init_process_group("gloo", store=store, rank=rank(), world_size=workers)
    return started


def meeting_place(workers):
    """The store where processes find each other. It listens to this machine only; torch's own socket, to the world."""
    door = socket.create_server(("127.0.0.1", 0))
    port = door.getsockname()[1]
    return dist.TCPStore("127.0.0.1", port, workers, True, wait_for_workers=False, master_listen_fd=door.detach())


def spawn(program, env):
    """A process that shares the work. It is silent: what it says of an error waits in a file for `leave`.

    It ends with this one, by a pipe, and does not hear the terminal's Ctrl-C: this one tells it.
    """
    file, null = tempfile.TemporaryFile("w+"), subprocess.DEVNULL
    theirs, ours = os.pipe()
    process = subprocess.Popen([sys.executable, *program], env={**env, "GRPO_PIPE": str(theirs)}, pass_fds=[theirs],
                               stdin=null, stdout=null, stderr=file, start_new_session=True)
    os.close(theirs)
    process.errors, process.pipe, process.left = file, ours, False
    return process


LOST = "another process of this run died; --resume=True goes on from the last checkpoint"


def watch(started):
    """On a thread: end this process if one that it started died, and it did not notice by itself within seconds.

    Usually it does, where it waits for the other. But it may be busy for minutes, or be waiting in C for a handshake.
    """
    def died():
        return any(process.poll() and not process.left for process in started)
    while not died():
        if all(process.left for process in started):
            return
        time.sleep(0.2)
    time.sleep(5)
    if died():
        print(LOST, file=sys.stderr, flush=True)
        os._exit(3)


def leave(started, patience=5):
    """Part from the others; the processes that `join` started end. Returns what those that failed had to say.

    patience: seconds for which each may end by itself.
    """
    for process in started:
        process.left = True
    if dist.is_initialized():
        dist.destroy_process_group()
    said = ""
    for process in started:
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(process.pipe)
        process.errors.seek(0)
        said += process.errors.read() if process.returncode else ""
    started.clear()
    torch.set_num_threads(THREADS)
    return said


def summed(values):
    """Sums over all processes."""
    if not dist.is_initialized():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return total.tolist()


def share_weights(model):
    """Every process takes the first one's weights: whoever made a model at random made one of his own."""
    for weight in model.state_dict().values() if dist.is_initialized() else []:
        shared = weight.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(shared, 0)
        weight.copy_(shared)


def gather(data):
    """[data of process 0, of process 1, ...], on every process; travels as JSON, never as a pickle."""
    if not dist.is_initialized():
        return [data]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    raw = torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(raw)], device=device))
    parts = [torch.zeros(int(max(sizes)), dtype=torch.uint8, device=device) for _ in sizes]
    dist.all_gather(parts, F.pad(raw, (0, len(parts[0]) - len(raw))).to(device))
    return [json.loads(bytes(part[:int(n)].tolist())) for part, n in zip(parts, sizes)]


# ------------------------------------------------------------------------------------------------ optimiser steps

@dataclass
class Optimizer:
    """AdamW, and Muon beside it if asked for, over float32 master weights; made by `make_optimizer`."""
    pairs: list  # (name, parameter, master): the master is the parameter itself where that is float32
    parts: list  # the torch optimisers, each with some of the masters
    state: dict  # master -> its moments by name, for all parts
    options: dict  # what it was made with, for the checkpoint

    def collect(self):
        """Hand the gradients of a micro-batch to the masters: a sum in bf16 stops growing after some hundred."""
        for _, p, master in self.pairs:
            if master is not p and p.grad is not None:
                master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
                p.grad = None

    def clip(self, max_norm):
        """Sum the masters' gradients over all processes and clip them. Returns their norm."""
        masters = [master for *_, master in self.pairs]
        for bucket in buckets(masters, 1 << 25) if dist.is_initialized() else []:
            grads = [torch.zeros_like(m) if m.grad is None else m.grad for m in bucket]
            together = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(together)
            for m, g in zip(bucket, together.split([m.numel() for m in bucket])):
                m.grad = g.view_as(m)
        return float(torch.nn.utils.clip_grad_norm_(masters, max_norm))

    @torch.no_grad()
    def step(self, lr):
        """Move the masters along their gradients, and the parameters with them."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group["factor"]
            part.step()
        for _, p, master in self.pairs:
            if master is not p:
                p.copy_(master)


def buckets(tensors, size):
    """Tensors in order, in lists of about `size` numbers: one message each, not one for each tensor, nor one for all,
    which would be a second copy of them."""
    out, filled = [], size
    for tensor in tensors:
        if filled >= size:
            out.append([])
            filled = 0
        out[-1].append(tensor)
        filled += tensor.numel()
    return out


def make_optimizer(model, lr, weight_decay=0.0, betas=(0.9, 0.95), muon=0.0, gain=0.0):
    """AdamW. Parameters below float32 get float32 master copies: in bf16 an RL step of 1e-6 would be rounded away.
    (Stochastic rounding would need no copies; but Adam's moments, in float32 anyway, are twice their size, and its
    noise is a hundred steps of 1e-6.)

    muon > 0: the matrices between embedding and head learn by Muon instead, at `muon` times the learning rate. For a
    model made from scratch: heads that copy appear in half the steps. gain > 0: the last norm's gains learn at `gain`
    times the learning rate. They scale every logit, so RL can sharpen the whole policy at once; token by token, a
    small batch's noise hides that.
    """
    pairs = [(name, p, p if p.dtype == torch.float32 else p.detach().float())
             for name, p in model.named_parameters() if p.requires_grad]
    inner, last, rest = [], [], []
    for name, _, master in pairs:
        if muon and master.ndim == 2 and "embed" not in name and "head" not in name:
            inner.append(master)
        elif gain and master.ndim == 1 and "layers" not in name:
            last.append(master)
        else:
            rest.append(master)
    groups = [{"params": rest, "factor": 1.0}, {"params": last, "factor": gain}]
    parts = [torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, betas=betas)]
    if inner:
        groups = [{"params": inner, "factor": muon}]
        parts.append(torch.optim.Muon(groups, lr=lr * muon, weight_decay=weight_decay))
    parts[-1].state = parts[0].state
    options = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "muon": muon, "gain": gain}
    return Optimizer(pairs, parts, parts[0].state, options)


def lr_schedule(step, total, peak, warmup=0.1, kind="cosine", hold=0.0):
    """Learning rate of step 0 .. total - 1: linear warm-up over a fraction of the steps, then constant, or cosine
    from `hold` (another fraction, counted from the beginning) on."""
    rise = warmup * total
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    if kind == "constant":
        return peak
    rise = max(rise, hold * total)
    return peak * 0.5 * (1 + math.cos(math.pi * max(0.0, step - rise) / max(1, total - rise)))


def optimise(model, optimizer, trajs, micro_loss, lr, micro_tokens, max_grad_norm):
    """One optimiser step. micro_loss(indices) -> (loss to add up, {statistic: sum}, largest ratio); its divisor was
    fixed before this loop, so any split into micro-batches gives the same gradient."""
    model.zero_grad(set_to_none=True)
    loss, sums, largest = 0.0, {}, 0.0
    assert trajs or world() > 1, "no trajectory to learn from"  # another process may have some
    with micro_batches(model, trajs, micro_tokens) as parts:
        for batch in parts:
            part, stats, top = micro_loss(batch)
            part.backward()
            optimizer.collect()
            loss += part.detach()
            sums = {k: sums.get(k, 0) + v for k, v in stats.items()}
            largest = max(largest, float(top))
    norm = optimizer.clip(max_grad_norm)
    names = sorted(set().union(*gather(sorted(sums))))  # a process may have had nothing to do
    loss, *totals = summed([float(loss), *(float(sums.get(k, 0.0)) for k in names)])
    skipped = int(not (math.isfinite(loss) and math.isfinite(norm)))
    if not skipped:  # a NaN must not reach weights or moments
        optimizer.step(lr)
    for *_, master in optimizer.pairs:
        master.grad = None
    metrics = {"loss": loss, "grad_norm": norm, "lr": lr, "skipped": skipped}
    return metrics, dict(zip(names, totals)), max(gather(largest))


def flat(trajs, batch, values, device):
    """Values parallel to `ids` at the trained tokens of a batch of trajectories, [N] float32."""
    out = []
    for i in batch:
        out += [v for v, m in zip(values[i], trajs[i].mask) if m]
    return torch.tensor(out, device=device)


def sft_step(model, optimizer, trajs, *, lr, echo=0.0, micro_tokens=16384, max_grad_norm=1.0):
    """One optimiser step of cross-entropy on the trained tokens, averaged over all of them; echo as in `grpo_step`."""
    total, replies = summed([sum(sum(t.mask) for t in trajs), sum(len(t.heard) for t in trajs)])

    def micro_loss(batch):
        logp, heard = said_and_heard(model, [trajs[i] for i in batch], echo=echo)
        loss, sums = -logp.sum() / total, {}
        if echo:
            echo_loss = -heard.sum() / max(replies, 1)
            loss, sums = loss + echo * echo_loss, {"echo": echo_loss.detach()}
        return loss, sums, 0.0

    metrics, sums, _ = optimise(model, optimizer, trajs, micro_loss, lr, micro_tokens, max_grad_norm)
    return {**metrics, **sums, "tokens": int(total)}


def grpo_step(model, optimizer, trajs, advantages, *, lr, temperature=1.0, clip_low=0.2, clip_high=0.2, clip_dual=0.0,
              kl_coef=0.0, ref_logps=None, gspo=False, aggregate="token", constant_tokens=None, echo=0.0,
              micro_tokens=16384, max_grad_norm=1.0):
    """One optimiser step of GRPO. advantages[i][k] belongs to turn k of trajectory i; the old log-probs are those
    recorded while sampling, so `temperature` must be the sampler's.

    aggregate  token: mean over all trained tokens of the step (long trajectories weigh more)
               sequence: mean of per-trajectory means (GRPO as first published)
               constant: sum / (trajectories * constant_tokens), Dr. GRPO: no bias from length
    echo       weight of a second loss, ECHO (arXiv 2605.24517): plain cross-entropy, at temperature 1, of what users
               replied, whatever the advantages: its mean over all heard tokens of the step
    Metrics, besides what `optimise` gives, all means over the tokens:
    kl         sampler against policy, k3: 0 at the first step on fresh rollouts, anything else there is a bug
    kl_ref     policy against the reference, k3; only with kl_coef
    entropy    of the policy, estimated from the sampled tokens
    clip_frac  share of the tokens whose ratio was clipped; ratio_mean, ratio_max: of policy over sampler
    echo       cross-entropy of a heard token, in nats; only with echo (`loss` is the sum of both losses)
    """
    assert aggregate in ("token", "sequence", "constant"), aggregate
    for i, (t, a) in enumerate(zip(trajs, advantages, strict=True)):
        assert len(a) > max(t.turn, default=-1), f"trajectory {i}: {len(a)} advantages, {max(t.turn) + 1} turns"
    lengths = [sum(t.mask) for t in trajs]
    total, count, replies = summed([sum(lengths), len(trajs), sum(len(t.heard) for t in trajs)])
    if aggregate == "constant" and not constant_tokens:
        raise ValueError("aggregate='constant' needs constant_tokens, e.g. turns x tokens per turn")
    # what a token is divided by, per trajectory
    divisor = {"token": [total for _ in lengths], "sequence": [count * max(n, 1) for n in lengths],
               "constant": [count * (constant_tokens or 0) for _ in lengths]}[aggregate]
    per_token = [[a[k] if k >= 0 else 0.0 for k in t.turn] for t, a in zip(trajs, advantages)]

    def micro_loss(batch):
        device = model.device
        logp, heard = said_and_heard(model, [trajs[i] for i in batch], temperature, echo)  # [N], as all below; [M]
        old = flat(trajs, batch, [t.logps for t in trajs], device)
        adv = flat(trajs, batch, per_token, device)
        ref = flat(trajs, batch, ref_logps, device) if kl_coef else None
        owner = torch.arange(len(batch)).repeat_interleave(torch.tensor([lengths[i] for i in batch])).to(device)
        each = torch.tensor([1 / divisor[i] for i in batch], device=device)[owner]
        loss, stats = policy_loss(logp, old, adv, clip_low=clip_low, clip_high=clip_high, clip_dual=clip_dual,
                                  kl_coef=kl_coef, ref_logp=ref, sequence=owner if gspo else None)
        d = (logp - old).detach()
        sums = {k: v.sum() for k, v in stats.items()}
        sums |= {"kl": (torch.expm1(d) - d).sum(), "entropy": -logp.detach().sum()}
        loss = (loss * each).sum()
        if echo:
            echo_loss = -heard.sum() / max(replies, 1)
            loss, sums["echo"] = loss + echo * echo_loss, echo_loss.detach()
        return loss, sums, float(stats["ratio"].max())

    metrics, sums, largest = optimise(model, optimizer, trajs, micro_loss, lr, micro_tokens, max_grad_norm)
    if echo:                                                            # a mean already
        metrics["echo"] = sums.pop("echo", 0.0)
    means = {k: v / max(total, 1) for k, v in sums.items()}
    metrics |= {"ratio_mean": means.pop("ratio", 0.0), "ratio_max": largest, "clip_frac": means.pop("clip", 0.0)}
    return {**metrics, **means, "tokens": int(total)}


# ------------------------------------------------------------------------------------------------ checkpoints

MARKER = "trainer.json"  # written last: with it, all else is there
OPTIMIZER = "optimizer.safetensors"


def checksum(data):
    """CRC-32 of plain data as JSON: the same after it was written and read."""
    return zlib.crc32(json.dumps(data).encode())


def file_checksum(path):
    """CRC-32 of a file, read piece by piece."""
    total = 0
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            total = zlib.crc32(piece, total)
    return total


def unchanged(folder, name, sum_then):
    """PolicyError if a file of a checkpoint is no longer what was saved: one flipped bit of a weight says nothing."""
    try:
        now = file_checksum(os.path.join(folder, name))
    except OSError as error:
        raise PolicyError(f"checkpoint {folder} is damaged: {reason(error)}") from error
    if now != sum_then:
        raise PolicyError(f"checkpoint {folder} is damaged: {name} is not what was saved (its checksum differs)")


def marker(path):
    """What the marker of a checkpoint says; None if it is missing, damaged, or was not written to its end.

    state, optimizer (its options), files: name -> checksum; its own checksum last. Older ones have none.
    """
    try:
        with open(os.path.join(path, MARKER), "rb") as f:
            saved = json.load(f)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(saved, dict) or not {"state", "optimizer"} <= saved.keys():
        return None
    own = saved.pop("checksum", None)
    return saved if own is None or own == checksum(saved) else None


def complete_checkpoint(path):
    """A complete copy of a checkpoint: `path`, else what a kill between two renames left beside it."""
    copies = path, path + ".tmp", path + ".old"
    return next((copy for copy in copies if marker(copy)), None)


def checkpoint_of(path):
    """The folder to load from: of a run folder its checkpoint, and of that the newest complete copy; else `path`."""
    path = os.path.expanduser(str(path))
    inside = os.path.join(path, "checkpoint")
    found = complete_checkpoint(path) or complete_checkpoint(inside)
    if not found and os.path.isfile(os.path.join(inside, "config.json")):
        return inside
    return found or path


def sync(path):
    """Make a file or folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(path, model, tokenizer, optimizer=None, state=None):
    """Write a Hugging Face folder (with chat template), the optimiser as safetensors and `state` as JSON.

    Atomic: everything goes to `path`.tmp, then two renames put it in place of the old copy.
    """
    path = os.path.abspath(os.path.expanduser(str(path)))
    temp, old = path + ".tmp", path + ".old"
    try:
        if os.path.exists(path) and not marker(path) and os.listdir(path):
            raise PolicyError(f"cannot save to {path}: it holds something that is not a complete checkpoint")
        # finish the renames that a kill interrupted
        found = complete_checkpoint(path)
        if found and found != path:
            os.rename(found, path)
        shutil.rmtree(temp, ignore_errors=True)
        os.makedirs(temp)
        # whoever serves it samples as it was trained; the default is greedy, or top-k
        model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        model.save_pretrained(temp, state_dict=plain_weights(model) if adapted(model) else None)
        tokenizer.save_pretrained(temp)
        saved = {"state": state or {}, "optimizer": None, "files": {}}
        if optimizer is not None:
            # The corrections of LoRA are among what is optimised; the weights without them cannot be told from a sum.
            saved["lora"] = lora_rank(model)
            tensors = {f"{name}.weight|base": linear.weight for name, linear in adapted(model).items()}
            for name, p, master in optimizer.pairs:
                alone = master is not p or saved["lora"]  # not to be had from the model's own file
                kept = {**optimizer.state[master], **({"master": master} if alone else {})}
                tensors |= {f"{name}|{key}": value.contiguous() for key, value in kept.items()}
            save_file(tensors, os.path.join(temp, OPTIMIZER))
            saved["optimizer"] = optimizer.options
        for name in sorted(os.listdir(temp)):
            sync(os.path.join(temp, name))
            saved["files"][name] = file_checksum(os.path.join(temp, name))
        with open(os.path.join(temp, MARKER), "w") as f:
            json.dump({**saved, "checksum": checksum(saved)}, f)
            f.flush()
            os.fsync(f.fileno())
        sync(temp)
        shutil.rmtree(old, ignore_errors=True)
        if os.path.exists(path):
            os.rename(path, old)
        os.rename(temp, path)
        sync(os.path.dirname(path))
        shutil.rmtree(old, ignore_errors=True)
    except PolicyError:
        raise
    except Exception as error:  # of a full disk the tokenizers say so by a plain Exception
        shutil.rmtree(temp, ignore_errors=True)
        raise PolicyError(f"cannot save to {path}: {reason(error)}") from error


@torch.no_grad()
def load_checkpoint(path, device=None):
    """(model, tokenizer, optimizer or None, state) as saved; moments and master weights are restored bit for bit.

    PolicyError, in one line, if there is none, or a file of it is not what was saved.
    """
    path = os.path.abspath(os.path.expanduser(str(path)))
    found = complete_checkpoint(checkpoint_of(path))
    if found is None:
        there = os.path.isdir(path)
        why = f"{MARKER} is missing or damaged, or not written to its end" if there else "the folder does not exist"
        raise PolicyError(f"no checkpoint at {path}: {why}")
    optimizer, saved = None, marker(found)
    model, tokenizer = load_policy(found, device)
    if OPTIMIZER in (saved.get("files") or {}):
        unchanged(found, OPTIMIZER, saved["files"][OPTIMIZER])
    try:
        if saved["optimizer"]:
            if saved.get("lora"):
                add_lora(model, saved["lora"])
            optimizer = make_optimizer(model, **saved["optimizer"])
            masters = {name: master for name, _, master in optimizer.pairs}
            weights = dict(model.named_parameters())
            with safe_open(os.path.join(found, OPTIMIZER), "pt") as f:
                for key in f.keys():
                    name, what = key.rsplit("|", 1)
                    value = f.get_tensor(key)
                    if what == "base":
                        weights[name].copy_(value)
                    elif what == "master":
                        masters[name].copy_(value)
                    else:
                        value = value if what == "step" else value.clone().to(weights[name].device)
                        optimizer.state[masters[name]][what] = value
            for _, p, master in optimizer.pairs if saved.get("lora") else []:
                p.copy_(master)
    except Exception as error:
        raise PolicyError(f"checkpoint {found} is damaged: {reason(error)}") from error
    return model, tokenizer, optimizer, saved["state"]


# ------------------------------------------------------------------------------------------------ a run

@dataclass
class RunSettings:
    """What every run is set by, as --key=value. A program's Settings inherit these, change defaults and add fields.

    The comments are what --help says. CHOICES (key -> allowed values), LEAST and MOST (key -> smallest and largest
    number, else 0 and a billion) are what `check` goes by, ALSO holds other names of a key.
    """
    # the run
    name: str = ""              # run folder under runs/; empty: the command's name, numbered if it exists
    resume: bool = False        # go on with runs/<name> where its last checkpoint left it
    seed: int = 0               # of everything that is drawn
    workers: int = 2            # processes that share the work (the numbers depend on it); torchrun sets its own
    model: str = "tiny"         # "tiny" (made here, from scratch), a run or checkpoint folder, a name, MODULE:FUNCTION
    device: str = ""            # empty: cuda if there is one, else cpu
    micro_tokens: int = 2048    # tokens per forward pass in training, shared ones once: 2048 suits a CPU, 16384 a GPU
    save_every: int = 25        # steps between two checkpoints
    sample_every: int = 10      # steps between two conversations that are shown
    index: int = 0              # which task to play or to chat about
    # a model that must fit
    dtype: str = ""             # of the weights: float32 | bfloat16 (optimiser, logits, loss: float32); empty: as is
    checkpointing: bool = False         # a layer's insides are computed again in the backward pass, not kept
    lora: int = 0               # rank of corrections that learn in place of the weights; 0: the weights learn
    # the tiny model
    vocab_size: int = 2048      # tokens, made from what will be read
    hidden: int = 128           # width
    layers: int = 2             # of attention and MLP
    heads: int = 4              # of queries in a layer
    kv_heads: int = 2           # of keys and values; heads is a multiple of it
    head_dim: int = 64          # an even number; with heads of 32, or two heads, copying did not form
    mimetic: bool = True        # attention begins near the identity; without it, lookups take three times the drills
    # cold start (SFT) on a careless demonstrator
    slip: float = 0.2           # how careless: probability of a poor move
    sft_steps: int = 1100       # optimiser steps
    sft_lr: float = 8e-3        # for the tiny model; a real checkpoint wants 1e-5
    sft_echo: float = 0.0       # weight of a second loss: cross-entropy of what the demonstrator hears in reply
    muon: float = 2.5           # the tiny model's matrices learn by Muon, at this multiple of sft_lr; 0: AdamW
    reading: float = 0.3        # share of the SFT steps in which a tiny model only reads, in place of pre-training
    # GRPO
    steps: int = 56             # each: rollouts, then an update
    tasks: int = 16             # tasks per step
    group: int = 8              # rollouts per task
    lr: float = 2.5e-4          # for the tiny model; a real checkpoint wants 1e-6, with --lora 1e-5 to 1e-4
    weight_decay: float = 0.0   # of AdamW, in SFT too
    rl_muon: float = 10.0       # as muon above, in RL; both only for models below ten million parameters
    gain: float = 300.0         # the last norm's gains, which scale all logits, learn at this multiple of lr
    temperature: float = 1.0    # of the rollouts
    clip_high: float = 0.2      # the ratio is clipped at 1 + clip_high
    # conversations
    rows: int = 96              # conversations generated at once (last bits of the numbers depend on it)
    context: int = 1536         # tokens a conversation may hold
    max_new_tokens: int = 80    # per turn
    thinking: bool = False      # a model whose chat template knows of it (Qwen3) thinks before it speaks
    graphs: bool = True         # on a GPU a decode step is replayed as a CUDA graph
    # evaluation
    eval_temperature: float = 1.0       # 1: the policy as trained; 0 is greedy

    CHOICES = {"dtype": ("", "float32", "bfloat16")}
    LEAST = {**dict.fromkeys("hidden layers heads kv_heads workers tasks rows save_every sample_every".split(), 1),
             "head_dim": 2, "group": 2, "max_new_tokens": 2, "context": 64, "vocab_size": 300, "temperature": 1e-3}
    MOST = {"seed": 2**63 - 1, "workers": 64, "lora": 4096, "hidden": 2**16, "layers": 1000, "heads": 1024,
            "head_dim": 1024, "vocab_size": 10**6, "rows": 10**5, "context": 10**7, "max_new_tokens": 10**6,
            "temperature": 100, "eval_temperature": 100}
    ALSO = {}

    @classmethod
    def filled(cls, values):
        """What was typed (key -> value) and what follows from it, for a setting that stands for others."""
        return values

    def check(self):
        """ValueError in one line for a setting out of its range."""
        for key, allowed in self.CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"--{key} is one of {', '.join(filter(None, allowed))}, not {getattr(self, key)!r}")
        for key, value in dataclasses.asdict(self).items():
            least, most = self.LEAST.get(key, 0), self.MOST.get(key, 10**9)
            if isinstance(value, (int, float)) and not value >= least:
                raise ValueError(f"--{key} must be at least {least}, not {value}")
            if isinstance(value, (int, float)) and value > most:
                raise ValueError(f"--{key} may be at most {most}, not {value}")
        if 0 < self.eval_temperature < 1e-3:
            raise ValueError(f"--eval_temperature is 0 (greedy) or at least 0.001, not {self.eval_temperature}")
        if self.lora and self.model == "tiny":
            raise ValueError("--lora corrects a model that has learned already: it needs --model")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError("--heads is a multiple of --kv_heads, and --head_dim is even")
        if not re.fullmatch(r"([\w.-]+(/[\w.-]+)?)?", self.name) or {".", ".."} & set(self.name.split("/")):
            raise ValueError(f"--name is a plain folder name, or STUDY/CELL, not {self.name!r}")
        try:
            torch.zeros(1, dtype=torch.float64, device=self.device or "cpu").tolist()       # sampling sums in float64
        except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
            raise ValueError(f"--device={self.device}: {reason(error)}") from None


class Stop(Exception):
    """Ctrl-C was pressed; the step that ran is finished and saved."""


interrupted = False                                                     # by Ctrl-C, in this process or another
most_gb = 0.0                                                           # of memory in use, of this process so far
team = []                                                               # processes that this one started
calls = 0                                                               # of command_line, by the script that runs
held = []                                                               # folders that this process works in
LOGS = ("metrics.jsonl", "times.jsonl", "samples.jsonl")
PHASES = {"": 0, "sft": 1, "rl": 2, "val": 2}                           # in their order; "": before the first step


def hold(folder):
    """Keep a run folder for this process until it ends, however it ends. ValueError if another one has it.

    The lock is on the folder itself: it leaves nothing behind.
    """
    held.append(os.open(folder, os.O_RDONLY))
    try:
        fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder} is in use: another process works on this run") from None
    except OSError:                                                     # a file system without locks
        pass


def read_json(path, default):
    """What a run wrote there, a dict; the default if it did not, ValueError in one line if it cannot be read."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return default
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} cannot be read: it is not what a run writes")
    return data


class Run:
    """What is set, measured and learned; the run folder, and where to go on.

    s: the settings, a RunSettings; part: a folder in the run folder, for a run of several policies; differs: settings
    that need not be those which the run began with, when it goes on. `first_policy` brings model, tokenizer, optimizer
    and engine.
    """

    def __init__(self, s, command, part="", differs=()):
        if s.resume and not s.name:
            raise ValueError("--resume=True needs the --name of the run to go on with")
        names = [command] + [f"{command}-{i}" for i in range(2, 10_000)]
        free = next(name for name in names if not (Path("runs") / name).exists())
        self.s, self.command, self.part, self.path = s, command, part, Path("runs") / (s.name or free) / part
        self.state = {"phase": "", "step": 0}                           # of the last checkpoint
        if s.resume:
            self._resume(("name", "resume", *differs))
        elif (self.path / "config.json").exists():
            raise ValueError(f"{self.path} exists: add --resume=True to go on with it, or choose another --name")
        if not part:
            share_work(self.s)
        self.writes = rank() == 0
        path, self.evals = gather([str(self.path), self.read("eval.json", {})])[0]
        self.path = Path(path)
        self.name = str(self.path.relative_to("runs"))                  # as --name has it, STUDY/CELL too
        for label, result in self.evals.items():
            self._check(label, result)

    def begin(self):
        """Make the folder: only when model and user are there, so that a wrong one leaves nothing behind.

        In a run that goes on, drop the log lines after the checkpoint; the same steps will write them again.
        """
        print(f"run folder {self.path}", flush=True)
        threads = torch.get_num_threads()
        if self.s.resume and self.threads not in (None, threads):
            print(f"! begun with {self.threads} threads, now {threads}: the last bits of the numbers will differ",
                  flush=True)
        if self.writes and self.s.resume:
            self._rewind()
        elif self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            settings = {"command": self.command, "threads": threads, **dataclasses.asdict(self.s)}
            self.write("config.json", {**settings, "checksum": checksum(settings)})

    def _rewind(self):
        """Cut the logs back to the checkpoint. What cannot be read, or is gone, is said."""
        reached = PHASES[self.state["phase"]], self.state["step"]
        if reached[1] and not self.evals and not self.part:
            print(f"! {self.path / 'eval.json'} is missing, and what was measured before", flush=True)
        for file in LOGS:
            path, kept, steps, bad = self.path / file, [], [], []
            whole = path.read_bytes() if path.exists() else b""
            lines = whole.splitlines()
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line.decode())
                    if (PHASES[row["phase"]], row["step"]) > reached:
                        continue
                except (ValueError, LookupError, TypeError, RecursionError):
                    bad.append(number)
                    continue
                kept.append(line.decode() + "\n")
                if row["phase"] == self.state["phase"]:
                    steps.append(row["step"])
            if bad and bad[-1] == len(lines) and not whole.endswith(b"\n"):
                bad.pop()                                               # cut short by the kill
            if bad:
                print(f"! {path}: left out what cannot be read, line {', '.join(map(str, bad))}", flush=True)
            elif reached[1] and file == "metrics.jsonl" and steps != [*range(min(steps, default=0), reached[1] + 1)]:
                print(f"! {path} lacks steps that came before the checkpoint, or has them twice", flush=True)
            if path.exists():
                self._replace(file, "".join(kept))

    def _lock(self):
        if not rank() and not self.part:                                # the first process holds it for all
            hold(self.path)

    def _resume(self, differs):
        if self.path.is_dir():
            self._lock()
        saved, file = self.read("config.json", None), self.path / "config.json"
        if saved is None:
            raise ValueError(f"nothing to resume: {file} is missing")
        sealed = saved.pop("checksum", None)
        intact = sealed in (None, checksum(saved))
        self.threads = saved.pop("threads", None)
        if saved.pop("command", None) != self.command:
            raise ValueError(f"{self.path} was not started by '{self.command}'")
        other = ValueError(f"{file} was written by another version")
        if set(saved) != {each.name for each in dataclasses.fields(self.s)}:
            raise other
        if not intact:
            raise ValueError(f"{file} is not what was written when the run began (its checksum differs)")
        try:
            saved = type(self.s)(**saved)
            saved.check()
        except (TypeError, AttributeError):
            raise other from None
        for each in dataclasses.fields(saved):
            now, before = getattr(self.s, each.name), getattr(saved, each.name)
            if each.name not in differs and now not in (each.default, before):
                raise ValueError(f"a resumed run keeps its settings: --{each.name} was {before!r} when it began")
        self.s = dataclasses.replace(saved, **{name: getattr(self.s, name) for name in differs})
        self.read("talks.json", {})                                     # better now than after the training

    def read(self, file, default):
        """What a file of the run holds; ValueError if it is there and cannot be read, so that nobody overwrites it."""
        return read_json(self.path / file, default)

    def _check(self, label, result):
        """ValueError if an evaluation is no longer what was written. Older ones have no checksum."""
        rest = dict(result) if isinstance(result, dict) else {"checksum": "none"}
        if rest.pop("checksum", None) not in (None, checksum([label, rest])):
            raise ValueError(f"{self.path / 'eval.json'} is damaged: {label!r} is not what was written")

    def write(self, file, data):
        if self.writes:
            self._replace(file, json.dumps(data, indent=1))

    def _replace(self, file, text):
        """All or nothing: a killed run never leaves half a file."""
        part = self.path / (file + ".part")
        part.write_text(text)
        part.replace(self.path / file)

    def log(self, file, row):
        if self.writes:
            with open(self.path / file, "a") as f:
                f.write(json.dumps(row) + "\n")

    def log_step(self, phase, step, row, began, times):
        """Metrics to one file, what differs between two equal runs to another; (seconds of the step, GB since the last
        `phase_gb`)."""
        seconds = time.time() - began
        self.log("metrics.jsonl", {"phase": phase, "step": step, **row})
        gb = phase_gb()
        self.log("times.jsonl", {"phase": phase, "step": step, "seconds": seconds, "gb": gb, **times})
        return seconds, gb

    def save(self, place, **state):
        """A checkpoint in the run folder; logged steps are safe from a power cut before it."""
        for path in [self.path / file for file in LOGS] if self.writes else []:
            if path.exists():
                sync(path)
        if self.writes:
            save_checkpoint(self.path / place, self.model, self.tokenizer, self.optimizer, state)

    def evaluate(self, label, measure):
        """What measure() gives, kept in eval.json, so that a resumed run measures only what failed."""
        if "failed" in self.evals.get(label, {"failed": ""}):
            result = measure()
            self.evals[label] = {**result, "checksum": checksum([label, result])}
            self.write("eval.json", self.evals)
        if interrupted:
            raise Stop
        return self.evals[label]

    def finish_step(self, step, last, phase, **state):
        """Checkpoint when it is time, and before an interrupt takes effect."""
        global interrupted
        interrupted = bool(summed([interrupted])[0])                    # only the first process hears Ctrl-C
        self.state = {"phase": phase, "step": step, **state}
        if step % self.s.save_every == 0 or step == last or interrupted:
            self.save("checkpoint", **self.state)
        if interrupted:
            raise Stop


def phase_gb():
    """Most memory in use since this was last asked, by all processes together; to be asked by all of them.

    Resident memory, or what was allocated of GPUs. A system other than Linux cannot forget a peak: there it is the
    most so far.
    """
    global most_gb
    if torch.cuda.is_initialized():
        now = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    else:
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20                # Linux counts in KiB
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")               # begins a new peak
    most_gb = max(most_gb, now)
    return summed([now])[0]


def peak_gb():
    """Most memory in use so far, as `phase_gb` counts it."""
    phase_gb()
    return summed([most_gb])[0]


def weighed(run):
    """What the policy of a run takes, in words, by arithmetic."""
    def gb(tensors):
        return f"{sum(tensor.nbytes for tensor in tensors) / 2**30:.2f} GB"
    learned = [master for *_, master in run.optimizer.pairs]
    copies = [master for _, p, master in run.optimizer.pairs if master is not p]
    dtype = str(run.model.dtype).removeprefix("torch.")
    return (f"weights {gb(run.model.parameters())} ({dtype}), cache of {run.engine.rows} rows {gb([run.engine.kv])}; "
            f"{sum(m.numel() for m in learned) / 1e6:.2f} M numbers learn: gradients {gb(learned)}, masters "
            f"{gb(copies)}, moments {gb(learned * 2)}")


def reason(error):
    """The first line of what an exception says."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def printable(text):
    """Text for a terminal: what is not printed but obeyed there (colours, bells, clearing) is a question mark."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def time_left(start, done, total):
    """What the rest takes if it goes on as since `start`."""
    return clock((time.time() - start) / done * (total - done))


def share_work(s):
    """Start, or join, the processes that share the work. A GPU is enough for one process; several need torchrun."""
    program, workers = [], s.workers
    if (s.device or ("cuda" if torch.cuda.is_available() else "cpu")) != "cpu":
        workers = 1
    if workers > 1 and "RANK" not in os.environ:
        program = this_program()
    team.extend(join(workers, program, s.device))
    if s.device.startswith("cuda:"):
        torch.cuda.set_device(s.device)                                 # graphs are captured on the current one


def this_script():
    """What makes `python` run the same script again, with all that it registers or patches."""
    main = sys.modules["__main__"]
    if main.__spec__:                                                   # python -m
        return ["-m", main.__spec__.name]
    if not os.path.isfile(getattr(main, "__file__", "")):               # a notebook, python -c
        raise ValueError("there is no script that a second process could run: add --workers=1")
    return [main.__file__]


def this_program():
    """The same script with the same arguments."""
    return [*this_script(), *sys.argv[1:]]


def plug(key, address):
    """The object that a setting's MODULE:NAME stands for. The module may lie in the working directory."""
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", address):
        raise ValueError(f"--{key}: {address!r} is not MODULE:NAME")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, name = address.split(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"--{key}: {error}") from None
    if not hasattr(found, name):
        raise ValueError(f"--{key}: module {module} has no {name}")
    return getattr(found, name)


def chosen_policy(s):
    """(model, tokenizer) of --model: what the reader's MODULE:FUNCTION returns, or a folder, a file or a name."""
    if ":" in s.model and not os.path.exists(s.model):
        model, tokenizer = plug("model", s.model)()
    else:
        model, tokenizer = load_policy(s.model, device=s.device or None)
    tokenizer.thinking = s.thinking                                     # see `chat_key`
    dtype = s.dtype
    if model.dtype == torch.float16 and not dtype:
        # gradients of a long step, divided by its tokens, are below what float16 can hold
        dtype = "bfloat16"
        print(f"{s.model} is in float16: taken as bfloat16 (or --dtype=float32)", flush=True)
    return cast(model, dtype), tokenizer


def first_policy(run, texts, envs, base=None):
    """Give the run its policy, then make its folder.

    The policy is that of the run's checkpoint if it goes on, or of the one at `base`. Else there is no optimizer yet,
    and the model is a tiny one made from scratch with the vocabulary of texts(), or --model. PolicyError if a
    checkpoint is there but damaged: nothing is begun anew that was learned before. A turn `must_fit` into one of the
    envs, name -> environment.
    """
    s, run.optimizer = run.s, None
    places = [run.path / "checkpoint"] if s.resume else []
    places += [base] if base else []
    found = [place for place in places if complete_checkpoint(str(place)) or place.exists()]
    if found:
        run.model, run.tokenizer, run.optimizer, run.state = load_checkpoint(found[0], device=s.device or None)
        run.tokenizer.thinking = s.thinking
    elif s.model == "tiny":
        run.model, run.tokenizer = tiny_policy(
            texts(), vocab_size=s.vocab_size, hidden=s.hidden, layers=s.layers, heads=s.heads, kv_heads=s.kv_heads,
            head_dim=s.head_dim, ffn=2 * s.hidden, mimetic=s.mimetic, seed=s.seed)
        cast(run.model, s.dtype).to(s.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    else:
        run.model, run.tokenizer = chosen_policy(s)
        share_weights(run.model)
    if s.checkpointing:
        recompute_layers(run.model)
    if found and (run.optimizer is None or run.state.get("phase") not in PHASES):
        raise PolicyError(f"{found[0]} holds a policy alone: a run cannot go on from it")
    run.engine = Engine(run.model, run.tokenizer, rows=s.rows, max_len=s.context, graphs=s.graphs)
    must_fit(run.engine, envs)
    run.begin()


def reference_policy(run):
    """ref_logps(trajectories) of the frozen policy that RL started from, for the KL, as `token_logps` gives them.

    With LoRA it is the model itself, without its corrections. Else it is on disk, so that a resumed run has the same
    one. PolicyError if RL is under way and it is gone: today's policy is not what RL started from.
    """
    how = {"temperature": run.s.temperature, "micro_tokens": run.s.micro_tokens}
    if run.s.lora:
        def uncorrected(trajs):
            with without_lora(run.model):
                return token_logps(run.model, trajs, **how)
        return uncorrected
    folder = run.path / "reference"
    saved = complete_checkpoint(str(folder))
    if not saved and run.state["phase"] == "rl" and run.state["step"]:
        raise PolicyError(f"{folder} is missing or damaged, and with it the policy that RL started from")
    if run.writes and not saved:
        save_checkpoint(folder, run.model, run.tokenizer)
    gather("saved")                                                     # nobody reads before it is written
    reference, _ = load_policy(str(folder.resolve()), device=run.s.device or None)
    return partial(token_logps, reference, **how)


def run_phases(run, phases, teach, tell):
    """Each phase from where the checkpoint left it, then tell(label). teach: phase -> function(steps already done).

    phases: some of "sft", "rl". A policy with an optimizer (the run's own checkpoint, or `base`) goes on in the phase
    of run.state; a finished phase is run through without a step.
    """
    s, state, resumed = run.s, run.state, run.optimizer is not None
    small = sum(p.numel() for p in run.model.parameters()) < 10_000_000
    for phase in phases[phases.index(state["phase"]) if resumed else 0:]:
        first = state["step"] if resumed and phase == state["phase"] else 0
        if not first:                                   # each phase begins with fresh moments, and fresh corrections
            if s.lora:
                add_lora(run.model, s.lora, s.seed)
                run.engine.steps.clear()                                # CUDA graphs of a model without corrections
            factors = {"muon": s.muon} if phase == "sft" else {"muon": s.rl_muon, "gain": s.gain}
            run.optimizer = make_optimizer(run.model, s.lr, s.weight_decay, **factors if small and not s.lora else {})
        if not small:
            print(f"{phase}: {weighed(run)}", flush=True)
        teach[phase](first)
        tell(phase.upper())


def train_sft(run, draw, hold, first):
    """The cold start: next-token prediction on what a demonstrator said.

    draw(step, number) -> (this process's trajectories, number of its next demonstration). The learning rate falls
    only after a share `hold` of the steps.
    """
    s, start = run.s, time.time()
    numbers = run.state.get("numbers", range(world()))
    # of as many processes as saved them; with others each goes on behind all of them
    number = numbers[rank()] if len(numbers) == world() else max(numbers) + rank()
    for step in range(first + 1, s.sft_steps + 1):
        began = time.time()
        batch, number = draw(step, number)
        lr = lr_schedule(step - 1, s.sft_steps, s.sft_lr, warmup=0.05, hold=hold)
        m = sft_step(run.model, run.optimizer, batch, lr=lr, echo=s.sft_echo, micro_tokens=s.micro_tokens)
        seconds, gb = run.log_step("sft", step, m, began, {})
        if step % 100 == 0 or step == s.sft_steps:
            left = time_left(start, step - first, s.sft_steps - first)
            print(f"sft {step:4d}/{s.sft_steps} | loss {m['loss']:6.3f}  grad {m['grad_norm']:5.2f} | "
                  f"{seconds:5.2f} s  {gb:4.2f} GB | {left} left", flush=True)
        run.finish_step(step, s.sft_steps, "sft", numbers=gather(number))


def on_interrupt(*_):
    global interrupted
    if interrupted:
        raise KeyboardInterrupt
    interrupted = True
    if team:                            # this process may be waiting in C for another: there no exception is heard
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("\nCtrl-C: finishing this step, then saving (once more to stop at once)", flush=True)


def typed(name, text, kind):
    """The text as a value of that kind."""
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{name} takes {kind.__name__}, not {text!r}") from None


def parse(argv, kind, commands):
    """("demo", settings) from ["demo", "--key=value", ...]; ValueError with one clear line for anything else.

    kind: the RunSettings of the program. commands: name -> function of the settings.
    """
    named = bool(argv) and not argv[0].startswith("-")
    command = argv[0] if named else "demo"
    if command not in commands:
        raise ValueError(f"unknown command {command!r}; choose from {', '.join(commands)}")
    types = {each.name: type(each.default) for each in dataclasses.fields(kind)}
    values = {}
    for item in argv[named:]:
        key, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or not equals:
            raise ValueError(f"cannot read {item!r}; settings look like --key=value")
        key = kind.ALSO.get(key, key)
        if key not in types:
            close = difflib.get_close_matches(key, types, 1)
            raise ValueError(f"unknown setting --{key}" + (f"; did you mean --{close[0]}?" if close else ""))
        values[key] = typed(f"--{key}", value, types[key])
    settings = kind(**kind.filled(values))
    settings.check()
    return command, settings


def usage(doc, kind, commands):
    """The text of --help: settings and their comments are read from the source, so that they cannot get stale."""
    print(doc.strip() + "\n\ncommands")
    for name, function in commands.items():
        print(f"  {name:10}{inspect.getdoc(function).splitlines()[0]}")
    heading_of, comment = {}, {}
    for cls in (RunSettings, kind):
        for line in inspect.getsource(cls).splitlines():
            if found := re.match(r"    # (.*)", line):
                heading = found[1]
            elif found := re.match(r"    (\w+): \w+ = .+?(?:\s+# (.*))?$", line):
                heading_of.setdefault(found[1], heading)
                comment[found[1]] = found[2] or comment.get(found[1], "")
    for heading in dict.fromkeys(heading_of.values()):
        print(f"\n{heading}")
        for key in [key for key in heading_of if heading_of[key] == heading]:
            print(f"  {f'--{key}={getattr(kind, key)}':34}  {comment[key]}".rstrip())


def command_line(argv, doc, kind, commands, file):
    """A program: its text of help, its Settings, its commands (name -> function of the settings), its file's name.

    Returns the exit status. A process that only helps runs the whole script again, but takes part in one call: those
    before it are done, and what comes after it is for the first process to do.
    """
    global calls
    calls += 1
    helps_with = int(os.environ.get("GRPO_CALL", 0))
    if calls < helps_with:
        return 0
    status = attempt(argv, doc, kind, commands, file)
    if helps_with:
        sys.exit(status)
    return status


@contextlib.contextmanager
def dying_at_once():
    """Ctrl-C ends the process: a KeyboardInterrupt that falls into some object's __del__ is lost, the run goes on."""
    before = signal.getsignal(signal.SIGINT)
    plain = first_thread and before in (signal.SIG_DFL, signal.default_int_handler)
    if plain:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if plain:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def attempt(argv, doc, kind, commands, file):
    """A call of `command_line` in which every error that is not a bug becomes one line."""
    if hasattr(sys.stdout, "reconfigure"):                              # a terminal without "±" does not end a run
        sys.stdout.reconfigure(errors="replace")
    try:
        if {"-h", "--help"} & set(argv) or argv[:1] == ["help"]:
            usage(doc, kind, commands)
            sys.stdout.flush()
            return 0
        with dying_at_once():
            command, s = parse(argv, kind, commands)
            check_place()
        if command not in ("play", "chat"):
            signal.signal(signal.SIGINT, on_interrupt if rank() == 0 else signal.SIG_IGN)
        commands[command](s)
        return 0
    except Stop:
        return 130
    except (KeyboardInterrupt, EOFError):
        print("\nstopped")
        return 130
    except BrokenPipeError:                                             # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:                              # PolicyError is a ValueError
        print(f"{file}: {reason(error)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if getattr(error, "user_error", False):                         # in `play`; a rollout loses one conversation
            print(f"{file}: the user failed: {reason(error)}", file=sys.stderr)
            return 2
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            print(f"{file}: not enough memory: lower --rows, --context or --micro_tokens, or take a smaller model",
                  file=sys.stderr)
            return 2
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        if rank() == 0:                                                 # the others end silently with the first
            print(f"{leave(team)}{file}: {LOST}", file=sys.stderr)
        return 3
    finally:
        leave(team)
        while held:
            os.close(held.pop())


# ------------------------------------------------------------------------------------------------ python grpo.py

CITIES = "Oslo Lima Cairo Kyoto Quito Turin Dakar Perth Hanoi Izmir Sofia Delhi".split()


class DummyEnv:
    """Fixed texts of realistic length: what a rollout costs apart from any environment."""

    def __init__(self, task, turns):
        self.task, self.turns, self.said, self.user, self.ended = task, turns, 0, self, []
        self.system_prompt = (
            "You are a travel assistant who talks with one traveller. Each turn you make one move: [action] asks the "
            "traveller about a wish, [search] looks up flights, hotels or cars, [answer] proposes one option by its "
            "number. Wishes are told only when asked for, one at a time. Be brief and do not guess.")

    def reset(self):
        a, b = CITIES[self.task % 12], CITIES[(self.task * 5 + 1) % 12]
        return f"Hi! I need a flight from {a} to {b} next month, and a hotel for {2 + self.task % 5} nights.", {}

    def turn(self, action):
        reply = yield f"{self.said}: {action[:10]}"
        self.said += 1
        self.ended.append(time.perf_counter())
        return (f"{reply} I would like to leave before {6 + (self.task + self.said) % 12} in the morning and to pay at "
                f"most {100 + 20 * self.said} for it."), 0.5, self.said >= self.turns, False, {}

    def answer(self, queries):
        return ["Well, since you ask me about it:"] * len(queries)


class LateEnv(DummyEnv):
    """Its user takes a second to reply."""
    slow = True

    def answer(self, queries):
        time.sleep(1)
        return super().answer(queries)


def plain_rollout(model, tokenizer, trajs, new, seconds):
    """The same conversations by transformers' generate: every turn re-encodes the whole history of all of them in
    one left-padded batch. Feedback tokens are taken from `trajs`; returns sampled tokens and their log-probs in the
    last turn, and appends each turn's seconds."""
    pad, turns = tokenizer.pad_token_id, len(trajs[0].turn_rewards)
    starts = [[t.turn.index(k) for k in range(turns)] + [len(t.ids)] for t in trajs]
    said = [t.ids[:at[0]] for t, at in zip(trajs, starts)]
    for k in range(turns):
        width = max(map(len, said))
        ids = torch.tensor([[pad] * (width - len(s)) + s for s in said], device=model.device)  # [B, T]
        real = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in said], device=model.device)
        tick = time.perf_counter()
        out = model.generate(input_ids=ids, attention_mask=real, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             max_new_tokens=new, eos_token_id=None, pad_token_id=pad,
                             return_dict_in_generate=True, output_logits=k == turns - 1)
        seconds.append(time.perf_counter() - tick)
        sampled = out.sequences[:, width:]  # [B, new]
        for s, row, t, at in zip(said, sampled.tolist(), trajs, starts):
            s += row + t.ids[at[k] + new:at[k + 1]]
    logits = torch.stack(out.logits, 1).float()  # [B, new, V]
    return said, logits.gather(-1, sampled[..., None])[..., 0] - logits.logsumexp(-1)


def largest_gap(a, b):
    """Largest difference between two lists of lists of numbers."""
    return max(abs(x - y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def play(engine, talks, turns, new, kind=DummyEnv):
    """(Trajectories, seconds by part) of groups of eight; clock["turns"]: seconds until all had had their k-th turn.
    Here no turn ends by itself: all sides do the same work."""
    engine.stop, clock, envs = -1, {}, [kind(i // 8, turns) for i in range(talks)]
    began = time.perf_counter()
    trajs = rollout(engine, envs, max_new_tokens=new, clock=clock)
    clock["turns"] = np.max([env.ended for env in envs], 0) - began  # [turns]
    return trajs, clock


def spent(clock):
    """Seconds of a rollout."""
    return sum(clock[key] for key in ("prefill", "decode", "user", "other"))


def median_seconds(work, times=5):
    """Median seconds of a call, after one to warm up; a GPU has then done its work."""
    found = []
    for _ in range(times + 1):
        tick = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - tick)
    return sorted(found[1:])[times // 2]


def turn_seconds(engine, rows, length, heard=0, new=20):
    """Seconds of a turn of some rows whose caches hold `length` tokens: `heard` are appended, `new` sampled."""
    index, ones, uniform = np.arange(rows), np.ones(rows, np.int64), np.full(rows, 0.5)

    def turn():
        engine.length[:] = length
        with torch.inference_mode(), attending(engine.model, "ragged"):
            if heard:
                engine.feed(index, np.ones((rows, heard), np.int64), heard * ones)
            for _ in range(new):
                engine.sample(engine.feed(index, ones[:, None], ones), uniform)
    return median_seconds(turn)


def floor_seconds(engine, rows, length):
    """Seconds of the matrix products and the attention of a decode step, without all that is between them."""
    weights = [(m.weight, torch.ones(rows, m.in_features, dtype=m.weight.dtype, device=m.weight.device))
               for m in engine.model.modules() if isinstance(m, torch.nn.Linear)]
    config = engine.model.config
    keys, values = engine.kv[:, :, :rows, :, :length]
    shape = rows, keys.shape[2], config.num_attention_heads // keys.shape[2], keys.shape[-1]
    query = torch.ones(shape, dtype=keys.dtype, device=keys.device)
    mask = torch.zeros(rows, 1, 1, length, dtype=keys.dtype, device=keys.device)

    def step():
        with torch.inference_mode():
            for weight, x in weights:
                F.linear(x, weight)
            for k, v in zip(keys, values):
                F.scaled_dot_product_attention(query, k, v, attn_mask=mask)
    return median_seconds(step, 25)


def memory_of_log_probs(tokens=1024, words=151_936):
    """(ours, naive: peak bytes of log-probs and their gradient; largest gap between the gradients over its largest).

    To be called first: the peak of a process only rises, and the naive way's is the higher.
    """
    torch.manual_seed(0)
    head = torch.nn.Linear(64, words, bias=False)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=words, hidden_size=64, num_hidden_layers=0))
    model.set_output_embeddings(head)
    target, hidden = torch.randint(words, (tokens,)), torch.randn(tokens, 64)

    def naive(h):
        return head(h).float().log_softmax(-1).gather(-1, target[:, None])[:, 0]

    def ours(h):
        return logps_at(model, h, target, 1.0)

    torch.randn(64, 64) @ torch.randn(64, 64)
    grads, peaks = [], [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    for log_probs in (ours, naive):
        head.weight.grad, h = None, hidden.clone().requires_grad_()
        log_probs(h).mean().backward()
        grads.append(h.grad)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    gap = (grads[0] - grads[1]).abs().max() / grads[1].abs().max()
    return (peaks[1] - peaks[0]) * 1024, (peaks[2] - peaks[0]) * 1024, float(gap)


def self_checks(model, tokenizer, trajs, new):
    """Largest deviations between two ways to the same numbers."""
    talks, turns, logps = len(trajs), len(trajs[0].turn_rewards), [t.logps for t in trajs]
    print("self-checks (largest deviation)")
    text = trajs[0].messages[:-1]
    whole = tokenizer.apply_chat_template(text, tokenize=True, return_dict=False)
    print("  pieces = chat template        ", "yes" if demo_trajectory(tokenizer, text).ids == whole[:-1] else "NO")
    print(f"  cached = uncached              {largest_gap(logps, token_logps(model, trajs)):.1e}")
    some, _ = play(Engine(model, tokenizer, rows=3, max_len=2048), 5, turns, new)
    differ = "" if all(a.ids == b.ids for a, b in zip(some, trajs)) else ", tokens DIFFER"
    print(f"  {talks} rows = 3 rows               {largest_gap([t.logps for t in some], logps[:5]):.1e}{differ}")
    weights, norms = {k: v.clone() for k, v in model.state_dict().items()}, []
    advantages = [[(-1.0) ** (i + k) for k in range(turns)] for i in range(8)]
    for micro_tokens in (1 << 20, 4 * len(trajs[0].ids), 1):
        model.load_state_dict(weights)
        m = grpo_step(model, make_optimizer(model, 1e-3), trajs[:8], advantages, lr=1e-3, micro_tokens=micro_tokens)
        norms.append(m["grad_norm"])
    model.load_state_dict(weights)
    print(f"  first ratio = 1                {abs(m['ratio_max'] - 1):.1e}")
    print(f"  1 = 2 = 8 micro-batches        {(max(norms) - min(norms)) / max(norms):.1e} of the gradient norm\n")


def compare_with_generate(engine, talks, new, all_turns):
    """Our rollouts against generate's, in the same conversations up to a turn, and at that turn alone; returns ours."""
    model, tokenizer, seconds = engine.model, engine.tokenizer, []
    rounds = [play(engine, talks, all_turns[-1], new) for _ in range(3)]
    trajs = rounds[0][0]
    said, plain_logps = plain_rollout(model, tokenizer, trajs, new, seconds)
    mine = token_logps(model, [Trajectory(ids=s, mask=t.mask, turn=t.turn) for s, t in zip(said, trajs)])
    last = [[x for x, k in zip(m, t.turn) if k == all_turns[-1] - 1] for m, t in zip(mine, trajs)]
    print(f"ours = generate's own            {largest_gap(last, plain_logps.tolist()):.1e}\n")
    ours = np.median([clock["turns"] for _, clock in rounds], 0)  # seconds up to each turn
    plain = np.cumsum(seconds)
    print("rollout benchmark  turns    tokens/s   generate's    ratio   at the last turn")
    for turns in all_turns:
        sampled, end = talks * turns * new, turns - 1
        at_last = (plain[end] - plain[end - 1]) / (ours[end] - ours[end - 1])
        print(f"{turns:24}{sampled / ours[end]:12.0f}{sampled / plain[end]:13.0f}{plain[end] / ours[end]:9.1f}"
              f"{at_last:19.1f}")
    return trajs


def main(argv):
    quick = "--quick" in argv
    shape = next((arg.removeprefix("--shape=") for arg in argv if arg.startswith("--shape=")), "")
    if shape:
        return roofline(shape)
    talks, all_turns, new = (16, (2, 4), 16) if quick else (64, (4, 8, 16), 20)
    torch.set_num_threads(1)  # as each process of a run has on a CPU
    ours, naive, gap = memory_of_log_probs(512 if quick else 1024)
    with open(__file__) as f:
        model, tokenizer = tiny_policy([f.read()] + [DummyEnv(i, 1).reset()[0] for i in range(12)])
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, {talks} conversations "
          f"x {all_turns[-1]} turns x {new} tokens, one thread\n")
    engine = Engine(model, tokenizer, rows=talks, max_len=2048)
    play(engine, 4, 1, 4)  # warm-up
    self_checks(model, tokenizer, play(engine, talks, all_turns[0], new)[0], new)
    trajs = compare_with_generate(engine, talks, new, all_turns)
    # the turns that are compared, their context before, and what is heard before each
    few, many = all_turns[0], all_turns[-1]
    start = [[t.turn.index(k - 1) for k in (few, many)] for t in trajs]
    short, long = (int(np.mean(column)) for column in zip(*start))
    heard = (long - short) // (many - few) - new
    late_turn, early_turn = (turn_seconds(engine, talks, n - heard, heard, new) for n in (long, short))
    cost = late_turn / early_turn
    print(f"\na token of turn {many} costs {cost:.1f} of turn {few}'s; its context is {long / short:.1f} times as long")
    steps = 20
    middle = short + steps // 2  # tokens, half way through them
    floor = floor_seconds(engine, talks, middle)
    step = turn_seconds(engine, talks, short, new=steps) / steps
    print(f"a decode step of {talks} rows at {middle} tokens: {1e3 * step:.1f} ms, {step / floor:.2f} times its "
          f"floor of matrix products and attention")
    turns = 2 if quick else 8
    _, late = play(engine, talks, turns, new, LateEnv)
    alone, work = play(engine, 1, turns, new)[1], play(engine, talks, turns, new)[1]
    bound = max(turns + spent(alone), spent(work))
    print(f"a user who takes 1 s, {talks} x {turns} turns: {spent(late):.1f} s, {spent(late) / bound:.2f} times the "
          "bound of waiting or working alone")
    print(f"log-probs over 151,936 words, with gradient: {ours / 2**20:.0f} MB, the naive way {naive / 2**20:.0f} MB "
          f"({ours / naive:.2f}); gradients differ by {gap:.0e}")


SHAPES = {"tiny": (128, 2, 4, 2, 64, 256, 2048), "0.6B": (1024, 28, 16, 8, 128, 3072, 151_936),
          "1.7B": (2048, 28, 16, 8, 128, 6144, 151_936), "4B": (2560, 36, 32, 8, 128, 9728, 151_936)}


def roofline(shape, length=512):
    """Decode steps of a Qwen3 shape with random weights: tokens/s, and the share of the time that reading weights and
    cache once takes at the bandwidth of a large copy; then, that CUDA graphs change nothing and survive an update."""
    on = "cuda" if torch.cuda.is_available() else "cpu"
    if shape not in SHAPES or (on == "cpu" and shape != "tiny"):
        sys.exit(f"grpo.py: --shape is one of {', '.join(SHAPES)}" + ("; on a CPU, tiny" if on == "cpu" else ""))
    hidden, layers, heads, kv, size, ffn, words = SHAPES[shape]
    config = Qwen3Config(vocab_size=words, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=kv, head_dim=size, intermediate_size=ffn, tie_word_embeddings=True)
    small, tokenizer = tiny_policy([__doc__])
    with torch.device(on):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if on == "cuda" else torch.float32).eval()
    block = torch.zeros(1 << 28 if on == "cuda" else 1 << 24, device=on)
    bandwidth = 8 * block.numel() / median_seconds(block.clone)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"{shape}: {weights / 1e9:.3g} GB of weights, {bandwidth / 1e9:.3g} GB/s, {length} tokens of context, "
          f"{torch.cuda.get_device_name() if on == 'cuda' else 'CPU'}")
    print("rows     tokens/s   of the roofline   without graphs")

    def measured(rows, graphs):
        engine = Engine(model, tokenizer, rows=rows, max_len=length + 64, graphs=graphs)
        cache = engine.kv.numel() * engine.kv.element_size() * length / engine.kv.shape[-2]
        step = turn_seconds(engine, rows, length - 20) / 20
        return rows / step, 100 * (weights + cache) / bandwidth / step

    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        (speed, share), (_, without) = measured(rows, True), measured(rows, False)
        print(f"{rows:4}{speed:13.0f}{share:16.0f} %{without:14.0f} %", flush=True)
    small.to(on)
    captured_steps, plain = (Engine(small, tokenizer, rows=8, max_len=1024, graphs=graphs) for graphs in (True, False))
    (one, _), (other, _) = (play(engine, 8, 3, 16) for engine in (captured_steps, plain))
    same = all(a.ids == b.ids for a, b in zip(one, other))
    grpo_step(small, make_optimizer(small, 1e-3), one, [[(-1.0) ** i] * 3 for i in range(8)], lr=1e-3)
    after, _ = play(captured_steps, 8, 3, 16)
    print(f"with graphs and without: {'the same tokens' if same else 'tokens DIFFER'}; cached = uncached, after an "
          f"update: {largest_gap([t.logps for t in after], token_logps(small, after)):.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
