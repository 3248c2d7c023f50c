"""Checkpoints of other families: their own chat templates in pieces, through rollouts and training, and bad ones."""
import contextlib
import json
import types

import envs
import grpo
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel, DeepseekV2Config,
                          LlamaConfig, LlamaForCausalLM, NemotronConfig, PreTrainedTokenizerFast, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, StableLmConfig)

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# In the manner of Qwen3: tools in the system prompt, replies of tools in the user's role, thoughts dropped from turns
# before the user's last, and with enable_thinking=False an empty thought before the model speaks.
QWEN3 = """{%- set at = namespace(last=0) -%}
{%- for m in messages %}{% if m.role == "user" %}{% set at.last = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in messages %}{% if m.role == "tool" %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response>{% else %}<|im_start|>{{ m.role }}
{% if m.role == "assistant" and loop.index0 > at.last and not "<think>" in m.content %}<think>

</think>

{% endif %}{% if m.role == "assistant" and loop.index0 < at.last %}{{ m.content.split("</think>")[-1].lstrip() }}
{%- else %}{{ m.content }}{% endif %}{% if m.role == "system" and tools %}

# Tools
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools> in <tool_call></tool_call>{% endif %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
SMOL = """{% for m in messages %}{% if loop.first and m.role != "system" %}<|im_start|>system
You are SmolLM.<|im_end|>
{% endif %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA = """<|begin|>{% for m in messages %}{% if m.role == "tool" %}{{ raise_exception("no tools here") }}{% endif -%}
<|head|>{{ m.role }}<|/head|>

{{ m.content | trim }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>

{% endif %}"""
SHAPES = {"qwen3": (Qwen3Config, Qwen3ForCausalLM, QWEN3, CHATML),
          "smollm2": (LlamaConfig, LlamaForCausalLM, SMOL, CHATML),
          "qwen2": (Qwen2Config, Qwen2ForCausalLM, SMOL.replace("SmolLM", "Qwen"), CHATML),
          "llama": (LlamaConfig, LlamaForCausalLM, LLAMA, ["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"])}


def tokenizer_of(template, special):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(["user system assistant <think>\n\n</think>\n\n[answer] Oslo?"] * 9, trainers.BpeTrainer(
        vocab_size=380, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=special[0], eos_token=special[-1],
                                        extra_special_tokens=special[1:-1], clean_up_tokenization_spaces=False)
    if template == QWEN3:
        tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    tokenizer.chat_template = template
    return tokenizer


def saved(folder, config, kind, template, special):
    """A checkpoint as its makers would leave it."""
    tokenizer = tokenizer_of(template, special)
    shape = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                 intermediate_size=32, max_position_embeddings=1024, vocab_size=len(tokenizer), initializer_range=0.1)
    torch.manual_seed(0)
    kind(config(**shape, pad_token_id=0, bos_token_id=None, eos_token_id=None)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


TALK = [("system", "Be brief.\n\nOne line."), ("user", "Where is  it?\n"), ("assistant", "[search] Oslo"),
        ("user", "In Oslo."), ("assistant", "<answer> ü</answer>"), ("user", "No.")]
TALK = [{"role": role, "content": text} for role, text in TALK]


class Quiz:
    """Three turns in which anything is worth something."""
    system_prompt, user, tools = "Be brief.", None, None

    def __init__(self, tools=None):
        self.turns, self.tools = 0, tools

    def reset(self):
        return "Where is it?", {}

    def turn(self, action):
        self.turns += 1
        return "Where?", len(action) % 3 / 2, self.turns == 3, False, {}
        yield


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_of_each_family_plays_and_learns_in_its_own_template(tmp_path, shape, capsys):
    """Any other model than ours was refused, or was talked to in a rendering that it had never seen."""
    saved(tmp_path, *SHAPES[shape])
    model, tokenizer = grpo.load_policy(tmp_path, "cpu")
    assert capsys.readouterr().out == ""
    plain = AutoTokenizer.from_pretrained(tmp_path)
    talk = [{**m, "content": m["content"].strip()} for m in TALK] if shape == "llama" else TALK
    for count in (2, 4, 6):
        ours = grpo.demo_trajectory(tokenizer, talk[:count]).ids + grpo.reply_ids(tokenizer)
        theirs = plain.apply_chat_template(talk[:count], add_generation_prompt=True, return_dict=False)
        if shape == "qwen3":                                            # thinking off: where it stood, it stays
            theirs = plain.decode(theirs).replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")
            ours = plain.decode(ours)
        assert ours == theirs, shape
    engine = grpo.Engine(model, tokenizer, rows=2, max_len=1000)
    before = {name: p.clone() for name, p in model.named_parameters()}
    talks = grpo.rollout(engine, [Quiz(), Quiz([envs.tool_schema(("answer",))])], max_new_tokens=6)
    assert [t.status for t in talks] == ["done"] * 2 and [m["role"] for m in talks[1].messages[3::2]] == ["tool"] * 3
    again = grpo.demo_trajectory(tokenizer, talks[0].messages[:2])
    assert talks[0].ids[:len(again.ids)] == again.ids
    with torch.no_grad():                                               # in plain transformers: the same log-probs
        plain_model = AutoModelForCausalLM.from_pretrained(tmp_path)
        logp = plain_model(torch.tensor([talks[0].ids])).logits[0].log_softmax(-1)
    for at, (token, mask, said) in enumerate(zip(talks[0].ids, talks[0].mask, talks[0].logps)):
        assert not mask or abs(float(logp[at - 1, token]) - said) < 1e-4
    advantages = [[1.0, -1.0, 0.5]] * 2
    m = grpo.grpo_step(model, grpo.make_optimizer(model, 1e-3), talks, advantages, lr=1e-3)
    assert abs(m["ratio_max"] - 1) < 1e-3 and m["grad_norm"] > 0
    demo = grpo.demo_trajectory(tokenizer, TALK[:-1])
    losses = [grpo.sft_step(model, grpo.make_optimizer(model, 1e-2), [demo], lr=1e-2)["loss"] for _ in range(4)]
    assert losses[-1] < losses[0] and any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_pieces_of_a_thinking_model_by_hand(tmp_path):
    """Thought on: it speaks at once. Off: after an empty thought, which stays. A thought stays where it was said."""
    tok = tokenizer_of(QWEN3, CHATML)
    talk = [*TALK[:2], {"role": "assistant", "content": "<think>\nhm\n</think>\n\n[answer] 1"},
            {"role": "tool", "content": "No."}]
    grpo.fit_chat(tok)
    off = tok.decode(grpo.demo_trajectory(tok, TALK[:4]).ids + grpo.reply_ids(tok))
    tok.thinking = True
    on = tok.decode(grpo.demo_trajectory(tok, talk).ids + grpo.reply_ids(tok))
    opening = "<|im_start|>system\nBe brief.\n\nOne line.<|im_end|>\n<|im_start|>user\nWhere is  it?\n<|im_end|>\n"
    assert off == (opening + "<|im_start|>assistant\n<think>\n\n</think>\n\n[search] Oslo<|im_end|>\n"
                   "<|im_start|>user\nIn Oslo.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert on == (opening + "<|im_start|>assistant\n<think>\nhm\n</think>\n\n[answer] 1<|im_end|>\n<|im_start|>user\n"
                  "<tool_response>\nNo.\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    # only the words of a tool's reply are heard
    traj = grpo.demo_trajectory(tok, talk)
    assert tok.decode([traj.ids[at] for at in traj.heard]) == "No.<|im_end|>"


R1 = """{% for m in messages %}{% if m.role == "assistant" -%}
<|A|>{{ m.content.split("</think>")[-1] }}<|eos|>{% else -%}
<|U|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|A|><think>
{% endif %}"""


def test_a_thought_that_the_template_opens():
    """The policy samples the rest of it; a demonstration closes it, and what the environment reads is whole."""
    tok = tokenizer_of(R1, ["<|pad|>", "<|U|>", "<|A|>", "<|eos|>"])
    grpo.fit_chat(tok)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>\nhm</think>A"},
            {"role": "user", "content": "B"}, {"role": "assistant", "content": "C"}]
    assert tok.decode(grpo.demo_trajectory(tok, talk).ids) == (
        "<|U|>Hi<|A|><think>\nhm</think>A<|eos|><|U|>B<|A|><think>\n\n</think>\n\nC<|eos|>")


def test_a_tool_is_shown_by_the_template_or_by_the_system_prompt():
    tools = [envs.tool_schema(("answer",))]
    for template, special in ((QWEN3, CHATML), (SMOL, CHATML), (LLAMA, SHAPES["llama"][3])):
        tok = tokenizer_of(template, special)
        text = tok.decode(grpo.opening_ids(tok, TALK[:2], tools)[0])
        assert text.count('"interact_with_env"') == 1 and "<tool_call>" in text
        assert ("# Tools" in text) == (template == QWEN3)


# Its beginning says how long the conversation is.
MOVING = SMOL.replace("{% for m in", "{{ messages | length }}{% for m in")
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def test_a_template_that_is_not_append_only_is_replaced_by_chatml(tmp_path, capsys):
    tok = tokenizer_of(MOVING, CHATML)
    tok.name_or_path = "moving"
    grpo.fit_chat(tok)
    assert capsys.readouterr().out == (
        "! moving has a chat template that changes what stands before when the conversation goes on: "
        "its conversations are written as ChatML\n")
    assert tok.chat_template == grpo.CHAT_TEMPLATE                       # it is saved, and served, as it was trained
    for template, says in ((NO_END, "has no end-of-turn token: its chat template ends a turn with '\\\\nuser: '"),
                           (None, "has no chat template")):
        tok = tokenizer_of(template, CHATML)
        grpo.fit_chat(tok)
        assert says.replace("\\\\", "\\") in capsys.readouterr().out and tok.chat_template == grpo.CHAT_TEMPLATE
        tok = tokenizer_of(template, ["<s>", "</s>"])
        with pytest.raises(grpo.PolicyError, match=f"{says}.* no <.im_start.> / <.im_end.> for ChatML"):
            grpo.fit_chat(tok)


def test_what_is_no_decoder_and_no_packed_file_is_one_line(tmp_path, monkeypatch):
    tok = tokenizer_of(SMOL, CHATML)
    config = BertConfig(vocab_size=len(tok), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, initializer_range=0.5)
    BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
    tok.save_pretrained(tmp_path / "bert")
    with pytest.raises(grpo.PolicyError, match=r"bert is an encoder \(bert\): a policy must be a decoder"):
        grpo.load_policy(tmp_path / "bert", "cpu")
    saved(tmp_path / "small", *SHAPES["llama"][:2], SMOL, CHATML)
    tok.add_tokens([f"<{i}>" for i in range(99)])
    tok.save_pretrained(tmp_path / "small")
    with pytest.raises(grpo.PolicyError, match=r"the tokenizer has \d+ tokens, the model \d+"):
        grpo.load_policy(tmp_path / "small", "cpu")
    file = tmp_path / "model.gguf"
    with pytest.raises(grpo.PolicyError, match="no checkpoint at"):
        grpo.load_policy(file, "cpu")
    file.write_text("nonsense")
    found = grpo.importlib.util.find_spec
    monkeypatch.setattr(grpo.importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(grpo.PolicyError, match="needs a package that is not installed: pip install .*gguf"):
        grpo.load_policy(file, "cpu")
    monkeypatch.setattr(grpo.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(grpo.PolicyError, match="cannot load a policy from") as error:
        grpo.load_policy(file, "cpu")
    assert "\n" not in str(error.value)


SMALL = dict(vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=1)


@pytest.mark.parametrize("config, says", [
    (StableLmConfig(**SMALL), "type stablelm has an attention"),
    (DeepseekV2Config(**SMALL, first_k_dense_replace=1), "type deepseek_v2 has an attention"),
    (NemotronConfig(**SMALL), "does not pass on to its attention")])
def test_models_whose_attention_cannot_be_replaced_are_refused(config, says):
    """They were sampled without a causal mask, silently (Nemotron's log-probs were off by .66), or died."""
    model, tok = AutoModelForCausalLM.from_config(config), tokenizer_of(SMOL, CHATML)
    with pytest.raises(grpo.PolicyError, match=says):
        grpo.rollout(grpo.Engine(model, tok, rows=2, max_len=2048), [envs.make("intention", 0)], max_new_tokens=2)
    traj = grpo.demo_trajectory(tok, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    with contextlib.suppress(grpo.PolicyError):                         # Nemotron; the others learn, padded
        assert grpo.token_logps(model, [traj])


def test_float16_is_taken_as_bfloat16(tmp_path, capsys):
    """Its gradients, divided by a long step's tokens, fell below what float16 can hold: a quarter was lost."""
    saved(tmp_path / "half", *SHAPES["llama"][:2], SMOL, CHATML)
    AutoModelForCausalLM.from_pretrained(tmp_path / "half").half().save_pretrained(tmp_path / "half")
    some = {"model": str(tmp_path / "half"), "device": "cpu", "thinking": False}
    model, _ = grpo.chosen_policy(types.SimpleNamespace(**some, dtype=""))
    assert model.dtype == torch.bfloat16 and "half is in float16: taken as bfloat16" in capsys.readouterr().out
    model, _ = grpo.chosen_policy(types.SimpleNamespace(**some, dtype="float32"))
    assert model.dtype == torch.float32 and not capsys.readouterr().out


def test_a_thought_that_is_not_closed_holds_no_action():
    """A call that was only considered, in a thought cut off by the token limit, used to be made."""
    call = json.dumps({"name": "interact_with_env", "arguments": {"choice": "answer", "content": "x"}})
    for text in (f"<think>\nMaybe <tool_call>{call}", "<think>[answer] x"):
        act = envs.parse_action(text, ("answer",))
        assert act.kind == "error" and act.text.startswith("Close your thought with </think> before you act.")
        assert envs.parse_action(f"{text}</think>\n[answer] y", ("answer",)) == envs.Action("answer", "y")
